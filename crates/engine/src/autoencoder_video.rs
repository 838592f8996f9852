//! Clips through an [`Autoencoder`]: shapes have frames, and a [`Windows`] says how much is run at once. Pictures and the
//! life of the programs are in [`crate::autoencoder`].

use std::collections::HashMap;
use std::sync::Arc;

use remote_vae_model::{Graph, Start};
use remote_vae_wire::{Operation, Scaling};

use crate::plan::output_shape;
use crate::tiles::Tiles;
use crate::walk::{self, Cost, Taken};
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
        self.plan_parts(Operation::Decode, latents, windows, precision, Receiver::Puts)
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
        self.plan_parts(Operation::Decode, latents, windows, precision, Receiver::Streams)
    }

    /// The plans of the parts that a clip of `shape` is cut into, and how many there are of each in one clip.
    ///
    /// # Errors
    /// The shape does not fit the model, or the model lacks that half.
    pub fn plan_clip_parts(
        &self,
        operation: Operation,
        shape: [usize; 5],
        windows: Windows,
        precision: Precision,
    ) -> Result<Vec<(Arc<Plan>, usize)>, EngineError> {
        self.clip_output(operation, shape)?;
        self.clip_parts(operation, shape, windows)?
            .into_iter()
            .map(|(cut, count)| {
                Ok((self.planned(operation, shape[2], cut, (precision, Delivery::Whole))?, count))
            })
            .collect()
    }

    /// What a clip of `shape` is cut into, and how many there are of each.
    pub(crate) fn clip_parts(
        &self,
        operation: Operation,
        [_, channels, frames, height, width]: [usize; 5],
        windows: Windows,
    ) -> Result<Vec<(Cut, usize)>, EngineError> {
        Ok(windows::parts([1, channels, frames, height, width], windows, self.scale(operation, windows)?))
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
        self.plan_parts(Operation::Encode, pixels, windows, precision, Receiver::Puts)
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
        self.run_clips(Operation::Decode, latents, shape, windows, precision, control, emit)
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
        self.run_clips(operation, values, shape, windows, precision, control, &mut |frames| {
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
        [_, channels, frames, height, width]: [usize; 5],
        windows: Windows,
        precision: Precision,
        control: &Control,
        emit: &mut dyn FnMut(Frames) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let scale = self.scale(operation, windows)?;
        let shape = [1, channels, frames, height, width];
        let in_tiles = scale.cut_pictures(shape).is_some();
        let batch = values.len() / shape.iter().product::<usize>().max(1);
        let mut plans: HashMap<Cut, Arc<Plan>> = HashMap::new();
        let mut progress = Progress { done_flops: 0, total_flops: 0, step: 0, steps: 0 };
        for (cut, count) in windows::parts(shape, windows, scale) {
            let plan = self.planned(operation, frames, cut, (precision, Delivery::Whole))?;
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

    /// What running an input of `shape` in parts costs.
    pub(crate) fn plan_parts(
        &self,
        operation: Operation,
        shape: [usize; 5],
        windows: Windows,
        precision: Precision,
        receiver: Receiver,
    ) -> Result<PlanSummary, EngineError> {
        let output = self.clip_output(operation, shape)?;
        let [batch, _, frames, ..] = shape;
        let picture = |[batch, channels, _, height, width]: [usize; 5]| [batch, channels, height, width];
        let mut whole = PlanSummary {
            input: picture(shape),
            output: picture(output),
            frames: [frames, output[2]],
            ..PlanSummary::default()
        };
        let [input_bytes, output_bytes] = tensor_bytes(&whole);
        let (scale, mut costs) = (self.scale(operation, windows)?, HashMap::new());
        let (mut step_weight_bytes, mut left_bytes) = (0, 0);
        for (cut, count) in self.clip_parts(operation, shape, windows)? {
            let plan = self.planned(operation, frames, cut, (precision, Delivery::Whole))?;
            step_weight_bytes = step_weight_bytes.max(plan.step_weight_bytes);
            let plan = plan.summary();
            let flops = plan.flops.saturating_mul((count * batch) as u64);
            whole.flops = whole.flops.saturating_add(flops);
            whole.steps += plan.steps * count;
            // What one part must do without, all do without.
            whole.reads_weights |= plan.reads_weights;
            (whole.weight_bytes, whole.load_bytes) = (plan.weight_bytes, plan.load_bytes);
            let [input, output] = tensor_bytes(&plan);
            costs.insert(cut, Cost { work: plan.activation_bytes, output });
            // The part's own input comes and goes with it; what it leaves lies beside it if others follow.
            let left = if scale.streams && windows.frames && frames > 1 { plan.history_bytes } else { 0 };
            left_bytes = left_bytes.max(left);
            whole.history_bytes = whole.history_bytes.max(plan.history_bytes);
            whole.probe_bytes = plan.probe_bytes;
            whole.activation_bytes = whole.activation_bytes.max(plan.activation_bytes + input + left);
        }
        if whole.reads_weights {
            whole.weight_bytes = step_weight_bytes;
        }
        // Of several clips one is copied out, and what cannot become the result as it is has a place from the beginning.
        let copied = if batch > 1 { input_bytes / batch } else { 0 };
        let (taken, place) = match receiver {
            Receiver::Streams => (Taken::WhileOthersRun, 0),
            Receiver::Puts if windows::is_handed_on_at_once(shape, windows, scale) => (Taken::AtOnce, 0),
            Receiver::Puts => (Taken::AtOnce, output_bytes),
        };
        let beside = input_bytes.saturating_add(copied).saturating_add(place);
        let walked = walk::peak(shape, windows, scale, output[1], taken, &|cut| costs[&cut]);
        let running = walked.saturating_add(left_bytes);
        // Weights that are held are read before anything runs.
        let at_most = match whole.reads_weights {
            true => running.max(whole.probe_bytes).saturating_add(whole.load_bytes),
            false => running.max(whole.probe_bytes).max(whole.load_bytes),
        };
        whole.peak_bytes = whole.weight_bytes.saturating_add(beside).saturating_add(at_most);
        Ok(whole)
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

/// Who takes the frames of a run in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Receiver {
    /// Puts them where they belong in the result.
    Puts,
    /// Makes something else of them while the next ones are computed.
    Streams,
}

/// Bytes of input and output.
fn tensor_bytes(summary: &PlanSummary) -> [usize; 2] {
    let bytes = |shape: [usize; 4], frames: usize| {
        shape.iter().product::<usize>().saturating_mul(frames).saturating_mul(size_of::<f32>())
    };
    [bytes(summary.input, summary.frames[0]), bytes(summary.output, summary.frames[1])]
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
