//! `health_query`: one query of all instances of a service after the other, from the canned server.

use crate::Outcome;
use crate::contest::{Contender, Contest, Metric, OURS, Sample};
use crate::control_plane::Stage;
use crate::control_plane::job::Job;
use crate::control_plane::subject::{self, ByHand, Fetch, Health, Ours};
use crate::load::{self, Operation};
use crate::usage::{Allocations, Heap, Memory};

pub(super) const BENCH: &str = "health_query";

const METRICS: [Metric; 6] = [
    Metric {
        name: "client_cpu_us_per_op",
        title: "CPU µs/query",
    },
    Metric {
        name: "p50_us",
        title: "p50 µs",
    },
    Metric {
        name: "peak_heap_kib",
        title: "heap KiB",
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
        name: "allocations_per_op",
        title: "allocations",
    },
];

pub(super) async fn run(stage: &mut Stage) -> Outcome<()> {
    let quick = stage.args.quick;
    for instances in [10, 100, 1_000, 10_000_u64] {
        let mut contenders = vec![
            Contender::OURS,
            Contender::floor("serde_json"),
            Contender::floor("fetch"),
        ];
        contenders.extend(subject::peers(
            stage,
            &[subject::RS_CONSUL, subject::CONSULRS, subject::GO],
        ));
        let mut contest = Contest::new(BENCH, &METRICS, contenders).param("instances", instances);
        contest
            .run(stage.args.rounds(), async |contender: &Contender, _| {
                let job = Job {
                    bench: BENCH.to_owned(),
                    contender: contender.name.to_owned(),
                    address: stage.canned.address().to_owned(),
                    service: format!("fixed-{instances}"),
                    warm_up_ms: if quick { 20 } else { 150 },
                    measured_ms: if quick { 100 } else { 600 },
                    at_least: if quick { 1 } else { 3 },
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
        "serde_json" => contender::<ByHand>(job).await,
        "fetch" => contender::<Fetch>(job).await,
        #[cfg(feature = "peers")]
        subject::RS_CONSUL => contender::<subject::RsConsul>(job).await,
        #[cfg(feature = "peers")]
        subject::CONSULRS => contender::<subject::Consulrs>(job).await,
        other => Err(format!("{other} does not take part in {BENCH}").into()),
    }
}

async fn contender<S: Health>(job: &Job) -> Outcome<Sample> {
    let heap = Heap::read();
    let subject = S::connect(&job.address).await?;
    let expected = job.service.rsplit('-').next().ok_or("no size")?.parse()?;
    let mut query = Query {
        subject,
        service: job.service.clone(),
        expected,
    };
    let before = Memory::read()?;
    load::one_after_the_other(&mut query, 1, job.warm_up_ms).await?;
    let allocated = Allocations::read();
    let measured = load::one_after_the_other(&mut query, job.at_least, job.measured_ms).await?;
    let allocated = Allocations::read().since(allocated);
    let after = Memory::read()?;
    let heap = Heap::read().peak.saturating_sub(heap.now);
    Ok(Sample::default()
        .with("client_cpu_us_per_op", measured.cpu_us_per_op())
        .with("p50_us", measured.latency_us(0.5))
        .with("peak_heap_kib", heap as f64 / 1024.0)
        .with("peak_rss_mib", after.peak_mib)
        .with("peak_growth_mib", after.peak_mib - before.resident_mib)
        .with(
            "allocations_per_op",
            allocated.count as f64 / measured.operations.max(1) as f64,
        ))
}

struct Query<S> {
    subject: S,
    service: String,
    expected: usize,
}

impl<S: Health> Operation for Query<S> {
    async fn run(&mut self, _: u64) -> Outcome<()> {
        match self.subject.health(&self.service).await? {
            None => Ok(()),
            Some(instances) if instances == self.expected => Ok(()),
            Some(instances) => Err(format!("{instances} instances").into()),
        }
    }
}
