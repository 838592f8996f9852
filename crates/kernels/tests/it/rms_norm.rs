//! RMS norm against its definition.

use crate::support::{assert_close, blocked, each_tier, plain, silu, values};
use remote_vae_kernels::rms_norm::{RmsNorm, rms_norm};
use remote_vae_kernels::{Activation, Storage, Tensor, TensorMut};

fn norm(weight: &[f32]) -> RmsNorm<'_> {
    RmsNorm { weight, bias: None, epsilon: 0.0 }
}

fn oracle(input: &[f32], channels: usize, gamma: &[f32], activation: Activation) -> Vec<f64> {
    let pixels = input.len() / channels;
    let at = |channel: usize, pixel: usize| f64::from(input[channel * pixels + pixel]);
    let mut out = Vec::new();
    for (channel, factor) in gamma.iter().enumerate() {
        for pixel in 0..pixels {
            let length = (0..channels).map(|other| at(other, pixel).powi(2)).sum::<f64>().sqrt();
            let unit = at(channel, pixel) / length.max(1e-12) * (channels as f64).sqrt();
            let value = unit * f64::from(*factor);
            out.push(if activation == Activation::Silu { silu(value) } else { value });
        }
    }
    out
}

#[test]
fn pixels_are_normed_over_their_channels() {
    for (channels, pixels) in [(3, 1), (16, 64), (40, 333), (96, 65)] {
        let gamma = values(channels, 2);
        let mut input: Vec<f32> = values(channels * pixels, 1)
            .iter()
            .enumerate()
            .map(|(at, v)| v * [1.0, 1e4][at % pixels % 2])
            .collect();
        // A pixel of zeros stays one.
        (0..channels).for_each(|channel| input[channel * pixels + pixels / 2] = 0.0);
        for activation in [Activation::None, Activation::Silu] {
            let expected = oracle(&input, channels, &gamma, activation);
            each_tier(|isa, pool| {
                let tensor = blocked(&input, channels, pixels);
                let groups = tensor.len() / 16;
                let mut output = vec![f32::NAN; tensor.len()];
                let to = output.as_mut_slice().into();
                rms_norm(isa, pool, tensor.as_slice().into(), pixels, norm(&gamma), activation, to);
                assert_close(&plain(&output, channels, pixels), &expected, 1e-5, isa.name());

                // The same in halves, from halves and back.
                let storage = Storage::Half;
                let mut memory = vec![0.0; storage.len(groups)];
                rms_norm(
                    isa,
                    pool,
                    tensor.as_slice().into(),
                    pixels,
                    norm(&gamma),
                    activation,
                    TensorMut::new(storage, &mut memory),
                );
                let mut again = vec![f32::NAN; tensor.len()];
                let ones = vec![1.0; channels];
                let narrow = Tensor::new(storage, &memory);
                rms_norm(
                    isa,
                    pool,
                    narrow,
                    pixels,
                    norm(&ones),
                    Activation::None,
                    again.as_mut_slice().into(),
                );
                let mut wide = vec![f32::NAN; tensor.len()];
                let to = wide.as_mut_slice().into();
                rms_norm(isa, pool, output.as_slice().into(), pixels, norm(&ones), Activation::None, to);
                let wide: Vec<f64> = wide.iter().map(|value| f64::from(*value)).collect();
                assert_close(&again, &wide, 2e-3, isa.name());
            });
        }
    }
}

#[test]
fn an_epsilon_and_summands_take_part() {
    for (channels, pixels) in [(3, 5), (40, 70)] {
        let (weight, bias) = (values(channels, 2), values(channels, 3));
        let mut input = values(channels * pixels, 1);
        // Small pixels, where the epsilon counts.
        (0..channels).for_each(|channel| input[channel * pixels] *= 1e-3);
        let at = |channel: usize, pixel: usize| f64::from(input[channel * pixels + pixel]);
        let epsilon = 1e-5;
        let mut expected = Vec::new();
        for channel in 0..channels {
            for pixel in 0..pixels {
                let squares: f64 = (0..channels).map(|other| at(other, pixel).powi(2)).sum();
                let root = (squares / channels as f64 + f64::from(epsilon)).sqrt();
                let value = at(channel, pixel) / root * f64::from(weight[channel]) + f64::from(bias[channel]);
                expected.push(value.max(0.0));
            }
        }
        each_tier(|isa, pool| {
            let tensor = blocked(&input, channels, pixels);
            let mut output = vec![f32::NAN; tensor.len()];
            let norm = RmsNorm { weight: &weight, bias: Some(&bias), epsilon };
            let to = output.as_mut_slice().into();
            rms_norm(isa, pool, tensor.as_slice().into(), pixels, norm, Activation::Relu, to);
            assert_close(&plain(&output, channels, pixels), &expected, 1e-5, isa.name());
        });
    }
}

#[test]
fn what_is_not_a_number_is_seen_in_its_pixel_and_nowhere_else() {
    each_tier(|isa, pool| {
        let mut input = blocked(&values(20 * 3, 1), 20, 3);
        input[16] = f32::NAN;
        let mut output = vec![0.0; input.len()];
        let to = output.as_mut_slice().into();
        rms_norm(isa, pool, input.as_slice().into(), 3, norm(&[1.0; 20]), Activation::None, to);
        for (index, value) in output.iter().enumerate() {
            let lane = index / (3 * 16) * 16 + index % 16;
            assert!(lane >= 20 || value.is_nan() == (index / 16 % 3 == 1), "{index}: {value}");
        }
    });
}
