//! Tables for a person, JSON lines for a program.

use std::io::Write;

use serde::{Serialize, Serializer};

use crate::Outcome;
use crate::contest::{Contest, Lane, Role, Value};

/// Prints contests as they end, and remembers whether ours failed in one.
#[derive(Debug)]
pub struct Report {
    json: bool,
    failed: bool,
}

impl Report {
    /// JSON lines, or tables.
    #[must_use]
    pub fn new(json: bool) -> Self {
        Self {
            json,
            failed: false,
        }
    }

    /// Prints what the contest measured.
    ///
    /// # Errors
    /// If standard output is closed.
    pub fn show(&mut self, contest: &Contest) -> Outcome<()> {
        self.failed |= contest.failure_of_ours().is_some();
        let mut out = std::io::stdout().lock();
        if self.json {
            for figure in figures(contest) {
                serde_json::to_writer(&mut out, &figure)?;
                writeln!(out)?;
            }
        } else {
            writeln!(out, "{}", table(contest))?;
        }
        Ok(out.flush()?)
    }

    /// A remark for the person, not for the program that reads the JSON.
    pub fn note(&self, remark: &str) {
        if self.json {
            eprintln!("note: {remark}");
        } else {
            println!("note: {remark}\n");
        }
    }

    /// Whether our own contender could not be measured somewhere.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.failed
    }
}

/// One line of JSON: a metric of a bench, of everyone.
#[derive(Debug, Serialize)]
struct Figure<'a> {
    bench: &'a str,
    params: Pairs<'a, Value>,
    metric: &'a str,
    ours: Option<f64>,
    floor: Pairs<'a, f64>,
    peers: Pairs<'a, f64>,
    rounds: usize,
    spread: Option<f64>,
}

/// A JSON object that keeps the order of its fields.
#[derive(Debug)]
struct Pairs<'a, T>(Vec<(&'a str, T)>);

impl<T: Serialize> Serialize for Pairs<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

fn figures(contest: &Contest) -> impl Iterator<Item = Figure<'_>> {
    contest.metrics.iter().filter_map(|metric| {
        let of = |role| {
            Pairs(
                contest
                    .lanes
                    .iter()
                    .filter(|lane| lane.contender.role == role)
                    .filter_map(|lane| {
                        Some((lane.contender.name, round(lane.median(metric.name)?)))
                    })
                    .collect(),
            )
        };
        let reference = reference(contest, metric.name)?;
        Some(Figure {
            bench: contest.bench,
            params: Pairs(contest.params.clone()),
            metric: metric.name,
            ours: of(Role::Ours).0.first().map(|(_, value)| *value),
            floor: of(Role::Floor),
            peers: of(Role::Peer),
            rounds: reference.values(metric.name).len(),
            spread: reference.spread(metric.name).map(round),
        })
    })
}

/// The lane whose rounds and spread are told: ours, or the first one that measured at all.
fn reference<'a>(contest: &'a Contest, metric: &str) -> Option<&'a Lane> {
    let measured = || {
        contest
            .lanes
            .iter()
            .filter(|lane| !lane.values(metric).is_empty())
    };
    measured()
        .find(|lane| lane.contender.role == Role::Ours)
        .or_else(|| measured().next())
}

/// Four significant digits: more would only show noise.
fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10_f64.powf(3.0 - value.abs().log10().floor());
    (value * scale).round() / scale
}

/// The contest as lines of text: a row per contender, a column per metric.
fn table(contest: &Contest) -> String {
    let floor = contest
        .lanes
        .iter()
        .find(|lane| lane.contender.role == Role::Floor && !lane.samples.is_empty());
    let mut heading = vec![contest.title()];
    heading.extend(contest.metrics.iter().map(|metric| metric.title.to_owned()));
    let main = contest.metrics.first();
    if let (Some(main), Some(floor)) = (main, floor) {
        heading.push("spread".to_owned());
        heading.push(format!("{} ÷ {}", main.title, floor.contender.name));
    }
    let mut rows = vec![heading];
    for lane in &contest.lanes {
        let who = match lane.contender.role {
            Role::Ours => lane.contender.name.to_owned(),
            Role::Floor => format!("floor {}", lane.contender.name),
            Role::Peer => format!("peer  {}", lane.contender.name),
        };
        if let Some(failure) = &lane.failure {
            rows.push(vec![format!("{who}: left out, {failure}")]);
            continue;
        }
        let mut row = vec![who];
        row.extend(
            contest
                .metrics
                .iter()
                .map(|metric| cell(lane.median(metric.name))),
        );
        if let (Some(main), Some(floor)) = (main, floor) {
            row.push(
                lane.spread(main.name)
                    .map_or_else(String::new, |spread| format!("{:.0} %", spread * 100.0)),
            );
            row.push(
                lane.ratio(floor, main.name)
                    .map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            );
        }
        rows.push(row);
    }
    aligned(&rows)
}

fn cell(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value >= 1000.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

/// Columns of equal width: the first to the left, the others to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter()
            .filter(|row| row.len() > 1)
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let pad = " ".repeat(width(column).saturating_sub(cell.chars().count()));
            if column == 0 {
                line.push_str(cell);
                line.push_str(&pad);
            } else {
                line.push_str("  ");
                line.push_str(&pad);
                line.push_str(cell);
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contest::{Contender, Metric, Sample};

    async fn contest() -> Contest {
        let metrics = [Metric {
            name: "client_cpu_us_per_op",
            title: "CPU µs",
        }];
        let contenders = [
            Contender::OURS,
            Contender::floor("reqwest"),
            Contender::floor("hyper"),
            Contender::peer("rs-consul"),
        ];
        let mut contest = Contest::new("kv_get", &metrics, contenders).param("concurrency", 64);
        contest
            .run(7, async |contender: &Contender, _| {
                let value = match contender.name {
                    "lictor" => 58.123_4,
                    "reqwest" => 55.8,
                    "hyper" => 36.4,
                    _ => 152.1,
                };
                Ok(Sample::default().with("client_cpu_us_per_op", value))
            })
            .await;
        contest
    }

    #[tokio::test]
    async fn a_figure_is_one_line_in_the_agreed_form() {
        let contest = contest().await;
        let lines: Vec<_> = figures(&contest)
            .map(|figure| serde_json::to_string(&figure).unwrap())
            .collect();
        assert_eq!(
            lines,
            [concat!(
                r#"{"bench":"kv_get","params":{"concurrency":64},"metric":"client_cpu_us_per_op","#,
                r#""ours":58.12,"floor":{"reqwest":55.8,"hyper":36.4},"peers":{"rs-consul":152.1},"#,
                r#""rounds":7,"spread":0.0}"#
            )]
        );
    }

    #[tokio::test]
    async fn a_table_compares_everyone_with_the_first_floor() {
        let table = table(&contest().await);
        let peer = table.lines().find(|line| line.starts_with("peer")).unwrap();
        assert!(peer.ends_with("2.73"), "{table}");
    }
}
