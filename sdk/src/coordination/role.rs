//! What is told of a candidate, and what it answers.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::fence::FencingToken;
use super::state::Lost;
use crate::error::Error;
use crate::ident::SessionId;
use crate::states::States;

/// What a candidate is to its election.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Role {
    /// It neither leads nor campaigns.
    Idle,
    /// It campaigns, and nobody led when Consul last answered: it tries, or waits for a lock-delay.
    Candidate,
    /// It campaigns, and somebody else led when Consul last answered.
    Follower {
        /// The session that leads. After an outage it may be one of this candidate's own, whose
        /// leadership is over: Consul ends it by its TTL, or when it is told, and holds the key back
        /// for the lock-delay.
        leader: SessionId,
    },
    /// It campaigns, and Consul does not answer: who leads cannot be told.
    ///
    /// Told at once where connections break. Where answers do not come, when the session that it
    /// campaigns by is [not believed in](super::Profile::believed_for) any more and another one has
    /// not been had for 10 s: in the default profile within 20 s.
    Unknown {
        /// When that was first noticed, on the process's own clock.
        #[expect(
            clippy::disallowed_types,
            reason = "what is told to users is of the standard library"
        )]
        since: std::time::Instant,
        /// What the last attempt failed with.
        error: Error,
    },
    /// It leads.
    Leader {
        /// The term's fencing token.
        token: FencingToken,
    },
    /// It leads, but the last attempt to prove it failed. Unless one succeeds, that ends at the
    /// deadline.
    Jeopardy {
        /// The term's fencing token.
        token: FencingToken,
        /// When the term ends, on the process's own clock.
        #[expect(
            clippy::disallowed_types,
            reason = "what is told to users is of the standard library"
        )]
        deadline: std::time::Instant,
        /// What the last attempt failed with.
        error: Error,
    },
}

impl Role {
    /// Whether it leads: for sure, or in jeopardy.
    ///
    /// What is told may be a moment old. What must not happen twice asks
    /// [`check`](super::Held::check) instead.
    #[must_use]
    pub const fn is_leader(&self) -> bool {
        matches!(self, Self::Leader { .. } | Self::Jeopardy { .. })
    }

    /// Whether both are the same, apart from errors and moments.
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Follower { leader }, Self::Follower { leader: other }) => leader == other,
            (Self::Leader { token }, Self::Leader { token: other }) => token == other,
            (
                Self::Jeopardy {
                    token, deadline, ..
                },
                Self::Jeopardy {
                    token: other,
                    deadline: by,
                    ..
                },
            ) => token == other && deadline == by,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

/// Where a candidate's role is told.
#[derive(Clone, Debug)]
pub(super) struct Roles(Arc<watch::Sender<Role>>);

impl Roles {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::channel(Role::Idle).0))
    }

    pub(super) fn follow(&self) -> States<Role> {
        States::new(self.0.subscribe())
    }

    pub(super) fn idle(&self) {
        self.tell(Role::Idle, || true);
    }

    pub(super) fn candidate(&self) {
        self.tell(Role::Candidate, || true);
    }

    pub(super) fn follower(&self, leader: &SessionId) {
        let leader = leader.clone();
        self.tell(Role::Follower { leader }, || true);
    }

    pub(super) fn unknown(&self, error: Error) {
        let since = Instant::now().into_std();
        self.tell(Role::Unknown { since, error }, || true);
    }

    /// Tells a role if `still` says so while nobody else can tell one.
    pub(super) fn tell(&self, role: Role, still: impl FnOnce() -> bool) {
        self.0.send_if_modified(|now| {
            if now.is_like(&role) || !still() {
                return false;
            }
            *now = role;
            true
        });
    }
}

/// What a leader answers when its work is done.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "there is no fourth way")]
pub enum Next {
    /// Give the leadership up and campaign again at once. It may win again before anybody else.
    ///
    /// After terms of less than a second one after the other it waits, ever longer, for up to 5 s
    /// from the beginning of the last one: work that rejoins without having done anything must not
    /// keep Consul busy.
    Rejoin,
    /// Give the leadership up and let others go first: campaign again when somebody else leads, or
    /// after 5 s in which nobody did. Short terms are spaced as with [`Rejoin`](Self::Rejoin).
    StepDown,
    /// Give the leadership up and end the run.
    Stop,
}

/// How a run ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// It was told to stop while it did not lead.
    NotLeading,
    /// It was told to stop while it led; the work ended in time, and the leadership was handed over.
    SteppedDown,
    /// It was told to stop while it led; the work did not end in time and was dropped, and the
    /// leadership was handed over.
    Interrupted,
    /// It was told to stop while it led, and lost the leadership before the work had ended: the work
    /// was dropped at that moment.
    Lost(Lost),
    /// The work answered [`Next::Stop`]; the leadership was handed over.
    Finished,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[tokio::test(start_paused = true)]
    async fn a_role_that_stays_the_same_is_told_once() {
        let roles = Roles::new();
        let mut told = roles.follow();
        assert!(matches!(told.next().await, Some(Role::Idle)));
        let since = Instant::now().into_std();
        roles.unknown(Error::new(ErrorKind::Timeout));
        assert!(matches!(told.next().await, Some(Role::Unknown { .. })));
        tokio::time::advance(std::time::Duration::from_secs(3)).await;
        roles.unknown(Error::new(ErrorKind::NoLeader));
        // It still says since when, and nobody is woken for it.
        match &*roles.0.borrow() {
            Role::Unknown { since: told, .. } => assert_eq!(*told, since),
            other => panic!("{other:?}"),
        }
        let leader = SessionId::new("a-session").unwrap();
        roles.follower(&leader);
        match told.next().await {
            Some(Role::Follower { leader: told }) => assert_eq!(told, leader),
            other => panic!("{other:?}"),
        }
        roles.tell(Role::Candidate, || false);
        drop(roles);
        assert!(told.next().await.is_none());
    }
}
