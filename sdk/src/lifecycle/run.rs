//! The order itself.

use std::fmt::Write;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::shutdown::Progress;
use super::{Cause, Lifecycle, Report, Shutdown, Stage, StageOutcome, StageReport, Step};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::ident::ServiceId;
use crate::registration::{Readiness, Registration};
use crate::task::Chores;

impl Lifecycle {
    /// Runs the work until the process is to end, and then goes through all stages.
    ///
    /// The process is to end when a [signal](Self::shutdown_on_signal) says so, when
    /// [`Shutdown::begin`] is called, or when the work ends by itself; then nobody can be served any
    /// more, and the first three stages are left out. The work is polled until it ends or until
    /// [`Stage::Drain`] is over, at which it is dropped. Its output is there if it has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the work and all that the lifecycle holds; see
    /// [Drop](Self#drop).
    pub async fn run<W>(self, work: W) -> (Report, Option<W::Output>)
    where
        W: IntoFuture<IntoFuture: Send, Output: Send> + Send,
    {
        let mut lifecycle = self;
        let shutdown = lifecycle.shutdown();
        let mut running = Running {
            asker: Asker {
                progress: shutdown.progress(),
                shutdown,
                heard: 0,
            },
            work: Some(Box::pin(work.into_future())),
            output: None,
            cut: false,
            lines: Vec::new(),
        };
        let cause = running.wait().await;
        tracing::info!(%cause, "shutting down");
        if Handle::try_current().is_ok() {
            running.leave(&mut lifecycle, &cause).await;
        } else {
            // Timers and connections need one; what is dropped says goodbye on its own.
            let err: Arc<str> = Error::new(ErrorKind::NoRuntime).to_string().into();
            for stage in Stage::ALL {
                running.line(
                    stage,
                    Instant::now(),
                    StageOutcome::Failed(Arc::clone(&err)),
                );
            }
        }
        let report = Report {
            cause,
            stages: running.lines,
        };
        (report, running.output)
    }
}

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

struct Running<W: Future> {
    asker: Asker,
    work: Option<Pin<Box<W>>>,
    output: Option<W::Output>,
    /// Whether somebody would not wait any longer.
    cut: bool,
    lines: Vec<StageReport>,
}

/// What a stage does, and what is said if it does not come to its end.
struct Doing<'a> {
    work: Work<StageOutcome>,
    late: &'a (dyn Fn() -> Arc<str> + Sync),
}

impl<W: Future<Output: Send> + Send> Running<W> {
    /// Goes on with the work until the process is to end.
    async fn wait(&mut self) -> Cause {
        tokio::select! {
            biased;
            cause = self.asker.asked() => cause,
            output = ended(&mut self.work) => {
                self.ended(output);
                Cause::WorkEnded
            }
        }
    }

    fn ended(&mut self, output: W::Output) {
        self.work = None;
        self.output = Some(output);
    }

    async fn leave(&mut self, lifecycle: &mut Lifecycle, cause: &Cause) {
        if *cause == Cause::WorkEnded {
            for stage in [Stage::Unroutable, Stage::LameDuck, Stage::Drain] {
                self.skip(stage, "the work has ended");
            }
        } else {
            let listed = lifecycle.registrations.iter().map(Listed::of).collect();
            let readiness = lifecycle.readiness();
            let is_registered = !lifecycle.registrations.is_empty();
            let deadline = lifecycle.deadline_of(Stage::Unroutable);
            self.unroutable(listed, readiness, deadline).await;
            let lasts = lifecycle.deadline_of(Stage::LameDuck);
            self.lame_duck(is_registered, lasts).await;
            self.drain(lifecycle.deadline_of(Stage::Drain)).await;
        }
        // Whatever it is doing still: it must not be done without what is given up now.
        self.work = None;
        let steps = std::mem::take(&mut lifecycle.step_down);
        let deadline = lifecycle.deadline_of(Stage::StepDown);
        self.steps(Stage::StepDown, steps, deadline).await;
        self.deregister(lifecycle).await;
        let kept = std::mem::take(&mut lifecycle.kept);
        let steps = std::mem::take(&mut lifecycle.end);
        let deadline = lifecycle.deadline_of(Stage::End);
        self.steps(Stage::End, steps, deadline).await;
        drop(kept);
    }

    async fn unroutable(&mut self, all: Vec<Listed>, readiness: Readiness, deadline: Duration) {
        let stage = Stage::Unroutable;
        if all.is_empty() {
            return self.skip(stage, NOTHING);
        }
        let mut listed = Chores::new();
        for one in all {
            listed.start(unlisted(one));
        }
        let told = Arc::new(AtomicBool::new(false));
        let is_told = Arc::clone(&told);
        let doing = Box::pin(async move {
            let refused = match readiness.leave("leaving").await {
                // It stays said, and may yet get through.
                Err(err) if err.is_transient() => Some(err),
                Err(err) => return failed(&err),
                Ok(()) => None,
            };
            is_told.store(refused.is_none(), Ordering::Relaxed);
            while let Some(seen) = listed.next().await {
                if let Err(err) = seen {
                    return failed(&err);
                }
            }
            StageOutcome::Done
        });
        let late = || match told.load(Ordering::Relaxed) {
            true => "the catalog shows it still".into(),
            false => "the agent has not taken it".into(),
        };
        let doing = Doing {
            work: doing,
            late: &late,
        };
        self.stage(stage, deadline, doing).await;
    }

    async fn lame_duck(&mut self, is_registered: bool, lasts: Duration) {
        let stage = Stage::LameDuck;
        if !is_registered {
            return self.skip(stage, NOTHING);
        }
        let end = Instant::now() + lasts;
        let doing = Doing {
            work: Box::pin(async move {
                sleep_until(end).await;
                StageOutcome::Done
            }),
            late: &|| "".into(),
        };
        // It is over by its own clock.
        let room = lasts + Duration::from_secs(1);
        self.stage(stage, room, doing).await;
    }

    async fn drain(&mut self, deadline: Duration) {
        if self.work.is_none() {
            return self.skip(Stage::Drain, "the work has ended");
        }
        let doing = Doing {
            // The work itself is what is waited for.
            work: Box::pin(std::future::pending()),
            late: &|| "the work had not ended, and is dropped".into(),
        };
        self.stage(Stage::Drain, deadline, doing).await;
    }

    async fn deregister(&mut self, lifecycle: &mut Lifecycle) {
        let registrations = std::mem::take(&mut lifecycle.registrations);
        let steps = registrations.into_iter().map(|registration| {
            let id = Arc::from(registration.id().as_str());
            Step::new(id, registration.close())
        });
        let deadline = lifecycle.deadline_of(Stage::Deregister);
        self.steps(Stage::Deregister, steps.collect(), deadline)
            .await;
    }

    /// A stage of steps that are taken side by side.
    async fn steps(&mut self, stage: Stage, steps: Vec<Step>, deadline: Duration) {
        let names = steps.iter().map(|step| Arc::clone(&step.name));
        let waited_for = Arc::new(Mutex::new(names.collect::<Vec<_>>()));
        let left = Arc::clone(&waited_for);
        let mut chores = Chores::new();
        for Step { name, work } in steps {
            chores.start(async move { (name, work.await) });
        }
        let doing = Doing {
            work: Box::pin(async move {
                let mut wrong = String::new();
                while let Some((name, outcome)) = chores.next().await {
                    lock(&left).retain(|left| *left != name);
                    if let Err(err) = outcome {
                        let comma = if wrong.is_empty() { "" } else { "; " };
                        write!(wrong, "{comma}{name}: {err}").ok();
                    }
                }
                match wrong.as_str() {
                    "" => StageOutcome::Done,
                    wrong => StageOutcome::Failed(wrong.into()),
                }
            }),
            late: &|| lock(&waited_for).join(", ").into(),
        };
        self.stage(stage, deadline, doing).await;
    }

    async fn stage(&mut self, stage: Stage, deadline: Duration, mut doing: Doing<'_>) {
        let begin = Instant::now();
        self.asker.shutdown.reach(stage);
        // The first three wait for others, the last three let go.
        let waits = stage <= Stage::Drain;
        let end = if waits && self.cut {
            begin
        } else {
            begin + deadline
        };
        let outcome = loop {
            tokio::select! {
                biased;
                output = ended(&mut self.work), if waits => {
                    self.ended(output);
                    match stage {
                        Stage::Unroutable => {}
                        Stage::Drain => break StageOutcome::Done,
                        _ => break StageOutcome::Skipped("the work has ended".into()),
                    }
                }
                outcome = &mut doing.work => break outcome,
                _ = self.asker.asked(), if waits && !self.cut => {
                    self.cut = true;
                    break StageOutcome::CutShort;
                }
                () = sleep_until(end) => break match waits && self.cut {
                    true => StageOutcome::CutShort,
                    false => StageOutcome::TimedOut((doing.late)()),
                },
            }
        };
        self.line(stage, begin, outcome);
    }

    fn skip(&mut self, stage: Stage, why: &str) {
        self.asker.shutdown.reach(stage);
        self.line(stage, Instant::now(), StageOutcome::Skipped(why.into()));
    }

    fn line(&mut self, stage: Stage, begin: Instant, outcome: StageOutcome) {
        let line = StageReport {
            stage,
            took: begin.elapsed(),
            outcome,
        };
        match line.outcome {
            StageOutcome::Done | StageOutcome::Skipped(_) => {
                tracing::info!(stage = %line, "shutting down");
            }
            _ => tracing::warn!(stage = %line, "shutting down"),
        }
        self.lines.push(line);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const NOTHING: &str = "nothing is registered";

/// What the work comes to; pending for ever once it has ended.
async fn ended<W: Future>(work: &mut Option<Pin<Box<W>>>) -> W::Output {
    match work {
        Some(work) => work.as_mut().await,
        None => std::future::pending().await,
    }
}

fn failed(err: &Error) -> StageOutcome {
    let chain = err.chain();
    StageOutcome::Failed(format!("{chain}").into())
}

/// Who asks for the shutdown.
struct Asker {
    progress: watch::Receiver<Progress>,
    shutdown: Shutdown,
    /// How often it has been told that it was asked for.
    heard: u32,
}

impl Asker {
    /// Waits until it is asked for, or asked for again.
    ///
    /// Cancel safe: nobody who asks is overheard.
    async fn asked(&mut self) -> Cause {
        loop {
            let progress = *self.progress.borrow_and_update();
            if progress.asked > self.heard {
                self.heard += 1;
                return progress.signal.map_or(Cause::Asked, Cause::Signal);
            }
            // It cannot end before the token that stands beside it.
            if self.progress.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// What the catalog has to show no more.
struct Listed {
    client: Client,
    name: Arc<str>,
    id: ServiceId,
}

impl Listed {
    fn of(registration: &Registration) -> Self {
        Self {
            client: registration.client().clone(),
            name: registration.definition().service_name().as_ref().into(),
            id: registration.id().clone(),
        }
    }
}

/// Waits until the servers, and not only the agent, do not give the service to those who ask for
/// instances that pass.
async fn unlisted(listed: Listed) -> Result<()> {
    let Listed { client, name, id } = listed;
    // IDs are unique on an agent only. Without the right to ask which one this is, an instance of
    // the same ID elsewhere is waited for, too.
    let about = client.agent().about().await.ok();
    let node = about.map(|about| about.config().node_name().clone());
    // What a follower knows may be old.
    let passing = client.health().service(name).passing().consistent();
    let mut watch = passing.watch()?;
    loop {
        let seen = watch.changed().await?;
        let there = seen.items().iter().any(|instance| {
            let here = node
                .as_ref()
                .is_none_or(|node| instance.node().name() == node);
            here && *instance.service().id() == id
        });
        if !there {
            return Ok(());
        }
    }
}
