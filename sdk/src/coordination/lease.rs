//! A lease: one session, and all that is held by it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::aim::{self, Aim};
use super::attempt::Released;
use super::belief::Belief;
use super::book::Book;
use super::claims::{Claim, Claims};
use super::clock::Clock;
use super::held::Hold;
use super::keeper::{GOODBYE, Keeper};
use super::profile::Profile;
use super::pursuit::{Deed, Order, Taken};
use super::session::Plan;
use super::state::LeaseState;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::ident::SessionId;
use crate::proto::lease::Terms;
use crate::states::States;
use crate::task::Worker;

impl Client {
    /// A lease that many locks, semaphores and elections can share.
    ///
    /// They have one of their own each if none is given to them: share one where many keys are held
    /// by one process, because a lease costs the same requests however much is held by it.
    pub fn lease(&self) -> NewLease {
        NewLease {
            client: self.clone(),
            profile: Profile::default(),
            name: None,
        }
    }
}

/// A lease to be: how it is kept, and its name.
#[derive(Clone, Debug)]
#[must_use = "no lease is there before `build`"]
pub struct NewLease {
    client: Client,
    profile: Profile,
    name: Option<Arc<str>>,
}

impl NewLease {
    /// How long it lasts without Consul, and what it costs. Default: [`Profile::balanced`].
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// A name for people: a part of the name of its sessions. Default: none.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Makes the lease; Consul hears of it when something is to be held by it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] if the profile is one that Consul does not take, or under which two
    /// could hold; the text says what would be right.
    pub fn build(self) -> Result<Lease> {
        let terms = self.profile.checked()?;
        let (state, _) = watch::channel(LeaseState::Idle);
        Ok(Lease {
            inner: Arc::new(Inner {
                client: self.client,
                terms,
                name: self.name,
                clock: Clock::start(),
                state: Arc::new(state),
                current: tokio::sync::Mutex::new(None),
            }),
        })
    }
}

/// One session at Consul, kept alive for all that is held by it.
///
/// The session is made when something is to be held by it for the first time. When it is lost, all
/// that was held by it is lost with it, and whatever is to be held next makes a new one.
///
/// Clones are the same lease.
///
/// # Tasks and drop
///
/// While there is a session, one task keeps it, on the runtime that was current when it was made.
/// It ends, and unlocks all that is held and ends the session, when the last clone and the last
/// guard are dropped, or at [`close`](Self::close), which waits for it and tells the outcome. If
/// neither comes to pass, because the process or the runtime dies, Consul ends the session by its
/// TTL.
#[derive(Clone)]
pub struct Lease {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    terms: Terms,
    name: Option<Arc<str>>,
    clock: Clock,
    state: Arc<watch::Sender<LeaseState>>,
    /// The newest session, which may be lost by now.
    current: tokio::sync::Mutex<Option<Arc<Tenure>>>,
}

impl Lease {
    /// How it is now.
    #[must_use]
    pub fn state(&self) -> LeaseState {
        match self.inner.current.try_lock() {
            Ok(current) => match &*current {
                Some(tenure) => tenure.belief.state(),
                None => self.inner.state.borrow().clone(),
            },
            // A session is being made.
            Err(_) => self.inner.state.borrow().clone(),
        }
    }

    /// The present state and all that follow, as a stream. It ends when the lease is dropped.
    pub fn states(&self) -> States<LeaseState> {
        States::new(self.inner.state.subscribe())
    }

    /// The session, which is made if there is none.
    ///
    /// To have it before it is needed saves the first lock a request.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoRuntime`] outside of a Tokio runtime, and whatever Consul answers instead:
    /// [`ErrorKind::PermissionDenied`] for a token that may not write sessions, for one.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves no session behind.
    pub async fn session(&self) -> Result<SessionId> {
        Ok(self.tenure().await?.session.clone())
    }

    /// Gives up all that is held by it, and ends the session.
    ///
    /// Guards that are still there are told: their [`lost`](super::Held::lost) resolves before
    /// anything is unlocked. The lease can be used again, and then makes a new session.
    ///
    /// # Errors
    ///
    /// When Consul could not be told within 10 s; the session then ends by its TTL, and its keys
    /// are free after the lock-delay.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the end goes on in the background even if the future is dropped.
    pub async fn close(&self) -> Result<()> {
        let current = self.inner.current.lock().await.take();
        match current {
            Some(tenure) => tenure.close().await,
            None => Ok(()),
        }
    }

    pub(super) fn client(&self) -> &Client {
        &self.inner.client
    }

    /// How long one proof of everything lasts.
    pub(super) fn belief(&self) -> Duration {
        self.inner.terms.belief()
    }

    /// The session that is believed in, or a new one.
    pub(super) async fn tenure(&self) -> Result<Arc<Tenure>> {
        let inner = &*self.inner;
        let mut current = inner.current.lock().await;
        if let Some(tenure) = &*current
            && tenure.belief.check().is_ok()
        {
            return Ok(Arc::clone(tenure));
        }
        // A lost one says goodbye by itself.
        *current = None;
        let plan = Plan::new(inner.terms, inner.name.as_deref());
        let tenure = Tenure::start(inner, plan).await?;
        *current = Some(Arc::clone(&tenure));
        Ok(tenure)
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("name", &self.inner.name)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// One session from its making to its end.
///
/// The lease and all guards share it; the task ends when the last of them lets go.
pub(super) struct Tenure {
    pub(super) session: SessionId,
    pub(super) belief: Arc<Belief>,
    pub(super) claims: Arc<Claims>,
    client: Client,
    book: Arc<Book>,
    worker: Mutex<Option<Worker<Result<()>>>>,
}

impl Tenure {
    async fn start(lease: &Inner, plan: Plan) -> Result<Arc<Self>> {
        let runtime = Handle::try_current().map_err(|_| {
            Error::new(ErrorKind::NoRuntime)
                .context("a lease is kept by a task: call this within a runtime")
        })?;
        let (orders, inbox) = mpsc::unbounded_channel();
        let (ready, born) = oneshot::channel();
        let keeper = Keeper {
            client: lease.client.clone(),
            plan: Arc::new(plan),
            clock: lease.clock,
            runtime: runtime.clone(),
            orders: inbox,
            to_self: orders,
            state: Arc::clone(&lease.state),
        };
        // The task is there before the first request: who drops this future drops the worker.
        let worker = Worker::spawn(&runtime, |stop| keeper.run(stop, ready));
        let book = born.await.map_err(|_| ended())??;
        Ok(Arc::new(Self {
            session: book.session.clone(),
            belief: Arc::clone(&book.belief),
            claims: Arc::new(Claims::new()),
            client: lease.client.clone(),
            book,
            worker: Mutex::new(Some(worker)),
        }))
    }

    /// Asks the keeper for something; `false` if it has ended.
    pub(super) fn order(&self, order: Order) -> bool {
        self.book.order(order)
    }

    /// Tries once.
    ///
    /// Cancel safe: what it takes that nobody waits for any more, the keeper gives up.
    pub(super) async fn take(&self, aim: Aim, claim: Claim) -> Taken {
        let (client, session) = (self.client.clone(), self.session.clone());
        let belief = Arc::clone(&self.belief);
        let request = async move {
            let tried = aim.attempt(&client, &session, &belief).await;
            Deed::Tried(aim, claim, tried)
        };
        self.book.take(request).await
    }

    /// Gives up what is held, which has been ended before; `None` if the session ends, and
    /// everything with it.
    ///
    /// Cancel safe: once polled, the keeper brings it to its end.
    pub(super) async fn release(&self, hold: &Arc<Hold>) -> Option<Result<Released>> {
        let (client, held) = (self.client.clone(), Arc::clone(hold));
        let deadline = Instant::now() + GOODBYE;
        let request = async move {
            let result = aim::give_up(&client, &held, deadline).await;
            Deed::Unlocked(held, result)
        };
        self.book.release(hold, request).await
    }

    async fn close(&self) -> Result<()> {
        let worker = self.worker.lock();
        let worker = worker.unwrap_or_else(PoisonError::into_inner).take();
        match worker {
            Some(worker) => worker.stop().await.unwrap_or_else(|| Err(ended())),
            None => Ok(()),
        }
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Closed).context("the task that keeps the lease has ended")
}
