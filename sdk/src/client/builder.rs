//! Settings of a client.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use http_body::Body;
use tower_service::Service;

use super::address::Address;
use super::slots::Slots;
use super::token::{TokenFile, TokenSource};
use super::{Client, Scope, Shared};
use crate::error::{Error, ErrorKind, Result};
use crate::ident::{Datacenter, Token};
use crate::transport::{BoxError, Request, Settings, Tls, Transport};

/// Settings of a [`Client`]; [`build`](Self::build) is the only place that can fail.
///
/// Whatever is set last holds, so a setter after [`from_env`](Self::from_env) overrides the
/// environment.
///
/// # Examples
///
/// ```
/// # fn example() -> lictor::Result<()> {
/// use std::time::Duration;
///
/// let client = lictor::Client::builder()
///     .address("https://consul.internal:8501")
///     .token("9d3e2c1f-0000-0000-0000-000000000000")
///     .timeout(Duration::from_secs(20))
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct Builder {
    pub(super) address: String,
    /// Where the address came from, for error texts.
    pub(super) address_name: &'static str,
    pub(super) ssl: bool,
    pub(super) tls: Tls,
    pub(super) token: TokenSetting,
    /// Where the token came from, for error texts.
    pub(super) token_name: &'static str,
    pub(super) basic_auth: Option<(String, String)>,
    pub(super) datacenter: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) partition: Option<String>,
    timeout: Duration,
    connect_timeout: Duration,
    response_limit: usize,
    transport: Option<Transport>,
}

/// A token that has not been looked at yet.
#[derive(Clone)]
pub(super) enum TokenSetting {
    None,
    Secret(String),
    File(PathBuf),
}

impl Builder {
    /// The agent at `http://127.0.0.1:8500`, without a token.
    pub(super) fn new() -> Self {
        Self {
            address: "127.0.0.1:8500".to_owned(),
            address_name: "address",
            ssl: false,
            tls: Tls::new(),
            token: TokenSetting::None,
            token_name: "token",
            basic_auth: None,
            datacenter: None,
            namespace: None,
            partition: None,
            timeout: DEFAULT_TIMEOUT,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            response_limit: DEFAULT_RESPONSE_LIMIT,
            transport: None,
        }
    }

    /// Where the agent is: `host:port`, `http://…`, `https://…` or `unix:///path/to/socket`.
    ///
    /// Default: `127.0.0.1:8500`. Without a scheme and a port, the port is 8500. A path behind the
    /// host is a prefix of all requests, for an agent behind a reverse proxy.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = address.into();
        self.address_name = "address";
        self.ssl = false;
        self
    }

    /// The token that requests bear; replaces a token file. Default: none.
    pub fn token(mut self, secret: impl Into<String>) -> Self {
        self.token = TokenSetting::Secret(secret.into());
        self.token_name = "token";
        self
    }

    /// A file whose text, without surrounding white space, is the token; replaces a token.
    ///
    /// It is read when the client is built, where its absence is an error, and looked at again at
    /// most once a second: a changed file takes effect with the next request. While it is missing
    /// or unusable the last good token stays.
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token = TokenSetting::File(path.into());
        self.token_name = "token file";
        self
    }

    /// HTTP basic authentication, for a proxy in front of the agent; goes beside the token.
    /// Default: none.
    pub fn basic_auth(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.basic_auth = Some((user.into(), password.into()));
        self
    }

    /// How the agent's certificate is checked; used when the address is `https`.
    /// Default: the system's roots.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    /// The datacenter that answers, if not the agent's own. Default: the agent's own.
    pub fn datacenter(mut self, datacenter: impl Into<String>) -> Self {
        self.datacenter = Some(datacenter.into());
        self
    }

    /// The namespace of all requests (Consul Enterprise; the community edition refuses it).
    /// Default: not sent.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// The admin partition of all requests (Consul Enterprise; the community edition refuses it
    /// from 1.11 on and ignores it before). Default: not sent.
    pub fn partition(mut self, partition: impl Into<String>) -> Self {
        self.partition = Some(partition.into());
        self
    }

    /// How long a request may take, from sending to the last byte of the answer.
    ///
    /// Default: 15 s. A server without a leader holds a request for 7 s before it says so
    /// (`rpc_hold_timeout`), and a registration is answered only after the agent has tried to tell
    /// the servers. A blocking query has a deadline of its own: its wait, a sixteenth of it, and
    /// 10 s. Range: above zero.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long opening a connection may take. Default: 5 s. Range: above zero.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// The largest answer that is taken, in bytes.
    ///
    /// Default: 64 MiB, six times a health answer about 10,000 instances. A larger one ends in
    /// [`ErrorKind::AnswerTooLarge`] as soon as the limit is passed.
    pub fn response_limit(mut self, bytes: usize) -> Self {
        self.response_limit = bytes;
        self
    }

    /// Another transport in place of the default one.
    ///
    /// It must be a tower `Service` that is cheap to clone; see [`transport`](crate::transport)
    /// for what it is handed. The address still gives scheme, host and prefix of the URIs; TLS
    /// settings, the unix socket and the connect time-out are then the transport's own business.
    pub fn transport<S, B>(mut self, service: S) -> Self
    where
        S: Service<Request, Response = http::Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.transport = Some(Transport::new(service));
        self
    }

    /// The client.
    ///
    /// Opens no connection, and reads the files that were named.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if a setting is wrong: the text says which, and what would be right.
    pub fn build(self) -> Result<Client> {
        let mut address = Address::parse(&self.address, self.address_name)?;
        if self.ssl {
            address = address.secured();
        }
        if self.timeout.is_zero() || self.connect_timeout.is_zero() {
            return Err(wrong("time-outs must be above zero"));
        }
        if self.response_limit == 0 {
            return Err(wrong("response_limit must be above zero"));
        }
        let transport = match self.transport {
            Some(transport) => transport,
            None => {
                let host = address.host().to_owned();
                if let (true, Some(name)) = (address.is_tls(), self.tls.name()) {
                    address = address.named(name)?;
                }
                let settings = Settings {
                    origin: address.uri("/")?,
                    unix_socket: address.socket().map(ToOwned::to_owned),
                    host,
                    tls: address.is_tls().then(|| self.tls.clone()),
                    connect_timeout: self.connect_timeout,
                };
                Transport::to(&settings)?
            }
        };
        let token = match self.token {
            TokenSetting::None => TokenSource::None,
            TokenSetting::Secret(secret) => {
                Token::check(&secret)
                    .map_err(|reason| wrong(&format!("{}: {reason}", self.token_name)))?;
                TokenSource::Fixed(Token::new(secret)?)
            }
            TokenSetting::File(path) => {
                TokenSource::File(Arc::new(TokenFile::open(path, self.token_name)?))
            }
        };
        let datacenter = self
            .datacenter
            .map(Datacenter::new)
            .transpose()
            .map_err(|err| wrong("datacenter").caused_by(err))?;
        Ok(Client {
            shared: Arc::new(Shared {
                transport,
                address,
                basic_auth: self.basic_auth.map(basic_auth).transpose()?,
                response_limit: self.response_limit,
                slots: Slots::default(),
            }),
            scope: Arc::new(Scope {
                token,
                datacenter,
                namespace: self.namespace.map(Arc::from),
                partition: self.partition.map(Arc::from),
                timeout: self.timeout,
            }),
        })
    }
}

fn basic_auth((user, password): (String, String)) -> Result<HeaderValue> {
    if user.contains(':') {
        return Err(wrong("basic auth: the user must not contain `:`"));
    }
    let encoded = STANDARD.encode(format!("{user}:{password}"));
    let mut value = HeaderValue::from_str(&format!("Basic {encoded}"))
        .map_err(|_| wrong("basic auth: cannot stand in a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::Config).context(what)
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("tls", &self.tls)
            .field("datacenter", &self.datacenter)
            .field("namespace", &self.namespace)
            .field("partition", &self.partition)
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_limit", &self.response_limit)
            .finish_non_exhaustive()
    }
}

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_RESPONSE_LIMIT: usize = 64 << 20;
