//! TLS settings: PEM bytes and paths in, no type of a TLS library out.

mod handshake;
mod load;
mod name;
mod words;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use load::Loaded;

pub(crate) use handshake::Secured;
pub(super) use handshake::TlsStream;
pub(super) use words::is_refusal;

/// How connections to endpoints are secured: whom they trust, what they show of themselves, and
/// which name the endpoints have to prove.
///
/// Handed to [`Builder::tls`](crate::channel::Builder::tls). The protocol is TLS 1.2 or 1.3, by
/// rustls; HTTP/2 is agreed on by ALPN, see [`Protocol`](crate::channel::Protocol). Without roots of
/// its own the system's are used. Files are read when the first channel is built with it, and once
/// for all channels that are built with clones; who changes them on disk builds a new one.
///
/// # Examples
///
/// ```no_run
/// # fn example(client: lictor::Client) -> Result<(), lictor_tower::Error> {
/// use lictor_tower::channel::{Channel, Tls};
///
/// let tls = Tls::new()
///     .ca_file("internal-ca.pem")
///     .client_certificate_files("me.pem", "me-key.pem")
///     .server_name("{service}.service.{datacenter}.consul");
/// let channel = Channel::builder(client).service("web").tls(tls).build()?;
/// # drop(channel);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct Tls {
    roots: Vec<Pem>,
    root_dirs: Vec<PathBuf>,
    with_system: bool,
    identity: Option<(Pem, Pem)>,
    server_name: String,
    skip_verification: bool,
    /// What was read, shared by all clones that have changed nothing since.
    loaded: Arc<OnceLock<Loaded>>,
}

/// Where PEM text comes from.
#[derive(Clone)]
enum Pem {
    File(PathBuf),
    Bytes(Vec<u8>),
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            roots: Vec::new(),
            root_dirs: Vec::new(),
            with_system: false,
            identity: None,
            server_name: "{service}".to_owned(),
            skip_verification: false,
            loaded: Arc::default(),
        }
    }
}

impl Tls {
    /// The system's root certificates, no certificate of our own, and the service's name.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the certificates of this PEM file, and no longer the system's.
    ///
    /// May be said several times. See [`system_roots`](Self::system_roots) for both.
    pub fn ca_file(self, path: impl Into<PathBuf>) -> Self {
        self.trusting(Pem::File(path.into()))
    }

    /// Trusts these PEM certificates, and no longer the system's.
    ///
    /// May be said several times.
    pub fn ca_pem(self, pem: impl Into<Vec<u8>>) -> Self {
        self.trusting(Pem::Bytes(pem.into()))
    }

    /// Trusts the certificates of every file in this directory, and no longer the system's.
    pub fn ca_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.root_dirs.push(path.into());
        self.changed()
    }

    /// Trusts the system's root certificates beside those that are named.
    ///
    /// Default: only where none are named. For a service some of whose instances have certificates
    /// of a public authority.
    pub fn system_roots(mut self) -> Self {
        self.with_system = true;
        self.changed()
    }

    /// Shows this certificate to endpoints that ask for one.
    pub fn client_certificate_files(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.identity = Some((Pem::File(certificate.into()), Pem::File(key.into())));
        self.changed()
    }

    /// Shows this PEM certificate chain, with its PEM key, to endpoints that ask for one.
    pub fn client_certificate_pem(
        mut self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.identity = Some((Pem::Bytes(certificate.into()), Pem::Bytes(key.into())));
        self.changed()
    }

    /// Sets the name that the certificate of an endpoint has to be for; it is also sent as SNI.
    ///
    /// A name, or a template in which these stand for something:
    ///
    /// | placeholder | what it stands for |
    /// |---|---|
    /// | `{service}` | the name of the service; of a channel over a source of one's own, its [`host`](crate::channel::Builder::host) without the port |
    /// | `{address}` | the address of the endpoint, without its port |
    /// | `{node}` | the node that the endpoint is on |
    /// | `{datacenter}` | the datacenter that it is in |
    ///
    /// Node and datacenter are known of endpoints that a channel finds
    /// [by the name of a service](crate::channel::Channel::builder), that a
    /// [`HealthSource`](crate::source::HealthSource::tell_nodes) is asked to tell, or that
    /// [say so themselves](crate::endpoint::Endpoint::with_node). An endpoint of which they are not known
    /// counts as one that refuses connections, with an error that says so.
    ///
    /// Default `{service}`, which suits certificates that all instances share. Others that are
    /// usual are `{service}.service.{datacenter}.consul`, `{node}.node.consul` and `{address}`. What
    /// is wrong with a template is told when the channel is built.
    pub fn server_name(mut self, template: impl Into<String>) -> Self {
        self.server_name = template.into();
        self
    }

    /// Accepts any certificate.
    ///
    /// Whoever sits between this process and the endpoint can then read everything and answer in the
    /// endpoint's place. For a test against a server whose certificate cannot be had.
    pub fn danger_skip_verification(mut self) -> Self {
        self.skip_verification = true;
        self.changed()
    }

    fn trusting(mut self, pem: Pem) -> Self {
        self.roots.push(pem);
        self.changed()
    }

    /// What others have read no longer holds for this one.
    fn changed(mut self) -> Self {
        self.loaded = Arc::default();
        self
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let certificate = self.identity.as_ref().map(|(certificate, _)| certificate);
        f.debug_struct("Tls")
            .field("roots", &self.roots)
            .field("root_dirs", &self.root_dirs)
            .field("system_roots", &self.with_system)
            .field("client_certificate", &certificate)
            .field("server_name", &self.server_name)
            .field("skip_verification", &self.skip_verification)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.fmt(f),
            Self::Bytes(bytes) => write!(f, "{} bytes of PEM", bytes.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_a_key_nor_its_place_is_printed() {
        let tls = Tls::new()
            .ca_pem("authority")
            .client_certificate_pem("certificate", "secret key");
        let shown = format!("{tls:?}");
        assert!(shown.contains("11 bytes of PEM"), "{shown}");
        assert!(!shown.contains("secret"), "{shown}");
        assert!(!shown.contains("10 bytes"), "{shown}");
    }
}
