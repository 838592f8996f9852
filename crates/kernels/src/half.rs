//! Sixteen values as half-precision numbers (IEEE 754 binary16) with one exponent for all of them.
//!
//! Values whose largest lies between 2⁻⁴ and 2¹⁵ are plain halves and the exponent is 0. Others are stored as halves of
//! `value · 2^-exponent`, the exponent chosen so that the largest lies between 2¹⁴ and 2¹⁵: no finite `f32` overflows,
//! and what is much smaller than its neighbours loses no more than it would beside them in any other group.

use crate::layout::BLOCK;
use crate::vector::Portable;

/// Bits of the largest and the smallest magnitude that a group may have at its top to be stored unscaled.
const MOST: u32 = 32768.0f32.to_bits();
const LEAST: u32 = 0.0625f32.to_bits();
/// Power of two at which the largest value of a scaled group lies.
const TOP: i32 = 14;
/// The largest half below 2^15.
const LARGEST: f32 = 32752.0;
const INFINITY: u32 = f32::INFINITY.to_bits();

/// Conversion between `f32` and halves, to nearest, ties to even; one register set each, all to the same bits.
pub(crate) trait Halves {
    /// Values to halves.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn narrow(values: &[f32; BLOCK], halves: &mut [u16; BLOCK]);

    /// Halves to values.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn widen(halves: &[u16; BLOCK]) -> [f32; BLOCK];

    /// Whether the largest of the values lies where a group is stored unscaled, or all are zero.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn is_plain(values: &[f32; BLOCK]) -> bool;
}

#[cfg(target_arch = "x86_64")]
impl Halves for std::arch::x86_64::__m512 {
    #[inline(always)]
    unsafe fn narrow(values: &[f32; BLOCK], halves: &mut [u16; BLOCK]) {
        use std::arch::x86_64::{
            _MM_FROUND_TO_NEAREST_INT, _mm256_storeu_si256, _mm512_cvtps_ph, _mm512_loadu_ps,
        };
        // SAFETY: the caller vouches for the CPU; the arrays are as long as the registers.
        unsafe {
            let narrow = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_loadu_ps(values.as_ptr()));
            _mm256_storeu_si256(halves.as_mut_ptr().cast(), narrow);
        }
    }

    #[inline(always)]
    unsafe fn widen(halves: &[u16; BLOCK]) -> [f32; BLOCK] {
        use std::arch::x86_64::{_mm256_loadu_si256, _mm512_cvtph_ps, _mm512_storeu_ps};
        let mut values = [0.0; BLOCK];
        // SAFETY: the caller vouches for the CPU; the arrays are as long as the registers.
        unsafe {
            _mm512_storeu_ps(
                values.as_mut_ptr(),
                _mm512_cvtph_ps(_mm256_loadu_si256(halves.as_ptr().cast())),
            );
        }
        values
    }

    #[inline(always)]
    unsafe fn is_plain(values: &[f32; BLOCK]) -> bool {
        use std::arch::x86_64::*;
        // SAFETY: the caller vouches for the CPU; the array is as long as the register.
        unsafe {
            let sizes =
                _mm512_and_si512(_mm512_loadu_si512(values.as_ptr().cast()), _mm512_set1_epi32(i32::MAX));
            let above = _mm512_cmpgt_epi32_mask(sizes, _mm512_set1_epi32(MOST as i32));
            let enough = _mm512_cmpge_epi32_mask(sizes, _mm512_set1_epi32(LEAST as i32));
            above == 0 && (enough != 0 || _mm512_test_epi32_mask(sizes, sizes) == 0)
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Halves for std::arch::x86_64::__m256 {
    #[inline(always)]
    unsafe fn narrow(values: &[f32; BLOCK], halves: &mut [u16; BLOCK]) {
        use std::arch::x86_64::{
            _MM_FROUND_TO_NEAREST_INT, _mm_storeu_si128, _mm256_cvtps_ph, _mm256_loadu_ps,
        };
        for (values, halves) in values.as_chunks::<8>().0.iter().zip(halves.as_chunks_mut::<8>().0) {
            // SAFETY: the caller vouches for the CPU; the arrays are as long as the registers.
            unsafe {
                let narrow = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(values.as_ptr()));
                _mm_storeu_si128(halves.as_mut_ptr().cast(), narrow);
            }
        }
    }

    #[inline(always)]
    unsafe fn widen(halves: &[u16; BLOCK]) -> [f32; BLOCK] {
        use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
        let mut values = [0.0; BLOCK];
        for (values, halves) in values.as_chunks_mut::<8>().0.iter_mut().zip(halves.as_chunks::<8>().0) {
            // SAFETY: the caller vouches for the CPU; the arrays are as long as the registers.
            unsafe {
                let wide = _mm256_cvtph_ps(_mm_loadu_si128(halves.as_ptr().cast()));
                _mm256_storeu_ps(values.as_mut_ptr(), wide);
            }
        }
        values
    }

    #[inline(always)]
    unsafe fn is_plain(values: &[f32; BLOCK]) -> bool {
        use std::arch::x86_64::*;
        // SAFETY: the caller vouches for the CPU; each half of the array is as long as the register.
        unsafe {
            let sizes = [0, 8].map(|start| {
                let values = _mm256_loadu_si256(values.as_ptr().add(start).cast());
                _mm256_and_si256(values, _mm256_set1_epi32(i32::MAX))
            });
            let most = _mm256_max_epi32(sizes[0], sizes[1]);
            let above = _mm256_cmpgt_epi32(most, _mm256_set1_epi32(MOST as i32));
            let enough = _mm256_cmpgt_epi32(most, _mm256_set1_epi32(LEAST as i32 - 1));
            _mm256_testz_si256(above, above) != 0
                && (_mm256_testz_si256(enough, enough) == 0 || _mm256_testz_si256(most, most) != 0)
        }
    }
}

impl Halves for Portable {
    #[inline(always)]
    unsafe fn narrow(values: &[f32; BLOCK], halves: &mut [u16; BLOCK]) {
        *halves = values.map(to_half);
    }

    #[inline(always)]
    unsafe fn widen(halves: &[u16; BLOCK]) -> [f32; BLOCK] {
        halves.map(from_half)
    }

    #[inline(always)]
    unsafe fn is_plain(values: &[f32; BLOCK]) -> bool {
        let largest = values.iter().fold(0, |most: u32, value| most.max(value.to_bits() & 0x7fff_ffff));
        largest == 0 || (LEAST..=MOST).contains(&largest)
    }
}

/// The nearest half, ties to even; NaN keeps its sign and the top of its payload and becomes quiet.
#[inline(always)]
fn to_half(value: f32) -> u16 {
    let sign = (value.to_bits() >> 16) as u16 & 0x8000;
    let size = value.to_bits() & 0x7fff_ffff;
    let half = if size > INFINITY {
        0x7e00 | (size >> 13) as u16 & 0x03ff
    } else if size >= 65536.0f32.to_bits() {
        0x7c00
    } else if size >= 0x3880_0000 {
        // Normal halves begin at 2^-14; a carry out of the mantissa moves the exponent as it should.
        ((size + 0x0fff + (size >> 13 & 1) - (112 << 23)) >> 13) as u16
    } else {
        // In 0.5..1 the spacing of `f32` is that of subnormal halves, so the addition rounds to it.
        ((f32::from_bits(size) + 0.5).to_bits() - 0.5f32.to_bits()) as u16
    };
    sign | half
}

#[inline(always)]
fn from_half(half: u16) -> f32 {
    let size = u32::from(half & 0x7fff) << 13;
    let finite = (f32::from_bits(size) * f32::from_bits((127 + 112) << 23)).to_bits();
    let size = if half & 0x7c00 == 0x7c00 { size | INFINITY } else { finite };
    f32::from_bits(size | u32::from(half & 0x8000) << 16)
}

/// Stores a group; returns its exponent.
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn narrow_group<V: Halves>(values: &[f32; BLOCK], halves: &mut [u16; BLOCK]) -> i8 {
    // SAFETY: the caller's contract.
    unsafe {
        if V::is_plain(values) {
            V::narrow(values, halves);
            return 0;
        }
    }
    // SAFETY: the caller's contract.
    unsafe { narrow_scaled::<V>(values, halves) }
}

/// As [`narrow_group`] for a group that is not plain.
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn narrow_scaled<V: Halves>(values: &[f32; BLOCK], halves: &mut [u16; BLOCK]) -> i8 {
    let mut largest = 0;
    for value in values {
        let size = value.to_bits() & 0x7fff_ffff;
        largest = largest.max(if size < INFINITY { size } else { 0 });
    }
    let exponent = if largest == 0 || (LEAST..=MOST).contains(&largest) {
        0
    } else {
        // Subnormal `f32` take the least exponent whose reciprocal is still finite.
        ((largest >> 23) as i32 - 127 - TOP).max(-127)
    };
    let factor = f32::from_bits(((127 - exponent) as u32) << 23);
    let mut scaled = *values;
    for value in &mut scaled {
        // Rounded up to 2^15, a value next to 2^128 would come back infinite.
        let finite = (*value * factor).clamp(-LARGEST, LARGEST);
        *value = if value.to_bits() & 0x7fff_ffff < INFINITY { finite } else { *value };
    }
    // SAFETY: the caller's contract.
    unsafe { V::narrow(&scaled, halves) };
    exponent as i8
}

/// Reads a group.
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn widen_group<V: Halves>(halves: &[u16; BLOCK], exponent: i8) -> [f32; BLOCK] {
    // SAFETY: the caller's contract.
    let mut values = unsafe { V::widen(halves) };
    if exponent != 0 {
        let biased = (i32::from(exponent) + 127).max(0) as u32;
        // 2^-127 is subnormal.
        let factor = f32::from_bits(if biased == 0 { 1 << 22 } else { biased << 23 });
        for value in &mut values {
            *value *= factor;
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, dispatch};
    use crate::microkernel::Tile;
    use proptest::prelude::*;

    /// Goes there and back on one tier; the halves and the exponent too, to compare tiers.
    fn there_and_back(isa: Isa, values: &[f32; BLOCK]) -> ([f32; BLOCK], [u16; BLOCK], i8) {
        #[inline(always)]
        unsafe fn both<T: Tile>(values: &[f32; BLOCK], found: &mut ([f32; BLOCK], [u16; BLOCK], i8)) {
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                found.2 = narrow_group::<T::Vector>(values, &mut found.1);
                found.0 = widen_group::<T::Vector>(&found.1, found.2);
            }
        }
        let mut found = ([0.0; BLOCK], [0; BLOCK], 0);
        let out = &mut found;
        dispatch!(isa, both(values: &[f32; BLOCK], out: &mut ([f32; BLOCK], [u16; BLOCK], i8)));
        found
    }

    #[test]
    fn every_half_goes_there_and_back_on_every_tier() {
        for isa in Isa::available() {
            for half in 0..=u16::MAX {
                let value = from_half(half);
                let (back, halves, exponent) = there_and_back(isa, &[value; BLOCK]);
                if value.is_nan() {
                    assert!(back[3].is_nan(), "{half:#06x}");
                } else {
                    assert_eq!(back[3].to_bits(), value.to_bits(), "{} {half:#06x}", isa.name());
                }
                assert!(exponent != 0 || value.is_nan() || halves[3] == half, "{half:#06x}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]
        #[test]
        fn groups_of_any_size_keep_eleven_bits_on_every_tier(
            power in -120i32..127, parts in prop::array::uniform16((-1.0f32..1.0, 0i32..14)),
        ) {
            let values = parts.map(|(part, smaller)| part * 2.0f32.powi(power) * 0.5f32.powi(smaller));
            let largest = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            let (found, halves, exponent) = there_and_back(Isa::by_name("generic").unwrap(), &values);
            for (value, back) in values.iter().zip(&found) {
                // Values far below the largest share its grid, as halves below 2^-14 do.
                let spacing = (value.abs() / 2048.0).max(largest * 2.0f32.powi(-21));
                prop_assert!((value - back).abs() <= spacing, "{value} became {back}, largest {largest}");
            }
            for isa in Isa::available() {
                let (other, other_halves, other_exponent) = there_and_back(isa, &values);
                prop_assert_eq!(other.map(f32::to_bits), found.map(f32::to_bits));
                prop_assert_eq!((other_halves, other_exponent), (halves, exponent));
            }
        }

        #[test]
        fn any_bits_are_stored_alike_on_every_tier(bits in prop::array::uniform16(any::<u32>())) {
            let values = bits.map(f32::from_bits);
            let (found, halves, exponent) = there_and_back(Isa::by_name("generic").unwrap(), &values);
            for (value, back) in values.iter().zip(&found) {
                prop_assert_eq!((value.is_nan(), value.is_infinite()), (back.is_nan(), back.is_infinite()));
            }
            for isa in Isa::available() {
                let (_, other_halves, other_exponent) = there_and_back(isa, &values);
                prop_assert_eq!((other_halves, other_exponent), (halves, exponent));
            }
        }
    }

    #[test]
    fn huge_tiny_and_endless_values_survive() {
        for isa in Isa::available() {
            for size in [f32::MAX, 1e30, 65520.0, 32769.0, 1e-30, f32::MIN_POSITIVE, 1e-40] {
                let mut values = [size; BLOCK];
                (values[1], values[2], values[3]) = (f32::INFINITY, f32::NAN, f32::NEG_INFINITY);
                values[4] = -size / 2.0;
                let (found, ..) = there_and_back(isa, &values);
                let close = |at: usize| (found[at] - values[at]).abs() <= values[at].abs() / 2048.0;
                assert!(close(0) && close(4), "{} {size:e} became {:e}", isa.name(), found[0]);
                assert_eq!((found[1], found[3]), (f32::INFINITY, f32::NEG_INFINITY));
                assert!(found[2].is_nan());
            }
        }
    }
}
