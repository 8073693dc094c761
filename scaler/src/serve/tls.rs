//! TLS on the sockets for KEDA and for the API server: the certificate, and whose clients may connect.
//!
//! The files are read again when they change, as a Secret's do when its certificate is renewed; connections that are open stay.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;

/// Time between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);
/// Longest time that a client may take to say who it is.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Clients that are about to say who they are.
const HANDSHAKES: usize = 1024;

/// The files, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Files {
    /// Certificate, and those between it and the root.
    pub(super) certificate: PathBuf,
    /// Its key.
    pub(super) key: PathBuf,
    /// Authorities; only clients with a certificate of one of them may connect.
    pub(super) client_authorities: Option<PathBuf>,
    /// What is spoken, as ALPN names it.
    pub(super) protocol: &'static str,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    /// A file can't be read.
    #[error("failed to read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// A file holds something else.
    #[error("{file} is no PEM file of {what}: {why}")]
    Pem { file: PathBuf, what: &'static str, why: String },
    /// They don't go together.
    #[error("certificate and key don't make a server: {0}")]
    Config(String),
}

/// Contents of the files: certificate, key, authorities.
#[derive(PartialEq, Eq)]
pub(super) struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_authorities: Option<Vec<u8>>,
}

impl Files {
    /// What connections are made with now, and what it was made from.
    pub(super) fn load(&self) -> Result<(Arc<ServerConfig>, Contents), TlsError> {
        let contents = self.contents()?;
        Ok((self.config(&contents)?, contents))
    }

    fn contents(&self) -> Result<Contents, TlsError> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| TlsError::Read(path.into(), error));
        Ok(Contents {
            certificate: read(&self.certificate)?,
            key: read(&self.key)?,
            client_authorities: self.client_authorities.as_deref().map(read).transpose()?,
        })
    }

    fn config(&self, contents: &Contents) -> Result<Arc<ServerConfig>, TlsError> {
        let chain = certificates(&self.certificate, &contents.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|error| pem(&self.key, "a private key", &error))?;
        let provider = Arc::new(ring::default_provider());
        let wrong = |error: &dyn std::fmt::Display| TlsError::Config(error.to_string());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&error))?;
        let builder = match self.client_authorities.as_deref().zip(contents.client_authorities.as_deref()) {
            None => builder.with_no_client_auth(),
            Some((file, authorities)) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(file, authorities)? {
                    roots.add(authority).map_err(|error| pem(file, "authorities", &error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| wrong(&error))?)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| wrong(&error))?;
        config.alpn_protocols = vec![self.protocol.into()];
        Ok(Arc::new(config))
    }

    /// Tells `newest` what connections are made with, whenever the files are not as `known`, until nobody listens. Files that are
    /// wrong, or half written, change nothing.
    pub(super) async fn watch(self, newest: watch::Sender<Arc<ServerConfig>>, mut known: Contents) {
        let mut interval = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                _ = interval.tick() => {}
                () = newest.closed() => return,
            }
            let contents = match self.contents() {
                Ok(contents) if contents != known => contents,
                _ => continue,
            };
            match self.config(&contents) {
                Ok(config) => {
                    newest.send_replace(config);
                    tracing::info!("the TLS files have changed; new connections are made with them");
                }
                Err(error) => {
                    tracing::warn!(%error, "the TLS files have changed and are wrong; those before count");
                }
            }
            known = contents;
        }
    }
}

fn certificates(file: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let certificates = certificates.map_err(|error| pem(file, "certificates", &error))?;
    if certificates.is_empty() {
        return Err(pem(file, "certificates", &"none is in it"));
    }
    Ok(certificates)
}

fn pem(file: &Path, what: &'static str, why: &dyn std::fmt::Display) -> TlsError {
    TlsError::Pem { file: file.into(), what, why: why.to_string() }
}

/// Connections whose clients have said who they are, in the order in which they are done with that.
pub(super) fn incoming(
    listener: TcpListener,
    config: watch::Receiver<Arc<ServerConfig>>,
) -> ReceiverStream<io::Result<TlsStream<TcpStream>>> {
    let (accepted, incoming) = mpsc::channel(16);
    tokio::spawn(async move {
        let mut handshakes = JoinSet::new();
        loop {
            tokio::select! {
                connection = listener.accept(), if handshakes.len() < HANDSHAKES => match connection {
                    Ok((connection, _)) => {
                        let acceptor = TlsAcceptor::from(Arc::clone(&config.borrow()));
                        handshakes.spawn(handshake(acceptor, connection, accepted.clone()));
                    }
                    // One connection's, or too many files: the next one may do better, but not at once.
                    Err(error) => {
                        tracing::warn!(%error, "a connection can't be accepted");
                        tokio::time::sleep(LOOK).await;
                    }
                },
                Some(_) = handshakes.join_next() => {}
                () = accepted.closed() => return,
            }
        }
    });
    ReceiverStream::new(incoming)
}

async fn handshake(
    acceptor: TlsAcceptor,
    connection: TcpStream,
    accepted: mpsc::Sender<io::Result<TlsStream<TcpStream>>>,
) {
    // Answers are small and awaited; that it can't be set is no reason to refuse.
    let _ = connection.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(connection)).await {
        // Nobody takes it when the service is about to end.
        Ok(Ok(stream)) => drop(accepted.send(Ok(stream)).await),
        Ok(Err(error)) => tracing::debug!(%error, "a client is refused"),
        Err(_) => tracing::debug!("a client did not say in time who it is"),
    }
}
