//! Clips through an [`Autoencoder`]: shapes have frames, and a [`Windows`] says how much is run at once. Pictures and the
//! life of the programs are in [`crate::autoencoder`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use remote_vae_model::{Graph, Start};
use remote_vae_wire::{Operation, Scaling};

use crate::autoencoder_parts::PartOfWork;
use crate::plan::output_shape;
use crate::tiles::Tiles;
use crate::windows::{self, Cut, Part, Scale};
use crate::{
    Autoencoder, Control, Delivery, Draw, EngineError, History, Plan, PlanSummary, Precision, Progress,
    Windows, memory,
};

/// Pixels or latents of clips.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    /// `[batch, channels, frames, height, width]`; pixels are about -1 to 1, clamped only where diffusers clamps them.
    pub values: Vec<f32>,
    /// The five sides.
    pub shape: [usize; 5],
}

/// Frames of one clip of a batch that are ready, in the order in which they are shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Frames {
    /// Which clip of the batch they are of.
    pub sample: usize,
    /// Index of the first of them in the clip.
    pub first: usize,
    /// `[channels, frames, height, width]`; pixels are about -1 to 1, clamped only where diffusers clamps them.
    pub values: Vec<f32>,
    /// The four sides.
    pub shape: [usize; 4],
}

impl Autoencoder {
    /// The pixels that latents `[batch, channels, frames, height, width]` become.
    ///
    /// # Errors
    /// The shape does not fit the model, or there is no decoder.
    pub fn clip_pixels(&self, latents: [usize; 5]) -> Result<[usize; 5], EngineError> {
        self.clip_output(Operation::Decode, latents)
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
        self.plan_parts(Operation::Decode, latents, windows, precision, Delivery::Whole)
    }

    /// As [`Autoencoder::plan_decode_clip`] for [`Autoencoder::decode_frames`], which does not keep what it has handed on.
    ///
    /// # Errors
    /// The shape does not fit the model, or there is no decoder.
    pub fn plan_decode_frames(
        &self,
        latents: [usize; 5],
        windows: Windows,
        precision: Precision,
    ) -> Result<PlanSummary, EngineError> {
        self.plan_parts(Operation::Decode, latents, windows, precision, Delivery::FRAMES)
    }

    /// How often [`Autoencoder::decode_frames`] hands on frames of each clip of such latents.
    pub fn frame_groups(&self, latents: [usize; 5], windows: Windows) -> usize {
        // Tiles that are none are refused with the plan.
        self.scale(Operation::Decode, windows).map_or(1, |scale| windows::groups(latents, windows, scale))
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
        self.plan_parts(Operation::Encode, pixels, windows, precision, Delivery::Whole)
    }

    /// Decodes `latents` (`[batch, channels, frames, height, width]`, in the space that `scaling` names). A sample's
    /// bytes do not depend on the others of its batch.
    ///
    /// # Errors
    /// Shape or scaling do not fit the model, memory is refused, or the run was cancelled.
    pub fn decode_clip(
        &self,
        latents: Vec<f32>,
        shape: [usize; 5],
        scaling: &Scaling,
        windows: Windows,
        precision: Precision,
        control: &Control,
    ) -> Result<Clip, EngineError> {
        let latents = self.model_latents(latents, shape, scaling)?;
        let whole = self.run_whole(Operation::Decode, latents, shape, windows, precision, control)?;
        Ok(Clip { values: whole.values, shape: whole.shape })
    }

    /// As [`Autoencoder::decode_clip`], but hands frames on as they are made: clip after clip of the batch, and of each
    /// the frames in order, some at a time. No more memory is taken than a few of them need, whatever the clip's length,
    /// if `windows` cut it. The values are those of [`Autoencoder::decode_clip`] to the bit.
    ///
    /// `emit` runs on the caller's thread between two parts of the work; the work waits for it, and an error of it ends
    /// the work and is returned.
    ///
    /// # Errors
    /// Shape or scaling do not fit the model, memory is refused, the run was cancelled, or `emit` failed.
    #[allow(clippy::too_many_arguments)] // what to decode, how, and who takes it
    pub fn decode_frames(
        &self,
        latents: Vec<f32>,
        shape: [usize; 5],
        scaling: &Scaling,
        windows: Windows,
        precision: Precision,
        control: &Control,
        emit: &mut dyn FnMut(Frames) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let latents = self.model_latents(latents, shape, scaling)?;
        let how = (precision, Delivery::FRAMES);
        self.run_clips(Operation::Decode, latents, shape, windows, how, control, emit)
    }

    /// `latents` in the model's own space.
    fn model_latents(
        &self,
        mut latents: Vec<f32>,
        shape: [usize; 5],
        scaling: &Scaling,
    ) -> Result<Vec<f32>, EngineError> {
        self.clip_output(Operation::Decode, shape)?;
        check_length(&latents, shape)?;
        self.model.latent_space.to_model(&mut latents, flat(shape), scaling)?;
        Ok(latents)
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
        self.clip_output(Operation::Encode, shape)?;
        check_length(&pixels, shape)?;
        let moments = self.run_whole(Operation::Encode, pixels, shape, windows, precision, control)?;
        let [_, _, frames, height, width] = moments.shape;
        let (values, drawn) = self.draw(moments.values, flat(moments.shape), draw, scaling)?;
        Ok(Clip { values, shape: [drawn[0], drawn[1], frames, height, width] })
    }

    /// All frames of all clips together.
    pub(crate) fn run_whole(
        &self,
        operation: Operation,
        values: Vec<f32>,
        shape: [usize; 5],
        windows: Windows,
        precision: Precision,
        control: &Control,
    ) -> Result<Part, EngineError> {
        let output = self.clip_output(operation, shape)?;
        let at_once = windows::is_handed_on_at_once(shape, windows, self.scale(operation, windows)?);
        let mut whole = Part { values: Vec::new(), shape: output };
        if !at_once {
            whole = Part::zeroed(output)?;
        }
        let how = (precision, Delivery::Whole);
        self.run_clips(operation, values, shape, windows, how, control, &mut |frames| {
            if at_once {
                whole.values = frames.values;
                return Ok(());
            }
            whole.put_frames(&frames)
        })?;
        Ok(whole)
    }

    /// One clip of the batch after the other.
    #[allow(clippy::too_many_arguments)] // what to run, how, and who takes it
    pub(crate) fn run_clips(
        &self,
        operation: Operation,
        mut values: Vec<f32>,
        whole: [usize; 5],
        windows: Windows,
        (precision, delivery): (Precision, Delivery),
        control: &Control,
        emit: &mut dyn FnMut(Frames) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let scale = self.scale(operation, windows)?;
        let [batch, channels, frames, height, width] = whole;
        let shape = [1, channels, frames, height, width];
        let in_tiles = scale.cut_pictures(shape).is_some();
        let mut plans: HashMap<Cut, Arc<Plan>> = HashMap::new();
        let mut progress = Progress { done_flops: 0, total_flops: 0, step: 0, steps: 0 };
        let parts = self.planned_parts(operation, whole, windows, precision, delivery)?;
        for (plan, PartOfWork { cut, count, .. }) in parts {
            let flops = plan.summary().flops.saturating_mul((count * batch) as u64);
            progress.total_flops = progress.total_flops.saturating_add(flops);
            progress.steps += plan.steps.len() * count * batch;
            plans.insert(cut, plan);
        }
        let reads_weights = plans.values().any(|plan| plan.reads_weights);
        let program = self.program(operation, frames, reads_weights)?;
        let (mut history, mut last): (_, Option<Cut>) = (History::new(), None);
        for sample in 0..batch {
            // The only sample is not copied.
            let length = values.len() / batch;
            let input = match batch {
                1 => std::mem::take(&mut values),
                _ => values[sample * length..][..length].to_vec(),
            };
            let mut first = 0;
            windows::run(
                &Part { values: input, shape },
                windows,
                scale,
                &mut |part, start| {
                    let Some(plan) = plans.get(&(part.shape, start)) else {
                        unreachable!("a clip is cut into the parts that were planned")
                    };
                    // The memory of a smaller part would stay beside that of a larger one.
                    if last.replace((part.shape, start)).is_some_and(|last| last != (part.shape, start)) {
                        memory::give_back_freed();
                    }
                    let control = control.of_part(progress);
                    let values = if scale.streams && windows.frames {
                        if start == Start::Clip {
                            history = History::new();
                        }
                        program.run_part(plan, &part.values, &mut history, &control)?
                    } else {
                        program.run(plan, &part.values, &control)?
                    };
                    // What comes between two parts is planned without it.
                    drop(self.engine.take_spare(Duration::ZERO));
                    progress.done_flops += plan.summary().flops;
                    progress.step += plan.steps.len();
                    let [batch, channels, height, width] = plan.output;
                    Ok(Part { values, shape: [batch, channels, plan.frames[1], height, width] })
                },
                &mut |Part { mut values, shape: [_, channels, frames, height, width] }| {
                    self.limit_pixels(operation, in_tiles, &mut values);
                    let shape = [channels, frames, height, width];
                    emit(Frames { sample, first, values, shape })?;
                    first += frames;
                    Ok(())
                },
            )?;
        }
        Ok(())
    }

    /// The shape of what `shape` becomes, if the model takes it.
    pub(crate) fn clip_output(
        &self,
        operation: Operation,
        shape: [usize; 5],
    ) -> Result<[usize; 5], EngineError> {
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
        output_shape(self.graph(operation, frames)?, shape, Start::Clip)
    }

    pub(crate) fn scale(&self, operation: Operation, windows: Windows) -> Result<Scale, EngineError> {
        // Of single frames there are no parts.
        let graph = self.graph(operation, 2);
        let scale = Scale {
            operation,
            space: self.model.spatial_factor(),
            time: self.model.temporal_factor().unwrap_or(1),
            streams: graph.is_ok_and(Graph::is_causal),
            patch: self.model.patch_size(),
            tiles: None,
        };
        let tiles = windows.tiles.map(|sizes| Tiles::new(&self.model, scale, sizes)).transpose()?;
        Ok(Scale { tiles, ..scale })
    }
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
