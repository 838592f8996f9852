//! The precision `fast`: close to `exact`, whatever the sizes of the numbers, and the same bytes everywhere.

use crate::golden::cases;
use crate::support::{engine, engines, psnr, run, run_in, values};
use remote_vae_engine::{Autoencoder, Control, Draw, Precision};
use remote_vae_kernels::Isa;
use remote_vae_model::{Graph, Model, ModelError, WeightSource, WeightSpec};
use remote_vae_wire::{Operation, Scaling};

/// dB against what diffusers gives in `f32`.
const CLOSE: f64 = 54.0;

fn embedded(threads: usize) -> Autoencoder {
    Autoencoder::new(Model::embedded().unwrap(), engine(threads, Isa::detect().name()))
}

fn decode(autoencoder: &Autoencoder, latents: &[f32], shape: [usize; 4]) -> Vec<f32> {
    let latents = latents.to_vec();
    autoencoder.decode(latents, shape, &Scaling::None, Precision::Fast, &Control::new()).unwrap().pixels
}

#[test]
fn golden_decodes_are_close() {
    let mut checked = 0;
    for case in cases() {
        let model = case.model();
        for name in case.numbered("decode") {
            let (latents, pixels) = (case.tensor(&name, "latents"), case.tensor(&name, "pixels"));
            for engine in engines() {
                let (graph, shape) = (model.decoder().unwrap(), latents.shape4());
                let (found, _) =
                    run_in(Precision::Fast, &*engine, graph, model.weights(), shape, &latents.values);
                let psnr = psnr(&found, &pixels.values);
                let what = format!("{} {name} {}", case.source, engine.name(Precision::Fast));
                eprintln!("{what}: {psnr:.1} dB");
                assert!(psnr >= CLOSE, "{what}: {psnr:.1} dB");
                checked += 1;
            }
        }
    }
    assert!(checked >= 20 * Isa::available().len(), "{checked} decodes");
}

#[test]
fn golden_encodes_are_close() {
    let mut checked = 0;
    for case in cases() {
        let model = case.model();
        for name in case.numbered("encode") {
            let pixels = case.tensor(&name, "pixels");
            let what = if model.encoder_yields_moments() { "moments" } else { "latents" };
            let expected = case.tensor(&name, what);
            for engine in engines() {
                let (graph, shape) = (model.encoder().unwrap(), pixels.shape4());
                let (found, _) =
                    run_in(Precision::Fast, &*engine, graph, model.weights(), shape, &pixels.values);
                // Moments have any size; what counts is the error beside their range.
                let range = expected.values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                let unit = |values: &[f32]| values.iter().map(|value| value / range).collect::<Vec<_>>();
                let psnr = psnr(&unit(&found), &unit(&expected.values));
                let what = format!("{} {name} {}", case.source, engine.name(Precision::Fast));
                assert!(psnr >= CLOSE, "{what}: {psnr:.1} dB");
                checked += 1;
            }
        }
    }
    assert!(checked >= 8 * Isa::available().len(), "{checked} encodes");
}

#[test]
fn bytes_are_equal_for_any_number_of_threads_and_in_a_batch() {
    let (sample, shape) = (4 * 19 * 23, [3, 4, 19, 23]);
    let latents = values(3 * sample, 1);
    let one = decode(&embedded(1), &latents, shape);
    for threads in [2, 7] {
        assert!(one == decode(&embedded(threads), &latents, shape), "{threads} threads");
    }
    let autoencoder = embedded(2);
    for (alone, pixels) in latents.chunks_exact(sample).zip(one.chunks_exact(one.len() / 3)) {
        assert!(decode(&autoencoder, alone, [1, 4, 19, 23]) == pixels);
    }
}

#[test]
fn exact_does_not_change_beside_fast() {
    let (fresh, used) = (embedded(2), embedded(2));
    let (latents, shape) = (values(4 * 81, 1), [1, 4, 9, 9]);
    let exact = |autoencoder: &Autoencoder| {
        let latents = latents.clone();
        autoencoder.decode(latents, shape, &Scaling::None, Precision::Exact, &Control::new()).unwrap().pixels
    };
    let fast = decode(&used, &latents, shape);
    assert!(exact(&used) == exact(&fresh));
    assert!(exact(&used) != fast);
}

#[test]
fn instruction_tiers_are_close() {
    let model = Model::embedded().unwrap();
    let shape = [1, 4, 16, 16];
    let latents = values(shape.iter().product(), 3);
    let results: Vec<Vec<f32>> = engines()
        .iter()
        .map(|engine| {
            let graph = model.decoder().unwrap();
            run_in(Precision::Fast, &**engine, graph, model.weights(), shape, &latents).0
        })
        .collect();
    for result in &results {
        let psnr = psnr(result, &results[0]);
        assert!(psnr >= 60.0, "{psnr:.1} dB");
    }
}

/// A checkpoint whose residual stream is larger by a factor: everything that writes to it is.
struct Scaled<'a> {
    weights: &'a dyn WeightSource,
    factor: f32,
}

impl WeightSource for Scaled<'_> {
    fn read(&self, spec: &WeightSpec) -> Result<Vec<f32>, ModelError> {
        let writes = ["conv_in", "conv2", "to_out.0"].iter().any(|part| spec.name.contains(part));
        let passes =
            ["conv_shortcut.bias", "samplers.0.conv.bias"].iter().any(|end| spec.name.ends_with(end));
        let mut values = self.weights.read(spec)?;
        if writes || passes {
            values.iter_mut().for_each(|value| *value *= self.factor);
        }
        Ok(values)
    }
}

#[test]
fn a_residual_stream_beyond_the_range_of_halves_survives() {
    let model = Model::embedded().unwrap();
    let (graph, shape) = (model.decoder().unwrap(), [1, 4, 12, 12]);
    let latents = values(shape.iter().product(), 6);
    for factor in [2.0f32.powi(22), 2.0f32.powi(40)] {
        let weights = Scaled { weights: model.weights(), factor };
        let first = graph.nodes.iter().position(|node| node.name == "decoder.conv_in").unwrap();
        let start = Graph { output: remote_vae_model::ValueId(first), ..graph.clone() };
        for engine in engines() {
            let (stream, _) = run(&*engine, &start, &weights, shape, &latents);
            assert!(stream.iter().any(|value| value.abs() > 1e6));
            let (exact, _) = run(&*engine, graph, &weights, shape, &latents);
            let (fast, _) = run_in(Precision::Fast, &*engine, graph, &weights, shape, &latents);
            let psnr = psnr(&fast, &exact);
            assert!(psnr >= CLOSE, "{} with {factor:e}: {psnr:.1} dB", engine.isa());
        }
    }
}

#[test]
fn values_that_are_not_finite_do_no_harm() {
    let autoencoder = embedded(2);
    for bad in [f32::NAN, f32::INFINITY, f32::MAX] {
        let mut latents = values(256, 4);
        latents[100] = bad;
        decode(&autoencoder, &latents, [1, 4, 8, 8]);
    }
}

#[test]
fn plans_take_less_memory() {
    let autoencoder = embedded(2);
    let plan = |precision| autoencoder.plan_decode([1, 4, 64, 64], precision).unwrap();
    let (exact, fast) = (plan(Precision::Exact), plan(Precision::Fast));
    assert!(fast.activation_bytes * 10 < exact.activation_bytes * 7, "{fast:?} {exact:?}");
    assert_eq!((fast.flops, fast.output), (exact.flops, exact.output));
}

#[test]
fn encodes_draw_around_the_same_mode() {
    let autoencoder = embedded(2);
    autoencoder.warm(Operation::Encode, Precision::Fast).unwrap();
    let pixels = values(3 * 32 * 32, 8);
    let encode = |precision| {
        let (shape, draw) = ([1, 3, 32, 32], Draw::Sample { seed: 1 });
        autoencoder.encode(&pixels, shape, &Scaling::None, draw, precision, &Control::new()).unwrap().values
    };
    let psnr = psnr(&encode(Precision::Fast), &encode(Precision::Exact));
    assert!(psnr >= CLOSE, "{psnr:.1} dB");
}

#[test]
fn the_comparison_with_exact_depends_on_the_weights_alone() {
    let found = |threads: usize, first: &dyn Fn(&Autoencoder)| {
        let autoencoder = embedded(threads);
        assert!(autoencoder.calibration(Operation::Decode).is_none());
        first(&autoencoder);
        autoencoder.calibration(Operation::Decode).unwrap()
    };
    let prepared = found(1, &|autoencoder| autoencoder.warm(Operation::Decode, Precision::Fast).unwrap());
    let used = found(7, &|autoencoder| drop(decode(autoencoder, &values(3 * 4 * 35, 2), [3, 4, 5, 7])));
    assert_eq!(prepared, used);
    assert!(prepared.psnr >= CLOSE && prepared.integer16_layers > 20, "{prepared:?}");
    assert_eq!(prepared.float32_layers, Vec::<String>::new());
}

/// A checkpoint with a layer that integers do not suit: one of its inputs is always zero and has by far the largest
/// weights, which set the scale of all others.
struct Lopsided<'a>(&'a dyn WeightSource);

const LOPSIDED: &str = "decoder.up_blocks.3.resnets.0";

impl WeightSource for Lopsided<'_> {
    fn read(&self, spec: &WeightSpec) -> Result<Vec<f32>, ModelError> {
        let mut values = self.0.read(spec)?;
        match spec.name.strip_prefix(LOPSIDED) {
            Some(".norm1.weight" | ".norm1.bias") => values[0] = 0.0,
            Some(".conv1.weight") => {
                let (row, kernel) = (values.len() / spec.shape[0], 9);
                values.chunks_exact_mut(row).for_each(|row| row[..kernel].fill(1e5));
            }
            _ => {}
        }
        Ok(values)
    }
}

#[test]
fn a_layer_that_integers_do_not_suit_computes_in_floating_point() {
    let model = Model::embedded().unwrap();
    let weights = Lopsided(model.weights());
    let graph = model.decoder().unwrap();
    let shape = [1, 4, 12, 12];
    let latents = values(shape.iter().product(), 6);
    for engine in engines() {
        let program = engine.load(graph, &weights).unwrap();
        let run = |precision| {
            let plan = engine.plan(graph, shape, precision).unwrap();
            program.run(&plan, &latents, &Control::new()).unwrap()
        };
        let psnr = psnr(&run(Precision::Fast), &run(Precision::Exact));
        let found = program.calibration().unwrap();
        assert!(psnr >= CLOSE && found.psnr >= CLOSE, "{psnr:.1} dB, {found:?}");
        assert_eq!(found.float32_layers, [format!("{LOPSIDED}.conv1")], "{found:?}");
    }
}
