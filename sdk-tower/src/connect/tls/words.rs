//! What is said of a handshake that fails.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use tokio_rustls::rustls;

use rustls::{AlertDescription, CertificateError, Error as Rustls};

/// A handshake has failed, as seen by whoever asked for this name.
#[derive(Debug)]
pub(super) struct HandshakeFailed {
    pub(super) name: String,
    pub(super) hint: Option<&'static str>,
    pub(super) cause: io::Error,
}

impl HandshakeFailed {
    pub(super) fn new(name: String, cause: io::Error) -> Self {
        let hint = hint(&cause);
        Self { name, hint, cause }
    }
}

impl fmt::Display for HandshakeFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TLS handshake with {:?} failed", self.name)?;
        match self.hint {
            Some(hint) => write!(f, ": {hint}"),
            None => Ok(()),
        }
    }
}

impl StdError for HandshakeFailed {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.cause)
    }
}

/// The endpoint has refused what it learned of us after the handshake was over on our side.
///
/// With TLS 1.3 this is how a client hears that its certificate is not good enough (RFC 8446, 4.4.2.4).
#[derive(Debug)]
struct Refusal {
    hint: Option<&'static str>,
    cause: Rustls,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the endpoint has refused the TLS handshake")?;
        match self.hint {
            Some(hint) => write!(f, ": {hint}"),
            None => Ok(()),
        }
    }
}

impl StdError for Refusal {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.cause)
    }
}

/// Tells a refusal from other failures to read.
///
/// Only an alert about our certificate is one: a server looks at that before it processes anything.
/// Any other, such as `bad_record_mac`, may come at any time, and after a request was processed.
pub(super) fn of_reading(error: io::Error) -> io::Error {
    match of_rustls(&error) {
        Some(cause @ Rustls::AlertReceived(alert)) if is_about_certificate(*alert) => {
            let hint = hint_of(cause);
            let cause = cause.clone();
            io::Error::new(error.kind(), Refusal { hint, cause })
        }
        _ => error,
    }
}

/// Whether the endpoint has refused the handshake: it has then processed nothing.
pub(in crate::connect) fn is_refusal(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Refusal>())
}

fn is_about_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
    )
}

fn of_rustls(error: &io::Error) -> Option<&Rustls> {
    error.get_ref()?.downcast_ref()
}

fn hint(error: &io::Error) -> Option<&'static str> {
    match of_rustls(error) {
        Some(cause) => hint_of(cause),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            Some("the endpoint closed the connection; it may speak plain text")
        }
        None => None,
    }
}

fn hint_of(error: &Rustls) -> Option<&'static str> {
    Some(match error {
        Rustls::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "nobody who is trusted here has signed its certificate; name its CA with Tls::ca_file"
        }
        Rustls::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "its certificate is for other names; see Tls::server_name",
        Rustls::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "its certificate has expired",
        Rustls::InvalidMessage(_) => "what it answered is not TLS; it may speak plain text",
        Rustls::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            "it speaks none of the versions of HTTP that were offered"
        }
        Rustls::AlertReceived(AlertDescription::CertificateRequired) => {
            "it asks for a certificate; see Tls::client_certificate_pem"
        }
        Rustls::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError,
        ) => "it does not accept our certificate",
        Rustls::AlertReceived(AlertDescription::UnrecognisedName) => {
            "it does not know this name; see Tls::server_name"
        }
        Rustls::AlertReceived(AlertDescription::ProtocolVersion) => {
            "it speaks neither TLS 1.2 nor 1.3"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(alert: AlertDescription) -> bool {
        let error = io::Error::new(io::ErrorKind::InvalidData, Rustls::AlertReceived(alert));
        is_refusal(&of_reading(error))
    }

    #[test]
    fn only_an_alert_about_our_certificate_says_that_nothing_was_processed() {
        assert!(read(AlertDescription::CertificateRequired));
        assert!(read(AlertDescription::UnknownCA));
        for alert in [
            AlertDescription::BadRecordMac,
            AlertDescription::DecryptError,
            AlertDescription::DecodeError,
            AlertDescription::InternalError,
            AlertDescription::AccessDenied,
            AlertDescription::UserCanceled,
        ] {
            assert!(!read(alert), "{alert:?}");
        }
    }
}
