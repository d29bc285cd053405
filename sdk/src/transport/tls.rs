//! TLS settings: PEM bytes and paths in, no type of a TLS library out.

use std::fmt;
use std::path::PathBuf;

/// How the agent's certificate is checked, and what this client shows of itself.
///
/// Without roots of its own the system's are used. The protocol is TLS 1.2 or 1.3, by rustls.
///
/// # Examples
///
/// ```
/// use lictor::transport::Tls;
///
/// let tls = Tls::new()
///     .ca_file("consul-agent-ca.pem")
///     .client_certificate_files("client.pem", "client-key.pem");
/// ```
#[derive(Clone, Default)]
#[must_use]
pub struct Tls {
    roots: Vec<Pem>,
    root_dirs: Vec<PathBuf>,
    identity: Option<(Pem, Pem)>,
    server_name: Option<String>,
    skip_verification: bool,
}

/// Where PEM text comes from.
#[derive(Clone)]
enum Pem {
    File(PathBuf),
    Bytes(Vec<u8>),
}

impl Tls {
    /// The system's root certificates, and no certificate of our own.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the certificates of this PEM file, and no longer the system's (`CONSUL_CACERT`).
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.roots.push(Pem::File(path.into()));
        self
    }

    /// Trusts the certificates of every file in this directory (`CONSUL_CAPATH`).
    pub fn ca_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.root_dirs.push(path.into());
        self
    }

    /// Trusts these PEM certificates, and no longer the system's.
    pub fn ca_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.roots.push(Pem::Bytes(pem.into()));
        self
    }

    /// Shows this certificate to the agent (`CONSUL_CLIENT_CERT`, `CONSUL_CLIENT_KEY`).
    pub fn client_certificate_files(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.identity = Some((Pem::File(certificate.into()), Pem::File(key.into())));
        self
    }

    /// Shows this PEM certificate chain, with its PEM key, to the agent.
    pub fn client_certificate_pem(
        mut self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.identity = Some((Pem::Bytes(certificate.into()), Pem::Bytes(key.into())));
        self
    }

    /// Expects the agent's certificate to be for this name, whatever the address says
    /// (`CONSUL_TLS_SERVER_NAME`).
    ///
    /// The name is also sent as SNI. A port behind it is cut off, as the reference client does.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        let name = name.into();
        let bare = match name.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host.to_owned(),
            _ => name,
        };
        self.server_name = Some(bare);
        self
    }

    /// Accepts any certificate (`CONSUL_HTTP_SSL_VERIFY=false`).
    ///
    /// Whoever sits between this process and the agent can then read the token and answer in the
    /// agent's place.
    pub fn danger_skip_verification(mut self) -> Self {
        self.skip_verification = true;
        self
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("roots", &self.roots)
            .field("root_dirs", &self.root_dirs)
            .field(
                "client_certificate",
                &self.identity.as_ref().map(|id| &id.0),
            )
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

#[cfg(feature = "tls")]
mod rustls_config {
    use std::path::Path;
    use std::sync::Arc;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::CryptoProvider;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
    use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

    use super::{Pem, Tls};
    use crate::error::{Error, ErrorKind, Result};

    impl Tls {
        /// The settings as rustls takes them; reads all files.
        pub(crate) fn config(&self) -> Result<ClientConfig> {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .map_err(|err| wrong("TLS versions").caused_by(err))?;
            let builder = if self.skip_verification {
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(AcceptAll(provider)))
            } else {
                let verifier = WebPkiServerVerifier::builder_with_provider(
                    Arc::new(self.root_store()?),
                    provider,
                )
                .build()
                .map_err(|err| wrong("root certificates").caused_by(err))?;
                builder.with_webpki_verifier(verifier)
            };
            let Some((certificate, key)) = &self.identity else {
                return Ok(builder.with_no_client_auth());
            };
            let chain = certificates(certificate, "client certificate")?;
            let key = PrivateKeyDer::from_pem_slice(&key.read("client key")?)
                .map_err(|err| wrong(&key.place("client key")).caused_by(err))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|err| wrong("client certificate and key do not fit").caused_by(err))
        }

        fn root_store(&self) -> Result<RootCertStore> {
            let mut roots = RootCertStore::empty();
            if self.roots.is_empty() && self.root_dirs.is_empty() {
                let native = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(native.certs);
                if roots.is_empty() {
                    return Err(wrong(
                        "the system has no root certificates; name a CA file (CONSUL_CACERT)",
                    ));
                }
                return Ok(roots);
            }
            for pem in &self.roots {
                add(&mut roots, pem)?;
            }
            for dir in &self.root_dirs {
                let unreadable =
                    |err| wrong(&format!("CA directory {}", dir.display())).caused_by(err);
                for entry in std::fs::read_dir(dir).map_err(unreadable)? {
                    let path = entry.map_err(unreadable)?.path();
                    if path.is_file() {
                        add(&mut roots, &Pem::File(path))?;
                    }
                }
            }
            Ok(roots)
        }
    }

    fn add(roots: &mut RootCertStore, pem: &Pem) -> Result<()> {
        for certificate in certificates(pem, "CA certificate")? {
            roots
                .add(certificate)
                .map_err(|err| wrong(&pem.place("CA certificate")).caused_by(err))?;
        }
        Ok(())
    }

    fn certificates(pem: &Pem, what: &str) -> Result<Vec<CertificateDer<'static>>> {
        let found = CertificateDer::pem_slice_iter(&pem.read(what)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|err| wrong(&pem.place(what)).caused_by(err))?;
        if found.is_empty() {
            return Err(wrong(&format!(
                "{}: holds no PEM certificate",
                pem.place(what)
            )));
        }
        Ok(found)
    }

    impl Pem {
        fn read(&self, what: &str) -> Result<Vec<u8>> {
            match self {
                Self::Bytes(bytes) => Ok(bytes.clone()),
                Self::File(path) => {
                    read(path).map_err(|err| wrong(&self.place(what)).caused_by(err))
                }
            }
        }

        fn place(&self, what: &str) -> String {
            match self {
                Self::Bytes(_) => what.to_owned(),
                Self::File(path) => format!("{what} {}", path.display()),
            }
        }
    }

    fn read(path: &Path) -> std::io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn wrong(what: &str) -> Error {
        Error::new(ErrorKind::Config).context(format!("TLS: {what}"))
    }

    /// What [`Tls::danger_skip_verification`] asks for: signatures are checked, names are not.
    #[derive(Debug)]
    struct AcceptAll(Arc<CryptoProvider>);

    impl ServerCertVerifier for AcceptAll {
        fn verify_server_cert(
            &self,
            _end_entity: &CertificateDer<'_>,
            _intermediates: &[CertificateDer<'_>],
            _server_name: &ServerName<'_>,
            _ocsp_response: &[u8],
            _now: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls12_signature(
                message,
                cert,
                dss,
                &self.0.signature_verification_algorithms,
            )
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls13_signature(
                message,
                cert,
                dss,
                &self.0.signature_verification_algorithms,
            )
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
}
