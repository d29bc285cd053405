//! `clean_handover`: from the release being called until the one that waits holds.
//!
//! Two that have connections and sessions of their own take turns in one process: while one holds,
//! the other waits.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Outcome;
use crate::contest::{Contender, Contest, OURS, Sample};
use crate::coordination::job::Job;
use crate::coordination::subject::{self, ByHand, Ours, OursAlone, Raw, Subject};
use crate::coordination::{HAND_OVER, Stage, percentiles};
use crate::load::micros;
use crate::{peers, usage};

pub(super) const BENCH: &str = "clean_handover";

/// Hand-overs that are not measured: connections are opened by them.
const WARM_UP: u64 = 3;

pub(super) async fn run(stage: &mut Stage) -> Outcome<()> {
    let quick = stage.args.quick;
    for own_lease in [false, true] {
        let mut contenders = vec![Contender::OURS, Contender::floor(subject::REQWEST)];
        if !own_lease {
            contenders.push(Contender::floor(subject::HYPER));
            contenders.extend(stage.peers(&[peers::RS_CONSUL, peers::CONSULRS, peers::GO]));
        }
        let lease = if own_lease { "own" } else { "kept" };
        let mut contest = Contest::new(BENCH, &HAND_OVER, contenders).param("lease", lease);
        contest
            .run(stage.args.rounds(), async |contender: &Contender, _| {
                let job = Job {
                    own_lease,
                    at_least: if quick { 20 } else { 150 },
                    hold_ms: 20,
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
        OURS if job.own_lease => contender::<OursAlone>(job).await,
        OURS => contender::<Ours>(job).await,
        subject::REQWEST => contender::<ByHand>(job).await,
        subject::HYPER => contender::<Raw>(job).await,
        #[cfg(feature = "peers")]
        peers::RS_CONSUL => contender::<subject::RsConsul>(job).await,
        #[cfg(feature = "peers")]
        peers::CONSULRS => contender::<subject::Consulrs>(job).await,
        other => Err(format!("{other} does not take part in {BENCH}").into()),
    }
}

async fn contender<S: Subject>(job: &Job) -> Outcome<Sample> {
    let mut holder = S::connect(&job.address).await?;
    let mut next = S::connect(&job.address).await?;
    let mut guard = holder.lock(&job.key).await?;
    let mut waiting = JoinSet::new();
    let mut times = Vec::new();
    let mut cpu = usage::cpu_time();
    for turn in 0..WARM_UP + job.at_least {
        if turn == WARM_UP {
            times.clear();
            cpu = usage::cpu_time();
        }
        let key = job.key.clone();
        waiting.spawn(async move {
            let guard = next.lock(&key).await;
            (Instant::now(), next, guard)
        });
        // It has asked, and waits, by then; nobody's answer can tell that it does.
        tokio::time::sleep(Duration::from_millis(job.hold_ms)).await;
        let released = Instant::now();
        holder.unlock(guard).await?;
        let (held, holds, taken) = waiting.join_next().await.ok_or("nobody waits")??;
        times.push(micros(held.saturating_duration_since(released)));
        guard = taken?;
        next = std::mem::replace(&mut holder, holds);
    }
    let cpu = usage::cpu_time().saturating_sub(cpu);
    holder.unlock(guard).await?;
    Ok(percentiles(times).with(
        "client_cpu_us_per_handover",
        micros(cpu) / job.at_least.max(1) as f64,
    ))
}
