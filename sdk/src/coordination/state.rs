//! What is told of a lease: how it is, and why it ended.

use std::error::Error as StdError;
use std::fmt;

use crate::error::Error;

/// How a lease is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LeaseState {
    /// There is no session yet: the first lock makes it.
    Idle,
    /// The session lives, as the last answers of Consul prove.
    Held,
    /// The session is still believed in, but the last attempt to prove it failed. Unless one
    /// succeeds, it is [lost](Self::Lost) at the deadline.
    Jeopardy {
        /// When the belief ends, on the process's own clock.
        #[expect(
            clippy::disallowed_types,
            reason = "what is told to users is of the standard library"
        )]
        deadline: std::time::Instant,
        /// What the last attempt failed with.
        error: Error,
    },
    /// The session is no longer believed in, and neither is anything that was held by it. The next
    /// lock makes a new one.
    Lost(Lost),
}

impl LeaseState {
    /// Whether the session is believed in: held, or in jeopardy.
    #[must_use]
    pub fn is_held(&self) -> bool {
        matches!(self, Self::Held | Self::Jeopardy { .. })
    }

    /// Whether both are the same, apart from errors.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Jeopardy { deadline, .. },
                Self::Jeopardy {
                    deadline: other, ..
                },
            ) => deadline == other,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

/// Something that was held is not held any more.
#[derive(Clone, Debug)]
pub struct Lost {
    cause: LossCause,
    error: Option<Error>,
}

/// Why something is not held any more.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum LossCause {
    /// Consul did not prove the session alive in time: it may still be, but others may soon hold.
    Unproven,
    /// Consul does not know the session any more: it was destroyed, its agent left the cluster, or a
    /// check that it was bound to failed.
    SessionGone,
    /// The session lives, but the key is not its own: an operator deleted or released it.
    KeyGone,
    /// It was released, or its guard or lease was closed or dropped.
    Released,
    /// The task that keeps the lease has ended with its runtime.
    Ended,
}

impl Lost {
    pub(super) const fn new(cause: LossCause) -> Self {
        Self { cause, error: None }
    }

    pub(super) const fn because(cause: LossCause, error: Option<Error>) -> Self {
        Self { cause, error }
    }

    /// Why.
    #[must_use]
    pub const fn cause(&self) -> LossCause {
        self.cause
    }

    /// The failure that stood behind it, if one did.
    #[must_use]
    pub const fn error(&self) -> Option<&Error> {
        self.error.as_ref()
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.cause {
            LossCause::Unproven => "not held any more: Consul did not confirm the session in time",
            LossCause::SessionGone => "not held any more: Consul does not know the session",
            LossCause::KeyGone => "not held any more: the key was deleted or released by others",
            LossCause::Released => "not held any more: it was released",
            LossCause::Ended => "not held any more: the task that kept it has ended",
        })
    }
}

impl StdError for Lost {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.as_ref().map(|error| error as _)
    }
}
