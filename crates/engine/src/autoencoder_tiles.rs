//! Pictures in tiles through an [`Autoencoder`]: what diffusers computes after `enable_tiling()`. It is another picture than
//! that of [`Autoencoder::decode`], for those who want diffusers' numbers; memory alone never asks for it.

use remote_vae_wire::{Operation, Scaling, TileSizes};

use crate::autoencoder::check_length;
use crate::{
    Autoencoder, Control, Delivery, Draw, EngineError, Image, Latents, PlanSummary, Precision, Windows,
};

impl Autoencoder {
    /// What decoding or encoding a picture of `shape` (`[batch, channels, height, width]`) in `tiles` costs.
    ///
    /// # Errors
    /// The shape does not fit the model, it lacks that half, or tiles are not for it.
    pub fn plan_in_tiles(
        &self,
        operation: Operation,
        shape: [usize; 4],
        tiles: TileSizes,
        precision: Precision,
    ) -> Result<PlanSummary, EngineError> {
        let (whole, windows) = (as_clip(shape), in_tiles(tiles));
        self.check_tiles(operation, windows)?;
        if !self.is_cut(operation, whole, windows) {
            return Ok(self.plan(operation, shape, precision)?.summary());
        }
        self.plan_parts(operation, whole, windows, precision, Delivery::Whole)
    }

    /// As [`Autoencoder::decode`], in tiles as diffusers' `tiled_decode` cuts and blends them. A picture that is no larger
    /// than a tile is decoded as a whole.
    ///
    /// # Errors
    /// As [`Autoencoder::decode`]; also when tiles are not for this model.
    pub fn decode_in_tiles(
        &self,
        mut latents: Vec<f32>,
        shape: [usize; 4],
        scaling: &Scaling,
        tiles: TileSizes,
        precision: Precision,
        control: &Control,
    ) -> Result<Image, EngineError> {
        self.check_tiles(Operation::Decode, in_tiles(tiles))?;
        if !self.is_cut(Operation::Decode, as_clip(shape), in_tiles(tiles)) {
            return self.decode(latents, shape, scaling, precision, control);
        }
        check_length(&latents, shape)?;
        self.model.latent_space.to_model(&mut latents, shape, scaling)?;
        let (pixels, shape) = self.run_tiles(Operation::Decode, latents, shape, tiles, precision, control)?;
        Ok(Image { pixels, shape })
    }

    /// As [`Autoencoder::encode`], in tiles as diffusers' `tiled_encode` cuts and blends them.
    ///
    /// # Errors
    /// As [`Autoencoder::encode`]; also when tiles are not for this model.
    #[allow(clippy::too_many_arguments)] // what to encode, how, and into which space
    pub fn encode_in_tiles(
        &self,
        pixels: Vec<f32>,
        shape: [usize; 4],
        scaling: &Scaling,
        draw: Draw,
        tiles: TileSizes,
        precision: Precision,
        control: &Control,
    ) -> Result<Latents, EngineError> {
        self.check_tiles(Operation::Encode, in_tiles(tiles))?;
        if !self.is_cut(Operation::Encode, as_clip(shape), in_tiles(tiles)) {
            return self.encode(&pixels, shape, scaling, draw, precision, control);
        }
        check_length(&pixels, shape)?;
        let (moments, shape) = self.run_tiles(Operation::Encode, pixels, shape, tiles, precision, control)?;
        let (values, shape) = self.draw(moments, shape, draw, scaling)?;
        Ok(Latents { values, shape })
    }

    /// Whether a model of pictures cuts `shape` (`[batch, channels, 1, height, width]`) into tiles.
    pub(crate) fn is_cut(&self, operation: Operation, shape: [usize; 5], windows: Windows) -> bool {
        self.scale(operation, windows).is_ok_and(|scale| scale.cut_pictures(shape).is_some())
    }

    fn check_tiles(&self, operation: Operation, windows: Windows) -> Result<(), EngineError> {
        self.scale(operation, windows).map(drop)
    }

    /// One picture after the other.
    fn run_tiles(
        &self,
        operation: Operation,
        values: Vec<f32>,
        shape: [usize; 4],
        tiles: TileSizes,
        precision: Precision,
        control: &Control,
    ) -> Result<(Vec<f32>, [usize; 4]), EngineError> {
        let whole = self.run_whole(operation, values, as_clip(shape), in_tiles(tiles), precision, control)?;
        let [batch, channels, _, height, width] = whole.shape;
        Ok((whole.values, [batch, channels, height, width]))
    }
}

fn in_tiles(tiles: TileSizes) -> Windows {
    Windows { frames: false, tiles: Some(tiles) }
}

fn as_clip([batch, channels, height, width]: [usize; 4]) -> [usize; 5] {
    [batch, channels, 1, height, width]
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use remote_vae_model::{Graph, Model, WeightSource, random};

    use super::*;
    use crate::{CpuEngine, Engine, EngineOptions, Plan, PlanRequest, Program};

    /// An engine whose plans leave no room for weights.
    struct ByStep(CpuEngine);

    impl Engine for ByStep {
        fn name(&self, precision: Precision) -> String {
            self.0.name(precision)
        }

        fn isa(&self) -> &str {
            self.0.isa()
        }

        fn threads(&self) -> usize {
            self.0.threads()
        }

        fn peak_flops_per_second(&self) -> f64 {
            self.0.peak_flops_per_second()
        }

        fn plan_part(&self, request: PlanRequest<'_>) -> Result<Plan, EngineError> {
            let mut plan = self.0.plan_part(request)?;
            plan.reads_weights = true;
            Ok(plan)
        }

        fn load(&self, _: &Graph, _: &dyn WeightSource) -> Result<Box<dyn Program>, EngineError> {
            panic!("the plans leave no room for weights")
        }

        fn load_by_steps(&self, graph: &Graph, weights: Arc<dyn WeightSource>) -> Box<dyn Program> {
            self.0.load_by_steps(graph, weights)
        }
    }

    fn engine() -> CpuEngine {
        CpuEngine::new(EngineOptions { threads: Some(2), ..EngineOptions::default() }).unwrap()
    }

    /// The model with its weights held, and read for each step.
    fn both(source: &str) -> [Autoencoder; 2] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(source);
        let engines: [Arc<dyn Engine>; 2] = [Arc::new(engine()), Arc::new(ByStep(engine()))];
        engines.map(|engine| Autoencoder::new(Model::open(&path).unwrap(), engine))
    }

    #[test]
    fn tiles_have_the_same_bytes_with_weights_that_are_read_by_steps() {
        let (none, control) = (&Scaling::None, Control::new());
        let few = TileSizes { latent_min_size: Some(8), overlap_factor: Some(0.25), ..TileSizes::default() };
        for (source, sizes) in [("golden/sd15", TileSizes::default()), ("golden/tiny", few)] {
            for precision in Precision::ALL {
                let made = both(source).map(|own| {
                    let (latents, pixels) = ([2, 4, 11, 13], [1, 3, 88, 72]);
                    let values = |shape: [usize; 4]| random::normal(5, shape.iter().product());
                    let image =
                        own.decode_in_tiles(values(latents), latents, none, sizes, precision, &control);
                    let draw = Draw::Mode;
                    let code =
                        own.encode_in_tiles(values(pixels), pixels, none, draw, sizes, precision, &control);
                    let plan = own.plan_in_tiles(Operation::Decode, latents, sizes, precision).unwrap();
                    let found = own.calibration(Operation::Decode);
                    (image.unwrap(), code.unwrap(), found, own.weight_bytes_in_memory(&[]), plan)
                });
                let [(image, code, found, held, plan), by_step] = made;
                let (image_by_step, code_by_step, found_by_step, none_held, plan_by_step) = by_step;
                // Compared twice, with the same outcome.
                assert!(found == found_by_step && found.is_some() == (precision == Precision::Fast));
                assert!(image == image_by_step && code == code_by_step, "{source} {precision:?}");
                assert!(held > 0 && none_held == 0 && plan_by_step.reads_weights, "{source} {precision:?}");
                let saved = plan.peak_bytes - plan_by_step.peak_bytes;
                // Reading them goes on beside the work.
                let weights = plan.weight_bytes - plan_by_step.weight_bytes - plan_by_step.load_bytes;
                assert_eq!(saved, weights, "{source} {precision:?}");
            }
        }
    }

    #[test]
    fn clips_in_tiles_have_the_same_bytes_with_weights_that_are_read_by_steps() {
        let windows = Windows { frames: true, tiles: Some(TileSizes::default()) };
        for (source, shape) in
            [("golden_video/wan", [1, 16, 2, 33, 2]), ("golden_video/hunyuan", [1, 4, 1, 34, 2])]
        {
            let [clip, by_step] = both(source).map(|own| {
                let (values, control) = (random::normal(6, shape.iter().product()), Control::new());
                let clip = own.decode_clip(values, shape, &Scaling::None, windows, Precision::Fast, &control);
                clip.unwrap()
            });
            assert!(clip == by_step, "{source}");
        }
    }
}
