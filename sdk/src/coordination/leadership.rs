//! One leadership, from the moment it is won until it is handed over.

use std::fmt;
use std::ops::Deref;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::attempt::Released;
use super::election::Candidacy;
use super::held::Held;
use super::lease::Lease;
use super::lock::{self, LockGuard};
use super::role::{Role, Roles};
use super::state::{LeaseState, LossCause, Lost};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::registration::{Badge, Badges};
use crate::task::{Crew, StopSignal, Worker};

/// A leadership that is held.
///
/// It dereferences to [`Held`], which says whether it still is. It is not `Clone`.
///
/// # Tasks and drop
///
/// One task follows how the lease is, tells it as the election's [role](super::Election::roles),
/// and hands over in the end. Dropping the leadership, anywhere, stops the belief at once, and that
/// task hands over in the background as long as the runtime lives. [`resign`](Self::resign) waits
/// for it.
#[must_use = "dropping a leadership hands it over"]
pub struct Leadership {
    seat: Arc<Seat>,
    worker: Option<Worker<Result<Released>>>,
}

/// What a leadership and its term share.
pub(super) struct Seat {
    client: Client,
    runtime: Handle,
    held: Held,
    roles: Roles,
    stopping: watch::Sender<bool>,
    /// What the term has started; `None` once that has been ended.
    crew: Mutex<Option<Crew<()>>>,
    /// Once it has ended: what it had been lost by before.
    over: OnceLock<Option<Lost>>,
    candidacy: Mutex<Option<Candidacy>>,
    /// Tags that tell who leads.
    badges: Mutex<Vec<Badge>>,
}

impl Leadership {
    /// Takes over what was won. The lease ends with it if it is `owned`.
    pub(super) fn new(
        guard: LockGuard,
        lease: Lease,
        owned: bool,
        roles: Roles,
        candidacy: Option<Candidacy>,
        badges: &[(Badges, Arc<str>)],
    ) -> Result<Self> {
        let runtime = Handle::try_current().map_err(|_| {
            Error::new(ErrorKind::NoRuntime)
                .context("a leadership is attended by a task: call this within a runtime")
        })?;
        let seat = Arc::new(Seat {
            client: lease.client().clone(),
            runtime: runtime.clone(),
            held: Held::new(Arc::clone(&guard.hold)),
            roles,
            stopping: watch::channel(false).0,
            crew: Mutex::new(Some(Crew::new())),
            over: OnceLock::new(),
            candidacy: Mutex::new(candidacy),
            badges: Mutex::new(badges.iter().map(|(all, tag)| all.wear(tag)).collect()),
        });
        seat.tell(Role::Leader {
            token: seat.held.token(),
        });
        let attended = Arc::clone(&seat);
        let worker = Worker::spawn(&runtime, |stop| attended.attend(guard, lease, owned, stop));
        Ok(Self {
            seat,
            worker: Some(worker),
        })
    }

    /// Writes a new value for observers, and goes on leading.
    ///
    /// Neither the [token](Held::token) nor the leadership changes by it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a value that is no JSON; [`ErrorKind::Conflict`] once the
    /// leadership is lost, with [`Lost`] as the source; and what Consul answers instead.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the value may be written even if the future is dropped.
    pub async fn publish(&self, value: impl Serialize) -> Result<()> {
        // The value itself need not be `Send`.
        let json = json(&value);
        self.seat.publish(json).await
    }

    /// Hands over: whoever campaigns can lead as soon as the unlock has arrived.
    ///
    /// Unlocks first, and then ends the session if it is the election's own.
    ///
    /// # Errors
    ///
    /// When Consul could not be told within 10 s. Nothing is believed any more in any case, and
    /// the session ends by its TTL, if it was the election's own.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the hand-over goes on in the background even if the future is dropped.
    pub async fn resign(mut self) -> Result<Released> {
        self.seat.end();
        let ended = || {
            Error::new(ErrorKind::Closed)
                .context("the task that attends the leadership has ended with its runtime")
        };
        match self.worker.take() {
            Some(worker) => worker.stop().await.unwrap_or_else(|| Err(ended())),
            None => Err(ended()),
        }
    }

    /// The handle for the work of this term.
    pub(super) fn term(&self) -> Term {
        Term {
            seat: Arc::clone(&self.seat),
        }
    }

    pub(super) fn tell_stopping(&self) {
        self.seat.take_off_badges();
        self.seat.stopping.send_replace(true);
    }
}

impl Deref for Leadership {
    type Target = Held;

    fn deref(&self) -> &Held {
        &self.seat.held
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.seat.end();
    }
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leadership")
            .field("held", &self.seat.held)
            .finish_non_exhaustive()
    }
}

/// The time for which one candidate leads, as its work sees it.
///
/// A cheap handle that dereferences to [`Held`]: ask [`check`](Held::check) right before each side
/// effect, and hand [`token`](Held::token) to the resource that it reaches. One that is kept longer
/// than the term does no harm: it says that the term is over.
#[derive(Clone)]
pub struct Term {
    seat: Arc<Seat>,
}

impl Term {
    /// Runs a future beside the work, as a task that ends with the term.
    ///
    /// It is never polled once the leadership is lost or given up; the term is handed over when it
    /// is gone. Work that never yields to the runtime cannot be ended by anybody: it is waited for
    /// as long as one proof of the lease lasts, and then the hand-over goes on without it. After
    /// the term nothing is started.
    ///
    /// A panic in it ends this task and nothing else.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(crew) = &mut *self.seat.crew() {
            let held = Held::new(Arc::clone(&self.seat.held.hold));
            crew.start_on(&self.seat.runtime, async move {
                // What is lost is told to the work by its end.
                within(&held, pin!(task)).await.ok();
            });
        }
    }

    /// Resolves when the work is asked to end, because the run is told to stop or makes way for a
    /// [preferred](super::Election::yields_to_preferred) candidate: it then has a while to do so in
    /// good order.
    ///
    /// See [`Election::step_down_within`](super::Election::step_down_within). The future owns what
    /// it needs, and resolves for a term that is over, too.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: it is told to everybody who asks.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + use<> {
        let seat = Arc::clone(&self.seat);
        async move {
            let mut stopping = seat.stopping.subscribe();
            // The sender stands in the seat.
            stopping.wait_for(|stopping| *stopping).await.ok();
        }
    }

    /// Whether the work is asked to end.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        *self.seat.stopping.borrow()
    }

    /// Writes a new value for observers, and goes on leading; as
    /// [`Leadership::publish`](Leadership::publish).
    ///
    /// # Errors
    ///
    /// As [`Leadership::publish`](Leadership::publish).
    ///
    /// # Cancel safety
    ///
    /// Once polled, the value may be written even if the future is dropped.
    pub async fn publish(&self, value: impl Serialize) -> Result<()> {
        let json = json(&value);
        self.seat.publish(json).await
    }
}

impl Deref for Term {
    type Target = Held;

    fn deref(&self) -> &Held {
        &self.seat.held
    }
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Term")
            .field("held", &self.seat.held)
            .finish_non_exhaustive()
    }
}

/// How long a hand-over waits for the agent to take it that a tag is off.
const BADGES: Duration = Duration::from_secs(1);

impl Seat {
    /// Ends the leadership, at once and without I/O; only the first time counts.
    fn end(&self) {
        let lost = self.held.check().err();
        if self.over.set(lost).is_err() {
            return;
        }
        // Each task of the term sees this before it is polled again.
        self.held.hold.end(Lost::new(LossCause::Released));
        self.take_off_badges();
        self.stopping.send_replace(true);
        self.roles.idle();
        let candidacy = self.candidacy.lock();
        drop(candidacy.unwrap_or_else(PoisonError::into_inner).take());
    }

    fn tell(&self, role: Role) {
        self.roles.tell(role, || self.over.get().is_none());
    }

    /// Tells how the lease is until the end, and then hands over.
    async fn attend(
        self: Arc<Self>,
        guard: LockGuard,
        lease: Lease,
        owned: bool,
        mut stop: StopSignal,
    ) -> Result<Released> {
        let token = self.held.token();
        let follow = async {
            let mut states = lease.states();
            while let Some(state) = states.next().await {
                match state {
                    LeaseState::Held => self.tell(Role::Leader { token }),
                    LeaseState::Jeopardy { deadline, error } => self.tell(Role::Jeopardy {
                        token,
                        deadline,
                        error,
                    }),
                    LeaseState::Idle | LeaseState::Lost(_) => {}
                }
            }
        };
        let told = async {
            tokio::select! {
                biased;
                _ = self.held.lost() => {
                    self.take_off_badges();
                    self.tell(Role::Idle);
                }
                () = follow => {}
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            _ = stop.recv() => {}
            () = told => {}
        }
        let lost = self.over.get().and_then(Option::as_ref).map(Lost::cause);
        if lost.is_none() {
            tokio::join!(self.end_crew(lease.belief()), self.badges_gone());
        } else {
            self.end_crew(lease.belief()).await;
        }
        if lost.is_some_and(|cause| cause != LossCause::KeyGone && cause != LossCause::Released) {
            // The session is lost: whoever campaigns again does not wait for its goodbye.
            return Ok(Released::WasLost);
        }
        let released = guard.release().await;
        if owned {
            let ended = lease.close().await;
            if released.is_ok() {
                ended?;
            }
        }
        released
    }

    /// Ends what the term has started, and waits until it is gone, for so long.
    async fn end_crew(&self, patience: Duration) {
        let crew = self.crew().take();
        if let Some(mut crew) = crew
            && tokio::time::timeout(patience, crew.end()).await.is_err()
        {
            tracing::warn!(
                keys = ?self.held.keys(),
                "a task of a term that is over does not end: it may work beside the next leader"
            );
        }
    }

    /// Takes off what tells that it leads; the agent hears of it in the background.
    fn take_off_badges(&self) {
        self.badges().iter_mut().for_each(Badge::take_off);
    }

    /// Waits until the agent has heard of it, but not for long.
    async fn badges_gone(&self) {
        let gone: Vec<_> = self.badges().iter().map(Badge::gone).collect();
        let all = async {
            for gone in gone {
                gone.await;
            }
        };
        if tokio::time::timeout(BADGES, all).await.is_err() {
            tracing::warn!(
                keys = ?self.held.keys(),
                "the agent does not take it that a former leader's tag is off; it is told again"
            );
        }
    }

    fn badges(&self) -> MutexGuard<'_, Vec<Badge>> {
        self.badges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn publish(&self, json: Result<Bytes>) -> Result<()> {
        lock::set_value(&self.client, &self.held, json?).await
    }

    fn crew(&self) -> MutexGuard<'_, Option<Crew<()>>> {
        self.crew.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A leader's value as it stands in the key.
pub(super) fn json(value: &impl Serialize) -> Result<Bytes> {
    match serde_json::to_vec(value) {
        Ok(json) => Ok(json.into()),
        Err(err) => Err(Error::invalid("leader's value: cannot be written as JSON").caused_by(err)),
    }
}

/// Polls `work` for as long as something is held, and never after.
pub(super) async fn within<F: Future>(
    held: &Held,
    mut work: Pin<&mut F>,
) -> Result<F::Output, Lost> {
    let mut lost = pin!(held.lost());
    std::future::poll_fn(|cx| {
        // A runtime that stood still may poll this before it looks at its timers.
        if let Err(lost) = held.check() {
            return Poll::Ready(Err(lost));
        }
        if let Poll::Ready(lost) = lost.as_mut().poll(cx) {
            return Poll::Ready(Err(lost));
        }
        work.as_mut().poll(cx).map(Ok)
    })
    .await
}
