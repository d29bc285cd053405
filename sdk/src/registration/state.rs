//! How a registration is.

use std::fmt;

use crate::error::Error;

/// How a registration is, as far as this process knows.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum State {
    /// The agent has the service as it was defined, and takes its heartbeats.
    Registered,
    /// The agent has forgotten the service, or is out of reach; all is being done to heal it.
    #[non_exhaustive]
    Healing {
        /// What went wrong last.
        error: Error,
    },
    /// Someone else has registered the same ID on the same agent.
    ///
    /// The registration takes its place back, ever more slowly if the other one does so, too, so
    /// that two of the same ID do not fight at full speed. The state ends, without an event, when
    /// the other one has been quiet for 10 s.
    Contested,
    /// Somebody else has registered the same ID on the same agent, and it was left to them.
    ///
    /// The registration sends nothing any more, looks on, and takes the ID again when it is free: when
    /// the other has left, or when its TTL has run out.
    Yielded,
    /// The token may not register this service, or is itself unknown.
    ///
    /// It is tried again from time to time, and at once when the token changes.
    #[non_exhaustive]
    Denied {
        /// What the agent answered.
        error: Error,
    },
    /// The registration has ended.
    Closed,
}

impl State {
    /// Whether the agent has the service and takes its heartbeats.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        matches!(self, Self::Registered)
    }

    /// What went wrong last, if something did.
    #[must_use]
    pub fn error(&self) -> Option<&Error> {
        match self {
            Self::Healing { error } | Self::Denied { error } => Some(error),
            Self::Registered | Self::Contested | Self::Yielded | Self::Closed => None,
        }
    }

    /// Whether a reader need not be told of the difference.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
            && self.error().map(Error::kind) == other.error().map(Error::kind)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registered => f.write_str("registered"),
            Self::Healing { error } => write!(f, "healing: {error}"),
            Self::Contested => f.write_str("contested"),
            Self::Yielded => f.write_str("yielded"),
            Self::Denied { error } => write!(f, "denied: {error}"),
            Self::Closed => f.write_str("closed"),
        }
    }
}

/// The states of a registration, from the present one on: a stream that ends with it, after
/// [`State::Closed`].
pub type States = crate::states::States<State>;
