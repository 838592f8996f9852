//! The hub's protocol and the cache, against a stand-in on loopback; no test reads the developer's environment.

mod open;
mod stand_in;
mod transfer;

use std::path::Path;
use std::time::Duration;

use remote_vae_hub::{Files, Hub, HubError, Report, Repository, Settings};

use crate::stand_in::StandIn;

pub(crate) fn settings(hub: &StandIn, home: &Path) -> Settings {
    Settings {
        endpoint: format!("http://{}", hub.address),
        report: Report::Silent,
        timeout: Duration::from_secs(10),
        retry_delay: Duration::from_millis(1),
        ..Settings::with_cache(home.join("hub"))
    }
}

pub(crate) fn fetch(source: &str, settings: &Settings) -> Result<Files, HubError> {
    Hub::new(settings.clone()).fetch(&Repository::parse(source).unwrap())
}

pub(crate) fn message(source: &str, settings: &Settings) -> String {
    let message = fetch(source, settings).unwrap_err().to_string();
    assert!(!message.contains("secret") && !message.contains('\n'), "{message}");
    message
}
