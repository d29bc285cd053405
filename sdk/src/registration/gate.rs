//! Whether a service wants to be found, whatever its health is.

use std::fmt;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::closed;
use super::keeper::Command;
use crate::error::Result;
use crate::ident::ServiceId;

/// What keeps a service out of rotation for reasons of its own.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate {
    /// Why it is not ready, if it is not.
    waits: Option<Arc<str>>,
    /// Why it leaves, if it does: from there is no way back.
    leaves: Option<Arc<str>>,
}

/// A change of the gate.
#[derive(Clone, Debug)]
pub(super) enum Turn {
    Ready,
    NotReady(Arc<str>),
    Leave(Arc<str>),
}

impl Gate {
    pub(super) fn turn(&mut self, turn: Turn) {
        match turn {
            Turn::Ready => self.waits = None,
            Turn::NotReady(why) => self.waits = Some(why),
            Turn::Leave(why) => self.leaves = Some(why),
        }
    }

    /// What keeps the service out, if something does.
    pub(super) fn reason(&self) -> Option<&Arc<str>> {
        self.leaves.as_ref().or(self.waits.as_ref())
    }
}

/// What a service that was [registered as not ready](super::Register::not_ready) says of it.
pub(super) const NOT_READY: &str = "not ready";

/// How the reason of a maintenance begins that a service has switched on for itself.
///
/// It has no TTL check to say by that it is not ready. The mark tells such a maintenance from an
/// operator's, which stays: the one that a former self has left behind must not.
const BY_ITSELF: &str = "by the service itself: ";

/// A maintenance for this reason.
pub(super) fn by_itself(reason: &str) -> Arc<str> {
    format!("{BY_ITSELF}{reason}").into()
}

/// Whether a service has switched this maintenance on for itself.
pub(super) fn is_by_itself(reason: &str) -> bool {
    reason.starts_with(BY_ITSELF)
}

/// Says whether registered services are ready to be found: a handle, cheap to clone.
///
/// Made by [`Registration::readiness`](super::Registration::readiness) for one, and by
/// [`Lifecycle::readiness`](crate::lifecycle::Lifecycle::readiness) for all of a process. It keeps
/// nothing registered and starts no task.
///
/// A service that is not ready is critical, by its TTL checks; one without any is in maintenance
/// mode instead, which all checks of an agent's own leave alone. Another reason for the same is at the
/// agent at once, and in the catalog after Consul's `check_update_interval`, 5 minutes by default. The worse of it and of what
/// [probes](super::Register::probe) and [`set_status`](super::Registration::set_status) say counts.
#[derive(Clone)]
pub struct Readiness {
    gates: Vec<(ServiceId, mpsc::Sender<Command>)>,
}

impl Readiness {
    pub(super) fn of(id: ServiceId, commands: mpsc::Sender<Command>) -> Self {
        Self {
            gates: vec![(id, commands)],
        }
    }

    /// The readiness of both.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.gates.extend(other.gates);
        self
    }

    /// That of no service.
    pub(crate) fn of_none() -> Self {
        Self { gates: Vec::new() }
    }

    /// Says that the services may be found, from now on.
    ///
    /// It returns when the agent has taken it. Once a service leaves, it stays out.
    ///
    /// # Errors
    ///
    /// The first failure to tell the agent: what was said stays said, and is told as soon as the
    /// agent takes it. [`ErrorKind::Closed`](crate::ErrorKind::Closed) if the registration has ended.
    ///
    /// # Cancel safety
    ///
    /// Once polled, it may take effect even if the future is dropped.
    pub async fn ready(&self) -> Result<()> {
        self.turn(&Turn::Ready).await
    }

    /// Says that the services are not to be found, and why, until they are [`ready`](Self::ready).
    ///
    /// # Errors
    ///
    /// Those of [`ready`](Self::ready).
    ///
    /// # Cancel safety
    ///
    /// That of [`ready`](Self::ready).
    pub async fn not_ready(&self, why: impl Into<Arc<str>> + Send) -> Result<()> {
        let why = why.into();
        let why = match why.trim() {
            "" => NOT_READY.into(),
            why => format!("{NOT_READY}: {why}").into(),
        };
        self.turn(&Turn::NotReady(why)).await
    }

    /// Takes the services out of rotation for good.
    pub(crate) async fn leave(&self, why: &str) -> Result<()> {
        self.turn(&Turn::Leave(why.into())).await
    }

    async fn turn(&self, turn: &Turn) -> Result<()> {
        let mut told = Vec::with_capacity(self.gates.len());
        for (id, commands) in &self.gates {
            let (reply, answer) = oneshot::channel();
            let sent = commands.send(Command::Turn(turn.clone(), reply)).await;
            told.push((id, sent.is_ok().then_some(answer)));
        }
        let mut outcome = Ok(());
        for (id, answer) in told {
            let told = match answer {
                Some(answer) => answer.await.unwrap_or_else(|_| Err(closed(id))),
                None => Err(closed(id)),
            };
            outcome = outcome.and(told);
        }
        outcome
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = self.gates.iter().map(|(id, _)| id);
        f.debug_list().entries(ids).finish()
    }
}
