//! Open-loop load on a channel, and what became of each request.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Frame};
use lictor_tower::channel::Channel;
use lictor_tower::endpoint::Target;
use lictor_tower::error::ErrorKind;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

use crate::stage::tell;

/// How many requests are under way at most.
///
/// On a machine that has less time than the load needs, a load without such a bound would only be a
/// test of how many sockets a process may have: each request that waits makes all the others slower.
const MOST_UNDER_WAY: usize = 1_000;

/// What kind of request is sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Get,
    /// `POST` with a body of unknown length that comes in two pieces.
    Post,
}

/// What became of one request.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) kind: Kind,
    /// When it was begun, from the begin of the load.
    pub(crate) at: Duration,
    /// Until the end of the body, or the failure.
    pub(crate) took: Duration,
    pub(crate) outcome: Result<(Target, StatusCode), Failure>,
}

/// Why there was no whole answer.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// None if the body broke off.
    pub(crate) kind: Option<ErrorKind>,
    pub(crate) was_sent: bool,
    pub(crate) told: String,
}

/// A stream of requests that goes on until it is [stopped](Self::stop).
pub(crate) struct Load {
    begin: Instant,
    samples: Arc<Mutex<Vec<Sample>>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// What became of all requests, or of some.
#[derive(Clone)]
pub(crate) struct Samples(pub(crate) Vec<Sample>);

impl Load {
    /// So many requests a second from now on, of these kinds in turn.
    ///
    /// Those that are due while [so many](MOST_UNDER_WAY) are under way are left out, and how many
    /// they were is told.
    pub(crate) fn start(channel: &Channel, rate: u32, kinds: &'static [Kind]) -> Self {
        let begin = Instant::now();
        let samples = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = watch::channel(false);
        let (channel, taken) = (channel.clone(), Arc::clone(&samples));
        let task = tokio::runtime::Handle::current().spawn(async move {
            let mut calls = JoinSet::new();
            let mut sent = 0_u32;
            let mut left_out = 0_u32;
            while !*stopped.borrow() {
                let due = (begin.elapsed().as_secs_f64() * f64::from(rate)) as u32;
                while sent < due {
                    if calls.len() >= MOST_UNDER_WAY {
                        left_out += due - sent;
                        sent = due;
                        break;
                    }
                    let kind = kinds[sent as usize % kinds.len()];
                    let (channel, taken) = (channel.clone(), Arc::clone(&taken));
                    calls.spawn(async move {
                        let at = begin.elapsed();
                        let outcome = call(&channel, kind).await;
                        let took = begin.elapsed() - at;
                        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
                        taken.push(Sample {
                            kind,
                            at,
                            took,
                            outcome,
                        });
                    });
                    sent += 1;
                }
                while calls.try_join_next().is_some() {}
                sleep(Duration::from_millis(1)).await;
            }
            calls.join_all().await;
            if left_out > 0 {
                tell(format_args!(
                    "{left_out} of {sent} requests left out: the machine is too slow for them"
                ));
            }
        });
        Self {
            begin,
            samples,
            stop,
            task,
        }
    }

    /// How long it has gone on.
    pub(crate) fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    /// What is known so far of requests that were begun in this time and have ended.
    pub(crate) fn between(&self, from: Duration, to: Duration) -> Samples {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        Samples(samples.clone()).between(from, to)
    }

    /// Sends no more, waits for what is under way, and gives what became of all.
    pub(crate) async fn stop(self) -> Samples {
        self.stop.send_replace(true);
        self.task.await.expect("no call panics");
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let mut samples = std::mem::take(&mut *samples);
        samples.sort_by_key(|sample| sample.at);
        Samples(samples)
    }
}

impl Samples {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn between(&self, from: Duration, to: Duration) -> Self {
        let there = |sample: &&Sample| (from..to).contains(&sample.at);
        Self(self.0.iter().filter(there).cloned().collect())
    }

    /// Those without a whole answer, or with one that is a server's failure.
    pub(crate) fn failed(&self) -> Self {
        let failed = |sample: &&Sample| match &sample.outcome {
            Ok((_, status)) => status.is_server_error(),
            Err(_) => true,
        };
        Self(self.0.iter().filter(failed).cloned().collect())
    }

    /// Answers of this endpoint.
    pub(crate) fn by(&self, target: &Target) -> usize {
        let by = |sample: &&Sample| matches!(&sample.outcome, Ok((by, _)) if by == target);
        self.0.iter().filter(by).count()
    }

    /// The time within which so many of a thousand have ended.
    pub(crate) fn per_mille(&self, share: usize) -> Duration {
        let mut times: Vec<_> = self.0.iter().map(|sample| sample.took).collect();
        times.sort_unstable();
        let at = times.len() * share / 1_000;
        times
            .get(at.min(times.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    }

    /// Fails the test unless all were answered well.
    #[track_caller]
    pub(crate) fn assert_none_failed(&self) {
        let failed = self.failed();
        assert!(
            failed.0.is_empty(),
            "{} of {}: {failed:?}",
            failed.len(),
            self.len()
        );
    }
}

/// The first few, and how many there are.
impl fmt::Debug for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests: ", self.0.len())?;
        f.debug_list().entries(self.0.iter().take(8)).finish()
    }
}

/// A request, until its whole answer is there.
pub(crate) async fn call(channel: &Channel, kind: Kind) -> Result<(Target, StatusCode), Failure> {
    let sent = match kind {
        Kind::Get => {
            let request = Request::get("/")
                .body(Empty::<Bytes>::new())
                .expect("a request");
            channel.request(request).await
        }
        Kind::Post => {
            let request = Request::post("/")
                .body(TwoPieces::default())
                .expect("a request");
            channel.request(request).await
        }
    };
    let response = sent.map_err(|error| Failure {
        kind: Some(error.kind()),
        was_sent: error.was_sent(),
        told: format!("{error:?}"),
    })?;
    let (status, target) = (response.status(), response.body().target().clone());
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|error| Failure {
            kind: None,
            was_sent: true,
            told: format!("the body of {target} broke off: {error:?}"),
        })?;
    let body = body.to_bytes();
    let length = match kind {
        Kind::Get => 0,
        Kind::Post => 2 * TwoPieces::PIECE.len(),
    };
    assert!(body.ends_with(format!(" {length}").as_bytes()), "{body:?}");
    Ok((target, status))
}

/// A request body that nobody can send twice by himself.
#[derive(Default)]
struct TwoPieces(u8);

impl TwoPieces {
    const PIECE: &[u8] = &[b'x'; 700];
}

impl Body for TwoPieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0 += 1;
        match self.0 {
            1 | 3 => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(Self::PIECE))))),
            // What comes next is not there yet.
            2 => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            _ => Poll::Ready(None),
        }
    }
}
