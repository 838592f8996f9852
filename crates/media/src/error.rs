//! The errors of this crate.

/// Why pixels could not be read, written or resized.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MediaError {
    /// The file is of no known format.
    #[error("Expected a PNG, JPEG or WebP file. Got {length} bytes that are none of them.")]
    UnknownFormat {
        /// Length of the file.
        length: usize,
    },
    /// The file is damaged, cut off, or uses something its reader does not know.
    #[error("Expected a readable {format} file. Got one that cannot be read: {reason}.")]
    Unreadable {
        /// The format that the first bytes show.
        format: &'static str,
        /// What the reader said.
        reason: String,
    },
    /// The picture has more pixels than allowed.
    #[error("Expected an image of at most {limit} pixels. Got {width}x{height}.")]
    TooManyPixels {
        /// Width the file declares.
        width: u64,
        /// Height the file declares.
        height: u64,
        /// The limit.
        limit: u64,
    },
    /// Reading the picture would take more memory than allowed.
    #[error(
        "Expected an image that takes at most {limit} bytes to read. Got {width}x{height}, which takes {needed}."
    )]
    TooManyBytes {
        /// Width the file declares.
        width: u64,
        /// Height the file declares.
        height: u64,
        /// Bytes needed.
        needed: u64,
        /// The limit.
        limit: u64,
    },
    /// The picture is too small to be cut to a multiple.
    #[error("Expected an image of at least {multiple}x{multiple} pixels. Got {width}x{height}.")]
    TooSmall {
        /// Width of the picture.
        width: usize,
        /// Height of the picture.
        height: usize,
        /// What both sides must be a multiple of.
        multiple: usize,
    },
    /// A size that the file format cannot hold.
    #[error("Expected sides from 1 to {limit} for a {format} file. Got {width}x{height}.")]
    UnsupportedSize {
        /// The format to be written.
        format: &'static str,
        /// Width asked for.
        width: usize,
        /// Height asked for.
        height: usize,
        /// The longest side possible.
        limit: usize,
    },
    /// A parameter of a video or an animation outside its range.
    #[error("Expected `{name}` {range}. Got {found}.")]
    OutOfRange {
        /// The parameter.
        name: &'static str,
        /// The range, for instance `from 12 to 51`.
        range: String,
        /// Value given.
        found: String,
    },
    /// A video has more frames than allowed.
    #[error("Expected a video of at most {limit} frames. Got at least {found}.")]
    TooManyFrames {
        /// Frames found before reading stopped.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// A buffer that is not as long as its dimensions say.
    #[error("Expected {expected} values for {dimensions}. Got {found}.")]
    BufferLength {
        /// The dimensions, for instance `512x512x3`.
        dimensions: String,
        /// Values they need.
        expected: usize,
        /// Values given.
        found: usize,
    },
    /// The writer of a file format failed.
    #[error("Could not write a {format} file: {reason}.")]
    Unwritable {
        /// The format to be written.
        format: &'static str,
        /// What the writer said.
        reason: String,
    },
}

/// Checks that `found` is the product of `dimensions`.
pub(crate) fn check_length(dimensions: &[usize], found: usize) -> Result<(), MediaError> {
    let expected = dimensions.iter().try_fold(1usize, |product, &side| product.checked_mul(side));
    if expected == Some(found) {
        return Ok(());
    }
    let sides: Vec<String> = dimensions.iter().map(usize::to_string).collect();
    let dimensions = sides.join("x");
    Err(MediaError::BufferLength { dimensions, expected: expected.unwrap_or(usize::MAX), found })
}
