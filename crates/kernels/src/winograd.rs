//! F(4×4, 3×3): sixteen outputs of a 3×3 convolution from 36 products instead of 144 (Winograd, 1980; Lavin and Gray,
//! "Fast Algorithms for Convolutional Neural Networks", 2015).
//!
//! In one direction, four outputs `y = Aᵀ[(G w) ⊙ (Bᵀ d)]` come from six inputs `d` and three weights `w`: both are read
//! as polynomials, evaluated at 0, ±a, ±b and ∞, multiplied point by point, and the result is interpolated. With
//! a = √½ and b = √2 (so that a²b² = 1 and a² + b² = 5⁄2) rounding errors are less than half of those of the textbook
//! points 0, ±1, ±2, at the same cost. In two directions the transforms are applied to columns, then to rows.
//!
//! A value that is not finite may reach any output of a tile whose 6×6 inputs hold it.

use crate::transformed::Transform;
use crate::vector::Vector;
use std::f32::consts::{FRAC_1_SQRT_2 as A, SQRT_2 as B};

/// a² and b²
const A2: f32 = 0.5;
const B2: f32 = 2.0;
/// 1 ⁄ (2a²(a² − b²)) and 1 ⁄ (2b²(b² − a²)), the interpolation's denominators at ±a and ±b.
const AT_A: f32 = -2.0 / 3.0;
const AT_B: f32 = 1.0 / 6.0;

pub(crate) struct Winograd;

impl Transform for Winograd {
    const INPUTS: usize = 6;
    const STEP: usize = 4;
    const SOURCES: usize = 6;
    const PRODUCTS: usize = 6;
    const SOURCE_OF: [usize; 6] = [0, 1, 2, 3, 4, 5];
    const SKIP: usize = 0;

    #[inline(always)]
    unsafe fn input<V: Vector>(d: [V; 6]) -> [V; 6] {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let (even_a, odd_a) = (d[4].add_scaled(-B2, d[2]), d[3].add_scaled(-B2, d[1]));
            let (even_b, odd_b) = (d[4].add_scaled(-A2, d[2]), d[3].add_scaled(-A2, d[1]));
            [
                d[0].plus(d[4]).add_scaled(-A2 - B2, d[2]),
                even_a.add_scaled(A, odd_a),
                even_a.add_scaled(-A, odd_a),
                even_b.add_scaled(B, odd_b),
                even_b.add_scaled(-B, odd_b),
                d[1].plus(d[5]).add_scaled(-A2 - B2, d[3]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn weight<V: Vector>(w: [V; 3]) -> [V; 6] {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let zero = V::splat(0.0);
            let even_a = zero.add_scaled(AT_A, w[0]).add_scaled(AT_A * A2, w[2]);
            let even_b = zero.add_scaled(AT_B, w[0]).add_scaled(AT_B * B2, w[2]);
            [
                w[0],
                even_a.add_scaled(AT_A * A, w[1]),
                even_a.add_scaled(-AT_A * A, w[1]),
                even_b.add_scaled(AT_B * B, w[1]),
                even_b.add_scaled(-AT_B * B, w[1]),
                w[2],
            ]
        }
    }

    #[inline(always)]
    unsafe fn output<V: Vector>(m: [V; 6]) -> [V; 4] {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let (sum_a, difference_a) = (m[1].plus(m[2]), m[1].minus(m[2]));
            let (sum_b, difference_b) = (m[3].plus(m[4]), m[3].minus(m[4]));
            let zero = V::splat(0.0);
            [
                m[0].plus(sum_a).plus(sum_b),
                zero.add_scaled(A, difference_a).add_scaled(B, difference_b),
                zero.add_scaled(A2, sum_a).add_scaled(B2, sum_b),
                m[5].add_scaled(A * A2, difference_a).add_scaled(B * B2, difference_b),
            ]
        }
    }
}
