//! Writes safetensors files and reduced models.

use std::fs;
use std::path::{Path, PathBuf};

use remote_vae_model::config::ConfigFile;
use remote_vae_model::{Graph, KlConfig, Model, TinyConfig, autoencoder_kl, autoencoder_tiny};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// A tensor to be written.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

/// The bytes of a safetensors file.
pub(crate) fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut data = Vec::new();
    for tensor in tensors {
        let begin = data.len();
        data.extend_from_slice(&tensor.data);
        let entry =
            json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()]});
        header.insert(tensor.name.clone(), entry);
    }
    with_header(&Value::Object(header).to_string(), &data)
}

/// A file of a header text and data.
pub(crate) fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// One tensor for each weight of the graphs, all elements equal: 1, 2, 3 … in the order of the graphs' weights.
pub(crate) fn numbered(graphs: &[Graph]) -> Vec<Tensor> {
    let specs = graphs.iter().flat_map(|graph| &graph.weights);
    specs
        .enumerate()
        .map(|(index, spec)| {
            let elements = spec.shape.iter().product();
            let data = half::f16::from_f32((index + 1) as f32).to_le_bytes().repeat(elements);
            Tensor { name: spec.name.clone(), dtype: "F16", shape: spec.shape.clone(), data }
        })
        .collect()
}

/// Checks that the weights of a model are those of [`numbered`], in order.
pub(crate) fn assert_numbered(model: &Model) {
    let graphs = [model.decoder().unwrap(), model.encoder().unwrap()];
    for (index, spec) in graphs.into_iter().flat_map(|graph| &graph.weights).enumerate() {
        let values = model.weights().read(spec).unwrap();
        assert_eq!(values.len(), spec.shape.iter().product::<usize>());
        assert!(values.iter().all(|&value| value == (index + 1) as f32), "{} is {}", spec.name, values[0]);
    }
}

pub(crate) fn kl_config(config: &Value) -> KlConfig {
    ConfigFile::parse(&config.to_string()).unwrap().kl().unwrap()
}

pub(crate) fn tiny_config(config: &Value) -> TinyConfig {
    ConfigFile::parse(&config.to_string()).unwrap().tiny().unwrap()
}

pub(crate) fn kl_graphs(config: &KlConfig) -> Vec<Graph> {
    vec![autoencoder_kl::decoder(config), autoencoder_kl::encoder(config)]
}

pub(crate) fn tiny_graphs(config: &TinyConfig) -> Vec<Graph> {
    vec![autoencoder_tiny::decoder(config), autoencoder_tiny::encoder(config)]
}

/// A small AutoencoderKL with three levels of different widths.
pub(crate) fn small_kl() -> Value {
    json!({
        "_class_name": "AutoencoderKL", "block_out_channels": [8, 16, 24], "layers_per_block": 2,
        "norm_num_groups": 8, "latent_channels": 4,
    })
}

/// A folder with a file `model.safetensors` of these bytes.
pub(crate) fn single_file(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// Writes a diffusers directory.
pub(crate) fn write_directory(folder: &Path, config: &Value, tensors: &[Tensor]) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::write(folder.join("diffusion_pytorch_model.safetensors"), safetensors(tensors)).unwrap();
}

/// Opens a single file of these bytes.
pub(crate) fn open(bytes: &[u8]) -> Result<Model, String> {
    let (_folder, path) = single_file(bytes);
    Model::open(&path).map_err(|error| error.to_string())
}
