//! diffusers' output in tiles on small random models of pictures: `tests/golden/tiled.json`, made by the script there.

use crate::support::{Tensor, assert_close, engine, golden_folder, largest_difference, read_tensors};
use remote_vae_engine::{Autoencoder, Control, Delivery, Draw, Image, Precision, Windows};
use remote_vae_kernels::Isa;
use remote_vae_model::Model;
use remote_vae_wire::{Operation, Scaling, TileSizes};
use serde_json::Value;

const TOLERANCE: f32 = 1e-4;

struct Case {
    source: String,
    operation: Operation,
    sizes: TileSizes,
    is_cut: bool,
    input: Tensor,
    result: Tensor,
}

fn cases() -> Vec<Case> {
    let list = std::fs::read_to_string(golden_folder().join("tiled.json")).unwrap();
    let list: Vec<Value> = serde_json::from_str(&list).unwrap();
    let mut tensors = read_tensors(&golden_folder().join("tiled.cases.safetensors"));
    assert!(list.len() >= 17);
    let case = |(index, entry): (usize, &Value)| {
        let side = |name: &str| entry[name].as_u64().map(|side| side as usize);
        Case {
            source: entry["source"].as_str().unwrap().to_owned(),
            operation: match entry["operation"].as_str().unwrap() {
                "decode" => Operation::Decode,
                _ => Operation::Encode,
            },
            sizes: TileSizes {
                sample_min_size: side("tile_sample_min_size"),
                latent_min_size: side("tile_latent_min_size"),
                overlap_factor: entry["tile_overlap_factor"].as_f64(),
            },
            is_cut: entry["is_cut"].as_bool().unwrap(),
            input: tensors.remove(&format!("{index}.input")).unwrap(),
            result: tensors.remove(&format!("{index}.result")).unwrap(),
        }
    };
    list.iter().enumerate().map(case).collect()
}

fn autoencoder(source: &str, threads: usize) -> Autoencoder {
    Autoencoder::new(
        Model::open(&golden_folder().join(source)).unwrap(),
        engine(threads, Isa::detect().name()),
    )
}

fn decode(own: &Autoencoder, latents: &Tensor, sizes: TileSizes, precision: Precision) -> Image {
    let (values, shape) = (latents.values.clone(), latents.shape4());
    own.decode_in_tiles(values, shape, &Scaling::None, sizes, precision, &Control::new()).unwrap()
}

/// Every third row and fifth column.
fn thinned(image: &Image) -> Vec<f32> {
    let [batch, channels, height, width] = image.shape;
    let mut values = Vec::new();
    for plane in 0..batch * channels {
        for y in (0..height).step_by(3) {
            values.extend((0..width).step_by(5).map(|x| image.pixels[(plane * height + y) * width + x]));
        }
    }
    values
}

#[test]
fn tiles_are_cut_and_blended_as_diffusers_does() {
    for (index, case) in cases().iter().enumerate() {
        let Case { source, operation, sizes, is_cut, input, result } = case;
        let (own, control) = (autoencoder(source, 2), Control::new());
        let what = format!("case {index} {source} {operation:?} {:?} {sizes:?}", input.shape);
        let exact = Precision::Exact;
        let (found, whole) = match operation {
            Operation::Decode => {
                let image = decode(&own, input, *sizes, exact);
                let (values, shape) = (input.values.clone(), input.shape4());
                let whole = own.decode(values, shape, &Scaling::None, exact, &control).unwrap();
                assert_eq!(image.shape, whole.shape, "{what}");
                (thinned(&image), thinned(&whole))
            }
            Operation::Encode => {
                let draw = if own.model().encoder_yields_moments() { Draw::Moments } else { Draw::Mode };
                let (values, shape, none) = (input.values.clone(), input.shape4(), &Scaling::None);
                let whole = own.encode(&values, shape, none, draw, exact, &control).unwrap();
                let tiled = own.encode_in_tiles(values, shape, none, draw, *sizes, exact, &control).unwrap();
                assert_eq!(tiled.shape[..], result.shape[..], "{what}");
                (tiled.values, whole.values)
            }
        };
        assert_close(&found, &result.values, TOLERANCE, &what);
        let difference = largest_difference(&found, &whole);
        assert_eq!(difference > 2.0 * TOLERANCE, *is_cut, "{what}: {difference}");
    }
}

/// A tile is a picture of its own, so threads and batch change nothing.
#[test]
fn tiled_pictures_have_the_same_bytes_for_any_threads_and_batch() {
    let cases = cases();
    let case = cases.iter().find(|case| case.input.shape[0] == 2 && case.source == "sd15").unwrap();
    for precision in Precision::ALL {
        let both = decode(&autoencoder("sd15", 2), &case.input, case.sizes, precision);
        let [_, channels, height, width] = case.input.shape4();
        let second = Tensor {
            shape: vec![1, channels, height, width],
            values: case.input.values[channels * height * width..].to_vec(),
        };
        let alone = decode(&autoencoder("sd15", 1), &second, case.sizes, precision);
        assert!(both.pixels[both.pixels.len() / 2..] == alone.pixels, "{precision:?}");
    }
}

#[test]
fn plans_of_tiles_count_their_work_and_memory() {
    let own = autoencoder("sd15", 2);
    let (sizes, exact) = (TileSizes::default(), Precision::Exact);
    let plan = |shape| own.plan_in_tiles(Operation::Decode, shape, sizes, exact).unwrap();
    let whole = |shape| own.plan_decode(shape, exact).unwrap();
    // No larger than a tile.
    assert_eq!(plan([2, 4, 8, 7]), whole([2, 4, 8, 7]));
    let large = [1, 4, 128, 128];
    let (tiled, straight) = (plan(large), whole(large));
    assert_eq!((tiled.input, tiled.output), (straight.input, straight.output));
    let windows = Windows { frames: false, tiles: Some(sizes) };
    let parts =
        own.plan_clip_parts(Operation::Decode, [1, 4, 1, 128, 128], windows, exact, Delivery::Whole).unwrap();
    // Tiles of 8 latents every 6 are 22 each way; the last ones have two.
    assert_eq!(parts.iter().map(|(_, count)| count).sum::<usize>(), 22 * 22);
    let work = parts.iter().map(|(plan, count)| plan.summary().flops * *count as u64);
    assert_eq!(tiled.flops, work.sum::<u64>());
    assert!(tiled.peak_bytes < straight.peak_bytes / 2, "{} of {}", tiled.peak_bytes, straight.peak_bytes);
    assert!(own.is_planned(Operation::Decode, [1, 4, 1, 128, 128], windows, exact, Delivery::Whole));
    assert!(!own.is_planned(Operation::Decode, [1, 4, 1, 129, 128], windows, exact, Delivery::Whole));
}

#[test]
fn models_without_such_tiles_refuse_them() {
    let (sizes, exact) = (TileSizes::default(), Precision::Exact);
    let dc = autoencoder("sana", 1).plan_in_tiles(Operation::Decode, [1, 8, 2, 2], sizes, exact);
    assert!(dc.unwrap_err().to_string().contains("AutoencoderDC"));
    let own = autoencoder("tiny", 1);
    let sizes = TileSizes { overlap_factor: Some(0.9), ..sizes };
    let error = own.plan_in_tiles(Operation::Decode, [1, 4, 9, 9], sizes, exact).unwrap_err();
    assert!(error.to_string().contains("from 0 to 0.5, got 0.9"));
}
