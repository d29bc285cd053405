//! The line of those that wait for a fair lock, and a seeker's own place in it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::lease::Tenure;
use super::pursuit::Order;
use super::ticket::{self, Folder, Queued, TICKET_FLAGS, Ticket};
use super::waiting::UNCHANGED;
use crate::api::kv::Pair;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::ident::{Key, SessionId};
use crate::proto::line::{Follows, Rank, courtesy, follows};

/// How a lock is waited for in line.
#[derive(Clone, Debug)]
pub(super) struct Manner {
    pub(super) folder: Folder,
    pub(super) preference: u8,
}

/// One that stands in line.
#[derive(Clone, Debug)]
pub(super) struct Waiter {
    pub(super) key: Key,
    pub(super) session: SessionId,
    pub(super) rank: Rank,
    modify_index: u64,
}

/// All that stand in line, the first first.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) waiters: Vec<Waiter>,
    /// Tickets whose sessions have ended.
    dead: Vec<Key>,
}

impl Line {
    pub(super) fn of(pairs: &[Arc<Pair>]) -> Self {
        let mut line = Self::default();
        for pair in pairs.iter().filter(|pair| pair.flags() == TICKET_FLAGS) {
            match pair.session() {
                Some(session) => line.waiters.push(Waiter {
                    key: pair.key().clone(),
                    session: session.clone(),
                    rank: ticket::rank_of(pair),
                    modify_index: pair.modify_index(),
                }),
                None => line.dead.push(pair.key().clone()),
            }
        }
        line.waiters.sort_by_key(|waiter| waiter.rank.key());
        line
    }

    pub(super) async fn read(client: &Client, folder: &Folder) -> Result<Self> {
        let pairs = client.kv().list(folder.as_str()).await?.into_value();
        Ok(Self::of(&pairs))
    }

    fn place_of(&self, key: &Key) -> Option<usize> {
        self.waiters.iter().position(|waiter| waiter.key == *key)
    }
}

/// A seeker's place in line.
pub(super) struct Stand<'a> {
    client: &'a Client,
    manner: &'a Manner,
    own: Option<Own>,
    known: Known,
    /// Whose ticket to follow, and not the lock.
    ahead: Option<Waiter>,
}

/// When the line was read that `ahead` was taken from.
#[derive(Debug, Eq, PartialEq)]
enum Known {
    /// It is to be read again.
    Not,
    /// While the lock was free: whoever took it since was ahead.
    Free,
    /// While this session held it.
    Held(Option<SessionId>),
}

/// The seeker's ticket; it is removed in the background when this is dropped.
struct Own {
    ticket: Ticket,
    tenure: Arc<Tenure>,
    /// It went with the transaction that took the lock.
    used: bool,
}

/// What to do about a lock that is free.
#[derive(Default)]
pub(super) struct Turn {
    /// How long to leave it to others.
    pub(super) after: Duration,
    /// Tickets that go when the lock is taken: the seeker's own, first, and those of the dead.
    pub(super) strike: Vec<Key>,
    /// Those of the ones ahead, who have let their turn pass if it comes to that.
    pub(super) passed: Vec<Key>,
}

/// How a ticket came to stand, or did not.
pub(super) enum Joined {
    Yes,
    SessionGone,
}

/// How long one look at another's ticket lasts: so often somebody far behind looks whether the lock
/// is free although nobody ahead has taken it.
const LOOK: Duration = Duration::from_secs(15);

impl<'a> Stand<'a> {
    pub(super) const fn new(client: &'a Client, manner: &'a Manner) -> Self {
        Self {
            client,
            manner,
            own: None,
            known: Known::Not,
            ahead: None,
        }
    }

    /// Leaves the line: with its session, whoever stands there is done.
    pub(super) fn leave(&mut self) {
        self.own = None;
        self.known = Known::Not;
    }

    /// The lock is taken, and the ticket with it.
    pub(super) fn served(&mut self) {
        if let Some(own) = &mut self.own {
            own.used = true;
        }
        self.leave();
    }

    /// Somebody holds the lock: stands in line, and finds out what to follow meanwhile.
    pub(super) async fn held(
        &mut self,
        tenure: &Arc<Tenure>,
        holder: Option<&SessionId>,
    ) -> Result<Joined> {
        let now = Known::Held(holder.cloned());
        if self.own.is_some() && (self.known == Known::Free || self.known == now) {
            self.known = now;
            return Ok(Joined::Yes);
        }
        let line = match self.own {
            Some(_) => Line::read(self.client, &self.manner.folder).await?,
            None => Line::default(),
        };
        let Some((line, place)) = self.placed(tenure, line).await? else {
            return Ok(Joined::SessionGone);
        };
        self.known = now;
        self.ahead = match follows(place) {
            Follows::Ticket(ahead) => line.waiters.into_iter().nth(ahead),
            Follows::Lock => None,
        };
        Ok(Joined::Yes)
    }

    /// Follows the ticket of the one ahead until it is gone, or for a while; `false` if there is
    /// none to follow.
    pub(super) async fn follow(&mut self) -> Result<bool> {
        let Some(ahead) = &self.ahead else {
            return Ok(false);
        };
        // Whatever comes of it, the line is read again.
        self.known = Known::Not;
        let read = self.client.kv().get(ahead.key.as_str());
        let wait = LOOK.mul_f64(0.8 + 0.2 * rand::random::<f64>());
        let read = read.wait_for_change(ahead.modify_index, wait);
        let begun = tokio::time::Instant::now();
        let pair = read.await?.into_value();
        let same = |pair: &Pair| pair.modify_index() == ahead.modify_index;
        if pair.as_ref().is_some_and(same) && begun.elapsed() < UNCHANGED {
            tokio::time::sleep(UNCHANGED).await;
        }
        Ok(true)
    }

    /// The lock is free: whose turn is it? `None` if the session is gone.
    pub(super) async fn turn(&mut self, tenure: &Arc<Tenure>) -> Result<Option<Turn>> {
        self.known = Known::Not;
        let line = Line::read(self.client, &self.manner.folder).await?;
        if line.waiters.is_empty() && self.own.is_none() {
            // Nobody waits: no line is needed.
            return Ok(Some(Turn {
                after: Duration::ZERO,
                strike: line.dead,
                passed: Vec::new(),
            }));
        }
        let Some((line, place)) = self.placed(tenure, line).await? else {
            return Ok(None);
        };
        let own = self.own.iter().map(|own| own.ticket.key.clone());
        let passed = line.waiters.iter().take(place);
        let turn = Turn {
            after: courtesy(place),
            strike: own.chain(line.dead).collect(),
            passed: passed.map(|waiter| waiter.key.clone()).collect(),
        };
        // When it is taken, one less is ahead: the front is as near as this.
        self.known = Known::Free;
        self.ahead = match follows(place.saturating_sub(1)) {
            Follows::Ticket(ahead) => line.waiters.into_iter().nth(ahead + 1),
            Follows::Lock => None,
        };
        Ok(Some(turn))
    }

    /// Stands in line if it does not yet, or does not any more; `None` if the session is gone.
    async fn placed(&mut self, tenure: &Arc<Tenure>, line: Line) -> Result<Option<(Line, usize)>> {
        let place = self.own.as_ref();
        if let Some(place) = place.and_then(|own| line.place_of(&own.ticket.key)) {
            return Ok(Some((line, place)));
        }
        // None yet, or one that was passed or removed: the end of the line is where it goes on.
        self.own = None;
        if matches!(self.join(tenure).await?, Joined::SessionGone) {
            return Ok(None);
        }
        let line = Line::read(self.client, &self.manner.folder).await?;
        let own = self.own.as_ref();
        let place = own.and_then(|own| line.place_of(&own.ticket.key));
        // A server that lags behind does not know it yet.
        let place = place.unwrap_or(line.waiters.len());
        Ok(Some((line, place)))
    }

    async fn join(&mut self, tenure: &Arc<Tenure>) -> Result<Joined> {
        let Manner { folder, preference } = self.manner;
        let ticket = Ticket::new(folder, &tenure.session, *preference, rand::random())?;
        let (reply, queued) = oneshot::channel();
        let order = Order::Queue {
            ticket: ticket.clone(),
            reply,
        };
        if !tenure.order(order) {
            return Ok(Joined::SessionGone);
        }
        // From here on it may stand there: whoever is dropped now has it removed.
        let own = Own {
            ticket,
            tenure: Arc::clone(tenure),
            used: false,
        };
        match queued.await {
            Ok(Queued::Yes) => {
                self.own = Some(own);
                Ok(Joined::Yes)
            }
            Ok(Queued::Refused(err) | Queued::Unknown(err)) => Err(standing(err)),
            Ok(Queued::SessionGone) | Err(_) => Ok(Joined::SessionGone),
        }
    }
}

fn standing(err: Error) -> Error {
    err.at("a ticket in the lock's line")
}

impl Drop for Own {
    fn drop(&mut self) {
        if !self.used {
            let key = self.ticket.key.clone();
            self.tenure.order(Order::Leave(key));
        }
    }
}

/// Which tickets one transaction removes, given that it has room for so many.
pub(super) fn struck(turn: Turn, passes: bool, room: usize) -> Vec<Key> {
    let passed = turn.passed.into_iter().filter(|_| passes);
    turn.strike.into_iter().chain(passed).take(room).collect()
}
