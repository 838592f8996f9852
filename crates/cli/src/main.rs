//! The program `remote-vae`: reads the command line and hands over to one file per command.
#![forbid(unsafe_code)]

mod arguments;
mod batch;
mod bench;
mod budgets;
mod clips;
mod config;
mod convert;
mod cuts;
mod demo;
mod doctor;
mod draft;
mod golden;
mod load;
mod local;
mod manual;
mod models;
mod pictures;
mod place;
mod plan;
mod remote;
mod serve;
mod signals;
mod spool;
mod tensors;
mod values;

use std::process::ExitCode;

use arguments::Command;

fn main() -> ExitCode {
    remote_vae_engine::memory::keep_one_heap();
    let result = config::parse().and_then(|parsed| run(&parsed));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Texts of files and servers may hold anything; a terminal must not act on it.
            eprintln!("error: {}", message(&error).replace(|c: char| c.is_control() && c != '\n', "?"));
            ExitCode::FAILURE
        }
    }
}

fn run(parsed: &config::Parsed) -> anyhow::Result<()> {
    match &parsed.arguments.command {
        Command::Serve(options) if options.print_config => parsed.print(&mut std::io::stdout().lock()),
        Command::Serve(options) => serve::run(options),
        Command::Decode(files) => batch::decode(files),
        Command::Encode(files) => batch::encode(files),
        Command::Demo(options) => demo::run(options),
        Command::Models(options) => models::run(options),
        Command::Plan(options) => plan::run(options),
        Command::Bench(options) => bench::run(options),
        Command::Doctor(options) => doctor::run(options),
        Command::Completions(options) => manual::completions(options),
        Command::Man(options) => manual::pages(options),
    }
}

/// The error and its causes, less those that the text before them already tells.
pub(crate) fn message(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.is_empty() {
        true => cause,
        false if text.contains(&cause) => text,
        false => format!("{text}: {cause}"),
    })
}

/// Whether the reader of our output went away, which is its right.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kinds = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    kinds.into_iter().any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}
