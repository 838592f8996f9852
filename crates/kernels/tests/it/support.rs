//! Made-up tensors and what the tests share.

use remote_vae_kernels::layout::{blocked_len, from_blocked, to_blocked};
use remote_vae_kernels::norm::{GroupNorm, Patches, Sums};
use remote_vae_kernels::{Isa, Pool, Tensor};

/// Repeatable values in about -1..1 (a linear congruential generator's high bits).
pub(crate) fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

pub(crate) fn blocked(plain: &[f32], channels: usize, pixels: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; blocked_len(channels, pixels)];
    to_blocked(plain, channels, pixels, &mut out);
    out
}

/// Plain values, after a check that the padding is still zero.
pub(crate) fn plain(blocked: &[f32], channels: usize, pixels: usize) -> Vec<f32> {
    let mut out = vec![0.0; channels * pixels];
    from_blocked(blocked, channels, pixels, &mut out);
    let kept = out.iter().filter(|value| **value != 0.0).count();
    assert_eq!(blocked.iter().filter(|value| **value != 0.0).count(), kept, "the padding is not zero");
    out
}

pub(crate) fn each_tier(mut test: impl FnMut(Isa, &Pool)) {
    let pool = Pool::new(Some(2)).unwrap();
    for isa in Isa::available() {
        test(isa, &pool);
    }
}

#[track_caller]
pub(crate) fn assert_close(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        assert!(
            error <= tolerance * (1.0 + expected.abs()),
            "{what}: [{index}] is {found}, expected {expected}"
        );
    }
}

pub(crate) fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// Factor and summand of each channel (padded) that normalise what was added, in `groups` groups, with weights and biases of
/// their own.
pub(crate) fn norm_table(sums: &Sums, channels: usize, groups: usize) -> [Vec<f32>; 2] {
    let (weight, bias) = (values(channels, 2), values(channels, 3));
    let mut table = [(); 2].map(|()| vec![f32::NAN; channels.next_multiple_of(16)]);
    let [scale, shift] = &mut table;
    sums.table(GroupNorm { groups, epsilon: 1e-6, weight: &weight, bias: &bias }, scale, shift);
    table
}

/// The same for `norm` of a whole tensor of `pixels`.
pub(crate) fn statistics(
    isa: Isa,
    pool: &Pool,
    norm: GroupNorm<'_>,
    input: Tensor<'_>,
    pixels: usize,
) -> [Vec<f32>; 2] {
    let mut table = [(); 2].map(|()| vec![f32::NAN; norm.weight.len().next_multiple_of(16)]);
    let [scale, shift] = &mut table;
    let mut sums = Sums::new(norm.weight.len(), [1, pixels], Patches::PLAIN);
    sums.add(isa, pool, input, 0..1);
    sums.table(norm, scale, shift);
    table
}
