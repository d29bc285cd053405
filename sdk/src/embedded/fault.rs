//! Faults on demand: what a network, a proxy or a sick agent does to answers.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use tokio::sync::watch;

/// Something that goes wrong with requests.
///
/// A fault hits every request until [`Agent::clear_faults`](super::Agent::clear_faults), or as
/// often as [`times`](Self::times) says, and only below a path if [`under`](Self::under) says so.
/// Delays add up; of all others the one that was injected first hits.
///
/// # Examples
///
/// ```
/// use http::StatusCode;
/// use lictor::embedded::{Agent, Fault};
///
/// let agent = Agent::in_memory();
/// agent.inject(
///     Fault::answer(StatusCode::INTERNAL_SERVER_ERROR, "No cluster leader")
///         .under("/v1/kv/")
///         .times(2),
/// );
/// ```
#[derive(Clone, Debug)]
#[must_use = "a fault does nothing until it is injected"]
pub struct Fault {
    effect: Effect,
    prefix: String,
    left: Option<u32>,
}

#[derive(Clone, Debug)]
pub(super) enum Effect {
    Delay(Duration),
    Answer(StatusCode, String),
    Disconnect,
    Hang,
    Truncate,
    Garble,
    LoseAnswer,
}

impl Fault {
    fn new(effect: Effect) -> Self {
        Self {
            effect,
            prefix: String::new(),
            left: None,
        }
    }

    /// The answer is held back for this long after it was made.
    pub fn delay(by: Duration) -> Self {
        Self::new(Effect::Delay(by))
    }

    /// The request is not carried out; this status and text answer it.
    pub fn answer(status: StatusCode, text: impl Into<String>) -> Self {
        Self::new(Effect::Answer(status, text.into()))
    }

    /// The request is not carried out, and the connection is closed without an answer.
    pub fn disconnect() -> Self {
        Self::new(Effect::Disconnect)
    }

    /// The request vanishes: it is neither carried out nor ever answered.
    pub fn hang() -> Self {
        Self::new(Effect::Hang)
    }

    /// The request is carried out, but its answer ends in the middle of the body.
    pub fn truncate() -> Self {
        Self::new(Effect::Truncate)
    }

    /// The request is carried out, but the body of its answer is garbage.
    pub fn garble() -> Self {
        Self::new(Effect::Garble)
    }

    /// The request is carried out, but its answer is lost: the connection is closed without one.
    ///
    /// Who sent it cannot know whether it was carried out. Compare [`disconnect`](Self::disconnect),
    /// which looks the same from outside.
    pub fn lose_answer() -> Self {
        Self::new(Effect::LoseAnswer)
    }

    /// Only requests whose path begins with `prefix` are hit.
    pub fn under(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Only the next `times` requests are hit.
    pub fn times(mut self, times: u32) -> Self {
        self.left = Some(times);
        self
    }
}

/// What happens to one request.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) delay: Duration,
    pub(super) effect: Option<Effect>,
}

#[derive(Debug)]
pub(super) struct FaultTable {
    faults: Mutex<Vec<Fault>>,
    frozen: watch::Sender<bool>,
    away: watch::Sender<bool>,
}

impl Default for FaultTable {
    fn default() -> Self {
        Self {
            faults: Mutex::default(),
            frozen: watch::channel(false).0,
            away: watch::channel(false).0,
        }
    }
}

impl FaultTable {
    pub(super) fn inject(&self, fault: Fault) {
        self.lock().push(fault);
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    pub(super) fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }

    /// Returns when the agent is not frozen.
    pub(super) async fn thawed(&self) {
        // The sender is part of `self`, so that it cannot be gone.
        let _ = self.frozen.subscribe().wait_for(|frozen| !frozen).await;
    }

    pub(super) fn set_away(&self, away: bool) {
        self.away.send_replace(away);
    }

    pub(super) fn is_away(&self) -> bool {
        *self.away.borrow()
    }

    /// Returns when the agent has left.
    pub(super) async fn left(&self) {
        // The sender is part of `self`, so that it cannot be gone.
        let _ = self.away.subscribe().wait_for(|away| *away).await;
    }

    /// Decides the fate of a request, which uses up faults with a count.
    pub(super) fn plan(&self, path: &str) -> Plan {
        let mut plan = Plan::default();
        let mut faults = self.lock();
        for fault in faults.iter_mut() {
            if !path.starts_with(&fault.prefix) || fault.left == Some(0) {
                continue;
            }
            match &fault.effect {
                Effect::Delay(by) => plan.delay += *by,
                _ if plan.effect.is_some() => continue,
                effect => plan.effect = Some(effect.clone()),
            }
            if let Some(left) = &mut fault.left {
                *left -= 1;
            }
        }
        faults.retain(|fault| fault.left != Some(0));
        plan
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
