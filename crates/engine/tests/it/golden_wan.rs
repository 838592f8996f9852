//! diffusers' output on small random models of Wan's and Qwen-Image's kind: `tests/golden_video`, made by the script there.

use crate::support::{Tensor, assert_close, engine, engines, psnr, read_tensors};
use remote_vae_engine::{Autoencoder, Clip, Control, Draw, Engine, EngineError, Frames, Precision, Windows};
use remote_vae_kernels::Isa;
use remote_vae_model::{Checkpoint, Family, Model, Normalisation, Packing, VaeConfig};
use remote_vae_wire::{Operation, Scaling, TileSizes};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const TOLERANCE: f32 = 1e-4;
const WHOLE: Windows = Windows { frames: false, tiles: None };

/// Models and the files of what diffusers makes of them.
const CASES: [(&str, &str, [usize; 2]); 3] = [
    ("wan", "wan", [7, 4]),
    ("wan22", "wan22", [6, 3]),
    ("qwen-image.safetensors", "qwen-image_expected", [7, 2]),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden_video")
}

fn autoencoder(name: &str, engine: Arc<dyn Engine>) -> Autoencoder {
    Autoencoder::new(Model::open(&folder().join(name)).unwrap(), engine)
}

fn detected(name: &str) -> Autoencoder {
    autoencoder(name, engine(2, Isa::detect().name()))
}

fn expected(name: &str) -> BTreeMap<String, Tensor> {
    read_tensors(&folder().join(format!("{name}.safetensors")))
}

fn shape5(tensor: &Tensor) -> [usize; 5] {
    tensor.shape.as_slice().try_into().unwrap()
}

fn decode(own: &Autoencoder, latents: &Tensor, windows: Windows, precision: Precision) -> Clip {
    let (values, shape) = (latents.values.clone(), shape5(latents));
    own.decode_clip(values, shape, &Scaling::None, windows, precision, &Control::new()).unwrap()
}

fn encode(own: &Autoencoder, pixels: &Tensor, windows: Windows) -> Clip {
    let (values, shape) = (pixels.values.clone(), shape5(pixels));
    let precision = Precision::Exact;
    own.encode_clip(values, shape, &Scaling::None, Draw::Mode, windows, precision, &Control::new()).unwrap()
}

/// The first half of the channels of moments.
fn mode(moments: &Tensor) -> Vec<f32> {
    let sample: usize = moments.shape[1..].iter().product();
    moments.values.chunks_exact(sample).flat_map(|sample| &sample[..sample.len() / 2]).copied().collect()
}

#[test]
fn clips_decode_and_encode_as_diffusers_does_it_whole_or_in_parts() {
    for (model, file, [decodes, encodes]) in CASES {
        let expected = expected(file);
        for engine in engines() {
            let what = format!("{model} {}", engine.name(Precision::Exact));
            // Other tiers differ in their kernels only, which one clip of each kind shows.
            let every = engine.isa() == Isa::detect().name();
            let own = autoencoder(model, engine);
            for case in (0..decodes).filter(|case| every || *case == 1) {
                let latents = &expected[&format!("decode.{case}.latents")];
                let wanted = &expected[&format!("decode.{case}.pixels")];
                let parts = decode(&own, latents, Windows::default(), Precision::Exact);
                assert_eq!(parts.shape[..], wanted.shape[..], "{what}");
                assert_close(&parts.values, &wanted.values, TOLERANCE, &format!("{what} decode.{case}"));
                let whole = decode(&own, latents, WHOLE, Precision::Exact);
                assert!(whole == parts, "{what} decode.{case}: parts are not the whole");
            }
            for case in (0..encodes).filter(|case| every || *case == 1) {
                let pixels = &expected[&format!("encode.{case}.pixels")];
                let wanted = &expected[&format!("encode.{case}.moments")];
                let parts = encode(&own, pixels, Windows::default());
                let [batch, channels, frames, height, width] = shape5(wanted);
                assert_eq!(parts.shape, [batch, channels / 2, frames, height, width], "{what}");
                assert_close(&parts.values, &mode(wanted), TOLERANCE, &format!("{what} encode.{case}"));
                assert!(
                    encode(&own, pixels, WHOLE) == parts,
                    "{what} encode.{case}: parts are not the whole"
                );
            }
            assert!(!expected.contains_key(&format!("decode.{decodes}.latents")));
            assert!(!expected.contains_key(&format!("encode.{encodes}.pixels")));
        }
    }
}

#[test]
fn fast_is_close_and_the_same_whole_or_in_parts() {
    for (model, file, [decodes, _]) in CASES {
        let expected = expected(file);
        let own = detected(model);
        for case in 0..decodes {
            let latents = &expected[&format!("decode.{case}.latents")];
            let parts = decode(&own, latents, Windows::default(), Precision::Fast);
            let exact = &expected[&format!("decode.{case}.pixels")].values;
            let psnr = psnr(&parts.values, exact);
            assert!(psnr >= 54.0, "{model} decode.{case}: {psnr:.1} dB");
            assert!(parts.values != *exact, "{model} decode.{case} ran in f32");
            let three = autoencoder(model, engine(3, Isa::detect().name()));
            assert!(decode(&three, latents, WHOLE, Precision::Fast) == parts, "{model} decode.{case}");
        }
        let found = own.calibration(Operation::Decode).unwrap();
        assert!(found.integer16_layers > 20, "{model}: {found:?}");
    }
}

#[test]
fn tiles_are_those_of_diffusers() {
    let windows = Windows { frames: true, tiles: Some(TileSizes::default()) };
    // Only a config says that a model is Qwen-Image's.
    let config = r#"{"_class_name": "AutoencoderKLQwenImage", "base_dim": 4}"#;
    let checkpoint = Checkpoint::open(&folder().join("qwen-image.safetensors")).unwrap();
    let qwen = Model::from_checkpoint(checkpoint, Some(config), "qwen").unwrap();
    let qwen = Autoencoder::new(qwen, engine(2, Isa::detect().name()));
    for (model, own) in [("wan", detected("wan")), ("wan22", detected("wan22")), ("qwen-image", qwen)] {
        let expected = expected(&format!("{model}_tiled"));
        let found = decode(&own, &expected["latents"], windows, Precision::Exact);
        let [_, channels, frames, height, width] = found.shape;
        let mut thinned = Vec::new();
        for plane in 0..channels * frames {
            for (y, x) in (0..height).step_by(14).flat_map(|y| (0..width).step_by(15).map(move |x| (y, x))) {
                thinned.push(found.values[(plane * height + y) * width + x]);
            }
        }
        assert_close(&thinned, &expected["pixels"].values, TOLERANCE, model);
        let moments = encode(&own, &expected["encode.pixels"], windows);
        assert_close(&moments.values, &mode(&expected["encode.moments"]), TOLERANCE, model);
        assert_eq!(own.frame_groups(shape5(&expected["latents"]), windows), 1);
        // Of Qwen-Image's tiles diffusers clamps nothing.
        let beyond = expected["pixels"].values.iter().any(|value| value.abs() > 1.0);
        assert_eq!(beyond, model == "qwen-image");
    }
}

#[test]
fn a_pipelines_latents_are_scaled_channel_by_channel() {
    for (model, file, _) in CASES {
        let (own, expected) = (detected(model), expected(file));
        let (latents, wanted) = (&expected["client.latents"], &expected["client.pixels"]);
        let decode = |scaling: &Scaling| {
            let (values, shape) = (latents.values.clone(), shape5(latents));
            own.decode_clip(values, shape, scaling, Windows::default(), Precision::Exact, &Control::new())
        };
        let found = decode(&Scaling::Model { shift: None }).unwrap();
        assert_close(&found.values, &wanted.values, TOLERANCE, model);
        let refused = decode(&Scaling::Explicit { scale: 0.5, shift: None }).unwrap_err();
        assert!(refused.to_string().contains("do_scaling=True"), "{refused}");
        // Encoded and decoded again by the same scaling.
        let pixels = &expected["encode.1.pixels"];
        let encode = |scaling: &Scaling| {
            let (values, shape) = (pixels.values.clone(), shape5(pixels));
            let (windows, precision) = (Windows::default(), Precision::Exact);
            own.encode_clip(values, shape, scaling, Draw::Mode, windows, precision, &Control::new()).unwrap()
        };
        let (own_space, clients) = (encode(&Scaling::None), encode(&Scaling::Model { shift: None }));
        let Normalisation::PerChannel { mean, std, .. } = &own.model().latent_space.normalisation else {
            panic!("{model} has no mean of each channel")
        };
        let plane: usize = own_space.shape[2..].iter().product();
        for (index, (own, client)) in own_space.values.iter().zip(&clients.values).enumerate() {
            let channel = index / plane % mean.len();
            let back = f64::from(*client) * std[channel] + mean[channel];
            assert!((back - f64::from(*own)).abs() < 1e-5);
        }
    }
}

#[test]
fn frames_come_in_groups_of_one_latent_and_are_those_of_the_clip() {
    let own = detected("wan");
    let expected = expected("wan");
    let latents = &expected["decode.2.latents"];
    let whole = decode(&own, latents, WHOLE, Precision::Exact);
    let [batch, channels, frames, height, width] = whole.shape;
    let mut groups: Vec<Frames> = Vec::new();
    own.decode_frames(
        latents.values.clone(),
        shape5(latents),
        &Scaling::None,
        Windows::default(),
        Precision::Exact,
        &Control::new(),
        &mut |frames| {
            groups.push(frames);
            Ok::<(), EngineError>(())
        },
    )
    .unwrap();
    let places: Vec<[usize; 3]> =
        groups.iter().map(|group| [group.sample, group.first, group.shape[1]]).collect();
    let of = |sample| [[sample, 0, 1], [sample, 1, 4], [sample, 5, 4], [sample, 9, 4]];
    assert_eq!(places, [of(0), of(1)].concat());
    assert_eq!((batch, groups.len()), (2, 2 * own.frame_groups(shape5(latents), Windows::default())));
    let plane = height * width;
    for group in &groups {
        for (channel, values) in group.values.chunks_exact(group.shape[1] * plane).enumerate() {
            let start = ((group.sample * channels + channel) * frames + group.first) * plane;
            assert_eq!(*values, whole.values[start..][..values.len()]);
        }
    }
}

#[test]
fn memory_does_not_grow_with_the_length_of_a_clip() {
    for (model, channels) in [("wan", 16), ("wan22", 48)] {
        let own = detected(model);
        for precision in Precision::ALL {
            let plan = |latents| {
                let shape = [1, channels, latents, 16, 16];
                own.plan_decode_frames(shape, Windows::default(), precision).unwrap()
            };
            let (one, short, long) = (plan(1), plan(5), plan(16));
            assert_eq!([one, short, long].map(|plan| plan.frames[1]), [1, 17, 61]);
            assert!(long.peak_bytes < short.peak_bytes + short.peak_bytes / 10, "{short:?} {long:?}");
            assert!(short.activation_bytes == long.activation_bytes);
            let whole = own.plan_decode_clip([1, channels, 16, 16, 16], WHOLE, precision).unwrap();
            assert!(whole.activation_bytes > 3 * long.activation_bytes);
            // A picture multiplies the last of three taps only.
            let later = (long.flops - short.flops) / 11;
            assert!(one.flops < short.flops / 9 && later > 3 * one.flops, "{} {later}", one.flops);
        }
    }
}

#[test]
fn clips_that_do_not_fit_are_refused_by_what_is_expected() {
    let own = detected("wan22");
    let precision = Precision::Exact;
    let decode = |shape| own.plan_decode_clip(shape, Windows::default(), precision).unwrap_err().to_string();
    assert!(decode([1, 16, 2, 4, 4]).contains("expected 48 channels, got 16"));
    assert!(decode([1, 48, 0, 4, 4]).contains("empty side"));
    let encode = |shape| own.plan_encode_clip(shape, Windows::default(), precision).unwrap_err().to_string();
    assert!(encode([1, 3, 7, 16, 16]).contains("1 frame more than a multiple of 4"));
    assert!(encode([1, 3, 5, 16, 24]).contains("multiples of 16"));
}

#[test]
fn a_file_without_config_opens_as_what_it_is() {
    for model in ["wan", "wan22"] {
        let with = Model::open(&folder().join(model)).unwrap();
        let file = folder().join(model).join("diffusion_pytorch_model.safetensors");
        let alone = Model::from_checkpoint(Checkpoint::open(&file).unwrap(), None, "alone").unwrap();
        assert_eq!((alone.family, &alone.latent_space), (with.family, &with.latent_space));
        assert_eq!(alone.config, with.config, "{model}");
        assert_eq!((alone.family, alone.temporal_factor()), (Family::AutoencoderKlWan, Some(4)));
        assert_eq!(alone.description().packed_token_size, None);
    }
    let open = |config: Option<&str>| {
        let checkpoint = Checkpoint::open(&folder().join("qwen-image.safetensors")).unwrap();
        Model::from_checkpoint(checkpoint, config, "qwen").unwrap()
    };
    let alone = open(None);
    let config = r#"{"_class_name": "AutoencoderKLQwenImage", "base_dim": 4, "input_channels": 3}"#;
    let stated = open(Some(config));
    assert_eq!((alone.family, stated.family), (Family::AutoencoderKlWan, Family::AutoencoderKlQwenImage));
    assert_eq!(alone.config, stated.config);
    assert_eq!(
        (alone.latent_space.packing, stated.latent_space.packing),
        (Packing::None, Packing::Patches2x2)
    );
    let VaeConfig::Wan(config) = &alone.config else { panic!("not of Wan's kind") };
    assert_eq!((config.base_dim, &config.dim_mult[..]), (4, &[1, 2, 4, 4][..]));
}
