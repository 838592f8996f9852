//! diffusers' output on small random video models: `tests/golden_video`, made by the script there.

use crate::support::{Tensor, assert_close, engine, engines, psnr, read_tensors, values};
use remote_vae_engine::{
    Autoencoder, Control, Delivery, Draw, EngineError, Frames, Plan, Precision, Windows,
};
use remote_vae_kernels::Isa;
use remote_vae_model::{Checkpoint, Graph, Model, VaeConfig};
use remote_vae_wire::{Operation, Scaling, TileSizes};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const TOLERANCE: f32 = 1e-4;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden_video")
}

/// Runs every case of `kind` on whole clips and gives their number.
fn check_whole(model: &Model, graph: &Graph, kind: &str, input: &str, output: &str) -> usize {
    let expected = read_tensors(&folder().join("hunyuan.safetensors"));
    let mut checked = 0;
    while let Some(given) = expected.get(&format!("{kind}.{checked}.{input}")) {
        let whole = expected.get(&format!("{kind}.{checked}.whole"));
        let wanted = whole.unwrap_or_else(|| &expected[&format!("{kind}.{checked}.{output}")]);
        let shape: [usize; 5] = given.shape.as_slice().try_into().unwrap();
        for engine in engines() {
            let plan = engine.plan_clip(graph, shape, Precision::Exact).unwrap();
            let program = engine.load(graph, model.weights()).unwrap();
            let found = program.run(&plan, &given.values, &Control::new()).unwrap();
            let what = format!("{kind}.{checked} {}", engine.name(Precision::Exact));
            let [batch, channels, height, width] = plan.output;
            assert_eq!([batch, channels, plan.frames[1], height, width][..], wanted.shape[..], "{what}");
            assert_close(&found, &wanted.values, TOLERANCE, &what);
        }
        checked += 1;
    }
    checked
}

#[test]
fn whole_clips_decode_as_diffusers_decodes_them() {
    let model = Model::open(&folder().join("hunyuan")).unwrap();
    assert_eq!(check_whole(&model, model.decoder().unwrap(), "decode", "latents", "pixels"), 6);
}

#[test]
fn whole_clips_encode_as_diffusers_encodes_them() {
    let model = Model::open(&folder().join("hunyuan")).unwrap();
    assert_eq!(check_whole(&model, model.encoder().unwrap(), "encode", "pixels", "moments"), 4);
}

fn autoencoder() -> Autoencoder {
    Autoencoder::new(Model::open(&folder().join("hunyuan")).unwrap(), engine(2, Isa::detect().name()))
}

#[test]
fn clips_are_cut_into_windows_as_diffusers_cuts_them() {
    let autoencoder = autoencoder();
    let expected = read_tensors(&folder().join("hunyuan.safetensors"));
    let shape5 = |tensor: &Tensor| -> [usize; 5] { tensor.shape.as_slice().try_into().unwrap() };
    let mut cut = 0;
    for case in 0..6 {
        let (latents, pixels) =
            (&expected[&format!("decode.{case}.latents")], &expected[&format!("decode.{case}.pixels")]);
        let found = autoencoder
            .decode_clip(
                latents.values.clone(),
                shape5(latents),
                &Scaling::None,
                Windows::default(),
                Precision::Exact,
                &Control::new(),
            )
            .unwrap();
        assert_eq!(found.shape[..], pixels.shape[..]);
        assert_close(&found.values, &pixels.values, TOLERANCE, &format!("decode.{case}"));
        assert_eq!(autoencoder.clip_pixels(shape5(latents)).unwrap(), found.shape);
        cut += usize::from(expected.contains_key(&format!("decode.{case}.whole")));
    }
    for case in 0..4 {
        let (pixels, moments) =
            (&expected[&format!("encode.{case}.pixels")], &expected[&format!("encode.{case}.moments")]);
        let found = autoencoder
            .encode_clip(
                pixels.values.clone(),
                shape5(pixels),
                &Scaling::None,
                Draw::Mode,
                Windows::default(),
                Precision::Exact,
                &Control::new(),
            )
            .unwrap();
        // The mode is the first half of the moments' channels.
        let [batch, channels, frames, height, width] = shape5(moments);
        assert_eq!(found.shape, [batch, channels / 2, frames, height, width]);
        let means: Vec<f32> = moments
            .values
            .chunks_exact(channels * frames * height * width)
            .flat_map(|sample| &sample[..channels / 2 * frames * height * width])
            .copied()
            .collect();
        assert_close(&found.values, &means, TOLERANCE, &format!("encode.{case}"));
        cut += usize::from(expected.contains_key(&format!("encode.{case}.whole")));
    }
    assert!(cut >= 4, "only {cut} cases have windows");
}

#[test]
fn frames_are_handed_on_in_order_and_are_those_of_the_clip() {
    let autoencoder = autoencoder();
    let shape = [2, 4, 9, 2, 1];
    let latents = values(shape.iter().product(), 5);
    let windows = Windows::default();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let decode = |emit: &mut dyn FnMut(Frames) -> Result<(), EngineError>| {
        let (latents, precision, report) = (latents.clone(), Precision::Exact, Arc::clone(&seen));
        let control = Control::with_progress(move |progress| report.lock().unwrap().push(progress));
        autoencoder.decode_frames(latents, shape, &Scaling::None, windows, precision, &control, emit)
    };
    let (mut groups, mut steps_before) = (Vec::new(), Vec::new());
    decode(&mut |frames| {
        groups.push(frames);
        steps_before.push(seen.lock().unwrap().len());
        Ok(())
    })
    .unwrap();
    assert_eq!(groups.iter().map(|group| group.shape[1]).collect::<Vec<_>>(), [13, 12, 8, 13, 12, 8]);
    assert_eq!(autoencoder.frame_groups(shape, windows), 3);
    // Later windows run after the frames of earlier ones were handed on, and the progress is that of all together.
    assert!(steps_before.is_sorted_by(|a, b| a < b));
    let progress = std::mem::take(&mut *seen.lock().unwrap());
    let last = progress[progress.len() - 1];
    assert!(progress.is_sorted_by(|a, b| a.step < b.step && a.done_flops <= b.done_flops));
    assert_eq!((last.step, last.done_flops, progress.len()), (last.steps, last.total_flops, last.steps));
    let precision = Precision::Exact;
    let whole = autoencoder
        .decode_clip(latents.clone(), shape, &Scaling::None, windows, precision, &Control::new())
        .unwrap();
    let [_, channels, frames, height, width] = whole.shape;
    let plane = height * width;
    let mut next = [0; 2];
    for group in &groups {
        assert_eq!((group.first, group.shape[0]), (next[group.sample], channels));
        assert!(group.sample == 1 || next[1] == 0, "the first clip comes first");
        next[group.sample] += group.shape[1];
        for (channel, values) in group.values.chunks_exact(group.shape[1] * plane).enumerate() {
            let start = ((group.sample * channels + channel) * frames + group.first) * plane;
            assert_eq!(*values, whole.values[start..][..values.len()]);
        }
    }
    assert_eq!(next, [frames; 2]);

    let mut calls = 0;
    let stopped = decode(&mut |_| {
        calls += 1;
        Err(EngineError::Cancelled)
    });
    assert!(matches!(stopped, Err(EngineError::Cancelled)) && calls == 1);
}

#[test]
fn frames_that_are_handed_on_take_no_memory_with_the_length_of_the_clip() {
    let autoencoder = autoencoder();
    let plan = |frames| {
        let shape = [1, 4, frames, 8, 8];
        autoencoder.plan_decode_frames(shape, Windows::default(), Precision::Exact).unwrap()
    };
    // The second window is whole, beside the first and frames that were handed on.
    let (short, long) = (plan(8), plan(16));
    assert_eq!((short.frames[1], long.frames[1]), (29, 61));
    assert!(long.peak_bytes < short.peak_bytes * 11 / 10, "{} and {}", short.peak_bytes, long.peak_bytes);
}

#[test]
fn a_single_picture_costs_a_third() {
    let autoencoder = autoencoder();
    let expected = read_tensors(&folder().join("hunyuan.safetensors"));
    let model = autoencoder.model();
    let flops = |plan: &Plan, kind: &str| -> u64 {
        plan.steps.iter().filter(|step| step.operation.starts_with(kind)).map(|step| step.flops).sum()
    };
    for (operation, graph, kind, input) in [
        (Operation::Decode, model.decoder().unwrap(), "decode", "latents"),
        (Operation::Encode, model.encoder().unwrap(), "encode", "pixels"),
    ] {
        // The program of clips, given one frame.
        let given = &expected[&format!("{kind}.0.{input}")];
        let shape: [usize; 5] = given.shape.as_slice().try_into().unwrap();
        let engine = engine(2, Isa::detect().name());
        let plan = engine.plan_clip(graph, shape, Precision::Exact).unwrap();
        let clip = engine.load(graph, model.weights()).unwrap();
        let clip = clip.run(&plan, &given.values, &Control::new()).unwrap();
        let (values, control, windows) = (given.values.clone(), Control::new(), Windows::default());
        let still = match operation {
            Operation::Decode => {
                autoencoder.decode_clip(values, shape, &Scaling::None, windows, Precision::Exact, &control)
            }
            Operation::Encode => autoencoder.encode_clip(
                values,
                shape,
                &Scaling::None,
                Draw::Moments,
                windows,
                Precision::Exact,
                &control,
            ),
        };
        assert_close(&still.unwrap().values, &clip, TOLERANCE, kind);
        let parts = autoencoder
            .plan_clip_parts(operation, shape, windows, Precision::Exact, Delivery::Whole)
            .unwrap();
        let single = &parts[0].0;
        assert_eq!(flops(single, "convolution 3x3x3"), 0);
        assert_eq!(flops(&plan, "convolution 3x3x3"), 3 * flops(single, "convolution 3x3"));
    }
}

#[test]
fn tiles_of_pictures_are_those_of_diffusers() {
    let autoencoder = autoencoder();
    let expected = read_tensors(&folder().join("hunyuan_tiled.safetensors"));
    let (latents, pixels) = (&expected["latents"], &expected["pixels"]);
    let shape = latents.shape.as_slice().try_into().unwrap();
    let windows = Windows { frames: true, tiles: Some(TileSizes::default()) };
    let found = autoencoder
        .decode_clip(
            latents.values.clone(),
            shape,
            &Scaling::None,
            windows,
            Precision::Exact,
            &Control::new(),
        )
        .unwrap();
    // Rows 14 and columns 15 apart stand for all: the seams lie among them.
    let [_, channels, frames, height, width] = found.shape;
    let mut thinned = Vec::new();
    for plane in 0..channels * frames {
        for y in (0..height).step_by(14) {
            for x in (0..width).step_by(15) {
                thinned.push(found.values[(plane * height + y) * width + x]);
            }
        }
    }
    assert_close(&thinned, &pixels.values, TOLERANCE, "tiled");
}

#[test]
fn fast_clips_are_close_to_exact_ones_and_need_less_memory() {
    let autoencoder = autoencoder();
    let expected = read_tensors(&folder().join("hunyuan.safetensors"));
    for case in 0..6 {
        let latents = &expected[&format!("decode.{case}.latents")];
        let shape = latents.shape.as_slice().try_into().unwrap();
        let decode = |threads| {
            let model = Model::open(&folder().join("hunyuan")).unwrap();
            Autoencoder::new(model, engine(threads, Isa::detect().name()))
                .decode_clip(
                    latents.values.clone(),
                    shape,
                    &Scaling::None,
                    Windows::default(),
                    Precision::Fast,
                    &Control::new(),
                )
                .unwrap()
        };
        let exact = &expected[&format!("decode.{case}.pixels")].values;
        let (fast, again) = (decode(1), decode(3));
        assert_eq!(fast, again, "threads change the bytes");
        let psnr = psnr(&fast.values, exact);
        // The bound of pictures.
        assert!(psnr >= 54.0, "decode.{case}: {psnr:.1} dB");
        assert!(fast.values != *exact, "decode.{case} ran in f32");
    }
    let bytes = |precision| {
        let windows = Windows { frames: false, tiles: None };
        autoencoder.plan_decode_clip([1, 4, 5, 48, 48], windows, precision).unwrap().activation_bytes
    };
    assert!(bytes(Precision::Fast) < bytes(Precision::Exact) * 4 / 5);
}

#[test]
fn plans_of_windows_cost_less_memory_than_whole_clips() {
    let autoencoder = autoencoder();
    let plan = |windows| autoencoder.plan_decode_clip([1, 4, 21, 8, 8], windows, Precision::Exact).unwrap();
    let (whole, cut) = (plan(Windows { frames: false, tiles: None }), plan(Windows::default()));
    assert_eq!((whole.frames, cut.frames), ([21, 81], [21, 81]));
    assert!(cut.activation_bytes < whole.activation_bytes / 2 && cut.peak_bytes < whole.peak_bytes);
    assert!(cut.flops > whole.flops, "windows overlap");
}

#[test]
fn clips_that_do_not_fit_are_refused_by_what_is_expected() {
    let autoencoder = autoencoder();
    let decode = |shape| {
        autoencoder.plan_decode_clip(shape, Windows::default(), Precision::Exact).unwrap_err().to_string()
    };
    assert!(decode([1, 3, 2, 4, 4]).contains("expected 4 channels, got 3"));
    assert!(decode([1, 4, 0, 4, 4]).contains("empty side"));
    let encode = |shape| {
        autoencoder.plan_encode_clip(shape, Windows::default(), Precision::Exact).unwrap_err().to_string()
    };
    assert!(encode([1, 3, 6, 8, 8]).contains("1 frame more than a multiple of 4"));
    assert!(encode([1, 3, 5, 8, 9]).contains("multiples of 8"));
    assert!(encode([1, 3, 0, 8, 8]).contains("1 frame more"));
}

/// The name of a tensor in ComfyUI's file, four levels deep.
fn comfy_name(name: &str) -> String {
    let mut name = name.to_owned();
    for level in 0..4 {
        name = name.replace(&format!("decoder.up_blocks.{level}."), &format!("decoder.up.{}.", 3 - level));
    }
    for (from, to) in [
        ("mid_block.resnets.0.", "mid.block_1."),
        ("mid_block.resnets.1.", "mid.block_2."),
        ("mid_block.attentions.0.", "mid.attn_1."),
        ("attn_1.group_norm.", "attn_1.norm."),
        ("attn_1.to_out.0.", "attn_1.proj_out."),
        ("attn_1.to_", "attn_1."),
        ("down_blocks.", "down."),
        ("resnets.", "block."),
        ("conv_shortcut.", "nin_shortcut."),
        ("downsamplers.0.", "downsample."),
        ("upsamplers.0.", "upsample."),
        ("conv_norm_out.", "norm_out."),
    ] {
        name = name.replace(from, to);
    }
    name
}

#[test]
fn a_file_with_comfyuis_names_is_the_same_model() {
    let file = std::fs::read(folder().join("hunyuan/diffusion_pytorch_model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let renamed = |prefix: &str, without: &[&str]| {
        let kept = tensors.iter().filter(|(name, _)| !without.iter().any(|part| name.starts_with(part)));
        let views = kept.map(|(name, view)| {
            let mut shape = view.shape().to_vec();
            // Linear layers of the attention are convolutions of one element there.
            if name.contains("attentions") && shape.len() == 2 {
                shape.extend([1, 1, 1]);
            }
            let view = safetensors::tensor::TensorView::new(view.dtype(), shape, view.data()).unwrap();
            (format!("{prefix}{}", comfy_name(name)), view)
        });
        safetensors::serialize(views, None).unwrap()
    };
    let config = std::fs::read_to_string(folder().join("hunyuan/config.json")).unwrap();
    let open = |bytes: Vec<u8>, config: Option<&str>| {
        let checkpoint = Checkpoint::from_static("comfy", bytes.leak()).unwrap();
        Model::from_checkpoint(checkpoint, config, "comfy").unwrap()
    };
    for prefix in ["", "vae."] {
        let model = open(renamed(prefix, &[]), Some(&config));
        assert_eq!(check_whole(&model, model.decoder().unwrap(), "decode", "latents", "pixels"), 6);
        assert_eq!(check_whole(&model, model.encoder().unwrap(), "encode", "pixels", "moments"), 4);
    }
    let VaeConfig::HunyuanVideo(found) = open(renamed("", &[]), None).config else {
        panic!("not a HunyuanVideo")
    };
    assert_eq!((found.block_out_channels, found.mid_block_add_attention), (vec![8, 8, 16, 16], true));
    for (without, halves) in
        [(["encoder", "quant_conv"], (true, false)), (["decoder", "post_quant_conv"], (false, true))]
    {
        let half = open(renamed("", &without), Some(&config));
        assert_eq!((half.decoder().is_some(), half.encoder().is_some()), halves);
    }
}

#[test]
fn a_file_without_config_opens_as_what_it_is() {
    let with = Model::open(&folder().join("hunyuan")).unwrap();
    let file = folder().join("hunyuan/diffusion_pytorch_model.safetensors");
    let alone = Model::from_checkpoint(Checkpoint::open(&file).unwrap(), None, "alone").unwrap();
    assert_eq!((alone.family, &alone.latent_space), (with.family, &with.latent_space));
    assert_eq!(alone.temporal_factor(), Some(4));
    let (VaeConfig::HunyuanVideo(mut found), VaeConfig::HunyuanVideo(read)) = (alone.config, with.config)
    else {
        panic!("not a HunyuanVideo")
    };
    // Tensors do not tell the groups.
    assert_eq!(found.norm_num_groups, 8);
    found.norm_num_groups = read.norm_num_groups;
    assert_eq!(found, read);
}
