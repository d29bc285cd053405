//! Settings as rustls takes them.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_rustls::rustls;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::{Pem, Tls};
use crate::error::{Error, ErrorKind, Result};

/// What was read and checked.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    pub(super) config: ClientConfig,
    pub(super) asked: Arc<Asked>,
}

/// How often endpoints have asked for a certificate.
#[derive(Debug, Default)]
pub(super) struct Asked(AtomicU64);

impl Asked {
    pub(super) fn times(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Tls {
    pub(super) fn loaded(&self) -> Result<Loaded> {
        if let Some(loaded) = self.loaded.get() {
            return Ok(loaded.clone());
        }
        let loaded = self.load()?;
        // If somebody else was faster, both have read the same.
        Ok(self.loaded.get_or_init(|| loaded).clone())
    }

    /// Reads all files.
    fn load(&self) -> Result<Loaded> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|err| wrong("TLS versions").because(err))?;
        let builder = if self.skip_verification {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AcceptAll(provider)))
        } else {
            let roots = Arc::new(self.root_store()?);
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(|err| wrong("root certificates").because(err))?;
            builder.with_webpki_verifier(verifier)
        };
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate, "client certificate")?;
                let key = PrivateKeyDer::from_pem_slice(&key.read("client key")?)
                    .map_err(|err| wrong(&key.place("client key")).because(err))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|err| wrong("client certificate and key do not fit").because(err))?
            }
        };
        let asked = Arc::new(Asked::default());
        config.client_auth_cert_resolver = Arc::new(Counting {
            resolver: config.client_auth_cert_resolver,
            asked: Arc::clone(&asked),
        });
        Ok(Loaded { config, asked })
    }

    fn root_store(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        let has_own = !self.roots.is_empty() || !self.root_dirs.is_empty();
        if !has_own || self.with_system {
            let native = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(native.certs);
            if roots.is_empty() {
                return Err(wrong(
                    "the system has no root certificates; name a CA file (Tls::ca_file)",
                ));
            }
        }
        for pem in &self.roots {
            add(&mut roots, pem)?;
        }
        for dir in &self.root_dirs {
            let unreadable = |err| wrong(&format!("CA directory {}", dir.display())).because(err);
            for entry in fs::read_dir(dir).map_err(unreadable)? {
                let path = entry.map_err(unreadable)?.path();
                if path.is_file() {
                    add(&mut roots, &Pem::File(path))?;
                }
            }
        }
        if roots.is_empty() {
            return Err(wrong(
                "the CA directories are empty; name one with PEM files",
            ));
        }
        Ok(roots)
    }
}

fn add(roots: &mut RootCertStore, pem: &Pem) -> Result<()> {
    for certificate in certificates(pem, "CA certificate")? {
        roots
            .add(certificate)
            .map_err(|err| wrong(&pem.place("CA certificate")).because(err))?;
    }
    Ok(())
}

fn certificates(pem: &Pem, what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_slice_iter(&pem.read(what)?)
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|err| wrong(&pem.place(what)).because(err))?;
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
            Self::File(path) => fs::read(path).map_err(|err| wrong(&self.place(what)).because(err)),
        }
    }

    fn place(&self, what: &str) -> String {
        match self {
            Self::Bytes(_) => what.to_owned(),
            Self::File(path) => format!("{what} {}", path.display()),
        }
    }
}

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::Invalid).context(format!("TLS: {what}"))
}

/// Notes that an endpoint asks who is calling.
#[derive(Debug)]
struct Counting {
    resolver: Arc<dyn ResolvesClientCert>,
    asked: Arc<Asked>,
}

impl ResolvesClientCert for Counting {
    fn resolve(
        &self,
        root_hint_subjects: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.asked.0.fetch_add(1, Ordering::Relaxed);
        self.resolver.resolve(root_hint_subjects, schemes)
    }

    fn has_certs(&self) -> bool {
        self.resolver.has_certs()
    }
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
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
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
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
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
