//! `crash_handover`: the holder's process is killed; when does the one that waits hold?
//!
//! Several pairs of processes, each for a key of its own, because it takes real seconds. They are
//! killed at different moments, because what counts is how long ago the last sign of life was.

use std::io::Write;
use std::time::Duration;

use lictor::Client;
use lictor::coordination::Profile;
use tokio::task::JoinSet;

use crate::Outcome;
use crate::contest::{Contender, Contest, Metric, OURS, Sample};
use crate::coordination::job::{self, Job};
use crate::coordination::{Stage, end_sessions, quantile};
use crate::peers;
use crate::usage::monotonic_nanos;
use crate::worker::{Worker, input_ended};

pub(super) const BENCH: &str = "crash_handover";

/// A profile, and how long others wait at most after a crash, as its documentation says.
const PROFILES: [(&str, f64); 3] = [("balanced", 29.6), ("fast", 5.8), ("aggressive", 2.0)];

const METRICS: [Metric; 3] = [
    Metric {
        name: "crash_to_held_s",
        title: "crash→held s",
    },
    Metric {
        name: "worst_s",
        title: "worst s",
    },
    Metric {
        name: "budget_s",
        title: "budget s",
    },
];

/// Pairs that are measured at the same time.
const PAIRS: u32 = 6;

/// The kills are spread over so long: longer than the longest pause between two signs of life.
const SPREAD: Duration = Duration::from_millis(3_500);

/// From a contender that begins to wait until it does.
const SETTLED: Duration = Duration::from_millis(500);

/// The longest that anybody is waited for: the Go client needs up to 50 s.
const PATIENCE: Duration = Duration::from_secs(90);

/// The roles of a pair.
const HOLDER: &str = "holder";
const CONTENDER: &str = "contender";

pub(super) async fn run(stage: &mut Stage) -> Outcome<()> {
    let rounds = if stage.args.quick { 1 } else { 3 };
    let this = &*stage;
    // All at the same time: they do nothing but wait.
    let [balanced, fast, aggressive] = PROFILES.map(|profile| contest(this, profile, rounds));
    let contests = tokio::join!(balanced, fast, aggressive);
    end_sessions(&stage.consul.address()).await?;
    for contest in <[Contest; 3]>::from(contests) {
        stage.report.show(&contest)?;
    }
    Ok(())
}

async fn contest(stage: &Stage, (profile, budget): (&'static str, f64), rounds: usize) -> Contest {
    let mut contenders = vec![Contender::OURS];
    if profile == "balanced" && !stage.args.quick {
        contenders.extend(stage.peers(&[peers::GO]));
    }
    let mut contest = Contest::new(BENCH, &METRICS, contenders).param("profile", profile);
    contest
        .run(rounds, async |contender: &Contender, _| {
            let job = Job {
                profile: profile.to_owned(),
                ..stage.job(BENCH, contender)
            };
            let mut times = all_pairs(stage, &job).await?;
            times.sort_unstable_by(f64::total_cmp);
            let sample = Sample::default()
                .with("crash_to_held_s", quantile(&times, 0.5))
                .with("worst_s", quantile(&times, 1.0));
            Ok(match contender.name {
                OURS => sample.with("budget_s", budget),
                // Nothing is promised by it.
                _ => sample,
            })
        })
        .await;
    contest
}

/// From the kill until the other one of the pair holds, of each pair, in seconds.
async fn all_pairs(stage: &Stage, job: &Job) -> Outcome<Vec<f64>> {
    let mut pairs = JoinSet::new();
    for number in 0..PAIRS {
        let job = Job {
            key: format!("{}/{number}", job.key),
            ..job.clone()
        };
        let program = stage.program_of(&job.contender)?.to_owned();
        let after = SETTLED + SPREAD * number / PAIRS;
        pairs.spawn(async move { pair(&program, job, after).await });
    }
    let mut times = Vec::new();
    while let Some(time) = pairs.join_next().await {
        times.push(time??);
    }
    Ok(times)
}

async fn pair(program: &std::path::Path, job: Job, after: Duration) -> Outcome<f64> {
    let role = |role: &str| Job {
        role: role.to_owned(),
        ..job.clone()
    };
    let mut holder = Worker::with_job(program, job::MODE, &role(HOLDER))?;
    said(&mut holder).await?;
    let mut contender = Worker::with_job(program, job::MODE, &role(CONTENDER))?;
    said(&mut contender).await?;
    tokio::time::sleep(after).await;
    let killed = monotonic_nanos();
    holder.kill().await?;
    let held: u64 = said(&mut contender).await?.parse()?;
    contender.end().await?;
    if held <= killed {
        return Err("both held".into());
    }
    Ok(Duration::from_nanos(held - killed).as_secs_f64())
}

async fn said(worker: &mut Worker) -> Outcome<String> {
    let line = tokio::time::timeout(PATIENCE, worker.line()).await;
    line.map_err(|_| "nobody holds after a minute and a half")?
}

/// Is the worker: it holds until it is killed, or says that it waits and then when it holds.
pub(super) async fn measure(job: &Job) -> Outcome<()> {
    if job.contender != OURS {
        return Err(format!("{} does not take part in {BENCH}", job.contender).into());
    }
    let profile = match job.profile.as_str() {
        "balanced" => Profile::balanced(),
        "fast" => Profile::fast(),
        "aggressive" => Profile::aggressive(),
        other => return Err(format!("no profile {other}").into()),
    };
    let client = Client::builder().address(&job.address).build()?;
    let lock = client.lock(job.key.as_str()).profile(profile);
    if job.role == CONTENDER {
        say(0)?;
    }
    let guard = lock.acquire().await?;
    say(monotonic_nanos())?;
    input_ended().await;
    guard.release().await?;
    Ok(())
}

/// A line at once: standard output is a pipe.
fn say(number: u64) -> Outcome<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{number}")?;
    Ok(out.flush()?)
}
