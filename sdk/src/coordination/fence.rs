//! Fencing tokens: what no client can prevent, the resource refuses.

use std::error::Error as StdError;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// A number that grows with every holder of a lock.
///
/// A process that is stopped between its last look at the clock and its write does not know that
/// somebody else holds the lock by now. Nobody can prevent that but the resource that is written
/// to: hand it the token with each write, and let it refuse one that is smaller than what it has
/// seen; see [`FenceGate`].
///
/// It is the `ModifyIndex` of the transaction that took the lock, which is an index of the servers'
/// log: it grows from holder to holder, also when the key was deleted or written in between, which
/// sets Consul's `LockIndex` back. Only a snapshot that is restored into a new cluster may begin
/// with smaller ones.
///
/// Only a guard gives one out, but it can be sent and read back, as a number.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct FencingToken(u64);

impl FencingToken {
    pub(super) const fn new(index: u64) -> Self {
        Self(index)
    }

    /// The number, for a resource that keeps it in a column or a header of its own.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The resource's half: lets the newest holder through and refuses those before.
///
/// Keep one beside whatever is protected, for as long as that lives. A resource that restarts
/// begins again [`from`](Self::starting_at) the highest token that it has stored. It is shared by
/// reference or in an `Arc`.
///
/// # Examples
///
/// ```
/// # fn example(first: lictor::coordination::FencingToken, second: lictor::coordination::FencingToken)
/// # -> Result<(), lictor::coordination::StaleToken> {
/// use lictor::coordination::FenceGate;
///
/// let gate = FenceGate::new();
/// gate.admit(first)?;
/// gate.admit(second)?; // a newer holder
/// assert!(gate.admit(first).is_err()); // the former one woke up
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct FenceGate(AtomicU64);

impl FenceGate {
    /// One that has seen nobody yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One that has seen this token already.
    #[must_use]
    pub const fn starting_at(token: FencingToken) -> Self {
        Self(AtomicU64::new(token.0))
    }

    /// Lets a write pass if no newer holder has been seen.
    ///
    /// Ask in the same critical section as the write: between an answer of this and a write that
    /// comes later, a newer holder may have written.
    ///
    /// # Errors
    ///
    /// When a newer holder has been here.
    pub fn admit(&self, token: FencingToken) -> Result<(), StaleToken> {
        let newest = self.0.fetch_max(token.0, Ordering::AcqRel);
        if newest > token.0 {
            return Err(StaleToken {
                token,
                newest: FencingToken(newest),
            });
        }
        Ok(())
    }

    /// The newest holder's token, or `None` while nobody has been here.
    #[must_use]
    pub fn newest(&self) -> Option<FencingToken> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            newest => Some(FencingToken(newest)),
        }
    }
}

/// A write came from somebody who no longer holds the lock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StaleToken {
    token: FencingToken,
    newest: FencingToken,
}

impl StaleToken {
    /// The token that was refused.
    #[must_use]
    pub const fn token(&self) -> FencingToken {
        self.token
    }

    /// The token of the newest holder.
    #[must_use]
    pub const fn newest(&self) -> FencingToken {
        self.newest
    }
}

impl fmt::Display for StaleToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "fencing token {} is stale: a holder with {} has been here",
            self.token, self.newest
        )
    }
}

impl StdError for StaleToken {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_lets_the_newest_pass_again_and_refuses_older_ones() {
        let gate = FenceGate::new();
        assert_eq!(gate.newest(), None);
        for token in [3, 3, 7, 7] {
            gate.admit(FencingToken(token)).unwrap();
        }
        let stale = gate.admit(FencingToken(3)).unwrap_err();
        assert_eq!((stale.token().get(), stale.newest().get()), (3, 7));
        assert!(stale.to_string().contains('3') && stale.to_string().contains('7'));
        assert_eq!(gate.newest(), Some(FencingToken(7)));
    }

    #[test]
    fn a_gate_that_restarts_refuses_what_it_refused_before() {
        let gate = FenceGate::starting_at(FencingToken(9));
        assert!(gate.admit(FencingToken(8)).is_err());
        assert!(gate.admit(FencingToken(9)).is_ok());
    }

    #[test]
    fn a_token_travels_as_a_number() {
        let token = FencingToken(41);
        let text = serde_json::to_string(&token).unwrap();
        assert_eq!(text, "41");
        assert_eq!(serde_json::from_str::<FencingToken>(&text).unwrap(), token);
        assert!(FencingToken(40) < token);
    }
}
