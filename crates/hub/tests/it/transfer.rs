//! Files arrive whole, from the right place, with the token only where it belongs, and stay where Python finds them.

use std::fs;
use std::path::Path;
use std::thread;

use remote_vae_hub::{Settings, Token};

use crate::stand_in::{COMMIT, Redirect, StandIn, etag};
use crate::{fetch, message, settings};

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// Content in which every place differs from its neighbours.
fn content() -> Vec<u8> {
    (0..700_000u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn hub() -> StandIn {
    StandIn::new("owner/name", &[("config.json", b"{}"), ("README.md", b"x"), (WEIGHTS, &content())])
}

fn blobs(home: &Path) -> Vec<String> {
    let entries = fs::read_dir(home.join("hub/models--owner--name/blobs")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_the_storage() {
    for redirect in [Redirect::Absolute, Redirect::Relative, Redirect::None] {
        let (hub, home) = (hub(), tempfile::tempdir().unwrap());
        hub.change(|state| {
            state.redirect = redirect;
            state.token = Some("hf_secret".into());
        });
        let settings = Settings { token: Token::new("hf_secret"), ..settings(&hub, home.path()) };
        let files = fetch("owner/name", &settings).unwrap();
        assert_eq!(fs::read(&files.checkpoint).unwrap(), content());
        assert_eq!((files.config.as_deref(), files.commit.as_str()), (Some("{}"), COMMIT));
        assert_eq!(files.label, format!("owner/name@{COMMIT}"));
        let requests = hub.requests();
        for request in &requests {
            let expected = (request.host == "hub").then(|| "hf_secret".to_owned());
            assert_eq!(request.token, expected, "{request:?}");
        }
        assert_eq!(requests.iter().any(|request| request.host == "storage"), redirect == Redirect::Absolute);
        assert!(!requests.iter().any(|request| request.path.contains("README")));
        // Everything is here now: nothing more is asked.
        assert_eq!(fetch("owner/name", &settings).unwrap().checkpoint, files.checkpoint);
        assert_eq!(hub.requests(), []);
    }
}

#[cfg(unix)]
#[test]
fn the_cache_has_the_layout_of_python() {
    let home = tempfile::tempdir().unwrap();
    let vae = format!("vae/{WEIGHTS}");
    let hub = StandIn::new(
        "owner/name",
        &[("vae/config.json", b"{}"), (&vae, &content()), ("x.safetensors", b"x")],
    );
    hub.change(|state| state.revision = "refs/pr/1".into());
    let files = fetch("owner/name@refs/pr/1", &settings(&hub, home.path())).unwrap();
    let root = home.path().join("hub/models--owner--name");
    assert_eq!(files.checkpoint, root.join("snapshots").join(COMMIT).join(&vae));
    assert_eq!(files.label, format!("owner/name:vae@{COMMIT}"));
    assert_eq!(fs::read_to_string(root.join("refs/refs/pr/1")).unwrap(), COMMIT);
    let link = fs::read_link(&files.checkpoint).unwrap();
    assert_eq!(link, Path::new("../../../blobs").join(etag(&content())));
    assert_eq!(blobs(home.path()).len(), 2);
    // A link whose blob was removed is no file.
    fs::remove_file(root.join("blobs").join(etag(&content()))).unwrap();
    let again = fetch("owner/name@refs/pr/1", &settings(&hub, home.path())).unwrap();
    assert_eq!(fs::read(again.checkpoint).unwrap(), content());
}

#[test]
fn offline_uses_what_python_downloaded_and_names_what_is_missing() {
    let (hub, home) = (hub(), tempfile::tempdir().unwrap());
    let offline = Settings { offline: true, ..settings(&hub, home.path()) };
    let text = message("owner/name", &offline);
    assert!(text.contains("HF_HUB_OFFLINE is set") && text.contains("`owner/name`"), "{text}");
    let root = home.path().join("hub/models--owner--name");
    let snapshot = root.join("snapshots").join(COMMIT);
    fs::create_dir_all(snapshot.join("vae")).unwrap();
    fs::create_dir_all(root.join("refs")).unwrap();
    fs::write(root.join("refs/main"), COMMIT).unwrap();
    fs::write(snapshot.join("vae/diffusion_pytorch_model.fp16.safetensors"), b"half").unwrap();
    assert!(message("owner/name", &offline).contains("`vae/config.json`"));
    assert!(message("owner/name:other", &offline).contains("`other`"));
    assert!(message("owner/name:a/b.safetensors", &offline).contains("`a/b.safetensors`"));
    fs::write(snapshot.join("vae/config.json"), b"{}").unwrap();
    for source in ["owner/name", "owner/name:vae", &format!("owner/name@{COMMIT}")] {
        assert_eq!(fs::read(fetch(source, &offline).unwrap().checkpoint).unwrap(), b"half", "{source}");
    }
    assert!(message("owner/name@v2", &offline).contains("revision v2"));
    assert_eq!(hub.requests(), []);
}

#[test]
fn an_interrupted_transfer_goes_on_where_it_broke() {
    for redirect in [Redirect::Absolute, Redirect::Relative, Redirect::None] {
        let (hub, home) = (hub(), tempfile::tempdir().unwrap());
        hub.change(|state| {
            state.redirect = redirect;
            state.broken = vec![300_000, 0, 0, 100_000];
        });
        let files = fetch("owner/name", &settings(&hub, home.path())).unwrap();
        assert_eq!(fs::read(files.checkpoint).unwrap(), content());
        let asked: Vec<u64> = hub
            .requests()
            .iter()
            .filter(|request| request.method == "GET" && request.path.contains("safetensors"))
            .map(|request| request.from)
            .collect();
        assert_eq!(asked, [0, 300_000, 300_000, 300_000, 400_000]);
        assert_eq!(blobs(home.path()).len(), 2);
    }
}

#[test]
fn the_next_start_resumes_what_the_last_one_left() {
    let (hub, home) = (hub(), tempfile::tempdir().unwrap());
    hub.change(|state| state.broken = vec![250_000, 0, 0, 0, 0, 0]);
    let text = message("owner/name", &settings(&hub, home.path()));
    assert!(text.contains("the next start resumes it"), "{text}");
    // The part is taken for nothing but a part.
    let offline = Settings { offline: true, ..settings(&hub, home.path()) };
    assert!(message("owner/name", &offline).contains("HF_HUB_OFFLINE"));
    hub.requests();
    hub.change(|state| state.broken.clear());
    let files = fetch("owner/name", &settings(&hub, home.path())).unwrap();
    assert_eq!(fs::read(files.checkpoint).unwrap(), content());
    assert!(hub.requests().iter().any(|request| request.from == 250_000));
}

#[test]
fn a_part_that_does_not_fit_is_started_over() {
    let wrong_part = vec![7; 1000];
    let too_long = vec![7; 800_000];
    let same_length = vec![7; content().len()];
    for (part, ranges) in [(&wrong_part, true), (&wrong_part, false), (&too_long, true), (&same_length, true)]
    {
        let (hub, home) = (hub(), tempfile::tempdir().unwrap());
        hub.change(|state| state.ranges = ranges);
        let blobs_folder = home.path().join("hub/models--owner--name/blobs");
        fs::create_dir_all(&blobs_folder).unwrap();
        fs::write(blobs_folder.join(format!("{}.incomplete", etag(&content()))), part).unwrap();
        let files = fetch("owner/name", &settings(&hub, home.path())).unwrap();
        assert_eq!(fs::read(files.checkpoint).unwrap(), content());
        assert_eq!(blobs(home.path()).len(), 2);
    }
}

#[test]
fn damaged_content_is_never_kept() {
    let (hub, home) = (hub(), tempfile::tempdir().unwrap());
    hub.change(|state| state.damaged = true);
    // The config is small and has the same kind of etag here.
    let text = message("owner/name", &settings(&hub, home.path()));
    assert!(text.contains("arrived damaged twice (its SHA-256 differs)"), "{text}");
    assert_eq!(blobs(home.path()), [] as [String; 0]);
    let offline = Settings { offline: true, ..settings(&hub, home.path()) };
    message("owner/name", &offline);
}

#[test]
fn several_processes_download_once() {
    let (hub, home) = (hub(), tempfile::tempdir().unwrap());
    let settings = settings(&hub, home.path());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let files = fetch("owner/name", &settings).unwrap();
                assert_eq!(fs::read(files.checkpoint).unwrap(), content());
            });
        }
    });
    let contents = hub.requests().into_iter().filter(|request| request.host == "storage").count();
    assert_eq!(contents, 1);
}

#[test]
fn refusals_say_what_to_do() {
    let (hub, home) = (hub(), tempfile::tempdir().unwrap());
    let anonymous = settings(&hub, home.path());
    let with = |token: &str| Settings { token: Token::new(token), ..anonymous.clone() };
    assert!(message("owner/other", &anonymous).contains("has no repository `owner/other`"));
    assert!(message("owner/other", &anonymous).contains("set HF_TOKEN"));
    assert!(message("owner/other", &with("hf_secret")).contains("that the token may read"));
    assert!(message("owner/name@v9", &anonymous).contains("has no revision `v9`"));
    assert!(message("owner/name:unet", &anonymous).contains("`owner/name` has no folder `unet`"));
    hub.change(|state| state.token = Some("hf_right".into()));
    let page = format!("http://{}/owner/name", hub.address);
    let text = message("owner/name", &anonymous);
    assert!(text.contains("needs a token") && text.contains(&page) && text.contains("HF_TOKEN"), "{text}");
    let text = message("owner/name", &with("hf_no_access_secret"));
    assert!(
        text.contains("has no access") && text.contains("accept the licence") && text.contains(&page),
        "{text}"
    );
    let text = message("owner/name", &with("hf_mistyped_secret"));
    assert!(text.contains("refused the token"), "{text}");
    let nobody = Settings { endpoint: "http://127.0.0.1:9".into(), ..anonymous };
    let text = message("owner/name", &nobody);
    assert!(text.starts_with("cannot reach 127.0.0.1:9 (Connection refused"), "{text}");
    for part in ["a folder or a .safetensors file on this machine", "HF_ENDPOINT", "HTTPS_PROXY"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("error sending request") && text.matches(": ").count() == 0, "{text}");
}

#[test]
fn renamed_repositories_are_followed() {
    let (hub, home) = (hub(), tempfile::tempdir().unwrap());
    hub.change(|state| state.renamed_from = Some("old/title".into()));
    let files = fetch("old/title", &settings(&hub, home.path())).unwrap();
    assert_eq!(fs::read(files.checkpoint).unwrap(), content());
}

#[test]
fn a_single_file_needs_no_config() {
    let files: [(&str, &[u8]); 2] =
        [("config.json", br#"{"model_type": "else"}"#), ("ae.safetensors", b"weights")];
    let (hub, home) = (StandIn::new("owner/name", &files), tempfile::tempdir().unwrap());
    let files = fetch("owner/name", &settings(&hub, home.path())).unwrap();
    assert_eq!((fs::read(&files.checkpoint).unwrap(), files.config), (b"weights".to_vec(), None));
    assert_eq!(files.label, format!("owner/name:ae.safetensors@{COMMIT}"));
    // Without any config.json, that is noted, so that the cache suffices the next time.
    let (hub, home) = (StandIn::new("owner/name", &[(WEIGHTS, &content())]), tempfile::tempdir().unwrap());
    fetch("owner/name", &settings(&hub, home.path())).unwrap();
    let offline = Settings { offline: true, ..settings(&hub, home.path()) };
    assert_eq!(fetch("owner/name", &offline).unwrap().config, None);
}
