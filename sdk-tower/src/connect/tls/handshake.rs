//! From an open socket to a secured one.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls;

use rustls::ProtocolVersion;
use rustls::pki_types::ServerName;

use crate::connect::{Protocol, Residence, Wire};
use crate::endpoint::Target;
use crate::error::{BoxError, Error, ErrorKind, Result};

use super::Tls;
use super::load::Asked;
use super::name::Template;
use super::words::{self, HandshakeFailed};

const H1: &[u8] = b"http/1.1";
const H2: &[u8] = b"h2";

/// How long the verdict on a client's certificate is waited for.
///
/// Most servers send a ticket with it. Those that send none, and ask for certificates, are asked
/// their first request after this time.
const VERDICT: Duration = Duration::from_millis(100);

/// How the connections of one channel are secured.
#[derive(Clone)]
pub(crate) struct Secured {
    connector: TlsConnector,
    asked: Arc<Asked>,
    template: Template,
    wants_h2: bool,
}

/// A secured socket.
pub(in crate::connect) struct TlsStream(tokio_rustls::client::TlsStream<TcpStream>);

impl Tls {
    /// Reads all files and checks everything, for a channel to this service.
    pub(crate) fn secured(&self, protocol: Protocol, service: Option<&str>) -> Result<Secured> {
        let template = Template::parse(&self.server_name, service)
            .map_err(|why| Error::new(ErrorKind::Invalid).context(format!("TLS: {why}")))?;
        let loaded = self.loaded()?;
        let mut config = loaded.config;
        let offered: &[&[u8]] = match protocol {
            Protocol::Http1 => &[H1],
            Protocol::Http2 => &[H2],
            Protocol::Auto => &[H2, H1],
        };
        config.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
        Ok(Secured {
            connector: TlsConnector::from(Arc::new(config)),
            asked: loaded.asked,
            template,
            wants_h2: protocol == Protocol::Http2,
        })
    }
}

impl Secured {
    /// Shakes hands over a socket; says what is to be spoken on it.
    pub(in crate::connect) async fn dress(
        &self,
        stream: TcpStream,
        target: &Target,
        at: &Residence,
    ) -> Result<(TlsStream, Wire), BoxError> {
        let name = self.template.fill(target, at)?;
        let proven = ServerName::try_from(name.clone())
            .map_err(|_| format!("{name:?} is neither a DNS name nor an IP address"))?;
        let failed = |cause| HandshakeFailed::new(name.clone(), cause);
        let asked = self.asked.times();
        let connecting = self.connector.connect(proven, stream);
        let mut stream = TlsStream(connecting.await.map_err(failed)?);
        // Others may have been asked meanwhile: then this waits for nothing, and not long.
        if self.asked.times() != asked && stream.is_of_version(ProtocolVersion::TLSv1_3) {
            stream.verdict().await.map_err(failed)?;
        }
        let (_, session) = stream.0.get_ref();
        let wire = match session.alpn_protocol() {
            Some(H2) => Wire::Http2,
            _ => Wire::Http1,
        };
        if self.wants_h2 && wire != Wire::Http2 {
            return Err(Box::new(HandshakeFailed {
                name,
                hint: Some("the endpoint did not agree to HTTP/2"),
                cause: io::Error::new(
                    io::ErrorKind::Unsupported,
                    "h2 was offered by ALPN and nothing chosen; see Protocol::Auto",
                ),
            }));
        }
        Ok((stream, wire))
    }
}

impl TlsStream {
    pub(in crate::connect) fn inner(&mut self) -> &mut tokio_rustls::client::TlsStream<TcpStream> {
        &mut self.0
    }

    fn is_of_version(&self, version: ProtocolVersion) -> bool {
        self.0.get_ref().1.protocol_version() == Some(version)
    }

    /// Waits until the server says something, and reads whether it has refused us.
    ///
    /// With TLS 1.3 a handshake is over for a client before the server has seen its certificate. What
    /// is sent meanwhile is lost if the server does not like it, and nobody could tell whether it was
    /// processed.
    async fn verdict(&mut self) -> io::Result<()> {
        let (socket, session) = self.0.get_mut();
        if timeout(VERDICT, socket.readable()).await.is_err() {
            return Ok(());
        }
        match session.read_tls(&mut NonBlocking(socket)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        // Data that came along stay in the session for whoever reads next.
        match session.process_new_packets() {
            Ok(_) => Ok(()),
            Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }

    pub(in crate::connect) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0)
            .poll_read(cx, buf)
            .map_err(words::of_reading)
    }
}

/// What a socket has to read, without waiting for more.
struct NonBlocking<'a>(&'a TcpStream);

impl Read for NonBlocking<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buf)
    }
}

impl fmt::Debug for Secured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secured")
            .field("template", &self.template)
            .finish_non_exhaustive()
    }
}
