//! Putting endpoints out of rotation and noticing that they are back; the driver does it.
//!
//! A sweep looks at all endpoints at once: some reasons are comparisons, and how many may be out
//! is a matter of all. It runs every [`EVERY`], and at once when an endpoint says that it has a
//! reason or that its trial is decided.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::telemetry::Telemetry;

use super::candidate::Candidate;
use super::eject::Reason;
use super::judge::{self, Latencies, Tally, Window};
use super::lost::is_share;
use super::pace::Pace;
use super::snapshot::Snapshot;
use super::standing::{Stage, Standing};
use super::tick::Tick;
use super::ward::Ward;

/// How often endpoints are looked at: often enough that what was repaired is back within two
/// seconds, seldom enough to cost a program at rest nothing to speak of.
pub(crate) const EVERY: Duration = Duration::from_millis(500);

/// How far apart sweeps are that endpoints ask for: where thousands of endpoints flap, the task
/// has something else to do, too.
pub(crate) const LEAST_APART: Duration = Duration::from_millis(20);

/// After so many requests to the service a failing endpoint is asked again, whatever its time:
/// one request in a thousand finds out that it is well.
const PASSED: u64 = 1_000;

/// Who is judged, and what was seen of them so far.
#[derive(Debug)]
pub(crate) struct Sweeper {
    ward: Arc<Ward>,
    /// The share of a tier that has to be left for ejections to count.
    threshold: f64,
    /// In the order of the last snapshot.
    records: Vec<Record>,
    panicked: bool,
    telemetry: Arc<Telemetry>,
}

/// What is remembered of an endpoint from sweep to sweep.
#[derive(Debug)]
struct Record {
    id: u32,
    window: Window,
    /// Grows with each failure and each refusal.
    trouble: u64,
    /// The requests of the whole service when there was trouble last.
    passed: u64,
    /// How it stood at the last sweep.
    stood: Standing,
}

/// An endpoint in the course of one sweep.
struct Seen<'a, S> {
    candidate: &'a Arc<Candidate<S>>,
    tally: Tally,
    recent: Tally,
}

impl Sweeper {
    pub(crate) fn new(ward: Arc<Ward>, threshold: f64) -> Self {
        Self {
            ward,
            threshold,
            records: Vec::new(),
            panicked: false,
            telemetry: Arc::default(),
        }
    }

    /// The same, saying of which service it speaks.
    pub(crate) fn telling(mut self, telemetry: &Arc<Telemetry>) -> Self {
        self.telemetry = Arc::clone(telemetry);
        self
    }

    /// Looks at all endpoints of a snapshot, in pieces: requests may come between them, as they do
    /// on other threads.
    pub(crate) async fn sweep<S: Send + Sync>(&mut self, snapshot: &Snapshot<S>, now: Tick) {
        let mut pace = Pace::default();
        self.align(snapshot, now, &mut pace).await;
        let seen = self.read(snapshot, now, &mut pace).await;
        self.hasten(&seen, now, &mut pace).await;
        if !self.ward.is_off() {
            self.tell_slowness(&seen, &mut pace).await;
            self.judge(&seen, now, &mut pace).await;
            self.look_after(&seen, now, &mut pace).await;
        }
        self.weigh(snapshot, now, &mut pace).await;
    }

    /// Puts the records into the order of the snapshot, and forgets endpoints that have left.
    async fn align<S: Send + Sync>(&mut self, snapshot: &Snapshot<S>, now: Tick, pace: &mut Pace) {
        let mut expected = self.records.iter().map(|record| record.id);
        let mut alike = true;
        for entry in snapshot.entries() {
            alike = expected.next() == Some(entry.candidate().id());
            if !alike {
                break;
            }
            pace.step().await;
        }
        if alike && expected.next().is_none() {
            return;
        }
        let last = self.records.iter().map(|record| record.id).max();
        let len = snapshot.len();
        let mut records = std::mem::take(&mut self.records).into_iter();
        // Mostly few come and go, and the others keep their order: then there is little in here.
        let mut passed: HashMap<u32, Record> = HashMap::new();
        let mut known = |id| {
            // Numbers are given out in order.
            if last.is_none_or(|last| id > last) {
                return None;
            }
            if let Some(record) = passed.remove(&id) {
                return Some(record);
            }
            for record in records.by_ref() {
                if record.id == id {
                    return Some(record);
                }
                passed.insert(record.id, record);
            }
            None
        };
        let mut aligned = Vec::with_capacity(len);
        for entry in snapshot.entries() {
            let candidate = entry.candidate();
            let new = || Record {
                id: candidate.id(),
                window: Window::new(candidate.tally(), now),
                trouble: 0,
                passed: 0,
                stood: Standing::default(),
            };
            aligned.push(known(candidate.id()).unwrap_or_else(new));
            pace.step().await;
        }
        self.records = aligned;
    }

    async fn read<'a, S: Send + Sync>(
        &mut self,
        snapshot: &'a Snapshot<S>,
        now: Tick,
        pace: &mut Pace,
    ) -> Vec<Seen<'a, S>> {
        let enough = self.ward.ejection().success_rate_requests;
        let mut seen = Vec::with_capacity(snapshot.len());
        for (entry, record) in snapshot.entries().zip(&mut self.records) {
            let candidate = entry.candidate();
            let tally = candidate.tally();
            if candidate.standing().is_out() {
                // What led to it is not held against it when it is back.
                record.window = Window::new(tally, now);
            }
            seen.push(Seen {
                candidate,
                tally,
                recent: record.window.read(tally, now, enough),
            });
            pace.step().await;
        }
        seen
    }

    /// Lets failing endpoints be asked again when enough requests have passed by.
    async fn hasten<S: Send + Sync>(&mut self, seen: &[Seen<'_, S>], now: Tick, pace: &mut Pace) {
        let total: u64 = seen.iter().map(|one| one.tally.requests()).sum();
        for (one, record) in seen.iter().zip(&mut self.records) {
            pace.step().await;
            let refusals = one.candidate.refusal().map_or(0, |(count, _)| count);
            let trouble = one.tally.failures.wrapping_add(u64::from(refusals));
            if trouble != record.trouble {
                record.trouble = trouble;
                record.passed = total;
            }
            let standing = one.candidate.standing();
            let asks = match standing.stage() {
                Stage::Ready => {
                    let estimate = one.candidate.estimate();
                    refusals > 0 || estimate.is_some_and(|known| known.is_penalty())
                }
                Stage::Ejected => matches!(
                    standing.why(),
                    Some(Reason::ConsecutiveFailures | Reason::SuccessRate)
                ),
                Stage::Due | Stage::Spared | Stage::Probing | Stage::Returning => false,
            };
            // Endpoints that leave take their counts with them.
            if asks && total.saturating_sub(record.passed) >= PASSED {
                record.passed = total;
                one.candidate.hasten(now);
            } else if total < record.passed {
                record.passed = total;
            }
        }
    }

    async fn tell_slowness<S: Send + Sync>(&self, seen: &[Seen<'_, S>], pace: &mut Pace) {
        let known = |one: &Seen<'_, S>| {
            let estimate = one.candidate.estimate().filter(|e| !e.is_penalty());
            estimate.map(|estimate| estimate.latency().as_secs_f32())
        };
        let mut measured = Vec::with_capacity(seen.len());
        for one in seen {
            measured.extend(known(one));
            pace.step().await;
        }
        let latencies = Latencies::new(measured);
        for one in seen {
            pace.step().await;
            let limit = latencies.limit(self.ward.ejection(), known(one));
            one.candidate.set_slow_above(limit);
        }
    }

    async fn judge<S: Send + Sync>(&self, seen: &[Seen<'_, S>], now: Tick, pace: &mut Pace) {
        let ejection = self.ward.ejection();
        let most = ejection.most(seen.len());
        // The set may have shrunk: those go back first whose time is over first. The keys are
        // read once, because a trial may end meanwhile.
        let mut out = Vec::new();
        for one in seen {
            let standing = one.candidate.standing();
            let wait = match standing.stage() {
                Stage::Returning => 0,
                _ => standing.at().millis_since(now),
            };
            if standing.is_out() {
                out.push((wait, one.candidate));
            }
            pace.step().await;
        }
        out.sort_by_key(|(wait, _)| *wait);
        for (_, candidate) in out.iter().take(out.len().saturating_sub(most)) {
            let standing = candidate.standing();
            candidate.put(standing, standing.returned(now));
        }
        let mut places = most.saturating_sub(out.len());

        let rates: Vec<Tally> = seen.iter().map(|one| one.recent).collect();
        let least = judge::least_success(ejection, &rates);
        pace.list(rates.len()).await;
        let mut bad = Vec::new();
        for one in seen {
            pace.step().await;
            let standing = one.candidate.standing();
            if standing.is_out() {
                continue;
            }
            let rate = judge::rate(ejection, one.recent);
            let fails = || matches!((rate, least), (Some(rate), Some(least)) if rate < least);
            let slow = ejection.latency > 0.0 && one.recent.is_slow();
            let reason = one
                .candidate
                .own_fault()
                .or_else(|| fails().then_some(Reason::SuccessRate))
                .or_else(|| slow.then_some(Reason::Latency));
            match reason {
                Some(reason) => bad.push((reason, standing, one.candidate)),
                None if standing.stage() == Stage::Spared => {
                    one.candidate.put(standing, standing.pardoned());
                }
                None => {}
            }
        }
        bad.sort_by_key(|(reason, ..)| *reason);
        for (reason, standing, candidate) in bad {
            if places > 0 {
                let time = |level| candidate.time(level, Some(reason), now);
                if candidate.put(standing, standing.ejected(reason, now, time)) {
                    places -= 1;
                }
            } else {
                candidate.put(standing, standing.spared(reason));
            }
        }
    }

    /// What time does to the standings, and what the log is told of them.
    async fn look_after<S: Send + Sync>(
        &mut self,
        seen: &[Seen<'_, S>],
        now: Tick,
        pace: &mut Pace,
    ) {
        let service = self.telemetry.service();
        for (Seen { candidate, .. }, record) in seen.iter().zip(&mut self.records) {
            pace.step().await;
            let standing = candidate.standing();
            let aged = standing.aged(now);
            if aged != standing {
                candidate.put(standing, aged);
            }
            let before = std::mem::replace(&mut record.stood, standing);
            let target = candidate.target();
            match (before.is_out(), standing.is_out()) {
                (false, true) => {
                    let time = Duration::from_millis(standing.at().millis_since(now).into());
                    let why = standing.why().map(tracing::field::display);
                    tracing::info!(service, %target, why, ?time, "endpoint is ejected");
                    if let Some(reason) = standing.why() {
                        self.telemetry.ejects(reason.name());
                    }
                }
                (true, false) => {
                    tracing::info!(service, %target, "endpoint is back in rotation");
                }
                (false, false) | (true, true) => {}
            }
        }
    }

    /// Tells the snapshot whether too few are left for ejections to count.
    ///
    /// Where one tier has enough left, it takes over, and nobody has to put up with bad endpoints:
    /// Envoy's rule, too.
    async fn weigh<S: Send + Sync>(&mut self, snapshot: &Snapshot<S>, now: Tick, pace: &mut Pace) {
        // Where nobody is ejected, there is nothing to ignore.
        let (mut missing, mut enough) = (false, false);
        for tier in snapshot.tiers() {
            let mut left = 0;
            for entry in tier.entries() {
                let candidate = entry.candidate();
                missing |= candidate.standing().is_missing();
                left += usize::from(candidate.is_well(now));
                pace.step().await;
            }
            enough |= is_share(left, tier.entries().len(), self.threshold);
        }
        let panics = missing && !enough;
        snapshot.set_panics(panics);
        if std::mem::replace(&mut self.panicked, panics) == panics {
            return;
        }
        let service = self.telemetry.service();
        if panics {
            tracing::warn!(service, "too few endpoints are well: ejections are ignored");
        } else {
            tracing::info!(service, "enough endpoints are well again");
        }
    }
}

#[cfg(test)]
mod tests;
