//! What decides where files are looked for and how they are fetched. The one place that reads the environment.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::report::Report;

/// Settings of the hub.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The hub's address, e.g. `https://huggingface.co`.
    pub endpoint: String,
    /// The cache, a directory of `models--owner--name` folders. Need not exist.
    pub cache: PathBuf,
    /// Sent to the endpoint's host, and to no other.
    pub token: Option<Token>,
    /// Whether only the cache may be used.
    pub offline: bool,
    /// How downloads are shown.
    pub report: Report,
    /// Longest wait for the network to do anything.
    pub timeout: Duration,
    /// Wait before a broken transfer is taken up again; doubled each time that nothing came.
    pub retry_delay: Duration,
}

/// A secret; its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token without the white space around it; `None` when nothing is left.
    pub fn new(text: &str) -> Option<Token> {
        let text = text.trim();
        (!text.is_empty()).then(|| Token(text.to_owned()))
    }

    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Settings {
    /// Default settings with this cache: the public hub, no token.
    pub fn with_cache(cache: PathBuf) -> Settings {
        Settings {
            endpoint: "https://huggingface.co".to_owned(),
            cache,
            token: None,
            offline: false,
            report: Report::Automatic,
            timeout: Duration::from_secs(30),
            retry_delay: Duration::from_millis(500),
        }
    }

    /// What the environment says, by the variables of Python's `huggingface_hub`: `HF_ENDPOINT`; `HF_HUB_CACHE`, else
    /// `HF_HOME`, else `XDG_CACHE_HOME`; `HF_TOKEN`, else the file `HF_TOKEN_PATH`, else `token` in `HF_HOME`;
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`; `HF_HUB_OFFLINE`; `HF_HUB_DISABLE_PROGRESS_BARS`.
    pub fn from_environment() -> Settings {
        Self::from_variables(|name| std::env::var(name).ok(), std::env::home_dir().as_deref())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>, home: Option<&Path>) -> Settings {
        let get = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| get(name).map(|value| expand_home(&value, home));
        let truth = |name: &str| {
            get(name).is_some_and(|value| {
                ["1", "ON", "YES", "TRUE"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
            })
        };
        let base = path("HF_HOME").unwrap_or_else(|| {
            let cache = path("XDG_CACHE_HOME");
            cache.or_else(|| home.map(|home| home.join(".cache"))).unwrap_or_default().join("huggingface")
        });
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let token = if truth("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            None
        } else {
            get("HF_TOKEN").or_else(|| get("HUGGING_FACE_HUB_TOKEN")).as_deref().and_then(Token::new).or_else(
                || {
                    let file = path("HF_TOKEN_PATH").unwrap_or_else(|| base.join("token"));
                    fs::read_to_string(file).ok().as_deref().and_then(Token::new)
                },
            )
        };
        let mut settings = Settings::with_cache(cache.unwrap_or_else(|| base.join("hub")));
        if let Some(endpoint) = get("HF_ENDPOINT") {
            settings.endpoint = endpoint;
        }
        settings.token = token;
        settings.offline =
            truth("HF_HUB_OFFLINE") || (get("HF_HUB_OFFLINE").is_none() && truth("TRANSFORMERS_OFFLINE"));
        if truth("HF_HUB_DISABLE_PROGRESS_BARS") {
            settings.report = Report::Lines;
        }
        settings
    }
}

fn expand_home(path: &str, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Settings {
        let get = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Settings::from_variables(get, Some(Path::new("/home/me")))
    }

    #[test]
    fn the_cache_is_where_python_has_it() {
        let cache = |variables: &[(&str, &str)]| settings(variables).cache;
        assert_eq!(cache(&[]), Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[("HF_HOME", "~/hf"), ("XDG_CACHE_HOME", "/x")]), Path::new("/home/me/hf/hub"));
        assert_eq!(cache(&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")]), Path::new("/old"));
        let both = [("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/old")];
        assert_eq!(cache(&both), Path::new("/c"));
    }

    #[test]
    fn the_token_comes_from_the_variable_or_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        let token = |variables: &[(&str, &str)]| settings(variables).token;
        assert_eq!(token(&[("HF_HOME", home)]), None);
        fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(token(&[("HF_HOME", home)]), Token::new("hf_file"));
        assert_eq!(token(&[("HF_HOME", home), ("HF_TOKEN", " hf_variable ")]), Token::new("hf_variable"));
        assert_eq!(token(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        let elsewhere = folder.path().join("mine");
        fs::write(&elsewhere, "hf_mine").unwrap();
        assert_eq!(token(&[("HF_TOKEN_PATH", elsewhere.to_str().unwrap())]), Token::new("hf_mine"));
        let shown = format!("{:?}", settings(&[("HF_TOKEN", "hf_secret")]));
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn offline_and_endpoint() {
        for (value, offline) in
            [("1", true), ("true", true), ("ON", true), ("0", false), ("", false), ("no", false)]
        {
            assert_eq!(settings(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
        }
        assert!(settings(&[("TRANSFORMERS_OFFLINE", "1")]).offline);
        assert_eq!(settings(&[]).endpoint, "https://huggingface.co");
        assert_eq!(settings(&[("HF_ENDPOINT", "http://mirror")]).endpoint, "http://mirror");
        assert_eq!(settings(&[("HF_HUB_DISABLE_PROGRESS_BARS", "1")]).report, Report::Lines);
    }
}
