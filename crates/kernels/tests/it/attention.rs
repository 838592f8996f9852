//! Streamed attention against the whole score matrix.

use crate::support::{assert_close, blocked, each_tier, plain, values};
use remote_vae_kernels::attention::{Shape, attention, stoppable_attention};
use remote_vae_kernels::convolution::Arithmetic;
use remote_vae_kernels::{Isa, Pool};

fn oracle([query, key, value]: [&[f32]; 3], channels: usize, tokens: usize) -> Vec<f64> {
    let at = |tensor: &[f32], channel: usize, token: usize| f64::from(tensor[channel * tokens + token]);
    let mut out = vec![0.0; channels * tokens];
    for q in 0..tokens {
        let scores: Vec<f64> = (0..tokens)
            .map(|k| {
                let product: f64 = (0..channels).map(|c| at(query, c, q) * at(key, c, k)).sum();
                product / (channels as f64).sqrt()
            })
            .collect();
        let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
        let total: f64 = weights.iter().sum();
        for c in 0..channels {
            out[c * tokens + q] =
                weights.iter().enumerate().map(|(k, weight)| weight * at(value, c, k)).sum::<f64>() / total;
        }
    }
    out
}

/// Both arithmetics, and how close each comes.
const ARITHMETICS: [(Arithmetic, f64); 2] = [(Arithmetic::Float32, 2e-5), (Arithmetic::Integer16, 2e-3)];

fn run(
    isa: Isa,
    pool: &Pool,
    arithmetic: Arithmetic,
    tensors: [&[f32]; 3],
    [channels, tokens]: [usize; 2],
) -> Vec<f32> {
    let shape = Shape { channels, frames: 1, tokens, arithmetic };
    let [query, key, value] = tensors.map(|tensor| blocked(tensor, channels, tokens));
    let mut scratch = vec![f32::NAN; shape.scratch_len(isa)];
    let mut output = vec![f32::NAN; query.len()];
    let operands = [&query, &key, &value].map(|tensor| tensor.as_slice().into());
    attention(isa, pool, operands, shape, &mut scratch, output.as_mut_slice().into());
    plain(&output, channels, tokens)
}

#[test]
fn attention_that_is_told_to_stop_computes_no_more() {
    let (shape, output_len) =
        (Shape { channels: 16, frames: 1, tokens: 300, arithmetic: Arithmetic::Float32 }, 16 * 300);
    each_tier(|isa, pool| {
        let tensors = [1, 2, 3].map(|seed| values(output_len, seed));
        let found = |stop: bool| {
            let mut scratch = vec![f32::NAN; shape.scratch_len(isa)];
            let mut output = vec![f32::NAN; output_len];
            let operands = tensors.each_ref().map(|tensor| tensor.as_slice().into());
            let stop = std::sync::atomic::AtomicBool::new(stop);
            stoppable_attention(
                isa,
                pool,
                operands,
                shape,
                &mut scratch,
                output.as_mut_slice().into(),
                &stop,
            );
            output
        };
        assert!(found(true).iter().all(|value| value.is_nan()), "{}", isa.name());
        assert!(found(false).iter().all(|value| value.is_finite()), "{}", isa.name());
    });
}

#[test]
fn any_number_of_tokens_and_channels_agrees_with_the_definition() {
    for (channels, tokens) in [
        (1, 1),
        (16, 7),
        (20, 48),
        (33, 49),
        (32, 256),
        (40, 300),
        (96, 777),
        (150, 130),
        (300, 140),
        (520, 300),
    ] {
        let tensors = [1, 2, 3].map(|seed| -> Vec<f32> {
            values(channels * tokens, seed).iter().map(|value| value * 3.0).collect()
        });
        let tensors = [0, 1, 2].map(|index| tensors[index].as_slice());
        let expected = oracle(tensors, channels, tokens);
        each_tier(|isa, pool| {
            for (arithmetic, tolerance) in ARITHMETICS {
                let found = run(isa, pool, arithmetic, tensors, [channels, tokens]);
                let what = format!("{} {arithmetic:?} {channels}x{tokens}", isa.name());
                assert_close(&found, &expected, tolerance, &what);
            }
        });
    }
}

#[test]
fn scores_that_grow_from_block_to_block_are_rescaled() {
    let (channels, tokens) = (16, 1000);
    let query = vec![4.0; channels * tokens];
    let key: Vec<f32> = (0..channels * tokens).map(|index| (index % tokens) as f32 / 50.0).collect();
    let value = values(channels * tokens, 3);
    let tensors = [query.as_slice(), key.as_slice(), value.as_slice()];
    let expected = oracle(tensors, channels, tokens);
    each_tier(|isa, pool| {
        for (arithmetic, tolerance) in [(Arithmetic::Float32, 5e-5), (Arithmetic::Integer16, 1e-2)] {
            let found = run(isa, pool, arithmetic, tensors, [channels, tokens]);
            assert_close(&found, &expected, tolerance, isa.name());
        }
    });
}

#[test]
fn values_of_any_size_keep_their_share() {
    // Each channel has a size of its own, and so has each stretch of tokens.
    let (channels, tokens) = (20, 600);
    let (query, key) = (values(channels * tokens, 1), values(channels * tokens, 2));
    for size in [1e-30, 1e-25, 1e30] {
        let value: Vec<f32> = values(channels * tokens, 3)
            .iter()
            .enumerate()
            .map(|(index, value)| value * size * [1.0, 1e-5][index / tokens % 2])
            .collect();
        let expected = oracle([&query, &key, &value], channels, tokens);
        each_tier(|isa, pool| {
            for (arithmetic, tolerance) in ARITHMETICS {
                // Tile registers take subnormal parts for zero, and with them the last bits of what is little larger.
                if isa.name() == "amx" && arithmetic == Arithmetic::Float32 && size < 1e-25 {
                    continue;
                }
                let found = run(isa, pool, arithmetic, [&query, &key, &value], [channels, tokens]);
                for (channel, (found, expected)) in
                    found.chunks_exact(tokens).zip(expected.chunks_exact(tokens)).enumerate()
                {
                    let unit = f64::from(size) * [1.0, 1e-5][channel % 2];
                    let [found, expected]: [Vec<f64>; 2] = [
                        found.iter().map(|value| f64::from(*value) / unit).collect(),
                        expected.iter().map(|value| value / unit).collect(),
                    ];
                    let found: Vec<f32> = found.iter().map(|value| *value as f32).collect();
                    assert_close(&found, &expected, tolerance, isa.name());
                }
            }
        });
    }
}

#[test]
fn not_a_number_in_one_query_stays_there() {
    let (channels, tokens) = (8, 60);
    let mut query = values(channels * tokens, 1);
    query[10] = f32::NAN;
    let (key, value) = (values(channels * tokens, 2), values(channels * tokens, 3));
    each_tier(|isa, pool| {
        for (arithmetic, _) in ARITHMETICS {
            let found = run(isa, pool, arithmetic, [&query, &key, &value], [channels, tokens]);
            for (index, value) in found.iter().enumerate() {
                assert_eq!(value.is_nan(), index % tokens == 10, "{} [{index}]", isa.name());
            }
        }
    });
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    let tensors = [1, 2, 3].map(|seed| values(24 * 500, seed));
    let tensors = [0, 1, 2].map(|index| tensors[index].as_slice());
    for isa in Isa::available() {
        for (arithmetic, _) in ARITHMETICS {
            let run = |threads| run(isa, &Pool::new(Some(threads)).unwrap(), arithmetic, tensors, [24, 500]);
            let one = run(1);
            assert!(one == run(2) && one == run(7), "{}", isa.name());
        }
    }
}
