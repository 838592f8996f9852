//! Where options come from: the command line, then the environment, then a TOML file (`serve --config FILE`), then the
//! defaults. Every flag of `serve` has a variable `REMOTE_VAE_` with its name in capitals (a few have shorter names, which
//! `--help` shows) and a key of its own name in the file.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};

use crate::arguments::Arguments;

const SERVE: &str = "serve";
/// Flags that say where options come from, or what to do with them.
const OUTSIDE: [&str; 2] = ["config", "print-config"];

/// The values of a file, by flag.
type FileValues = BTreeMap<String, Vec<String>>;

/// What the command line, the environment and the file say together.
pub(crate) struct Parsed {
    pub(crate) arguments: Arguments,
    matches: ArgMatches,
    file: FileValues,
}

/// Reads the command line of this process; ends it with a message if that is wrong, as clap does.
pub(crate) fn parse() -> Result<Parsed> {
    parse_from(std::env::args_os().collect(), &FileValues::new())
}

fn parse_from(words: Vec<std::ffi::OsString>, file: &FileValues) -> Result<Parsed> {
    let matches = command(file).get_matches_from(words.clone());
    let path =
        matches.subcommand_matches(SERVE).and_then(|serve| serve.get_one::<std::path::PathBuf>("config"));
    if let (Some(path), true) = (path, file.is_empty()) {
        let values = read(path)?;
        if !values.is_empty() {
            return parse_from(words, &values);
        }
    }
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    Ok(Parsed { arguments, matches, file: file.clone() })
}

/// The command line, with variables for all flags of `serve` and the file's values as their defaults.
fn command(file: &FileValues) -> Command {
    Arguments::command().mut_subcommand(SERVE, |serve| {
        serve.mut_args(|arg| {
            let Some(long) = arg.get_long().map(str::to_owned) else { return arg };
            let arg = match arg.get_env() {
                None => arg.env(format!("REMOTE_VAE_{}", long.to_uppercase().replace('-', "_"))),
                Some(_) => arg,
            };
            match file.get(&long) {
                Some(values) => arg.default_values(values.clone()),
                None => arg,
            }
        })
    })
}

/// Reads a file of options.
fn read(path: &Path) -> Result<FileValues> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    values(&text).with_context(|| format!("{}", path.display()))
}

fn values(text: &str) -> Result<FileValues> {
    // The parser's own message quotes the line, which may hold a key.
    let table: toml::Table = toml::from_str(text).map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
        anyhow::anyhow!("line {line}: {}", error.message())
    })?;
    let serve = command(&FileValues::new());
    let serve = serve.find_subcommand(SERVE).context("there is no command `serve`")?;
    let known: Vec<&str> = serve
        .get_arguments()
        .filter_map(clap::Arg::get_long)
        .filter(|long| !OUTSIDE.contains(long))
        .collect();
    let mut found = FileValues::new();
    for (name, value) in table {
        if !known.contains(&name.as_str()) {
            bail!("expected one of {}, got `{name}`", known.join(", "));
        }
        let values = match value {
            toml::Value::Array(values) => {
                values.iter().map(|value| scalar(&name, value)).collect::<Result<_>>()?
            }
            value => vec![scalar(&name, &value)?],
        };
        found.insert(name, values);
    }
    Ok(found)
}

fn scalar(name: &str, value: &toml::Value) -> Result<String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(_) | toml::Value::Float(_) | toml::Value::Boolean(_) => Ok(value.to_string()),
        _ => bail!("expected `{name}` to be a text, a number, true, false, or a list of them"),
    }
}

impl Parsed {
    /// Writes the options of `serve` as a file that `--config` takes, and where each comes from. Keys are left out.
    pub(crate) fn print(&self, output: &mut impl Write) -> Result<()> {
        let matches = self.matches.subcommand_matches(SERVE).context("only `serve` has such options")?;
        let command = command(&self.file);
        let serve = command.find_subcommand(SERVE).context("there is no command `serve`")?;
        for arg in serve.get_arguments() {
            let Some(long) = arg.get_long().filter(|long| !OUTSIDE.contains(long)) else { continue };
            let id = arg.get_id().as_str();
            let source = match matches.value_source(id) {
                Some(ValueSource::CommandLine) => "command line",
                Some(ValueSource::EnvVariable) => "environment",
                Some(_) if self.file.contains_key(long) => "file",
                _ => "default",
            };
            let values: Vec<String> = matches
                .get_raw(id)
                .into_iter()
                .flatten()
                .map(|value| literal(&value.to_string_lossy()))
                .collect();
            match (&values[..], arg.get_action()) {
                ([], _) => writeln!(output, "# {long} is not set")?,
                (values, _) if arg.is_hide_env_values_set() => {
                    writeln!(output, "# {long}: {} set, not shown ({source})", values.len())?;
                }
                (values, ArgAction::Append) => {
                    writeln!(output, "{long} = [{}]  # {source}", values.join(", "))?
                }
                ([value, ..], _) => writeln!(output, "{long} = {value}  # {source}")?,
            }
        }
        Ok(())
    }
}

/// A value as TOML writes it.
fn literal(text: &str) -> String {
    let plain = text.parse::<i64>().is_ok_and(|number| number.to_string() == text)
        || text == "true"
        || text == "false";
    if plain { text.to_owned() } else { toml::Value::String(text.to_owned()).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str], file: &FileValues) -> Parsed {
        let words = [&["remote-vae", "serve", "--port", "1", "--host", "h"], words].concat();
        parse_from(words.iter().map(Into::into).collect(), file).unwrap()
    }

    fn printed(parsed: &Parsed) -> String {
        let mut text = Vec::new();
        parsed.print(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn every_flag_of_serve_has_a_variable() {
        let command = command(&FileValues::new());
        for arg in command.find_subcommand(SERVE).unwrap().get_arguments() {
            assert!(arg.get_long().is_some() && arg.get_env().is_some(), "{arg}");
        }
    }

    #[test]
    fn the_command_line_is_stronger_than_the_file() {
        let file = values("max-queue = 7\nmax-batch = 3\npath = [\"/a\", \"/b\"]\nisa = \"avx2\"\n").unwrap();
        let text = printed(&parsed(&["--max-batch=5", "--api-key=hidden"], &file));
        for line in [
            "max-queue = 7  # file",
            "max-batch = 5  # command line",
            "path = [\"/a\", \"/b\"]  # file",
            "isa = \"avx2\"  # file",
            "max-body = 256  # default",
            "# api-key: 1 set, not shown (command line)",
            "# request-timeout is not set",
        ] {
            assert!(text.lines().any(|found| found == line), "no `{line}` in\n{text}");
        }
        assert!(!text.contains("hidden"));
        let again = printed(&parsed(&["--api-key=hidden"], &values(&text).unwrap()));
        assert!(again.contains("max-batch = 5  # file") && again.contains("path = [\"/a\", \"/b\"]  # file"));
    }

    #[test]
    fn a_wrong_file_is_told_by_line_without_its_text() {
        let reason = |text: &str| format!("{:#}", values(text).unwrap_err());
        assert!(reason("max-quue = 7").contains("max-quue") && reason("max-quue = 7").contains("max-queue"));
        assert!(reason("config = \"x\"").contains("config"));
        let broken = reason("max-queue = 7\napi-key = hidden\n");
        assert!(broken.starts_with("line 2") && !broken.contains("hidden"), "{broken}");
        assert!(reason("[path]\nx = 1").contains("path"));
    }
}
