//! The connections to one endpoint.

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::endpoint::Target;
use crate::error::BoxError;
use crate::task::Group;

use super::http1::Http1;
use super::http2::Connection;
use super::lease::Lease;
use super::{IDLE_AGES, Protocol, Settings, dial};

/// The connections to one endpoint. Dropping it is retiring it.
pub(crate) struct Pool(Arc<Shared>);

pub(super) struct Shared {
    target: Target,
    settings: Arc<Settings>,
    state: Mutex<State>,
}

/// Guarded by a lock that is held for a few pushes and pops, never across an await.
struct State {
    /// Connections that are ready for a request; the last one was used last and is used next, so
    /// that those not needed grow old.
    #[expect(
        clippy::vec_box,
        reason = "connections move between pool, request and body in their box"
    )]
    idle: Vec<Box<Http1>>,
    shared: Option<Connection>,
    /// Never more than attempts to connect are under way, so that each is served in the end.
    waiters: VecDeque<Waiter>,
    connecting: usize,
    age: u32,
    /// Counts connections taken and given back, to tell which came first.
    turn: u64,
    /// The attempts to connect; none once the pool is retired.
    attempts: Option<Group>,
}

struct Waiter {
    deliver: oneshot::Sender<Result<Lease, Refused>>,
    need: Need,
}

/// Which connection will do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Need {
    Any,
    /// One that was opened for this request: others have just turned out to be dead.
    Fresh,
}

/// What a pool has for a request.
pub(crate) enum Checkout {
    Ready(Lease),
    Wait(Waiting),
    /// The endpoint has left.
    Retired,
}

/// The wait for a connection: a new one, or one that another request gives back before.
///
/// Dropping it does not end the attempt to connect; the connection goes to the next request.
pub(crate) struct Waiting(oneshot::Receiver<Result<Lease, Refused>>);

/// Why there is no connection.
pub(crate) enum Unavailable {
    Refused(Refused),
    Retired,
    /// The runtime that connections live in has ended.
    Deserted,
}

/// Why an attempt to connect failed; told to everybody who waited for it.
#[derive(Clone, Debug)]
pub(crate) struct Refused(Arc<BoxError>);

#[derive(Debug)]
struct RuntimeEnded;

impl fmt::Display for RuntimeEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the runtime of the channel has ended")
    }
}

impl StdError for RuntimeEnded {}

impl Pool {
    pub(crate) fn new(target: Target, settings: Arc<Settings>) -> Self {
        let attempts = Group::new(settings.runtime.clone());
        Self(Arc::new(Shared {
            target,
            settings,
            state: Mutex::new(State {
                idle: Vec::new(),
                shared: None,
                waiters: VecDeque::new(),
                connecting: 0,
                age: 0,
                turn: 0,
                attempts: Some(attempts),
            }),
        }))
    }

    pub(crate) fn checkout(&self, need: Need) -> Checkout {
        let shared = &self.0;
        let mut state = shared.lock();
        if state.attempts.is_none() {
            return Checkout::Retired;
        }
        if need == Need::Any
            && let Some(lease) = state.ready()
        {
            return Checkout::Ready(lease);
        }
        // No connection is opened for those who have gone. Looking through all of them at powers
        // of two costs little, and at most every second waiter is one of them.
        if state.waiters.len().is_power_of_two() {
            state.waiters.retain(|waiter| !waiter.deliver.is_closed());
        }
        let (deliver, waiting) = oneshot::channel();
        state.waiters.push_back(Waiter { deliver, need });
        let wanted = match shared.settings.protocol {
            Protocol::Http1 => state.waiters.len(),
            Protocol::Http2 => 1,
        };
        if state.connecting < wanted
            && let Some(attempts) = &state.attempts
        {
            let place = attempts.place();
            state.connecting += 1;
            // If the runtime has ended, the attempt ends here and asks for the lock.
            drop(state);
            place.fill(Attempt(Some(Arc::clone(shared))).run());
        }
        Checkout::Wait(Waiting(waiting))
    }

    /// Takes back a connection whose response has ended.
    pub(crate) fn release(&self, lease: Lease) {
        match lease {
            Lease::Http1(connection) => connection.release(&self.0),
            // The pool has kept its handle.
            Lease::Http2(_) => {}
        }
    }

    /// Lets go of connections that may be as dead as this one, which has not answered in time.
    ///
    /// A path that dies without a word takes all connections with it that were opened before. A
    /// shared connection is kept if others were answered on it meanwhile, and an idle one if it
    /// was used since.
    pub(crate) fn distrust(&self, late: &Lease) {
        let mut state = self.0.lock();
        let closed: (Vec<_>, _) = match late {
            Lease::Http1(late) if late.is_reused() => {
                let older = state.idle.extract_if(.., |idle| idle.turn < late.turn);
                (older.collect(), None)
            }
            Lease::Http1(_) => (Vec::new(), None),
            Lease::Http2(late) => {
                let silent = |shared: &mut Connection| shared.is_silent_since(late);
                (Vec::new(), state.shared.take_if(silent))
            }
        };
        drop(state);
        drop(closed);
    }

    /// Closes what is idle, now and from now on, and gives up attempts to connect.
    pub(crate) fn retire(&self) {
        let mut state = self.0.lock();
        let attempts = state.attempts.take();
        let idle = std::mem::take(&mut state.idle);
        let connection = state.shared.take();
        let waiters = std::mem::take(&mut state.waiters);
        // What these wake up may ask for the lock.
        drop(state);
        drop((attempts, idle, connection, waiters));
    }

    /// Closes what was not used during the last [`IDLE_AGES`] calls of this.
    pub(crate) fn age(&self) {
        let mut state = self.0.lock();
        state.age = state.age.wrapping_add(1);
        let age = state.age;
        let old = |aged: u32| age.wrapping_sub(aged) >= IDLE_AGES;
        let closed: Vec<_> = state.idle.extract_if(.., |idle| old(idle.aged)).collect();
        let shared = state.shared.take_if(|connection| old(connection.aged));
        drop(state);
        drop((closed, shared));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.retire();
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("target", &self.0.target)
            .finish_non_exhaustive()
    }
}

impl State {
    fn ready(&mut self) -> Option<Lease> {
        while let Some(mut connection) = self.idle.pop() {
            // The endpoint may have closed it while it was idle.
            if connection.is_ready() {
                connection.turn = self.next_turn();
                return Some(Lease::Http1(connection));
            }
        }
        let age = self.age;
        let connection = self.shared.as_mut().filter(|shared| !shared.is_closed())?;
        connection.aged = age;
        Some(Lease::Http2(connection.stream()))
    }

    fn next_turn(&mut self) -> u64 {
        self.turn = self.turn.wrapping_add(1);
        self.turn
    }

    /// Hands a connection to the first who wants it.
    fn deliver(&mut self, mut lease: Lease, fresh: bool) -> Option<Lease> {
        while let Some(at) = self
            .waiters
            .iter()
            .position(|waiter| fresh || waiter.need == Need::Any)
        {
            let Some(waiter) = self.waiters.remove(at) else {
                break;
            };
            match waiter.deliver.send(Ok(lease)) {
                Ok(()) => return None,
                // Its caller has gone.
                Err(Ok(back)) => lease = back,
                Err(Err(_)) => return None,
            }
        }
        Some(lease)
    }
}

impl Shared {
    /// Takes a connection that is ready for a request.
    pub(super) fn give(&self, connection: Box<Http1>) {
        let mut state = self.lock();
        let unwanted = self.put(&mut state, connection, false);
        drop(state);
        drop(unwanted);
    }

    /// Lets go of connections that the endpoint has closed.
    pub(super) fn forget_closed(&self) {
        let mut state = self.lock();
        let closed: Vec<_> = state.idle.extract_if(.., |idle| idle.is_closed()).collect();
        drop(state);
        drop(closed);
    }

    /// Tells those who wait what came of an attempt to connect.
    fn opened(&self, opened: Result<Opened, BoxError>) {
        let mut state = self.lock();
        state.connecting = state.connecting.saturating_sub(1);
        match opened {
            Ok(Opened::Http1(connection)) => {
                let unwanted = self.put(&mut state, connection, true);
                drop(state);
                drop(unwanted);
            }
            Ok(Opened::Http2(connection)) => state.share(connection),
            Err(error) => {
                tracing::debug!(target = %self.target, error, "connecting failed");
                let refused = Refused(Arc::new(error));
                while state.waiters.len() > state.connecting {
                    let Some(waiter) = state.waiters.pop_front() else {
                        break;
                    };
                    waiter.deliver.send(Err(refused.clone())).ok();
                }
            }
        }
    }

    async fn open(self: &Arc<Self>) -> Result<Opened, BoxError> {
        let stream = dial(&self.target).await?;
        let runtime = &self.settings.runtime;
        Ok(match self.settings.protocol {
            Protocol::Http1 => {
                Opened::Http1(Http1::start(stream, runtime, Arc::downgrade(self)).await?)
            }
            Protocol::Http2 => Opened::Http2(Connection::start(stream, runtime).await?),
        })
    }

    /// Hands a connection over or keeps it; gives it back if there is no room.
    fn put(&self, state: &mut State, mut connection: Box<Http1>, fresh: bool) -> Option<Lease> {
        if state.attempts.is_none() {
            return Some(Lease::Http1(connection));
        }
        connection.aged = state.age;
        connection.turn = state.next_turn();
        match state.deliver(Lease::Http1(connection), fresh)? {
            Lease::Http1(connection) if state.idle.len() < self.settings.most_idle => {
                state.idle.push(connection);
                None
            }
            unwanted => Some(unwanted),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An attempt to connect that is under way; whatever ends it, those who wait are told.
struct Attempt(Option<Arc<Shared>>);

impl Attempt {
    async fn run(mut self) {
        let Some(shared) = self.0.clone() else {
            return;
        };
        let limit = shared.settings.connect_timeout;
        let opened = match timeout(limit, shared.open()).await {
            Ok(opened) => opened,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection within {limit:?}"),
            )
            .into()),
        };
        self.0 = None;
        shared.opened(opened);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(shared) = self.0.take() {
            shared.opened(Err(RuntimeEnded.into()));
        }
    }
}

impl State {
    fn share(&mut self, mut connection: Connection) {
        if self.attempts.is_none() {
            return;
        }
        connection.aged = self.age;
        for waiter in self.waiters.drain(..) {
            waiter
                .deliver
                .send(Ok(Lease::Http2(connection.stream())))
                .ok();
        }
        self.shared = Some(connection);
    }
}

enum Opened {
    Http1(Box<Http1>),
    Http2(Connection),
}

impl Future for Waiting {
    type Output = Result<Lease, Unavailable>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.get_mut().0)
            .poll(cx)
            .map(|delivered| match delivered {
                Ok(Ok(lease)) => Ok(lease),
                Ok(Err(refused)) if refused.0.is::<RuntimeEnded>() => Err(Unavailable::Deserted),
                Ok(Err(refused)) => Err(Unavailable::Refused(refused)),
                Err(_) => Err(Unavailable::Retired),
            })
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Refused {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::task::Runtime;

    use super::*;

    #[tokio::test]
    async fn no_connection_is_opened_for_those_who_have_gone() {
        let settings = Settings {
            runtime: Runtime::current().unwrap(),
            protocol: Protocol::Http1,
            connect_timeout: Duration::from_secs(1),
            most_idle: 1,
        };
        let pool = Pool::new("127.0.0.1:9".parse().unwrap(), Arc::new(settings));
        // Nothing is awaited: no attempt makes headway.
        for _ in 0..200 {
            drop(pool.checkout(Need::Any));
        }
        assert!(pool.0.lock().connecting <= 2);
        let waiting: Vec<_> = (0..10).map(|_| pool.checkout(Need::Any)).collect();
        for _ in 0..200 {
            drop(pool.checkout(Need::Any));
        }
        let connecting = pool.0.lock().connecting;
        assert!((10..=20).contains(&connecting), "{connecting}");
        drop(waiting);
    }
}
