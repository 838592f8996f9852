//! Paths, element types, and files that are not checkpoints.

use std::fs;

use remote_vae_model::{Checkpoint, Model};

use crate::support::{
    Tensor, kl_config, kl_graphs, numbered, open, safetensors, single_file, small_kl, with_header,
    write_directory,
};

fn small() -> Vec<Tensor> {
    numbered(&kl_graphs(&kl_config(&small_kl())))
}

fn message(path: &std::path::Path) -> String {
    Model::open(path).unwrap_err().to_string()
}

#[test]
fn directories() {
    let root = tempfile::tempdir().unwrap();
    let vae = root.path().join("pipeline/vae");
    write_directory(&vae, &small_kl(), &small());
    for path in [vae.clone(), root.path().join("pipeline"), vae.join("diffusion_pytorch_model.safetensors")] {
        let model = Model::open(&path).unwrap();
        assert_eq!(model.label(), path.display().to_string());
        assert_eq!(
            serde_json::to_value(&model.config).unwrap()["sample_size"],
            32,
            "config.json was not read"
        );
    }
    fs::write(root.path().join("pipeline/sd.safetensors"), safetensors(&small())).unwrap();
    assert!(Model::open(&root.path().join("pipeline")).is_ok());
    let half = "diffusion_pytorch_model.fp16.safetensors";
    fs::rename(vae.join("diffusion_pytorch_model.safetensors"), vae.join(half)).unwrap();
    assert!(Model::open(&vae).is_ok());
    fs::rename(vae.join(half), vae.join("other.safetensors")).unwrap();
    assert!(Model::open(&vae).is_ok());
    fs::write(vae.join("second.safetensors"), b"").unwrap();
    let error = message(&vae);
    assert!(error.contains("2 safetensors files") && error.contains("`other.safetensors`"), "{error}");
}

#[test]
fn paths_without_a_checkpoint() {
    let root = tempfile::tempdir().unwrap();
    assert!(message(&root.path().join("absent")).contains("absent"));
    assert!(message(root.path()).contains("no safetensors file"));
    fs::write(root.path().join("model.bin"), b"x").unwrap();
    assert!(message(root.path()).contains("`model.bin`, which is a pickle"));
    fs::create_dir(root.path().join("vae")).unwrap();
    assert!(message(root.path()).contains("vae"));
    let (_folder, path) = single_file(b"");
    assert!(message(&path).contains("empty"));
    let (folder, path) = single_file(&safetensors(&small()));
    fs::rename(&path, folder.path().join("diffusion_pytorch_model.safetensors")).unwrap();
    fs::write(folder.path().join("config.json"), vec![b' '; 2 << 20]).unwrap();
    assert!(message(folder.path()).contains("longer than"));
    fs::write(folder.path().join("config.json"), [0xff, 0xfe]).unwrap();
    assert!(message(folder.path()).contains("UTF-8"));
}

#[test]
fn pickles_and_other_files_are_refused() {
    for start in
        [&b"PK\x03\x04rest of a zip archive"[..], b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M"]
    {
        let error = open(start).unwrap_err();
        assert!(
            error.contains("pickle") && error.contains("save_file") && error.contains("weights_only"),
            "{error}"
        );
    }
    assert!(open(b"GGUF\x03\0\0\0\0\0\0\0").unwrap_err().contains("GGUF"));
    assert!(open(b"version https://git-lfs.github.com/spec/v1\n").unwrap_err().contains("Git LFS"));
    assert!(open(b"hello").unwrap_err().contains("5 bytes"));
    assert!(open(b"\x89PNG\r\n\x1a\n").unwrap_err().contains("header would be"));
    // A header of 640 bytes begins like a pickle.
    let mut header = safetensors(&[])[8..].to_vec();
    header.resize(640, b' ');
    assert!(
        open(&with_header(std::str::from_utf8(&header).unwrap(), b""))
            .unwrap_err()
            .contains("no autoencoder")
    );
}

#[test]
fn element_types() {
    let values = [0.0f32, 1.0, -2.5, 448.0, 0.001_953_125];
    let f8 = [0x00, 0x38, 0xc2, 0x7e, 0x01];
    let tensor = |name: &str, dtype, data| Tensor { name: name.into(), dtype, shape: vec![5], data };
    let bytes = safetensors(&[
        tensor("a", "F32", values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        tensor("b", "F16", values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect()),
        tensor("c", "BF16", values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect()),
        tensor("d", "F64", values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect()),
        tensor("e", "F8_E4M3", f8.to_vec()),
        tensor("f", "I16", vec![0; 10]),
        tensor("g", "F8_E4M3", vec![0x7f, 0xff, 0x80, 0x07, 0x08]),
        tensor("h", "NEW_TYPE", vec![0; 3]),
    ]);
    let (_folder, path) = single_file(&bytes);
    let from_file = Checkpoint::open(&path).unwrap();
    let from_memory = Checkpoint::from_static("memory", bytes.clone().leak()).unwrap();
    for checkpoint in [&from_file, &from_memory] {
        for name in ["a", "b", "c", "d", "e"] {
            assert_eq!(checkpoint.read_f32(name).unwrap(), values, "{name}");
        }
        assert!(checkpoint.read_f32("f").unwrap_err().to_string().contains("`f`: its type is I16"));
        assert!(checkpoint.read_f32("h").unwrap_err().to_string().contains("NEW_TYPE"));
        assert!(checkpoint.read_f32("z").unwrap_err().to_string().contains("`z`"));
        let odd = checkpoint.read_f32("g").unwrap();
        assert!(odd[0].is_nan() && odd[1].is_nan());
        assert_eq!(odd[2].to_bits(), (-0.0f32).to_bits());
        assert_eq!(odd[3..], [7.0 / 512.0, 1.0 / 64.0]);
        assert_eq!(checkpoint.shape("a"), Some(&[5][..]));
        assert_eq!(checkpoint.names().count(), 8);
        assert_eq!(checkpoint.bytes(), bytes.len() as u64);
    }
}

#[test]
fn every_f8_value_is_exact() {
    let (_folder, path) = single_file(&safetensors(&[Tensor {
        name: "x".into(),
        dtype: "F8_E4M3",
        shape: vec![256],
        data: (0..=255).collect(),
    }]));
    let values = Checkpoint::open(&path).unwrap().read_f32("x").unwrap();
    assert_eq!(values.iter().filter(|value| value.is_nan()).count(), 2);
    assert_eq!(values.iter().copied().fold(0.0, f32::max), 448.0);
    assert!(values[..127].windows(2).all(|pair| pair[0] < pair[1]));
    assert!((0..127).all(|index| values[index] == -values[index + 128]));
}

#[test]
fn tensors_larger_than_a_chunk_are_whole() {
    let values: Vec<f32> = (0..700_001).map(|value| value as f32).collect();
    let (_folder, path) = single_file(&safetensors(&[
        Tensor { name: "a".into(), dtype: "F8_E4M3", shape: vec![3], data: vec![0; 3] },
        Tensor {
            name: "b".into(),
            dtype: "F32",
            shape: vec![values.len()],
            data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        },
    ]));
    assert_eq!(Checkpoint::open(&path).unwrap().read_f32("b").unwrap(), values);
}

#[test]
fn a_file_that_changes_while_open_is_noticed() {
    let bytes = safetensors(&small());
    let (_folder, path) = single_file(&bytes);
    let model = Model::open(&path).unwrap();
    let spec = model.decoder().unwrap().weights[0].clone();
    assert!(model.weights().read(&spec).is_ok());
    fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    let error = model.weights().read(&spec).unwrap_err().to_string();
    assert!(error.contains(&spec.name) && error.contains("has changed"), "{error}");
}

#[test]
fn truncated_files_name_a_tensor() {
    let bytes = safetensors(&small());
    let error = open(&bytes[..bytes.len() - 1]).unwrap_err();
    assert!(error.contains("tensor `") && error.contains("truncated"), "{error}");
    assert!(open(&bytes[..1000]).unwrap_err().contains("header would be"));
}

#[test]
fn weights_of_unreadable_types_are_noticed_at_open() {
    let mut tensors = small();
    let last = tensors.last_mut().unwrap();
    last.dtype = "I16";
    let error = open(&safetensors(&tensors)).unwrap_err();
    assert!(error.contains("its type is I16"), "{error}");
}
