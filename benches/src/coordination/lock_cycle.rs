//! `lock_cycle`: take a key that nobody wants and release it, on a session that is kept.

use std::time::Duration;

use crate::Outcome;
use crate::contest::{Contender, Contest, Metric, OURS, Sample};
use crate::coordination::Stage;
use crate::coordination::job::Job;
use crate::coordination::subject::{self, ByHand, Ours, Raw, Subject};
use crate::load::{self, Operation, Window};
use crate::peers;
use crate::tap::Tap;

pub(super) const BENCH: &str = "lock_cycle";

const METRICS: [Metric; 5] = [
    Metric {
        name: "client_cpu_us_per_op",
        title: "CPU µs/cycle",
    },
    Metric {
        name: "ops_per_s",
        title: "cycles/s",
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
        name: REQUESTS,
        title: "requests",
    },
];

/// Requests for keys and for sessions, as they pass the wire.
const REQUESTS: &str = "requests_per_op";

/// Cycles by which requests are counted, once per contest.
const COUNTED: u64 = 100;

pub(super) async fn run(stage: &mut Stage) -> Outcome<()> {
    let quick = stage.args.quick;
    for concurrency in [1, 16_u64] {
        let mut contenders = vec![
            Contender::OURS,
            Contender::floor(subject::REQWEST),
            Contender::floor(subject::HYPER),
        ];
        contenders.extend(stage.peers(&[peers::RS_CONSUL, peers::CONSULRS, peers::GO]));
        let mut contest =
            Contest::new(BENCH, &METRICS, contenders).param("concurrency", concurrency);
        contest
            .run(stage.args.rounds(), async |contender: &Contender, round| {
                let job = Job {
                    concurrency: usize::try_from(concurrency)?,
                    warm_up_ms: if quick { 60 } else { 300 },
                    measured_ms: if quick { 300 } else { 1_500 },
                    at_least: 20 * concurrency,
                    ..stage.job(BENCH, contender)
                };
                let sample = stage.measure(&job).await?;
                if round > 0 || concurrency > 1 {
                    return Ok(sample);
                }
                Ok(sample.with(REQUESTS, requests(stage, contender).await?))
            })
            .await;
        stage.report.show(&contest)?;
    }
    Ok(())
}

/// Requests per cycle, counted on the wire in a run of their own.
async fn requests(stage: &Stage, contender: &Contender) -> Outcome<f64> {
    let tap = Tap::start(stage.consul.socket_address()).await?;
    let job = Job {
        address: tap.address(),
        concurrency: 1,
        at_least: COUNTED,
        ..stage.job(BENCH, contender)
    };
    stage.measure(&job).await?;
    Ok(tap.counts().requests_of_locks as f64 / COUNTED as f64)
}

pub(super) async fn measure(job: &Job) -> Outcome<Sample> {
    match job.contender.as_str() {
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
    let first = S::connect(&job.address).await?;
    let mut loops = (0..job.concurrency).map(|number| Loop {
        subject: first.another(),
        key: format!("{}/{number:02}", job.key),
    });
    if job.measured_ms == 0 {
        let mut only = loops.next().ok_or("no loop")?;
        let measured = load::one_after_the_other(&mut only, job.at_least, 0).await?;
        return Ok(measured.sample());
    }
    let window = Window {
        warm_up: Duration::from_millis(job.warm_up_ms),
        measured: Duration::from_millis(job.measured_ms),
        at_least: job.at_least,
    };
    Ok(load::closed_loop(loops.collect(), window).await?.sample())
}

struct Loop<S> {
    subject: S,
    key: String,
}

impl<S: Subject> Operation for Loop<S> {
    async fn run(&mut self, _: u64) -> Outcome<()> {
        let guard = self.subject.lock(&self.key).await?;
        self.subject.unlock(guard).await
    }
}
