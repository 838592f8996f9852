//! 3×3 convolutions of stride 2 by fewer products: nine outputs from 49 instead of 81.
//!
//! In one direction, `yᵢ = w₀x[2i] + w₁x[2i+1] + w₂x[2i+2]` is a convolution of the even inputs `e` with two taps, w₀ and
//! w₂, and one of the odd inputs `o` with one. Three outputs of the first take four products by F(3,2) at the points 0, ±1
//! and ∞ (see [`crate::winograd`]), of the second three:
//!
//! ```text
//! y₀ = w₀(e₀ − e₂) + ½(w₀ + w₂)(e₁ + e₂) + ½(w₀ − w₂)(e₂ − e₁)                + w₁o₀
//! y₁ =               ½(w₀ + w₂)(e₁ + e₂) − ½(w₀ − w₂)(e₂ − e₁)                + w₁o₁
//! y₂ =               ½(w₀ + w₂)(e₁ + e₂) + ½(w₀ − w₂)(e₂ − e₁) + w₂(e₃ − e₁)  + w₁o₂
//! ```
//!
//! All factors are ±1 and ½, so that it rounds little more than the direct sum.
//!
//! A value that is not finite may reach any output of a tile whose 7×7 inputs hold it.

use crate::transformed::{MOST, MOST_OUTPUTS, Transform};
use crate::vector::Vector;

/// F(3×3, 3×3) with stride 2.
pub(crate) struct WinogradStrided;

impl Transform for WinogradStrided {
    const OUTPUTS: usize = 3;
    const INPUTS: usize = 7;
    const STEP: usize = 6;
    const SOURCES: usize = 7;
    const PRODUCTS: usize = 7;
    const SOURCE_OF: [usize; MOST] = [0, 1, 2, 3, 4, 5, 6, 0];
    const SKIP: usize = 0;

    #[inline(always)]
    unsafe fn input<V: Vector>(d: [V; MOST]) -> [V; MOST] {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let [e0, o0, e1, o1, e2, o2, e3, _] = d;
            [e0.minus(e2), e1.plus(e2), e2.minus(e1), e3.minus(e1), o0, o1, o2, o2]
        }
    }

    #[inline(always)]
    unsafe fn weight<V: Vector>(w: [V; 3]) -> [V; MOST] {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let half = V::splat(0.5);
            let (sum, difference) = (w[0].plus(w[2]).times(half), w[0].minus(w[2]).times(half));
            [w[0], sum, difference, w[2], w[1], w[1], w[1], w[1]]
        }
    }

    #[inline(always)]
    unsafe fn output<V: Vector>(m: [V; MOST]) -> [V; MOST_OUTPUTS] {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let sum = m[1].plus(m[2]);
            let y0 = m[0].plus(sum).plus(m[4]);
            let y1 = m[1].minus(m[2]).plus(m[5]);
            let y2 = sum.plus(m[3]).plus(m[6]);
            [y0, y1, y2, y2, y2, y2]
        }
    }
}
