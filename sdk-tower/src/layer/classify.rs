//! What counts as a failure of an endpoint.

use http::Response;

/// Tells answers from failures, so that an endpoint that fails fast looks slow and not fast.
///
/// It looks at what a call came to and changes nothing of it. Any closure over a [`Result`] of two
/// references is one:
///
/// ```
/// use lictor_tower::endpoint::Endpoint;
/// use lictor_tower::layer::Builder;
/// use lictor_tower::source;
/// use tower::service_fn;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), lictor_tower::Error> {
/// let source = source::fixed([Endpoint::new("10.0.0.1:80".parse()?)]);
/// let balanced = Builder::new(source)
///     .classify(|outcome: Result<&String, &std::io::Error>| {
///         outcome.is_ok_and(|answer| answer != "try later")
///     })
///     .build(|_| service_fn(|()| async { Ok::<_, std::io::Error>("done".to_owned()) }))?;
/// # drop(balanced);
/// # Ok(())
/// # }
/// ```
pub trait Classify<Response, Error> {
    /// Whether the endpoint has done what it is there for.
    fn is_answer(&self, outcome: Result<&Response, &Error>) -> bool;
}

/// Takes each `Ok` for an answer and each `Err` for a failure; the default.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Errors;

impl<Response, Error> Classify<Response, Error> for Errors {
    fn is_answer(&self, outcome: Result<&Response, &Error>) -> bool {
        outcome.is_ok()
    }
}

/// Takes HTTP responses with a status of 500 and above for failures, besides each `Err`.
///
/// As a [`Channel`](crate::channel::Channel) does.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct ServerErrors;

impl<B, Error> Classify<Response<B>, Error> for ServerErrors {
    fn is_answer(&self, outcome: Result<&Response<B>, &Error>) -> bool {
        outcome.is_ok_and(|response| !response.status().is_server_error())
    }
}

impl<F, Response, Error> Classify<Response, Error> for F
where
    F: Fn(Result<&Response, &Error>) -> bool,
{
    fn is_answer(&self, outcome: Result<&Response, &Error>) -> bool {
        self(outcome)
    }
}
