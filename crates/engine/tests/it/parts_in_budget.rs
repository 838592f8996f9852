//! Clips and pictures in parts within a memory budget: each part gets what is left beside the others.

use std::path::Path;
use std::sync::Arc;

use remote_vae_engine::{
    Autoencoder, Control, CpuEngine, Delivery, Draw, Engine, EngineError, EngineOptions, PlanSummary,
    Precision, Windows,
};
use remote_vae_model::{Model, random};
use remote_vae_wire::{Operation, Scaling, TileSizes};

/// What the process is said to hold, more than it does.
const PROCESS: u64 = 1 << 40;

/// A model with `room` bytes for work.
fn within(source: &str, room: Option<usize>) -> Autoencoder {
    let memory_budget = room.map(|room| PROCESS + room as u64);
    let options = EngineOptions { threads: Some(2), memory_budget, ..EngineOptions::default() };
    let engine = CpuEngine::new(options).unwrap();
    engine.note_process_bytes(PROCESS);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(source);
    Autoencoder::new(Model::open(&path).unwrap(), Arc::new(engine))
}

#[derive(Clone, Copy, Debug)]
struct Work {
    source: &'static str,
    operation: Operation,
    shape: [usize; 5],
    windows: Windows,
    precision: Precision,
    /// Whether frames are handed on and not kept.
    streams: bool,
}

impl Work {
    fn is_of_pictures(self) -> Option<(TileSizes, [usize; 4])> {
        let [batch, channels, _, height, width] = self.shape;
        let tiles = self.windows.tiles.filter(|_| self.source.starts_with("golden/"));
        tiles.map(|tiles| (tiles, [batch, channels, height, width]))
    }

    fn plan(self, own: &Autoencoder) -> Result<PlanSummary, EngineError> {
        let Work { operation, shape, windows, precision, .. } = self;
        if let Some((tiles, picture)) = self.is_of_pictures() {
            return own.plan_in_tiles(operation, picture, tiles, precision);
        }
        match (operation, self.streams) {
            (Operation::Encode, _) => own.plan_encode_clip(shape, windows, precision),
            (Operation::Decode, false) => own.plan_decode_clip(shape, windows, precision),
            (Operation::Decode, true) => own.plan_decode_frames(shape, windows, precision),
        }
    }

    fn run(self, own: &Autoencoder) -> Vec<u32> {
        let Work { operation, shape, windows, precision, .. } = self;
        let (values, none) = (random::normal(7, shape.iter().product()), &Scaling::None);
        let (control, draw) = (&Control::new(), Draw::Mode);
        let values = match (operation, self.is_of_pictures()) {
            (Operation::Decode, Some((tiles, picture))) => {
                own.decode_in_tiles(values, picture, none, tiles, precision, control).unwrap().pixels
            }
            (Operation::Encode, Some((tiles, picture))) => {
                own.encode_in_tiles(values, picture, none, draw, tiles, precision, control).unwrap().values
            }
            (Operation::Encode, None) => {
                own.encode_clip(values, shape, none, draw, windows, precision, control).unwrap().values
            }
            (Operation::Decode, None) if self.streams => {
                let mut all = Vec::new();
                let emit = &mut |frames: remote_vae_engine::Frames| {
                    all.extend(frames.values);
                    Ok(())
                };
                own.decode_frames(values, shape, none, windows, precision, control, emit).unwrap();
                all
            }
            (Operation::Decode, None) => {
                own.decode_clip(values, shape, none, windows, precision, control).unwrap().values
            }
        };
        values.into_iter().map(f32::to_bits).collect()
    }

    /// What a refusal names: the smallest budget that would do, and height and width of the largest that fits.
    fn refused(self, room: usize) -> (usize, Option<[usize; 2]>) {
        match self.plan(&within(self.source, Some(room))) {
            Err(EngineError::Budget { smallest, largest, .. }) => (smallest - PROCESS as usize, largest),
            other => panic!("{self:?} within {room}: {other:?}"),
        }
    }
}

fn works() -> Vec<Work> {
    let clip = |source, operation, shape, tiled: bool, precision, streams| Work {
        source,
        operation,
        shape,
        windows: Windows { frames: true, tiles: tiled.then(TileSizes::default) },
        precision,
        streams,
    };
    let sizes = TileSizes { latent_min_size: Some(16), ..TileSizes::default() };
    let picture = |source, operation, shape, precision| Work {
        source,
        operation,
        shape,
        windows: Windows { frames: false, tiles: Some(sizes) },
        precision,
        streams: false,
    };
    let (decode, encode) = (Operation::Decode, Operation::Encode);
    let (exact, fast) = (Precision::Exact, Precision::Fast);
    vec![
        picture("golden/sd15", decode, [1, 4, 1, 30, 20], exact),
        picture("golden/sd15", decode, [2, 4, 1, 18, 26], fast),
        picture("golden/tiny", encode, [1, 3, 1, 256, 200], fast),
        clip("golden_video/hunyuan", decode, [1, 4, 9, 8, 6], false, fast, false),
        clip("golden_video/hunyuan", decode, [1, 4, 1, 34, 33], true, exact, true),
        clip("golden_video/wan", decode, [2, 16, 3, 6, 4], false, exact, true),
        clip("golden_video/wan", encode, [1, 3, 5, 48, 40], false, fast, false),
    ]
}

#[test]
fn parts_fit_beside_each_other_with_the_same_bytes() {
    let mut helped = 0;
    for work in works() {
        let free = within(work.source, None);
        let (need, bytes) = (work.plan(&free).unwrap().peak_bytes, work.run(&free));
        let (smallest, _) = work.refused(1);
        assert!(smallest <= need, "{work:?}: {smallest} of {need}");
        for room in [smallest, smallest + (need - smallest) / 2] {
            let own = within(work.source, Some(room));
            let plan = work.plan(&own).unwrap();
            assert!(plan.peak_bytes <= room, "{work:?}: {} of {room}", plan.peak_bytes);
            assert!(work.run(&own) == bytes, "{work:?} within {room} of {need}");
            // Each alone has room for its straight plan.
            let Work { operation, shape, windows, precision, .. } = work;
            let parts = free.plan_clip_parts(operation, shape, windows, precision, Delivery::Whole).unwrap();
            let alone = parts.iter().map(|(plan, _)| plan.summary().peak_bytes).max().unwrap();
            helped += usize::from(alone <= room && room < need);
        }
    }
    assert!(helped >= 4, "{helped}");
}

#[test]
fn the_largest_picture_that_a_refusal_names_fits() {
    for work in works() {
        let free = within(work.source, None);
        let need = work.plan(&free).unwrap().peak_bytes;
        let (smallest, _) = work.refused(1);
        for room in [smallest - 1, smallest / 8 * 7] {
            let (_, largest) = work.refused(room);
            let Some(largest) = largest else { continue };
            let model = free.model();
            let factor = if work.operation == Operation::Decode { model.spatial_factor() } else { 1 };
            let mut smaller = work;
            (smaller.shape[3], smaller.shape[4]) = (largest[0] / factor, largest[1] / factor);
            let plan = smaller.plan(&within(work.source, Some(room)));
            let peak = plan.unwrap_or_else(|error| panic!("{smaller:?}: {error}")).peak_bytes;
            assert!(peak <= room && room < need, "{smaller:?}");
        }
    }
}
