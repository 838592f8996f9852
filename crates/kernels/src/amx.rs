//! Matrix products in the tile registers of AMX, which multiply bfloat16 numbers sixteen times as fast as AVX-512
//! multiplies `f32`, and bytes twice as fast as those; for bytes see [`crate::bytes`].
//!
//! A factor is split into a sum of bfloat16 numbers, its *parts*: the nearest one, the nearest to what is left, and so on.
//! Two parts hold 17 bits of a number's significand, three all 24. A product of factors is the sum of those products of
//! parts that matter, three of two parts' four and six of three parts' nine; what is left out is below 2⁻¹⁷ and 2⁻²⁵
//! of it (Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
//! Computations", 2019). The products of parts are exact, their sums `f32`. Subnormal parts count as zero.
//!
//! Channels of parts come in *steps* of two blocks, because a row of a tile register holds 32 bfloat16 numbers.

use crate::ahead::Ahead;
use crate::isa::Isa;
use crate::layout::BLOCK;

/// Channel blocks of a step.
pub(crate) const BLOCKS: usize = 2;
/// Rows of one pass: two registers of sixteen.
pub(crate) const ROWS: usize = 32;
/// Columns of one pass.
pub(crate) const COLUMNS: usize = 32;
/// 32-bit words of a tile register: sixteen rows of sixteen.
pub(crate) const TILE: usize = 256;
/// 32-bit words of one part of a step's rows, or of its columns: two registers.
pub(crate) const PART: usize = 2 * TILE;
/// Steps whose columns are multiplied before the sums are put down: they stay in the first-level cache while the rows
/// pass by.
pub(crate) const PASS: usize = 6;
/// 32-bit words of one row of a step's part.
pub(crate) const ROW: usize = BLOCKS * BLOCK / 2;

/// Parts that hold all of a number.
pub(crate) const EXACT_PARTS: usize = 3;

#[cfg(not(target_arch = "x86_64"))]
use elsewhere::put;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use elsewhere::{Tiles, split_bytes, split_columns, split_rows};
#[cfg(target_arch = "x86_64")]
use x86::put;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Tiles, is_available, split_bytes, split_columns, split_rows};

/// Where the rows of products lie: sixteen rows in each of two registers.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// Pairs of bfloat16 numbers.
    pub words: &'a [i32],
    /// Words from one row of a register to the next.
    pub row: usize,
    /// Words from the first register's rows to the second's.
    pub register: usize,
    /// Words from one part to the next.
    pub part: usize,
    /// What is multiplied later and asked for meanwhile, a part in each step.
    pub ahead: Ahead,
}

impl<'a> Rows<'a> {
    /// Rows that lie as the columns do: `[step][part][ROWS][ROW]`.
    pub(crate) fn packed(words: &'a [i32], ahead: Ahead) -> Rows<'a> {
        Rows { words, row: ROW, register: TILE, part: PART, ahead }
    }

    /// Words from the first that a step reads to behind the last.
    fn reach(&self, parts: usize) -> usize {
        (parts - 1) * self.part + self.register + (ROWS / 2 - 1) * self.row + ROW
    }
}

/// `sums[row][column] += Σ over steps of rows · columns`.
///
/// The rows of step `n` begin at the n-th of `starts`; `columns` is `[step][part][COLUMNS / 16][pair of channels][16]`, a
/// pair of bfloat16 numbers in each word; `sums` is `[ROWS][COLUMNS]`.
///
/// # Panics
/// A step reaches beyond the rows, there are no columns for it, `sums` is too short, or there are not two or three parts.
#[inline(always)]
pub(crate) fn multiply(
    tiles: &Tiles,
    parts: usize,
    rows: Rows<'_>,
    starts: impl Iterator<Item = usize>,
    columns: &[i32],
    sums: &mut [f32],
) {
    match parts {
        2 => tiles.multiply::<2>(rows, starts, columns, sums),
        3 => tiles.multiply::<3>(rows, starts, columns, sums),
        _ => unreachable!("numbers are split into two or three parts"),
    }
}

/// Sums of products of bytes: of high bytes with high ones, of high with low ones both ways, and of low with low ones,
/// `[column / 16][3][row][16]`, rows and columns as in [`crate::bytes`].
#[repr(align(64))]
pub(crate) struct Sums([i32; 6 * TILE]);

impl Sums {
    pub(crate) fn zero() -> Sums {
        Sums([0; 6 * TILE])
    }
}

/// `products[row][column] = sums · factors of row and column`, the sums brought together in units of 256, beginning with what
/// `products` holds if `ADD` and with zero if not.
///
/// # Panics
/// There are too few factors or products.
///
/// # Safety
/// The CPU has the tier.
#[inline(always)]
pub(crate) unsafe fn put_bytes<const ADD: bool>(
    sums: &Sums,
    row_factors: &[f32],
    column_factors: &[f32],
    products: &mut [f32],
) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { put::<ADD>(sums, row_factors, column_factors, products) };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Ahead, BLOCKS, COLUMNS, Isa, PART, ROWS, Rows, Sums, TILE};
    use crate::bytes::{self, COLUMN_WORDS, ROW_WORDS};
    use crate::layout::BLOCK;
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::cell::Cell;
    use std::marker::PhantomData;

    /// Whether the CPU has the instructions and the system keeps the registers for this process.
    pub(crate) fn is_available() -> bool {
        const BFLOAT16: u32 = 1 << 22;
        const TILES: u32 = 1 << 24;
        const BYTES: u32 = 1 << 25;
        const ALL: u32 = BFLOAT16 | TILES | BYTES;
        is_x86_feature_detected!("avx512bf16") && __cpuid_count(7, 0).edx & ALL == ALL && is_permitted()
    }

    /// Asks the system for the registers, which it gives to a process only then.
    #[cfg(target_os = "linux")]
    fn is_permitted() -> bool {
        use std::sync::LazyLock;
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XTILEDATA: libc::c_long = 18;
        static PERMITTED: LazyLock<bool> = LazyLock::new(|| {
            // SAFETY: the call takes two numbers and changes nothing but what this process may use.
            unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 }
        });
        *PERMITTED
    }

    #[cfg(not(target_os = "linux"))]
    fn is_permitted() -> bool {
        false
    }

    /// The layout of the registers: eight of sixteen rows of 64 bytes.
    #[repr(C, align(64))]
    struct Layout {
        palette: u8,
        first_row: u8,
        reserved: [u8; 14],
        bytes_of_row: [u16; 16],
        rows: [u8; 16],
    }

    static LAYOUT: Layout = {
        let mut layout =
            Layout { palette: 1, first_row: 0, reserved: [0; 14], bytes_of_row: [0; 16], rows: [0; 16] };
        let mut register = 0;
        while register < 8 {
            layout.bytes_of_row[register] = 64;
            layout.rows[register] = 16;
            register += 1;
        }
        layout
    };

    thread_local! {
        static IN_USE: Cell<bool> = const { Cell::new(false) };
    }

    /// This thread's tile registers while it lives; there is one at a time. The compiler uses none of its own accord.
    pub(crate) struct Tiles(PhantomData<*const ()>);

    impl Tiles {
        /// # Panics
        /// The tier has no tile registers, or there is another on this thread.
        #[inline(always)]
        pub(crate) fn new(isa: Isa) -> Tiles {
            assert!(isa.has_tiles() && !IN_USE.replace(true));
            // SAFETY: an `Isa` with tile registers exists only where they may be used; `LAYOUT` is 64 bytes long.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &LAYOUT, options(nostack, readonly, preserves_flags)) };
            Tiles(PhantomData)
        }

        /// See [`super::multiply`].
        #[inline(always)]
        pub(super) fn multiply<const PARTS: usize>(
            &self,
            rows: Rows<'_>,
            starts: impl Iterator<Item = usize>,
            columns: &[i32],
            sums: &mut [f32],
        ) {
            assert!(sums.len() >= ROWS * COLUMNS);
            let sums = sums.as_mut_ptr();
            // SAFETY: `self` says that the registers are laid out; the lengths of what is read and written are compared.
            unsafe {
                asm!(
                    "tileloadd tmm0, [{sums} + {stride}]",
                    "tileloadd tmm1, [{sums} + {stride} + 64]",
                    "tileloadd tmm2, [{below} + {stride}]",
                    "tileloadd tmm3, [{below} + {stride} + 64]",
                    sums = in(reg) sums,
                    below = in(reg) sums.add(ROWS / 2 * COLUMNS),
                    stride = in(reg) COLUMNS * size_of::<f32>(),
                    options(nostack, readonly, preserves_flags)
                );
                let reach = rows.reach(PARTS);
                for (step, start) in starts.enumerate() {
                    rows.ahead.ask(step);
                    let row = rows.words[start..][..reach].as_ptr();
                    let column = columns[step * PARTS * PART..][..PARTS * PART].as_ptr();
                    if PARTS == 2 {
                        two_parts(row, rows, column);
                    } else {
                        three_parts(row, rows, column);
                    }
                }
                asm!(
                    "tilestored [{sums} + {stride}], tmm0",
                    "tilestored [{sums} + {stride} + 64], tmm1",
                    "tilestored [{below} + {stride}], tmm2",
                    "tilestored [{below} + {stride} + 64], tmm3",
                    sums = in(reg) sums,
                    below = in(reg) sums.add(ROWS / 2 * COLUMNS),
                    stride = in(reg) COLUMNS * size_of::<f32>(),
                    options(nostack, preserves_flags)
                );
            }
        }

        /// `sums = Σ over steps of rows · columns`, as [`crate::bytes`] lays them out; `ahead` is asked for meanwhile, a part in each
        /// step.
        ///
        /// # Panics
        /// There are fewer steps of rows than of columns.
        #[inline(always)]
        pub(crate) fn multiply_bytes(&self, rows: &[i32], columns: &[i32], ahead: Ahead, sums: &mut Sums) {
            let columns = columns.chunks_exact(COLUMN_WORDS);
            assert!(rows.len() >= columns.len() * ROW_WORDS);
            // SAFETY: `self` says that the registers are laid out; the lengths of what is read and written are compared.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "tilezero tmm4",
                    "tilezero tmm5",
                    options(nostack, nomem, preserves_flags)
                );
                for (step, columns) in columns.enumerate() {
                    ahead.ask(step);
                    // For each group of columns: high with high, high with low both ways, low with low.
                    asm!(
                        "tileloadd tmm6, [{rows} + {line}]",
                        "tileloadd tmm7, [{columns} + {line}]",
                        "tdpbssd tmm0, tmm6, tmm7",
                        "tileloadd tmm7, [{columns} + {line} + 2048]",
                        "tdpbssd tmm1, tmm6, tmm7",
                        "tileloadd tmm7, [{columns} + {line} + 1024]",
                        "tdpbssd tmm3, tmm6, tmm7",
                        "tileloadd tmm7, [{columns} + {line} + 3072]",
                        "tdpbssd tmm4, tmm6, tmm7",
                        "tileloadd tmm6, [{rows} + {line} + 1024]",
                        "tdpbssd tmm5, tmm6, tmm7",
                        "tileloadd tmm7, [{columns} + {line} + 1024]",
                        "tdpbssd tmm4, tmm6, tmm7",
                        "tileloadd tmm7, [{columns} + {line}]",
                        "tdpbssd tmm1, tmm6, tmm7",
                        "tileloadd tmm7, [{columns} + {line} + 2048]",
                        "tdpbssd tmm2, tmm6, tmm7",
                        rows = in(reg) rows.as_ptr().add(step * ROW_WORDS),
                        columns = in(reg) columns.as_ptr(),
                        line = in(reg) 64usize,
                        options(nostack, readonly, preserves_flags)
                    );
                }
                asm!(
                    "tilestored [{sums} + {line}], tmm0",
                    "tilestored [{sums} + {line} + 1024], tmm1",
                    "tilestored [{sums} + {line} + 2048], tmm2",
                    "tilestored [{sums} + {line} + 3072], tmm3",
                    "tilestored [{sums} + {line} + 4096], tmm4",
                    "tilestored [{sums} + {line} + 5120], tmm5",
                    sums = in(reg) sums.0.as_mut_ptr(),
                    line = in(reg) 64usize,
                    options(nostack, preserves_flags)
                );
            }
        }
    }

    impl Drop for Tiles {
        #[inline(always)]
        fn drop(&mut self) {
            // SAFETY: `self` says that the CPU has the instruction.
            unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
            IN_USE.set(false);
        }
    }

    /// Registers 4 and 5 from a part of the rows.
    macro_rules! rows {
        ($first:literal, $second:literal) => {
            concat!("tileloadd tmm4, [{", $first, "} + {row}]\ntileloadd tmm5, [{", $second, "} + {row}]")
        };
    }

    /// Registers 6 and 7 from the columns' part at this offset.
    macro_rules! columns {
        ($at:literal) => {
            concat!(
                "tileloadd tmm6, [{columns} + {line} + ",
                $at,
                "]\ntileloadd tmm7, [{columns} + {line} + ",
                $at,
                " + 1024]"
            )
        };
    }

    /// Adds the products of registers 4 and 5 with 6 and 7 to registers 0 to 3.
    macro_rules! products {
        () => {
            "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm1, tmm4, tmm7\n\
             tdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm3, tmm5, tmm7"
        };
    }

    /// One step of two parts: first with second, first with first, second with first.
    ///
    /// # Safety
    /// The registers are laid out, and a step's rows and columns may be read from these pointers on.
    #[inline(always)]
    unsafe fn two_parts(first: *const i32, rows: Rows<'_>, columns: *const i32) {
        // SAFETY: the caller's contract.
        unsafe {
            let second = first.add(rows.part);
            asm!(
                rows!("a", "b"), columns!(2048), products!(),
                columns!(0), products!(),
                rows!("c", "d"), products!(),
                a = in(reg) first, b = in(reg) first.add(rows.register),
                c = in(reg) second, d = in(reg) second.add(rows.register),
                columns = in(reg) columns,
                row = in(reg) rows.row * size_of::<i32>(), line = in(reg) 64usize,
                options(nostack, readonly, preserves_flags)
            );
        }
    }

    /// One step of three parts: third with first, second with first and second, first with second, third and first.
    ///
    /// # Safety
    /// As [`two_parts`].
    #[inline(always)]
    unsafe fn three_parts(first: *const i32, rows: Rows<'_>, columns: *const i32) {
        // SAFETY: the caller's contract.
        unsafe {
            let [second, third] = [first.add(rows.part), first.add(2 * rows.part)];
            asm!(
                rows!("e", "f"), columns!(0), products!(),
                rows!("c", "d"), products!(),
                columns!(2048), products!(),
                rows!("a", "b"), products!(),
                columns!(4096), products!(),
                columns!(0), products!(),
                a = in(reg) first, b = in(reg) first.add(rows.register),
                c = in(reg) second, d = in(reg) second.add(rows.register),
                e = in(reg) third, f = in(reg) third.add(rows.register),
                columns = in(reg) columns,
                row = in(reg) rows.row * size_of::<i32>(), line = in(reg) 64usize,
                options(nostack, readonly, preserves_flags)
            );
        }
    }

    /// The numbers of four blocks, below 2¹⁵ in magnitude when multiplied by the scales of their lanes → the nearest integers'
    /// high bytes, and `stride` words later their low ones, which have a sign; the n-th block in the words' n-th bytes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) fn split_bytes(
        blocks: [&[f32; BLOCK]; bytes::BLOCKS],
        scales: &[f32; BLOCK],
        out: &mut [i32],
        stride: usize,
    ) {
        // Added to 3 · 2²², the low bits of a float are those of the integer.
        let rounder = _mm512_set1_ps(12_582_912.0);
        // SAFETY: each is sixteen long.
        let (scales, blocks) = unsafe {
            (_mm512_loadu_ps(scales.as_ptr()), blocks.map(|block| _mm512_loadu_ps(block.as_ptr())))
        };
        let [a, b, c, d] = blocks.map(|block| _mm512_castps_si512(_mm512_fmadd_ps(block, scales, rounder)));
        let low = merge(a, _mm512_slli_epi32::<8>(b), _mm512_slli_epi32::<16>(c), _mm512_slli_epi32::<24>(d));
        // What is left when the low byte is taken away ends in zeros.
        let half = _mm512_set1_epi32(0x80);
        let [a, b, c, d] = [a, b, c, d].map(|word| _mm512_add_epi32(word, half));
        let high = merge(_mm512_srli_epi32::<8>(a), b, _mm512_slli_epi32::<8>(c), _mm512_slli_epi32::<16>(d));
        for (part, words) in [high, low].into_iter().enumerate() {
            let out: &mut [i32; BLOCK] = out[part * stride..].first_chunk_mut().expect("room for each part");
            // SAFETY: a row is 64 bytes long.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), words) };
        }
    }

    /// The n-th byte of each word from the n-th argument.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn merge(a: __m512i, b: __m512i, c: __m512i, d: __m512i) -> __m512i {
        /// Bits of the second where the third has ones, of the first elsewhere.
        const SELECT: i32 = 0b1101_1000;
        let low = _mm512_ternarylogic_epi32::<SELECT>(b, a, _mm512_set1_epi32(0xff));
        let high = _mm512_ternarylogic_epi32::<SELECT>(d, c, _mm512_set1_epi32(0xff_0000));
        _mm512_ternarylogic_epi32::<SELECT>(high, low, _mm512_set1_epi32(0xffff))
    }

    /// See [`super::put_bytes`].
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn put<const ADD: bool>(
        sums: &Sums,
        row_factors: &[f32],
        column_factors: &[f32],
        products: &mut [f32],
    ) {
        let row_factors = &row_factors[..bytes::ROWS];
        let column_factors = &column_factors[..bytes::COLUMNS];
        let products = &mut products[..bytes::ROWS * bytes::COLUMNS];
        // SAFETY: the slices were cut to the lengths that these places lie in; each row of `sums` is a cache line.
        unsafe {
            let factors = [0, 1].map(|group| _mm512_loadu_ps(column_factors.as_ptr().add(group * BLOCK)));
            for (row, row_factor) in row_factors.iter().enumerate() {
                let row_factor = _mm512_set1_ps(*row_factor);
                for (group, factor) in factors.into_iter().enumerate() {
                    let place = sums.0.as_ptr().add(3 * group * TILE + row * BLOCK);
                    let high = _mm512_load_si512(place.cast());
                    let mixed = _mm512_load_si512(place.add(TILE).cast());
                    let low = _mm512_srai_epi32::<8>(_mm512_load_si512(place.add(2 * TILE).cast()));
                    let sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), _mm512_add_epi32(mixed, low));
                    let sum = _mm512_cvtepi32_ps(sum);
                    let product = products.as_mut_ptr().add(row * bytes::COLUMNS + group * BLOCK);
                    let before = if ADD { _mm512_loadu_ps(product) } else { _mm512_setzero_ps() };
                    let sum = _mm512_fmadd_ps(row_factor, _mm512_mul_ps(sum, factor), before);
                    _mm512_storeu_ps(product, sum);
                }
            }
        }
    }

    /// One row of a step: the sixteen channels of each block → `parts` parts, `stride` words apart in `out`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(crate) fn split_rows(parts: usize, [low, high]: [&[f32; BLOCK]; 2], out: &mut [i32], stride: usize) {
        // SAFETY: each is sixteen long.
        let (mut low, mut high) = unsafe { (_mm512_loadu_ps(low.as_ptr()), _mm512_loadu_ps(high.as_ptr())) };
        for part in 0..parts {
            // SAFETY: any bits are integers.
            let packed: __m512i = unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) };
            let out: &mut [i32; super::ROW] =
                out[part * stride..].first_chunk_mut().expect("room for each part");
            // SAFETY: a row is 64 bytes long.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), packed) };
            low = _mm512_sub_ps(low, widen(_mm512_castsi512_si256(packed)));
            high = _mm512_sub_ps(high, widen(_mm512_extracti64x4_epi64::<1>(packed)));
        }
    }

    /// The columns of a step: `blocks[block]` is `[16][COLUMNS]` → `parts` parts, [`PART`] words apart in `out`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(crate) fn split_columns(parts: usize, blocks: [&[f32]; BLOCKS], out: &mut [i32]) {
        let out = &mut out[..parts * PART];
        for (block, values) in blocks.into_iter().enumerate() {
            let values = &values[..BLOCK * COLUMNS];
            for pair in 0..BLOCK / 2 {
                for group in 0..COLUMNS / BLOCK {
                    let at = 2 * pair * COLUMNS + group * BLOCK;
                    let place = group * TILE + (block * BLOCK / 2 + pair) * BLOCK;
                    // SAFETY: `values` and `out` were cut to the lengths that these places lie in.
                    unsafe {
                        let mut low = _mm512_loadu_ps(values.as_ptr().add(at));
                        let mut high = _mm512_loadu_ps(values.as_ptr().add(at + COLUMNS));
                        for part in 0..parts {
                            let (first, second) = (narrow(low), narrow(high));
                            let words = _mm512_or_si512(
                                _mm512_cvtepu16_epi32(first),
                                _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(second)),
                            );
                            _mm512_storeu_si512(out.as_mut_ptr().add(part * PART + place).cast(), words);
                            low = _mm512_sub_ps(low, widen(first));
                            high = _mm512_sub_ps(high, widen(second));
                        }
                    }
                }
            }
        }
    }

    /// The nearest bfloat16 numbers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn narrow(values: __m512) -> __m256i {
        // SAFETY: any bits are integers.
        unsafe { std::mem::transmute(_mm512_cvtneps_pbh(values)) }
    }

    /// What bfloat16 numbers stand for.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn widen(values: __m256i) -> __m512 {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(values)))
    }
}

/// Elsewhere there are no tile registers, and no [`Isa`] that has them.
#[cfg(not(target_arch = "x86_64"))]
mod elsewhere {
    use super::{Ahead, BLOCKS, Isa, Rows, Sums};
    use crate::layout::BLOCK;

    pub(crate) enum Tiles {}

    impl Tiles {
        pub(crate) fn new(_: Isa) -> Tiles {
            unreachable!("this tier has no tile registers")
        }

        pub(super) fn multiply<const PARTS: usize>(
            &self,
            _: Rows<'_>,
            _: impl Iterator<Item = usize>,
            _: &[i32],
            _: &mut [f32],
        ) {
            match *self {}
        }

        pub(crate) fn multiply_bytes(&self, _: &[i32], _: &[i32], _: Ahead, _: &mut Sums) {
            match *self {}
        }
    }

    pub(super) unsafe fn put<const ADD: bool>(_: &Sums, _: &[f32], _: &[f32], _: &mut [f32]) {
        unreachable!("this tier has no tile registers")
    }

    pub(crate) unsafe fn split_bytes(
        _: [&[f32; BLOCK]; crate::bytes::BLOCKS],
        _: &[f32; BLOCK],
        _: &mut [i32],
        _: usize,
    ) {
        unreachable!("this tier has no tile registers")
    }

    pub(crate) unsafe fn split_rows(_: usize, _: [&[f32; BLOCK]; 2], _: &mut [i32], _: usize) {
        unreachable!("this tier has no tile registers")
    }

    pub(crate) unsafe fn split_columns(_: usize, _: [&[f32]; BLOCKS], _: &mut [i32]) {
        unreachable!("this tier has no tile registers")
    }
}
