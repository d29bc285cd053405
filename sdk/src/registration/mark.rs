//! Which process a registration is of, and what follows when two have the same ID.

use std::fmt;
use std::sync::Arc;

use crate::api::agent::AgentService;

/// The metadata in which a registration says which process it is of.
pub(super) const BOOT: &str = "lictor-boot";

/// The metadata in which it says whose place it takes.
pub(super) const LINEAGE: &str = "lictor-lineage";

/// A process's life as one service: the greater, the later it came.
///
/// The generation counts those that had the ID one after the other; nobody's clock matters. The
/// nonce tells apart those that came at the same time.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Boot {
    generation: u64,
    nonce: u64,
}

impl Boot {
    /// That of a process that finds this one registered.
    pub(super) fn after(found: Option<Self>, nonce: u64) -> Self {
        match found {
            // Its first registration arrived, and the answer did not.
            Some(own) if own.nonce == nonce => own,
            Some(former) => Self {
                generation: former.generation.saturating_add(1),
                nonce,
            },
            None => Self {
                generation: 1,
                nonce,
            },
        }
    }

    pub(super) fn of(service: &AgentService) -> Option<Self> {
        Self::parse(service.meta().get(BOOT)?)
    }

    fn parse(text: &str) -> Option<Self> {
        let (generation, nonce) = text.split_once('-')?;
        Some(Self {
            generation: generation.parse().ok()?,
            nonce: u64::from_str_radix(nonce, 16).ok()?,
        })
    }
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.generation, self.nonce)
    }
}

/// What a registration does when somebody else has registered its ID on the same agent.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum OnConflict {
    /// The one that came later keeps the ID. The other answers once, so that both know of it, and
    /// then lets go, until the ID is free again. Of somebody who does not say when he came, it is
    /// taken back. This is the default: after a deployment that has left an old process behind, the
    /// new one is found.
    #[default]
    YieldToNewer,
    /// Takes it back, ever more slowly if the other one does so, too.
    Reassert,
    /// Lets go at once, until the ID is free again. The other one does not learn of it.
    Yield,
    /// Ends the registration, which leaves the other's alone: [`Registration::close`](super::Registration::close)
    /// gives the error. The other one does not learn of it.
    Fail,
}

/// What is done about one conflict.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    TakeBack,
    Once,
    LetGo,
    Fail,
}

/// What follows from somebody else's registration; `answered` says whether it was answered already.
pub(super) fn answer(
    policy: OnConflict,
    ours: Option<Boot>,
    theirs: Option<Boot>,
    answered: bool,
) -> Answer {
    match policy {
        OnConflict::Fail => Answer::Fail,
        OnConflict::Yield => Answer::LetGo,
        OnConflict::Reassert => Answer::TakeBack,
        OnConflict::YieldToNewer => match (theirs > ours, answered) {
            (false, _) => Answer::TakeBack,
            (true, false) => Answer::Once,
            (true, true) => Answer::LetGo,
        },
    }
}

/// A registration's own words in its metadata.
pub(super) fn words(
    boot: Option<Boot>,
    lineage: Option<&Arc<str>>,
) -> impl Iterator<Item = (&'static str, Arc<str>)> {
    let boot = boot.map(|boot| (BOOT, Arc::from(boot.to_string())));
    let lineage = lineage.map(|lineage| (LINEAGE, Arc::clone(lineage)));
    boot.into_iter().chain(lineage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(generation: u64, nonce: u64) -> Boot {
        Boot { generation, nonce }
    }

    #[test]
    fn each_life_is_greater_than_the_one_it_finds() {
        let first = Boot::after(None, 7);
        let second = Boot::after(Some(first), 3);
        assert!(second > first);
        assert_eq!(Boot::after(Some(second), 3), second);
        assert_eq!(Boot::parse(&second.to_string()), Some(second));
        for text in ["", "1", "1-", "x-1", "1-xyz", "-1-2"] {
            assert_eq!(Boot::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_older_answers_once_and_lets_go_and_the_newer_takes_back() {
        let (old, new) = (Some(boot(1, 9)), Some(boot(2, 1)));
        let rule = |ours, theirs, answered| answer(OnConflict::default(), ours, theirs, answered);
        assert_eq!(rule(old, new, false), Answer::Once);
        assert_eq!(rule(old, new, true), Answer::LetGo);
        assert_eq!(rule(new, old, false), Answer::TakeBack);
        assert_eq!(rule(new, old, true), Answer::TakeBack);
        // Somebody who does not say when he came.
        assert_eq!(rule(old, None, true), Answer::TakeBack);
        // Of two that came together one is the greater.
        let (one, two) = (Some(boot(1, 1)), Some(boot(1, 2)));
        assert_eq!(rule(one, two, true), Answer::LetGo);
        assert_eq!(rule(two, one, true), Answer::TakeBack);
    }

    #[test]
    fn the_other_policies_do_not_ask_who_came_first() {
        for (policy, done) in [
            (OnConflict::Reassert, Answer::TakeBack),
            (OnConflict::Yield, Answer::LetGo),
            (OnConflict::Fail, Answer::Fail),
        ] {
            for theirs in [None, Some(boot(1, 1)), Some(boot(9, 9))] {
                assert_eq!(answer(policy, Some(boot(2, 2)), theirs, false), done);
            }
        }
    }
}
