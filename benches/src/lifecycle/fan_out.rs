//! `fan_out`: a thousand readers of one watch, one of them slow: what is on the wire, and how late
//! the last of them hears of a change.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::{Job, MODE, Stage, quantile};
use crate::contest::{Contender, Contest, Metric, Sample};
use crate::{Outcome, worker};

pub(super) const BENCH: &str = "fan_out";

/// The same with one reader: what a change takes anyway.
const ALONE: &str = "one reader";

const METRICS: [Metric; 4] = [
    Metric {
        name: "p50_us",
        title: "last one p50 µs",
    },
    Metric {
        name: "p99_us",
        title: "p99 µs",
    },
    Metric {
        name: "queries_per_change",
        title: "queries/change",
    },
    Metric {
        name: "connections",
        title: "connections",
    },
];

pub(super) async fn run(stage: &mut Stage) -> Outcome<()> {
    let readers = 1_000_u64;
    let rounds = stage.args.rounds();
    let changes = if stage.args.quick { 50 } else { 200 };
    let contenders = [Contender::OURS, Contender::floor(ALONE)];
    let mut contest = Contest::new(BENCH, &METRICS, contenders).param("readers", readers);
    let measured = async |contender: &Contender, _round: usize| -> Outcome<Sample> {
        let (mut job, tap) = stage.job(BENCH, contender.name).await?;
        job.count = match contender.name {
            ALONE => 1,
            _ => usize::try_from(readers)?,
        };
        job.measured = changes;
        let sample = worker::measure(&stage.program, MODE, &job).await?;
        let passed = tap.counts();
        let per_change = passed.requests as f64 / changes as f64;
        Ok(sample
            .with("queries_per_change", per_change)
            .with("connections", passed.connections as f64))
    };
    contest.run(rounds, measured).await;
    stage.report.show(&contest)
}

const SOON: Duration = Duration::from_secs(30);

/// Slower than any change follows on the other.
const SLOW: Duration = Duration::from_millis(500);

pub(super) async fn measure(job: &Job) -> Outcome<Sample> {
    let client = job.client()?;
    let key = format!("bench/{}", job.name);
    client.kv().put(&*key, "0").await?;
    let watch = client.kv().get(&*key).watch()?;
    watch.ready().await?;
    let heard = Arc::new((AtomicUsize::new(0), Notify::new()));
    let mut readers = JoinSet::new();
    for _ in 0..job.count {
        let (mut watch, heard) = (watch.clone(), Arc::clone(&heard));
        // It has seen what is there.
        watch.changed().await?;
        let count = job.count;
        readers.spawn(async move {
            while watch.changed().await.is_ok() {
                if heard.0.fetch_add(1, Ordering::AcqRel) + 1 == count {
                    heard.1.notify_one();
                }
            }
        });
    }
    let mut slow = watch.clone();
    readers.spawn(async move {
        while slow.changed().await.is_ok() {
            sleep(SLOW).await;
        }
    });
    let mut late = Vec::new();
    for number in 1..=job.measured {
        heard.0.store(0, Ordering::Release);
        let start = Instant::now();
        client.kv().put(&*key, number.to_string()).await?;
        timeout(SOON, heard.1.notified()).await?;
        late.push(start.elapsed().as_secs_f64() * 1e6);
        // The watch is allowed ten requests a second in the long run.
        sleep(Duration::from_millis(110)).await;
    }
    readers.shutdown().await;
    client.kv().delete(&*key).await?;
    Ok(Sample::default()
        .with("p50_us", quantile(late.clone(), 0.5))
        .with("p99_us", quantile(late, 0.99)))
}
