//! What all seekers have in common: patience, pauses, and queries that wait.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::attempt::LONGEST_WAIT;
use super::claims::Claim;
use super::lease::Tenure;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::ident::{Key, SessionId};
use crate::proto::backoff::Backoff;
use crate::proto::pace::Pace;

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
    pace: Pace,
    sight: Sight,
}

/// What one who waits saw last, for the error that tells that it was in vain.
#[derive(Clone, Debug, Default)]
pub(super) struct Sight(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    /// Whether Consul has ever answered.
    answered: bool,
    /// What the last request failed with, if it failed.
    trouble: Option<Error>,
    /// Which session holds which key.
    holder: Option<(SessionId, Key)>,
}

impl Sight {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why it was in vain: what the last request failed with, that there was no answer, or what was
    /// seen.
    pub(super) fn in_vain(&self, what: &str, client: &Client, others: &str) -> Error {
        let err = Error::new(ErrorKind::Timeout);
        let seen = self.seen();
        match (&seen.trouble, &seen.holder) {
            (Some(trouble), _) => err.context(what).caused_by(trouble.clone()),
            (None, Some((session, key))) => {
                err.context(format!("{what}; session {session} holds {key}"))
            }
            (None, None) if seen.answered => err.context(format!("{what}{others}")),
            (None, None) => err.context(format!(
                "{what}: the agent at {} has not answered",
                client.address()
            )),
        }
    }
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
    pub(super) const fn new(patience: Patience, sight: Sight) -> Self {
        Self {
            patience,
            pause: Backoff::new(Duration::from_millis(100), Duration::from_secs(5)),
            pace: Pace::new(BURST, PACE),
            sight,
        }
    }

    pub(super) fn only_tries(&self) -> bool {
        self.patience == Patience::Try
    }

    /// Waits after a failure that may pass, once it is told; any other is final, and all are where
    /// nobody waits.
    ///
    /// A log has the first one after an answer.
    pub(super) async fn bear(
        &mut self,
        what: &str,
        err: Error,
        tell: impl FnOnce(Error),
    ) -> Result<()> {
        if self.only_tries() || !err.is_transient() {
            return Err(err);
        }
        if self.sight.seen().trouble.replace(err.clone()).is_none() {
            tracing::warn!(what, error = %err.chain(), "waiting for Consul");
        }
        tell(err);
        tokio::time::sleep(self.pause.next(rand::random())).await;
        Ok(())
    }

    /// Waits for as long as it takes not to ask too often: what is waited for may change all the
    /// time, without becoming free.
    pub(super) async fn paced(&mut self) {
        tokio::time::sleep_until(self.pace.take(Instant::now())).await;
    }

    /// Consul has answered.
    pub(super) fn answered(&mut self) {
        self.pause.reset();
        let mut seen = self.sight.seen();
        seen.answered = true;
        seen.trouble = None;
    }

    /// Consul has answered, and this holds what is waited for.
    pub(super) fn holder(&mut self, holder: Option<(SessionId, Key)>) {
        self.answered();
        self.sight.seen().holder = holder;
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

/// How long one query waits; a fifth is drawn, so that not all come back at once.
pub(super) fn long_wait() -> Duration {
    LONGEST_WAIT.mul_f64(0.8 + 0.2 * rand::random::<f64>())
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

/// So many answers in a row that tell of a change are followed by the next query at once: a few
/// hand-overs between two who are fast.
const BURST: u32 = 32;
/// From then on one query in this time.
const PACE: Duration = Duration::from_millis(20);

/// The pause after an answer that told nothing: the time is over, or it came early, and may come
/// again as fast.
pub(super) const UNCHANGED: Duration = Duration::from_millis(100);
