//! Sums and peaks over the lanes of registers, sixteen registers at a time: a tree of shuffles shares its steps among them.

use crate::vector::{Portable, Vector};

/// Registers that are reduced together.
pub(crate) const ROWS: usize = 16;

/// See the module.
pub(crate) trait Reduce: Copy {
    /// The sum of each register's lanes.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn sums_of_lanes(rows: &[Self; ROWS]) -> [f32; ROWS];

    /// The largest of each register's lanes, none of which is negative, as bits: what is not finite is larger than all
    /// numbers.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn largest_lanes(rows: &[Self; ROWS]) -> [f32; ROWS];
}

/// Combines the lanes of sixteen registers of four quarters by `$combine`.
#[cfg(target_arch = "x86_64")]
macro_rules! tree {
    ($rows:ident, $combine:ident) => {{
        use std::arch::x86_64::*;
        let mut halves = [_mm512_setzero_ps(); 8];
        for i in 0..8 {
            let (a, b) = ($rows[i], $rows[i + 8]);
            halves[i] = $combine(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
        }
        // Quarters of `i`: rows i, i + 8, i + 4, i + 12.
        let mut quarters = [_mm512_setzero_ps(); 4];
        for i in 0..4 {
            let (a, b) = (halves[i], halves[i + 4]);
            quarters[i] = $combine(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        }
        let mut pairs = [_mm512_setzero_ps(); 2];
        for i in 0..2 {
            let (a, b) = (quarters[i], quarters[i + 2]);
            pairs[i] = $combine(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b));
        }
        let [a, b] = pairs;
        let mixed = $combine(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b));
        // Lane 4 · q + l holds row [0, 8, 4, 12][q] + [0, 2, 1, 3][l].
        let order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
        let mut lanes = [0.0f32; ROWS];
        _mm512_storeu_ps(lanes.as_mut_ptr(), _mm512_permutexvar_ps(order, mixed));
        lanes
    }};
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn larger_bits(a: std::arch::x86_64::__m512, b: std::arch::x86_64::__m512) -> std::arch::x86_64::__m512 {
    use std::arch::x86_64::{_mm512_castps_si512, _mm512_castsi512_ps, _mm512_max_epi32};
    _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)))
}

#[cfg(target_arch = "x86_64")]
impl Reduce for std::arch::x86_64::__m512 {
    #[inline(always)]
    unsafe fn sums_of_lanes(rows: &[Self; ROWS]) -> [f32; ROWS] {
        // SAFETY: the caller vouches for the CPU; the array is as long as the register.
        unsafe { tree!(rows, _mm512_add_ps) }
    }

    #[inline(always)]
    unsafe fn largest_lanes(rows: &[Self; ROWS]) -> [f32; ROWS] {
        // SAFETY: as above.
        unsafe { tree!(rows, larger_bits) }
    }
}

/// Reduces each row by itself: halves are combined until one lane is left.
macro_rules! row_by_row {
    ($vector:ty) => {
        impl Reduce for $vector {
            #[inline(always)]
            unsafe fn sums_of_lanes(rows: &[Self; ROWS]) -> [f32; ROWS] {
                let mut sums = [0.0; ROWS];
                for (sum, row) in sums.iter_mut().zip(rows) {
                    // SAFETY: the caller vouches for the CPU.
                    *sum = fold(unsafe { lanes(*row) }, |a, b| a + b);
                }
                sums
            }

            #[inline(always)]
            unsafe fn largest_lanes(rows: &[Self; ROWS]) -> [f32; ROWS] {
                let mut peaks = [0.0; ROWS];
                for (peak, row) in peaks.iter_mut().zip(rows) {
                    // SAFETY: the caller vouches for the CPU.
                    let lanes = unsafe { lanes(*row) };
                    *peak = fold(lanes, |a, b| f32::from_bits(a.to_bits().max(b.to_bits())));
                }
                peaks
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
row_by_row!(std::arch::x86_64::__m256);
row_by_row!(Portable);

/// A register's lanes, with zeros behind.
#[inline(always)]
unsafe fn lanes<V: Vector>(register: V) -> [f32; 16] {
    let mut lanes = [0.0f32; 16];
    // SAFETY: the caller vouches for the CPU; no register is longer.
    unsafe { register.store(&mut lanes[..V::LANES]) };
    lanes
}

#[inline(always)]
fn fold(mut lanes: [f32; 16], combine: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] = combine(lanes[lane], lanes[lane + half]);
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::isa::dispatch;
    use crate::microkernel::Tile;

    #[inline(always)]
    unsafe fn check<T: Tile>() {
        let lanes = <T::Vector as Vector>::LANES;
        let value = |row: usize, lane: usize| ((row * 7 + lane * 5) % 23) as f32;
        // SAFETY: the tier is there, and the slice is as long as a register.
        unsafe {
            let mut rows = [T::Vector::splat(0.0); ROWS];
            for (index, row) in rows.iter_mut().enumerate() {
                let values: Vec<f32> = (0..lanes).map(|lane| value(index, lane)).collect();
                *row = T::Vector::load(&values);
            }
            let (sums, peaks) = (T::Vector::sums_of_lanes(&rows), T::Vector::largest_lanes(&rows));
            for row in 0..ROWS {
                let values = (0..lanes).map(|lane| value(row, lane));
                assert_eq!(sums[row], values.clone().sum::<f32>(), "row {row}");
                assert_eq!(peaks[row], values.fold(0.0, f32::max), "row {row}");
            }
            rows[5] = T::Vector::splat(f32::NAN);
            let peaks = T::Vector::largest_lanes(&rows);
            assert!(peaks.iter().enumerate().all(|(row, peak)| peak.is_nan() == (row == 5)));
        }
    }

    #[test]
    fn each_register_is_reduced_by_itself() {
        for isa in Isa::available() {
            dispatch!(isa, check());
        }
    }
}
