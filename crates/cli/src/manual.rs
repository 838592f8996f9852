//! `remote-vae completions` and `man`, made from the definitions of the flags.

use std::io::Write;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};

use crate::arguments::{Arguments, CompletionsOptions, ManOptions};

pub(crate) fn completions(options: &CompletionsOptions) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut Arguments::command(), "remote-vae", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}

pub(crate) fn pages(options: &ManOptions) -> Result<()> {
    let mut command = Arguments::command();
    command.build();
    let Some(folder) = &options.output else {
        return Ok(std::io::stdout().write_all(&page(&command)?)?);
    };
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let own = [&command];
    for each in own.into_iter().chain(command.get_subcommands()) {
        // The name of a subcommand's page is that of the program and its own.
        let name = each.get_display_name().unwrap_or(each.get_name());
        if name.ends_with("-help") {
            continue;
        }
        let path = folder.join(format!("{name}.1"));
        std::fs::write(&path, page(each)?).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}

fn page(command: &Command) -> Result<Vec<u8>> {
    let mut roff = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut roff)?;
    Ok(roff)
}
