//! The normal random numbers of PyTorch's CPU generator, so that a seed gives the same draw as
//! `torch.randn(shape, generator=torch.Generator().manual_seed(seed))` does (to the last bits of the logarithm and sine).
//!
//! The generator is the Mersenne Twister MT19937 (Matsumoto and Nishimura, 1998); uniforms become normals by the method
//! of Box and Muller, in blocks of 16 as PyTorch does it for tensors of 16 elements or more.

use std::f64::consts::PI;

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
    if !count.is_multiple_of(BLOCK) {
        // The last block is drawn anew and overlaps the one before.
        let mut block = [0.0; BLOCK];
        block.fill_with(|| generator.uniform_f32());
        box_muller(&mut block);
        values[count - BLOCK..].copy_from_slice(&block);
    }
    values
}

/// The first half of a block are radii, the second angles.
fn box_muller(block: &mut [f32; BLOCK]) {
    for index in 0..BLOCK / 2 {
        let logarithm = f64::from(1.0 - block[index]).ln() as f32;
        let radius = (-2.0 * logarithm).sqrt();
        let angle = f64::from((2.0 * PI) as f32 * block[index + BLOCK / 2]);
        block[index] = radius * angle.cos() as f32;
        block[index + BLOCK / 2] = radius * angle.sin() as f32;
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

    fn assert_close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (index, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!((a - b).abs() <= 1e-6, "element {index}: {a} and {b}");
        }
    }

    // torch.randn(n, generator=torch.Generator().manual_seed(seed)).tolist()

    #[test]
    fn fewer_than_a_block() {
        assert_close(&normal(0, 1), &[1.540_996_1]);
        let seven =
            [-0.111_659_35, -1.145_609_7, 1.410_316_1, 1.365_395_6, 1.120_572, -0.962_236_2, -0.339_109_57];
        assert_close(&normal(13, 7), &seven);
        assert!(normal(13, 0).is_empty());
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
            -0.392_478_65,
            -1.403_607_1,
            -0.727_881_3,
            -0.559_430_2,
            -0.768_838_9,
            0.762_445_4,
        ];
        assert_close(&normal(42, 16), &sixteen);
    }

    #[test]
    fn a_tail_is_drawn_anew() {
        let twenty = [
            0.437_158_56,
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
        assert_close(&normal(13, 20), &twenty);
        let last = [-0.261_586_73, -0.250_132_62, 0.501_121_46, 0.260_036_2, -1.637_021_3];
        assert_close(&normal(7, 33)[28..], &last);
    }

    #[test]
    fn a_latent_of_usual_size() {
        // torch.randn([1, 4, 64, 64], generator=torch.Generator().manual_seed(13))
        let values = normal(13, 4 * 64 * 64);
        assert_close(&values[..4], &[0.437_158_55, 0.370_061_16, 1.581_573, -0.155_639_68]);
        assert_close(&values[16380..], &[-1.414_574_1, 1.055_824_9, -0.965_009, 1.459_153_4]);
        let sum: f64 = values.iter().map(|&value| f64::from(value)).sum();
        assert!((sum + 57.664_800_246_733_65).abs() < 1e-3, "{sum}");
    }

    #[test]
    fn only_the_low_bits_of_a_seed_count() {
        assert_eq!(normal(5, 4), normal(5 | 1 << 40, 4));
    }
}
