//! The blocked layout `[channel block][height][width][16]` of one sample, and the way from and to plain
//! `[channels, height, width]`.
//!
//! Channels are padded to a multiple of [`BLOCK`]; every operation keeps the padding at zero.

/// Channels that lie next to each other in memory.
pub const BLOCK: usize = 16;

/// How many blocks hold `channels` channels.
pub fn blocks(channels: usize) -> usize {
    channels.div_ceil(BLOCK)
}

/// How many `f32` a `[channels, pixels]` tensor takes in the blocked layout.
pub fn blocked_len(channels: usize, pixels: usize) -> usize {
    blocks(channels) * pixels * BLOCK
}

/// Copies plain `[channels, pixels]` into the blocked layout.
///
/// # Panics
/// The slices do not have the lengths that `channels` and `pixels` say.
pub fn to_blocked(plain: &[f32], channels: usize, pixels: usize, blocked: &mut [f32]) {
    assert_eq!(plain.len(), channels * pixels);
    assert_eq!(blocked.len(), blocked_len(channels, pixels));
    for (block, out) in blocked.chunks_exact_mut(pixels * BLOCK).enumerate() {
        out.fill(0.0);
        for lane in 0..BLOCK.min(channels - block * BLOCK) {
            let channel = &plain[(block * BLOCK + lane) * pixels..][..pixels];
            for (pixel, value) in channel.iter().enumerate() {
                out[pixel * BLOCK + lane] = *value;
            }
        }
    }
}

/// Copies the blocked layout into plain `[channels, pixels]`.
///
/// # Panics
/// The slices do not have the lengths that `channels` and `pixels` say.
pub fn from_blocked(blocked: &[f32], channels: usize, pixels: usize, plain: &mut [f32]) {
    assert_eq!(plain.len(), channels * pixels);
    assert_eq!(blocked.len(), blocked_len(channels, pixels));
    for (channel, out) in plain.chunks_exact_mut(pixels).enumerate() {
        let block = &blocked[channel / BLOCK * pixels * BLOCK..][..pixels * BLOCK];
        for (value, group) in out.iter_mut().zip(block.chunks_exact(BLOCK)) {
            *value = group[channel % BLOCK];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back_is_the_same_and_padding_is_zero() {
        for (channels, pixels) in [(1, 1), (3, 7), (16, 4), (17, 5), (40, 3)] {
            let plain: Vec<f32> = (0..channels * pixels).map(|i| i as f32 + 1.0).collect();
            let mut blocked = vec![f32::NAN; blocked_len(channels, pixels)];
            to_blocked(&plain, channels, pixels, &mut blocked);
            assert_eq!(blocked.iter().filter(|value| **value == 0.0).count(), blocked.len() - plain.len());
            let mut back = vec![0.0; plain.len()];
            from_blocked(&blocked, channels, pixels, &mut back);
            assert_eq!(back, plain);
        }
    }
}
