//! `remote-vae decode` and `encode` of any number of files: what the outputs are called, what is told while they are made,
//! and that one failure does not end the rest. The work on one file is in [`crate::convert`].

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{MAIN_SEPARATOR, Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use serde_json::json;

use crate::arguments::{
    DecodeFiles, DecodeOptions, EncodeFiles, EncodeOptions, FilesArguments, PictureFormat, PlaceArguments,
};
use crate::clips;
use crate::convert::{self, Format, Written};
use crate::local;
use crate::place::{self, Place};
use crate::signals;

pub(crate) fn decode(files: &DecodeFiles) -> Result<()> {
    let (extension, fallback) = match files.format {
        PictureFormat::Png => ("png", Format::Frames(clips::Format::Png)),
        PictureFormat::Jpg => ("jpg", Format::Frames(clips::Format::Jpeg)),
        PictureFormat::Webp => ("webp", Format::Frames(clips::Format::Webp)),
        PictureFormat::Mp4 => ("mp4", Format::Frames(clips::Format::Mp4)),
        PictureFormat::Safetensors => ("safetensors", Format::Tensor),
    };
    let jobs = jobs(&files.inputs, &files.output, extension, files.files.json)?;
    let format = if place::is_pipe(&files.output) || is_folder(&files.inputs, &files.output) {
        fallback
    } else {
        Format::of(&files.output)?
    };
    run(&jobs, files.files, &files.each.place, |job, place| {
        let (input, output) = (job.input.clone(), job.output.clone());
        convert::decode(&DecodeOptions { input, output, ..files.each.clone() }, format, place)
    })
}

pub(crate) fn encode(files: &EncodeFiles) -> Result<()> {
    let jobs = jobs(&files.inputs, &files.output, "safetensors", files.files.json)?;
    let is_one_file = !place::is_pipe(&files.output) && !is_folder(&files.inputs, &files.output);
    if is_one_file && Format::of(&files.output)? != Format::Tensor {
        bail!("latents are written as .safetensors, not as {}", files.output.display());
    }
    run(&jobs, files.files, &files.each.place, |job, place| {
        let (input, output) = (job.input.clone(), job.output.clone());
        convert::encode(&EncodeOptions { input, output, ..files.each.clone() }, place)
    })
}

/// One file in and what is made of it.
#[derive(Debug, PartialEq, Eq)]
struct Job {
    input: PathBuf,
    output: PathBuf,
}

/// Whether the outputs go to a folder: there are several inputs, or the output ends with a slash.
fn is_folder(inputs: &[PathBuf], output: &Path) -> bool {
    let text = output.to_string_lossy();
    inputs.len() > 1 || text.ends_with('/') || text.ends_with(MAIN_SEPARATOR)
}

/// Pairs inputs with outputs, and finds out before the work, not after it, what cannot be read or written.
fn jobs(inputs: &[PathBuf], output: &Path, extension: &str, json: bool) -> Result<Vec<Job>> {
    for input in inputs.iter().filter(|input| !place::is_pipe(input)) {
        std::fs::metadata(input).with_context(|| format!("cannot read {}", input.display()))?;
    }
    if place::is_pipe(output) {
        if inputs.len() > 1 {
            bail!("standard output takes one file, and there are {} inputs; write -o FOLDER/", inputs.len());
        }
        if json {
            bail!("--json and -o - both write to standard output; write the result to a file");
        }
        place::refuse_terminal(output)?;
        return Ok(vec![Job { input: inputs[0].clone(), output: output.to_owned() }]);
    }
    if !is_folder(inputs, output) {
        check_output(&inputs[0], output)?;
        return Ok(vec![Job { input: inputs[0].clone(), output: output.to_owned() }]);
    }
    if output.is_file() || (output.extension().is_some() && !output.is_dir() && inputs.len() > 1) {
        bail!("{} inputs need a folder for their outputs, not the file {}", inputs.len(), output.display());
    }
    std::fs::create_dir_all(output)
        .with_context(|| format!("cannot make the folder {}", output.display()))?;
    let mut taken = HashSet::new();
    inputs
        .iter()
        .map(|input| {
            let stem = match place::is_pipe(input) {
                true => OsStr::new("stdin"),
                false => input.file_stem().unwrap_or_default(),
            };
            let mut name = stem.to_owned();
            name.push(format!(".{extension}"));
            let path = output.join(name);
            if !taken.insert(path.clone()) {
                bail!("two inputs would be written to {}; give them different names", path.display());
            }
            check_output(input, &path)?;
            Ok(Job { input: input.clone(), output: path })
        })
        .collect()
}

fn check_output(input: &Path, output: &Path) -> Result<()> {
    let folder = match output.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        bail!("the folder {} of the output does not exist", folder.display());
    }
    if let (Ok(input), Ok(output)) = (input.canonicalize(), output.canonicalize())
        && input == output
    {
        bail!("the output {} is the input; choose another name", output.display());
    }
    Ok(())
}

/// Does all jobs: here one after the other, on a server several at one time.
fn run(
    jobs: &[Job],
    arguments: FilesArguments,
    place: &PlaceArguments,
    work: impl Fn(&Job, &Place) -> Result<Vec<Written>> + Sync,
) -> Result<()> {
    signals::discard_drafts();
    let opened = Place::open(place, jobs.len())?;
    let workers = match opened {
        Place::Here(_) => 1,
        Place::There(_) => usize::from(arguments.parallel).min(jobs.len()),
    };
    let report = Report::new(jobs.len(), arguments.json);
    let next = AtomicUsize::new(0);
    let worker = || -> Result<()> {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let begun = Instant::now();
            report.tell(job, begun, work(job, &opened))?;
        }
        Ok(())
    };
    if workers == 1 {
        worker()?;
    } else {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
    }
    report.finish()
}

/// Tells of each file when it is done.
struct Report {
    bar: Option<ProgressBar>,
    json: bool,
    files: usize,
    failed: Mutex<usize>,
}

impl Report {
    fn new(files: usize, json: bool) -> Report {
        let bar = (files > 1).then(|| local::files_bar("files", files));
        Report { bar, json, files, failed: Mutex::default() }
    }

    /// One line on standard error or one JSON object on standard output; a single file's error is the caller's.
    fn tell(&self, job: &Job, begun: Instant, outcome: Result<Vec<Written>>) -> Result<()> {
        let input = job.input.display().to_string();
        let line = match outcome {
            Ok(written) => {
                for Written { path, shape } in written.iter().filter(|_| !self.json) {
                    let shape: Vec<String> = shape.iter().map(ToString::to_string).collect();
                    let name =
                        if place::is_pipe(path) { "standard output".into() } else { path.to_string_lossy() };
                    local::say(&format!("wrote {name} {}", shape.join("x")));
                }
                json!({
                    "input": input,
                    "outputs": written.iter().map(|file| json!({"path": file.path, "shape": file.shape})).collect::<Vec<_>>(),
                    "seconds": begun.elapsed().as_secs_f64(),
                })
            }
            Err(error) if self.files == 1 => return Err(error),
            Err(error) => {
                let message = crate::message(&error);
                if !self.json {
                    local::say(&format!(
                        "error: {input}: {}",
                        message.replace(|c: char| c.is_control(), "?")
                    ));
                }
                *self.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += 1;
                json!({"input": input, "error": message})
            }
        };
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
        if self.json {
            writeln!(std::io::stdout().lock(), "{line}")?;
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let failed = self.failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if failed > 0 {
            bail!("{failed} of {} files failed", self.files);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_named_after_inputs() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["a.safetensors", "b.safetensors", "b.bin"] {
            std::fs::write(path(name), b"").unwrap();
        }
        let out = path("out");
        let pairs = |inputs: &[&str], output: &Path| {
            jobs(&inputs.iter().map(|name| path(name)).collect::<Vec<_>>(), output, "png", false)
        };
        let names: Vec<PathBuf> = pairs(&["a.safetensors", "b.safetensors"], &out)
            .unwrap()
            .into_iter()
            .map(|job| job.output)
            .collect();
        assert_eq!(names, [out.join("a.png"), out.join("b.png")]);
        let slash = PathBuf::from(format!("{}/", path("other").display()));
        assert_eq!(pairs(&["a.safetensors"], &slash).unwrap()[0].output, path("other").join("a.png"));
        assert_eq!(pairs(&["a.safetensors"], &path("a.png")).unwrap()[0].output, path("a.png"));
        let message = |inputs: &[&str], output: &Path| pairs(inputs, output).unwrap_err().to_string();
        assert!(message(&["b.safetensors", "b.bin"], &out).contains("two inputs"));
        assert!(message(&["a.safetensors", "b.bin"], &path("one.png")).contains("need a folder"));
        assert!(message(&["absent"], &out).contains("absent"));
        assert!(message(&["a.safetensors", "b.bin"], Path::new("-")).contains("takes one file"));
    }
}
