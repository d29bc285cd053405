//! A closed loop: so many operations at a time, each followed by the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::contest::Sample;
use crate::{Outcome, usage};

/// What one of the concurrent loops repeats.
pub trait Operation: Send + 'static {
    /// Runs once; `turn` counts up from 0.
    fn run(&mut self, turn: u64) -> impl Future<Output = Outcome<()>> + Send;
}

/// How long to run.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Not measured: connections are opened, caches filled.
    pub warm_up: Duration,
    /// Measured.
    pub measured: Duration,
    /// It is measured for longer until so many operations have ended, but at most
    /// [`PATIENCE`] times as long.
    pub at_least: u64,
}

/// How much longer than asked a window may be on a machine that is busy with something else.
pub const PATIENCE: u32 = 10;

/// Every loop has warmed up when it has run so often: its connection is open then.
const WARM: u64 = 3;

/// What ran within the measured part of the window.
#[derive(Debug)]
pub struct Measured {
    /// Operations that ended in it.
    pub operations: u64,
    /// How long it really was.
    pub wall: Duration,
    /// CPU time of the process in it.
    pub cpu: Duration,
    /// Sorted latencies of the operations that ended in it.
    latencies: Vec<Duration>,
}

const WARM_UP: u8 = 0;
const MEASURED: u8 = 1;
const OVER: u8 = 2;

#[derive(Debug, Default)]
struct Progress {
    phase: AtomicU8,
    /// Loops that have warmed up.
    warm: AtomicUsize,
    /// Operations that ended in the measured phase.
    operations: AtomicU64,
}

/// Runs each of the operations in a loop of its own, all at the same time.
///
/// # Errors
/// The first error of an operation ends the run.
pub async fn closed_loop<O: Operation>(operations: Vec<O>, window: Window) -> Outcome<Measured> {
    let progress = Arc::new(Progress::default());
    let count = operations.len();
    let mut loops: JoinSet<Outcome<Vec<Duration>>> = operations
        .into_iter()
        .map(|operation| repeat(operation, Arc::clone(&progress)))
        .collect();

    let stopwatch = async {
        tokio::time::sleep(window.warm_up).await;
        until(window.measured * PATIENCE, || {
            progress.warm.load(Ordering::Relaxed) == count
        })
        .await;
        let (cpu, start) = (usage::cpu_time(), Instant::now());
        progress.phase.store(MEASURED, Ordering::Relaxed);
        tokio::time::sleep(window.measured).await;
        until(window.measured * PATIENCE, || {
            progress.operations.load(Ordering::Relaxed) >= window.at_least
        })
        .await;
        progress.phase.store(OVER, Ordering::Relaxed);
        (usage::cpu_time().saturating_sub(cpu), start.elapsed())
    };
    tokio::pin!(stopwatch);
    let mut times = None;
    let mut latencies = Vec::new();
    loop {
        tokio::select! {
            measured = &mut stopwatch, if times.is_none() => times = Some(measured),
            ended = loops.join_next() => match ended {
                Some(ended) => latencies.extend(ended??),
                None => break,
            },
        }
    }
    let (cpu, wall) = times.ok_or("the operations ended before their time")?;
    latencies.sort_unstable();
    Ok(Measured {
        operations: latencies.len() as u64,
        wall,
        cpu,
        latencies,
    })
}

async fn until(at_most: Duration, reached: impl Fn() -> bool) {
    let deadline = Instant::now() + at_most;
    while !reached() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn repeat<O: Operation>(mut operation: O, progress: Arc<Progress>) -> Outcome<Vec<Duration>> {
    let mut latencies = Vec::new();
    for turn in 0.. {
        let start = Instant::now();
        operation.run(turn).await?;
        if turn + 1 == WARM {
            progress.warm.fetch_add(1, Ordering::Relaxed);
        }
        match progress.phase.load(Ordering::Relaxed) {
            WARM_UP => {}
            MEASURED => {
                latencies.push(start.elapsed());
                progress.operations.fetch_add(1, Ordering::Relaxed);
            }
            _ => break,
        }
    }
    Ok(latencies)
}

/// Runs one operation after the other, at least so many and for at least so long.
///
/// For operations that take long, where a window of time would cut one in two.
///
/// # Errors
/// The first error of an operation.
pub async fn one_after_the_other(
    operation: &mut impl Operation,
    at_least: u64,
    milliseconds: u64,
) -> Outcome<Measured> {
    let duration = Duration::from_millis(milliseconds);
    let mut latencies = Vec::new();
    let (cpu, start) = (usage::cpu_time(), Instant::now());
    for turn in 0.. {
        if turn >= at_least && start.elapsed() >= duration {
            break;
        }
        let start = Instant::now();
        operation.run(turn).await?;
        latencies.push(start.elapsed());
    }
    let (cpu, wall) = (usage::cpu_time().saturating_sub(cpu), start.elapsed());
    latencies.sort_unstable();
    Ok(Measured {
        operations: latencies.len() as u64,
        wall,
        cpu,
        latencies,
    })
}

impl Measured {
    /// CPU time of this process per operation, in microseconds.
    #[must_use]
    pub fn cpu_us_per_op(&self) -> f64 {
        micros(self.cpu) / self.operations.max(1) as f64
    }

    /// Operations per second.
    #[must_use]
    pub fn ops_per_s(&self) -> f64 {
        self.operations as f64 / self.wall.as_secs_f64()
    }

    /// The latency that this part of the operations did not exceed, in microseconds.
    #[must_use]
    pub fn latency_us(&self, part: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let index = (last as f64 * part).round() as usize;
        self.latencies.get(index).copied().map_or(0.0, micros)
    }

    /// `ops_per_s`, `p50_us`, `p99_us` and `client_cpu_us_per_op`.
    #[must_use]
    pub fn sample(&self) -> Sample {
        Sample::default()
            .with("client_cpu_us_per_op", self.cpu_us_per_op())
            .with("ops_per_s", self.ops_per_s())
            .with("p50_us", self.latency_us(0.5))
            .with("p99_us", self.latency_us(0.99))
    }
}

/// The duration in microseconds.
#[must_use]
pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pause(Duration);

    impl Operation for Pause {
        async fn run(&mut self, _: u64) -> Outcome<()> {
            tokio::time::sleep(self.0).await;
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_window_lasts_until_enough_operations_have_ended() {
        let window = Window {
            warm_up: Duration::ZERO,
            measured: Duration::from_millis(20),
            at_least: 12,
        };
        let pauses = [
            Pause(Duration::from_millis(10)),
            Pause(Duration::from_millis(10)),
        ];
        let measured = closed_loop(pauses.into(), window).await.unwrap();
        assert!(measured.operations >= 12, "{measured:?}");
        assert!(measured.latency_us(0.5) >= 10_000.0, "{measured:?}");
    }
}
