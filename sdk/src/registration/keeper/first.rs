//! The first registration, and whoever does not wait for it.

use std::sync::atomic::{AtomicBool, Ordering};

use super::PATIENCE;
use crate::error::Result;
use crate::task::StopSignal;

/// What the first registration came to.
pub(super) enum First {
    Done(Result<()>),
    /// The keeper was told to stop before; a request may be on its way.
    Stopped,
    /// It was told to stop before it said anything to the agent.
    Unheard,
}

pub(super) async fn until_stopped(
    stop: &mut StopSignal,
    begun: &AtomicBool,
    work: impl Future<Output = Result<()>>,
) -> First {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        _ = stop.recv() => {
            if !begun.load(Ordering::Relaxed) {
                return First::Unheard;
            }
            tokio::time::timeout(PATIENCE, work).await.ok();
            First::Stopped
        }
        outcome = &mut work => First::Done(outcome),
    }
}
