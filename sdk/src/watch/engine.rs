//! The task behind all readers of one query.
//!
//! The rules of indexes, waits and paces are pure and stand in `proto`; here they meet the clock,
//! the network and chance.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::Instant;

use super::body::{Decoded, equal};
use super::crowd::{GLANCE, Seat};
use super::kinds::{Asked, Watchable, Watched};
use super::snapshot::{Content, Outage, Status};
use super::{BURST, MAX_STALENESS, PACE, WAIT};
use crate::api::{Meta, wait_for};
use crate::client::{Call, Client, Raw};
use crate::error::{Error, ErrorKind, Result};
use crate::proto::backoff::Backoff;
use crate::proto::cursor::{Cursor, Step};
use crate::proto::pace::Pace;
use crate::task::StopSignal;

/// What readers see; kept in a channel that holds the newest value.
pub(super) struct State<T> {
    pub(super) content: Option<Arc<Content<T>>>,
    pub(super) status: Status,
    pub(super) confirmed_at: Instant,
}

impl<T> Clone for State<T> {
    fn clone(&self) -> Self {
        Self {
            content: self.content.as_ref().map(Arc::clone),
            status: self.status.clone(),
            confirmed_at: self.confirmed_at,
        }
    }
}

impl<T> State<T> {
    pub(super) fn new() -> Self {
        Self {
            content: None,
            status: Status::Connecting { error: None },
            confirmed_at: Instant::now(),
        }
    }
}

/// What to ask, again and again.
pub(super) struct Question {
    pub(super) client: Client,
    pub(super) call: Call,
    /// The same call of a leader that has made sure of being it: `consistent` waits until a new
    /// one has read its log back. None where each answer is of that kind.
    pub(super) of_leader: Option<Call>,
    /// Whether a server far behind its leader may not answer.
    pub(super) minds_age: bool,
}

/// How an answer is turned into elements.
struct Meaning<T> {
    absent_is_empty: bool,
    selects: Option<fn(&T) -> bool>,
}

/// Asks for as long as there are readers.
pub(super) async fn run<E: Watchable>(
    question: Question,
    state: watch::Sender<State<E::Item>>,
    mut stop: StopSignal,
) {
    let meaning = Meaning {
        absent_is_empty: E::ABSENT_IS_EMPTY,
        selects: E::selects(&Asked(&question.call.target)),
    };
    let mut engine = Engine {
        seat: Seat::among(&question.client),
        question,
        meaning,
        state,
        cursor: Cursor::default(),
        decoded: Decoded::new(),
        backoff: Backoff::new(FIRST_RETRY, LAST_RETRY),
        pace: Pace::new(BURST, PACE),
        wait: WAIT,
        version: 0,
    };
    tokio::select! {
        biased;
        _ = stop.recv() => {}
        () = engine.ask_forever() => {}
    }
}

/// The first retry after a failure comes within 100 ms, so that an agent's restart is hardly seen.
const FIRST_RETRY: Duration = Duration::from_millis(100);

const SHORTEST_RETRY: Duration = Duration::from_millis(25);

/// An agent in trouble is asked every 5 s on average: soon enough after it is well, and no load.
const LAST_RETRY: Duration = Duration::from_secs(10);

/// One that is not there, or waits for its servers to elect a leader, is asked twice a second: that
/// is no load on anybody, and what has changed meanwhile is told within a second of its return.
const LAST_RETRY_OF_ABSENT: Duration = Duration::from_secs(1);

fn longest_pause(failure: ErrorKind) -> Duration {
    match failure {
        ErrorKind::Connect | ErrorKind::NoLeader => LAST_RETRY_OF_ABSENT,
        _ => LAST_RETRY,
    }
}

/// The first wait after the servers failed: their state may be another one now, in which our index
/// means nothing.
const CAREFUL_WAIT: Duration = Duration::from_secs(10);

struct Engine<T> {
    question: Question,
    meaning: Meaning<T>,
    state: watch::Sender<State<T>>,
    cursor: Cursor,
    decoded: Decoded<T>,
    backoff: Backoff,
    pace: Pace,
    wait: Duration,
    seat: Seat,
    version: u64,
}

impl<T: Watched> Engine<T> {
    async fn ask_forever(&mut self) {
        loop {
            tokio::time::sleep_until(self.pace.take(Instant::now())).await;
            let asked_at = Instant::now();
            if let Err(err) = self.ask().await {
                let most = longest_pause(err.kind());
                self.failed(err);
                let delay = self.backoff.next_within(most, rand::rng().random());
                // A query that hung until its deadline has paused for long enough, but readers are
                // to see that it failed.
                let soonest = Instant::now() + SHORTEST_RETRY;
                tokio::time::sleep_until(soonest.max(asked_at + delay)).await;
            }
            tokio::time::sleep(self.seat.rest()).await;
        }
    }

    /// One query and what it means.
    async fn ask(&mut self) -> Result<()> {
        let mut call = self.question.call.clone();
        let wait = if self.seat.may_hold() {
            self.wait
        } else {
            GLANCE
        };
        if let Some(index) = self.cursor.index() {
            call.target.push_number("index", index);
            wait_for(&mut call, wait)?;
        }
        let turn = self.seat.turn().await;
        let asked_at = Instant::now();
        let raw = self.question.client.send(call).await?;
        drop(turn);
        let raw = self.acceptable(raw)?;
        let meta = raw.meta();
        let step = self.cursor.advance(meta.index(), asked_at.elapsed(), wait);
        match step {
            Step::Reread => return Ok(()),
            Step::Unchanged => {}
            // What is known stays if there is no leader to ask.
            Step::Doubt => {
                let (raw, meta) = match self.question.of_leader.clone() {
                    Some(call) => self.ask_leader(call).await?,
                    None => {
                        self.cursor.believe(meta.index());
                        (raw, meta)
                    }
                };
                self.take_in(&raw, meta)?;
            }
            Step::Look => self.look(raw, meta).await?,
        }
        self.wait = WAIT;
        self.backoff.reset();
        self.confirm();
        Ok(())
    }

    /// Takes in an answer, unless its server is far behind: then the leader's.
    async fn look(&mut self, raw: Raw, meta: Meta) -> Result<()> {
        // How far behind a server is matters for what it says, not for its silence.
        let behind = meta.last_contact().is_some_and(|ago| ago > MAX_STALENESS);
        let call = self.question.of_leader.clone();
        let Some(call) = call.filter(|_| behind && self.question.minds_age) else {
            return self.take_in(&raw, meta);
        };
        match self.ask_leader(call).await {
            Ok((raw, meta)) => self.take_in(&raw, meta),
            // While there is no leader, the late answer is better than none; that it is late is
            // told.
            Err(err) => {
                self.take_in(&raw, meta)?;
                Err(err)
            }
        }
    }

    /// Asks the leader for what another server, or one that has just become it, has answered.
    async fn ask_leader(&mut self, call: Call) -> Result<(Raw, Meta)> {
        let raw = self.question.client.send(call).await?;
        let raw = self.acceptable(raw)?;
        let meta = raw.meta();
        self.cursor.believe(meta.index());
        Ok((raw, meta))
    }

    /// A good answer, or the 404 by which Consul says that a key does not exist.
    fn acceptable(&self, raw: Raw) -> Result<Raw> {
        let absent = raw.status == StatusCode::NOT_FOUND && raw.meta().index().is_some();
        if absent && self.meaning.absent_is_empty {
            return Ok(raw);
        }
        raw.good()
    }

    fn take_in(&mut self, raw: &Raw, meta: Meta) -> Result<()> {
        let body = if raw.status == StatusCode::NOT_FOUND {
            bytes::Bytes::from_static(b"[]")
        } else {
            raw.body.clone()
        };
        let first = self.version == 0;
        let changed = self
            .decoded
            .update(body)
            .map_err(|err| raw.unexpected(err))?;
        if !(changed || first) {
            return Ok(());
        }
        let items: Vec<_> = match self.meaning.selects {
            None => self.decoded.items().to_vec(),
            Some(selects) => {
                let all = self.decoded.items().iter();
                all.filter(|item| selects(item)).map(Arc::clone).collect()
            }
        };
        // What changed may be only among what was not asked for.
        let told = self.state.borrow().content.as_ref().map(Arc::clone);
        if told.is_some_and(|told| equal(&told.items, &items)) {
            return Ok(());
        }
        self.version += 1;
        let now = Instant::now();
        let content = Arc::new(Content {
            items,
            meta,
            version: self.version,
            received_at: now,
            body: self.decoded.body(),
            is_kept: false,
        });
        self.state.send_modify(|state| {
            state.content = Some(content);
            state.confirmed_at = now;
            if !matches!(state.status, Status::Stale(_)) {
                state.status = Status::Live;
            }
        });
        Ok(())
    }

    /// The content is what Consul holds: told only to readers who care about the status.
    fn confirm(&self) {
        self.state.send_if_modified(|state| {
            state.confirmed_at = Instant::now();
            let news = !state.status.is_live();
            if news {
                if let Status::Stale(outage) = &state.status {
                    let outage = outage.lasts();
                    tracing::info!(path = self.path(), ?outage, "watch is up to date again");
                }
                state.status = Status::Live;
            }
            news
        });
    }

    /// What is known stays; that it may be out of date is told.
    fn failed(&mut self, error: Error) {
        match error.kind() {
            // The agent is the same one: its index still holds, unless its servers were restored.
            ErrorKind::NoLeader | ErrorKind::RateLimited | ErrorKind::Server => {
                self.wait = CAREFUL_WAIT;
            }
            // Another agent may answer next, for which our index may be too large to ever pass.
            _ => self.cursor.reset(),
        }
        let path = self.question.call.target.path();
        self.state.send_modify(|state| {
            let since = match &state.status {
                Status::Stale(outage) => outage.since,
                Status::Connecting { error: former } if state.content.is_none() => {
                    // Once, and again if it fails otherwise.
                    if former.as_ref().map(Error::kind) != Some(error.kind()) {
                        tracing::warn!(path, error = %error.chain(), "watch failed, nothing is known yet");
                    }
                    state.status = Status::Connecting { error: Some(error) };
                    return;
                }
                Status::Connecting { .. } | Status::Live | Status::Suspect(_) => {
                    tracing::warn!(path, error = %error.chain(), "watch failed, the last good content stays");
                    Instant::now()
                }
            };
            state.status = Status::Stale(Outage { since, error });
        });
    }

    fn path(&self) -> &str {
        self.question.call.target.path()
    }
}
