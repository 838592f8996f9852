//! Made-up tensors and what the tests share.

use remote_vae_kernels::layout::{blocked_len, from_blocked, to_blocked};
use remote_vae_kernels::{Isa, Pool};

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
