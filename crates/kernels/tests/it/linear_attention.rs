//! Linear attention against its definition.

use crate::support::{assert_close, blocked, each_tier, plain, values};
use remote_vae_kernels::linear_attention::linear_attention;
use remote_vae_kernels::{Isa, Pool, Storage, Tensor, TensorMut};

/// `inputs` of `[channels, tokens]`, one after the other.
fn oracle(inputs: &[f32], head: usize, tokens: usize) -> Vec<f64> {
    let heads = inputs.len() / tokens / (3 * head);
    let at = |channel: usize, token: usize| f64::from(inputs[channel * tokens + token]);
    let mut out = Vec::new();
    for own in 0..heads {
        let [query, key, value] = [0, 1, 2].map(|part| (own * 3 + part) * head);
        let weights: Vec<Vec<f64>> = (0..tokens)
            .map(|i| {
                let product = |j: usize| {
                    (0..head).map(|c| at(query + c, i).max(0.0) * at(key + c, j).max(0.0)).sum::<f64>()
                };
                let products: Vec<f64> = (0..tokens).map(product).collect();
                let sum: f64 = products.iter().sum::<f64>() + 1e-15;
                products.into_iter().map(|product| product / sum).collect()
            })
            .collect();
        for channel in 0..head {
            for weights in &weights {
                out.push(weights.iter().enumerate().map(|(j, weight)| weight * at(value + channel, j)).sum());
            }
        }
    }
    out
}

#[test]
fn positions_get_the_mean_of_values_weighted_by_products() {
    // Channels of an input, how many inputs, channels of a head, positions.
    for (channels, count, head, tokens) in [
        (8, 3, 8, 1),
        (16, 6, 8, 65),
        (12, 6, 4, 30),
        (15, 3, 5, 130),
        (32, 6, 32, 64),
        (64, 6, 32, 200),
        (48, 3, 16, 77),
    ] {
        let input = values(count * channels * tokens, 1);
        let expected = oracle(&input, head, tokens);
        let made = count * channels / 3;
        each_tier(|isa, pool| {
            let what = format!("{count} of {channels} channels in heads of {head}, {tokens}, {}", isa.name());
            let tensors: Vec<Vec<f32>> =
                input.chunks_exact(channels * tokens).map(|input| blocked(input, channels, tokens)).collect();
            let inputs: Vec<Tensor<'_>> = tensors.iter().map(|tensor| tensor.as_slice().into()).collect();
            let mut output = vec![f32::NAN; made.div_ceil(16) * 16 * tokens];
            linear_attention(isa, pool, &inputs, channels, head, tokens, output.as_mut_slice().into());
            assert_close(&plain(&output, made, tokens), &expected, 1e-5, &what);
            // The same into halves, and from these as values.
            let mut memory = vec![0.0; Storage::Half.len(output.len() / 16)];
            let to = TensorMut::new(Storage::Half, &mut memory);
            linear_attention(isa, pool, &inputs, channels, head, tokens, to);
            let halves = Tensor::new(Storage::Half, &memory);
            if made == channels && head == channels {
                let same = [inputs[0], inputs[1], halves];
                let mut again = vec![f32::NAN; output.len()];
                linear_attention(isa, pool, &same, channels, head, tokens, again.as_mut_slice().into());
                let mut three = input.clone();
                let values: Vec<f32> = expected.iter().map(|value| *value as f32).collect();
                three[2 * channels * tokens..].copy_from_slice(&values);
                assert_close(&plain(&again, made, tokens), &oracle(&three, head, tokens), 1e-3, &what);
            }
        });
    }
}

#[test]
fn queries_and_keys_without_a_product_get_zeros() {
    each_tier(|isa, pool| {
        let negative = blocked(&[-1.0; 16 * 3], 16, 3);
        let ones = blocked(&[1.0; 16 * 3], 16, 3);
        let mut output = vec![f32::NAN; ones.len()];
        let inputs = [negative.as_slice().into(), ones.as_slice().into(), ones.as_slice().into()];
        linear_attention(isa, pool, &inputs, 16, 16, 3, output.as_mut_slice().into());
        assert!(output.iter().all(|value| *value == 0.0));
    });
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let tokens = 333;
    let tensors: Vec<Vec<f32>> = (0..6).map(|seed| blocked(&values(64 * tokens, seed), 64, tokens)).collect();
    let inputs: Vec<Tensor<'_>> = tensors.iter().map(|tensor| tensor.as_slice().into()).collect();
    let run = |threads| {
        let mut output = vec![f32::NAN; 128 * tokens];
        let pool = Pool::new(Some(threads)).unwrap();
        linear_attention(Isa::detect(), &pool, &inputs, 64, 32, tokens, output.as_mut_slice().into());
        output
    };
    let one = run(1);
    assert!(run(2) == one && run(7) == one);
}
