//! The steps of a plan on the kernels: one operation after the other, or strip by strip.

use std::collections::HashMap;
use std::ops::Range;

use remote_vae_kernels::convolution::{
    Arithmetic, Convolution, Destination, Epilogue, Frames, Geometry, Prologue, Residual,
};
use remote_vae_kernels::layout::blocks;
use remote_vae_kernels::linear_attention::linear_attention;
use remote_vae_kernels::norm::{self, GroupNorm, Sums};
use remote_vae_kernels::rearrange;
use remote_vae_kernels::rms_norm::{RmsNorm, rms_norm};
use remote_vae_kernels::strip::{Strip, copy_rows};
use remote_vae_kernels::{Activation, Isa, Pool, Tensor, elementwise};
use remote_vae_model::Start;

use super::{CpuProgram, Layer, Layers, Output, place};
use crate::arena::{Region, Views};
use crate::attend::Attend;
use crate::calibration::Calibration;
use crate::fusion::Fused;
use crate::plan::{PlacedOperation, Plan, Step};
use crate::shapes::geometry;
use crate::strips::Slice;
use crate::{Control, EngineError, History, Progress, frames};

#[cfg(test)]
thread_local! {
    /// Rows that norm statistics have read, because nobody took their moments.
    pub(crate) static ROWS_READ: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Moments of tensors whose norm statistics come next, by node.
pub(crate) type Moments = HashMap<usize, Sums>;

/// What a step needs to know of the run that it belongs to.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    pub plan: &'a Plan,
    /// Which one of the batch it is about.
    pub sample: usize,
    /// Those that the step works with.
    pub layers: &'a Layers<'a>,
    pub calibration: Option<&'a Calibration>,
    pub control: &'a Control,
    /// Before the step.
    pub progress: Progress,
}

impl CpuProgram {
    /// What the convolution of `operation` reads, with the frames `history` before its input.
    pub(crate) fn operands<'a>(
        &'a self,
        plan: &Plan,
        layers: &'a Layers<'_>,
        operation: &PlacedOperation,
        views: &'a Views<'_>,
        history: &'a [Tensor<'a>],
    ) -> Operands<'a> {
        let (Fused::Convolution { node, source, .. }, reads) = (&operation.fused, &operation.places.reads)
        else {
            unreachable!("only convolutions have these operands")
        };
        let Layer::Convolution { convolution, time } = layers.of(*node) else {
            unreachable!("the plan belongs to another graph")
        };
        let Some(geometry) = geometry(&self.graph, &self.graph.nodes[*node]) else {
            unreachable!("convolution nodes have a geometry")
        };
        let affine = source.norm.map(|_| halves(views.read(reads[1].0)));
        let prologue = Prologue { affine, activation: source.activation, upsample: source.upsample };
        let [frames, height, width] = plan.sizes[source.base];
        let clip = frames::clip(frames, source.doubles_frames, time, plan.start, history.len());
        let frames = Frames { clip, input: views.tensor(reads[0].0), history };
        Operands { isa: self.isa, geometry, convolution, frames, size: [height, width], prologue }
    }

    /// Runs one step. Rows of the graph's result that it finishes go to `output`.
    pub(crate) fn step(
        &self,
        run: Run<'_>,
        step: &Step,
        history: Option<&mut History>,
        moments: &mut Moments,
        arena: &mut [f32],
        output: &mut Output<'_>,
    ) -> Result<(), EngineError> {
        let Run { plan, sample, control, progress, .. } = run;
        let Some(slices) = &step.slices else {
            control.check()?;
            self.operation(run, &step.operations[0], None, history, moments, arena)?;
            return control.check();
        };
        // Whether the scratch still holds the transformed weights of an earlier strip.
        let mut weights_ready = vec![false; step.operations.len()];
        for (index, Slice { member, rows, recalled }) in slices.iter().enumerate() {
            control.check()?;
            let operation = &step.operations[*member];
            if *recalled {
                self.copy_head(plan, operation, rows.clone(), true, arena);
            } else {
                self.operation(run, operation, Some((rows, weights_ready[*member])), None, moments, arena)?;
                weights_ready[*member] = operation.places.own_scratch;
                self.copy_head(plan, operation, rows.clone(), false, arena);
            }
            if operation.places.leaves {
                let ring = (&*place(arena, operation.places.output), operation.places.output_rows);
                output.take(plan, sample, ring, rows.clone())?;
            }
            // About as much of the step's work as of its slices.
            let done = step.flops / slices.len() as u64 * index as u64;
            let progress = Progress { done_flops: progress.done_flops.saturating_add(done), ..progress };
            self.report(plan, control, progress)?;
        }
        control.check()
    }

    /// Copies those of `rows` that are kept for other groups from there (`recalled`) or to there.
    fn copy_head(
        &self,
        plan: &Plan,
        PlacedOperation { fused, places }: &PlacedOperation,
        rows: Range<usize>,
        recalled: bool,
        arena: &mut [f32],
    ) {
        let (Fused::Convolution { node, .. }, Some((head, kept))) = (fused, places.head) else { return };
        if rows.start >= kept {
            return;
        }
        let mut views = Views::new(arena, &[places.output, head]);
        let (ring, head) = ((places.output, places.output_rows), (head, kept));
        let ((from, from_rows), (to, to_rows)) = if recalled { (head, ring) } else { (ring, head) };
        let to = (views.take_tensor(to), to_rows);
        let rows = rows.start..rows.end.min(kept);
        copy_rows(&self.pool, (views.tensor(from), from_rows), to, plan.sizes[*node][2], rows);
    }

    /// Runs one operation, as a whole or some rows of it, for which its transformed weights may be there already.
    fn operation(
        &self,
        Run { plan, layers, calibration, control, .. }: Run<'_>,
        operation: &PlacedOperation,
        strip: Option<(&Range<usize>, bool)>,
        history: Option<&mut History>,
        moments: &mut Moments,
        arena: &mut [f32],
    ) -> Result<(), EngineError> {
        let (pool, isa) = (&*self.pool, self.isa);
        let places = &operation.places;
        let reads: Vec<Region> = places.reads.iter().map(|(region, _)| *region).collect();
        let mut views = Views::new(arena, &[&reads[..], &[places.output, places.scratch]].concat());
        let in_place = |region: Region| region == places.output;
        let elsewhere = |region: Region| (!in_place(region)).then_some(region);
        let pixels = |node: usize| plan.sizes[node][1] * plan.sizes[node][2];
        let frame_groups = |node: usize| blocks(plan.channels[node]) * pixels(node);
        match &operation.fused {
            Fused::Convolution { node, residual, activation, .. } => {
                let scratch = views.take(places.scratch);
                let output = views.take_tensor(places.output);
                let before = history.as_deref().map(|history| history.of(*node)).unwrap_or_default();
                let operands = self.operands(plan, layers, operation, &views, &before);
                let (residual, residual_rows) = match residual.and_then(|_| places.reads.last().copied()) {
                    None => (Residual::None, places.output_rows),
                    Some((region, rows)) if in_place(region) => (Residual::InPlace, rows),
                    Some((region, rows)) => (Residual::Tensor(views.tensor(region)), rows),
                };
                let epilogue = Epilogue { residual, activation: *activation };
                let arithmetic = calibration.map_or(Arithmetic::Float32, |found| found.arithmetic(*node));
                let [frames, height, width] = plan.sizes[*node];
                let rows = strip.map_or(0..height, |(rows, _)| rows.clone());
                let table_len =
                    |node: usize| plan.patches[node].table_len(plan.channels[node], rows.clone(), width);
                let tables_len = places.moments.map_or(0, |node| frames * table_len(node));
                let (scratch, tables) = scratch.split_at_mut(scratch.len() - tables_len);
                let taken = places.moments.map(|_| &mut *tables);
                let destination = Destination { output, moments: taken };
                match strip {
                    None => operands.run(pool, arithmetic, epilogue, scratch, destination),
                    Some((_, weights_ready)) => {
                        let strip = Strip {
                            rows: rows.clone(),
                            input_rows: places.reads[0].1,
                            output_rows: places.output_rows,
                            residual_rows,
                            weights_ready,
                        };
                        operands.run_strip(pool, arithmetic, epilogue, &strip, scratch, destination);
                    }
                }
                if let Some(node) = places.moments {
                    let new = || Sums::new(plan.channels[node], [height, width], plan.patches[node]);
                    let sums = moments.entry(node).or_insert_with(new);
                    for table in tables.chunks_exact(table_len(node)) {
                        // After rows that an earlier group kept, whoever wants the statistics reads them itself.
                        if sums.seen()[1] == rows.start {
                            sums.add_table(isa, pool, table, rows.clone());
                        }
                    }
                }
                let clip = operands.frames.clip;
                if let Some(history) = history {
                    history.keep(*node, &clip, views.tensor(reads[0]))?;
                }
            }
            Fused::NormStatistics { node, input } => {
                let Layer::Norm { groups, epsilon, weight, bias } = layers.of(*node) else {
                    unreachable!("the plan belongs to another graph")
                };
                let norm = GroupNorm { groups: *groups, epsilon: *epsilon, weight, bias };
                let (scale, shift) = views.take(places.output).split_at_mut(places.output.len() / 2);
                let values = views.tensor(reads[0]);
                let ([frames, height, width], patches) = (plan.sizes[*input], plan.patches[*input]);
                let new = || Sums::new(plan.channels[*input], [height, width], patches);
                // What was not seen as it was made is read.
                let mut sums = moments.remove(input).unwrap_or_else(new);
                let end = strip.map_or(height, |(rows, _)| patches.whole_rows(rows.end, height));
                let len = values.groups() / frames;
                while let [frame, seen] = sums.seen()
                    && frame < frames
                    && seen < end
                {
                    sums.add(isa, pool, values.part(frame * len, len), seen..end);
                    #[cfg(test)]
                    ROWS_READ.set(ROWS_READ.get() + end - seen);
                }
                if end == height {
                    sums.table(norm, scale, shift);
                } else {
                    moments.insert(*input, sums);
                }
            }
            Fused::Copy { input } => {
                let Some((rows, _)) = strip else { unreachable!("rows are kept in strips only") };
                let width = plan.sizes[*input][2];
                let output = (views.take_tensor(places.output), places.output_rows);
                copy_rows(pool, (views.tensor(reads[0]), places.reads[0].1), output, width, rows.clone());
            }
            Fused::NormApply { input, .. } => {
                let output = views.take_tensor(places.output);
                let table = halves(views.read(reads[1]));
                let values = views.tensor(reads[0]);
                let len = frame_groups(*input);
                for (frame, output) in output.parts(len).into_iter().enumerate() {
                    let values = values.part(frame * len, len);
                    norm::apply(isa, pool, values, pixels(*input), table, Activation::None, output);
                }
            }
            Fused::RmsNorm { node, input, activation } => {
                let Layer::RmsNorm { weight, bias, epsilon } = layers.of(*node) else {
                    unreachable!("the plan belongs to another graph")
                };
                let norm = RmsNorm { weight, bias: bias.as_deref(), epsilon: *epsilon };
                let output = views.take_tensor(places.output);
                let values = views.tensor(reads[0]);
                let len = frame_groups(*input);
                for (frame, output) in output.parts(len).into_iter().enumerate() {
                    let values = values.part(frame * len, len);
                    rms_norm(isa, pool, values, pixels(*input), norm, *activation, output);
                }
            }
            Fused::GroupedConvolution { node, input, activation } => {
                let Layer::Grouped(convolution) = layers.of(*node) else {
                    unreachable!("the plan belongs to another graph")
                };
                let output = views.take_tensor(places.output);
                let values = views.tensor(reads[0]);
                let ([_, height, width], len) = (plan.sizes[*input], frame_groups(*input));
                for (frame, output) in output.parts(len).into_iter().enumerate() {
                    let values = values.part(frame * len, len);
                    convolution.run(isa, pool, values, [height, width], *activation, output);
                }
            }
            Fused::LinearAttention { head, inputs } => {
                let output = views.take_tensor(places.output);
                let (channels, pixels, len) =
                    (plan.channels[inputs[0]], pixels(inputs[0]), frame_groups(inputs[0]));
                let made = blocks(channels * inputs.len() / 3) * pixels;
                for (frame, output) in output.parts(made).into_iter().enumerate() {
                    let operands: Vec<Tensor<'_>> =
                        reads.iter().map(|read| views.tensor(*read).part(frame * len, len)).collect();
                    linear_attention(isa, pool, &operands, channels, *head, pixels, output);
                }
            }
            Fused::Attention { node, reach, inputs } => {
                let (scratch, output) = (views.take(places.scratch), views.take_tensor(places.output));
                let operands = [0, 1, 2].map(|index| views.tensor(reads[index]));
                let arithmetic = calibration.map_or(Arithmetic::Float32, |found| found.arithmetic(*node));
                let (channels, size) = (plan.channels[inputs[0]], plan.sizes[inputs[0]]);
                let attend = Attend::new(*reach, channels, size, arithmetic);
                attend.run(isa, pool, operands, scratch, output, control);
            }
            Fused::Map { map, input } => {
                let output = views.take_tensor(places.output);
                let values = elsewhere(reads[0]).map(|region| views.tensor(region));
                let (shape, len) = ([plan.channels[*input], pixels(*input)], frame_groups(*input));
                for (frame, output) in output.parts(len).into_iter().enumerate() {
                    let values = values.map(|values| values.part(frame * len, len));
                    elementwise::map(isa, pool, *map, shape, values, output);
                }
            }
            Fused::Upsample { factor, doubles_frames, input } => {
                let output = views.take_tensor(places.output);
                let values = views.tensor(reads[0]);
                let ([_, height, width], len) = (plan.sizes[*input], frame_groups(*input));
                for (frame, output) in output.parts(len * factor * factor).into_iter().enumerate() {
                    let from = if *doubles_frames { frame.div_ceil(2) } else { frame };
                    let values = values.part(from * len, len);
                    elementwise::upsample_nearest(isa, pool, values, [height, width], *factor, output);
                }
            }
            Fused::FirstFrame { inputs } => {
                let output = views.take_tensor(places.output);
                let [first, others] = [reads[0], reads[1]];
                let len = frame_groups(inputs[0]);
                for (frame, mut output) in output.parts(len).into_iter().enumerate() {
                    if frame == 0 && plan.start == Start::Clip {
                        output.copy_from(views.tensor(first).part(0, len));
                    } else if let Some(others) = elsewhere(others) {
                        output.copy_from(views.tensor(others).part(frame * len, len));
                    }
                }
            }
            Fused::DoubleFrames { inputs } => {
                let output = views.take_tensor(places.output);
                let operands = [0, 1, 2].map(|index| views.tensor(reads[index]));
                let len = frame_groups(inputs[0]);
                for (frame, mut output) in output.parts(len).into_iter().enumerate() {
                    let [from, half] = frames::origin(frame, 2, plan.start);
                    let is_first = frame == 0 && plan.start == Start::Clip;
                    let operand = operands[if is_first { 0 } else { half + 1 }];
                    output.copy_from(operand.part(from * len, len));
                }
            }
            Fused::Expand { cell, repeats, input } => {
                let output = views.take_tensor(places.output);
                let values = views.tensor(reads[0]);
                let ([_, height, width], len) = (plan.sizes[*input], frame_groups(*input));
                let channels = plan.channels[*input] * repeats / cell.elements();
                let made = blocks(channels) * height * width * cell.space * cell.space;
                for (frame, output) in output.parts(made).into_iter().enumerate() {
                    let [from, part] = frames::origin(frame, cell.time, plan.start);
                    let values = values.part(from * len, len);
                    let (cell, size) = (frames::cell(*cell), [height, width]);
                    rearrange::expand(isa, pool, cell, part, *repeats, values, channels, size, output);
                }
            }
            Fused::Collect { cell, mean, input } => {
                let output = views.take_tensor(places.output);
                let values = views.tensor(reads[0]);
                let ([_, height, width], len) = (plan.sizes[*input], frame_groups(*input));
                let (channels, size) = (plan.channels[*input], [height / cell.space, width / cell.space]);
                let made = blocks(channels * cell.elements() / mean) * size[0] * size[1];
                for (frame, output) in output.parts(made).into_iter().enumerate() {
                    let source = |part| frames::source(frame, part, cell.time, plan.start);
                    let frames: Vec<_> = (0..cell.time)
                        .map(|part| source(part).map(|from| values.part(from * len, len)))
                        .collect();
                    rearrange::collect(
                        isa,
                        pool,
                        frames::cell(*cell),
                        *mean,
                        &frames,
                        channels,
                        size,
                        output,
                    );
                }
            }
            Fused::Add { .. } | Fused::Multiply { .. } => {
                let output = views.take_tensor(places.output);
                let (first, second) =
                    if in_place(reads[1]) { (reads[1], reads[0]) } else { (reads[0], reads[1]) };
                let first = elsewhere(first).map(|region| views.tensor(region));
                let is_sum = matches!(&operation.fused, Fused::Add { .. });
                let combine = if is_sum { elementwise::add } else { elementwise::multiply };
                combine(isa, pool, first, views.tensor(second), output);
            }
        }
        Ok(())
    }
}

/// What a convolution reads, beside a residual.
pub(crate) struct Operands<'a> {
    isa: Isa,
    pub(crate) geometry: Geometry,
    convolution: &'a Convolution,
    frames: Frames<'a>,
    size: [usize; 2],
    prologue: Prologue<'a>,
}

impl Operands<'_> {
    /// Computes into `output`; `scratch` may be longer than needed.
    pub(crate) fn run(
        &self,
        pool: &Pool,
        arithmetic: Arithmetic,
        epilogue: Epilogue<'_>,
        scratch: &mut [f32],
        destination: Destination<'_>,
    ) {
        let Operands { convolution, frames, size, prologue, .. } = *self;
        let scratch =
            &mut scratch[..Convolution::scratch_len(self.isa, &self.geometry, prologue.upsample, arithmetic)];
        convolution.run_clip(pool, arithmetic, frames, size, prologue, epilogue, scratch, destination);
    }

    /// As [`Operands::run`], for some rows.
    fn run_strip(
        &self,
        pool: &Pool,
        arithmetic: Arithmetic,
        epilogue: Epilogue<'_>,
        strip: &Strip,
        scratch: &mut [f32],
        destination: Destination<'_>,
    ) {
        let Operands { convolution, frames, size, prologue, .. } = *self;
        let scratch =
            &mut scratch[..Convolution::scratch_len(self.isa, &self.geometry, prologue.upsample, arithmetic)];
        convolution.run_strip(
            pool,
            arithmetic,
            frames,
            size,
            prologue,
            epilogue,
            strip,
            scratch,
            destination,
        );
    }
}

fn halves(table: &[f32]) -> (&[f32], &[f32]) {
    table.split_at(table.len() / 2)
}
