//! How the endpoints of a channel fare, for logs and debug pages.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::balance::{Backend, Balance, Candidate, Reason, Stage, Tick};
use crate::endpoint::Target;
use crate::telemetry::{Counts, millis};

/// How an endpoint of a channel fares.
///
/// It displays as one line. Numbers of one endpoint are read one after the other and not at one
/// moment.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct EndpointStatus {
    /// Where it listens.
    pub target: Target,
    /// Whether requests go to it, and if not, why and for how long.
    pub state: EndpointState,
    /// Which preference it has: 0 is asked first, the next when nobody there can be called. One
    /// that has left has none, and its tier, distance, priority and weight are 0.
    pub tier: usize,
    /// How far away it is; 0 is the nearest.
    pub distance: u16,
    /// Its priority; a lower number is preferred.
    pub priority: u16,
    /// Its share of traffic relative to others of the same priority.
    pub weight: u32,
    /// What its weight is multiplied with for the load that it reports; 1 without reports.
    pub load_factor: f32,
    /// Reports of its load that could not be understood.
    pub bad_reports: u32,
    /// Requests whose response has not ended.
    pub in_flight: u32,
    /// Requests that it answered or failed, since it joined.
    pub requests: u64,
    /// Those of them that count as failures.
    pub failures: u64,
    /// Attempts that came to it after one elsewhere was in vain.
    pub retries: u64,
    /// Attempts that came to it while one elsewhere was under way.
    pub hedges: u64,
    /// Attempts for which no connection to it could be opened.
    pub refused: u64,
    /// How often it was put out of rotation, repeated trials not counted.
    pub ejections: u32,
    /// The moving average of its latency; none before its first answer.
    #[serde(rename = "latency_ms", serialize_with = "some_millis")]
    pub latency: Option<Duration>,
    /// It failed after the last answer: the latency is a penalty and not measured.
    pub is_penalized: bool,
    /// It refused connections and is left alone for a while.
    pub is_avoided: bool,
}

/// Whether requests go to an endpoint.
///
/// Times are those left from now on. Serialized, it is a map in which `is` says which of them, in
/// small letters.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(tag = "is", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EndpointState {
    /// It is in rotation.
    Ready,
    /// It accepts no connections and is left alone; zero means that the next request tries.
    Avoided {
        /// For so long.
        #[serde(rename = "left_ms", serialize_with = "millis")]
        left: Duration,
        /// So many refusals in a row.
        refusals: u32,
    },
    /// It fares badly and is out of rotation; zero means that the next request tries.
    Ejected {
        /// Why.
        reason: Reason,
        /// For so long.
        #[serde(rename = "left_ms", serialize_with = "millis")]
        left: Duration,
        /// For the n-th time in close succession, failed trials counted.
        times: u8,
    },
    /// It fares badly and stays in rotation, because too many are out already.
    Spared {
        /// Why it would be ejected.
        reason: Reason,
    },
    /// It was ejected, and one request finds out how it is.
    Probing {
        /// Why it was ejected.
        reason: Reason,
        /// If nothing is heard of that request for so long, the next one tries.
        #[serde(rename = "left_ms", serialize_with = "millis")]
        left: Duration,
    },
    /// Its trial went well, and it gets more requests from answer to answer.
    Returning {
        /// Why it was ejected.
        reason: Reason,
    },
    /// It has left: it gets no new request and finishes those under way.
    Draining,
}

fn some_millis<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => millis(time, to),
        None => to.serialize_none(),
    }
}

impl EndpointStatus {
    /// How all endpoints fare, the preferred ones first, those that leave at the end.
    pub(crate) fn all<S: Backend>(balance: &Balance<S>) -> Vec<Self> {
        let now = balance.now();
        let snapshot = balance.snapshot();
        let tiers = snapshot.tiers().iter().enumerate();
        let there = tiers.flat_map(|(tier, entries)| {
            let entries = entries.entries().iter();
            entries.map(move |entry| Self {
                tier,
                distance: entry.distance(),
                priority: entry.priority(),
                weight: entry.weight(),
                ..Self::of(
                    entry.candidate(),
                    EndpointState::of(entry.candidate(), now),
                    now,
                )
            })
        });
        let leaving = balance.leaving();
        let leaving = leaving
            .iter()
            .map(|candidate| Self::of(candidate, EndpointState::Draining, now));
        there.chain(leaving).collect()
    }

    /// Without what its place in the snapshot says.
    fn of<S: Backend>(candidate: &Candidate<S>, state: EndpointState, now: Tick) -> Self {
        let counts = candidate.backend().counts().map(Counts::read);
        let counts = counts.unwrap_or_default();
        let estimate = candidate.estimate();
        let tally = candidate.tally();
        Self {
            target: candidate.target().clone(),
            state,
            tier: 0,
            distance: 0,
            priority: 0,
            weight: 0,
            load_factor: candidate.factor(),
            bad_reports: candidate.bad_reports(),
            in_flight: candidate.in_flight(),
            requests: tally.requests(),
            failures: tally.failures,
            retries: counts.retries,
            hedges: counts.hedges,
            refused: counts.refused,
            ejections: candidate.ejections(),
            latency: estimate.map(|known| known.latency()),
            is_penalized: estimate.is_some_and(|known| known.is_penalty()),
            is_avoided: candidate.is_avoided(now),
        }
    }
}

impl EndpointState {
    fn of<S>(candidate: &Candidate<S>, now: Tick) -> Self {
        let left = |until: Tick| Duration::from_millis(until.millis_since(now).into());
        let standing = candidate.standing();
        match (standing.stage(), standing.why(), candidate.refusal()) {
            (Stage::Ejected, Some(reason), _) => Self::Ejected {
                reason,
                left: left(standing.at()),
                times: standing.level(),
            },
            (Stage::Probing, Some(reason), _) => Self::Probing {
                reason,
                left: left(standing.at()),
            },
            (_, _, Some((refusals, until))) => Self::Avoided {
                left: left(until),
                refusals,
            },
            (Stage::Spared, Some(reason), _) => Self::Spared { reason },
            (Stage::Returning, Some(reason), _) => Self::Returning { reason },
            _ => Self::Ready,
        }
    }
}

impl fmt::Display for EndpointState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::Avoided { left, refusals } => {
                write!(
                    f,
                    "avoided for {left:?} (refused {refusals} times in a row)"
                )
            }
            Self::Ejected {
                reason,
                left,
                times,
            } => write!(f, "ejected for {left:?} ({reason}, time {times})"),
            Self::Spared { reason } => write!(f, "spared ({reason}, but too many are out)"),
            Self::Probing { reason, .. } => write!(f, "probing (was ejected: {reason})"),
            Self::Returning { reason } => write!(f, "returning (was ejected: {reason})"),
            Self::Draining => f.write_str("draining"),
        }
    }
}

impl fmt::Display for EndpointStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}, tier {}, weight {}, {} in flight, {} of {} requests failed, {} ejections",
            self.target,
            self.state,
            self.tier,
            self.weight,
            self.in_flight,
            self.failures,
            self.requests,
            self.ejections
        )?;
        match self.latency {
            Some(latency) if !self.is_penalized => write!(f, ", latency {latency:?}"),
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_where_how_and_why() {
        let status = EndpointStatus {
            target: "10.0.0.1:80".parse().unwrap(),
            state: EndpointState::Ejected {
                reason: Reason::ConsecutiveFailures,
                left: Duration::from_millis(1_500),
                times: 2,
            },
            tier: 0,
            distance: 0,
            priority: 1,
            weight: 3,
            load_factor: 1.0,
            bad_reports: 0,
            in_flight: 2,
            requests: 90,
            failures: 7,
            retries: 3,
            hedges: 0,
            refused: 0,
            ejections: 1,
            latency: Some(Duration::from_millis(4)),
            is_penalized: false,
            is_avoided: false,
        };
        assert_eq!(
            status.to_string(),
            "10.0.0.1:80 ejected for 1.5s (failures in a row, time 2), tier 0, weight 3, 2 in \
             flight, 7 of 90 requests failed, 1 ejections, latency 4ms"
        );
    }
}
