//! Clips and pictures in parts within a memory budget: each part gets what is left beside the others.

use std::path::Path;
use std::sync::{Arc, Mutex};

use remote_vae_engine::{
    Autoencoder, Control, CpuEngine, Delivery, Draw, Engine, EngineError, EngineOptions, Plan, PlanRequest,
    PlanSummary, Precision, Program, Windows,
};
use remote_vae_model::{Graph, Model, WeightSource, random};
use remote_vae_wire::{Operation, Scaling, TileSizes};

/// What the process is said to hold, more than it does.
const PROCESS: u64 = 1 << 40;

/// A model with `room` bytes for work.
fn within(source: &str, room: Option<usize>) -> Autoencoder {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(source);
    Autoencoder::new(Model::open(&path).unwrap(), Arc::new(engine_within(room)))
}

fn engine_within(room: Option<usize>) -> CpuEngine {
    let memory_budget = room.map(|room| PROCESS + room as u64);
    let options = EngineOptions { threads: Some(2), memory_budget, ..EngineOptions::default() };
    let engine = CpuEngine::new(options).unwrap();
    engine.note_process_bytes(PROCESS);
    engine
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
    let (mut in_tiles, mut cut_no_more, mut whole) = (0, 0, 0);
    for work in works() {
        let free = within(work.source, None);
        let need = work.plan(&free).unwrap().peak_bytes;
        let (smallest, _) = work.refused(1);
        let is_cut = |Work { operation, shape, windows, precision, .. }: Work| {
            let parts = free.plan_clip_parts(operation, shape, windows, precision, Delivery::Whole).unwrap();
            parts.iter().any(|(plan, _)| plan.input[2..] != shape[3..])
        };
        for room in [smallest - 1, smallest / 8 * 7] {
            let (_, largest) = work.refused(room);
            let Some(largest) = largest else { continue };
            let space = free.model().spatial_factor();
            let [factor, unit] = if work.operation == Operation::Decode { [space, 1] } else { [1, space] };
            let mut smaller = work;
            (smaller.shape[3], smaller.shape[4]) = (largest[0] / factor, largest[1] / factor);
            let plan = smaller.plan(&within(work.source, Some(room)));
            let peak = plan.unwrap_or_else(|error| panic!("{smaller:?}: {error}")).peak_bytes;
            assert!(peak <= room && room < need, "{smaller:?}");
            let ([.., height, width], [.., rows, columns]) = (work.shape, smaller.shape);
            let skew = (rows * width).abs_diff(columns * height);
            assert!(skew <= unit * (height + width), "{smaller:?} has not the proportions of {work:?}");
            match (is_cut(work), is_cut(smaller)) {
                (true, true) => in_tiles += 1,
                (true, false) => cut_no_more += 1,
                (false, _) => whole += 1,
            }
        }
    }
    assert!(in_tiles >= 4 && cut_no_more >= 2 && whole >= 3, "{in_tiles} {cut_no_more} {whole}");
}

/// An engine that notes for which inputs the largest picture may be looked for, and whether something lies beside them.
struct Noting {
    inner: CpuEngine,
    sought: Mutex<Vec<([usize; 5], bool)>>,
}

impl Engine for Noting {
    fn name(&self, precision: Precision) -> String {
        self.inner.name(precision)
    }

    fn isa(&self) -> &str {
        self.inner.isa()
    }

    fn threads(&self) -> usize {
        self.inner.threads()
    }

    fn memory_budget(&self) -> Option<u64> {
        self.inner.memory_budget()
    }

    fn process_bytes(&self) -> u64 {
        self.inner.process_bytes()
    }

    fn peak_flops_per_second(&self) -> f64 {
        self.inner.peak_flops_per_second()
    }

    fn plan_part(&self, request: PlanRequest<'_>) -> Result<Plan, EngineError> {
        if request.seeks_largest {
            self.sought.lock().unwrap().push((request.input, request.beside.is_some()));
        }
        self.inner.plan_part(request)
    }

    fn load(&self, graph: &Graph, weights: &dyn WeightSource) -> Result<Box<dyn Program>, EngineError> {
        self.inner.load(graph, weights)
    }

    fn load_by_steps(&self, graph: &Graph, weights: Arc<dyn WeightSource>) -> Box<dyn Program> {
        self.inner.load_by_steps(graph, weights)
    }
}

#[test]
fn the_largest_picture_is_looked_for_only_where_it_is_named() {
    for work in works().into_iter().filter(|work| work.precision == Precision::Exact) {
        let (smallest, _) = work.refused(1);
        for room in [smallest - 1, 1] {
            let engine = Arc::new(Noting { inner: engine_within(Some(room)), sought: Mutex::default() });
            let own = Autoencoder::new(within(work.source, None).model().clone(), Arc::clone(&engine) as _);
            assert!(work.plan(&own).is_err());
            let sought = std::mem::take(&mut *engine.sought.lock().unwrap());
            match work.windows.tiles {
                // Of each part that is refused, beside the others.
                None => {
                    assert!(
                        !sought.is_empty() && sought.iter().all(|(_, beside)| *beside),
                        "{work:?} {sought:?}"
                    );
                }
                // At most of one that is not cut, where none in tiles fits.
                Some(_) => assert!(sought.len() <= 1, "{work:?} {sought:?}"),
            }
        }
    }
}
