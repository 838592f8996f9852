//! Memory of earlier runs that is kept for the next: what lies in it reaches no result.

use crate::golden::cases;
use crate::support::{engine, engines};
use remote_vae_engine::{Autoencoder, Control, EngineError, Precision, Windows};
use remote_vae_kernels::Isa;
use remote_vae_model::{Model, random};
use remote_vae_wire::Scaling;
use std::sync::atomic::Ordering;
use std::time::Duration;

const NOW: Duration = Duration::ZERO;

/// A run of nothing but NaN fills all memory that a result could be made of by mistake.
#[test]
fn what_another_picture_has_left_reaches_none() {
    let mut checked = 0;
    for case in cases() {
        let model = case.model();
        let halves = [(model.decoder(), [11, 6]), (model.encoder(), [64, 32])];
        for (graph, [height, width]) in halves.into_iter().filter_map(|(graph, size)| Some((graph?, size))) {
            let shape = [2, graph.input_channels(), height, width];
            let values = random::normal(5, shape.iter().product());
            for (engine, precision) in
                engines().iter().flat_map(|engine| [Precision::Exact, Precision::Fast].map(|p| (engine, p)))
            {
                let plan = engine.plan(graph, shape, precision).unwrap();
                let program = engine.load(graph, model.weights()).unwrap();
                let run = |values: &[f32]| program.run(&plan, values, &Control::new()).unwrap();
                let expected = run(&values);
                engine.keep_spare();
                drop(engine.take_spare(NOW));
                assert!(run(&vec![f32::NAN; values.len()]).iter().any(|value| value.is_nan()));
                let bytes = engine.spare_bytes();
                assert!(0 < bytes && bytes as usize <= plan.summary().peak_bytes);
                assert!(run(&values) == expected, "{} {}", case.source, engine.name(precision));
                checked += 1;
            }
        }
    }
    assert!(checked >= 40 * Isa::available().len(), "{checked} runs");
}

#[test]
fn memory_stays_for_the_next_picture_until_something_else_comes() {
    let engine = engine(2, Isa::detect().name());
    let autoencoder = Autoencoder::new(Model::embedded().unwrap(), engine.clone());
    let channels = autoencoder.model().latent_channels();
    let decode = |side: usize, control: &Control| {
        let latents = vec![0.5; channels * side * side];
        let shape = [1, channels, side, side];
        autoencoder.decode(latents, shape, &Scaling::None, Precision::Exact, control)
    };
    decode(16, &Control::new()).unwrap();
    assert_eq!(engine.spare_bytes(), 0);
    engine.keep_spare();
    decode(16, &Control::new()).unwrap();
    let small = engine.spare_bytes();
    decode(24, &Control::new()).unwrap();
    let large = engine.spare_bytes();
    assert!(0 < small && small < large);
    decode(16, &Control::new()).unwrap();
    assert_eq!(engine.spare_bytes(), small);
    // Work that is not finished leaves nothing.
    let cancelled = Control::new();
    cancelled.cancel_handle().store(true, Ordering::Relaxed);
    assert!(matches!(decode(16, &cancelled), Err(EngineError::Cancelled)));
    assert_eq!(engine.spare_bytes(), 0);
    // Nor do parts, what comes between which is planned without it; nor does it stay beside weights that are read.
    decode(16, &Control::new()).unwrap();
    let (latents, shape) = (vec![0.5; channels * 96 * 8], [1, channels, 1, 96, 8]);
    let windows = Windows { frames: false, tiles: Some(Default::default()) };
    autoencoder
        .decode_clip(latents, shape, &Scaling::None, windows, Precision::Exact, &Control::new())
        .unwrap();
    assert_eq!(engine.spare_bytes(), 0);
    decode(16, &Control::new()).unwrap();
    engine.load(autoencoder.model().decoder().unwrap(), autoencoder.model().weights()).unwrap();
    assert_eq!(engine.spare_bytes(), 0);
    decode(16, &Control::new()).unwrap();
    assert!(engine.take_spare(Duration::from_secs(3600)).is_none() && engine.spare_bytes() == small);
    assert!(engine.take_spare(NOW).is_some() && engine.spare_bytes() == 0);
}
