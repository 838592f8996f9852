//! The grammar of SOURCE: what a user may type to name a model, and the model opened from it.
//!
//! ```text
//! SOURCE     = place [",space=" space]
//! place      = path | "embedded" | alias ["@" revision] | ["hf:"] repository
//! repository = owner "/" name, then in any order [":" folder or file] ["@" revision]
//! ```
//! A file or directory that exists wins over everything else that the text could mean.

use std::fmt;
use std::path::{Path, PathBuf};

use remote_vae_model::{Family, Model};

use crate::HubError;
use crate::alias::{self, Alias};
use crate::fetch::Hub;
use crate::settings::Settings;
use crate::space::Space;

/// Longest name of an owner and a repository together.
const MAX_ID: usize = 193;
const MAX_PART: usize = 255;

/// A parsed SOURCE.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Where the model is.
    pub place: Place,
    /// Its latent space, where the user says it.
    pub space: Option<Space>,
}

/// Where a model is.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// A file or directory.
    Path(PathBuf),
    /// In the program.
    Embedded,
    /// A repository that is known by a short name.
    Alias {
        /// What is known of it.
        alias: &'static Alias,
        /// Branch, tag or commit instead of the alias's own.
        revision: Option<String>,
    },
    /// A repository of the hub.
    Repository(Repository),
}

/// A repository of the hub, or a folder or a file in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// `owner/name`.
    pub id: String,
    /// A folder, or a file that ends in `.safetensors`; `None` looks in the root, then in `vae`.
    pub folder: Option<String>,
    /// Branch, tag or commit; `None` is `main`.
    pub revision: Option<String>,
}

impl Source {
    /// Reads SOURCE. Looks at the file system, because what exists there comes first.
    ///
    /// # Errors
    /// [`HubError::Source`], with near names.
    pub fn parse(text: &str) -> Result<Source, HubError> {
        Self::parse_with(text, Path::exists)
    }

    fn parse_with(text: &str, exists: impl Fn(&Path) -> bool) -> Result<Source, HubError> {
        let path =
            |text: &str| (!text.is_empty() && exists(Path::new(text))).then(|| Place::Path(text.into()));
        if let Some(place) = path(text) {
            return Ok(Source { place, space: None });
        }
        let (rest, space) = match text.rsplit_once(",space=") {
            Some((rest, space)) => (rest, Some(space.parse()?)),
            None => (text, None),
        };
        let place = match path(rest) {
            Some(place) => place,
            None => Place::parse(rest)?,
        };
        Ok(Source { place, space })
    }

    /// Opens the model, downloading its files if they are not in the cache.
    ///
    /// # Errors
    /// Any [`HubError`].
    pub fn open(&self, settings: &Settings) -> Result<Model, HubError> {
        let failed = |label: String| move |source| HubError::Model { label, source };
        let mut model = match &self.place {
            Place::Path(path) => Model::open(path).map_err(failed(path.display().to_string()))?,
            Place::Embedded => Model::embedded().map_err(failed("embedded".to_owned()))?,
            Place::Repository(repository) => Hub::new(settings.clone()).fetch(repository)?.open()?,
            Place::Alias { alias, revision } => {
                let files = Hub::new(settings.clone()).fetch(&alias.repository(revision.as_deref()))?;
                let mut model = files.open()?;
                // A config that states its factors is right about this very file.
                if alias.family == Family::AutoencoderTiny || !files.config_states_scaling() {
                    alias.space.apply(&mut model)?;
                }
                model
            }
        };
        if let Some(space) = self.space {
            space.apply(&mut model)?;
        }
        Ok(model)
    }
}

impl Place {
    fn parse(text: &str) -> Result<Place, HubError> {
        let wrong = |reason: &str| Err(HubError::Source { text: text.to_owned(), reason: reason.to_owned() });
        if text.is_empty() {
            return wrong("it is empty");
        }
        if text == "embedded" {
            return Ok(Place::Embedded);
        }
        if let Some(repository) = text.strip_prefix("hf:") {
            return Repository::parse(repository).map(Place::Repository);
        }
        let (name, revision) = match text.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (text, None),
        };
        if let Some(alias) = Alias::find(name) {
            if let Some(reason) = revision.and_then(wrong_revision) {
                return wrong(reason);
            }
            return Ok(Place::Alias { alias, revision: revision.map(str::to_owned) });
        }
        if looks_like_a_path(text) {
            return wrong("there is no such file or directory");
        }
        if name.contains('/') {
            return Repository::parse(text).map(Place::Repository);
        }
        let near: Vec<String> = alias::near(name).iter().map(|name| format!("`{name}`")).collect();
        let hint = match near.is_empty() {
            true => "`remote-vae models` lists the aliases".to_owned(),
            false => format!("did you mean {}?", near.join(", ")),
        };
        wrong(&format!(
            "there is no such file, directory or alias ({hint}), and a repository of the hub is written owner/name"
        ))
    }
}

/// A short name for the model that SOURCE names, for addresses and lists: the alias as typed, the repository's name, or
/// the last part of the path without its extension. Needs nothing to exist.
pub fn short_name(text: &str) -> String {
    let text = text.rsplit_once(",space=").map_or(text, |(place, _)| place);
    let place = if Path::new(text).exists() { None } else { Place::parse(text).ok() };
    match place {
        Some(Place::Alias { .. }) => text.split('@').next().unwrap_or(text).to_owned(),
        Some(Place::Repository(repository)) => {
            repository.id.rsplit('/').next().unwrap_or(&repository.id).to_owned()
        }
        _ => Path::new(text).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
    }
}

fn looks_like_a_path(text: &str) -> bool {
    text.starts_with(['/', '.', '~'])
        || text.ends_with('/')
        || text.contains('\\')
        || (text.ends_with(".safetensors") && !text.contains(':'))
}

impl Repository {
    /// Reads `owner/name[:folder][@revision]`, the last two in any order.
    ///
    /// # Errors
    /// [`HubError::Source`] that says which part is wrong.
    pub fn parse(text: &str) -> Result<Repository, HubError> {
        let wrong = |reason: &str| HubError::Source { text: text.to_owned(), reason: reason.to_owned() };
        let end = text.find([':', '@']).unwrap_or(text.len());
        let (id, mut rest) = text.split_at(end);
        if let Some(reason) = wrong_id(id) {
            return Err(wrong(reason));
        }
        let mut repository = Repository { id: id.to_owned(), folder: None, revision: None };
        while let Some(mark) = rest.chars().next() {
            let end = rest[1..].find([':', '@']).map_or(rest.len(), |end| end + 1);
            let part = &rest[1..end];
            let (slot, reason) = match mark {
                ':' => (&mut repository.folder, wrong_folder(part)),
                _ => (&mut repository.revision, wrong_revision(part)),
            };
            if let Some(reason) = reason {
                return Err(wrong(reason));
            }
            if slot.replace(part.to_owned()).is_some() {
                return Err(wrong(if mark == ':' { "it has two folders" } else { "it has two revisions" }));
            }
            rest = &rest[end..];
        }
        Ok(repository)
    }

    /// Branch, tag or commit.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        if let Some(folder) = &self.folder {
            write!(f, ":{folder}")?;
        }
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        Ok(())
    }
}

fn plain(text: &str, more: &[u8]) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
}

fn wrong_id(id: &str) -> Option<&'static str> {
    let Some((owner, name)) = id.split_once('/') else {
        return Some("a repository of the hub is written owner/name");
    };
    if name.contains('/') {
        return Some(
            "there is no such file or directory, and a repository of the hub has one slash: owner/name:folder",
        );
    }
    let good = |part: &str| {
        !part.is_empty()
            && plain(part, b"._-")
            && !part.contains("--")
            && !part.contains("..")
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
    };
    if id.len() > MAX_ID || !good(owner) || !good(name) {
        return Some(
            "the owner and the name of a repository have letters, digits, and single `.`, `_` and `-` within",
        );
    }
    None
}

pub(crate) fn wrong_folder(folder: &str) -> Option<&'static str> {
    let good = |part: &str| !part.is_empty() && part != "." && part != ".." && plain(part, b"._-+ ");
    if folder.len() > MAX_PART || !folder.split('/').all(good) {
        return Some(
            "a folder in a repository has letters, digits, `.`, `_`, `-`, `+` and single slashes, and no `..`",
        );
    }
    None
}

fn wrong_revision(revision: &str) -> Option<&'static str> {
    let good = |part: &str| {
        !part.is_empty() && plain(part, b"._-+") && !part.starts_with(['.', '-']) && !part.contains("..")
    };
    if revision.len() > MAX_PART || !revision.split('/').all(good) {
        return Some("a revision is the name of a branch or tag, or a commit, without `..`");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Source, HubError> {
        Source::parse_with(text, |path| path.starts_with("/models"))
    }

    fn message(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    fn repository(text: &str) -> Repository {
        match parse(text).unwrap().place {
            Place::Repository(repository) => repository,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_exists_comes_first() {
        let source = Source::parse_with("sdxl", |_| true).unwrap();
        assert_eq!(source.place, Place::Path("sdxl".into()));
        let source = parse("/models/a:b@c,space=sd").unwrap();
        assert_eq!((source.place, source.space), (Place::Path("/models/a:b@c,space=sd".into()), None));
        let exists = |path: &Path| path == Path::new("tae,1.safetensors");
        let source = Source::parse_with("tae,1.safetensors,space=sdxl", exists).unwrap();
        assert_eq!(
            (source.place, source.space),
            (Place::Path("tae,1.safetensors".into()), Some(Space::Sdxl))
        );
    }

    #[test]
    fn embedded_and_aliases() {
        assert_eq!(parse("embedded").unwrap().place, Place::Embedded);
        let Place::Alias { alias, revision } = parse("sd15@refs/pr/3,space=sd").unwrap().place else {
            panic!()
        };
        assert_eq!((alias.name, revision.as_deref()), ("sd-v1", Some("refs/pr/3")));
        assert_eq!(alias.repository(Some("x")).to_string(), "stabilityai/sd-vae-ft-mse@x");
        assert!(message("sdxl@../x").contains("a revision is"));
        assert!(message("sdxl,space=wan").contains("one of `sd`"));
    }

    #[test]
    fn repositories_in_either_order() {
        let full =
            Repository { id: "o-1/n.x_y".into(), folder: Some("a/vae".into()), revision: Some("v1".into()) };
        for text in ["o-1/n.x_y:a/vae@v1", "o-1/n.x_y@v1:a/vae", "hf:o-1/n.x_y:a/vae@v1"] {
            assert_eq!(repository(text), full, "{text}");
        }
        assert_eq!(full.to_string(), "o-1/n.x_y:a/vae@v1");
        assert_eq!(repository("o/n").revision(), "main");
        assert_eq!(repository("o/n@refs/pr/1").revision(), "refs/pr/1");
        assert_eq!(repository("o/n:x.safetensors").folder.as_deref(), Some("x.safetensors"));
    }

    #[test]
    fn nothing_leaves_its_folder() {
        for text in [
            "o/..",
            "../n",
            "hf:../n",
            "o/n:..",
            "o/n:../x",
            "o/n:a/../b",
            "o/n:/etc",
            "o/n:a//b",
            "o/n@..",
            "o/n@a..b",
            "o/n@/x",
            "o/n@",
            "o/n:",
            "o/n:a:b",
            "o/n@a@b",
            "o/n:a\\b",
            "o/n@a b",
            "o/n?x",
            "o/n#x",
            "o/n%2e",
            "hf:",
            "hf:x",
            "o/a--b",
            "o/-n",
            "a/b/c",
            "a/b/c.safetensors",
            "",
            "é/n",
            "o/n@é",
            "o/n:a\n",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        let long = format!("o/{}", "n".repeat(300));
        assert!(parse(&long).is_err());
    }

    #[test]
    fn errors_say_what_could_be_meant() {
        assert!(message("sdlx").contains("`sdxl`"), "{}", message("sdlx"));
        assert!(message("nothing-at-all").contains("`remote-vae models` lists"));
        assert!(message("./model").contains("no such file or directory"));
        assert!(message("vae.safetensors").contains("no such file or directory"));
        assert!(message("a/b/c").contains("one slash"));
    }

    #[test]
    fn short_names() {
        for (text, expected) in [
            ("black-forest-labs/FLUX.1-schnell:vae@main", "FLUX.1-schnell"),
            ("hf:owner/name,space=sd", "name"),
            ("sd15", "sd15"),
            ("sd1.5@main", "sd1.5"),
            ("taesd,space=sdxl", "taesd"),
            ("embedded", "embedded"),
            ("/models/x.safetensors", "x"),
            ("./a/b.safetensors,space=sd", "b"),
            ("", ""),
        ] {
            assert_eq!(short_name(text), expected, "{text}");
        }
    }
}
