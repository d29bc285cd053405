//! The end of a process in one order, so that no request is lost and nothing is left behind.
//!
//! A [`Lifecycle`] takes what a process has at Consul and runs its work. When the process is to end,
//! it does six things, one after the other:
//!
//! | [`Stage`] | what happens | default deadline |
//! |---|---|---|
//! | [`Unroutable`](Stage::Unroutable) | the services say that they are not to be found, and the *catalog*, not only the agent, shows it | 2 s |
//! | [`LameDuck`](Stage::LameDuck) | they serve on, for those who have not seen it yet | 1 s, always waited out |
//! | [`Drain`](Stage::Drain) | the work is told to finish, and is waited for | 4 s |
//! | [`StepDown`](Stage::StepDown) | elections, locks and places are given up | 1 s |
//! | [`Deregister`](Stage::Deregister) | the services are deregistered | 1 s |
//! | [`End`](Stage::End) | sessions and watches end | 0.5 s |
//!
//! Each has a [deadline](Lifecycle::deadline) after which the next one begins, and a line in the
//! [`Report`]. One that fails holds up no other: an outage of Consul delays the end of a process by
//! its deadlines and no longer.
//!
//! The order is what matters. A server that stops before everybody knows loses requests; a service
//! that is deregistered while it drains cannot be seen to; a leader that ends before it has stepped
//! down leaves its followers waiting for its session to run out.
//!
//! # Examples
//!
//! With a server of axum's; `examples/graceful_axum.rs` and `examples/graceful_hyper.rs` run.
//!
//! ```no_run
//! use std::time::Duration;
//! use lictor::api::agent::{CheckDefinition, ServiceDefinition};
//! use lictor::lifecycle::{Lifecycle, Stage};
//!
//! # async fn serve(until: impl Future<Output = ()>) -> std::io::Result<()> { until.await; Ok(()) }
//! # async fn warm_up() {}
//! # async fn example(client: lictor::Client) -> Result<(), Box<dyn std::error::Error>> {
//! let web = ServiceDefinition::new("web")
//!     .port(8080)
//!     .check(CheckDefinition::alive_only(Duration::from_secs(15)));
//! let web = client.register(web).not_ready().await?;
//! let lifecycle = Lifecycle::of(web).shutdown_on_signal()?;
//! // axum::serve(listener, app).with_graceful_shutdown(until)
//! let until = lifecycle.shutdown().reached(Stage::Drain);
//! let server = serve(until);
//! warm_up().await;
//! lifecycle.ready().await?;
//! let (report, served) = lifecycle.run(server).await;
//! println!("{report}");
//! # served.transpose()?;
//! # Ok(())
//! # }
//! ```
//!
//! An election steps down in its stage:
//!
//! ```no_run
//! use lictor::coordination::Next;
//! use lictor::lifecycle::{Lifecycle, Stage};
//!
//! # async fn example(client: lictor::Client, lifecycle: Lifecycle) {
//! let election = client.election("jobs/mailer/leader").candidate("host-1");
//! let stop = lifecycle.shutdown().reached(Stage::StepDown);
//! let mailer = tokio::spawn(election.run(stop, async |term| {
//!     term.stopping().await;
//!     Next::StepDown
//! }));
//! let lifecycle = lifecycle.step_down("mailer", mailer);
//! # }
//! ```

mod run;
mod shutdown;
mod signals;
mod stage;

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::registration::{Readiness, Registration};
use crate::task::Worker;

pub use shutdown::Shutdown;
pub use stage::{Cause, Report, Stage, StageOutcome, StageReport};

use signals::Signals;

/// What a process has at Consul, and the order in which it lets go of it.
///
/// Build it with what is to be given up, and await [`run`](Self::run) with the work of the process.
/// It starts no task of its own.
///
/// # Drop
///
/// Dropping it, or the future of `run`, skips the order: all that it holds is dropped, so services
/// are deregistered and locks released in the background while the runtime lives, and who waits for
/// a stage is let go.
#[must_use = "nothing happens before it is run; dropping it deregisters its services"]
pub struct Lifecycle {
    token: Token,
    registrations: Vec<Registration>,
    step_down: Vec<Step>,
    end: Vec<Step>,
    kept: Vec<Box<dyn Any + Send>>,
    deadlines: BTreeMap<Stage, Duration>,
    /// The task that listens to signals.
    signals: Option<Worker<()>>,
}

/// Something to be done in a stage.
struct Step {
    name: Arc<str>,
    work: Pin<Box<dyn Future<Output = Result<(), Arc<str>>> + Send>>,
}

/// The lifecycle's own handle to its token, whose end lets go of all who wait.
struct Token(Shutdown);

impl Drop for Token {
    fn drop(&mut self) {
        self.0.over();
    }
}

impl Lifecycle {
    /// One of a process that has nothing at Consul yet.
    pub fn new() -> Self {
        Self {
            token: Token(Shutdown::new()),
            registrations: Vec::new(),
            step_down: Vec::new(),
            end: Vec::new(),
            kept: Vec::new(),
            deadlines: BTreeMap::new(),
            signals: None,
        }
    }

    /// One of a process with this service.
    pub fn of(registration: Registration) -> Self {
        Self::new().registration(registration)
    }

    /// Adds a service. Several leave side by side.
    pub fn registration(mut self, registration: Registration) -> Self {
        self.registrations.push(registration);
        self
    }

    /// Adds something to give up in the stage [`StepDown`](Stage::StepDown), under the name that the
    /// report says if it fails.
    ///
    /// The future is not polled before. It may be
    /// [`leadership.resign()`](crate::coordination::Leadership::resign),
    /// [`guard.release()`](crate::coordination::LockGuard::release),
    /// [`permit.release()`](crate::coordination::Permit::release), or the handle of a task.
    pub fn step_down<F, T, E>(mut self, name: impl Into<Arc<str>>, give_up: F) -> Self
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        E: fmt::Display,
    {
        self.step_down.push(Step::new(name.into(), give_up));
        self
    }

    /// Adds something to do in the last stage, [`End`](Stage::End), such as
    /// [`lease.close()`](crate::coordination::Lease::close), or the handle of a task that reads a
    /// watch until then.
    pub fn end<F, T, E>(mut self, name: impl Into<Arc<str>>, finish: F) -> Self
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        E: fmt::Display,
    {
        self.end.push(Step::new(name.into(), finish));
        self
    }

    /// Keeps something until the last stage, [`End`](Stage::End), and drops it then: a watch, a
    /// lease that others use.
    pub fn keep(mut self, what: impl Any + Send) -> Self {
        self.kept.push(Box::new(what));
        self
    }

    /// How long a stage may take until the next one begins.
    ///
    /// Unit: time; zero leaves the stage no time to wait. Default: as in the [table](self), together
    /// 9.5 s, because `docker stop` kills after 10 s. For [`Stage::LameDuck`] it is how long that
    /// stage lasts.
    pub fn deadline(mut self, stage: Stage, deadline: Duration) -> Self {
        self.deadlines.insert(stage, deadline);
        self
    }

    /// How long the services serve on when the catalog shows that they are not to be found: the
    /// deadline of [`Stage::LameDuck`].
    ///
    /// Callers that watch Consul know within milliseconds; those that ask DNS, or keep what they
    /// have found, know as late as they look again. Default: 1 s. Range: zero and more.
    pub fn lame_duck(self, lasts: Duration) -> Self {
        self.deadline(Stage::LameDuck, lasts)
    }

    /// Shuts down on `SIGTERM` and on Ctrl-C (where there is no `SIGTERM`, on Ctrl-C alone).
    ///
    /// From this call on they do not end the process by themselves, and one that comes before
    /// [`run`](Self::run) counts: [`Shutdown::has_begun`] tells it, [`ready`](Self::ready) does nothing
    /// any more, and `run` begins with the shutdown. Give a long start up when that happens; until
    /// `run` nothing else ends the process. A second one cuts short what is waited for: the
    /// catalog, the lame duck, the drain. Default: no signal is listened to.
    ///
    /// Starts a task, which ends with the lifecycle.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoRuntime`](crate::ErrorKind::NoRuntime) outside of a Tokio runtime,
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) if the system does not let the signals be
    /// handled.
    pub fn shutdown_on_signal(mut self) -> Result<Self> {
        let (mut signals, runtime) = Signals::listen()?;
        let shutdown = self.shutdown();
        let listening = Worker::spawn(&runtime, |mut stop| async move {
            loop {
                tokio::select! {
                    biased;
                    _ = stop.recv() => return,
                    name = signals.next() => shutdown.ask(Some(name)),
                }
            }
        });
        self.signals = Some(listening);
        Ok(self)
    }

    /// The token of the shutdown: it begins it, and tells which stage has begun.
    #[must_use]
    pub fn shutdown(&self) -> Shutdown {
        self.token.0.clone()
    }

    /// A handle that says whether the services are ready to be found.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let each = self.registrations.iter().map(Registration::readiness);
        each.fold(Readiness::of_none(), Readiness::and)
    }

    /// Says that the services, which were registered as
    /// [not ready](crate::registration::Register::not_ready), may be found. Once the shutdown has
    /// begun it does nothing.
    ///
    /// # Errors
    ///
    /// Those of [`Readiness::ready`].
    ///
    /// # Cancel safety
    ///
    /// That of [`Readiness::ready`].
    pub fn ready(&self) -> impl Future<Output = Result<()>> + Send + use<> {
        let (readiness, shutdown) = (self.readiness(), self.shutdown());
        async move {
            if shutdown.has_begun() {
                return Ok(());
            }
            readiness.ready().await
        }
    }

    fn deadline_of(&self, stage: Stage) -> Duration {
        let given = self.deadlines.get(&stage).copied();
        given.unwrap_or_else(|| stage.deadline())
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

impl Step {
    fn new<T, E: fmt::Display>(
        name: Arc<str>,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Self {
        Self {
            name,
            work: Box::pin(async move {
                match work.await {
                    Ok(_) => Ok(()),
                    Err(err) => Err(err.to_string().into()),
                }
            }),
        }
    }
}

impl fmt::Debug for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |steps: &[Step]| -> Vec<Arc<str>> {
            steps.iter().map(|step| Arc::clone(&step.name)).collect()
        };
        f.debug_struct("Lifecycle")
            .field("registrations", &self.registrations)
            .field("step_down", &names(&self.step_down))
            .field("end", &names(&self.end))
            .field("deadlines", &self.deadlines)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[cfg(feature = "embedded-agent")]
mod tests;
