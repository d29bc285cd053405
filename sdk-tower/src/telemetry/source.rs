//! A source that is listened to for how well it knows its service.

use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};

use futures_core::Stream;
use pin_project::pin_project;
use tokio::time::Instant;

use crate::source::Status;

use super::Telemetry;

/// Reads the status of a source; none for a stream that tells none.
pub(crate) type Probe<S> = Option<fn(&S) -> Status>;

/// A source whose status is noted each time that it is polled.
///
/// The driver polls it at least with each sweep, twice a second.
#[pin_project]
pub(crate) struct Followed<S> {
    #[pin]
    source: S,
    probe: Probe<S>,
    telemetry: Arc<Telemetry>,
}

impl<S> Followed<S> {
    pub(crate) fn new(source: S, probe: Probe<S>, telemetry: Arc<Telemetry>) -> Self {
        Self {
            source,
            probe,
            telemetry,
        }
    }
}

impl<S: Stream> Stream for Followed<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let mut this = self.project();
        let polled = this.source.as_mut().poll_next(cx);
        if let Some(probe) = this.probe {
            this.telemetry.source_is(probe(&this.source));
        }
        polled
    }
}

impl Telemetry {
    /// The source says this of itself now.
    fn source_is(&self, status: Status) {
        let mut last = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let was_stale = matches!(&*last, Some((Status::Stale { .. }, _)));
        let service = self.service();
        match &status {
            // Why it is so is a warning of the source itself, once per incident.
            Status::Stale { reason, .. } if !was_stale => {
                tracing::info!(service, %reason, "the source is stale, the endpoints stay");
            }
            Status::Live if was_stale => {
                tracing::info!(service, "the source confirms the endpoints again");
            }
            _ => {}
        }
        *last = Some((status, Instant::now()));
    }
}
