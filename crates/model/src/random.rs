//! The normal random numbers of PyTorch's CPU generator, so that a seed gives the same draw as
//! `torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)` does on an x86-64 CPU with AVX2, bit for
//! bit (tensors of fewer than 16 elements: to the last bit of the system's sine and logarithm).
//!
//! The generator is the Mersenne Twister MT19937 (Matsumoto and Nishimura, 1998); uniforms become normals by the method
//! of Box and Muller, in blocks of 16 as PyTorch does it for tensors of 16 elements or more. There, logarithm, sine and
//! cosine are the single-precision approximations of Moshier's Cephes library, each product and the sum after it fused.

use std::f32::consts::FRAC_1_SQRT_2;
use std::f64::consts::PI;

use remote_vae_wire::{Dtype, bytes_from_elements, elements_from_bytes};

const WORDS: usize = 624;
const OFFSET: usize = 397;
/// From this many elements on, PyTorch fills in blocks.
const BLOCK: usize = 16;

/// MT19937, seeded with 32 bits.
struct MersenneTwister {
    state: [u32; WORDS],
    next: usize,
}

impl MersenneTwister {
    fn new(seed: u32) -> Self {
        let mut state = [0u32; WORDS];
        state[0] = seed;
        for index in 1..WORDS {
            let previous = state[index - 1];
            state[index] =
                (previous ^ (previous >> 30)).wrapping_mul(1_812_433_253).wrapping_add(index as u32);
        }
        Self { state, next: WORDS }
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == WORDS {
            self.twist();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn twist(&mut self) {
        for index in 0..WORDS {
            let mixed = (self.state[index] & 0x8000_0000) | (self.state[(index + 1) % WORDS] & 0x7fff_ffff);
            let odd = if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[index] = self.state[(index + OFFSET) % WORDS] ^ (mixed >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// In [0, 1) with 24 bits.
    fn uniform_f32(&mut self) -> f32 {
        (self.next_u32() & 0x00ff_ffff) as f32 / 16_777_216.0
    }

    /// In [0, 1) with 53 bits.
    fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.next_u32());
        let bits = (high << 32 | u64::from(self.next_u32())) & ((1 << 53) - 1);
        bits as f64 / (1u64 << 53) as f64
    }
}

/// `count` normal numbers as `torch.randn` gives them for a CPU generator with this seed. Only the seed's low 32 bits
/// count, as in PyTorch.
pub fn normal(seed: u64, count: usize) -> Vec<f32> {
    let mut generator = MersenneTwister::new(seed as u32);
    if count < BLOCK {
        return few(&mut generator, count);
    }
    let mut values: Vec<f32> = (0..count).map(|_| generator.uniform_f32()).collect();
    for block in values.as_chunks_mut::<BLOCK>().0 {
        box_muller(block);
    }
    last_block_anew(&mut generator, &mut values);
    values
}

/// The same for `torch.randn(…, dtype=…)`: the numbers of that type, widened to f32. None for a type that PyTorch does not
/// draw.
///
/// Half types are drawn in f32 and rounded. So they are the numbers of [`normal`] rounded where 16 divides `count`; elsewhere
/// the last 16 differ, because the uniforms of the block that is cut short are never drawn.
pub fn normal_of(seed: u64, count: usize, dtype: Dtype) -> Option<Vec<f32>> {
    let values = match dtype {
        Dtype::Uint8 => return None,
        Dtype::Float32 => return Some(normal(seed, count)),
        Dtype::Float16 | Dtype::BFloat16 if count < BLOCK => normal(seed, count),
        Dtype::Float16 | Dtype::BFloat16 => {
            let mut generator = MersenneTwister::new(seed as u32);
            let mut values = vec![0.0; count];
            for block in values.as_chunks_mut::<BLOCK>().0 {
                block.fill_with(|| generator.uniform_f32());
                box_muller(block);
            }
            last_block_anew(&mut generator, &mut values);
            values
        }
    };
    Some(elements_from_bytes(dtype, &bytes_from_elements(dtype, &values)))
}

/// Where blocks do not fill the tensor, its last 16 numbers are drawn anew, over those of the block before.
fn last_block_anew(generator: &mut MersenneTwister, values: &mut [f32]) {
    if !values.len().is_multiple_of(BLOCK)
        && let Some(last) = values.last_chunk_mut::<BLOCK>()
    {
        last.fill_with(|| generator.uniform_f32());
        box_muller(last);
    }
}

/// The first half of a block are radii, the second angles.
fn box_muller(block: &mut [f32; BLOCK]) {
    for index in 0..BLOCK / 2 {
        let radius = (-2.0 * logarithm(1.0 - block[index])).sqrt();
        let (sine, cosine) = sine_and_cosine((2.0 * PI) as f32 * block[index + BLOCK / 2]);
        block[index] = radius * cosine;
        block[index + BLOCK / 2] = radius * sine;
    }
}

/// Value of a polynomial, the coefficient of the highest power first.
fn polynomial(x: f32, coefficients: &[f32]) -> f32 {
    let horner = |sum: Option<f32>, &next: &f32| Some(sum.map_or(next, |sum| sum.mul_add(x, next)));
    coefficients.iter().fold(None, horner).unwrap_or(0.0)
}

/// Natural logarithm of a positive normal number; Cephes's `logf`.
fn logarithm(x: f32) -> f32 {
    const COEFFICIENTS: [f32; 9] = [
        0.070_376_836,
        -0.115_146_1,
        0.116_769_984,
        -0.124_201_41,
        0.142_493_23,
        -0.166_680_57,
        0.200_007_14,
        -0.249_999_94,
        0.333_333_3,
    ];
    /// The logarithm of two in two parts, the larger exact in few bits.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let bits = x.to_bits();
    let mut exponent = (bits >> 23) as f32 - 126.0;
    let fraction = f32::from_bits(bits & 0x007f_ffff | 0.5f32.to_bits());
    let x = if fraction < FRAC_1_SQRT_2 {
        exponent -= 1.0;
        (fraction - 1.0) + fraction
    } else {
        fraction - 1.0
    };
    let square = x * x;
    let tail = (polynomial(x, &COEFFICIENTS) * x).mul_add(square, exponent * LN_2[1]);
    exponent.mul_add(LN_2[0], x + (tail - square * 0.5))
}

/// Sine and cosine of a number that is not negative; Cephes's `sinf` and `cosf`.
fn sine_and_cosine(x: f32) -> (f32, f32) {
    const SINE: [f32; 3] = [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1];
    const COSINE: [f32; 3] = [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2];
    /// A quarter of pi in three parts.
    const QUARTER_PI: [f32; 3] = [0.785_156_25, 2.418_756_5e-4, 3.774_895e-8];
    let octant = ((x * (4.0 / PI) as f32) as i32 + 1) & !1;
    let x = QUARTER_PI.iter().fold(x, |x, part| (-part).mul_add(octant as f32, x));
    let square = x * x;
    let sine = (polynomial(square, &SINE) * square).mul_add(x, x);
    let cosine = (polynomial(square, &COSINE) * square).mul_add(square, -(square * 0.5)) + 1.0;
    match octant & 6 {
        0 => (sine, cosine),
        2 => (cosine, -sine),
        4 => (-sine, -cosine),
        _ => (-cosine, sine),
    }
}

/// Small tensors are drawn pair by pair in double precision.
fn few(generator: &mut MersenneTwister, count: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let angle = 2.0 * PI * generator.uniform_f64();
        let radius = (-2.0 * (-generator.uniform_f64()).ln_1p()).sqrt();
        values.push((radius * angle.cos()) as f32);
        values.push((radius * angle.sin()) as f32);
    }
    values.truncate(count);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    // Every expected number is what torch 2.15 printed for
    // torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=dtype).tolist()

    #[test]
    fn fewer_than_a_block() {
        let assert_close = |found: &[f32], expected: &[f32]| {
            assert_eq!(found.len(), expected.len());
            for (a, b) in found.iter().zip(expected) {
                assert!((a - b).abs() <= f32::EPSILON * b.abs(), "{a} and {b}");
            }
        };
        assert_close(&normal(0, 1), &[1.540_996_1]);
        let seven =
            [-0.111_659_35, -1.145_609_7, 1.410_316_1, 1.365_395_5, 1.120_572, -0.962_236_2, -0.339_109_57];
        assert_close(&normal(13, 7), &seven);
        assert!(normal(13, 0).is_empty());
        assert_eq!(normal_of(13, 3, Dtype::Float16).unwrap(), [-0.111_633_3, -1.145_507_8, 1.410_156_3]);
        assert_eq!(normal_of(13, 3, Dtype::BFloat16).unwrap(), [-0.111_816_406, -1.148_437_5, 1.414_062_5]);
    }

    #[test]
    fn whole_blocks() {
        let sixteen = [
            1.926_915_3,
            1.487_284_1,
            0.900_717_2,
            -2.105_521,
            0.678_418_46,
            -1.234_544_9,
            -0.043_067_478,
            -1.604_667,
            -0.752_135_3,
            1.648_723,
            -0.392_478_64,
            -1.403_607_1,
            -0.727_881_3,
            -0.559_430_2,
            -0.768_838_9,
            0.762_445_4,
        ];
        assert_eq!(normal(42, 16), sixteen);
    }

    #[test]
    fn a_tail_is_drawn_anew() {
        let twenty = [
            0.437_158_55,
            0.370_061_16,
            1.581_573,
            -0.155_639_68,
            -2.514_113,
            0.113_994_9,
            0.982_176,
            0.068_138_056,
            -2.170_146_2,
            0.416_13,
            1.015_86,
            -0.213_621_5,
            0.805_881_7,
            1.086_696_6,
            0.259_270_34,
            1.851_372_8,
            -1.742_336_6,
            -0.788_209_5,
            -0.123_209,
            1.598_596_3,
        ];
        assert_eq!(normal(13, 20), twenty);
    }

    #[test]
    fn a_tail_of_halves_is_another() {
        let float16 = [
            0.437_255_86,
            0.370_117_2,
            1.582_031_3,
            -0.155_639_65,
            0.757_324_2,
            -0.427_490_23,
            -1.591_796_9,
            -0.073_608_4,
            -2.513_671_9,
            0.114_013_67,
            0.981_933_6,
            0.068_115_234,
            -0.099_548_34,
            0.803_222_66,
            1.043_945_3,
            -0.520_019_53,
            0.805_664_06,
            1.086_914_1,
            0.259_277_34,
            1.851_562_5,
        ];
        assert_eq!(normal_of(13, 20, Dtype::Float16).unwrap(), float16);
        let bfloat16 = normal_of(13, 20, Dtype::BFloat16).unwrap();
        assert_eq!(
            bfloat16[..6],
            [0.4375, 0.369_140_63, 1.578_125, -0.155_273_44, 0.757_812_5, -0.427_734_38]
        );
        assert_eq!(bfloat16[16..], [0.804_687_5, 1.085_937_5, 0.259_765_63, 1.851_562_5]);
        assert_eq!(normal_of(13, 20, Dtype::Float32).unwrap(), normal(13, 20));
        assert_eq!(normal_of(13, 20, Dtype::Uint8), None);
    }

    /// Fowler, Noll and Vo's hash of the tensor's bytes.
    fn fingerprint(dtype: Dtype, values: &[f32]) -> u64 {
        let bytes = bytes_from_elements(dtype, values);
        let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
    }

    #[test]
    fn latents_of_usual_sizes_bit_for_bit() {
        for (count, dtype, expected) in [
            (4 * 64 * 64, Dtype::Float32, 0x8648_cf5f_3136_1b53),
            (4 * 64 * 64, Dtype::Float16, 0x837d_e4c8_50ae_fe17),
            (4 * 128 * 128, Dtype::Float16, 0x85e0_1e4e_9047_cf41),
            (16 * 128 * 128, Dtype::BFloat16, 0x91c1_4202_3883_30dc),
            (16 * 128 * 128, Dtype::Float32, 0xaa0c_e9fb_9f88_1ea0),
        ] {
            let values = normal_of(13, count, dtype).unwrap();
            assert_eq!(fingerprint(dtype, &values), expected, "{count} of {dtype}");
        }
    }

    #[test]
    fn only_the_low_bits_of_a_seed_count() {
        assert_eq!(normal(5, 4), normal(5 | 1 << 40, 4));
    }
}
