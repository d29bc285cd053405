//! What an outcome says of the endpoint, and whether another attempt is worth it.

use std::fmt;
use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};

use crate::error::{Error, ErrorKind};

/// What came of one attempt, as far as it is known.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Outcome<'a> {
    /// The head of a response has arrived.
    #[non_exhaustive]
    Response {
        /// Its status.
        status: StatusCode,
        /// Its headers.
        headers: &'a HeaderMap,
    },
    /// The body of a response has ended with trailers; nothing can be repeated any more.
    #[non_exhaustive]
    Trailers {
        /// The trailers.
        trailers: &'a HeaderMap,
    },
    /// The request was sent, and there is no response: the connection failed
    /// ([`ErrorKind::Request`]), or the attempt took too long ([`ErrorKind::Timeout`]).
    #[non_exhaustive]
    Failure {
        /// Why.
        error: &'a Error,
    },
}

/// What an [`Outcome`] means for the endpoint and for the request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Verdict {
    standing: Standing,
    retry: bool,
}

/// What an outcome says of its endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Standing {
    /// It did its work, and its latency counts.
    Answered,
    /// It is at fault.
    Failed,
    /// Neither.
    Unrated,
}

impl Verdict {
    /// The endpoint did its work: its latency counts. Not repeated, unless
    /// [`retryable`](Self::retryable) is added.
    #[must_use]
    pub const fn answered() -> Self {
        Self::new(Standing::Answered)
    }

    /// The endpoint is at fault and gets less traffic. Not repeated, unless
    /// [`retryable`](Self::retryable) is added.
    #[must_use]
    pub const fn failed() -> Self {
        Self::new(Standing::Failed)
    }

    /// It says nothing about how the endpoint fares. Not repeated, unless
    /// [`retryable`](Self::retryable) is added.
    #[must_use]
    pub const fn unrated() -> Self {
        Self::new(Standing::Unrated)
    }

    /// Another attempt may do better; whether there is one is for the
    /// [`RetryPolicy`](super::RetryPolicy) to say.
    #[must_use]
    pub const fn retryable(mut self) -> Self {
        self.retry = true;
        self
    }

    const fn new(standing: Standing) -> Self {
        Self {
            standing,
            retry: false,
        }
    }

    pub(crate) fn standing(self) -> Standing {
        self.standing
    }

    pub(crate) fn is_retryable(self) -> bool {
        self.retry
    }
}

impl Outcome<'_> {
    /// What the outcome means unless somebody says otherwise.
    ///
    /// * A status of 500 or above fails the endpoint; of these 502, 503 and 504 are retryable, for
    ///   they say that the work was not done here and now.
    /// * 429 is retryable and says nothing of the endpoint: taken for a quick answer it would draw
    ///   more traffic.
    /// * Of gRPC, a `grpc-status` that stands for a server error (`UNKNOWN`, `DEADLINE_EXCEEDED`,
    ///   `INTERNAL`, `UNAVAILABLE`, `DATA_LOSS`, as `google.rpc.Code` maps them to HTTP) fails the
    ///   endpoint, in the head as in the trailers. `UNAVAILABLE` is retryable: "most likely a
    ///   transient condition, which can be corrected by retrying".
    /// * A lost connection and an attempt that took too long fail the endpoint and are retryable.
    /// * Everything else is an answer.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Response { status, headers } => {
                if *status == StatusCode::TOO_MANY_REQUESTS {
                    return Verdict::unrated().retryable();
                }
                if status.is_server_error() {
                    return of_server_error(*status);
                }
                if is_grpc(headers) {
                    return of_grpc(headers);
                }
                Verdict::answered()
            }
            Self::Trailers { trailers } => of_grpc(trailers),
            Self::Failure { error } => match error.kind() {
                ErrorKind::Request | ErrorKind::Timeout => Verdict::failed().retryable(),
                _ => Verdict::failed(),
            },
        }
    }

    /// The status, if there is a response.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Response { status, .. } => Some(*status),
            Self::Trailers { .. } | Self::Failure { .. } => None,
        }
    }

    /// The headers of a response, or its trailers.
    #[must_use]
    pub fn headers(&self) -> Option<&HeaderMap> {
        match self {
            Self::Response { headers, .. } => Some(headers),
            Self::Trailers { trailers } => Some(trailers),
            Self::Failure { .. } => None,
        }
    }

    /// Why there is no response.
    #[must_use]
    pub fn error(&self) -> Option<&Error> {
        match self {
            Self::Failure { error } => Some(error),
            Self::Response { .. } | Self::Trailers { .. } => None,
        }
    }

    /// The code of gRPC's status in the head or the trailers, if there is one.
    #[must_use]
    pub fn grpc_status(&self) -> Option<u32> {
        grpc_status(self.headers()?)
    }
}

fn of_server_error(status: StatusCode) -> Verdict {
    match status {
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Verdict::failed().retryable()
        }
        _ => Verdict::failed(),
    }
}

fn of_grpc(headers: &HeaderMap) -> Verdict {
    const UNKNOWN: u32 = 2;
    const DEADLINE_EXCEEDED: u32 = 4;
    const INTERNAL: u32 = 13;
    const UNAVAILABLE: u32 = 14;
    const DATA_LOSS: u32 = 15;
    match grpc_status(headers) {
        Some(UNAVAILABLE) => Verdict::failed().retryable(),
        Some(UNKNOWN | DEADLINE_EXCEEDED | INTERNAL | DATA_LOSS) => Verdict::failed(),
        _ => Verdict::answered(),
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// Whether a response is one of gRPC: whether it went well stands in its trailers then.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// The user's word on outcomes, or the default.
#[derive(Clone, Default)]
pub(crate) struct Classifier(Option<Arc<Rule>>);

type Rule = dyn Fn(&Outcome<'_>) -> Verdict + Send + Sync;

impl Classifier {
    pub(crate) fn new(rule: impl Fn(&Outcome<'_>) -> Verdict + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(rule)))
    }

    pub(crate) fn response(&self, status: StatusCode, headers: &HeaderMap) -> Verdict {
        self.classify(&Outcome::Response { status, headers })
    }

    pub(crate) fn trailers(&self, trailers: &HeaderMap) -> Verdict {
        self.classify(&Outcome::Trailers { trailers })
    }

    pub(crate) fn failure(&self, error: &Error) -> Verdict {
        self.classify(&Outcome::Failure { error })
    }

    fn classify(&self, outcome: &Outcome<'_>) -> Verdict {
        match &self.0 {
            Some(rule) => rule(outcome),
            None => outcome.verdict(),
        }
    }
}

impl fmt::Debug for Classifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "own" } else { "default" })
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn response(status: u16, headers: &[(&'static str, &'static str)]) -> Verdict {
        let headers = map(headers);
        let status = StatusCode::from_u16(status).unwrap();
        Classifier::default().response(status, &headers)
    }

    fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = headers.iter().map(|(name, value)| {
            let name: http::HeaderName = name.parse().unwrap();
            (name, HeaderValue::from_static(value))
        });
        pairs.collect()
    }

    #[test]
    fn server_errors_fail_the_endpoint_and_some_of_them_are_retryable() {
        for (status, verdict) in [
            (200, Verdict::answered()),
            (302, Verdict::answered()),
            (404, Verdict::answered()),
            (429, Verdict::unrated().retryable()),
            (500, Verdict::failed()),
            (501, Verdict::failed()),
            (502, Verdict::failed().retryable()),
            (503, Verdict::failed().retryable()),
            (504, Verdict::failed().retryable()),
            (507, Verdict::failed()),
        ] {
            assert_eq!(response(status, &[]), verdict, "{status}");
        }
    }

    #[test]
    fn a_grpc_status_in_the_head_or_the_trailers_tells_how_the_call_went() {
        let unavailable = Verdict::failed().retryable();
        for (status, verdict) in [
            ("0", Verdict::answered()),
            ("1", Verdict::answered()),
            ("2", Verdict::failed()),
            ("4", Verdict::failed()),
            ("5", Verdict::answered()),
            ("8", Verdict::answered()),
            ("12", Verdict::answered()),
            ("13", Verdict::failed()),
            ("14", unavailable),
            ("15", Verdict::failed()),
            ("nonsense", Verdict::answered()),
        ] {
            let kind = ("content-type", "application/grpc+proto");
            assert_eq!(response(200, &[kind, ("grpc-status", status)]), verdict);
            let trailers = map(&[("grpc-status", status)]);
            assert_eq!(Classifier::default().trailers(&trailers), verdict);
        }
        // Whoever is not gRPC may call a header as he likes.
        let plain = [("content-type", "text/plain"), ("grpc-status", "14")];
        assert_eq!(response(200, &plain), Verdict::answered());
        assert_eq!(response(200, &[]), Verdict::answered());
    }

    #[test]
    fn a_lost_connection_and_a_late_answer_are_retryable() {
        for kind in [ErrorKind::Request, ErrorKind::Timeout] {
            let error = Error::new(kind).after_sending(true);
            let verdict = Classifier::default().failure(&error);
            assert_eq!(verdict, Verdict::failed().retryable());
        }
    }

    #[test]
    fn the_user_has_the_last_word() {
        let own = Classifier::new(|outcome| match outcome.status() {
            Some(StatusCode::NOT_FOUND) => Verdict::failed().retryable(),
            Some(StatusCode::SERVICE_UNAVAILABLE) => Verdict::answered(),
            _ => outcome.verdict(),
        });
        let headers = HeaderMap::new();
        let said = |status| own.response(status, &headers);
        assert_eq!(said(StatusCode::NOT_FOUND), Verdict::failed().retryable());
        assert_eq!(said(StatusCode::SERVICE_UNAVAILABLE), Verdict::answered());
        assert_eq!(said(StatusCode::BAD_GATEWAY), Verdict::failed().retryable());
    }
}
