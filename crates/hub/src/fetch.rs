//! From a repository to files on this machine: the cache first, then the hub.

use std::fs;
use std::path::PathBuf;

use remote_vae_model::{Checkpoint, Model, ModelError};
use serde_json::Value;

use crate::HubError;
use crate::cache::{Found, Shelf, is_commit};
use crate::choice::{self, Choice};
use crate::download::Download;
use crate::http::Http;
use crate::settings::Settings;
use crate::source::Repository;

pub(crate) const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The way to the files of repositories.
#[derive(Clone, Debug)]
pub struct Hub {
    settings: Settings,
}

/// The files of a model, on this machine.
#[derive(Clone, Debug)]
pub struct Files {
    /// The safetensors file.
    pub checkpoint: PathBuf,
    /// The text of its config.json.
    pub config: Option<String>,
    /// The commit that they are of.
    pub commit: String,
    /// The same as a SOURCE, with the commit as its revision.
    pub label: String,
}

impl Hub {
    /// A hub by these settings. Nothing is sent before it is needed.
    pub fn new(settings: Settings) -> Hub {
        Hub { settings }
    }

    /// The config.json and the one safetensors file of a repository. What is whole in the cache is used without asking the
    /// hub; otherwise what is missing is downloaded, from one commit.
    ///
    /// # Errors
    /// Any [`HubError`] but those of parsing.
    pub fn fetch(&self, repository: &Repository) -> Result<Files, HubError> {
        let shelf = Shelf::new(&self.settings.cache, repository);
        match shelf.find(repository.folder.as_deref()) {
            Ok(found) => Files::read(repository, &found),
            Err(missing) if self.settings.offline => Err(HubError::Offline {
                repository: repository.id.clone(),
                revision: repository.revision().to_owned(),
                what: missing,
                cache: self.settings.cache.clone(),
            }),
            Err(_) => Files::read(repository, &self.download(repository, &shelf)?),
        }
    }

    fn download(&self, repository: &Repository, shelf: &Shelf) -> Result<Found, HubError> {
        let http = Http::new(&self.settings)?;
        let listing = http.listing(repository)?;
        let choice = choice::choose(&listing.files(), repository.folder.as_deref())
            .map_err(|reason| HubError::NoFile { repository: repository.id.clone(), reason })?;
        let commit = listing.commit.as_str();
        let asked = repository.revision();
        if is_commit(asked) && !commit.eq_ignore_ascii_case(asked) {
            let reason = format!("asked for commit {asked}, it answers with {commit}");
            return Err(HubError::Protocol { host: http.host(), reason });
        }
        let download = Download { http: &http, settings: &self.settings, shelf, repository, commit };
        let config = choice.config.as_ref().map(|config| download.file(config)).transpose()?;
        if config.is_none() && choice.usual() {
            shelf.note_absence(commit, &choice.config_path())?;
        }
        let checkpoint = download.file(&choice.checkpoint)?;
        shelf.note_commit(commit)?;
        Ok(Found { commit: listing.commit, checkpoint, config, choice })
    }
}

impl Files {
    fn read(repository: &Repository, found: &Found) -> Result<Files, HubError> {
        let text = found.config.as_ref().map(|path| {
            let length = fs::metadata(path).map_err(HubError::io(path))?.len();
            if length > MAX_CONFIG_BYTES {
                let message = format!("it has {length} bytes, which no config.json of a VAE has");
                let source = ModelError::Source { path: path.clone(), message };
                return Err(HubError::Model { label: repository.to_string(), source });
            }
            fs::read_to_string(path).map_err(HubError::io(path))
        });
        // Beside a file of another name than diffusers', it may describe something else.
        let config = text.transpose()?.filter(|text| found.choice.usual() || is_for_an_autoencoder(text));
        let pinned = Repository {
            folder: Some(folder(&found.choice)).filter(|folder| !folder.is_empty()),
            revision: Some(found.commit.clone()),
            ..repository.clone()
        };
        Ok(Files {
            checkpoint: found.checkpoint.clone(),
            config,
            commit: found.commit.clone(),
            label: pinned.to_string(),
        })
    }

    /// Opens the model.
    ///
    /// # Errors
    /// [`HubError::Model`].
    pub fn open(&self) -> Result<Model, HubError> {
        let model = Checkpoint::open(&self.checkpoint)
            .and_then(|checkpoint| Model::from_checkpoint(checkpoint, self.config.as_deref(), &self.label));
        model.map_err(|source| HubError::Model { label: self.label.clone(), source })
    }

    /// Whether the config states the latent space. Old ones do not.
    pub(crate) fn config_states_scaling(&self) -> bool {
        let keys = self.config.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok());
        keys.is_some_and(|keys| keys.get("scaling_factor").is_some_and(|value| !value.is_null()))
    }
}

/// What has to be named to get the same choice: the folder, or the file where it is not diffusers'.
fn folder(choice: &Choice) -> String {
    if choice.usual() {
        return choice.checkpoint.rsplit_once('/').map_or_else(String::new, |(folder, _)| folder.to_owned());
    }
    choice.checkpoint.clone()
}

fn is_for_an_autoencoder(text: &str) -> bool {
    let keys = serde_json::from_str::<Value>(text).ok();
    let class = keys.as_ref().and_then(|keys| keys.get("_class_name")?.as_str());
    class.is_some_and(|class| class.starts_with("Autoencoder"))
}
