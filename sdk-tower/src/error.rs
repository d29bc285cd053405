//! What can go wrong on the way to an endpoint.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// The result of every fallible call in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error a tower service or an HTTP body may carry.
pub(crate) type BoxError = Box<dyn StdError + Send + Sync>;

/// A call that did not reach an endpoint or got no answer, or a wrong argument.
///
/// Branch by [`kind`](Self::kind) or by a predicate. `Display` prints this level only; walk
/// [`source`](StdError::source) for the rest.
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    kind: ErrorKind,
    sent: bool,
    /// The name of the service, where the error is about the service as a whole.
    service: Option<Box<str>>,
    context: Cow<'static, str>,
    /// Shared with the attempt that it is the cause of.
    source: Option<Arc<dyn StdError + Send + Sync>>,
    attempts: Vec<Error>,
}

/// Why a call failed, in terms a caller can act on.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument or option that cannot work: a caller's mistake, not worth a retry.
    Invalid,
    /// A request that cannot be sent by this channel as it is, or whose own body failed; not worth
    /// a retry.
    InvalidRequest,
    /// There is no Tokio runtime where one is needed, or the one of the channel has ended.
    NoRuntime,
    /// The source of endpoints has not answered in the time given for the first resolution.
    NeverResolved,
    /// The source of endpoints says that nobody offers the service.
    NoEndpoints,
    /// No endpoint that was tried accepted a connection; the request was not sent.
    Connect,
    /// The connection failed before the head of the response had arrived.
    Request,
    /// The connection failed in the middle of the response's body.
    Body,
    /// A service of the caller's own, which carries requests to an endpoint, has failed.
    Service,
    /// The deadline of the request passed before the head of the response had arrived.
    Timeout,
    /// The channel has as many requests under way and waiting as it may have, or all connections that
    /// it may have are in use; nothing was sent.
    Overloaded,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind) -> Self {
        Self {
            inner: Box::new(Inner {
                kind,
                sent: matches!(kind, ErrorKind::Body),
                service: None,
                context: Cow::Borrowed(""),
                source: None,
                attempts: Vec::new(),
            }),
        }
    }

    pub(crate) fn context(mut self, context: impl Into<Cow<'static, str>>) -> Self {
        self.inner.context = context.into();
        self
    }

    pub(crate) fn about(mut self, service: Option<&str>) -> Self {
        self.inner.service = service.map(Into::into);
        self
    }

    pub(crate) fn because(mut self, source: impl Into<BoxError>) -> Self {
        let source: BoxError = source.into();
        self.inner.source = Some(source.into());
        self
    }

    pub(crate) fn after_sending(mut self, sent: bool) -> Self {
        self.inner.sent = sent;
        self
    }

    /// The error of a request whose attempts failed in these ways.
    ///
    /// What was sent tells more than what was refused afterwards: the last of that kind is the one
    /// told of, with its cause.
    pub(crate) fn after(self, attempts: Vec<Self>) -> Self {
        let sent = attempts.iter().rfind(|attempt| attempt.was_sent());
        let told = sent.or_else(|| attempts.last());
        let cause = told.and_then(|attempt| attempt.inner.source.clone());
        let mut error = self;
        error.inner.sent |= sent.is_some();
        error.inner.source = error.inner.source.or(cause);
        error.inner.attempts = attempts;
        error
    }

    pub(crate) fn told(&self) -> &str {
        &self.inner.context
    }

    /// What went wrong with each attempt of the request, in their order.
    ///
    /// Empty if there was one at most: then this error tells of it. The cause of the last one that
    /// was sent, or else of the last one, is also the [`source`](StdError::source) of this error.
    #[must_use]
    pub fn attempts(&self) -> &[Self] {
        &self.inner.attempts
    }

    /// Why the call failed.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// Whether every endpoint that was tried refused the connection or did not accept it in time.
    #[must_use]
    pub fn is_connect(&self) -> bool {
        matches!(self.inner.kind, ErrorKind::Connect)
    }

    /// Whether there was nobody to call: never resolved, or resolved to an empty set.
    #[must_use]
    pub fn is_no_endpoints(&self) -> bool {
        matches!(
            self.inner.kind,
            ErrorKind::NoEndpoints | ErrorKind::NeverResolved
        )
    }

    /// Whether a deadline passed.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self.inner.kind, ErrorKind::Timeout)
    }

    /// Whether the channel shed the request because it has enough to do.
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        matches!(self.inner.kind, ErrorKind::Overloaded)
    }

    /// Whether a part of the request may have reached an endpoint.
    ///
    /// If not, no endpoint has seen the request and it may be sent again whatever it does. If so,
    /// only the caller can know whether doing it twice is safe.
    #[must_use]
    pub fn was_sent(&self) -> bool {
        self.inner.sent
    }

    /// Whether the same call may succeed later without any change by the caller.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self.inner.kind {
            ErrorKind::Invalid | ErrorKind::InvalidRequest | ErrorKind::NoRuntime => false,
            ErrorKind::NeverResolved
            | ErrorKind::NoEndpoints
            | ErrorKind::Connect
            | ErrorKind::Request
            | ErrorKind::Body
            | ErrorKind::Service
            | ErrorKind::Timeout
            | ErrorKind::Overloaded => true,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.inner.kind {
            ErrorKind::Invalid => "invalid argument",
            ErrorKind::InvalidRequest => "request cannot be sent",
            ErrorKind::NoRuntime => "no Tokio runtime",
            ErrorKind::NeverResolved => "service never resolved",
            ErrorKind::NoEndpoints => "service has no endpoints",
            ErrorKind::Connect => "no endpoint accepted a connection",
            ErrorKind::Request => "connection failed before the response",
            ErrorKind::Body => "connection failed during the response",
            ErrorKind::Service => "endpoint's service failed",
            ErrorKind::Timeout => "request timed out",
            ErrorKind::Overloaded => "service has enough requests under way",
        };
        match (&self.inner.service, what.strip_prefix("service ")) {
            (Some(name), Some(what)) => write!(f, "service {name:?} {what}")?,
            _ => f.write_str(what)?,
        }
        if !self.inner.context.is_empty() {
            write!(f, ": {}", self.inner.context)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.inner.kind)
            .field("sent", &self.inner.sent)
            .field("service", &self.inner.service)
            .field("context", &self.inner.context)
            .field("source", &self.inner.source)
            .field("attempts", &self.inner.attempts)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    const ALL: [ErrorKind; 11] = [
        ErrorKind::Invalid,
        ErrorKind::InvalidRequest,
        ErrorKind::NoRuntime,
        ErrorKind::NeverResolved,
        ErrorKind::NoEndpoints,
        ErrorKind::Connect,
        ErrorKind::Request,
        ErrorKind::Body,
        ErrorKind::Service,
        ErrorKind::Timeout,
        ErrorKind::Overloaded,
    ];

    #[test]
    fn no_level_of_the_chain_repeats_another() {
        for kind in ALL {
            let error = Error::new(kind)
                .context("web")
                .because(io::Error::other("the cause"));
            let shown = error.to_string();
            assert!(shown.ends_with(": web"), "{shown}");
            assert!(!shown.contains("the cause"), "{shown}");
            assert_eq!(error.source().unwrap().to_string(), "the cause");
        }
    }

    #[test]
    fn a_service_is_named_if_its_name_is_known() {
        let error = Error::new(ErrorKind::NoEndpoints);
        assert_eq!(error.to_string(), "service has no endpoints");
        let error = error.about(Some("web"));
        assert_eq!(error.to_string(), "service \"web\" has no endpoints");
        let error = Error::new(ErrorKind::NeverResolved)
            .about(Some("web"))
            .context("no answer within 10s");
        assert_eq!(
            error.to_string(),
            "service \"web\" never resolved: no answer within 10s"
        );
    }

    #[test]
    fn nothing_was_sent_unless_somebody_says_so() {
        for kind in ALL {
            assert_eq!(Error::new(kind).was_sent(), kind == ErrorKind::Body);
            assert!(Error::new(kind).after_sending(true).was_sent());
        }
    }

    #[test]
    fn mistakes_of_the_caller_are_not_transient() {
        let lasting: Vec<_> = ALL
            .into_iter()
            .filter(|kind| !Error::new(*kind).is_transient())
            .collect();
        assert_eq!(
            lasting,
            [
                ErrorKind::Invalid,
                ErrorKind::InvalidRequest,
                ErrorKind::NoRuntime
            ]
        );
    }
}
