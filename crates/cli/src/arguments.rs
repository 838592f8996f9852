//! What can be typed: one definition per flag, from which the help texts are made.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use remote_vae_engine::memory;
use remote_vae_wire::TileSizes;

use crate::cuts::{CutArguments, TilingSwitch};
use crate::values::{
    Kind, NamedSource, Size, parse_bytes, parse_kind, parse_named_source, parse_rate, parse_size,
};

/// Decodes the latents of diffusion models to pictures, and encodes them back: as a server that speaks the protocol of
/// Hugging Face's "Remote VAE" endpoints, and on the command line.
#[derive(Debug, Parser)]
#[command(name = "remote-vae", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve models over HTTP.
    Serve(ServeOptions),
    /// Decode files of latents to pictures.
    Decode(DecodeFiles),
    /// Encode pictures to files of latents.
    Encode(EncodeFiles),
    /// Show the whole way once: serve a model, encode a photograph and decode it again through HTTP.
    Demo(DemoOptions),
    /// Describe models: architecture, latent channels, scaling, size.
    Models(ModelsOptions),
    /// Print what decoding or encoding a size would cost, step by step, without doing it.
    Plan(PlanOptions),
    /// Time decoding or encoding on this machine.
    Bench(BenchOptions),
    /// Check this machine and a model, or compare a model with the numbers that diffusers publishes.
    Doctor(DoctorOptions),
    /// Print a script that completes commands and flags in a shell.
    Completions(CompletionsOptions),
    /// Print the manual page, or write the pages of all commands to a folder.
    Man(ManOptions),
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsOptions {
    /// The shell, e.g. `remote-vae completions bash > ~/.local/share/bash-completion/completions/remote-vae`.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManOptions {
    /// Where `remote-vae.1`, `remote-vae-serve.1`, … are written, e.g. `~/.local/share/man/man1`.
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
}

const MODEL_HELP: &str = "A diffusers directory, a .safetensors file, `embedded`, an alias such as `sdxl` (`remote-vae models` \
                          lists them), or owner/name[:folder][@revision] of the Hugging Face hub";

/// How the work is computed.
#[derive(Debug, Clone, Args)]
pub(crate) struct EngineArguments {
    /// How numbers are kept and multiplied [default: exact; with --url what the server's operator chose]
    #[arg(long, value_enum, value_name = "NAME")]
    pub precision: Option<Precision>,
    /// Worker threads [default: all processors this process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Memory that this process may hold at its peak, e.g. 640MiB or 1.2GiB. Where that is too little to compute
    /// everything once, parts are computed again; the result is the same to the bit [default: 80 % of the memory that
    /// this process may use]
    #[arg(long, value_name = "SIZE", env = "REMOTE_VAE_MEMORY_BUDGET", value_parser = parse_bytes)]
    pub memory_budget: Option<u64>,
    /// Instruction tier: amx, avx512vnni, avx512, avx2 or generic [default: the best this processor has]
    #[arg(long, value_name = "TIER")]
    pub isa: Option<String>,
}

impl EngineArguments {
    /// Bytes that this process may hold; `None` where neither the user nor the system sets a limit.
    pub(crate) fn memory_budget(&self) -> Option<u64> {
        self.memory_budget.or_else(memory::default_budget)
    }

    /// The precision to compute in here.
    pub(crate) fn precision(&self) -> remote_vae_engine::Precision {
        self.precision.unwrap_or(Precision::Exact).into()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    /// 32-bit floating point throughout.
    Exact,
    /// 16 bits between steps: less memory, differences that no eye sees.
    Fast,
}

impl From<Precision> for remote_vae_engine::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Exact => Self::Exact,
            Precision::Fast => Self::Fast,
        }
    }
}

/// How clips and pictures are cut.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ClipArguments {
    /// Models of videos: in overlapping windows of 17 frames as diffusers does, or whole clips at once [default: on; with
    /// --url what the server's operator chose]
    #[arg(long, value_enum, value_name = "on|off")]
    pub windows: Option<Switch>,
    /// In overlapping tiles that are blended, as diffusers does after `enable_tiling()`: not the picture that comes of the
    /// whole, for those who want diffusers' numbers. `on` is the same. Of a server: what models of videos do for requests
    /// that do not say it [default: off; with --url what the server's operator chose]
    #[arg(long, value_enum, value_name = "on|off|diffusers")]
    pub tiling: Option<TilingSwitch>,
}

impl ClipArguments {
    /// How clips are cut here.
    pub(crate) fn windows(&self) -> remote_vae_engine::Windows {
        let default = remote_vae_engine::Windows::default();
        remote_vae_engine::Windows {
            frames: self.windows.map_or(default.frames, bool::from),
            tiles: self.tiling.is_some_and(bool::from).then_some(TileSizes::default()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

impl From<Switch> for bool {
    fn from(switch: Switch) -> bool {
        switch == Switch::On
    }
}

/// What a video or an animation is like.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct VideoArguments {
    /// Frames per second of a .mp4 or .webp file, 0.1 to 240.
    #[arg(long, value_name = "RATE", default_value_t = 10.0)]
    pub fps: f64,
    /// Quality of a .mp4 file: the quantizer of H.264, 12 (largest file) to 51 (smallest).
    #[arg(long, value_name = "N", default_value_t = 23)]
    pub crf: u8,
}

#[derive(Debug, Args)]
pub(crate) struct ServeOptions {
    /// A TOML file of options, named as the flags are; flags and variables are stronger.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the options in use as such a file, without keys, and where each comes from; serve nothing.
    #[arg(long)]
    pub print_config: bool,
    /// Address to listen on.
    #[arg(long, value_name = "H", env = "REMOTE_VAE_HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, value_name = "P", env = "PORT", default_value_t = 8080)]
    pub port: u16,
    /// A model to serve, repeatable; the first answers `POST /`, each answers `POST /NAME`. SOURCE is a diffusers
    /// directory, a .safetensors file, `embedded`, an alias such as `sdxl` (`remote-vae models` lists them), or
    /// `owner/name[:folder][@revision]` of the Hugging Face hub. [default: default=embedded]
    #[arg(long = "model", value_name = "NAME=SOURCE", env = "MODEL_ID", value_parser = parse_named_source)]
    pub models: Vec<NamedSource>,
    /// A further path that the first model answers, e.g. `/vae/decode`; repeatable.
    #[arg(long = "path", value_name = "PATH", value_delimiter = ',')]
    pub paths: Vec<String>,
    /// A bearer key that clients must send; repeatable [default: anybody may use the server]
    #[arg(long = "api-key", value_name = "KEY", env = "REMOTE_VAE_API_KEY", hide_env_values = true)]
    pub api_keys: Vec<String>,
    /// A file of further keys, one a line: KEY [name=NAME] [queue=N] [megapixels=N] [per-minute=N]. Read anew when it
    /// changes.
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Ask for a key for `/info` and `/metrics` too.
    #[arg(long)]
    pub private_info: bool,
    /// A certificate chain in PEM form, for TLS; read anew when it changes.
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's key in PEM form.
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// An origin whose pages may use the server, e.g. `https://example.org`, or `*`; repeatable [default: none but the
    /// server's own]
    #[arg(long = "cors-origin", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_origins: Vec<String>,
    /// An OpenTelemetry collector that gets a span of each request for work, e.g. `http://127.0.0.1:4318`, as JSON over
    /// HTTP.
    #[cfg(feature = "otlp")]
    #[arg(long, value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Requests that may wait while one is computed; more are refused with 429.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_queue: u32,
    /// Largest request body, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_body: u32,
    /// Most pixels of one request, over its whole batch, in units of 2^20 (1024x1024 is 1).
    #[arg(long, value_name = "MEGAPIXELS", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_megapixels: u32,
    /// Most samples of one request.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_batch: u32,
    /// Most frames of a clip.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_frames: u32,
    /// Seconds from the end of a request's body to its answer, after which it is refused with 504 [default: no limit]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub request_timeout: Option<u32>,
    /// Memory for all request bodies and the pictures in them together, in MiB; beyond it requests are refused with 429; at
    /// least 1.75 times --max-body, as base64 in JSON is held beside its bytes [default: 1024, or that if it is more]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_held: Option<u32>,
    /// Memory for all answers together, from admission until they are sent, in MiB; beyond it requests are refused with
    /// 429.
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_answers: u32,
    /// Jobs of `/v1/jobs` that are kept at one time, waiting, running or with their results.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_jobs: u32,
    /// Seconds that the result of a job is kept.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    pub job_ttl: u32,
    /// Connections open at one time; for a further one the connection that is idle longest is closed.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,
    /// Seconds in which a request's head must have arrived.
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    pub header_timeout: u32,
    /// Seconds in which a request's body must have arrived; refused with 408 then.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    pub body_timeout: u32,
    /// Seconds that a request's body may pause; refused with 408 then.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    pub body_idle_timeout: u32,
    /// Seconds that a connection may be idle between requests, or a client take nothing of its answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    pub idle_timeout: u32,
    /// Seconds that accepted work may still take after a shutdown was asked for.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub drain_timeout: u64,
    /// Stop when standard input ends: a server that another program starts does not outlive it.
    #[arg(long)]
    pub stop_with_stdin: bool,
    /// How log lines are written to standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    #[command(flatten)]
    pub clips: ClipArguments,
    #[command(flatten)]
    pub engine: EngineArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Where the work is done.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlaceArguments {
    #[arg(long, value_name = "SOURCE", default_value = "embedded", help = MODEL_HELP)]
    pub model: String,
    /// Do the work on this server instead, with its model; `.../NAME` chooses one of several. On a terminal the
    /// server's progress is shown.
    #[arg(long, value_name = "URL", conflicts_with = "model")]
    pub url: Option<String>,
    /// The bearer key that the server wants.
    #[arg(long, value_name = "KEY", env = "REMOTE_VAE_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// The latents are in the autoencoder's own space, not in the diffusion model's.
    #[arg(long)]
    pub no_scaling: bool,
    #[command(flatten)]
    pub clips: CutArguments,
    #[command(flatten)]
    pub engine: EngineArguments,
}

/// What is told of the work on files.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct FilesArguments {
    /// Print a JSON object for each file on standard output.
    #[arg(long)]
    pub json: bool,
    /// Requests that travel to the server at one time.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub parallel: u8,
}

/// Formats of what a decode writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PictureFormat {
    Png,
    Jpg,
    Webp,
    /// For clips.
    Mp4,
    /// The f32 tensor `pixels`.
    Safetensors,
}

#[derive(Debug, Args)]
pub(crate) struct DecodeFiles {
    /// Latents `[batch, channels, height, width]`, or of clips `[batch, channels, frames, height, width]`, in safetensors
    /// files of F32, F16 or BF16; `-` is standard input.
    #[arg(value_name = "IN.safetensors", required = true)]
    pub inputs: Vec<PathBuf>,
    /// A .png, .jpg or .webp file (numbered if there are several pictures), or .safetensors for the f32 tensor `pixels`; `-`
    /// is standard output. A clip goes to a .mp4 file, a .webp animation, a folder for a PNG file of each frame (a name
    /// without extension), or .safetensors. With several inputs, or a slash at its end (`out/`), it is a folder that takes a
    /// file for each input.
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
    /// The format in a folder or on standard output.
    #[arg(long, value_enum, default_value_t = PictureFormat::Png)]
    pub format: PictureFormat,
    #[command(flatten)]
    pub files: FilesArguments,
    #[command(flatten)]
    pub each: DecodeOptions,
}

#[derive(Debug, Args)]
pub(crate) struct EncodeFiles {
    /// PNG, JPEG or WebP pictures, or clips in MP4 files (H.264); sides are cut to multiples of the model's factor (8) by
    /// resizing. An orientation noted in the file is not applied. `-` is standard input.
    #[arg(value_name = "IN.png", required = true)]
    pub inputs: Vec<PathBuf>,
    /// A .safetensors file for the f32 tensor `latents`; `-` is standard output. A folder, written with a slash at its
    /// end (`out/`), takes a file for each input.
    #[arg(short, long, value_name = "OUT.safetensors")]
    pub output: PathBuf,
    #[command(flatten)]
    pub files: FilesArguments,
    #[command(flatten)]
    pub each: EncodeOptions,
}

/// What a decode of one file needs to know.
#[derive(Debug, Clone, Args)]
pub(crate) struct DecodeOptions {
    #[arg(skip)]
    pub input: PathBuf,
    #[arg(skip)]
    pub output: PathBuf,
    #[command(flatten)]
    pub video: VideoArguments,
    /// The tensor's name in the file [default: `latents`, `latent`, or the first]
    #[arg(long, value_name = "NAME")]
    pub key: Option<String>,
    /// Height of the picture in pixels; needed for packed latents `[batch, tokens, 4*channels]`.
    #[arg(long, value_name = "PIXELS", requires = "width")]
    pub height: Option<usize>,
    /// Width of the picture in pixels; needed for packed latents.
    #[arg(long, value_name = "PIXELS", requires = "height")]
    pub width: Option<usize>,
    /// Write a preview: one pixel for each latent, by a linear map instead of the model.
    #[arg(long)]
    pub preview: bool,
    #[command(flatten)]
    pub place: PlaceArguments,
}

/// What an encode of one file needs to know.
#[derive(Debug, Clone, Args)]
pub(crate) struct EncodeOptions {
    #[arg(skip)]
    pub input: PathBuf,
    /// Of a video file, take the first N frames: 1 more than a multiple of 4 [default: all]
    #[arg(long, value_name = "N", conflicts_with = "url", value_parser = clap::value_parser!(u32).range(1..))]
    pub frames: Option<u32>,
    #[arg(skip)]
    pub output: PathBuf,
    /// Draw a sample of the encoder's distribution with this seed, 0 or more [default: its mode]
    #[arg(long, value_name = "SEED", allow_hyphen_values = true)]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub place: PlaceArguments,
}

#[derive(Debug, Args)]
pub(crate) struct DemoOptions {
    /// Where `demo-input.png` and `demo.png` are written.
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub output: PathBuf,
    /// A photograph of your own [default: one that comes with the program]
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    #[arg(long, value_name = "SOURCE", default_value = "embedded", help = MODEL_HELP)]
    pub model: String,
    #[command(flatten)]
    pub engine: EngineArguments,
}

#[derive(Debug, Args)]
pub(crate) struct ModelsOptions {
    /// Models to describe: directories, files, aliases or hub repositories [default: the embedded one, and all aliases]
    #[arg(value_name = "SOURCE")]
    pub sources: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchOperation {
    Decode,
    Encode,
}

#[derive(Debug, Args)]
pub(crate) struct PlanOptions {
    #[arg(value_name = "SOURCE", default_value = "embedded", help = MODEL_HELP)]
    pub model: String,
    /// Size of the picture in pixels.
    #[arg(long, value_name = "WxH", default_value = "512x512", value_parser = parse_size)]
    pub size: Size,
    /// Pictures at once.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch: u32,
    /// Frames of a clip: 1 more than a multiple of 4.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub frames: u32,
    /// Plan the encoder [default: the decoder]
    #[arg(long)]
    pub encode: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub clips: CutArguments,
    #[command(flatten)]
    pub engine: EngineArguments,
}

#[derive(Debug, Args)]
pub(crate) struct BenchOptions {
    #[arg(long, value_name = "SOURCE", default_value = "embedded", help = MODEL_HELP)]
    pub model: String,
    /// What to time.
    #[arg(long, value_enum, default_value_t = BenchOperation::Decode)]
    pub op: BenchOperation,
    /// Size of the picture in pixels.
    #[arg(long, value_name = "WxH", default_value = "512x512", value_parser = parse_size)]
    pub size: Size,
    /// Frames of a clip: 1 more than a multiple of 4.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub frames: u32,
    /// Timed runs, after one that is not counted; 0 times that one, in which weights are read.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub runs: u32,
    /// Also print the time of each kind of layer, from the runs themselves.
    #[arg(long)]
    pub steps: bool,
    /// Time without a budget and within each of these memory budgets, each in a process of its own, and compare the results
    /// byte for byte; fail if any differs [default of the flag without values: six from the smallest to what is needed]
    #[arg(
        long,
        value_name = "SIZE",
        num_args = 0..,
        value_delimiter = ',',
        value_parser = parse_bytes,
        conflicts_with_all = ["url", "steps", "memory_budget"]
    )]
    pub budgets: Option<Vec<u64>>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub load: LoadArguments,
    #[command(flatten)]
    pub clips: CutArguments,
    #[command(flatten)]
    pub engine: EngineArguments,
}

/// Load on a server.
#[derive(Debug, Args)]
pub(crate) struct LoadArguments {
    /// Put load on this server instead, and tell how it answered; `.../NAME` chooses one of several models.
    #[arg(long, value_name = "URL", conflicts_with_all = ["model", "op", "runs", "steps"])]
    pub url: Option<String>,
    /// Clients that each ask again when they have their answer.
    #[arg(long, value_name = "N", requires = "url", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub clients: u32,
    /// Requests a second, however long the answers take [default: as --clients says]
    #[arg(long, value_name = "R", requires = "url", conflicts_with = "clients", value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// How long requests are sent.
    #[arg(long, value_name = "S", requires = "url", default_value_t = 10.0, value_parser = parse_rate)]
    pub seconds: f64,
    /// Kinds of requests in turn, e.g. `512x512:raw,256x256:png`; raw, uint8, png or jpg [default: --size, raw]
    #[arg(long, value_name = "WxH:FORMAT", requires = "url", value_delimiter = ',', value_parser = parse_kind)]
    pub mix: Vec<Kind>,
    /// Samples of each request.
    #[arg(long, value_name = "N", requires = "url", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub batch: u32,
    /// Percent of the requests that are left within half a second, wherever they are by then.
    #[arg(long, value_name = "PERCENT", requires = "url", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub abandon: u32,
    /// A bearer key; with several, clients use them in turn.
    #[arg(
        long = "api-key",
        value_name = "KEY",
        requires = "url",
        env = "REMOTE_VAE_API_KEY",
        hide_env_values = true
    )]
    pub api_keys: Vec<String>,
    /// Compare each answer with the first one to the same request, byte for byte; fail if any differs.
    #[arg(long, requires = "url")]
    pub check: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorOptions {
    #[arg(long, value_name = "SOURCE", default_value = "embedded", help = MODEL_HELP)]
    pub model: String,
    /// Decode the latents that diffusers' tests draw and compare with the numbers they expect of Hugging Face's
    /// endpoints, or with those of FILE, which has the same form.
    #[arg(long, value_name = "FILE")]
    pub golden: Option<Option<PathBuf>>,
    /// The class to compare with: SDv1, SDXL, Flux, FluxPacked [default: all that fit the model]
    #[arg(long, value_name = "NAME", requires = "golden")]
    pub class: Option<String>,
    /// The port that `serve` is to listen on.
    #[arg(long, value_name = "P", env = "PORT", default_value_t = 8080, conflicts_with = "golden")]
    pub port: u16,
    /// Print one JSON object.
    #[arg(long, conflicts_with = "golden")]
    pub json: bool,
    #[command(flatten)]
    pub engine: EngineArguments,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definitions_are_consistent() {
        Arguments::command().debug_assert();
    }
}
