//! The inner loop of every matrix product: some rows times one group of columns, accumulated over channels and taps.

// Loops over registers run by index, the same for every operand.
#![allow(clippy::needless_range_loop)]

use crate::ahead::Ahead;
use crate::layout::BLOCK;
use crate::pairs::Integers;
use crate::vector::Vector;

/// Shape of the micro-kernel of one instruction tier.
pub(crate) trait Tile {
    /// The registers it works on.
    type Vector: Vector;
    /// Rows (pixels, queries) of one pass.
    const PIXELS: usize;
    /// Whether products are added with one rounding.
    const FMA: bool;
    /// Columns (output channels, keys) of one pass.
    const LANES: usize;

    /// `sums += rows · panels`, see [`multiply`].
    ///
    /// # Safety
    /// The CPU has the tier.
    unsafe fn accumulate(rows: &Rows<'_>, panels: &[f32], sums: &mut [f32]);

    /// `sums = rows · panels`, see [`multiply`].
    ///
    /// # Safety
    /// The CPU has the tier.
    unsafe fn product(rows: &Rows<'_>, panels: &[f32], sums: &mut [f32]);

    /// `sums += rows · panels`, see [`multiply_pairs`].
    ///
    /// # Safety
    /// The CPU has the tier.
    unsafe fn accumulate_pairs(rows: &PairRows<'_>, panels: &[i32], factors: &[f32], sums: &mut [f32]);

    /// `sums = rows · panels`, see [`multiply_pairs`].
    ///
    /// # Safety
    /// The CPU has the tier.
    unsafe fn pair_product(rows: &PairRows<'_>, panels: &[i32], factors: &[f32], sums: &mut [f32]);
}

/// Declares a [`Tile`]: its name, registers, their like for integers, rows, registers a row, and whether it fuses.
macro_rules! tile {
    ($name:ident, $vector:ty, $integers:ty, $pixels:literal x $vectors:literal, fma: $fma:literal) => {
        pub(crate) struct $name;

        impl Tile for $name {
            type Vector = $vector;
            const PIXELS: usize = $pixels;
            const FMA: bool = $fma;
            const LANES: usize = $vectors * <$vector as Vector>::LANES;

            #[inline(always)]
            unsafe fn accumulate(rows: &Rows<'_>, panels: &[f32], sums: &mut [f32]) {
                // SAFETY: the caller vouches for the CPU.
                unsafe { multiply::<$vector, $pixels, $vectors, true>(rows, panels, sums) }
            }

            #[inline(always)]
            unsafe fn product(rows: &Rows<'_>, panels: &[f32], sums: &mut [f32]) {
                // SAFETY: the caller vouches for the CPU.
                unsafe { multiply::<$vector, $pixels, $vectors, false>(rows, panels, sums) }
            }

            #[inline(always)]
            unsafe fn accumulate_pairs(
                rows: &PairRows<'_>,
                panels: &[i32],
                factors: &[f32],
                sums: &mut [f32],
            ) {
                // SAFETY: the caller vouches for the CPU.
                unsafe { multiply_pairs::<$integers, $pixels, $vectors, true>(rows, panels, factors, sums) }
            }

            #[inline(always)]
            unsafe fn pair_product(rows: &PairRows<'_>, panels: &[i32], factors: &[f32], sums: &mut [f32]) {
                // SAFETY: the caller vouches for the CPU.
                unsafe { multiply_pairs::<$integers, $pixels, $vectors, false>(rows, panels, factors, sums) }
            }
        }
    };
}

// 16, 12 and 4 registers of sums; the rest holds one row of weights and the broadcast pixel.
#[cfg(target_arch = "x86_64")]
tile!(Amx, std::arch::x86_64::__m512, crate::pairs::Vnni, 8 x 2, fma: true);
#[cfg(target_arch = "x86_64")]
tile!(Avx512Vnni, std::arch::x86_64::__m512, crate::pairs::Vnni, 8 x 2, fma: true);
#[cfg(target_arch = "x86_64")]
tile!(Avx512, std::arch::x86_64::__m512, crate::pairs::Avx512, 8 x 2, fma: true);
#[cfg(target_arch = "x86_64")]
tile!(Avx2, std::arch::x86_64::__m256, crate::pairs::Avx2, 6 x 2, fma: true);
tile!(Generic, crate::vector::Portable, crate::pairs::Portable, 4 x 1, fma: false);

// The arithmetic of the fused tiers on any CPU.
#[cfg(test)]
tile!(Fused, crate::vector::Portable, crate::pairs::Portable, 1 x 1, fma: true);

/// Where the left operand of a product lies: rows in blocked layout inside a patch.
pub(crate) struct Rows<'a> {
    /// The patch: `[channel block][…][16]`.
    pub patch: &'a [f32],
    /// Offset of the first row's first element.
    pub start: usize,
    /// Distance between consecutive rows.
    pub row_stride: usize,
    /// Distance between channel blocks.
    pub block_stride: usize,
    /// Offsets of the kernel's taps from a row's first element.
    pub taps: &'a [usize],
    /// What is multiplied later and asked for meanwhile.
    pub ahead: Ahead,
}

/// Panels whose products are one chain of additions. Rounding errors of a sum grow with the chain's length: those of
/// chains of 64 products, added up, are half of those of one chain over 256 channels. Whoever cuts the channels into passes
/// cuts at whole chains, lest the passes decide how a sum rounds.
const CHAIN: usize = 4;

/// `sums[p][n] = Σ over blocks, taps and channels of rows[p] · panels[n]`, in that order, [`CHAIN`] blocks or taps at a
/// time, which are added to what `sums` holds, the first ones only if `ADD`.
///
/// `panels` is `[block][tap][16][lanes]`, `sums` `[PIXELS][lanes]` with `lanes = VECTORS · V::LANES`.
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn multiply<V: Vector, const PIXELS: usize, const VECTORS: usize, const ADD: bool>(
    rows: &Rows<'_>,
    panels: &[f32],
    sums: &mut [f32],
) {
    let lanes = VECTORS * V::LANES;
    let sums = &mut sums[..PIXELS * lanes];
    let (mut block, mut tap) = (0, 0);
    // SAFETY: the caller vouches for the CPU; every slice below is cut to the length that is read or written.
    unsafe {
        for (index, chain) in panels.chunks(CHAIN * BLOCK * lanes).enumerate() {
            let mut local = [[V::splat(0.0); VECTORS]; PIXELS];
            for panel in chain.chunks_exact(BLOCK * lanes) {
                if tap == 0 {
                    rows.ahead.ask(block);
                }
                let base = rows.start + block * rows.block_stride + rows.taps[tap];
                let mut pixels = [&[0.0; BLOCK]; PIXELS];
                for (p, pixel) in pixels.iter_mut().enumerate() {
                    *pixel = rows.patch[base + p * rows.row_stride..]
                        .first_chunk()
                        .expect("rows lie inside the patch");
                }
                for channel in 0..BLOCK {
                    let row = &panel[channel * lanes..][..lanes];
                    let mut weights = [V::load(&row[..V::LANES]); VECTORS];
                    for v in 1..VECTORS {
                        weights[v] = V::load(&row[v * V::LANES..][..V::LANES]);
                    }
                    for p in 0..PIXELS {
                        for v in 0..VECTORS {
                            local[p][v] = local[p][v].add_scaled(pixels[p][channel], weights[v]);
                        }
                    }
                }
                tap += 1;
                if tap == rows.taps.len() {
                    (block, tap) = (block + 1, 0);
                }
            }
            for p in 0..PIXELS {
                for v in 0..VECTORS {
                    let place = &mut sums[p * lanes + v * V::LANES..][..V::LANES];
                    let sum = if ADD || index > 0 { V::load(place).plus(local[p][v]) } else { local[p][v] };
                    sum.store(place);
                }
            }
        }
    }
}

/// The left operand of a product of integers: pairs of 16-bit integers in 32-bit words.
pub(crate) struct PairRows<'a> {
    /// `[block][PIXELS][8]`
    pub words: &'a [i32],
    /// What each row is multiplied by, at least `PIXELS`.
    pub factors: &'a [f32],
    /// What is multiplied later and asked for meanwhile.
    pub ahead: Ahead,
}

/// `sums[p][n] = Σ over blocks and pairs of rows[p] · panels[n]`, exact as long as it fits 32 bits, times the factors of
/// row and column; beginning with what `sums` holds if `ADD` and with zero if not.
///
/// `panels` is `[block][8][lanes]`, `factors` `[lanes]`, `sums` `[PIXELS][lanes]` with `lanes = VECTORS · I::LANES`.
///
/// # Safety
/// The CPU has the instruction set of `I`.
#[inline(always)]
unsafe fn multiply_pairs<I: Integers, const PIXELS: usize, const VECTORS: usize, const ADD: bool>(
    rows: &PairRows<'_>,
    panels: &[i32],
    factors: &[f32],
    sums: &mut [f32],
) {
    const PAIRS: usize = BLOCK / 2;
    let width = <I::Floats as Vector>::LANES;
    let lanes = VECTORS * width;
    let sums = &mut sums[..PIXELS * lanes];
    // SAFETY: the caller vouches for the CPU; every slice below is cut to the length that is read or written.
    unsafe {
        let mut local = [[I::splat(0); VECTORS]; PIXELS];
        let panels = panels.chunks_exact(PAIRS * lanes);
        for (index, (panel, block)) in panels.zip(rows.words.chunks_exact(PIXELS * PAIRS)).enumerate() {
            rows.ahead.ask(index);
            for pair in 0..PAIRS {
                let row = &panel[pair * lanes..][..lanes];
                let mut weights = [I::load(&row[..width]); VECTORS];
                for v in 1..VECTORS {
                    weights[v] = I::load(&row[v * width..][..width]);
                }
                for p in 0..PIXELS {
                    let pixel = I::splat(block[p * PAIRS + pair]);
                    for v in 0..VECTORS {
                        local[p][v] = local[p][v].add_pairs(pixel, weights[v]);
                    }
                }
            }
        }
        for p in 0..PIXELS {
            for v in 0..VECTORS {
                let place = p * lanes + v * width;
                let before =
                    if ADD { I::Floats::load(&sums[place..][..width]) } else { I::Floats::splat(0.0) };
                let factor = I::Floats::load(&factors[v * width..][..width]);
                let sum = before.add_scaled(rows.factors[p], local[p][v].to_floats().times(factor));
                sum.store(&mut sums[place..][..width]);
            }
        }
    }
}
