//! What readers have.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::keeper::{Keeper, Layer, Rules};
use crate::error::{Error, ErrorKind, Result};
use crate::states::States;
use crate::task::Worker;
use serde::de::DeserializeOwned;

/// Settings that are followed.
///
/// A copy is another reader of the same settings. The task behind them ends when the last copy is
/// dropped, or with its runtime; [`get`](Self::get) works on, and [`state`](Self::state) tells it.
pub struct Config<T> {
    shared: Arc<Shared<T>>,
    state: watch::Receiver<State<T>>,
    /// The value that this reader was last given by `changed`, or found at the beginning.
    seen: Arc<T>,
}

struct Shared<T> {
    now: Arc<ArcSwap<T>>,
    _worker: Worker<()>,
}

/// Whether the settings in force are those that Consul holds.
///
/// `Display` says it in a line, without the value.
#[non_exhaustive]
pub enum State<T> {
    /// They are.
    Current(Arc<T>),
    /// What Consul holds is not good: the last good value stays in force.
    Rejected {
        /// The value in force.
        value: Arc<T>,
        /// Which key is wrong, and why.
        error: Error,
    },
    /// The keys are gone: the last good value stays in force.
    Removed(Arc<T>),
    /// It is not known what Consul holds now: the last good value stays in force.
    Stale {
        /// The value in force.
        value: Arc<T>,
        /// Why it is not known.
        error: Error,
    },
}

impl<T> State<T> {
    /// The value in force.
    #[must_use]
    pub fn value(&self) -> &Arc<T> {
        match self {
            Self::Current(value) | Self::Removed(value) => value,
            Self::Rejected { value, .. } | Self::Stale { value, .. } => value,
        }
    }

    /// Whether the value in force is what Consul holds.
    #[must_use]
    pub fn is_current(&self) -> bool {
        matches!(self, Self::Current(_))
    }

    /// Why it is not, where an error says so.
    #[must_use]
    pub fn error(&self) -> Option<&Error> {
        match self {
            Self::Current(_) | Self::Removed(_) => None,
            Self::Rejected { error, .. } | Self::Stale { error, .. } => Some(error),
        }
    }
}

impl<T> Clone for State<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Current(value) => Self::Current(Arc::clone(value)),
            Self::Removed(value) => Self::Removed(Arc::clone(value)),
            Self::Rejected { value, error } => Self::Rejected {
                value: Arc::clone(value),
                error: error.clone(),
            },
            Self::Stale { value, error } => Self::Stale {
                value: Arc::clone(value),
                error: error.clone(),
            },
        }
    }
}

impl<T> fmt::Display for State<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Current(_) => f.write_str("current"),
            Self::Removed(_) => f.write_str("removed, the last good value stays"),
            Self::Rejected { error, .. } => {
                write!(f, "rejected, the last good value stays: {}", error.chain())
            }
            Self::Stale { error, .. } => {
                write!(f, "stale, the last good value stays: {}", error.chain())
            }
        }
    }
}

/// Without the value, which may be a secret.
impl<T> fmt::Debug for State<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Current(_) => f.write_str("Current"),
            Self::Removed(_) => f.write_str("Removed"),
            Self::Rejected { error, .. } => f.debug_tuple("Rejected").field(error).finish(),
            Self::Stale { error, .. } => f.debug_tuple("Stale").field(error).finish(),
        }
    }
}

impl<T: DeserializeOwned + Send + Sync + 'static> Config<T> {
    pub(super) fn start(
        runtime: &Handle,
        value: &Arc<T>,
        layers: Vec<Layer>,
        rules: Rules<T>,
    ) -> Self {
        let now = Arc::new(ArcSwap::new(Arc::clone(value)));
        let error = Error::new(ErrorKind::Connect).context("Consul has not answered yet");
        let (sender, state) = watch::channel(State::Stale {
            value: Arc::clone(value),
            error,
        });
        let mut keeper = Keeper::new(layers, rules, Arc::clone(&now), sender);
        // What is known already is in force before anybody looks.
        keeper.look();
        let seen = now.load_full();
        let worker = Worker::spawn(runtime, |stop| keeper.run(stop));
        Self {
            shared: Arc::new(Shared {
                now,
                _worker: worker,
            }),
            state,
            seen,
        }
    }
}

impl<T: Send + Sync + 'static> Config<T> {
    /// The value in force: an atomic load, at any time, from anywhere.
    #[must_use]
    pub fn get(&self) -> Arc<T> {
        self.shared.now.load_full()
    }

    /// Whether the value in force is what Consul holds, and if not, why.
    #[must_use]
    pub fn state(&self) -> State<T> {
        if self.state.has_changed().is_err() {
            return State::Stale {
                value: self.get(),
                error: closed(),
            };
        }
        self.state.borrow().clone()
    }

    /// The present state and all that follow: what came into force, was rejected, was removed.
    ///
    /// A slow reader misses states in between, but never the last one. The stream ends when the
    /// runtime of the task is gone, or the last copy of the settings is dropped.
    pub fn states(&self) -> States<State<T>> {
        States::new(self.state.clone())
    }

    /// Waits for a value in force that this reader has not seen: first, one that came since the
    /// settings were opened.
    ///
    /// Values between two calls are skipped: the newest counts.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] if the runtime of the task is gone.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: what this future would have returned, the next call returns.
    pub async fn changed(&mut self) -> Result<Arc<T>> {
        loop {
            {
                let state = self.state.borrow_and_update();
                let value = state.value();
                if !Arc::ptr_eq(value, &self.seen) {
                    self.seen = Arc::clone(value);
                    return Ok(Arc::clone(value));
                }
            }
            self.state.changed().await.map_err(|_| closed())?;
        }
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed).context("the runtime that followed the settings is gone")
}

impl<T> Clone for Config<T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            state: self.state.clone(),
            seen: Arc::clone(&self.seen),
        }
    }
}

impl<T> fmt::Debug for Config<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("state", &*self.state.borrow())
            .finish_non_exhaustive()
    }
}
