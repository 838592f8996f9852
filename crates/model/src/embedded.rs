//! The small model that is part of the program: an `AutoencoderKL` trained for this project.

use crate::ModelError;
use crate::checkpoint::Checkpoint;
use crate::model::Model;

const LABEL: &str = "embedded";
const CONFIG: &str = include_str!("../embedded/config.json");
const CHECKPOINT: &[u8] = include_bytes!("../embedded/diffusion_pytorch_model.safetensors");

/// Opens it.
pub(crate) fn open() -> Result<Model, ModelError> {
    Model::from_checkpoint(Checkpoint::from_static(LABEL, CHECKPOINT)?, Some(CONFIG), LABEL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Family;

    #[test]
    fn opens_whole_and_small() {
        const { assert!(CHECKPOINT.len() < 3 << 20) };
        let model = open().unwrap();
        assert_eq!(model.family, Family::AutoencoderKl);
        assert_eq!((model.latent_channels(), model.spatial_factor()), (4, 8));
        assert_eq!((model.label(), model.description().dtype.as_str()), ("embedded", "F16"));
        for graph in [model.require_decoder().unwrap(), model.require_encoder().unwrap()] {
            for spec in &graph.weights {
                let values = model.weights().read(spec).unwrap();
                assert!(values.iter().all(|value| value.is_finite()), "{}", spec.name);
            }
        }
    }
}
