//! What all seekers have in common: patience, pauses, and queries that wait.

use std::time::Duration;

use tokio::runtime::Handle;

use super::attempt::LONGEST_WAIT;
use super::claims::Claim;
use super::lease::Tenure;
use crate::api::{Endpoint, Read};
use crate::error::{Error, ErrorKind, Result};
use crate::ident::Key;
use crate::proto::backoff::Backoff;

/// Whether to wait for those who hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Patience {
    Wait,
    Try,
}

/// What a seeker bears, and how long it rests after it.
#[derive(Debug)]
pub(super) struct Waiting {
    patience: Patience,
    pause: Backoff,
}

/// What became of the wish to seek by a session.
pub(super) enum Claimed {
    /// Nobody else of this process seeks the same by it.
    Yes(Claim),
    /// Somebody does, and it was not waited for.
    ByOthers,
    SessionLost,
}

impl Waiting {
    pub(super) const fn new(patience: Patience) -> Self {
        Self {
            patience,
            pause: Backoff::new(Duration::from_millis(100), Duration::from_secs(5)),
        }
    }

    pub(super) fn only_tries(&self) -> bool {
        self.patience == Patience::Try
    }

    /// Waits after a failure that may pass, once it is told; any other is final, and all are where
    /// nobody waits.
    pub(super) async fn bear(&mut self, err: Error, tell: impl FnOnce(Error)) -> Result<()> {
        if self.only_tries() || !err.is_transient() {
            return Err(err);
        }
        tell(err);
        tokio::time::sleep(self.pause.next(rand::random())).await;
        Ok(())
    }

    /// Consul has answered.
    pub(super) fn answered(&mut self) {
        self.pause.reset();
    }

    /// Claims keys for a session. Cancel safe.
    pub(super) async fn claim(&self, tenure: &Tenure, keys: &[Key]) -> Claimed {
        // Mostly nobody is in the way, and then no timer is needed.
        if let Some(claim) = tenure.claims.try_claim(keys) {
            return Claimed::Yes(claim);
        }
        if self.only_tries() {
            return Claimed::ByOthers;
        }
        tokio::select! {
            biased;
            _ = tenure.belief.lost() => Claimed::SessionLost,
            claim = tenure.claims.claim(keys) => Claimed::Yes(claim),
        }
    }
}

/// A query that waits for a change since this index; for 0, one that does not wait.
///
/// A fifth of the wait is drawn, so that not all come back at once.
pub(super) fn since<E: Endpoint>(read: Read<E>, index: u64) -> Read<E> {
    match index {
        0 => read,
        _ => read.wait_for_change(
            index,
            LONGEST_WAIT.mul_f64(0.8 + 0.2 * rand::random::<f64>()),
        ),
    }
}

/// Gives up what takes longer; `None` then.
pub(super) async fn in_time<T>(
    deadline: Option<Duration>,
    seeking: impl Future<Output = Result<T>> + Send,
) -> Result<Option<T>> {
    let Some(deadline) = deadline else {
        return seeking.await.map(Some);
    };
    // A timer without a runtime is a panic.
    Handle::try_current().map_err(|_| {
        Error::new(ErrorKind::NoRuntime).context("a deadline needs a clock: call this in a runtime")
    })?;
    tokio::time::timeout(deadline, seeking)
        .await
        .ok()
        .transpose()
}

/// The pause after an answer that told nothing: the time is over, or it came early, and may come
/// again as fast.
pub(super) const UNCHANGED: Duration = Duration::from_millis(100);

/// The index to wait from after an answer: one that has not grown is none.
///
/// The time may be over. But servers that are set back to a snapshot answer whoever waits with what
/// they knew before, at once (measured on 1.8.7), and who waited on from there would wait for an
/// index that what is there now may not have for a long time.
pub(super) fn next_index(told: Option<u64>, known: u64) -> u64 {
    told.filter(|told| *told > known).unwrap_or(0)
}
