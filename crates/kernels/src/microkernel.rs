//! The inner loop of every matrix product: some rows times one group of columns, accumulated over channels and taps.

// Loops over registers run by index, the same for every operand.
#![allow(clippy::needless_range_loop)]

use crate::layout::BLOCK;
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
}

/// Declares a [`Tile`]: its name, registers, rows, registers a row, and whether it fuses.
macro_rules! tile {
    ($name:ident, $vector:ty, $pixels:literal x $vectors:literal, fma: $fma:literal) => {
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
        }
    };
}

// 16, 12 and 4 registers of sums; the rest holds one row of weights and the broadcast pixel.
#[cfg(target_arch = "x86_64")]
tile!(Avx512, std::arch::x86_64::__m512, 8 x 2, fma: true);
#[cfg(target_arch = "x86_64")]
tile!(Avx2, std::arch::x86_64::__m256, 6 x 2, fma: true);
tile!(Generic, crate::vector::Portable, 4 x 1, fma: false);

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
}

/// `sums[p][n] = Σ over blocks, taps and channels of rows[p] · panels[n]`, in that order, beginning with what `sums`
/// holds if `ADD` and with zero if not.
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
    // SAFETY: the caller vouches for the CPU; every slice below is cut to the length that is read or written.
    unsafe {
        let mut local = [[V::splat(0.0); VECTORS]; PIXELS];
        if ADD {
            for p in 0..PIXELS {
                for v in 0..VECTORS {
                    local[p][v] = V::load(&sums[p * lanes + v * V::LANES..][..V::LANES]);
                }
            }
        }
        for (block, block_panels) in panels.chunks_exact(rows.taps.len() * BLOCK * lanes).enumerate() {
            for (tap, panel) in rows.taps.iter().zip(block_panels.chunks_exact(BLOCK * lanes)) {
                let base = rows.start + block * rows.block_stride + tap;
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
            }
        }
        for p in 0..PIXELS {
            for v in 0..VECTORS {
                local[p][v].store(&mut sums[p * lanes + v * V::LANES..][..V::LANES]);
            }
        }
    }
}
