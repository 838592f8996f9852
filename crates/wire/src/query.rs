//! Query strings: read as liberally as clients differ, written as the `requests` library of Python writes them.

use std::borrow::Cow;

use crate::dtype::Dtype;
use crate::error::{WireError, shortened};
use crate::header::{parse_dimension, parse_dimension_list, push_dimension};
use crate::parameters::{Parameters, Scaling, TileSizes};

const BOOLEAN: &str = "`True` or `False`";
/// The value of `output` that asks for a preview, and the one that asks for what is given without it.
const PREVIEW: &str = "preview";
const PICTURE: &str = "picture";
const SWITCH: &str = "`on` or `off`";
/// Whose tiles they are; the same as `on`.
const DIFFUSERS: &str = "diffusers";
const WHOLE: &str = "a whole number";
/// Longest value of `precision` that is kept; no precision has a longer name.
const MAX_PRECISION: usize = 64;

impl Parameters {
    /// Reads a query string, without or with its leading `?`.
    ///
    /// - `%`-escapes and `+` are decoded; unknown keys are ignored; no query is no parameter.
    /// - `shape` is a repeated key in order. A single `shape=[1,4,64,64]`, `(1,4,64,64)` or `1,4,64,64` is accepted
    ///   too; mixed with repetition it is refused.
    /// - Booleans are true/false in any case, or 1/0. Numbers may use an exponent. A Python `None` counts as absent.
    /// - A factor must be finite, and `scaling_factor` not zero, also when rounded to f32.
    /// - A scalar key repeated with the same value is harmless; with another value it is an error.
    ///
    /// # Errors
    /// [`WireError`] naming the parameter.
    pub fn from_query(query: &str) -> Result<Self, WireError> {
        let query = query.strip_prefix('?').unwrap_or(query);
        let mut scalars = Scalars::default();
        let mut shape = ShapeValues::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            if value == "None" {
                continue;
            }
            match SCALAR_KEYS.iter().position(|&name| name == key) {
                Some(index) => scalars.insert(index, value)?,
                None if key == "shape" => shape.push(&value)?,
                None => {}
            }
        }
        let mut parameters = Parameters { shape: shape.dimensions, ..Parameters::default() };
        for (name, value) in SCALAR_KEYS.into_iter().zip(scalars.values) {
            if let Some(value) = value {
                parameters.set(name, &value)?;
            }
        }
        Ok(parameters)
    }

    /// Sets the scalar parameter `name` from its text.
    pub(crate) fn set(&mut self, name: &'static str, value: &str) -> Result<(), WireError> {
        match name {
            "image_format" => self.image_format = Some(value.parse()?),
            "output_type" => self.output_type = Some(value.parse()?),
            "partial_postprocess" => self.partial_postprocess = parse_bool(name, value)?,
            "dtype" => self.dtype = Some(value.parse()?),
            "scaling_factor" => {
                let scale = parse_factor(name, value)?;
                if scale as f32 == 0.0 {
                    return Err(WireError::invalid(name, value, "a finite number other than zero"));
                }
                self.scaling_factor = Some(scale);
            }
            "shift_factor" => self.shift_factor = Some(parse_factor(name, value)?),
            "do_scaling" => self.do_scaling = Some(parse_bool(name, value)?),
            "height" => self.height = Some(parse_whole(name, value)?),
            "width" => self.width = Some(parse_whole(name, value)?),
            "output" => self.preview = parse_output(name, value)?,
            "precision" if value.len() > MAX_PRECISION => {
                return Err(WireError::invalid(name, value, "the name of a precision"));
            }
            "precision" => self.precision = Some(value.to_owned()),
            "fps" => self.fps = Some(parse_factor(name, value)?),
            "crf" => self.crf = Some(parse_whole(name, value)?),
            "windows" => self.windows = Some(parse_switch(name, value)?),
            "tiling" if value.eq_ignore_ascii_case(DIFFUSERS) => self.tiling = Some(true),
            "tiling" => self.tiling = Some(parse_switch(name, value)?),
            "tile_sample_min_size" => self.tile.sample_min_size = Some(parse_whole(name, value)?),
            "tile_latent_min_size" => self.tile.latent_min_size = Some(parse_whole(name, value)?),
            "tile_overlap_factor" => self.tile.overlap_factor = Some(parse_factor(name, value)?),
            "output_dtype" => self.output_dtype = Some(parse_output_dtype(name, value)?),
            "seed" => self.seed = Some(parse_whole(name, value)?),
            "sample" => self.sample = Some(parse_bool(name, value)?),
            "moments" => self.moments = parse_bool(name, value)?,
            _ => {}
        }
        Ok(())
    }

    /// Writes the query string as the Python client does: its order of keys, `True`/`False`, repeated `shape`,
    /// floats as Python prints them. Absent values are left out; nothing at all gives an empty string.
    ///
    /// With `output_type` it is a decode, whose client always states `partial_postprocess` and puts the factors
    /// after the tensor; without it is an encode, which puts them before. What only this server knows follows.
    /// Reading the result gives equal parameters, but for a `partial_postprocess` or `moments` that is false.
    pub fn to_query(&self) -> String {
        let mut pairs = Pairs(form_urlencoded::Serializer::new(String::new()));
        let decode = self.output_type.is_some();
        pairs.text("image_format", self.image_format.map(|format| format.name()));
        pairs.text("output_type", self.output_type.map(|output| output.name()));
        pairs.boolean(
            "partial_postprocess",
            (decode || self.partial_postprocess).then_some(self.partial_postprocess),
        );
        if !decode {
            self.write_factors(&mut pairs);
        }
        for dimension in self.shape.iter().flatten() {
            pairs.text("shape", Some(&dimension.to_string()));
        }
        pairs.text("dtype", self.dtype.map(|dtype| dtype.name()));
        if decode {
            self.write_factors(&mut pairs);
        }
        pairs.boolean("do_scaling", self.do_scaling);
        pairs.whole("height", self.height);
        pairs.whole("width", self.width);
        pairs.text("output", self.preview.then_some(PREVIEW));
        pairs.text("precision", self.precision.as_deref());
        pairs.text("fps", self.fps.map(python_float).as_deref());
        pairs.whole("crf", self.crf);
        pairs.switch("windows", self.windows);
        pairs.switch("tiling", self.tiling);
        let TileSizes { sample_min_size, latent_min_size, overlap_factor } = self.tile;
        pairs.whole("tile_sample_min_size", sample_min_size);
        pairs.whole("tile_latent_min_size", latent_min_size);
        pairs.text("tile_overlap_factor", overlap_factor.map(python_float).as_deref());
        pairs.text("output_dtype", self.output_dtype.map(|dtype| dtype.name()));
        pairs.whole("seed", self.seed);
        pairs.boolean("sample", self.sample);
        pairs.boolean("moments", self.moments.then_some(true));
        pairs.0.finish()
    }

    fn write_factors(&self, pairs: &mut Pairs) {
        pairs.text("scaling_factor", self.scaling_factor.map(python_float).as_deref());
        pairs.text("shift_factor", self.shift_factor.map(python_float).as_deref());
    }

    /// Sets the three scaling parameters so that [`Parameters::scaling`] gives `scaling`, in the spelling of the
    /// current Python client (no scaling is the absence of every key; only its first generation spelled out `False`).
    #[must_use]
    pub fn with_scaling(mut self, scaling: Scaling) -> Self {
        (self.do_scaling, self.scaling_factor, self.shift_factor) = match scaling {
            Scaling::None => (None, None, None),
            Scaling::Declined => (Some(false), None, None),
            Scaling::Model { shift } => (Some(true), None, shift),
            Scaling::Explicit { scale, shift } => (None, Some(scale), shift),
        };
        self
    }
}

/// Every key that is not a list.
pub(crate) const SCALAR_KEYS: [&str; 22] = [
    "image_format",
    "output_type",
    "partial_postprocess",
    "dtype",
    "scaling_factor",
    "shift_factor",
    "do_scaling",
    "height",
    "width",
    "output",
    "precision",
    "fps",
    "crf",
    "windows",
    "tiling",
    "tile_sample_min_size",
    "tile_latent_min_size",
    "tile_overlap_factor",
    "output_dtype",
    "seed",
    "sample",
    "moments",
];

/// Values of the scalar keys, in the order of [`SCALAR_KEYS`].
#[derive(Default)]
struct Scalars<'a> {
    values: [Option<Cow<'a, str>>; SCALAR_KEYS.len()],
}

impl<'a> Scalars<'a> {
    fn insert(&mut self, index: usize, value: Cow<'a, str>) -> Result<(), WireError> {
        match &self.values[index] {
            Some(first) if *first != value => Err(WireError::ConflictingParameter {
                name: SCALAR_KEYS[index],
                first: shortened(first),
                second: shortened(&value),
            }),
            _ => {
                self.values[index] = Some(value);
                Ok(())
            }
        }
    }
}

/// The values of `shape` while they are gathered.
#[derive(Default)]
struct ShapeValues {
    dimensions: Option<Vec<usize>>,
    from_list: bool,
}

impl ShapeValues {
    fn push(&mut self, value: &str) -> Result<(), WireError> {
        let is_list = value.contains([',', '[', '(']);
        if self.from_list || (is_list && self.dimensions.is_some()) {
            return Err(WireError::invalid("shape", value, "either a repeated key or one list, not both"));
        }
        if is_list {
            self.dimensions = Some(parse_dimension_list(value.trim())?);
            self.from_list = true;
            return Ok(());
        }
        push_dimension(self.dimensions.get_or_insert_default(), parse_dimension(value)?)
    }
}

fn parse_bool(name: &'static str, text: &str) -> Result<bool, WireError> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(WireError::invalid(name, text, BOOLEAN)),
    }
}

fn parse_output_dtype(name: &'static str, value: &str) -> Result<Dtype, WireError> {
    match value.parse() {
        Ok(dtype @ (Dtype::Float16 | Dtype::Float32)) => Ok(dtype),
        _ => Err(WireError::invalid(name, value, "`float16` or `float32`")),
    }
}

/// Whether a preview is asked for.
fn parse_output(name: &'static str, text: &str) -> Result<bool, WireError> {
    match text.to_ascii_lowercase().as_str() {
        PREVIEW => Ok(true),
        PICTURE => Ok(false),
        _ => Err(WireError::invalid(name, text, "`preview` or `picture`")),
    }
}

/// As a boolean, and `on` and `off`.
fn parse_switch(name: &'static str, text: &str) -> Result<bool, WireError> {
    match text.to_ascii_lowercase().as_str() {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => parse_bool(name, text).map_err(|_| WireError::invalid(name, text, SWITCH)),
    }
}

fn parse_whole<T: std::str::FromStr>(name: &'static str, text: &str) -> Result<T, WireError> {
    let text = text.trim();
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(WireError::invalid(name, text, WHOLE));
    }
    text.parse().map_err(|_| WireError::invalid(name, text, WHOLE))
}

/// A factor that stays finite in f32, the type it is applied in.
fn parse_factor(name: &'static str, text: &str) -> Result<f64, WireError> {
    let factor = text.trim().parse::<f64>().ok().filter(|&factor| (factor as f32).is_finite());
    factor.ok_or_else(|| WireError::invalid(name, text, "a finite number"))
}

/// Pairs being written; an absent value writes nothing.
struct Pairs(form_urlencoded::Serializer<'static, String>);

impl Pairs {
    fn text(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.0.append_pair(name, value);
        }
    }

    fn whole(&mut self, name: &str, value: Option<impl ToString>) {
        self.text(name, value.map(|value| value.to_string()).as_deref());
    }

    fn switch(&mut self, name: &str, value: Option<bool>) {
        self.text(name, value.map(|value| if value { "on" } else { "off" }));
    }

    fn boolean(&mut self, name: &str, value: Option<bool>) {
        self.text(name, value.map(|value| if value { "True" } else { "False" }));
    }
}

/// The text Python's `repr` gives: shortest digits that read back equal, an exponent of at least two digits below
/// 1e-4 and from 1e16 on.
fn python_float(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && value.is_finite() && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{value:?}")
}
