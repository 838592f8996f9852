//! A model bound to an engine: what the server and the program use.

use std::sync::{Arc, Mutex, PoisonError};

use remote_vae_model::{Checkpoint, Graph, Model, Start, WeightSource};
use remote_vae_wire::{Operation, Scaling};

use crate::plans::{Key, Plans};
use crate::still::{self, SummedTaps};
use crate::windows::Cut;
use crate::{
    Beside, Calibration, Control, Delivery, Engine, EngineError, Plan, PlanRequest, PlanSummary, Precision,
    Program, Rows, Windows, memory,
};

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
    /// The distribution itself: means, then as many log-variances, `[batch, 2·channels, height, width]`, in the model's
    /// own space.
    Moments,
}

/// A model bound to an engine. Weights are read when an operation is first used, or by [`Autoencoder::warm`].
pub struct Autoencoder {
    pub(crate) model: Model,
    pub(crate) engine: Arc<dyn Engine>,
    decoder: Half,
    encoder: Half,
    /// Of single pictures, where a model of clips has less to do for them.
    still_decoder: Still,
    still_encoder: Still,
    plans: Plans,
}

/// A graph of single pictures, if it is another, and its program.
struct Still {
    graph: Option<Graph>,
    half: Half,
}

impl Still {
    fn new(clip: Option<&Graph>) -> Still {
        Still { graph: clip.and_then(still::graph), half: Mutex::default() }
    }
}

type Half = Mutex<Programs>;

/// What runs a half.
#[derive(Default)]
struct Programs {
    loaded: Option<Loaded>,
    /// What `fast` was found to be like in a program that is gone. It holds for each that follows.
    calibration: Option<Arc<Calibration>>,
}

impl Programs {
    fn calibration(&self) -> Option<Arc<Calibration>> {
        let loaded = self.loaded.as_ref().and_then(|loaded| loaded.program.calibration());
        loaded.or_else(|| self.calibration.clone())
    }

    /// Takes the program out.
    fn take(&mut self) -> Option<Loaded> {
        self.calibration = self.calibration();
        self.loaded.take()
    }
}

struct Loaded {
    program: Arc<dyn Program>,
    /// Whether it reads its weights for each step, and holds none.
    reads_weights: bool,
}

impl Loaded {
    /// Whether work goes on that has no room for weights that are held.
    fn is_read_by_steps_now(&self) -> bool {
        self.reads_weights && Arc::strong_count(&self.program) > 1
    }
}

/// How something is planned.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub precision: Precision,
    pub delivery: Delivery,
    pub beside: Option<Beside>,
    /// As [`PlanRequest::seeks_largest`].
    pub seeks_largest: bool,
}

/// Weights that no further work will use.
pub struct Released(Vec<Arc<dyn Program>>);

impl Released {
    /// Their bytes.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|program| program.weight_bytes()).sum()
    }
}

impl Autoencoder {
    /// Binds `model` to `engine`; reads no weights yet.
    pub fn new(model: Model, engine: Arc<dyn Engine>) -> Autoencoder {
        let (still_decoder, still_encoder) = (Still::new(model.decoder()), Still::new(model.encoder()));
        let (decoder, encoder) = (Mutex::default(), Mutex::default());
        let plans = Plans::default();
        Autoencoder { model, engine, decoder, encoder, still_decoder, still_encoder, plans }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The engine.
    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// Reads the weights of one half and prepares `precision` now. Where the memory budget has no room for them beside a small
    /// picture, none are held.
    ///
    /// # Errors
    /// The checkpoint lacks that half, reading fails, memory is refused, or the budget is too small even for that picture.
    pub fn warm(&self, operation: Operation, precision: Precision) -> Result<(), EngineError> {
        const SIDE: usize = 8;
        let side = match operation {
            Operation::Decode => SIDE,
            Operation::Encode => SIDE * self.model.spatial_factor(),
        };
        let channels = self.graph(operation, usize::MAX)?.input_channels();
        let small = ([1, channels, 1, side, side], Start::Clip);
        let way = Way { precision, delivery: Delivery::Whole, beside: None, seeks_largest: true };
        let plan = self.planned(operation, usize::MAX, small, way)?;
        self.program(operation, usize::MAX, plan.reads_weights)?.prepare(precision)
    }

    /// How `fast` compares with `exact` in one half, once that half was prepared for it or ran in it.
    pub fn calibration(&self, operation: Operation) -> Option<Arc<Calibration>> {
        self.half(operation).lock().unwrap_or_else(PoisonError::into_inner).calibration()
    }

    /// What decoding latents `[batch, channels, height, width]` in `precision` costs.
    ///
    /// # Errors
    /// The shape does not fit the model, or there is no decoder.
    pub fn plan_decode(&self, latents: [usize; 4], precision: Precision) -> Result<PlanSummary, EngineError> {
        Ok(self.plan(Operation::Decode, latents, precision)?.summary())
    }

    /// The plan of [`Autoencoder::decode_rows`] for latents `[batch, channels, height, width]`, beside which a budget has room
    /// for `kept_per_pixel` bytes that whoever takes the rows keeps for each pixel of one picture.
    ///
    /// # Errors
    /// The shape does not fit the model, or there is no decoder.
    pub fn plan_decode_rows(
        &self,
        latents: [usize; 4],
        precision: Precision,
        kept_per_pixel: usize,
    ) -> Result<Arc<Plan>, EngineError> {
        self.plan_picture(Operation::Decode, latents, (precision, Delivery::Rows { kept_per_pixel }))
    }

    /// What encoding pixels `[batch, channels, height, width]` in `precision` costs.
    ///
    /// # Errors
    /// The shape does not fit the model, or there is no encoder.
    pub fn plan_encode(&self, pixels: [usize; 4], precision: Precision) -> Result<PlanSummary, EngineError> {
        Ok(self.plan(Operation::Encode, pixels, precision)?.summary())
    }

    /// Decodes `latents` (`[batch, channels, height, width]`, in the space that `scaling` names) in `precision`.
    ///
    /// # Errors
    /// Shape or scaling do not fit the model, memory is refused, or the run was cancelled.
    pub fn decode(
        &self,
        mut latents: Vec<f32>,
        shape: [usize; 4],
        scaling: &Scaling,
        precision: Precision,
        control: &Control,
    ) -> Result<Image, EngineError> {
        let plan = self.plan(Operation::Decode, shape, precision)?;
        let program = self.decoder_for(&plan, &mut latents, scaling)?;
        let mut pixels = program.run(&plan, &latents, control)?;
        self.limit_pixels(Operation::Decode, false, &mut pixels);
        Ok(Image { pixels, shape: plan.output })
    }

    /// As [`Autoencoder::decode`] by a plan of [`Autoencoder::plan_decode_rows`], but the rows of the pictures go to `sink` as
    /// they are finished: all of each sample, from the top, each once. An error of `sink` ends the work.
    ///
    /// # Errors
    /// As [`Autoencoder::decode`], and those of `sink`.
    pub fn decode_rows(
        &self,
        plan: &Plan,
        mut latents: Vec<f32>,
        scaling: &Scaling,
        control: &Control,
        sink: &mut dyn FnMut(Rows<'_>) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let program = self.decoder_for(plan, &mut latents, scaling)?;
        program.run_rows(plan, &latents, control, &mut |rows| {
            self.limit_pixels(Operation::Decode, false, rows.values);
            sink(rows)
        })
    }

    /// Brings the latents of `plan` into the model's space, and gives what runs it.
    fn decoder_for(
        &self,
        plan: &Plan,
        latents: &mut [f32],
        scaling: &Scaling,
    ) -> Result<Arc<dyn Program>, EngineError> {
        check_length(latents, plan.input)?;
        self.model.latent_space.to_model(latents, plan.input, scaling)?;
        self.program(Operation::Decode, 1, plan.reads_weights)
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
        precision: Precision,
        control: &Control,
    ) -> Result<Latents, EngineError> {
        let plan = self.plan(Operation::Encode, shape, precision)?;
        check_length(pixels, shape)?;
        let moments = self.program(Operation::Encode, 1, plan.reads_weights)?.run(&plan, pixels, control)?;
        let (values, shape) = self.draw(moments, plan.output, draw, scaling)?;
        Ok(Latents { values, shape })
    }

    /// What `draw` asks for of the encoder's output, in the space that `scaling` names.
    pub(crate) fn draw(
        &self,
        output: Vec<f32>,
        shape: [usize; 4],
        draw: Draw,
        scaling: &Scaling,
    ) -> Result<(Vec<f32>, [usize; 4]), EngineError> {
        let yields_moments = self.model.encoder_yields_moments();
        let (mut latents, shape) = match draw {
            Draw::Moments if !yields_moments => {
                return Err(EngineError::NoDistribution { family: self.model.family.name() });
            }
            Draw::Moments if !matches!(scaling, Scaling::None | Scaling::Declined) => {
                return Err(EngineError::ScaledMoments);
            }
            Draw::Moments => return Ok((output, shape)),
            _ if !yields_moments => (output, shape),
            Draw::Mode => remote_vae_model::distribution::mode(&output, shape)?,
            Draw::Sample { seed } => remote_vae_model::distribution::sample(&output, shape, seed)?,
        };
        self.model.latent_space.from_model(&mut latents, shape, scaling)?;
        Ok((latents, shape))
    }

    /// The steps of decoding latents or encoding pixels of `shape` (`[batch, channels, height, width]`), and their cost.
    ///
    /// # Errors
    /// The shape does not fit the model, or the model lacks that half.
    pub fn plan(
        &self,
        operation: Operation,
        shape: [usize; 4],
        precision: Precision,
    ) -> Result<Arc<Plan>, EngineError> {
        self.plan_picture(operation, shape, (precision, Delivery::Whole))
    }

    fn plan_picture(
        &self,
        operation: Operation,
        shape: [usize; 4],
        how: (Precision, Delivery),
    ) -> Result<Arc<Plan>, EngineError> {
        if operation == Operation::Encode {
            let factor = self.model.spatial_factor();
            let [_, _, height, width] = shape;
            if !height.is_multiple_of(factor) || !width.is_multiple_of(factor) {
                return Err(EngineError::ImageSides { height, width, factor });
            }
        }
        let [batch, channels, height, width] = shape;
        let (precision, delivery) = how;
        let way = Way { precision, delivery, beside: None, seeks_largest: true };
        self.planned(operation, 1, ([batch, channels, 1, height, width], Start::Clip), way)
    }

    /// The plan of a part of a clip of `frames`, made now unless it is known.
    pub(crate) fn planned(
        &self,
        operation: Operation,
        frames: usize,
        (input, start): Cut,
        way: Way,
    ) -> Result<Arc<Plan>, EngineError> {
        let graph = self.graph(operation, frames)?;
        let make = |key: &Key, seeks_largest| {
            let Key { precision, delivery, beside, .. } = *key;
            let how = PlanRequest::whole(graph, input, precision);
            self.engine.plan_part(PlanRequest { start, delivery, beside, seeks_largest, ..how })
        };
        let key = self.plan_key(operation, frames, (input, start), way);
        self.plans.get_or_make(key, way.seeks_largest, make)
    }

    fn plan_key(&self, operation: Operation, frames: usize, (input, start): Cut, way: Way) -> Key {
        let still = self.still(operation, frames).is_some();
        let (Way { precision, delivery, beside, .. }, work_budget) = (way, self.engine.work_budget());
        Key { operation, still, input, start, precision, delivery, beside, work_budget }
    }

    /// The plans for an input `[batch, channels, frames, height, width]`, made now unless they are known; `windows` say how a
    /// clip, or a picture, is cut; `delivery` how the result is given: in rows means of a clip that frames are handed on and not
    /// kept. As long as they are held, nobody searches for them again.
    ///
    /// # Errors
    /// The shape does not fit the model, or the model lacks that half.
    pub fn plans(
        &self,
        operation: Operation,
        shape: [usize; 5],
        windows: Windows,
        precision: Precision,
        delivery: Delivery,
    ) -> Result<Vec<Arc<Plan>>, EngineError> {
        let [batch, channels, _, height, width] = shape;
        let cuts_pictures = self.scale(operation, windows)?.cut_pictures(shape).is_some();
        if self.model.temporal_factor().is_none() && !cuts_pictures {
            let picture = [batch, channels, height, width];
            return Ok(vec![self.plan_picture(operation, picture, (precision, delivery))?]);
        }
        let parts = self.plan_clip_parts(operation, shape, windows, precision, delivery)?;
        Ok(parts.into_iter().map(|(plan, _)| plan).collect())
    }

    /// Whether the plans for an input `[batch, channels, frames, height, width]` are known, so that what it costs is told
    /// without a search. `windows` and `delivery` are as in [`Autoencoder::plans`].
    pub fn is_planned(
        &self,
        operation: Operation,
        shape: [usize; 5],
        windows: Windows,
        precision: Precision,
        delivery: Delivery,
    ) -> bool {
        let frames = shape[2];
        // Of what is cut, that it is refused is not all that is to be told.
        let knows = |cut, delivery, beside| {
            let way = Way { precision, delivery, beside, seeks_largest: true };
            self.plans.knows(&self.plan_key(operation, frames, cut, way), way.seeks_largest)
        };
        if self.model.temporal_factor().is_none() && !self.is_cut(operation, shape, windows) {
            return knows((shape, Start::Clip), delivery, None);
        }
        // Tiles that are none, and shapes that do not fit, are refused without a search.
        self.clip_parts(operation, shape, windows, delivery).map_or(true, |parts| {
            parts.into_iter().all(|part| knows(part.cut, Delivery::Whole, Some(part.beside)))
        })
    }

    /// Clamps decoded pixels where the model says so; what is not a number stays so.
    pub(crate) fn limit_pixels(&self, operation: Operation, in_tiles: bool, values: &mut [f32]) {
        if let (Operation::Decode, Some(limit)) = (operation, self.model.pixel_limit(in_tiles)) {
            values.iter_mut().for_each(|value| *value = value.clamp(-limit, limit));
        }
    }

    /// The graph that runs clips of `frames`.
    pub(crate) fn graph(&self, operation: Operation, frames: usize) -> Result<&Graph, EngineError> {
        let graph = match operation {
            Operation::Decode => self.model.require_decoder()?,
            Operation::Encode => self.model.require_encoder()?,
        };
        Ok(self.still(operation, frames).and_then(|still| still.graph.as_ref()).unwrap_or(graph))
    }

    /// What runs single pictures, if that is another program.
    fn still(&self, operation: Operation, frames: usize) -> Option<&Still> {
        let still = match operation {
            Operation::Decode => &self.still_decoder,
            Operation::Encode => &self.still_encoder,
        };
        (frames == 1 && still.graph.is_some()).then_some(still)
    }

    fn half(&self, operation: Operation) -> &Half {
        match operation {
            Operation::Decode => &self.decoder,
            Operation::Encode => &self.encoder,
        }
    }

    /// Where the program is that runs clips of `frames`.
    fn running_half(&self, operation: Operation, frames: usize) -> &Half {
        self.still(operation, frames).map_or_else(|| self.half(operation), |still| &still.half)
    }

    /// The programs, without those that run what `except` names.
    fn halves(&self, except: &[(Operation, usize)]) -> impl Iterator<Item = &Half> {
        let runs = |half: &Half| {
            except
                .iter()
                .any(|(operation, frames)| std::ptr::eq(half, self.running_half(*operation, *frames)))
        };
        [&self.decoder, &self.encoder, &self.still_decoder.half, &self.still_encoder.half]
            .into_iter()
            .filter(move |half| !runs(half))
    }

    /// Bytes of weights in memory, but for those that work of `except` (operations, each with its frames) needs. Weights
    /// that are being read do not count yet.
    pub fn weight_bytes_in_memory(&self, except: &[(Operation, usize)]) -> usize {
        let bytes =
            |half: &Half| half.try_lock().ok()?.loaded.as_ref().map(|loaded| loaded.program.weight_bytes());
        self.halves(except).filter_map(bytes).sum()
    }

    /// Lets weights go, but for those that work of `except` (operations, each with its frames) needs; they are read again
    /// when they are used again. Their memory is free when what is returned is dropped, which takes a while, or when work
    /// that runs with them ends.
    pub fn release_weights(&self, except: &[(Operation, usize)]) -> Released {
        let release = |half: &Half| half.try_lock().ok()?.take().map(|loaded| loaded.program);
        Released(self.halves(except).filter_map(release).collect())
    }

    /// The program that runs clips of `frames`, one that reads its weights for each step or one that holds them. The other
    /// one of that half is let go, with the weights that it holds. As long as work goes on with one that reads its weights,
    /// because there is no room for them, all work of that half takes it: the bytes are the same.
    pub(crate) fn program(
        &self,
        operation: Operation,
        frames: usize,
        reads_weights: bool,
    ) -> Result<Arc<dyn Program>, EngineError> {
        let mut half = self.running_half(operation, frames).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = &half.loaded
            && (loaded.reads_weights == reads_weights || loaded.is_read_by_steps_now())
        {
            return Ok(Arc::clone(&loaded.program));
        }
        // Before others are read: there may be no room for both.
        drop(half.take());
        if reads_weights {
            // Those that were held have gone, and what is read now comes in other sizes.
            memory::give_back_freed();
        }
        let graph = self.graph(operation, frames)?;
        let weights: Arc<dyn WeightSource> = match self.still(operation, frames) {
            None => Arc::<Checkpoint>::clone(self.model.checkpoint()),
            Some(_) => {
                let clip = self.graph(operation, usize::MAX)?.clone();
                Arc::new(SummedTaps { weights: Arc::clone(self.model.checkpoint()), clip })
            }
        };
        let program: Arc<dyn Program> = match reads_weights {
            true => self.engine.load_by_steps(graph, weights).into(),
            false => self.engine.load(graph, &*weights)?.into(),
        };
        // What reading them took does not stay beside the work.
        memory::give_back_freed();
        if let Some(calibration) = half.calibration() {
            program.adopt(calibration);
        }
        half.loaded = Some(Loaded { program: Arc::clone(&program), reads_weights });
        Ok(program)
    }
}

pub(crate) fn check_length(values: &[f32], shape: [usize; 4]) -> Result<(), EngineError> {
    let expected = shape.iter().product();
    if values.len() == expected {
        return Ok(());
    }
    Err(EngineError::InputLength { shape, found: values.len(), expected })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CpuEngine, EngineOptions};

    #[test]
    fn a_half_holds_its_weights_or_reads_them_but_compares_once() {
        let engine = CpuEngine::new(EngineOptions { threads: Some(2), ..EngineOptions::default() }).unwrap();
        let autoencoder = Autoencoder::new(Model::embedded().unwrap(), Arc::new(engine));
        let held = || autoencoder.weight_bytes_in_memory(&[]);
        autoencoder.warm(Operation::Decode, Precision::Fast).unwrap();
        let (all, found) = (held(), autoencoder.calibration(Operation::Decode).unwrap());
        let latents = |program: &dyn Program| {
            let plan = autoencoder.plan(Operation::Decode, [2, 4, 5, 3], Precision::Fast).unwrap();
            program.run(&plan, &remote_vae_model::random::normal(1, 120), &Control::new()).unwrap()
        };
        let expected = latents(&*autoencoder.program(Operation::Decode, 1, false).unwrap());
        for reads_weights in [true, true, false] {
            let program = autoencoder.program(Operation::Decode, 1, reads_weights).unwrap();
            assert_eq!(held(), if reads_weights { 0 } else { all });
            assert!(Arc::ptr_eq(&autoencoder.calibration(Operation::Decode).unwrap(), &found));
            assert!(latents(&*program) == expected);
        }
        // Beside work that has no room for them, nobody holds them.
        let by_steps = autoencoder.program(Operation::Decode, 1, true).unwrap();
        let beside = autoencoder.program(Operation::Decode, 1, false).unwrap();
        assert!(Arc::ptr_eq(&by_steps, &beside) && held() == 0);
        drop((by_steps, beside));
        autoencoder.program(Operation::Decode, 1, false).unwrap();
        assert_eq!(held(), all);
        // What comes back is not compared again, held or not.
        for reads_weights in [true, false] {
            drop(autoencoder.release_weights(&[]));
            assert!(held() == 0 && autoencoder.calibration(Operation::Decode).is_some());
            let again = autoencoder.program(Operation::Decode, 1, reads_weights).unwrap();
            assert!(Arc::ptr_eq(&again.calibration().unwrap(), &found));
        }
    }
}
