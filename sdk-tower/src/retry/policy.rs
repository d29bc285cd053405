//! Which requests are sent again, how often and when.

use std::time::Duration;

use http::{Method, Request};

use super::Budget;

/// Which requests are sent again after they were sent once, how often and when.
///
/// Given to [`Builder::retry`](crate::channel::Builder::retry). A retry goes to another endpoint
/// while there is one that the request was not sent to, at once; only when all have been asked is
/// there a pause before one of them is asked again. The retry budget bounds all of it.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use http::Method;
/// use lictor_tower::retry::{Budget, RetryPolicy};
///
/// let policy = RetryPolicy::new()
///     .max_retries(1)
///     .methods([Method::POST])
///     .attempt_timeout(Duration::from_millis(250))
///     .budget(Budget::new(10, 3));
/// # let _ = policy;
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct RetryPolicy {
    max_retries: u32,
    methods: Vec<Method>,
    attempt_timeout: Option<Duration>,
    body_limit: usize,
    backoff: (Duration, Duration),
    max_retry_after: Duration,
    budget: Budget,
}

/// How long a body may be that is kept for another attempt, as in linkerd.
pub(crate) const BODY_LIMIT: usize = 64 * 1024;

/// The caller's word on whether a request may be sent twice, as an extension of the request.
///
/// It goes before the method: a `POST` of which the server recognizes the repetition may be
/// repeated, a `GET` that has an effect may not.
///
/// # Examples
///
/// ```
/// use http::Request;
/// use lictor_tower::retry::MayRepeat;
///
/// let request = Request::post("/orders/4711")
///     .header("idempotency-key", "0c1f…")
///     .extension(MayRepeat(true))
///     .body(String::new());
/// # assert!(request.is_ok());
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MayRepeat(pub bool);

impl RetryPolicy {
    /// The default policy: idempotent requests are sent twice more at most.
    pub fn new() -> Self {
        Self {
            max_retries: 2,
            methods: Vec::new(),
            attempt_timeout: None,
            body_limit: BODY_LIMIT,
            backoff: (Duration::from_millis(25), Duration::from_millis(250)),
            max_retry_after: Duration::from_secs(5),
            budget: Budget::default(),
        }
    }

    /// Sets how often a request is sent again after it was sent once.
    ///
    /// 0 and up; default 2: what three endpoints fail to do, a fourth seldom does. Attempts of
    /// which no endpoint has seen anything are not counted.
    pub fn max_retries(mut self, most: u32) -> Self {
        self.max_retries = most;
        self
    }

    /// Adds methods whose requests may be repeated.
    ///
    /// Default: those which are idempotent by RFC 9110, 9.2.2 (`GET`, `HEAD`, `OPTIONS`, `TRACE`,
    /// `PUT`, `DELETE`), which are always included. A single request goes by [`MayRepeat`].
    pub fn methods(mut self, more: impl IntoIterator<Item = Method>) -> Self {
        self.methods.extend(more);
        self
    }

    /// Sets how long one attempt may take, until the head of the response is there, before the
    /// request is sent to another endpoint in its place.
    ///
    /// This is one that was not asked yet; if there is none, one that was, but for those that
    /// refuse connections.
    ///
    /// It is for requests that may be repeated, and cuts an attempt off only if there is another
    /// in its place: the last one, or one for which the budget has nothing left, goes on until
    /// [`timeout`](crate::channel::Builder::timeout). So a service that turns slow as a whole is
    /// as slow as without retries, and no worse. Above zero, and not above that deadline of the
    /// request as a whole. Default none.
    pub fn attempt_timeout(mut self, limit: Duration) -> Self {
        self.attempt_timeout = Some(limit);
        self
    }

    /// Sets how long a body may be, in bytes, that is kept for another attempt.
    ///
    /// On HTTP/2 this is every body, because a server may say of any request that it has not
    /// processed it; else that of requests that may be repeated.
    ///
    /// It is kept as it is sent, without copying where its data are [`bytes::Bytes`]; one that
    /// turns out to be longer is let go, and its request is not sent again. 0 keeps none. Default
    /// 64 KiB, as in linkerd.
    pub fn body_limit(mut self, most: usize) -> Self {
        self.body_limit = most;
        self
    }

    /// Sets the pause before an endpoint is asked once more by the same request.
    ///
    /// A random time up to `base`, twice that after the second time, and so on up to `most`.
    /// `base` is not above `most`; of zero, there is no pause. Default 25 ms and 250 ms, as in
    /// Envoy. There is none before another endpoint is asked.
    pub fn backoff(mut self, base: Duration, most: Duration) -> Self {
        self.backoff = (base, most);
        self
    }

    /// Sets the longest pause that a response may ask for with `Retry-After`.
    ///
    /// It is the least pause before the same endpoint is asked once more, in seconds or as a date;
    /// what asks for more gets this. If the pause ends after the request's deadline, the response
    /// is given to the caller at once. Default 5 s.
    pub fn max_retry_after(mut self, most: Duration) -> Self {
        self.max_retry_after = most;
        self
    }

    /// Sets what retries are paid from.
    ///
    /// Default one of its own, see [`Budget`].
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            max_retries: self.max_retries,
            attempt_timeout: self.attempt_timeout,
            body_limit: self.body_limit,
        }
    }

    /// What is wrong with the policy, if anything is.
    pub(crate) fn refusal(&self) -> Option<String> {
        let (base, most) = self.backoff;
        (base > most).then(|| {
            format!(
                "backoff begins with {base:?} and ends with {most:?}; give the shorter one first"
            )
        })
    }

    pub(crate) fn purse(&self) -> &Budget {
        &self.budget
    }

    /// Whether a request may be repeated, by the caller's word or else by its method.
    pub(crate) fn may_repeat<B>(&self, request: &Request<B>) -> bool {
        match request.extensions().get() {
            Some(MayRepeat(may)) => *may,
            None => request.method().is_idempotent() || self.methods.contains(request.method()),
        }
    }

    /// The pause before the same endpoint is asked once more, after so many pauses before.
    ///
    /// `draw` is any number, `told` what the response asked for.
    pub(crate) fn pause(&self, before: u32, told: Option<Duration>, draw: u32) -> Duration {
        let (base, most) = self.backoff;
        let whole = base.saturating_mul(1 << before.min(16)).min(most);
        let part = f64::from(draw) / f64::from(u32::MAX);
        // The longest times do not survive the way through a float.
        let jittered = Duration::try_from_secs_f64(whole.as_secs_f64() * part).unwrap_or(whole);
        let told = told.unwrap_or_default().min(self.max_retry_after);
        // Those who were told the same time would come back all at once.
        told.saturating_add(jittered)
    }
}

/// The numbers of a policy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_retries: u32,
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) body_limit: usize,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_word_goes_before_the_method() {
        let policy = RetryPolicy::new().methods([Method::PATCH]);
        for (method, word, may) in [
            (Method::GET, None, true),
            (Method::PUT, None, true),
            (Method::PATCH, None, true),
            (Method::POST, None, false),
            (Method::POST, Some(MayRepeat(true)), true),
            (Method::GET, Some(MayRepeat(false)), false),
        ] {
            let mut request = Request::new(());
            *request.method_mut() = method;
            if let Some(word) = word {
                request.extensions_mut().insert(word);
            }
            assert_eq!(policy.may_repeat(&request), may, "{request:?}");
        }
    }

    #[test]
    fn pauses_double_with_jitter_up_to_the_longest() {
        let policy = RetryPolicy::new();
        let longest = |before| policy.pause(before, None, u32::MAX).as_millis();
        assert_eq!(
            [0, 1, 2, 3, 4, 40].map(longest),
            [25, 50, 100, 200, 250, 250]
        );
        assert_eq!(policy.pause(3, None, 0), Duration::ZERO);
    }

    #[test]
    fn what_a_response_asks_for_is_waited_and_no_more_than_the_clamp() {
        let policy = RetryPolicy::new().max_retry_after(Duration::from_secs(2));
        let told = |seconds| policy.pause(0, Some(Duration::from_secs(seconds)), 0);
        assert_eq!(told(1), Duration::from_secs(1));
        assert_eq!(told(3_600), Duration::from_secs(2));
        assert_eq!(
            policy.pause(0, Some(Duration::MAX), 0),
            Duration::from_secs(2)
        );
        let longest = RetryPolicy::new().backoff(Duration::MAX, Duration::MAX);
        assert_eq!(longest.pause(9, None, u32::MAX), Duration::MAX);
    }
}
