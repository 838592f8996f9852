//! What must hold whatever the numbers are: equal bytes, honest plans, clean errors, cancellation.

use crate::oracle::interpret;
use crate::support::{assert_close, engine, engines, largest_difference, run, values};
use remote_vae_engine::{Autoencoder, Control, Delivery, Draw, EngineError, Precision, Windows};
use remote_vae_kernels::Isa;
use remote_vae_model::Model;
use remote_vae_wire::{Operation, Scaling};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

fn embedded(threads: usize) -> Autoencoder {
    Autoencoder::new(Model::embedded().unwrap(), engine(threads, Isa::detect().name()))
}

#[test]
fn the_embedded_model_runs_as_its_graph_says() {
    let model = Model::embedded().unwrap();
    for (graph, shape) in
        [(model.decoder().unwrap(), [1, 4, 3, 5]), (model.encoder().unwrap(), [1, 3, 24, 40])]
    {
        let input = values(shape.iter().product(), 5);
        let expected = interpret(graph, model.weights(), shape, &input);
        let expected_values: Vec<f32> = expected.values.iter().map(|value| *value as f32).collect();
        for engine in engines() {
            let (found, found_shape) = run(&*engine, graph, model.weights(), shape, &input);
            assert_eq!(found_shape, expected.shape);
            assert_close(&found, &expected_values, 1e-4, &engine.name(Precision::Exact));
        }
    }
}

#[test]
fn bytes_are_equal_for_any_number_of_threads() {
    let shape = [1, 4, 19, 23];
    let latents = values(shape.iter().product(), 1);
    let scaling = Scaling::None;
    let decode = |threads| {
        embedded(threads)
            .decode(latents.clone(), shape, &scaling, Precision::Exact, &Control::new())
            .unwrap()
            .pixels
    };
    let one = decode(1);
    assert!(one == decode(2) && one == decode(7));
}

#[test]
fn a_sample_alone_and_in_a_batch_gives_equal_bytes() {
    let (sample, shape) = (4 * 9 * 7, [3, 4, 9, 7]);
    let latents = values(3 * sample, 2);
    let autoencoder = embedded(2);
    let decode = |values: &[f32], shape| {
        autoencoder
            .decode(values.to_vec(), shape, &Scaling::None, Precision::Exact, &Control::new())
            .unwrap()
            .pixels
    };
    let together = decode(&latents, shape);
    for (alone, pixels) in latents.chunks_exact(sample).zip(together.chunks_exact(together.len() / 3)) {
        assert!(decode(alone, [1, 4, 9, 7]) == pixels);
    }
}

#[test]
fn instruction_tiers_agree_closely() {
    let model = Model::embedded().unwrap();
    let shape = [1, 4, 16, 16];
    let latents = values(shape.iter().product(), 3);
    let results: Vec<Vec<f32>> = engines()
        .iter()
        .map(|engine| run(&**engine, model.decoder().unwrap(), model.weights(), shape, &latents).0)
        .collect();
    for result in &results {
        let difference = largest_difference(result, &results[0]);
        assert!(difference <= 2e-5, "{difference:e}");
    }
}

#[test]
fn values_that_are_not_finite_do_no_harm() {
    let autoencoder = embedded(2);
    let shape = [1, 4, 8, 8];
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        let mut latents = values(256, 4);
        latents[100] = bad;
        autoencoder.decode(latents, shape, &Scaling::None, Precision::Exact, &Control::new()).unwrap();
    }
}

#[test]
fn plans_count_work_and_memory() {
    let autoencoder = embedded(2);
    let small = autoencoder.plan_decode([1, 4, 32, 32], Precision::Exact).unwrap();
    assert_eq!(small.output, [1, 3, 256, 256]);
    let large = autoencoder.plan_decode([1, 4, 64, 64], Precision::Exact).unwrap();
    assert!(large.flops > 4 * small.flops && large.activation_bytes > 3 * small.activation_bytes);
    assert_eq!(large.weight_bytes, small.weight_bytes);
    let batch = autoencoder.plan_decode([3, 4, 32, 32], Precision::Exact).unwrap();
    assert_eq!(batch.flops, 3 * small.flops);
    assert_eq!(batch.activation_bytes, small.activation_bytes, "samples run one after the other");
    // Three full-size tensors at the widest place would be a plan that overwrites nothing.
    let widest = 256 * 256 * 4 * 32;
    assert!(small.activation_bytes < 6 * widest, "{} bytes", small.activation_bytes);
}

#[test]
fn progress_ends_at_the_whole() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let control = Control::with_progress(move |progress| sink.lock().unwrap().push(progress));
    let autoencoder = embedded(2);
    autoencoder
        .decode(values(2 * 4 * 36, 1), [2, 4, 6, 6], &Scaling::None, Precision::Exact, &control)
        .unwrap();
    let seen = seen.lock().unwrap();
    let last = seen.last().unwrap();
    assert_eq!((last.done_flops, last.step), (last.total_flops, last.steps));
    // Steps in strips are told of several times.
    assert!((1..=last.steps).all(|step| seen.iter().any(|progress| progress.step == step)));
    assert!(seen.len() > last.steps);
    assert!(seen.windows(2).all(|pair| pair[0].step <= pair[1].step));
    assert!(seen.windows(2).all(|pair| pair[0].done_flops <= pair[1].done_flops));
}

#[test]
fn a_cancelled_run_ends_within_one_step() {
    let autoencoder = embedded(1);
    let flag = Arc::new(Mutex::new(None::<Arc<std::sync::atomic::AtomicBool>>));
    let steps = Arc::new(Mutex::new(0));
    let (inner, counter) = (Arc::clone(&flag), Arc::clone(&steps));
    let control = Control::with_progress(move |_| {
        *counter.lock().unwrap() += 1;
        if let Some(flag) = &*inner.lock().unwrap() {
            flag.store(true, Ordering::Relaxed);
        }
    });
    *flag.lock().unwrap() = Some(control.cancel_handle());
    let result = autoencoder.decode(values(256, 1), [1, 4, 8, 8], &Scaling::None, Precision::Exact, &control);
    assert!(matches!(result, Err(EngineError::Cancelled)));
    assert_eq!(*steps.lock().unwrap(), 1);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let autoencoder = embedded(1);
    let decode = |len: usize, shape| {
        autoencoder
            .decode(vec![0.0; len], shape, &Scaling::None, Precision::Exact, &Control::new())
            .unwrap_err()
            .to_string()
    };
    let message = decode(3 * 64, [1, 3, 8, 8]);
    assert!(message.contains('4') && message.contains('3'), "{message}");
    let message = decode(100, [1, 4, 8, 8]);
    assert!(message.contains("100") && message.contains("256"), "{message}");
    let error = autoencoder
        .encode(
            &[0.0; 3 * 12 * 16],
            [1, 3, 12, 16],
            &Scaling::None,
            Draw::Mode,
            Precision::Exact,
            &Control::new(),
        )
        .unwrap_err();
    assert!(error.to_string().contains("12x16") && error.to_string().contains('8'), "{error}");
    for shape in [[1, 4, usize::MAX / 2, 8], [1, 4, 1 << 44, 1], [1, 4, 1 << 27, 1 << 27], [1 << 50, 4, 1, 1]]
    {
        assert!(autoencoder.plan_decode(shape, Precision::Exact).is_err(), "{shape:?}");
    }
    // Large, but countable: the plan is made, and says what it would take.
    assert!(
        autoencoder.plan_decode([1, 4, 1 << 16, 1 << 16], Precision::Exact).unwrap().peak_bytes > 1 << 40
    );
}

#[test]
fn a_sample_is_drawn_around_the_mode_and_repeats_with_its_seed() {
    let autoencoder = embedded(2);
    autoencoder.warm(Operation::Encode, Precision::Exact).unwrap();
    let pixels = values(3 * 32 * 32, 8);
    let encode = |draw| {
        autoencoder
            .encode(&pixels, [1, 3, 32, 32], &Scaling::None, draw, Precision::Exact, &Control::new())
            .unwrap()
            .values
    };
    let (mode, first) = (encode(Draw::Mode), encode(Draw::Sample { seed: 1 }));
    assert_eq!(first, encode(Draw::Sample { seed: 1 }));
    assert_ne!(first, encode(Draw::Sample { seed: 2 }));
    assert_ne!(first, mode);
}

#[test]
fn a_plan_that_is_held_stays_known_whatever_else_is_planned() {
    let autoencoder = embedded(1);
    let (windows, rows) = (Windows { frames: false, tiles: None }, Delivery::Rows { kept_per_pixel: 0 });
    let shape = |side| [1, 4, 1, side, 1];
    let known =
        |side| autoencoder.is_planned(Operation::Decode, shape(side), windows, Precision::Exact, rows);
    let plans =
        |side| autoencoder.plans(Operation::Decode, shape(side), windows, Precision::Exact, rows).unwrap();
    let held = plans(1);
    (2..200).for_each(|side| drop(plans(side)));
    assert!(known(1) && !known(2) && known(199));
    assert!(Arc::ptr_eq(&held[0], &plans(1)[0]));
    drop(held);
    (200..300).for_each(|side| drop(plans(side)));
    assert!(!known(1));
}
