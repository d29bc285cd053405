//! `calls`: calls over ten backends, by our channel, by hand and by tower's balancer.

use std::time::Duration;

use crate::Outcome;
use crate::contest::{Contender, Contest, Metric, Sample};
use crate::load::{self, Operation, Window};
use crate::usage::Allocations;

use super::caller::Caller;
use super::{ALLOCATIONS, Job, PEAK_EWMA, PENDING, ROUND_ROBIN, Stage, TOWER_BUFFER};

pub(super) const NAME: &str = "calls";

const CONCURRENCY: u64 = 64;

pub(super) const METRICS: [Metric; 6] = [
    Metric {
        name: "client_cpu_us_per_op",
        title: "CPU µs/op",
    },
    Metric {
        name: "ops_per_s",
        title: "ops/s",
    },
    Metric {
        name: "p50_us",
        title: "p50 µs",
    },
    Metric {
        name: "p99_us",
        title: "p99 µs",
    },
    Metric {
        name: "p999_us",
        title: "p99.9 µs",
    },
    Metric {
        name: ALLOCATIONS,
        title: "allocs/op",
    },
];

pub(super) async fn run(stage: &mut Stage) -> Outcome<()> {
    let fleet = super::quick_fleet(stage).await?;
    for policy in [PEAK_EWMA, PENDING] {
        let contenders = [
            Contender::OURS,
            Contender::floor(ROUND_ROBIN),
            Contender::peer(TOWER_BUFFER),
        ];
        let mut contest = Contest::new(NAME, &METRICS, contenders)
            .param("policy", policy)
            .param("concurrency", CONCURRENCY)
            .param("backends", u64::try_from(fleet.addresses.len())?);
        contest
            .run(stage.args.rounds(), async |contender: &Contender, _| {
                let job = Job {
                    bench: NAME.to_owned(),
                    policy: policy.to_owned(),
                    backends: fleet.addresses.clone(),
                    ..closed_loop(stage, CONCURRENCY)?
                };
                stage.measure_and_count(contender, job).await
            })
            .await;
        stage.report.show(&contest)?;
    }
    Ok(())
}

/// How long so many loops run.
pub(super) fn closed_loop(stage: &Stage, concurrency: u64) -> Outcome<Job> {
    let quick = stage.args.quick;
    Ok(Job {
        concurrency: usize::try_from(concurrency)?,
        warm_up_ms: if quick { 200 } else { 500 },
        measured_ms: if quick { 800 } else { 2_000 },
        ..Job::default()
    })
}

pub(super) async fn measure(job: &Job) -> Outcome<Sample> {
    let caller = Caller::new(&job.contender, &job.policy, &job.backends).await?;
    let window = |warm_up, measured| Window {
        warm_up: Duration::from_millis(warm_up),
        measured: Duration::from_millis(measured),
        at_least: 0,
    };
    let loops = || (0..job.concurrency).map(|_| caller.clone()).collect();
    // Connections are opened before anything is counted.
    load::closed_loop(loops(), window(0, job.warm_up_ms)).await?;
    let before = Allocations::read();
    let measured = load::closed_loop(loops(), window(0, job.measured_ms)).await?;
    let allocated = Allocations::read().since(before);
    let per_op = allocated.count as f64 / measured.operations.max(1) as f64;
    Ok(measured
        .sample()
        .with("p999_us", measured.latency_us(0.999))
        .with(ALLOCATIONS, per_op))
}

impl Operation for Caller {
    async fn run(&mut self, _turn: u64) -> Outcome<()> {
        self.get().await.map(drop)
    }
}
