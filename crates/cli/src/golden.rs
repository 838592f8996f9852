//! `remote-vae doctor --golden`: decodes the latents that diffusers' tests draw, and compares slices of the picture with
//! the numbers that those tests expect, or with those of another file of the same form.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use remote_vae_engine::{Autoencoder, Precision, memory};
use remote_vae_media::to_uint8_channel_last;
use remote_vae_model::{Family, Normalisation, random};
use remote_vae_wire::{Dtype, Scaling, TensorHeader, bytes_from_elements, elements_from_bytes};
use serde::Deserialize;

use crate::local;

const PUBLISHED: &str = include_str!("../assets/published-slices.json");
/// Sides of a slice.
const SIDE: usize = 3;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Where the numbers come from.
    source: String,
    /// Of the generator that draws the latents.
    seed: u64,
    tolerances: Slices<Tolerance>,
    classes: Vec<Class>,
}

/// One for each slice.
#[derive(Deserialize, Clone, Copy)]
struct Slices<T> {
    /// Top row of the picture, its last three pixels, red, green and blue of each.
    image: T,
    /// Lower right corner of the 8-bit tensor, first channel.
    partial: T,
    /// Lower right corner of the float16 tensor, first channel.
    tensor: T,
}

/// `|found - expected| <= absolute + relative * |expected|`
#[derive(Deserialize, Clone, Copy)]
struct Tolerance {
    relative: f64,
    absolute: f64,
}

/// A kind of model with its latents and what comes of them.
#[derive(Deserialize)]
struct Class {
    name: String,
    /// The one that the numbers are of.
    model: String,
    /// `[batch, channels, height, width]`, or packed `[batch, tokens, 4*channels]` with the picture's sides.
    shape: Vec<usize>,
    dtype: String,
    scaling_factor: f64,
    shift_factor: Option<f64>,
    height: Option<usize>,
    width: Option<usize>,
    #[serde(flatten)]
    expected: Slices<[f64; SIDE * SIDE]>,
}

/// Compares the model with every class that fits it, or with the one named.
///
/// # Errors
/// A slice differs, no class fits, or the file cannot be used.
pub(crate) fn run(
    autoencoder: &Autoencoder,
    precision: Precision,
    file: Option<&Path>,
    class: Option<&str>,
) -> Result<()> {
    if file.is_none() && class.is_none() && autoencoder.model().label() == "embedded" {
        bail!("the embedded model has no published numbers; name a real one, such as --model sd-v1");
    }
    let text = match file {
        None => PUBLISHED.to_owned(),
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
        }
    };
    let name = file.map_or("the published slices".to_owned(), |path| path.display().to_string());
    let file: File = serde_json::from_str(&text).with_context(|| format!("{name}: not a file of slices"))?;
    let classes = choose(&file, autoencoder, class)?;
    let mut output = std::io::stdout().lock();
    writeln!(output, "numbers    {}", file.source)?;
    let mut different = Vec::new();
    for class in &classes {
        if compare(&mut output, autoencoder, precision, &file, class)? > 0 {
            different.push(class.name.as_str());
        }
    }
    if different.is_empty() {
        writeln!(output, "\nThe model gives the expected numbers.")?;
        return Ok(());
    }
    writeln!(output, "\n{}", explanation(autoencoder, &classes))?;
    bail!("the model does not give the numbers expected of {}", different.join(", "));
}

/// What a difference means, as far as it can be known.
fn explanation(autoencoder: &Autoencoder, classes: &[&Class]) -> String {
    let mut models: Vec<&str> = classes.iter().map(|class| class.model.as_str()).collect();
    models.dedup();
    let models = models.join(", ");
    match autoencoder.model().family {
        Family::AutoencoderTiny => format!(
            "This is a tiny autoencoder. It imitates {models} and is expected to differ; only that\n\
             model itself gives these numbers."
        ),
        _ => format!(
            "The numbers are those of {models}. Any other model differs, also one that was\n\
             trained further from it. If this is that model, it is damaged or computed wrongly here."
        ),
    }
}

fn choose<'a>(file: &'a File, autoencoder: &Autoencoder, name: Option<&str>) -> Result<Vec<&'a Class>> {
    let all = || file.classes.iter().map(|class| class.name.as_str()).collect::<Vec<_>>().join(", ");
    let channels = autoencoder.model().latent_channels();
    if let Some(name) = name {
        let class = file.classes.iter().find(|class| class.name.eq_ignore_ascii_case(name));
        let class = class.with_context(|| format!("--class {name}: expected one of {}", all()))?;
        if class.channels() != Some(channels) {
            bail!("--class {name}: its latents are {:?}; the model's have {channels} channels", class.shape);
        }
        return Ok(vec![class]);
    }
    let scaling_factor = match &autoencoder.model().latent_space.normalisation {
        Normalisation::Identity { family } => family.map(|factors| factors.scaling_factor),
        Normalisation::Scalar { scaling_factor, .. } => Some(*scaling_factor),
        Normalisation::PerChannel { .. } | Normalisation::PerPatchElement { .. } => None,
    };
    let fits = |class: &&Class| {
        class.channels() == Some(channels)
            && scaling_factor.is_some_and(|factor| (factor - class.scaling_factor).abs() < 1e-6)
    };
    let classes: Vec<&Class> = file.classes.iter().filter(fits).collect();
    if classes.is_empty() {
        let factor = scaling_factor.map_or("none".to_owned(), |factor| factor.to_string());
        bail!(
            "no class fits a model of {channels} latent channels with scaling factor {factor}; name one with --class \
             (there are {})",
            all()
        );
    }
    Ok(classes)
}

/// Draws, decodes and prints one class; gives the number of slices that differ.
fn compare(
    output: &mut impl Write,
    autoencoder: &Autoencoder,
    precision: Precision,
    file: &File,
    class: &Class,
) -> Result<usize> {
    let (latents, shape) = class.latents(autoencoder, file.seed)?;
    let plan = autoencoder.plan_decode(shape, precision)?;
    if memory::limit_bytes().is_some_and(|total| plan.peak_bytes as u64 > total) {
        bail!("{}: decoding needs {} MiB, more than this machine has", class.name, plan.peak_bytes >> 20);
    }
    let [_, channels, height, width] = plan.output;
    if channels != 3 || height < SIDE || width < SIDE {
        bail!(
            "{}: expected pictures of 3 channels and 3x3 pixels at least; got {:?}",
            class.name,
            plan.output
        );
    }
    let scaling = Scaling::Explicit { scale: class.scaling_factor, shift: class.shift_factor };
    let start = Instant::now();
    let image = autoencoder.decode(latents, shape, &scaling, precision, &local::control(&class.name))?;
    let seconds = start.elapsed().as_secs_f64();
    let found = slices(&image.pixels, image.shape);

    writeln!(
        output,
        "\n{}: {:?} of {} from seed {}, a picture of {width}x{height} in {seconds:.2} s",
        class.name, class.shape, class.dtype, file.seed
    )?;
    let mut different = 0;
    for (name, expected, found, tolerance) in [
        ("image", &class.expected.image, &found.image, file.tolerances.image),
        ("partial", &class.expected.partial, &found.partial, file.tolerances.partial),
        ("tensor", &class.expected.tensor, &found.tensor, file.tolerances.tensor),
    ] {
        let pairs = || expected.iter().zip(found);
        let largest = pairs()
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, |a: f64, b| if b > a || b.is_nan() { b } else { a });
        let same = pairs().all(|(a, b)| (a - b).abs() <= tolerance.absolute + tolerance.relative * a.abs());
        different += usize::from(!same);
        let digits = if name == "tensor" { 4 } else { 0 };
        let verdict = if same { "agrees within" } else { "DIFFERS by" };
        writeln!(output, "  {name:<9}expected  {}", numbers(expected, digits))?;
        writeln!(output, "  {:<9}found     {}", "", numbers(found, digits))?;
        writeln!(output, "  {:<9}{verdict} {largest:.digits$}", "")?;
    }
    Ok(different)
}

fn numbers(values: &[f64], digits: usize) -> String {
    let texts: Vec<String> = values.iter().map(|value| format!("{value:.digits$}")).collect();
    texts.join(" ")
}

/// Slices of pixels `[batch, 3, height, width]`, in the float16 that travels.
fn slices(pixels: &[f32], shape: [usize; 4]) -> Slices<[f64; SIDE * SIDE]> {
    let [_, channels, height, width] = shape;
    let bytes = to_uint8_channel_last(pixels, shape);
    let halves = elements_from_bytes(Dtype::Float16, &bytes_from_elements(Dtype::Float16, pixels));
    let corner = |index: usize| (height - SIDE + index / SIDE, width - SIDE + index % SIDE);
    Slices {
        image: std::array::from_fn(|index| f64::from(bytes[(width - SIDE) * channels + index])),
        partial: std::array::from_fn(|index| {
            let (y, x) = corner(index);
            f64::from(bytes[(y * width + x) * channels])
        }),
        tensor: std::array::from_fn(|index| {
            let (y, x) = corner(index);
            f64::from(halves[y * width + x])
        }),
    }
}

impl Class {
    /// Latent channels, if the shape is one of latents.
    fn channels(&self) -> Option<usize> {
        match self.shape[..] {
            [_, channels, _, _] => Some(channels),
            [_, _, token] => Some(token / 4),
            _ => None,
        }
    }

    /// The latents as the tests draw them, unpacked: `[batch, channels, height, width]`.
    fn latents(&self, autoencoder: &Autoencoder, seed: u64) -> Result<(Vec<f32>, [usize; 4])> {
        /// More than the largest picture that a person would draw for this.
        const MOST: usize = 1 << 26;
        let dtype: Dtype = self.dtype.parse().with_context(|| self.name.clone())?;
        let header = TensorHeader { shape: self.shape.clone(), dtype };
        let count = header.element_count().with_context(|| self.name.clone())?;
        if count > MOST {
            bail!("{}: latents of shape {:?} are too many; at most {MOST} numbers", self.name, self.shape);
        }
        let drawn = random::normal_of(seed, count, dtype);
        let values = drawn.with_context(|| format!("{}: nothing is drawn as {dtype}", self.name))?;
        let space = &autoencoder.model().latent_space;
        let layout = space.layout(&self.shape, self.height, self.width).with_context(|| self.name.clone())?;
        Ok(space.arrange(values, layout)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_file_is_whole() {
        let file: File = serde_json::from_str(PUBLISHED).unwrap();
        let names: Vec<&str> = file.classes.iter().map(|class| class.name.as_str()).collect();
        assert_eq!(names, ["SDv1", "SDXL", "Flux", "FluxPacked"]);
        assert_eq!(file.classes[3].channels(), Some(16));
        for class in &file.classes {
            // The two tensor slices are of one place: half up, in float16, and 255 steps.
            let bytes = class.expected.tensor.map(|x| ((x / 2.0 + 0.5) * 255.0).round());
            for (a, b) in bytes.iter().zip(class.expected.partial) {
                assert!((a - b).abs() <= 1.0, "{}", class.name);
            }
        }
    }

    #[test]
    fn slices_are_where_the_tests_cut_them() {
        // Channel, row and column can be read off each number.
        let shape = [1, 3, 4, 5];
        let pixels: Vec<f32> = (0..60).map(|index| index as f32 / 64.0 - 0.5).collect();
        let found = slices(&pixels, shape);
        let at = |channel: usize, y: usize, x: usize| f64::from(pixels[channel * 20 + y * 5 + x]);
        assert_eq!(found.tensor[0], at(0, 1, 2));
        assert_eq!(found.tensor[8], at(0, 3, 4));
        let byte = |value: f64| ((value / 2.0 + 0.5) * 255.0).round();
        assert!((found.partial[5] - byte(at(0, 2, 4))).abs() <= 1.0);
        assert!((found.image[0] - byte(at(0, 0, 2))).abs() <= 1.0);
        assert!((found.image[4] - byte(at(1, 0, 3))).abs() <= 1.0);
    }
}
