//! One file from the hub into the cache: resumed where it broke off, checked, and only then given its name.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;

use reqwest::StatusCode;
use reqwest::blocking::Response;
use reqwest::header::CONTENT_RANGE;
use ring::digest;

use crate::HubError;
use crate::cache::{Shelf, create_parent};
use crate::http::{self, Http, Remote};
use crate::report::Progress;
use crate::settings::Settings;
use crate::source::Repository;

/// Transfers in a row that bring nothing before it is given up.
const MAX_FRUITLESS: u32 = 5;
const CHUNK: usize = 1 << 18;

/// What is needed to download files of a commit.
pub(crate) struct Download<'a> {
    pub http: &'a Http,
    pub settings: &'a Settings,
    pub shelf: &'a Shelf,
    pub repository: &'a Repository,
    pub commit: &'a str,
}

impl Download<'_> {
    /// Brings a file into the snapshot of the commit; nothing is sent for one that is there.
    pub(crate) fn file(&self, file: &str) -> Result<PathBuf, HubError> {
        let path = self.shelf.snapshot(self.commit, file);
        if path.is_file() {
            return Ok(path);
        }
        let remote = self.http.metadata(self.repository, self.commit, file)?;
        if let Some(bytes) = remote.bytes.filter(|bytes| *bytes > most_bytes(file)) {
            let reason = format!("has {bytes} bytes in `{file}`, which no config.json of a VAE has");
            return Err(HubError::NoFile { repository: self.repository.id.clone(), reason });
        }
        let blob = self.shelf.blob(&remote.etag);
        create_parent(&blob)?;
        let _lock = self.shelf.lock(&remote.etag, self.settings.report)?;
        if !blob.is_file() {
            self.blob(file, remote.clone(), &blob)?;
        }
        self.shelf.place(self.commit, file, &remote.etag)
    }

    fn blob(&self, file: &str, mut remote: Remote, blob: &Path) -> Result<(), HubError> {
        let part = blob.with_file_name(format!("{}.incomplete", remote.etag));
        let have = fs::metadata(&part).map_or(0, |facts| facts.len());
        let progress =
            self.settings.report.start(&format!("{}: {file}", self.repository.id), remote.bytes, have);
        let mut damage = None;
        // A part of unknown origin may be wrong; a whole file that came in one go is wrong only if the hub is.
        for _ in 0..2 {
            self.transfer(file, &mut remote, &part, &progress)?;
            match defect(&part, &remote).map_err(HubError::io(&part))? {
                None => {
                    let bytes = fs::metadata(&part).map_or(0, |facts| facts.len());
                    fs::rename(&part, blob).map_err(HubError::io(blob))?;
                    progress.done(bytes);
                    return Ok(());
                }
                Some(reason) => damage = Some(reason),
            }
            fs::remove_file(&part).map_err(HubError::io(&part))?;
        }
        Err(HubError::Damaged { file: file.to_owned(), reason: damage.unwrap_or_default() })
    }

    /// Appends to `part` until it is whole.
    fn transfer(
        &self,
        file: &str,
        remote: &mut Remote,
        part: &Path,
        progress: &Progress,
    ) -> Result<(), HubError> {
        let mut output = File::options().create(true).append(true).open(part).map_err(HubError::io(part))?;
        let (mut fruitless, mut best) = (0, 0);
        loop {
            let have = output.metadata().map_err(HubError::io(part))?.len();
            match remote.bytes {
                Some(bytes) if have == bytes => break,
                Some(bytes) if have > bytes => {
                    output.set_len(0).map_err(HubError::io(part))?;
                    continue;
                }
                _ => {}
            }
            let failure = match self.once(file, remote, &mut output, have, progress) {
                Ok(()) if remote.bytes.is_none() => break,
                // A connection that ends early without an error.
                Ok(()) => HubError::Network {
                    host: self.http.host(),
                    reason: "the connection ended early".to_owned(),
                    resumes: false,
                },
                Err(error @ (HubError::Network { .. } | HubError::Status { .. })) => error,
                Err(error) => return Err(error),
            };
            let now = output.metadata().map_err(HubError::io(part))?.len();
            if Some(now) == remote.bytes {
                break;
            }
            // Only what no attempt reached before is progress: a hub that announces a wrong length sends all again and again.
            fruitless = if now > best { 0 } else { fruitless + 1 };
            best = best.max(now);
            if fruitless == MAX_FRUITLESS {
                return Err(kept(failure, now));
            }
            thread::sleep(self.settings.retry_delay * (1 << fruitless));
            // The address of the content may have expired. While the network is down, the old one is tried again.
            if let Ok(fresh) = self.http.metadata(self.repository, self.commit, file) {
                if fresh.etag != remote.etag {
                    let reason = format!("`{file}` changes within one commit");
                    return Err(HubError::Protocol { host: self.http.host(), reason });
                }
                remote.location = fresh.location;
            }
        }
        output.sync_all().map_err(|source| self.write_error(source, file, remote.bytes))
    }

    /// One request for what is missing from byte `have` on.
    fn once(
        &self,
        file: &str,
        remote: &Remote,
        output: &mut File,
        have: u64,
        progress: &Progress,
    ) -> Result<(), HubError> {
        let mut response = self.http.content(&remote.location, have, self.repository, file)?;
        let disk = |source: std::io::Error| self.write_error(source, file, remote.bytes);
        let mut position = have;
        if have > 0 && !continues(&response, have) {
            // The whole file comes, or the part is not one of this file.
            output.set_len(0).map_err(disk)?;
            position = 0;
            if response.status() != StatusCode::OK {
                let status = response.status().as_u16();
                return Err(HubError::Status { host: self.http.host(), status, what: format!("`{file}`") });
            }
        }
        let limit = remote.bytes.unwrap_or_else(|| most_bytes(file));
        let mut chunk = vec![0; CHUNK];
        loop {
            let count = match response.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(http::network(&remote.location, &error)),
            };
            position += count as u64;
            if position > limit {
                output.set_len(0).map_err(disk)?;
                let reason = format!("`{file}` is longer than its {limit} bytes");
                return Err(HubError::Protocol { host: self.http.host(), reason });
            }
            output.write_all(&chunk[..count]).map_err(disk)?;
            progress.position(position);
        }
    }

    fn write_error(&self, source: std::io::Error, file: &str, bytes: Option<u64>) -> HubError {
        write_error(source, file, bytes, &self.settings.cache)
    }
}

fn write_error(source: std::io::Error, file: &str, bytes: Option<u64>, cache: &Path) -> HubError {
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            HubError::DiskFull { file: file.to_owned(), bytes, cache: cache.to_owned() }
        }
        _ => HubError::Io { path: cache.to_owned(), source },
    }
}

/// Says of a failed transfer that its part can be resumed.
fn kept(error: HubError, have: u64) -> HubError {
    match error {
        HubError::Network { host, reason, .. } => HubError::Network { host, reason, resumes: have > 0 },
        other => other,
    }
}

/// Whether the answer is the rest of the file from byte `have` on.
fn continues(response: &Response, have: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
    response.status() == StatusCode::PARTIAL_CONTENT && start == Some(have)
}

/// How a file differs from what the hub announced. Etags of large files are the SHA-256 of their content.
fn defect(path: &Path, remote: &Remote) -> std::io::Result<Option<String>> {
    let length = fs::metadata(path)?.len();
    if let Some(bytes) = remote.bytes
        && length != bytes
    {
        return Ok(Some(format!("{length} bytes instead of {bytes}")));
    }
    if remote.etag.len() != 64 || !remote.etag.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let mut file = File::open(path)?;
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            count => hash.update(&chunk[..count]),
        }
    }
    let found: String = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((!found.eq_ignore_ascii_case(&remote.etag)).then(|| "its SHA-256 differs".to_owned()))
}

/// The most bytes that a file of this name may have.
fn most_bytes(file: &str) -> u64 {
    if file.ends_with(crate::choice::CONFIG) { crate::fetch::MAX_CONFIG_BYTES } else { u64::MAX }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named() {
        let full =
            |kind: ErrorKind| write_error(kind.into(), "x.safetensors", Some(2_500_000), Path::new("/cache"));
        for kind in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded] {
            let message = full(kind).to_string();
            assert_eq!(message, "no space left for `x.safetensors`, which has 2.5 MB, in /cache");
        }
        assert!(full(ErrorKind::PermissionDenied).to_string().starts_with("/cache: permission denied"));
    }
}
