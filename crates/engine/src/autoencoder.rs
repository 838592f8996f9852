//! A model bound to an engine: what the server and the program use.

use std::sync::{Arc, Mutex, PoisonError};

use remote_vae_model::{Graph, Model, ModelError};
use remote_vae_wire::{Operation, Scaling};

use crate::{Control, Engine, EngineError, Plan, PlanSummary, Program};

/// Pixels as a decoder gives them.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// `[batch, channels, height, width]`, about -1 to 1, not clamped.
    pub pixels: Vec<f32>,
    /// The four sides.
    pub shape: [usize; 4],
}

/// Latents as clients see them.
#[derive(Clone, Debug, PartialEq)]
pub struct Latents {
    /// `[batch, channels, height, width]`
    pub values: Vec<f32>,
    /// The four sides.
    pub shape: [usize; 4],
}

/// What of the encoder's distribution an encode gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Draw {
    /// Its mode: the same latents each time.
    #[default]
    Mode,
    /// A sample, drawn as `torch.randn` on a CPU draws with this seed.
    Sample {
        /// The generator's seed.
        seed: u64,
    },
}

/// A model bound to an engine. Weights are read when an operation is first used, or by [`Autoencoder::warm`].
pub struct Autoencoder {
    model: Model,
    engine: Arc<dyn Engine>,
    decoder: Half,
    encoder: Half,
}

type Half = Mutex<Option<Arc<dyn Program>>>;

impl Autoencoder {
    /// Binds `model` to `engine`; reads no weights yet.
    pub fn new(model: Model, engine: Arc<dyn Engine>) -> Autoencoder {
        Autoencoder { model, engine, decoder: Mutex::default(), encoder: Mutex::default() }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The engine.
    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// Reads the weights of one half now.
    ///
    /// # Errors
    /// The checkpoint lacks that half, or reading fails.
    pub fn warm(&self, operation: Operation) -> Result<(), EngineError> {
        self.program(operation).map(|_| ())
    }

    /// What decoding latents `[batch, channels, height, width]` costs.
    ///
    /// # Errors
    /// The shape does not fit the model, or there is no decoder.
    pub fn plan_decode(&self, latents: [usize; 4]) -> Result<PlanSummary, EngineError> {
        Ok(self.plan(Operation::Decode, latents)?.summary())
    }

    /// What encoding pixels `[batch, channels, height, width]` costs.
    ///
    /// # Errors
    /// The shape does not fit the model, or there is no encoder.
    pub fn plan_encode(&self, pixels: [usize; 4]) -> Result<PlanSummary, EngineError> {
        Ok(self.plan(Operation::Encode, pixels)?.summary())
    }

    /// Decodes `latents` (`[batch, channels, height, width]`, in the space that `scaling` names).
    ///
    /// # Errors
    /// Shape or scaling do not fit the model, memory is refused, or the run was cancelled.
    pub fn decode(
        &self,
        mut latents: Vec<f32>,
        shape: [usize; 4],
        scaling: &Scaling,
        control: &Control,
    ) -> Result<Image, EngineError> {
        let plan = self.plan(Operation::Decode, shape)?;
        check_length(&latents, shape)?;
        self.model.latent_space.to_model(&mut latents, shape, scaling)?;
        let pixels = self.program(Operation::Decode)?.run(&plan, &latents, control)?;
        Ok(Image { pixels, shape: plan.output })
    }

    /// Encodes `pixels` (`[batch, channels, height, width]` in -1 to 1) into the space that `scaling` names.
    ///
    /// # Errors
    /// A side is not a multiple of the model's factor, the shape does not fit the model, memory is refused, or the run
    /// was cancelled.
    pub fn encode(
        &self,
        pixels: &[f32],
        shape: [usize; 4],
        scaling: &Scaling,
        draw: Draw,
        control: &Control,
    ) -> Result<Latents, EngineError> {
        let plan = self.plan(Operation::Encode, shape)?;
        check_length(pixels, shape)?;
        let moments = self.program(Operation::Encode)?.run(&plan, pixels, control)?;
        let (mut values, shape) = self.draw(moments, plan.output, draw)?;
        self.model.latent_space.from_model(&mut values, shape, scaling)?;
        Ok(Latents { values, shape })
    }

    fn draw(
        &self,
        moments: Vec<f32>,
        shape: [usize; 4],
        draw: Draw,
    ) -> Result<(Vec<f32>, [usize; 4]), ModelError> {
        if !self.model.encoder_yields_moments() {
            return Ok((moments, shape));
        }
        match draw {
            Draw::Mode => remote_vae_model::distribution::mode(&moments, shape),
            Draw::Sample { seed } => remote_vae_model::distribution::sample(&moments, shape, seed),
        }
    }

    /// The steps of decoding latents or encoding pixels of `shape` (`[batch, channels, height, width]`), and their cost.
    ///
    /// # Errors
    /// The shape does not fit the model, or the model lacks that half.
    pub fn plan(&self, operation: Operation, shape: [usize; 4]) -> Result<Plan, EngineError> {
        if operation == Operation::Encode {
            let factor = self.model.spatial_factor();
            let [_, _, height, width] = shape;
            if !height.is_multiple_of(factor) || !width.is_multiple_of(factor) {
                return Err(EngineError::ImageSides { height, width, factor });
            }
        }
        self.engine.plan(self.graph(operation)?, shape)
    }

    fn graph(&self, operation: Operation) -> Result<&Graph, EngineError> {
        Ok(match operation {
            Operation::Decode => self.model.require_decoder()?,
            Operation::Encode => self.model.require_encoder()?,
        })
    }

    fn program(&self, operation: Operation) -> Result<Arc<dyn Program>, EngineError> {
        let graph = self.graph(operation)?;
        let half = match operation {
            Operation::Decode => &self.decoder,
            Operation::Encode => &self.encoder,
        };
        let mut half = half.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = &*half {
            return Ok(Arc::clone(program));
        }
        let program: Arc<dyn Program> = self.engine.load(graph, self.model.weights())?.into();
        *half = Some(Arc::clone(&program));
        Ok(program)
    }
}

fn check_length(values: &[f32], shape: [usize; 4]) -> Result<(), EngineError> {
    let expected = shape.iter().product();
    if values.len() == expected {
        return Ok(());
    }
    Err(EngineError::InputLength { shape, found: values.len(), expected })
}
