//! The few instructions on 16-bit integers that the micro-kernel is written in, once for each instruction set.

use crate::vector::Vector;

/// A register of 32-bit lanes: pairs of 16-bit integers, or sums of their products. It has as many lanes as its
/// [`Integers::Floats`].
///
/// All functions are `unsafe` and `#[inline(always)]` for the reasons given at [`Vector`].
pub(crate) trait Integers: Copy {
    /// The register of `f32` of this width.
    type Floats: Vector;

    /// The first values of `from`, one for each lane.
    ///
    /// # Safety
    /// The CPU has the instruction set, and `from` is long enough.
    unsafe fn load(from: &[i32]) -> Self;

    /// The same word in each lane.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn splat(word: i32) -> Self;

    /// `self + a.low · b.low + a.high · b.high` in each lane, modulo 2³².
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn add_pairs(self, a: Self, b: Self) -> Self;

    /// Each lane as the nearest `f32`.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn to_floats(self) -> Self::Floats;
}

/// Implements [`Integers`] by intrinsics of one set; the last argument is the expression of
/// [`Integers::add_pairs`].
#[cfg(target_arch = "x86_64")]
macro_rules! x86_integers {
    ($(#[$doc:meta])* $name:ident, $register:ident, $floats:ident, $load:ident, $splat:ident, $convert:ident,
     |$sum:ident, $a:ident, $b:ident| $add_pairs:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name(std::arch::x86_64::$register);

        impl Integers for $name {
            type Floats = std::arch::x86_64::$floats;

            #[inline(always)]
            unsafe fn load(from: &[i32]) -> Self {
                debug_assert!(from.len() >= <Self::Floats as Vector>::LANES);
                // SAFETY: the caller vouches for the CPU and the length.
                unsafe { $name(std::arch::x86_64::$load(from.as_ptr().cast())) }
            }

            #[inline(always)]
            unsafe fn splat(word: i32) -> Self {
                // SAFETY: the caller vouches for the CPU.
                unsafe { $name(std::arch::x86_64::$splat(word)) }
            }

            #[inline(always)]
            unsafe fn add_pairs(self, a: Self, b: Self) -> Self {
                #[allow(unused_imports)] // not all expressions are of intrinsics
                use std::arch::x86_64::*;
                let ($sum, $a, $b) = (self.0, a.0, b.0);
                // SAFETY: the caller vouches for the CPU.
                unsafe { $name($add_pairs) }
            }

            #[inline(always)]
            unsafe fn to_floats(self) -> Self::Floats {
                // SAFETY: the caller vouches for the CPU.
                unsafe { std::arch::x86_64::$convert(self.0) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
x86_integers!(
    /// AVX-512 with the instruction that multiplies, adds and accumulates in one.
    Vnni, __m512i, __m512, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_cvtepi32_ps,
    |sum, a, b| dot_pairs(sum, a, b)
);
#[cfg(target_arch = "x86_64")]
x86_integers!(
    /// AVX-512 without it.
    Avx512, __m512i, __m512, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_cvtepi32_ps,
    |sum, a, b| _mm512_add_epi32(sum, _mm512_madd_epi16(a, b))
);
#[cfg(target_arch = "x86_64")]
x86_integers!(
    /// AVX2.
    Avx2, __m256i, __m256, _mm256_loadu_si256, _mm256_set1_epi32, _mm256_cvtepi32_ps,
    |sum, a, b| _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
);

/// `VPDPWSSD`. Written out, because the compiler takes its intrinsic apart into a multiplication and an addition where it
/// expects a shorter chain, which costs a quarter of the speed.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot_pairs(
    mut sum: std::arch::x86_64::__m512i,
    a: std::arch::x86_64::__m512i,
    b: std::arch::x86_64::__m512i,
) -> std::arch::x86_64::__m512i {
    // SAFETY: this function's features have the instruction, which changes nothing but `sum`.
    unsafe {
        std::arch::asm!(
            "vpdpwssd {sum}, {a}, {b}",
            sum = inout(zmm_reg) sum,
            a = in(zmm_reg) a,
            b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// The portable stand-in: the compiler finds the platform's registers.
#[derive(Clone, Copy)]
pub(crate) struct Portable([i32; 16]);

impl Integers for Portable {
    type Floats = crate::vector::Portable;

    #[inline(always)]
    unsafe fn load(from: &[i32]) -> Self {
        let mut lanes = [0; 16];
        lanes.copy_from_slice(&from[..16]);
        Portable(lanes)
    }

    #[inline(always)]
    unsafe fn splat(word: i32) -> Self {
        Portable([word; 16])
    }

    #[inline(always)]
    unsafe fn add_pairs(mut self, a: Self, b: Self) -> Self {
        for lane in 0..16 {
            let low = i32::from(a.0[lane] as i16) * i32::from(b.0[lane] as i16);
            let high = (a.0[lane] >> 16) * (b.0[lane] >> 16);
            self.0[lane] = self.0[lane].wrapping_add(low.wrapping_add(high));
        }
        self
    }

    #[inline(always)]
    unsafe fn to_floats(self) -> Self::Floats {
        crate::vector::Portable(self.0.map(|lane| lane as f32))
    }
}
