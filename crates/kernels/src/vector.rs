//! The few vector instructions that the micro-kernel is written in, once for each instruction set.

use crate::half::Halves;
use crate::reduce::Reduce;

/// A register of `f32` lanes.
///
/// All functions are `unsafe` because an implementation may use instructions that only some CPUs have; they are
/// `#[inline(always)]` so that they compile inside the caller's `#[target_feature]`, which they cannot carry themselves.
pub(crate) trait Vector: Copy + Halves + Reduce {
    /// Lanes of one register.
    const LANES: usize;

    /// The first [`Self::LANES`] values of `from`.
    ///
    /// # Safety
    /// The CPU has the instruction set, and `from` is long enough.
    unsafe fn load(from: &[f32]) -> Self;

    /// Writes the lanes to the start of `to`.
    ///
    /// # Safety
    /// The CPU has the instruction set, and `to` is long enough.
    unsafe fn store(self, to: &mut [f32]);

    /// The same value in each lane.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn splat(value: f32) -> Self;

    /// `self + other`
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn plus(self, other: Self) -> Self;

    /// `self − other`
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn minus(self, other: Self) -> Self;

    /// `self · other`
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn times(self, other: Self) -> Self;

    /// The larger of `self` and `|other|` in each lane, as bits: what is not finite is larger than all numbers.
    /// `self` has no negative lane.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn largest_magnitude(self, other: Self) -> Self;

    /// `self + scalar · vector`, rounded once where the set has a fused instruction.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn add_scaled(self, scalar: f32, vector: Self) -> Self;
}

/// Implements [`Vector`] by intrinsics of one set; the last argument is the expression of
/// [`Vector::largest_magnitude`].
#[cfg(target_arch = "x86_64")]
macro_rules! x86_vector {
    ($register:ident, $lanes:literal, $load:ident, $store:ident, $splat:ident, $add:ident, $sub:ident,
     $mul:ident, $fma:ident,
     |$most:ident, $other:ident| $largest_magnitude:expr) => {
        impl Vector for std::arch::x86_64::$register {
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn load(from: &[f32]) -> Self {
                debug_assert!(from.len() >= Self::LANES);
                // SAFETY: the caller vouches for the CPU and the length.
                unsafe { std::arch::x86_64::$load(from.as_ptr()) }
            }

            #[inline(always)]
            unsafe fn store(self, to: &mut [f32]) {
                debug_assert!(to.len() >= Self::LANES);
                // SAFETY: the caller vouches for the CPU and the length.
                unsafe { std::arch::x86_64::$store(to.as_mut_ptr(), self) }
            }

            #[inline(always)]
            unsafe fn splat(value: f32) -> Self {
                // SAFETY: the caller vouches for the CPU.
                unsafe { std::arch::x86_64::$splat(value) }
            }

            #[inline(always)]
            unsafe fn plus(self, other: Self) -> Self {
                // SAFETY: the caller vouches for the CPU.
                unsafe { std::arch::x86_64::$add(self, other) }
            }

            #[inline(always)]
            unsafe fn minus(self, other: Self) -> Self {
                // SAFETY: the caller vouches for the CPU.
                unsafe { std::arch::x86_64::$sub(self, other) }
            }

            #[inline(always)]
            unsafe fn times(self, other: Self) -> Self {
                // SAFETY: the caller vouches for the CPU.
                unsafe { std::arch::x86_64::$mul(self, other) }
            }

            #[inline(always)]
            unsafe fn largest_magnitude(self, other: Self) -> Self {
                use std::arch::x86_64::*;
                let ($most, $other) = (self, other);
                // SAFETY: the caller vouches for the CPU.
                unsafe { $largest_magnitude }
            }

            #[inline(always)]
            unsafe fn add_scaled(self, scalar: f32, vector: Self) -> Self {
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    let factor = std::arch::x86_64::$splat(scalar);
                    std::arch::x86_64::$fma(factor, vector, self)
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
x86_vector!(
    __m512,
    16,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_add_ps,
    _mm512_sub_ps,
    _mm512_mul_ps,
    _mm512_fmadd_ps,
    |most, other| {
        let magnitude = _mm512_and_si512(_mm512_castps_si512(other), _mm512_set1_epi32(i32::MAX));
        _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(most), magnitude))
    }
);
#[cfg(target_arch = "x86_64")]
x86_vector!(
    __m256,
    8,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_add_ps,
    _mm256_sub_ps,
    _mm256_mul_ps,
    _mm256_fmadd_ps,
    |most, other| {
        let magnitude = _mm256_and_si256(_mm256_castps_si256(other), _mm256_set1_epi32(i32::MAX));
        _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(most), magnitude))
    }
);

/// The portable stand-in: the compiler finds the platform's registers.
#[derive(Clone, Copy)]
pub(crate) struct Portable(pub(crate) [f32; 16]);

impl Vector for Portable {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn load(from: &[f32]) -> Self {
        let mut lanes = [0.0; 16];
        lanes.copy_from_slice(&from[..16]);
        Portable(lanes)
    }

    #[inline(always)]
    unsafe fn store(self, to: &mut [f32]) {
        to[..16].copy_from_slice(&self.0);
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Portable([value; 16])
    }

    #[inline(always)]
    unsafe fn plus(mut self, other: Self) -> Self {
        for lane in 0..16 {
            self.0[lane] += other.0[lane];
        }
        self
    }

    #[inline(always)]
    unsafe fn minus(mut self, other: Self) -> Self {
        for lane in 0..16 {
            self.0[lane] -= other.0[lane];
        }
        self
    }

    #[inline(always)]
    unsafe fn times(mut self, other: Self) -> Self {
        for lane in 0..16 {
            self.0[lane] *= other.0[lane];
        }
        self
    }

    #[inline(always)]
    unsafe fn largest_magnitude(mut self, other: Self) -> Self {
        for lane in 0..16 {
            let magnitude = other.0[lane].to_bits() & 0x7fff_ffff;
            self.0[lane] = f32::from_bits(self.0[lane].to_bits().max(magnitude));
        }
        self
    }

    #[inline(always)]
    unsafe fn add_scaled(mut self, scalar: f32, vector: Self) -> Self {
        for lane in 0..16 {
            self.0[lane] += scalar * vector.0[lane];
        }
        self
    }
}
