//! `herd`: a hundred that want one lock, each with connections and a session of its own.
//!
//! Whoever has held stands in line again as soon as somebody else holds, so that there are always
//! as many. What they write is counted by the servers: their Raft index moves by each write, and by
//! each try that was too late.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{Barrier, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Outcome;
use crate::contest::{Contender, Contest, Metric, OURS, Sample};
use crate::coordination::job::Job;
use crate::coordination::subject::{self, ByHand, Ours, OursFair, Subject};
use crate::coordination::{HAND_OVER, Stage, percentiles};
use crate::load::micros;
use crate::{peers, usage};

pub(super) const BENCH: &str = "herd";

const CONTENDERS: usize = 100;

/// Hand-overs that are not measured: connections are opened by them, and races lost.
const WARM_UP: u64 = 5;

const WRITES: Metric = Metric {
    name: "writes_per_handover",
    title: "Raft writes",
};

pub(super) async fn run(stage: &mut Stage) -> Outcome<()> {
    let quick = stage.args.quick;
    let rounds = if quick { 3 } else { stage.args.rounds() };
    let [p50, p99, cpu] = HAND_OVER;
    for fair in [false, true] {
        let mut contenders = vec![Contender::OURS, Contender::floor(subject::REQWEST)];
        if !fair {
            contenders.extend(stage.peers(&[peers::CONSULRS, peers::GO]));
        }
        let mut contest = Contest::new(BENCH, &[WRITES, p50, p99, cpu], contenders)
            .param("contenders", CONTENDERS as u64)
            .param("order", if fair { "fair" } else { "any" });
        contest
            .run(rounds, async |contender: &Contender, _| {
                let job = Job {
                    fair,
                    concurrency: CONTENDERS,
                    at_least: if quick { 10 } else { 60 },
                    hold_ms: 50,
                    ..stage.job(BENCH, contender)
                };
                stage.measure(&job).await
            })
            .await;
        stage.report.show(&contest)?;
    }
    Ok(())
}

pub(super) async fn measure(job: &Job) -> Outcome<Sample> {
    match job.contender.as_str() {
        OURS if job.fair => contender::<OursFair>(job).await,
        OURS => contender::<Ours>(job).await,
        subject::REQWEST => contender::<ByHand>(job).await,
        #[cfg(feature = "peers")]
        peers::CONSULRS => contender::<subject::Consulrs>(job).await,
        other => Err(format!("{other} does not take part in {BENCH}").into()),
    }
}

/// What all contenders write on.
#[derive(Debug)]
struct Board {
    /// How often the lock was taken.
    held: watch::Sender<u64>,
    times: Mutex<Times>,
}

#[derive(Debug, Default)]
struct Times {
    released: Option<Instant>,
    hand_overs: Vec<f64>,
}

impl Board {
    fn times(&self) -> MutexGuard<'_, Times> {
        // Whole after every statement.
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody holds since `at`: how often somebody has, with this time.
    fn holds(&self, at: Instant) -> u64 {
        let mut times = self.times();
        if let Some(released) = times.released.take() {
            let hand_over = micros(at.saturating_duration_since(released));
            times.hand_overs.push(hand_over);
        }
        let mut count = 0;
        self.held.send_modify(|held| {
            *held += 1;
            count = *held;
        });
        count
    }
}

async fn contender<S: Subject>(job: &Job) -> Outcome<Sample> {
    let board = Arc::new(Board {
        held: watch::Sender::new(0),
        times: Mutex::default(),
    });
    let ready = Arc::new(Barrier::new(job.concurrency + 1));
    let last = 1 + WARM_UP + job.at_least;
    let mut tasks = JoinSet::new();
    for _ in 0..job.concurrency {
        let subject = S::connect(&job.address).await?;
        let contending = contend(
            subject,
            job.key.clone(),
            Duration::from_millis(job.hold_ms),
            Arc::clone(&board),
            Arc::clone(&ready),
            last,
        );
        tasks.spawn(contending);
    }
    ready.wait().await;
    let mut held = board.held.subscribe();
    // A contender that fails ends the measurement, and none ends before its end.
    let mut reached = async |count| {
        tokio::select! {
            reached = held.wait_for(|held| *held >= count) => reached.map(drop).map_err(Into::into),
            Some(ended) = tasks.join_next() => ended?,
        }
    };
    reached(1 + WARM_UP).await?;
    board.times().hand_overs.clear();
    let (cpu, index) = (usage::cpu_time(), raft_index(&job.address).await?);
    reached(last).await?;
    let writes = raft_index(&job.address).await? - index;
    let cpu = usage::cpu_time().saturating_sub(cpu);
    let times = std::mem::take(&mut board.times().hand_overs);
    tasks.shutdown().await;
    let hand_overs = job.at_least.max(1) as f64;
    Ok(percentiles(times)
        .with(WRITES.name, writes as f64 / hand_overs)
        .with("client_cpu_us_per_handover", micros(cpu) / hand_overs))
}

/// Takes the lock again and again, until it was taken so often.
async fn contend<S: Subject>(
    mut subject: S,
    key: String,
    hold: Duration,
    board: Arc<Board>,
    ready: Arc<Barrier>,
    last: u64,
) -> Outcome<()> {
    ready.wait().await;
    let mut held = board.held.subscribe();
    loop {
        let guard = subject.lock(&key).await?;
        let count = board.holds(Instant::now());
        if count >= last {
            // The measurement is over, and ends all of them.
            return std::future::pending().await;
        }
        tokio::time::sleep(hold).await;
        board.times().released = Some(Instant::now());
        subject.unlock(guard).await?;
        held.wait_for(|held| *held > count).await?;
    }
}

/// How many entries the servers' log has.
async fn raft_index(address: &str) -> Outcome<u64> {
    #[derive(Deserialize)]
    struct Agent {
        #[serde(rename = "Stats")]
        stats: Stats,
    }
    #[derive(Deserialize)]
    struct Stats {
        raft: Raft,
    }
    #[derive(Deserialize)]
    struct Raft {
        applied_index: String,
    }
    let answer = reqwest::get(format!("{address}/v1/agent/self")).await?;
    let agent: Agent = serde_json::from_slice(&answer.error_for_status()?.bytes().await?)?;
    Ok(agent.stats.raft.applied_index.parse()?)
}
