//! Clips through an [`Autoencoder`]: shapes have frames, and a [`Windows`] says how much is run at once. Pictures and the
//! life of the programs are in [`crate::autoencoder`].

use std::collections::HashMap;
use std::sync::Arc;

use remote_vae_wire::{Operation, Scaling};

use crate::windows::{self, Part, Scale};
use crate::{Autoencoder, Control, Draw, EngineError, Plan, PlanSummary, Precision, Windows};

/// Pixels or latents of clips.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    /// `[batch, channels, frames, height, width]`; pixels are about -1 to 1, not clamped.
    pub values: Vec<f32>,
    /// The five sides.
    pub shape: [usize; 5],
}

impl Autoencoder {
    /// The pixels that latents `[batch, channels, frames, height, width]` become.
    ///
    /// # Errors
    /// The shape does not fit the model, or there is no decoder.
    pub fn clip_pixels(&self, latents: [usize; 5]) -> Result<[usize; 5], EngineError> {
        let plan = self.plan_part(Operation::Decode, latents, Precision::Exact)?;
        let [batch, channels, height, width] = plan.output;
        Ok([batch, channels, plan.frames[1], height, width])
    }

    /// What decoding latents `[batch, channels, frames, height, width]` costs; input, output and frames are those of the
    /// whole clip.
    ///
    /// # Errors
    /// The shape does not fit the model, or there is no decoder.
    pub fn plan_decode_clip(
        &self,
        latents: [usize; 5],
        windows: Windows,
        precision: Precision,
    ) -> Result<PlanSummary, EngineError> {
        self.plan_windows(Operation::Decode, latents, windows, precision)
    }

    /// What encoding pixels `[batch, channels, frames, height, width]` costs.
    ///
    /// # Errors
    /// The shape does not fit the model, or there is no encoder.
    pub fn plan_encode_clip(
        &self,
        pixels: [usize; 5],
        windows: Windows,
        precision: Precision,
    ) -> Result<PlanSummary, EngineError> {
        self.plan_windows(Operation::Encode, pixels, windows, precision)
    }

    /// Decodes `latents` (`[batch, channels, frames, height, width]`, in the space that `scaling` names). A sample's
    /// bytes do not depend on the others of its batch.
    ///
    /// # Errors
    /// Shape or scaling do not fit the model, memory is refused, or the run was cancelled.
    pub fn decode_clip(
        &self,
        mut latents: Vec<f32>,
        shape: [usize; 5],
        scaling: &Scaling,
        windows: Windows,
        precision: Precision,
        control: &Control,
    ) -> Result<Clip, EngineError> {
        self.plan_part(Operation::Decode, shape, precision)?;
        check_length(&latents, shape)?;
        self.model.latent_space.to_model(&mut latents, flat(shape), scaling)?;
        let Part { values, shape } = self.run_windows(
            Operation::Decode,
            Part { values: latents, shape },
            windows,
            precision,
            control,
        )?;
        Ok(Clip { values, shape })
    }

    /// Encodes `pixels` (`[batch, channels, frames, height, width]` in -1 to 1) into the space that `scaling` names.
    ///
    /// # Errors
    /// A side or the frames do not fit the model's factors, memory is refused, or the run was cancelled.
    #[allow(clippy::too_many_arguments)] // what to encode, how, and into which space
    pub fn encode_clip(
        &self,
        pixels: Vec<f32>,
        shape: [usize; 5],
        scaling: &Scaling,
        draw: Draw,
        windows: Windows,
        precision: Precision,
        control: &Control,
    ) -> Result<Clip, EngineError> {
        self.plan_part(Operation::Encode, shape, precision)?;
        check_length(&pixels, shape)?;
        let moments =
            self.run_windows(Operation::Encode, Part { values: pixels, shape }, windows, precision, control)?;
        let [_, _, frames, height, width] = moments.shape;
        let (values, drawn) = self.draw(moments.values, flat(moments.shape), draw, scaling)?;
        Ok(Clip { values, shape: [drawn[0], drawn[1], frames, height, width] })
    }

    fn run_windows(
        &self,
        operation: Operation,
        input: Part,
        windows: Windows,
        precision: Precision,
        control: &Control,
    ) -> Result<Part, EngineError> {
        let program = self.program(operation)?;
        let mut plans: HashMap<[usize; 5], Arc<Plan>> = HashMap::new();
        windows::run(&input, windows, self.scale(operation), &mut |part| {
            let plan = match plans.get(&part.shape) {
                Some(plan) => Arc::clone(plan),
                None => {
                    let plan =
                        Arc::new(self.engine.plan_clip(self.graph(operation)?, part.shape, precision)?);
                    plans.insert(part.shape, Arc::clone(&plan));
                    plan
                }
            };
            let values = program.run(&plan, &part.values, control)?;
            let [batch, channels, height, width] = plan.output;
            Ok(Part { values, shape: [batch, channels, plan.frames[1], height, width] })
        })
    }

    fn plan_windows(
        &self,
        operation: Operation,
        shape: [usize; 5],
        windows: Windows,
        precision: Precision,
    ) -> Result<PlanSummary, EngineError> {
        let whole = self.plan_part(operation, shape, precision)?.summary();
        let parts = windows::parts(shape, windows, self.scale(operation));
        if parts.len() == 1 {
            return Ok(whole);
        }
        let mut summary = PlanSummary { flops: 0, steps: 0, activation_bytes: 0, ..whole };
        let tensors = tensor_bytes(&whole);
        for (part, count) in parts {
            let plan = self.engine.plan_clip(self.graph(operation)?, part, precision)?.summary();
            summary.flops = summary.flops.saturating_add(plan.flops.saturating_mul(count as u64));
            summary.steps += plan.steps * count;
            // The part's own input and output come and go with it.
            let bytes = plan.activation_bytes + tensor_bytes(&plan);
            summary.activation_bytes = summary.activation_bytes.max(bytes);
        }
        // All parts with what they overlap, and the whole put together of them.
        let running = summary.activation_bytes.saturating_add(tensors.saturating_mul(3));
        summary.peak_bytes = (whole.weight_bytes + whole.load_bytes).saturating_add(running);
        Ok(summary)
    }

    fn plan_part(
        &self,
        operation: Operation,
        shape: [usize; 5],
        precision: Precision,
    ) -> Result<Plan, EngineError> {
        let [_, _, frames, height, width] = shape;
        let temporal = self.model.temporal_factor();
        if temporal.is_none() && frames != 1 {
            return Err(EngineError::NoVideo { frames });
        }
        if operation == Operation::Encode {
            let (factor, time) = (self.model.spatial_factor(), temporal.unwrap_or(1));
            if !height.is_multiple_of(factor) || !width.is_multiple_of(factor) {
                return Err(EngineError::ImageSides { height, width, factor });
            }
            if frames % time != 1 % time {
                return Err(EngineError::ClipFrames { frames, factor: time });
            }
        }
        self.engine.plan_clip(self.graph(operation)?, shape, precision)
    }

    fn scale(&self, operation: Operation) -> Scale {
        let (space, time) = (self.model.spatial_factor(), self.model.temporal_factor().unwrap_or(1));
        match operation {
            Operation::Decode => Scale::Decode { space, time },
            Operation::Encode => Scale::Encode { space, time },
        }
    }
}

/// Bytes of input and output.
fn tensor_bytes(summary: &PlanSummary) -> usize {
    let [input, output] = [summary.input, summary.output].map(|shape| shape.iter().product::<usize>());
    (input * summary.frames[0] + output * summary.frames[1]) * size_of::<f32>()
}

/// Frames as further rows: what is done to each value of a channel does not know the difference.
fn flat([batch, channels, frames, height, width]: [usize; 5]) -> [usize; 4] {
    [batch, channels, frames * height, width]
}

fn check_length(values: &[f32], shape: [usize; 5]) -> Result<(), EngineError> {
    let expected = shape.iter().product();
    if values.len() == expected {
        return Ok(());
    }
    Err(EngineError::ClipLength { shape, found: values.len(), expected })
}
