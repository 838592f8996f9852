//! TLS by rustls: a certificate chain and a key from PEM files, read anew when they change.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::error::ServerError;
use crate::options::TlsFiles;
use crate::watch::Stamp;

/// What connections are greeted with.
pub(crate) struct Tls {
    files: TlsFiles,
    stamps: Mutex<[Option<Stamp>; 2]>,
    acceptor: RwLock<TlsAcceptor>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read, or certificate and key do not belong together.
    pub(crate) fn new(files: TlsFiles) -> Result<Self, ServerError> {
        let stamps = Mutex::new(stamps(&files));
        let acceptor = RwLock::new(acceptor(&files).map_err(ServerError::Tls)?);
        Ok(Self { files, stamps, acceptor })
    }

    /// For the next connection.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files anew if they have changed. What cannot be used changes nothing.
    pub(crate) fn refresh(&self) {
        let found = stamps(&self.files);
        {
            let mut stamps = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
            if *stamps == found {
                return;
            }
            *stamps = found;
        }
        match acceptor(&self.files) {
            Ok(acceptor) => {
                *self.acceptor.write().unwrap_or_else(PoisonError::into_inner) = acceptor;
                tracing::info!("the certificate was read anew");
            }
            Err(reason) => tracing::error!(reason, "the certificate stays as it was"),
        }
    }
}

fn stamps(files: &TlsFiles) -> [Option<Stamp>; 2] {
    [&files.certificate, &files.key].map(|path| Stamp::of(path))
}

fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, String> {
    let wrong = |path: &Path, reason: &dyn std::fmt::Display| format!("{}: {reason}", path.display());
    let path = files.certificate.as_path();
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(|error| wrong(path, &error))?;
    if chain.is_empty() {
        return Err(wrong(path, &"it holds no certificate"));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| wrong(&files.key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| wrong(path, &error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
