//! `watch_update`: what it costs to follow a service of 10,000 instances, from the canned server.

use crate::Outcome;
use crate::canned::STILL_PERIOD;
use crate::contest::{Contender, Contest, Metric, OURS, Sample};
use crate::control_plane::Stage;
use crate::control_plane::job::Job;
use crate::control_plane::subject;
use crate::control_plane::subject::{ByHand, Fetch, Follow, Ours};
use crate::load::micros;
use crate::usage::{Allocations, Memory, cpu_time};

pub(super) const BENCH: &str = "watch_update";

const INSTANCES: u64 = 10_000;

const METRICS: [Metric; 5] = [
    Metric {
        name: "client_cpu_us_per_update",
        title: "CPU µs/update",
    },
    Metric {
        name: "peak_rss_mib",
        title: "peak MiB",
    },
    Metric {
        name: "peak_growth_mib",
        title: "growth MiB",
    },
    Metric {
        name: "allocations_per_update",
        title: "allocations",
    },
    Metric {
        name: "allocated_kib_per_update",
        title: "KiB allocated",
    },
];

pub(super) async fn run(stage: &mut Stage) -> Outcome<()> {
    let quick = stage.args.quick;
    for changed in [1, 0] {
        let mut contenders = vec![Contender::OURS, Contender::floor("fetch")];
        if changed > 0 || !quick {
            contenders.push(Contender::floor("decode"));
        }
        if !quick {
            contenders.extend(subject::peers(stage, &[subject::RS_CONSUL, subject::GO]));
        }
        let mut contest = Contest::new(BENCH, &METRICS, contenders)
            .param("instances", INSTANCES)
            .param("changed", changed);
        contest
            .run(stage.args.rounds(), async |contender: &Contender, _| {
                let (service, updates) = match changed {
                    0 => ("still", STILL_PERIOD),
                    _ => ("changing", if quick { 8 } else { 20 }),
                };
                let job = Job {
                    bench: BENCH.to_owned(),
                    contender: contender.name.to_owned(),
                    address: stage.canned.address().to_owned(),
                    service: format!("{service}-{INSTANCES}"),
                    at_least: updates,
                    ..Job::default()
                };
                stage.measure_with_allocations(&job).await
            })
            .await;
        stage.report.show(&contest)?;
    }
    Ok(())
}

pub(super) async fn measure(job: &Job) -> Outcome<Sample> {
    match job.contender.as_str() {
        OURS => contender::<Ours>(job).await,
        "fetch" => contender::<Fetch>(job).await,
        "decode" => contender::<ByHand>(job).await,
        #[cfg(feature = "peers")]
        subject::RS_CONSUL => contender::<subject::RsConsul>(job).await,
        other => Err(format!("{other} does not take part in {BENCH}").into()),
    }
}

async fn contender<S: Follow>(job: &Job) -> Outcome<Sample> {
    let mut subject = S::connect(&job.address).await?;
    let before = Memory::read()?;
    // The first answer is all new; the next brings all buffers to their size.
    subject.next(&job.service).await?;
    let first = subject.next(&job.service).await?.index;
    let (cpu, allocated) = (cpu_time(), Allocations::read());
    // A reader is told of visible changes only, and may be told of two at once: the index counts.
    let mut last = first;
    while last < first + job.at_least {
        last = subject.next(&job.service).await?.index;
    }
    let (cpu, allocated) = (cpu_time() - cpu, Allocations::read().since(allocated));
    let updates = (last - first) as f64;
    let after = Memory::read()?;
    Ok(Sample::default()
        .with("client_cpu_us_per_update", micros(cpu) / updates)
        .with("peak_rss_mib", after.peak_mib)
        .with("peak_growth_mib", after.peak_mib - before.resident_mib)
        .with("allocations_per_update", allocated.count as f64 / updates)
        .with(
            "allocated_kib_per_update",
            allocated.bytes as f64 / 1024.0 / updates,
        ))
}
