//! Where the agent is.

use std::fmt;
use std::path::{Path, PathBuf};

use http::Uri;
use http::uri::{Authority, Parts, PathAndQuery, Scheme};

use crate::error::{Error, ErrorKind, Result};

/// The port of Consul's HTTP API where an address names none.
const DEFAULT_PORT: u16 = 8500;

/// An agent's address, checked.
#[derive(Clone, Eq, PartialEq)]
pub(super) struct Address {
    scheme: Scheme,
    authority: Authority,
    /// Where to connect to; the host of the authority may be the name that TLS expects.
    host: String,
    /// Empty, or begins with `/` and does not end with one.
    prefix: String,
    socket: Option<PathBuf>,
}

impl Address {
    /// Reads `host:port`, `http://…`, `https://…` (each with a path prefix or without) or
    /// `unix:///path`; `name` is where the text came from.
    pub(super) fn parse(text: &str, name: &str) -> Result<Self> {
        let wrong = |reason: &str| {
            Err(Error::new(ErrorKind::Config).context(format!(
                "{name} {text:?}: {reason}; right would be `127.0.0.1:8500`, `[::1]:8500`, `https://host:8501`, \
                 `http://host:8500/prefix` or `unix:///path/to/socket`",
                text = without_password(text)
            )))
        };
        if let Some(path) = text.strip_prefix("unix://") {
            if path.is_empty() {
                return wrong("names no socket");
            }
            return Ok(Self {
                scheme: Scheme::HTTP,
                authority: Authority::from_static("localhost"),
                host: "localhost".to_owned(),
                prefix: String::new(),
                socket: Some(PathBuf::from(path)),
            });
        }
        let (scheme, rest, bare) = match text.split_once("://") {
            None if text.starts_with("http:/") || text.starts_with("https:/") => {
                return wrong("has one slash behind its scheme");
            }
            None => (Scheme::HTTP, text, true),
            Some((http, rest)) if http.eq_ignore_ascii_case("http") => (Scheme::HTTP, rest, false),
            Some((tls, rest)) if tls.eq_ignore_ascii_case("https") => (Scheme::HTTPS, rest, false),
            Some((other, _)) => return wrong(&format!("unknown scheme {other:?}")),
        };
        if rest.contains(['?', '#']) {
            return wrong("must have neither query nor fragment");
        }
        let (authority, prefix) = match rest.split_once('/') {
            Some((authority, prefix)) => (authority, prefix.trim_matches('/')),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return wrong("must not hold a user: set CONSUL_HTTP_AUTH or `Builder::basic_auth`");
        }
        let Ok(authority) = authority.parse::<Authority>() else {
            return wrong("is not a host with an optional port");
        };
        if authority.host().is_empty() {
            return wrong("names no host");
        }
        if authority.as_str().len() > authority.host().len()
            && authority.port_u16().is_none_or(|port| port == 0)
        {
            return wrong("has a port that is no number from 1 to 65535");
        }
        let authority = if bare && authority.port().is_none() {
            match format!("{authority}:{DEFAULT_PORT}").parse() {
                Ok(with_port) => with_port,
                Err(_) => return wrong("is not a host"),
            }
        } else {
            authority
        };
        let prefix = if prefix.is_empty() {
            String::new()
        } else {
            format!("/{prefix}")
        };
        if prefix.contains("//") || prefix.parse::<Uri>().is_err() && !prefix.is_empty() {
            return wrong("has a path prefix that is not a path");
        }
        Ok(Self {
            scheme,
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            authority,
            prefix,
            socket: None,
        })
    }

    /// The same address over TLS; a unix socket stays as it is.
    pub(super) fn secured(mut self) -> Self {
        if self.socket.is_none() {
            self.scheme = Scheme::HTTPS;
        }
        self
    }

    /// Has URIs bear `name` in place of the host, for TLS that expects it.
    pub(super) fn named(mut self, name: &str) -> Result<Self> {
        let named = match self.authority.port() {
            Some(port) => format!("{name}:{port}"),
            None => name.to_owned(),
        };
        self.authority = named.parse().map_err(|_| {
            Error::new(ErrorKind::Config)
                .context(format!("TLS server name {name:?}: is not a host name"))
        })?;
        Ok(self)
    }

    pub(super) fn is_tls(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// Where to connect to, an IPv6 address without its brackets.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn port(&self) -> u16 {
        let of_scheme = if self.is_tls() { 443 } else { 80 };
        self.authority.port_u16().unwrap_or(of_scheme)
    }

    pub(super) fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// The URI of a path (with its query) below the agent's root.
    pub(super) fn uri(&self, path_and_query: &str) -> Result<Uri> {
        let mut text = String::with_capacity(self.prefix.len() + path_and_query.len());
        text.push_str(&self.prefix);
        text.push_str(path_and_query);
        let mut parts = Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(PathAndQuery::try_from(text).map_err(unfit)?);
        Uri::from_parts(parts).map_err(unfit)
    }
}

fn unfit(err: impl Into<http::Error>) -> Error {
    Error::invalid("the request does not fit into a URL; a name or key may be too long")
        .caused_by(err.into())
}

/// The text as far as it can be repeated: without a user, and without a query, which may hold a
/// token.
fn without_password(text: &str) -> String {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    match text.rsplit_once('@') {
        Some((_, host)) => format!("..@{host}"),
        None => text.to_owned(),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.socket {
            Some(path) => write!(f, "unix://{}", path.display()),
            None => write!(f, "{}://{}{}", self.scheme, self.authority, self.prefix),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> String {
        let address = Address::parse(text, "address").unwrap();
        address.uri("/v1/x?a=b").unwrap().to_string()
    }

    #[test]
    fn all_documented_forms_are_read() {
        assert_eq!(uri("10.0.0.1:9"), "http://10.0.0.1:9/v1/x?a=b");
        assert_eq!(uri("consul"), "http://consul:8500/v1/x?a=b");
        assert_eq!(uri("[::1]"), "http://[::1]:8500/v1/x?a=b");
        assert_eq!(uri("[::1]:8501"), "http://[::1]:8501/v1/x?a=b");
        assert_eq!(uri("http://consul/"), "http://consul/v1/x?a=b");
        assert_eq!(uri("https://c:1/a/b/"), "https://c:1/a/b/v1/x?a=b");
        let unix = Address::parse("unix:///run/consul.sock", "address").unwrap();
        assert_eq!(unix.socket(), Some(Path::new("/run/consul.sock")));
        assert_eq!(unix.to_string(), "unix:///run/consul.sock");
    }

    #[test]
    fn a_path_too_long_for_a_uri_is_invalid() {
        let address = Address::parse("consul", "address").unwrap();
        let err = address
            .uri(&format!("/{}", "a".repeat(70_000)))
            .unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Invalid);
    }

    #[test]
    fn a_wrong_address_says_where_it_stands_and_what_is_wrong() {
        for (text, why) in [
            ("", "not a host"),
            ("ftp://x", "unknown scheme"),
            ("http://", "not a host"),
            ("http://h:0", "port"),
            ("http://h:99999", "port"),
            ("h:port", "port"),
            ("http://h?x=1", "query"),
            ("unix://", "socket"),
            ("http://a b", "not a host"),
            ("h/a//b", "prefix"),
            ("http:/h", "slash"),
        ] {
            let err = Address::parse(text, "CONSUL_HTTP_ADDR").unwrap_err();
            let err = err.to_string();
            assert!(
                err.contains(why) && err.contains("CONSUL_HTTP_ADDR"),
                "{text}: {err}"
            );
        }
    }

    #[test]
    fn a_password_in_an_address_is_refused_and_not_repeated() {
        let err = Address::parse("http://u:secret@h:1", "address").unwrap_err();
        assert!(!err.to_string().contains("secret"), "{err}");
        let err = Address::parse("http://h:1/?token=secret", "address").unwrap_err();
        assert!(!err.to_string().contains("secret"), "{err}");
    }
}
