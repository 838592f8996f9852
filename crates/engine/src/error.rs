//! What can go wrong while planning, loading and running.

use remote_vae_kernels::IsaError;
use remote_vae_model::ModelError;

fn budget_message(need: usize, budget: usize, smallest: usize, largest: Option<[usize; 2]>) -> String {
    // Rounded so that the budget that is named suffices.
    let mib = |bytes: usize| bytes.div_ceil(1 << 20);
    let whole = |bytes: usize| match bytes {
        small if small < 10 << 20 && !small.is_multiple_of(1 << 20) => format!("{small} bytes"),
        bytes => format!("{} MiB", bytes >> 20),
    };
    let largest = match largest {
        Some([height, width]) => {
            format!("the largest picture of these proportions that fits is {width}x{height} (width x height)")
        }
        None => "no picture fits".to_owned(),
    };
    format!(
        "this needs {} MiB; the memory budget is {}; the smallest that would do is {} MiB, with as much as possible computed more than once; {largest}",
        mib(need),
        whole(budget),
        mib(smallest),
    )
}

/// Why the engine could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model, its file or the shape asked of it.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The instruction tier is not there.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// The worker threads could not be started.
    #[error("cannot start the engine's threads: {0}")]
    Threads(#[source] std::io::Error),
    /// A weight's length does not fit its shape.
    #[error("tensor {name:?} has {found} elements; its shape {shape:?} needs {expected}")]
    WeightLength {
        /// Its name in the checkpoint.
        name: String,
        /// The shape the graph wants.
        shape: Vec<usize>,
        /// Elements that were read.
        found: usize,
        /// Elements that the shape has.
        expected: usize,
    },
    /// The values handed over do not fit the shape handed over with them.
    #[error("{found} values do not fill the shape {shape:?}, which has {expected}")]
    InputLength {
        /// The shape.
        shape: [usize; 4],
        /// Values that were given.
        found: usize,
        /// Values that the shape has.
        expected: usize,
    },
    /// Sides of a picture that the encoder cannot halve often enough.
    #[error(
        "a picture of {height}x{width} (height x width) cannot be encoded: both sides must be multiples of {factor}"
    )]
    ImageSides {
        /// Height in pixels.
        height: usize,
        /// Width in pixels.
        width: usize,
        /// What both must be multiples of.
        factor: usize,
    },
    /// A clip's values do not fit its shape.
    #[error("{found} values do not fill the shape {shape:?}, which has {expected}")]
    ClipLength {
        /// The shape.
        shape: [usize; 5],
        /// Values that were given.
        found: usize,
        /// Values that the shape has.
        expected: usize,
    },
    /// A clip for a model of pictures.
    #[error("this model takes pictures, one frame each; expected 1 frame, got {frames}")]
    NoVideo {
        /// Frames that were given.
        frames: usize,
    },
    /// Frames that the encoder cannot merge.
    #[error("a clip of {frames} frames cannot be encoded: expected 1 frame more than a multiple of {factor}")]
    ClipFrames {
        /// Frames that were given.
        frames: usize,
        /// Frames of a latent.
        factor: usize,
    },
    /// A clip where rows of pictures are given.
    #[error("a picture's rows are given as they are finished; expected 1 frame, got {frames}")]
    RowsOfClip {
        /// Frames of the result.
        frames: usize,
    },
    /// Several clips where one is continued.
    #[error("one clip is run in parts at a time; expected a batch of 1, got {found}")]
    OneClip {
        /// Clips that were given.
        found: usize,
    },
    /// Tiles that the model does not have, or that do not meet.
    #[error("{reason}")]
    Tiles {
        /// What is wrong with which of them.
        reason: String,
    },
    /// No plan fits the memory budget.
    #[error("{}", budget_message(*need, *budget, *smallest, *largest))]
    Budget {
        /// Bytes at the process' peak if nothing is computed twice.
        need: usize,
        /// Bytes that it may hold.
        budget: usize,
        /// The smallest budget that would do.
        smallest: usize,
        /// Height and width in pixels of the largest picture of these proportions that fits, if any does.
        largest: Option<[usize; 2]>,
    },
    /// Moments of a model whose encoder gives latents.
    #[error("this model's encoder gives latents and no distribution ({family}); ask for latents")]
    NoDistribution {
        /// The model's architecture.
        family: &'static str,
    },
    /// Moments in another space than the model's own.
    #[error("moments are given in the model's own space; expected no scaling factors")]
    ScaledMoments,
    /// The system refuses the memory of the activations.
    #[error("cannot allocate {bytes} bytes for the activations")]
    Memory {
        /// Bytes that were asked for.
        bytes: usize,
    },
    /// Whoever asked went away.
    #[error("the work was cancelled")]
    Cancelled,
}
