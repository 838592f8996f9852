//! The few vector instructions that the micro-kernel is written in, once for each instruction set.

use crate::half::Halves;

/// A register of `f32` lanes.
///
/// All functions are `unsafe` because an implementation may use instructions that only some CPUs have; they are
/// `#[inline(always)]` so that they compile inside the caller's `#[target_feature]`, which they cannot carry themselves.
pub(crate) trait Vector: Copy + Halves {
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

    /// `self + scalar · vector`, rounded once where the set has a fused instruction.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn add_scaled(self, scalar: f32, vector: Self) -> Self;
}

/// Implements [`Vector`] by intrinsics of one set.
#[cfg(target_arch = "x86_64")]
macro_rules! x86_vector {
    ($register:ident, $lanes:literal, $load:ident, $store:ident, $splat:ident, $add:ident, $sub:ident,
     $mul:ident, $fma:ident) => {
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
    _mm512_fmadd_ps
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
    _mm256_fmadd_ps
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
    unsafe fn add_scaled(mut self, scalar: f32, vector: Self) -> Self {
        for lane in 0..16 {
            self.0[lane] += scalar * vector.0[lane];
        }
        self
    }
}
