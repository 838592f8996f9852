//! The latent spaces that several models share and that tensors alone cannot tell apart.

use std::fmt;
use std::str::FromStr;

use remote_vae_model::{Factors, Family, Model, Normalisation};

use crate::HubError;

/// A family of latent spaces, named after the diffusion model that made it known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Stable Diffusion 1 and 2.
    Sd,
    /// Stable Diffusion XL.
    Sdxl,
    /// Stable Diffusion 3 and 3.5.
    Sd3,
    /// FLUX.1, and those that use its autoencoder (Z-Image, Chroma, Lumina 2, HiDream).
    Flux,
    /// FLUX.2: the statistics are in each checkpoint.
    Flux2,
    /// Playground v2.5: the autoencoder of SDXL with a mean and a standard deviation for each channel.
    Playground,
    /// HunyuanVideo, and those that use its autoencoder (FramePack, SkyReels V1).
    HunyuanVideo,
    /// Wan 2.1, Wan 2.2 A14B and Qwen-Image.
    Wan21,
    /// Wan 2.2 TI2V 5B.
    Wan22,
    /// Sana: the deep-compression autoencoder of 32 channels.
    Sana,
}

const PLAYGROUND_MEAN: [f64; 4] = [-1.6574, 1.886, -1.383, 2.5155];
const PLAYGROUND_STD: [f64; 4] = [8.4927, 5.9022, 6.5498, 5.2299];
const PLAYGROUND_FACTOR: f64 = 0.5;

impl Space {
    /// All of them.
    pub const ALL: [Space; 10] = [
        Space::Sd,
        Space::Sdxl,
        Space::Sd3,
        Space::Flux,
        Space::Flux2,
        Space::Playground,
        Space::HunyuanVideo,
        Space::Wan21,
        Space::Wan22,
        Space::Sana,
    ];

    /// The name that is typed.
    pub fn name(self) -> &'static str {
        match self {
            Space::Sd => "sd",
            Space::Sdxl => "sdxl",
            Space::Sd3 => "sd3",
            Space::Flux => "flux",
            Space::Flux2 => "flux2",
            Space::Playground => "playground",
            Space::HunyuanVideo => "hunyuan-video",
            Space::Wan21 => "wan21",
            Space::Wan22 => "wan22",
            Space::Sana => "sana",
        }
    }

    /// Channels of its latents.
    pub fn channels(self) -> usize {
        match self {
            Space::Sd | Space::Sdxl | Space::Playground => 4,
            Space::Sd3 | Space::Flux | Space::HunyuanVideo | Space::Wan21 => 16,
            Space::Flux2 | Space::Sana => 32,
            Space::Wan22 => 48,
        }
    }

    /// Its scalar factors; `None` for those that have a mean and a deviation per channel or element.
    pub fn factors(self) -> Option<Factors> {
        let factors = |scaling_factor, shift_factor| Some(Factors { scaling_factor, shift_factor });
        match self {
            Space::Sd => factors(0.18215, None),
            Space::Sdxl => factors(0.13025, None),
            Space::Sd3 => factors(1.5305, Some(0.0609)),
            Space::Flux => factors(0.3611, Some(0.1159)),
            Space::HunyuanVideo => factors(0.476986, None),
            Space::Sana => factors(0.41407, None),
            Space::Flux2 | Space::Playground | Space::Wan21 | Space::Wan22 => None,
        }
    }

    /// The factors for people, e.g. `0.3611 / 0.1159`.
    pub fn summary(self) -> String {
        match self.factors() {
            None if self == Space::Flux2 => "mean and deviation per element of a patch".to_owned(),
            None if self.is_wan() => "mean and deviation per channel".to_owned(),
            None => format!("{PLAYGROUND_FACTOR}, mean and deviation per channel"),
            Some(Factors { scaling_factor, shift_factor: None }) => scaling_factor.to_string(),
            Some(Factors { scaling_factor, shift_factor: Some(shift) }) => {
                format!("{scaling_factor} / {shift}")
            }
        }
    }

    fn is_wan(self) -> bool {
        matches!(self, Space::Wan21 | Space::Wan22)
    }

    /// How its latents become those of an autoencoder of this architecture; `None` where there is no such.
    fn normalisation(self, architecture: Family) -> Option<Normalisation> {
        let lives_alone = [architecture == Family::AutoencoderDc, self == Space::Sana];
        match (architecture, self.factors()) {
            (Family::AutoencoderKl | Family::AutoencoderKlHunyuanVideo | Family::AutoencoderDc, _)
                if lives_alone[0] != lives_alone[1] =>
            {
                None
            }
            // The tiny model takes the diffusion model's latents; the statistics of the full one are not at hand.
            (Family::AutoencoderTiny, None) if self == Space::Flux2 || self.is_wan() => {
                Some(Normalisation::Identity { family: None })
            }
            (Family::AutoencoderTiny, factors) => {
                factors.map(|family| Normalisation::Identity { family: Some(family) })
            }
            (
                Family::AutoencoderKl | Family::AutoencoderKlHunyuanVideo | Family::AutoencoderDc,
                Some(Factors { scaling_factor, shift_factor }),
            ) => Some(Normalisation::Scalar { scaling_factor, shift_factor }),
            (Family::AutoencoderKl, None) if self == Space::Playground => Some(Normalisation::PerChannel {
                mean: PLAYGROUND_MEAN.to_vec(),
                std: PLAYGROUND_STD.to_vec(),
                scaling_factor: PLAYGROUND_FACTOR,
            }),
            _ => None,
        }
    }

    /// Gives a model this latent space. A tiny model's latents stay the diffusion model's own; it learns which division
    /// by a client it has to undo.
    ///
    /// # Errors
    /// [`HubError::Space`] when the model has another number of channels, or none of its kind lives in this space.
    pub fn apply(self, model: &mut Model) -> Result<(), HubError> {
        let misfit = |reason| HubError::Space { space: self.name(), reason };
        if model.latent_channels() != self.channels() {
            let found = model.latent_channels();
            return Err(misfit(format!("it has {} channels, the model has {found}", self.channels())));
        }
        // Their statistics are known with the model.
        let own = match model.family {
            Family::AutoencoderKlFlux2 => self == Space::Flux2,
            Family::AutoencoderKlWan | Family::AutoencoderKlQwenImage => self.is_wan(),
            _ => false,
        };
        if own {
            return Ok(());
        }
        model.latent_space.normalisation = self
            .normalisation(model.family)
            .ok_or_else(|| misfit(format!("no {} lives in it", model.family.name())))?;
        Ok(())
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Space {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        Space::ALL.into_iter().find(|space| space.name() == text).ok_or_else(|| HubError::Source {
            text: text.to_owned(),
            reason: format!(
                "a latent space is one of {}",
                Space::ALL.map(|space| format!("`{space}`")).join(", ")
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for space in Space::ALL {
            assert_eq!(space.name().parse::<Space>().unwrap(), space);
        }
        let message = "other".parse::<Space>().unwrap_err().to_string();
        assert!(
            message.contains("`sd`, `sdxl`, `sd3`, `flux`, `flux2`, `playground`, `hunyuan-video`"),
            "{message}"
        );
    }

    #[test]
    fn only_a_fitting_model_takes_a_space() {
        let mut model = Model::embedded().unwrap();
        Space::Sdxl.apply(&mut model).unwrap();
        let scalar = Normalisation::Scalar { scaling_factor: 0.13025, shift_factor: None };
        assert_eq!(model.latent_space.normalisation, scalar);
        Space::Playground.apply(&mut model).unwrap();
        assert!(matches!(model.latent_space.normalisation, Normalisation::PerChannel { .. }));
        let message = Space::Flux.apply(&mut model).unwrap_err().to_string();
        assert!(message.contains("16 channels, the model has 4"), "{message}");
        assert_eq!(Space::Playground.normalisation(Family::AutoencoderTiny), None);
        let tiny = Space::Sd3.normalisation(Family::AutoencoderTiny);
        assert_eq!(tiny, Some(Normalisation::Identity { family: Space::Sd3.factors() }));
    }
}
