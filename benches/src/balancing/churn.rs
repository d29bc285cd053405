//! `churn`: how long requests wait while endpoints are replaced, all on one thread.

use std::convert::Infallible;
use std::future::{Ready, poll_fn, ready};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use lictor_tower::endpoint::{Endpoint, EndpointSet};
use lictor_tower::layer::Builder;
use lictor_tower::source;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tower::balance::p2c::Balance;
use tower::discover::Change;
use tower::load::PeakEwma;
use tower_service::Service;

use crate::Outcome;
use crate::contest::{Contender, Contest, Metric, Sample};
use crate::load::micros;
use crate::usage;

use super::echo::{self, Ask, Towers};
use super::{Job, PEAK_EWMA, ROUND_ROBIN, Stage, TOWER, nowhere, policy, unknown};

pub(super) const NAME: &str = "churn";

const METRICS: [Metric; 4] = [
    Metric {
        name: "longest_stall_us",
        title: "longest stall µs",
    },
    Metric {
        name: "longest_pick_us",
        title: "longest pick µs",
    },
    Metric {
        name: "cpu_us_per_change",
        title: "CPU µs/change",
    },
    Metric {
        name: "changes",
        title: "changes",
    },
];

pub(super) async fn run(stage: &mut Stage) -> Outcome<()> {
    let sizes: &[u32] = if stage.args.quick {
        &[10, 10_000]
    } else {
        &[10, 100, 1_000, 10_000]
    };
    for whole in [true, false] {
        for &endpoints in sizes {
            let contenders = [
                Contender::OURS,
                Contender::floor(ROUND_ROBIN),
                Contender::peer(TOWER),
            ];
            let replaced = if whole { endpoints } else { 1 };
            let mut contest = Contest::new(NAME, &METRICS, contenders)
                .param("endpoints", u64::from(endpoints))
                .param("replaced", u64::from(replaced));
            contest
                .run(stage.args.rounds(), async |contender: &Contender, _| {
                    let job = Job {
                        bench: NAME.to_owned(),
                        policy: PEAK_EWMA.to_owned(),
                        endpoints,
                        replaced,
                        measured_ms: if stage.args.quick { 200 } else { 600 },
                        ..Job::default()
                    };
                    stage.measure(contender, job).await
                })
                .await;
            stage.report.show(&contest)?;
        }
    }
    Ok(())
}

pub(super) async fn measure(job: Job) -> Outcome<Sample> {
    // One thread, where whoever works holds up all others.
    let measured = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(by_contender(&job))
    });
    measured.await?
}

async fn by_contender(job: &Job) -> Outcome<Sample> {
    let gone = Arc::new(AtomicUsize::new(0));
    match job.contender.as_str() {
        "lictor" => {
            let (feed, source) = source::feed();
            feed.set(members(job, 0)?.into_iter().collect());
            let counter = Arc::clone(&gone);
            let balanced = Builder::new(source)
                .policy(policy(&job.policy))
                .build(move |_| Living::counted(&counter))?;
            balanced.wait_ready().await?;
            let prepare = |series| Ok(members(job, series)?.into_iter().collect());
            churned(job, balanced, &gone, prepare, |set: EndpointSet| {
                feed.set(set);
            })
            .await
        }
        ROUND_ROBIN => {
            let services = |count| (0..count).map(|_| Living::counted(&gone)).collect();
            let list: Vec<Living> = services(job.endpoints);
            let shared = Arc::new(RwLock::new(Arc::from(list)));
            let by_hand = Reread(Arc::clone(&shared), Arc::default());
            let prepare = |_| Ok(());
            churned(job, by_hand, &gone, prepare, |()| {
                let newcomers: Vec<Living> = services(job.replaced);
                let mut list = shared.write().unwrap_or_else(PoisonError::into_inner);
                let stay = list.iter().skip(newcomers.len()).cloned();
                *list = newcomers.iter().cloned().chain(stay).collect();
            })
            .await
        }
        TOWER => {
            let (tell, changes) = mpsc::unbounded_channel();
            let join = |key| Change::Insert(key, echo::by_ewma(Living::counted(&gone)));
            for key in 0..job.endpoints {
                tell.send(join(key))?;
            }
            let balance = Towers(Balance::new(Changes(changes)));
            let prepare = |_| {
                let (leave, join) = (
                    (0..job.replaced).map(Change::Remove),
                    (0..job.replaced).map(join),
                );
                Ok(leave.chain(join).collect())
            };
            churned(job, balance, &gone, prepare, |changes: Vec<_>| {
                for change in changes {
                    tell.send(change).ok();
                }
            })
            .await
        }
        _ => Err(unknown(job)),
    }
}

/// The endpoints, some of them in this series.
fn members(job: &Job, series: u32) -> Outcome<Vec<Endpoint>> {
    let mut members = nowhere(job.endpoints, 0)?;
    let replaced = nowhere(job.replaced, series)?;
    for (place, newcomer) in members.iter_mut().zip(replaced) {
        *place = newcomer;
    }
    Ok(members)
}

/// How many requests there are after a change has come to its end.
const AFTERWARDS: usize = 64;

/// Asks again and again, and each time the last change has come to its end makes the next one.
async fn churned<A: Ask, C>(
    job: &Job,
    mut asker: A,
    gone: &AtomicUsize,
    mut prepare: impl FnMut(u32) -> Outcome<C>,
    mut change: impl FnMut(C),
) -> Outcome<Sample> {
    let mut usual = Vec::new();
    for _ in 0..2_000 {
        usual.push(turn(&mut asker).await?.whole);
    }
    usual.sort_unstable();
    let usual = usual.get(usual.len() / 2).copied().unwrap_or_default();

    let (mut stall, mut pick, mut spent) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let mut changes = 0;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(job.measured_ms) || changes < 5 {
        changes += 1;
        let prepared = prepare(changes)?;
        let wanted = gone.load(Ordering::Relaxed) + usize::try_from(job.replaced)?;
        // What is done at once counts as done while a request waits.
        let before = usage::thread_cpu_time();
        change(prepared);
        let mut handed = Some(usage::thread_cpu_time().saturating_sub(before));
        let mut after = 0;
        let change_begin = Instant::now();
        while after < AFTERWARDS {
            if gone.load(Ordering::Relaxed) >= wanted {
                after += 1;
            } else if change_begin.elapsed() > Duration::from_secs(5) {
                return Err("a change did not come to its end".into());
            }
            let mut turn = turn(&mut asker).await?;
            turn.whole += handed.take().unwrap_or_default();
            stall = stall.max(turn.whole);
            pick = pick.max(turn.pick);
            spent += turn.whole.saturating_sub(usual);
        }
    }
    Ok(Sample::default()
        .with("longest_stall_us", micros(stall))
        .with("longest_pick_us", micros(pick))
        .with("cpu_us_per_change", micros(spent) / f64::from(changes))
        .with("changes", f64::from(changes)))
}

/// CPU time of this thread, so that what else runs on the machine is left out of it.
struct Turn {
    /// Of the request.
    pick: Duration,
    /// From one request to the next: what one that comes in between waits at the most.
    whole: Duration,
}

/// A request, and whatever wants to run after it.
async fn turn(asker: &mut impl Ask) -> Outcome<Turn> {
    let begin = usage::thread_cpu_time();
    asker.ask(0).await?;
    let asked = usage::thread_cpu_time();
    tokio::task::yield_now().await;
    let end = usage::thread_cpu_time();
    Ok(Turn {
        pick: asked.saturating_sub(begin),
        whole: end.saturating_sub(begin),
    })
}

/// A service that says when the last of its clones has gone.
#[derive(Clone)]
struct Living {
    _life: Arc<Life>,
}

struct Life(Arc<AtomicUsize>);

impl Living {
    fn counted(gone: &Arc<AtomicUsize>) -> Self {
        Self {
            _life: Arc::new(Life(Arc::clone(gone))),
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Service<u32> for Living {
    type Response = u32;
    type Error = Infallible;
    type Future = Ready<Result<u32, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, question: u32) -> Self::Future {
        ready(Ok(question))
    }
}

/// What one writes by hand for a list that changes.
struct Reread(Arc<RwLock<Arc<[Living]>>>, Arc<AtomicUsize>);

impl Ask for Reread {
    async fn ask(&mut self, question: u32) -> Outcome<u32> {
        let list = Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner));
        let turn = self.1.fetch_add(1, Ordering::Relaxed);
        let mut service = list.get(turn % list.len()).ok_or("no services")?.clone();
        poll_fn(|cx| service.poll_ready(cx)).await?;
        Ok(service.call(question).await?)
    }
}

/// Changes as tower's balancer follows them.
struct Changes(mpsc::UnboundedReceiver<Change<u32, PeakEwma<Living>>>);

impl Stream for Changes {
    type Item = Result<Change<u32, PeakEwma<Living>>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|change| change.map(Ok))
    }
}
