//! Contenders measured in turns, round by round, so that noise of the machine meets them all.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Outcome;

/// What a contender is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The library this repository is about.
    Ours,
    /// The least anybody could do: the same work without a library.
    Floor,
    /// Somebody else's library.
    Peer,
}

/// One that takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contender {
    /// How it is called in tables and JSON.
    pub name: &'static str,
    /// What it is to us.
    pub role: Role,
}

/// What the library this repository is about is called.
pub const OURS: &str = "lictor";

impl Contender {
    /// The library this repository is about.
    pub const OURS: Self = Self {
        name: OURS,
        role: Role::Ours,
    };

    /// A floor of that name.
    #[must_use]
    pub const fn floor(name: &'static str) -> Self {
        Self {
            name,
            role: Role::Floor,
        }
    }

    /// A peer of that name.
    #[must_use]
    pub const fn peer(name: &'static str) -> Self {
        Self {
            name,
            role: Role::Peer,
        }
    }
}

/// What one contender measured in one round, by metric.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sample(pub BTreeMap<String, f64>);

impl Sample {
    /// Adds a metric.
    #[must_use]
    pub fn with(mut self, metric: &str, value: f64) -> Self {
        self.0.insert(metric.to_owned(), value);
        self
    }

    /// Adds the metrics of another sample.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

/// A figure to show of every contender.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name in samples and JSON.
    pub name: &'static str,
    /// Its heading in the table, with the unit.
    pub title: &'static str,
}

/// The value of a parameter.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// A number of something.
    Number(u64),
    /// One of several, by its name.
    Name(&'static str),
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<&'static str> for Value {
    fn from(name: &'static str) -> Self {
        Self::Name(name)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// One bench with one set of parameters, and what it measured.
#[derive(Debug)]
pub struct Contest {
    pub(crate) bench: &'static str,
    pub(crate) params: Vec<(&'static str, Value)>,
    pub(crate) metrics: Vec<Metric>,
    pub(crate) lanes: Vec<Lane>,
}

/// A contender with its samples, one per round.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) contender: Contender,
    pub(crate) samples: Vec<Sample>,
    pub(crate) failure: Option<String>,
}

impl Contest {
    /// A contest of the bench with these metrics; the first one is what contenders are compared by.
    #[must_use]
    pub fn new(
        bench: &'static str,
        metrics: &[Metric],
        contenders: impl IntoIterator<Item = Contender>,
    ) -> Self {
        Self {
            bench,
            params: Vec::new(),
            metrics: metrics.to_vec(),
            lanes: contenders
                .into_iter()
                .map(|contender| Lane {
                    contender,
                    samples: Vec::new(),
                    failure: None,
                })
                .collect(),
        }
    }

    /// Adds a parameter.
    #[must_use]
    pub fn param(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.params.push((name, value.into()));
        self
    }

    /// Lets every contender measure once per round; another one begins each round.
    ///
    /// A contender that fails is told on standard error and left out of the rounds to come.
    pub async fn run(
        &mut self,
        rounds: usize,
        mut measure: impl AsyncFnMut(&Contender, usize) -> Outcome<Sample>,
    ) {
        let title = self.title();
        eprintln!(
            "{title}: {rounds} rounds of {} contenders",
            self.lanes.len()
        );
        let lanes = self.lanes.len();
        for round in 0..rounds {
            for turn in 0..lanes {
                let Some(lane) = self.lanes.get_mut((round + turn) % lanes) else {
                    continue;
                };
                if lane.failure.is_some() {
                    continue;
                }
                match measure(&lane.contender, round).await {
                    Ok(sample) => lane.samples.push(sample),
                    Err(failure) => {
                        eprintln!("{title}: {} is left out: {failure}", lane.contender.name);
                        lane.failure = Some(failure.to_string());
                        lane.samples.clear();
                    }
                }
            }
        }
    }

    /// Why our own contender could not be measured, if so.
    #[must_use]
    pub fn failure_of_ours(&self) -> Option<&str> {
        self.lanes
            .iter()
            .find(|lane| lane.contender.role == Role::Ours)
            .and_then(|lane| lane.failure.as_deref())
    }

    pub(crate) fn title(&self) -> String {
        let mut title = self.bench.to_owned();
        for (name, value) in &self.params {
            title.push_str(&format!(" {name}={value}"));
        }
        title
    }
}

impl Lane {
    /// The metric's values, one per round.
    pub(crate) fn values(&self, metric: &str) -> Vec<f64> {
        self.samples
            .iter()
            .filter_map(|sample| sample.0.get(metric).copied())
            .collect()
    }

    pub(crate) fn median(&self, metric: &str) -> Option<f64> {
        median(self.values(metric))
    }

    /// The distance of the extremes in parts of the median.
    pub(crate) fn spread(&self, metric: &str) -> Option<f64> {
        let values = self.values(metric);
        let low = values.iter().copied().reduce(f64::min)?;
        let high = values.iter().copied().reduce(f64::max)?;
        let middle = median(values).filter(|middle| *middle > 0.0)?;
        Some((high - low) / middle)
    }

    /// The median over the rounds of this contender's value in parts of the other's of that round.
    ///
    /// Both were measured within seconds of each other, so this holds still where medians wander.
    pub(crate) fn ratio(&self, other: &Self, metric: &str) -> Option<f64> {
        median(
            self.values(metric)
                .into_iter()
                .zip(other.values(metric))
                .filter(|(_, other)| *other > 0.0)
                .map(|(value, other)| value / other)
                .collect(),
        )
    }
}

/// The middle value, or the mean of the two middle ones.
#[must_use]
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    let upper = values.get(half).copied()?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = values.get(half.checked_sub(1)?).copied()?;
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(values: &[f64]) -> Lane {
        Lane {
            contender: Contender::OURS,
            samples: values
                .iter()
                .map(|value| Sample::default().with("m", *value))
                .collect(),
            failure: None,
        }
    }

    #[test]
    fn the_median_of_an_even_count_is_the_middle_of_the_middle_two() {
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn a_ratio_pairs_the_rounds() {
        // The machine was twice as slow in the second round and three times in the third.
        let ours = lane(&[1.5, 3.0, 4.5]);
        let floor = lane(&[1.0, 2.0, 3.0]);
        let ratio = ours.ratio(&floor, "m").unwrap();
        assert!((ratio - 1.5).abs() < 1e-9, "{ratio}");
        assert_eq!(ours.spread("m"), Some(1.0));
    }

    #[tokio::test]
    async fn the_contender_that_begins_changes_with_the_round() {
        let mut contest = Contest::new(
            "b",
            &[],
            [Contender::OURS, Contender::floor("f"), Contender::peer("p")],
        );
        let mut order = Vec::new();
        contest
            .run(2, async |contender: &Contender, _| {
                order.push(contender.name);
                Ok(Sample::default())
            })
            .await;
        assert_eq!(order, ["lictor", "f", "p", "f", "p", "lictor"]);
    }

    #[tokio::test]
    async fn a_contender_that_fails_is_left_out_and_the_others_go_on() {
        let mut contest = Contest::new("b", &[], [Contender::OURS, Contender::floor("f")]);
        contest
            .run(3, async |contender: &Contender, round| {
                if contender.role == Role::Ours && round == 1 {
                    return Err("gone".into());
                }
                Ok(Sample::default())
            })
            .await;
        assert_eq!(contest.failure_of_ours(), Some("gone"));
        let counts: Vec<_> = contest
            .lanes
            .iter()
            .map(|lane| lane.samples.len())
            .collect();
        assert_eq!(counts, [0, 3]);
    }
}
