//! The encoder of an `AutoencoderKL` gives a diagonal normal distribution: its moments are `[batch, 2·latent, height,
//! width]`, the means first, then the log-variances (limited to −30…20). Here they become latents.

use crate::{ModelError, random};

const LOG_VARIANCE: std::ops::RangeInclusive<f32> = -30.0..=20.0;

/// The most likely latents: the means, `[batch, latent, height, width]`.
///
/// # Errors
/// [`ModelError::Shape`] when the channels are odd or the length does not fit the shape.
pub fn mode(moments: &[f32], shape: [usize; 4]) -> Result<(Vec<f32>, [usize; 4]), ModelError> {
    let latent = latent_shape(moments, shape)?;
    let half = latent[1] * latent[2] * latent[3];
    let means = moments.chunks_exact((2 * half).max(1)).flat_map(|sample| &sample[..half]);
    Ok((means.copied().collect(), latent))
}

/// Latents drawn from the distribution: mean + exp(log-variance / 2) · n with the n of
/// `torch.randn(shape, generator=torch.Generator().manual_seed(seed))`. The whole batch is one draw.
///
/// # Errors
/// As [`mode`].
pub fn sample(moments: &[f32], shape: [usize; 4], seed: u64) -> Result<(Vec<f32>, [usize; 4]), ModelError> {
    let (mut latents, latent) = mode(moments, shape)?;
    let half = latent[1] * latent[2] * latent[3];
    let noise = random::normal(seed, latents.len());
    let log_variances = moments.chunks_exact((2 * half).max(1)).flat_map(|sample| &sample[half..]);
    for ((value, &log_variance), noise) in latents.iter_mut().zip(log_variances).zip(noise) {
        let deviation = (0.5 * log_variance.clamp(*LOG_VARIANCE.start(), *LOG_VARIANCE.end())).exp();
        *value += deviation * noise;
    }
    Ok((latents, latent))
}

fn latent_shape(moments: &[f32], shape: [usize; 4]) -> Result<[usize; 4], ModelError> {
    let wrong = |message| ModelError::Shape { place: "moments".into(), message };
    let elements = shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side));
    if elements != Some(moments.len()) {
        return Err(wrong(format!("{} values do not fit shape {shape:?}", moments.len())));
    }
    if !shape[1].is_multiple_of(2) {
        return Err(wrong(format!(
            "expected an even number of channels (means and log-variances), got {}",
            shape[1]
        )));
    }
    Ok([shape[0], shape[1] / 2, shape[2], shape[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_takes_the_means_of_each_sample() {
        let moments: Vec<f32> = (0..16).map(|value| value as f32).collect();
        let (latents, shape) = mode(&moments, [2, 4, 1, 2]).unwrap();
        assert_eq!(shape, [2, 2, 1, 2]);
        assert_eq!(latents, [0.0, 1.0, 2.0, 3.0, 8.0, 9.0, 10.0, 11.0]);
    }

    #[test]
    fn sample_draws_as_torch_does() {
        // moments = (torch.arange(64).reshape(2, 4, 2, 4) - 32) / 8
        // DiagonalGaussianDistribution(moments).sample(torch.Generator().manual_seed(3)).flatten()
        let moments: Vec<f32> = (0..64).map(|value| (value as f32 - 32.0) / 8.0).collect();
        let (latents, shape) = sample(&moments, [2, 4, 2, 4], 3).unwrap();
        assert_eq!(shape, [2, 2, 2, 4]);
        let noise = random::normal(3, 32);
        for (index, value) in latents.iter().enumerate() {
            let (sample, place) = (index / 16, index % 16);
            let mean = moments[sample * 32 + place];
            let deviation = (0.5 * moments[sample * 32 + 16 + place]).exp();
            assert_eq!(*value, mean + deviation * noise[index]);
        }
        let expected: [f32; 32] = [
            -4.028_196,
            -3.734_068_4,
            -4.075_993,
            -3.593_259_8,
            -3.185_952_2,
            -3.519_202_2,
            -2.382_581_7,
            -4.034_776_7,
            -3.031_346,
            -3.072_552_7,
            -2.579_207_4,
            -2.787_829,
            -1.788_836_5,
            -2.205_595_3,
            -1.743_460_3,
            -1.733_892_9,
            0.710_833_85,
            2.819_298,
            -1.334_654_6,
            -5.040_602,
            4.150_978,
            2.565_16,
            0.090_256_99,
            1.098_279,
            3.526_610_6,
            11.890_432,
            10.742_887,
            -5.086_375_7,
            7.242_647,
            4.437_821_4,
            17.637_306,
            0.855_949_3,
        ];
        for (index, (found, expected)) in latents.iter().zip(expected).enumerate() {
            let tolerance = 1e-5 * f32::max(1.0, expected.abs());
            assert!((found - expected).abs() <= tolerance, "element {index}: {found} and {expected}");
        }
    }

    #[test]
    fn log_variances_are_limited() {
        let (latents, _) = sample(&[0.0, 1000.0], [1, 2, 1, 1], 0).unwrap();
        assert!((latents[0] / (10f32.exp() * 1.540_996) - 1.0).abs() < 1e-5);
        assert_eq!(sample(&[0.5, f32::NEG_INFINITY], [1, 2, 1, 1], 0).unwrap().0.len(), 1);
    }

    #[test]
    fn odd_channels_and_wrong_lengths_are_refused() {
        assert!(mode(&[0.0; 3], [1, 3, 1, 1]).unwrap_err().to_string().contains("even"));
        assert!(mode(&[0.0; 3], [1, 2, 1, 1]).is_err());
        assert!(mode(&[], [0, 2, 1, 1]).unwrap().0.is_empty());
    }
}
