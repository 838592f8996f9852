//! GroupNorm's statistics and their application.

use crate::support::{assert_close, blocked, each_tier, plain, silu, statistics, values};
use remote_vae_kernels::norm::{GroupNorm, apply};
use remote_vae_kernels::{Activation, Isa, Pool};

fn oracle(input: &[f32], channels: usize, groups: usize, weight: &[f32], bias: &[f32]) -> Vec<f64> {
    let pixels = input.len() / channels;
    let size = channels / groups * pixels;
    let mut out = Vec::new();
    for (group, values) in input.chunks_exact(size).enumerate() {
        let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / size as f64;
        let variance =
            values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / size as f64;
        for (index, value) in values.iter().enumerate() {
            let channel = group * channels / groups + index / pixels;
            let unit = (f64::from(*value) - mean) / (variance + 1e-6).sqrt();
            out.push(silu(unit * f64::from(weight[channel]) + f64::from(bias[channel])));
        }
    }
    out
}

fn run(
    isa: Isa,
    pool: &Pool,
    input: &[f32],
    channels: usize,
    groups: usize,
    weight: &[f32],
    bias: &[f32],
) -> Vec<f32> {
    let pixels = input.len() / channels;
    let blocked = blocked(input, channels, pixels);
    let norm = GroupNorm { groups, epsilon: 1e-6, weight, bias };
    let input = blocked.as_slice().into();
    let [scale, shift] = statistics(isa, pool, norm, input, pixels);
    let mut output = vec![f32::NAN; blocked.len()];
    let out = output.as_mut_slice().into();
    apply(isa, pool, input, pixels, (&scale, &shift), Activation::Silu, out);
    plain(&output, channels, pixels)
}

#[test]
fn any_grouping_agrees_with_the_definition() {
    for (channels, groups, pixels) in
        [(32, 32, 50), (12, 4, 1), (20, 4, 333), (64, 32, 20_000), (40, 1, 8193)]
    {
        let (weight, bias) = (values(channels, 2), values(channels, 3));
        let input: Vec<f32> = values(channels * pixels, 1).iter().map(|value| value * 3.0 + 1.0).collect();
        let expected = oracle(&input, channels, groups, &weight, &bias);
        each_tier(|isa, pool| {
            let found = run(isa, pool, &input, channels, groups, &weight, &bias);
            assert_close(&found, &expected, 1e-5, &format!("{} {channels}/{groups}x{pixels}", isa.name()));
        });
    }
}

#[test]
fn a_large_mean_does_not_eat_the_variance() {
    let (channels, pixels) = (16, 50_000);
    let input: Vec<f32> = values(channels * pixels, 1).iter().map(|value| 1000.0 + value).collect();
    let (weight, bias) = (vec![1.0; channels], vec![0.0; channels]);
    let expected = oracle(&input, channels, 2, &weight, &bias);
    each_tier(|isa, pool| {
        // Values near 1000 have a spacing of 6e-5, which normalising makes larger.
        assert_close(&run(isa, pool, &input, channels, 2, &weight, &bias), &expected, 2e-4, isa.name());
    });
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    let input = values(48 * 30_000, 9);
    let (weight, bias) = (values(48, 2), values(48, 3));
    for isa in Isa::available() {
        let run = |threads| run(isa, &Pool::new(Some(threads)).unwrap(), &input, 48, 8, &weight, &bias);
        let one = run(1);
        assert!(one == run(2) && one == run(7), "{}", isa.name());
    }
}

#[test]
fn what_lies_far_from_the_first_pixels_and_from_those_before_is_counted_in_full() {
    let (channels, pixels) = (16, 40_000);
    let (weight, bias) = (values(channels, 2), values(channels, 3));
    let noise = values(channels * pixels, 1);
    let inputs: [fn(usize) -> f32; 3] = [
        |pixel| if pixel % 8192 == 0 { 300.0 } else { 0.0 },
        |pixel| (pixel / 1000) as f32 * 5.0,
        |pixel| if pixel % 256 < 128 { -40.0 } else { 40.0 },
    ];
    for (index, offset) in inputs.into_iter().enumerate() {
        let input: Vec<f32> =
            noise.iter().enumerate().map(|(index, value)| value + offset(index % pixels)).collect();
        let expected = oracle(&input, channels, 4, &weight, &bias);
        each_tier(|isa, pool| {
            let found = run(isa, pool, &input, channels, 4, &weight, &bias);
            assert_close(&found, &expected, 2e-5, &format!("{} input {index}", isa.name()));
        });
    }
}
