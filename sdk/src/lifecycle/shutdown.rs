//! The one token of a shutdown.

use std::sync::Arc;

use tokio::sync::watch;

use super::Stage;

/// The token of a process's shutdown: cheap to clone, and the same for all who have it.
///
/// Made by [`Lifecycle::shutdown`](super::Lifecycle::shutdown). It begins the shutdown from anywhere
/// and tells how far it is. It starts no task and keeps nothing alive.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<watch::Sender<Progress>>);

/// How far a shutdown is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// How often it was asked for: the first time it begins, after that it hurries.
    pub(super) asked: u32,
    /// The signal that asked first, if it was one.
    pub(super) signal: Option<&'static str>,
    /// The number of the stage that has begun; 0 for none.
    reached: u8,
}

impl Shutdown {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Progress::default())))
    }

    /// Begins the shutdown, or cuts its waiting short if it has begun already.
    ///
    /// It works at once, from anywhere, and waits for nothing. The lifecycle does the rest, while
    /// its [`run`](super::Lifecycle::run) is polled.
    pub fn begin(&self) {
        self.ask(None);
    }

    /// The same, for a signal.
    pub(super) fn ask(&self, signal: Option<&'static str>) {
        self.0.send_modify(|progress| {
            if progress.asked == 0 {
                progress.signal = signal;
            }
            progress.asked += 1;
        });
    }

    /// Whether it has been asked for.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.0.borrow().asked > 0
    }

    /// Resolves when this stage begins, or at once if it has begun; also when the lifecycle is
    /// dropped without a shutdown.
    ///
    /// [`Stage::Drain`] is for servers: from there on they take no new connections.
    /// [`Stage::StepDown`] is for [elections](crate::coordination::Election::run),
    /// [`Stage::End`] for tasks that read watches.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost. The future owns what it needs, and may outlive the lifecycle.
    pub fn reached(&self, stage: Stage) -> impl Future<Output = ()> + Send + use<> {
        let mut progress = self.0.subscribe();
        async move {
            let reached = |progress: &Progress| progress.reached >= stage.number();
            // An error is the end of the lifecycle.
            progress.wait_for(reached).await.ok();
        }
    }

    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.0.subscribe()
    }

    pub(super) fn reach(&self, stage: Stage) {
        self.0.send_modify(|progress| {
            progress.reached = progress.reached.max(stage.number());
        });
    }

    /// Lets go of all who wait.
    pub(super) fn over(&self) {
        self.0.send_modify(|progress| progress.reached = u8::MAX);
    }
}
