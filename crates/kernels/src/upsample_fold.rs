//! Nearest upsampling by two and a 3×3 convolution in one: sixteen outputs from 25 products instead of 144, and only
//! nine inputs.
//!
//! In one direction, output `p` of the convolution of `u[q] = x[⌊q/2⌋]` is `w₀u[p−1] + w₁u[p] + w₂u[p+1]`. With
//! W = w₀ + w₁ + w₂, four outputs in a row share five products:
//!
//! ```text
//! y[2i+1] = (w₀ + w₁)(xᵢ − xᵢ₊₁) + W xᵢ₊₁
//! y[2i+2] =        w₀ (xᵢ − xᵢ₊₁) + W xᵢ₊₁
//! y[2i+3] = W xᵢ₊₁ −        w₂ (xᵢ₊₁ − xᵢ₊₂)
//! y[2i+4] = W xᵢ₊₁ − (w₁ + w₂)(xᵢ₊₁ − xᵢ₊₂)
//! ```
//!
//! All factors of the transforms are ±1, so that rounding errors are smaller than those of the direct sum. Padding must
//! be one pixel on each side: the zeros around `u` are then those around `x`. Tiles begin one output before the
//! picture's first.
//!
//! A value that is not finite may reach any output of a tile whose 3×3 inputs hold it.

use crate::transformed::{MOST, MOST_OUTPUTS, Transform};
use crate::vector::Vector;

pub(crate) struct UpsampleFold;

impl Transform for UpsampleFold {
    const OUTPUTS: usize = 4;
    const INPUTS: usize = 3;
    const STEP: usize = 2;
    const SOURCES: usize = 3;
    const PRODUCTS: usize = 5;
    const SOURCE_OF: [usize; MOST] = [0, 0, 1, 2, 2, 0, 0, 0];
    const SKIP: usize = 1;

    #[inline(always)]
    unsafe fn input<V: Vector>(d: [V; MOST]) -> [V; MOST] {
        // SAFETY: the caller vouches for the CPU.
        unsafe { [d[0].minus(d[1]), d[1], d[1].minus(d[2]), d[1], d[1], d[1], d[1], d[1]] }
    }

    #[inline(always)]
    unsafe fn weight<V: Vector>(w: [V; 3]) -> [V; MOST] {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let zero = V::splat(0.0);
            let first = w[0].plus(w[1]);
            [first, w[0], first.plus(w[2]), zero.minus(w[2]), zero.minus(w[1].plus(w[2])), zero, zero, zero]
        }
    }

    #[inline(always)]
    unsafe fn output<V: Vector>(m: [V; MOST]) -> [V; MOST_OUTPUTS] {
        // SAFETY: the caller vouches for the CPU.
        unsafe { [m[0].plus(m[2]), m[1].plus(m[2]), m[3].plus(m[2]), m[4].plus(m[2]), m[2], m[2]] }
    }
}
