//! F(4×4, 3×3) and F(6×6, 3×3): sixteen outputs of a 3×3 convolution from 36 products instead of 144, and 36 from 64
//! instead of 324 (Winograd, 1980; Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015).
//!
//! In one direction, `m` outputs `y = Aᵀ[(G w) ⊙ (Bᵀ d)]` come from `m + 2` inputs `d` and three weights `w`: both are
//! read as polynomials, evaluated at 0, some pairs ±p and ∞, multiplied point by point, and the result is interpolated.
//! In two directions the transforms are applied to columns, then to rows.
//!
//! Larger tiles need fewer products and lose more to rounding. With the points ±√½ and ±√2 (so that a²b² = 1 and
//! a² + b² = 5⁄2) the errors of four outputs are less than half of those of the textbook points ±1 and ±2, at the same
//! cost; those of six outputs at ±½, ±1 and ±2 are about four times as large.
//!
//! A value that is not finite may reach any output of a tile whose inputs hold it.

use crate::transformed::{MOST, MOST_OUTPUTS, Transform};
use crate::vector::Vector;
use std::f32::consts::{FRAC_1_SQRT_2, SQRT_2};

/// F(4×4, 3×3).
pub(crate) struct Winograd4;

impl Winograd4 {
    /// The points' magnitudes and their squares.
    const A: f32 = FRAC_1_SQRT_2;
    const B: f32 = SQRT_2;
    const A2: f32 = 0.5;
    const B2: f32 = 2.0;
    /// 1 ⁄ (2a²(a² − b²)) and 1 ⁄ (2b²(b² − a²)), the interpolation's denominators at ±a and ±b.
    const AT_A: f32 = -2.0 / 3.0;
    const AT_B: f32 = 1.0 / 6.0;
}

impl Transform for Winograd4 {
    const OUTPUTS: usize = 4;
    const INPUTS: usize = 6;
    const STEP: usize = 4;
    const SOURCES: usize = 6;
    const PRODUCTS: usize = 6;
    const SOURCE_OF: [usize; MOST] = [0, 1, 2, 3, 4, 5, 0, 0];
    const SKIP: usize = 0;

    #[inline(always)]
    unsafe fn input<V: Vector>(d: [V; MOST]) -> [V; MOST] {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let (even_a, odd_a) = (d[4].add_scaled(-Self::B2, d[2]), d[3].add_scaled(-Self::B2, d[1]));
            let (even_b, odd_b) = (d[4].add_scaled(-Self::A2, d[2]), d[3].add_scaled(-Self::A2, d[1]));
            [
                d[0].plus(d[4]).add_scaled(-Self::A2 - Self::B2, d[2]),
                even_a.add_scaled(Self::A, odd_a),
                even_a.add_scaled(-Self::A, odd_a),
                even_b.add_scaled(Self::B, odd_b),
                even_b.add_scaled(-Self::B, odd_b),
                d[1].plus(d[5]).add_scaled(-Self::A2 - Self::B2, d[3]),
                d[0],
                d[0],
            ]
        }
    }

    #[inline(always)]
    unsafe fn weight<V: Vector>(w: [V; 3]) -> [V; MOST] {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let [a, more_a] = pair(w, Self::A, Self::AT_A);
            let [b, more_b] = pair(w, Self::B, Self::AT_B);
            [w[0], a, more_a, b, more_b, w[2], w[0], w[0]]
        }
    }

    #[inline(always)]
    unsafe fn output<V: Vector>(m: [V; MOST]) -> [V; MOST_OUTPUTS] {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let (sum_a, difference_a) = (m[1].plus(m[2]), m[1].minus(m[2]));
            let (sum_b, difference_b) = (m[3].plus(m[4]), m[3].minus(m[4]));
            let zero = V::splat(0.0);
            [
                m[0].plus(sum_a).plus(sum_b),
                zero.add_scaled(Self::A, difference_a).add_scaled(Self::B, difference_b),
                zero.add_scaled(Self::A2, sum_a).add_scaled(Self::B2, sum_b),
                m[5].add_scaled(Self::A * Self::A2, difference_a)
                    .add_scaled(Self::B * Self::B2, difference_b),
                zero,
                zero,
            ]
        }
    }
}

/// F(6×6, 3×3).
pub(crate) struct Winograd6;

impl Winograd6 {
    /// The points' magnitudes and their squares.
    const A: f32 = 0.5;
    const B: f32 = 1.0;
    const C: f32 = 2.0;
    const A2: f32 = Self::A * Self::A;
    const B2: f32 = Self::B * Self::B;
    const C2: f32 = Self::C * Self::C;
    /// Elementary symmetric functions of the squares.
    const S1: f32 = Self::A2 + Self::B2 + Self::C2;
    const S2: f32 = Self::A2 * Self::B2 + Self::B2 * Self::C2 + Self::C2 * Self::A2;
    const S3: f32 = Self::A2 * Self::B2 * Self::C2;
    /// The interpolation's denominators at 0, ±a, ±b and ±c.
    const AT_0: f32 = -1.0 / Self::S3;
    const AT_A: f32 = 1.0 / (2.0 * Self::A2 * (Self::A2 - Self::B2) * (Self::A2 - Self::C2));
    const AT_B: f32 = 1.0 / (2.0 * Self::B2 * (Self::B2 - Self::A2) * (Self::B2 - Self::C2));
    const AT_C: f32 = 1.0 / (2.0 * Self::C2 * (Self::C2 - Self::A2) * (Self::C2 - Self::B2));
}

impl Transform for Winograd6 {
    const OUTPUTS: usize = 6;
    const INPUTS: usize = 8;
    const STEP: usize = 6;
    const SOURCES: usize = 8;
    const PRODUCTS: usize = 8;
    const SOURCE_OF: [usize; MOST] = [0, 1, 2, 3, 4, 5, 6, 7];
    const SKIP: usize = 0;

    #[inline(always)]
    unsafe fn input<V: Vector>(d: [V; MOST]) -> [V; MOST] {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let [a, less_a] = at(d, Self::A, [Self::B2, Self::C2]);
            let [b, less_b] = at(d, Self::B, [Self::C2, Self::A2]);
            let [c, less_c] = at(d, Self::C, [Self::A2, Self::B2]);
            let first =
                d[6].add_scaled(-Self::S1, d[4]).add_scaled(Self::S2, d[2]).add_scaled(-Self::S3, d[0]);
            let last =
                d[7].add_scaled(-Self::S1, d[5]).add_scaled(Self::S2, d[3]).add_scaled(-Self::S3, d[1]);
            [first, a, less_a, b, less_b, c, less_c, last]
        }
    }

    #[inline(always)]
    unsafe fn weight<V: Vector>(w: [V; 3]) -> [V; MOST] {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let [a, less_a] = pair(w, Self::A, Self::AT_A);
            let [b, less_b] = pair(w, Self::B, Self::AT_B);
            let [c, less_c] = pair(w, Self::C, Self::AT_C);
            [V::splat(0.0).add_scaled(Self::AT_0, w[0]), a, less_a, b, less_b, c, less_c, w[2]]
        }
    }

    #[inline(always)]
    unsafe fn output<V: Vector>(m: [V; MOST]) -> [V; MOST_OUTPUTS] {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let sums = [m[1].plus(m[2]), m[3].plus(m[4]), m[5].plus(m[6])];
            let differences = [m[1].minus(m[2]), m[3].minus(m[4]), m[5].minus(m[6])];
            let zero = V::splat(0.0);
            let (p, p2) = ([Self::A, Self::B, Self::C], [Self::A2, Self::B2, Self::C2]);
            let p3 = [p[0] * p2[0], p[1] * p2[1], p[2] * p2[2]];
            let p4 = [p2[0] * p2[0], p2[1] * p2[1], p2[2] * p2[2]];
            let p5 = [p[0] * p4[0], p[1] * p4[1], p[2] * p4[2]];
            [
                m[0].plus(sums[0]).plus(sums[1]).plus(sums[2]),
                combine(zero, differences, p),
                combine(zero, sums, p2),
                combine(zero, differences, p3),
                combine(zero, sums, p4),
                combine(m[7], differences, p5),
            ]
        }
    }
}

/// The inputs at ±p: x (x ± p) times the product of x² − q² over the other pairs ±q.
#[inline(always)]
unsafe fn at<V: Vector>(d: [V; MOST], p: f32, [q2, r2]: [f32; 2]) -> [V; 2] {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let even = d[6].add_scaled(-q2 - r2, d[4]).add_scaled(q2 * r2, d[2]);
        let odd = d[5].add_scaled(-q2 - r2, d[3]).add_scaled(q2 * r2, d[1]);
        [even.add_scaled(p, odd), even.add_scaled(-p, odd)]
    }
}

/// `start + Σ factor · value`.
#[inline(always)]
unsafe fn combine<V: Vector>(start: V, values: [V; 3], factors: [f32; 3]) -> V {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        start
            .add_scaled(factors[0], values[0])
            .add_scaled(factors[1], values[1])
            .add_scaled(factors[2], values[2])
    }
}

/// `(w₀ ± p w₁ + p² w₂) · scale`, the factors at the points ±p.
#[inline(always)]
unsafe fn pair<V: Vector>(w: [V; 3], p: f32, scale: f32) -> [V; 2] {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let even = V::splat(0.0).add_scaled(scale, w[0]).add_scaled(scale * (p * p), w[2]);
        [even.add_scaled(scale * p, w[1]), even.add_scaled(-scale * p, w[1])]
    }
}
