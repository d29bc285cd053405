//! The task that runs probes.

use std::cmp::Reverse;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::{Health, Probe, cut, shortened};
use crate::api::health::Status;
use crate::proto::hysteresis::Hysteresis;
use crate::task::{Crew, StopSignal};

/// What all probes together say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) status: Status,
    pub(crate) output: Arc<str>,
}

/// Runs probes, each in its turn, until it is told to stop.
pub(crate) struct Rounds {
    runtime: Handle,
    probes: Vec<Watched>,
    tell: watch::Sender<Option<Verdict>>,
}

/// A probe, and what is known by it.
struct Watched {
    probe: Probe,
    rule: Hysteresis<Status>,
    told: Option<Status>,
    /// The last finding that was as what is told.
    output: Arc<str>,
    next: Instant,
    running: Option<Running>,
}

struct Running {
    /// When it has failed, although it has not come back.
    late: Instant,
    is_late: bool,
}

/// How long after its deadline a run may come back: it ends by itself, unless its thread is held up.
const MARGIN: Duration = Duration::from_millis(100);

/// The longest text that is told, in bytes: Consul keeps 4 KiB, unless a check says otherwise.
const MOST: usize = 3_072;

impl Rounds {
    /// What is told is nothing until each probe has had its first result.
    pub(crate) fn new(
        runtime: Handle,
        probes: Vec<Probe>,
    ) -> (Self, watch::Receiver<Option<Verdict>>) {
        let (tell, told) = watch::channel(None);
        let now = Instant::now();
        let probes = probes.into_iter().map(|probe| Watched {
            rule: Hysteresis::new(probe.failures, probe.successes),
            told: None,
            output: "".into(),
            next: now,
            running: None,
            probe,
        });
        let probes = probes.collect();
        let rounds = Self {
            runtime,
            probes,
            tell,
        };
        (rounds, told)
    }

    pub(crate) async fn run(mut self, mut stop: StopSignal) {
        let (found, mut finds) = mpsc::unbounded_channel();
        let mut crew = Crew::new();
        loop {
            let now = Instant::now();
            for at in 0..self.probes.len() {
                self.start_if_due(at, now, &mut crew, &found);
            }
            self.publish();
            let wake = self.probes.iter().map(Watched::wake).min();
            let wake = wake.unwrap_or_else(|| now + Duration::from_secs(3_600));
            tokio::select! {
                biased;
                _ = stop.recv() => break,
                Some((at, health)) = finds.recv() => self.take(at, &health),
                () = sleep_until(wake) => self.miss(Instant::now()),
            }
        }
        crew.end().await;
    }

    fn start_if_due(
        &mut self,
        at: usize,
        now: Instant,
        crew: &mut Crew<()>,
        found: &mpsc::UnboundedSender<(usize, Health)>,
    ) {
        let Some(watched) = self.probes.get_mut(at) else {
            return;
        };
        if watched.running.is_some() || watched.next > now {
            return;
        }
        let deadline = watched.probe.deadline_or_default();
        watched.running = Some(Running {
            late: now + deadline + MARGIN,
            is_late: false,
        });
        // Turns that were missed are not made up for.
        watched.next = now + watched.probe.interval;
        let run = Arc::clone(&watched.probe.run);
        let found = found.clone();
        crew.start_on(&self.runtime, async move {
            let health = match timeout(deadline, unharmed(move || run())).await {
                Ok(health) => health,
                Err(_) => Health::critical(format!("not back within {deadline:?}")),
            };
            found.send((at, health)).ok();
        });
    }

    fn take(&mut self, at: usize, health: &Health) {
        if let Some(watched) = self.probes.get_mut(at) {
            let missed = watched.running.take().is_some_and(|run| run.is_late);
            // It was counted already.
            if !missed {
                watched.found(health);
            }
        }
    }

    /// Those that hold up their thread are told to have failed without coming back.
    fn miss(&mut self, now: Instant) {
        for watched in &mut self.probes {
            let Some(running) = &mut watched.running else {
                continue;
            };
            if running.late <= now {
                running.is_late = true;
                running.late = now + watched.probe.interval;
                let deadline = watched.probe.deadline_or_default();
                watched.found(&Health::critical(format!(
                    "not back within {deadline:?}, and holds up its thread"
                )));
            }
        }
    }

    fn publish(&self) {
        let verdict = verdict(&self.probes);
        self.tell.send_if_modified(|told| {
            if *told == verdict {
                return false;
            }
            *told = verdict;
            true
        });
    }
}

impl Watched {
    fn wake(&self) -> Instant {
        self.running.as_ref().map_or(self.next, |run| run.late)
    }

    fn found(&mut self, health: &Health) {
        let status = self.rule.take(health.status());
        if self.told != Some(status) {
            let probe = &self.probe.name;
            let output = health.output();
            if status != Status::Passing {
                tracing::warn!(%probe, %status, output, "probe");
            } else if self.told.is_some() {
                tracing::info!(%probe, %status, "probe");
            }
            self.told = Some(status);
            self.output = health.output.clone();
        } else if status == health.status() && status != Status::Passing {
            self.output = health.output.clone();
        }
    }
}

/// The worst of all, with the names of those that are not well; none before each was seen once.
fn verdict(probes: &[Watched]) -> Option<Verdict> {
    let mut worst = Status::Passing;
    let mut unwell = Vec::new();
    for watched in probes {
        let status = watched.told?;
        worst = worst.max(status);
        if status != Status::Passing {
            unwell.push((status, &watched.probe.name, &watched.output));
        }
    }
    // The worst first; equals as they were given.
    unwell.sort_by_key(|(status, ..)| Reverse(*status));
    let output = match unwell.as_slice() {
        [] => "all probes pass".to_owned(),
        unwell => {
            let texts = unwell.iter().map(|(status, name, output)| {
                let colon = if output.is_empty() { "" } else { ": " };
                format!("{name} ({status}){colon}{output}")
            });
            let texts: Vec<String> = texts.collect();
            cut(&texts.join("; "), MOST)
        }
    };
    Some(Verdict {
        status: worst,
        output: output.into(),
    })
}

/// Runs a probe whose panic is a finding.
async fn unharmed(
    run: impl FnOnce() -> Pin<Box<dyn Future<Output = Health> + Send>> + Send,
) -> Health {
    // What panicked is dropped and not used again.
    let mut future = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(future) => future,
        Err(panic) => return panicked(&*panic),
    };
    std::future::poll_fn(move |cx| {
        let poll = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        poll.unwrap_or_else(|panic| Poll::Ready(panicked(&*panic)))
    })
    .await
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Health {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Health::critical(format!("panicked: {}", shortened(text.unwrap_or("…"))))
}
