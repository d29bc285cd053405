//! `slow_backend`: one of ten backends takes ten times as long as the others.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::Outcome;
use crate::contest::{Contender, Contest, Metric, Sample};

use super::backends::{COUNT, Fleet};
use super::caller::Caller;
use super::{Job, ROUND_ROBIN, Stage, TOWER_BUFFER};

pub(super) const NAME: &str = "slow_backend";

/// The one that is slow, by its number.
const SLOW: u16 = 9;

/// How much slower it is.
const TIMES: u64 = 10;

const METRICS: [Metric; 9] = [
    Metric {
        name: "p99_to_healthy",
        title: "p99 ÷ healthy",
    },
    Metric {
        name: "p50_ms",
        title: "p50 ms",
    },
    Metric {
        name: "p99_ms",
        title: "p99 ms",
    },
    Metric {
        name: "p999_ms",
        title: "p99.9 ms",
    },
    Metric {
        name: "healthy_p99_ms",
        title: "healthy p99",
    },
    Metric {
        name: "healthy_p999_ms",
        title: "p99.9",
    },
    Metric {
        name: "slow_share_percent",
        title: "on slow %",
    },
    Metric {
        name: "above_slow_percent",
        title: "above slow %",
    },
    Metric {
        name: "slow_at_first",
        title: "on slow at first",
    },
];

/// How fast the backends are, and what is sent to them.
struct Scale {
    answer_ms: u64,
    rate: u32,
    measured: Duration,
    /// With less a round would say nothing, and with more it would take too long.
    rounds: usize,
}

fn scales(quick: bool) -> Vec<Scale> {
    let scale = |answer_ms, rate, seconds, rounds| Scale {
        answer_ms,
        rate,
        measured: Duration::from_secs(seconds),
        rounds,
    };
    if quick {
        vec![scale(2, 1_500, 4, 3), scale(20, 1_000, 4, 3)]
    } else {
        vec![
            scale(2, 1_500, 8, 5),
            scale(20, 1_000, 8, 5),
            scale(2_000, 100, 60, 1),
        ]
    }
}

pub(super) async fn run(stage: &mut Stage) -> Outcome<()> {
    if stage.args.quick {
        stage
            .report
            .note("slow_backend with answers after 2 s takes minutes: it is left out by --quick");
    }
    for scale in scales(stage.args.quick) {
        let even = [scale.answer_ms * 1_000; COUNT];
        let mut uneven = even;
        if let Some(slow) = uneven.last_mut() {
            *slow *= TIMES;
        }
        let healthy = Fleet::start(&stage.program, &even).await?;
        let fleet = Fleet::start(&stage.program, &uneven).await?;
        let contenders = [
            Contender::OURS,
            Contender::floor(ROUND_ROBIN),
            Contender::peer(TOWER_BUFFER),
        ];
        let mut contest = Contest::new(NAME, &METRICS, contenders)
            .param("answer_ms", scale.answer_ms)
            .param("rate", u64::from(scale.rate));
        contest
            .run(scale.rounds, async |contender: &Contender, _| {
                let slow_ms = scale.answer_ms * TIMES;
                let job = Job {
                    bench: NAME.to_owned(),
                    backends: fleet.addresses.clone(),
                    healthy: healthy.addresses.clone(),
                    rate: f64::from(scale.rate),
                    // Before the slow one has answered for the first time nobody can know.
                    warm_up_ms: 1_000 + slow_ms * 3 / 2,
                    slow_ms,
                    measured_ms: u64::try_from(scale.measured.as_millis())?,
                    ..Job::default()
                };
                stage.measure(contender, job).await
            })
            .await;
        stage.report.show(&contest)?;
    }
    Ok(())
}

pub(super) async fn measure(job: &Job) -> Outcome<Sample> {
    // At the same time, so that the machine treats both alike.
    let mut runs = JoinSet::new();
    for (number, backends) in (0..).zip([&job.backends, &job.healthy]) {
        let caller = Caller::new(&job.contender, &job.policy, backends).await?;
        let job = job.clone();
        runs.spawn(async move { open_loop(&job, caller, number).await });
    }
    let mut runs = runs
        .join_all()
        .await
        .into_iter()
        .collect::<Outcome<Vec<_>>>()?;
    runs.sort_by_key(|run| run.number);
    let [run, healthy] = runs.as_slice() else {
        return Err("a run is missing".into());
    };
    let slow = run.answers.iter().filter(|answer| answer.backend == SLOW);
    let slowest = Duration::from_millis(job.slow_ms);
    let above = run
        .answers
        .iter()
        .filter(|answer| answer.latency >= slowest);
    let percent = |count: usize| 100.0 * count as f64 / run.answers.len().max(1) as f64;
    Ok(Sample::default()
        .with("p50_ms", run.millis(0.5))
        .with("p99_ms", run.millis(0.99))
        .with("p999_ms", run.millis(0.999))
        .with("healthy_p99_ms", healthy.millis(0.99))
        .with("healthy_p999_ms", healthy.millis(0.999))
        .with("p99_to_healthy", run.millis(0.99) / healthy.millis(0.99))
        .with("slow_share_percent", percent(slow.count()))
        .with("above_slow_percent", percent(above.count()))
        .with("slow_at_first", run.slow_at_first as f64))
}

/// What came of an open loop.
struct Run {
    number: u64,
    /// Sorted by latency.
    answers: Vec<Answer>,
    /// Requests on the slow backend before anything was counted.
    slow_at_first: usize,
}

struct Answer {
    is_counted: bool,
    latency: Duration,
    backend: u16,
}

impl Run {
    /// The latency that this part of the requests did not exceed.
    fn millis(&self, part: f64) -> f64 {
        let last = self.answers.len().saturating_sub(1);
        let index = (last as f64 * part).round() as usize;
        let answer = self.answers.get(index);
        answer.map_or(0.0, |answer| answer.latency.as_secs_f64() * 1e3)
    }
}

/// Sends requests at random moments, so many per second, whatever becomes of them.
async fn open_loop(job: &Job, caller: Caller, number: u64) -> Outcome<Run> {
    let mut draws = Draws(number + 1);
    let begin = Instant::now();
    let counted_from = begin + Duration::from_millis(job.warm_up_ms);
    let end = counted_from + Duration::from_millis(job.measured_ms);
    let mut due = begin;
    let mut calls = JoinSet::new();
    let mut answers: Vec<Answer> = Vec::new();
    loop {
        due += Duration::from_secs_f64(draws.exponential() / job.rate);
        if due >= end {
            break;
        }
        sleep_until(due).await;
        let mut caller = caller.clone();
        let is_counted = due >= counted_from;
        let start = Instant::now();
        calls.spawn(async move {
            let backend = caller.get().await?;
            Outcome::Ok(Answer {
                is_counted,
                latency: start.elapsed(),
                backend,
            })
        });
        while let Some(answer) = calls.try_join_next() {
            answers.push(answer??);
        }
    }
    while let Some(answer) = calls.join_next().await {
        answers.push(answer??);
    }
    let at_first = |answer: &&Answer| !answer.is_counted && answer.backend == SLOW;
    let slow_at_first = answers.iter().filter(at_first).count();
    answers.retain(|answer| answer.is_counted);
    answers.sort_by_key(|answer| answer.latency);
    Ok(Run {
        number,
        answers,
        slow_at_first,
    })
}

/// Random numbers that are the same in every run (splitmix64).
struct Draws(u64);

impl Draws {
    /// The time between two events of a Poisson process that has one per unit of time.
    fn exponential(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        // Above zero and at most one.
        let uniform = ((mixed >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        -uniform.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_a_mean_of_one_and_their_spread() {
        let mut draws = Draws(1);
        let drawn: Vec<f64> = (0..100_000).map(|_| draws.exponential()).collect();
        let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
        let above = drawn.iter().filter(|draw| **draw > 1.0).count() as f64 / drawn.len() as f64;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        // e⁻¹
        assert!((above - 0.368).abs() < 0.01, "{above}");
    }
}
