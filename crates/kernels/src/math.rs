//! Scalar functions written so that the compiler turns loops over them into vector code.

use crate::microkernel::Tile;

/// `a * b + c`; one rounding where the tier has it, two elsewhere.
#[inline(always)]
pub(crate) fn multiply_add<T: Tile>(a: f32, b: f32, c: f32) -> f32 {
    if T::FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x` with a relative error below 2e-7 on [-87, 88]; the argument is clamped to that range, NaN stays NaN.
///
/// Cephes' range reduction (x = n·ln 2 + r, ln 2 in two parts) and its minimax polynomial on |r| ≤ ln 2 / 2.
#[inline(always)]
pub(crate) fn exp<T: Tile>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it leaves the nearest integer in the low bits
    let x = x.clamp(-87.0, 88.0);
    let shifted = multiply_add::<T>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = multiply_add::<T>(n, -355.0 / 512.0, x);
    let r = multiply_add::<T>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = multiply_add::<T>(p, r, c);
    }
    let p = multiply_add::<T>(p * r, r, r) + 1.0;
    // The integer sits in the low mantissa bits of `shifted`; 127 is the exponent's bias.
    let exponent = shifted.to_bits().wrapping_add(127) << 23;
    p * f32::from_bits(exponent)
}

/// `tanh(x)` with an error below 2e-7, from [`exp`] alone, so that it is the same on every system; NaN stays NaN.
#[inline(always)]
pub(crate) fn tanh<T: Tile>(x: f32) -> f32 {
    let size = x.abs();
    let value = if size < 0.1 {
        // Taylor's series; the quotient below would lose digits here.
        let square = size * size;
        let tail = multiply_add::<T>(square, 2.0 / 15.0, -1.0 / 3.0);
        multiply_add::<T>(size * square, tail, size)
    } else {
        1.0 - 2.0 / (1.0 + exp::<T>(2.0 * size))
    };
    if x.is_nan() { x } else { value.copysign(x) }
}

/// `x · sigmoid(x)` for |x| below 1e30; NaN stays NaN.
#[inline(always)]
pub(crate) fn silu<T: Tile>(x: f32) -> f32 {
    x / (1.0 + exp::<T>(-x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::microkernel::{Fused, Generic};

    #[test]
    fn exp_is_close_over_its_range() {
        let mut worst = 0.0f64;
        for i in 0..200_000 {
            let x = -87.0 + 175.0 * i as f32 / 200_000.0;
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(exp::<Fused>(x)) / expected - 1.0).abs());
            worst = worst.max((f64::from(exp::<Generic>(x)) / expected - 1.0).abs());
        }
        assert!(worst < 2e-7, "{worst:e}");
    }

    #[test]
    fn tanh_is_close_everywhere() {
        for i in -200_000..=200_000 {
            let x = i as f32 / 10_000.0;
            let expected = f64::from(x).tanh();
            for found in [tanh::<Fused>(x), tanh::<Generic>(x)] {
                assert!((f64::from(found) - expected).abs() < 2e-7, "tanh({x}) is {found}");
            }
        }
        assert!(tanh::<Fused>(f32::NAN).is_nan());
        assert_eq!(tanh::<Fused>(f32::NEG_INFINITY), -1.0);
    }

    #[test]
    fn silu_has_the_right_ends() {
        assert_eq!(silu::<Fused>(0.0), 0.0);
        assert_eq!(silu::<Fused>(100.0), 100.0);
        assert!(silu::<Fused>(-100.0).abs() < 1e-30);
        assert!(silu::<Fused>(f32::NAN).is_nan());
        assert_eq!(silu::<Fused>(f32::INFINITY), f32::INFINITY);
    }
}
