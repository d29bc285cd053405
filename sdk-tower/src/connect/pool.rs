//! The connections to one endpoint.

mod attempt;
mod waiting;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::endpoint::Target;
use crate::task::Group;

use super::http1::Http1;
use super::http2::Connection;
use super::lease::Lease;
use super::slots::{Slot, Sockets};
use super::{Residence, Settings, Wire};

use attempt::{Attempt, Opened};
use waiting::{Denied, Waiter};

pub(crate) use waiting::{Need, Refused, Unavailable, Waiting, Whose};

/// The connections to one endpoint. Dropping it is retiring it.
pub(crate) struct Pool(Arc<Shared>);

pub(super) struct Shared {
    target: Target,
    settings: Arc<Settings>,
    sockets: Arc<Sockets>,
    state: Mutex<State>,
    /// Looked at when a connection is opened.
    residence: Mutex<Residence>,
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
    /// Each is served in the end: by an attempt to connect that is under way, or if it stands in line
    /// by a connection that is in use.
    waiters: VecDeque<Waiter>,
    connecting: usize,
    /// Attempts to connect that were ever begun.
    begun: u64,
    /// Sockets that are open or being opened by this pool.
    open: usize,
    /// What the endpoint spoke last; none if nobody has asked it yet.
    wire: Option<Wire>,
    age: u32,
    /// Counts connections taken and given back, to tell which came first.
    turn: u64,
    /// The attempts to connect; none once the pool is retired.
    attempts: Option<Group>,
}

/// What a pool has for a request.
pub(crate) enum Checkout {
    Ready(Lease),
    Wait(Waiting),
    /// As many connections as there may be are in use.
    Busy,
    /// The endpoint has left.
    Retired,
}

impl Pool {
    pub(crate) fn new(target: Target, settings: Arc<Settings>) -> Self {
        let attempts = Group::new(settings.runtime.clone());
        let wire = settings.wire();
        let sockets = if settings.most_open == usize::MAX {
            Arc::default()
        } else {
            settings.addresses.sockets(&target)
        };
        let shared = Arc::new(Shared {
            target,
            settings,
            sockets,
            state: Mutex::new(State {
                idle: Vec::new(),
                shared: None,
                waiters: VecDeque::new(),
                connecting: 0,
                begun: 0,
                open: 0,
                wire,
                age: 0,
                turn: 0,
                attempts: Some(attempts),
            }),
            residence: Mutex::default(),
        });
        shared.sockets.belong_to(&shared);
        Self(shared)
    }

    pub(crate) fn checkout(&self, need: Need) -> Checkout {
        let shared = &self.0;
        let mut state = shared.lock();
        if state.attempts.is_none() {
            return Checkout::Retired;
        }
        if need != Need::Fresh
            && let Some(lease) = state.ready()
        {
            return Checkout::Ready(lease);
        }
        // No connection is opened for those who have gone. Looking through all of them at powers
        // of two costs little, and at most every second waiter is one of them.
        if state.waiters.len().is_power_of_two() {
            state.waiters.retain(|waiter| !waiter.deliver.is_closed());
        }
        let joined = state.waiters.len() + 1;
        let is_served = state.connecting >= state.wanted(joined);
        if !is_served && need != Need::InLine && !shared.has_room(&state) {
            // The idle ones may be as dead as the one that this request has met: they make room.
            let doubtful = std::mem::take(&mut state.idle);
            drop(state);
            drop(doubtful);
            return Checkout::Busy;
        }
        let (waiter, waiting) = Waiter::new(need, state.begun);
        state.waiters.push_back(waiter);
        shared.start(state);
        Checkout::Wait(waiting)
    }

    /// Opens one more connection than there are, if there are fewer than so many.
    ///
    /// What comes of it is told; nothing if there is nothing to do.
    pub(crate) fn warm(&self, wanted: usize) -> Option<oneshot::Receiver<Result<(), Refused>>> {
        let shared = &self.0;
        let mut state = shared.lock();
        // One of HTTP/2 is enough, and what is spoken is told by the first.
        let enough = match state.wire {
            Some(Wire::Http1) => wanted,
            Some(Wire::Http2) | None => 1,
        };
        if state.open >= enough || !shared.has_room(&state) {
            return None;
        }
        let (tell, told) = oneshot::channel();
        let place = state.attempts.as_ref()?.place();
        let number = shared.begin(&mut state);
        drop(state);
        place.fill(Attempt::of(shared, number, Some(tell)).run());
        Some(told)
    }

    pub(crate) fn is_secured(&self) -> bool {
        self.0.settings.is_secured()
    }

    /// Learns where the endpoint lives, for the name that it has to prove from now on.
    pub(crate) fn follow(&self, node: Option<&Arc<str>>, datacenter: Option<&Arc<str>>) {
        if !self.0.settings.is_secured() {
            return;
        }
        let mut known = self.0.residence();
        if known.node.as_ref() != node || known.datacenter.as_ref() != datacenter {
            *known = Residence {
                node: node.cloned(),
                datacenter: datacenter.cloned(),
            };
        }
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

    /// Tells that time passes: closes what was not used of late, and what has had its time.
    ///
    /// A shared connection that has had its time is not closed but handed out no more: the requests
    /// on it finish.
    pub(crate) fn age(&self) {
        let mut state = self.0.lock();
        state.age = state.age.wrapping_add(1);
        let (age, most) = (state.age, self.0.settings.idle_ages);
        let old = |aged: u32, ends| age.wrapping_sub(aged) >= most || is_over(age, ends);
        let closed = state.idle.extract_if(.., |idle| old(idle.aged, idle.ends));
        let closed: Vec<_> = closed.collect();
        let shared = state.shared.take_if(|one| old(one.aged, one.ends));
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

/// Whether an age is reached; ages wrap.
fn is_over(age: u32, ends: Option<u32>) -> bool {
    ends.is_some_and(|ends| age.wrapping_sub(ends) <= u32::MAX / 2)
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

    /// How many attempts to connect so many waiters ask for.
    ///
    /// Where one connection serves all, or may, there is one at a time.
    fn wanted(&self, waiters: usize) -> usize {
        match self.wire {
            Some(Wire::Http1) => waiters,
            Some(Wire::Http2) | None => waiters.min(1),
        }
    }

    /// Hands a connection to the first who wants it; a new one comes of an attempt.
    fn deliver(&mut self, mut lease: Lease, attempt: Option<u64>) -> Option<Lease> {
        while let Some(at) = self
            .waiters
            .iter()
            .position(|waiter| attempt.is_some() || waiter.need != Need::Fresh)
        {
            let Some(waiter) = self.waiters.remove(at) else {
                break;
            };
            if attempt.is_some_and(|attempt| waiter.came_after(attempt)) {
                lease.stood_before();
            }
            match waiter.deliver.send(Ok(lease)) {
                Ok(()) => return None,
                // Its caller has gone.
                Err(Ok(back)) => lease = back,
                Err(Err(_)) => return None,
            }
        }
        Some(lease)
    }

    /// Hands a shared connection to all, and keeps it unless there is one already.
    fn share(&mut self, mut connection: Connection, attempt: u64) -> Option<Connection> {
        if self.attempts.is_none() {
            return Some(connection);
        }
        let needs_fresh = self.waiters.iter().any(|one| one.need == Need::Fresh);
        let surplus = match &mut self.shared {
            // Several were opened before it was known that one is enough.
            Some(known) if !known.is_closed() && !needs_fresh => Some(connection),
            known => {
                connection.aged = self.age;
                known.replace(connection)
            }
        };
        if let Some(shared) = &mut self.shared {
            for waiter in self.waiters.drain(..) {
                let mut lease = Lease::Http2(shared.stream());
                if waiter.came_after(attempt) {
                    lease.stood_before();
                }
                waiter.deliver.send(Ok(lease)).ok();
            }
            shared.rest();
        }
        surplus
    }

    /// Tells those for whom no attempt is under way, and who do not stand in line.
    fn deny(&mut self, denied: impl Fn(&Waiter) -> Denied) -> usize {
        let patient = |waiter: &Waiter| waiter.need == Need::InLine;
        let mut many = self.waiters.iter().filter(|one| !patient(one)).count();
        let mut told = 0;
        while many > self.connecting
            && let Some(at) = self.waiters.iter().position(|one| !patient(one))
            && let Some(waiter) = self.waiters.remove(at)
        {
            let denied = denied(&waiter);
            waiter.deliver.send(Err(denied)).ok();
            many -= 1;
            told += 1;
        }
        told
    }

    /// Tells that an attempt has failed.
    fn refuse(&mut self, refused: &Refused, attempt: u64) {
        let denied = |waiter: &Waiter| waiter.refusal(refused, attempt);
        let told = self.deny(denied);
        // The attempt may have been for one in line: it had better look elsewhere. If it was the last
        // socket there is nothing to wait for.
        let in_line = match self.open {
            0 | 1 => self.waiters.len().saturating_sub(self.connecting),
            _ => usize::from(told == 0 && self.waiters.len() > self.connecting),
        };
        let in_line = if refused.is_deserted() {
            self.waiters.len()
        } else {
            in_line
        };
        for waiter in self.waiters.drain(..in_line) {
            let denied = denied(&waiter);
            waiter.deliver.send(Err(denied)).ok();
        }
    }
}

impl Shared {
    /// Takes a connection that is ready for a request.
    pub(super) fn give(&self, connection: Box<Http1>) {
        let mut state = self.lock();
        let unwanted = self.put(&mut state, connection, None);
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

    /// A socket of this pool is closed.
    pub(super) fn closed(&self) {
        let mut state = self.lock();
        state.open = state.open.saturating_sub(1);
    }

    /// There is room for another socket.
    pub(super) fn freed(self: Arc<Self>) {
        self.start(self.lock());
    }

    /// Whether one more connection may be opened.
    ///
    /// Of HTTP/2 there is one, beside those that still finish.
    fn has_room(&self, state: &State) -> bool {
        state.wire == Some(Wire::Http2) || self.sockets.open() < self.settings.most_open
    }

    /// Begins an attempt to connect, which is to be given a [`Slot`] and this number.
    fn begin(&self, state: &mut State) -> u64 {
        state.connecting += 1;
        state.open += 1;
        self.sockets.begin();
        state.begun += 1;
        state.begun
    }

    fn slot(self: &Arc<Self>) -> Slot {
        Slot::new(Arc::downgrade(self), Arc::clone(&self.sockets))
    }

    /// Starts as many attempts to connect as are wanted and may be.
    fn start(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let mut places = Vec::new();
        while state.connecting < state.wanted(state.waiters.len())
            && self.has_room(&state)
            && let Some(attempts) = &state.attempts
        {
            let place = attempts.place();
            places.push((place, self.begin(&mut state)));
        }
        // If the runtime has ended, the attempts end here and ask for the lock.
        drop(state);
        for (place, number) in places {
            place.fill(Attempt::of(self, number, None).run());
        }
    }

    /// Tells those who wait what came of an attempt to connect.
    fn opened(self: &Arc<Self>, attempt: u64, opened: Result<Opened, Refused>) {
        let mut state = self.lock();
        state.connecting = state.connecting.saturating_sub(1);
        match opened {
            Ok(Opened::Http1(mut connection)) => {
                state.wire = Some(Wire::Http1);
                connection.ends = self.end(&state);
                let unwanted = self.put(&mut state, connection, Some(attempt));
                // Who has waited for a connection that all would share needs one for each.
                self.start(state);
                drop(unwanted);
                self.lock().deny(|_| Denied::Busy);
            }
            Ok(Opened::Http2(mut connection)) => {
                state.wire = Some(Wire::Http2);
                connection.ends = self.end(&state);
                let surplus = state.share(connection, attempt);
                drop(state);
                drop(surplus);
            }
            Err(refused) => {
                tracing::debug!(target = %self.target, error = %refused, "connecting failed");
                state.refuse(&refused, attempt);
            }
        }
    }

    /// The age at which a new connection takes no more requests.
    ///
    /// Drawn for each: those that were opened together are not to close together.
    fn end(&self, state: &State) -> Option<u32> {
        let range = self.settings.lifetime.clone()?;
        Some(state.age.wrapping_add(rand::random_range(range)))
    }

    /// Hands a connection over or keeps it; gives it back if there is no room.
    fn put(
        &self,
        state: &mut State,
        mut connection: Box<Http1>,
        attempt: Option<u64>,
    ) -> Option<Lease> {
        if state.attempts.is_none() || is_over(state.age, connection.ends) {
            return Some(Lease::Http1(connection));
        }
        connection.aged = state.age;
        connection.turn = state.next_turn();
        match state.deliver(Lease::Http1(connection), attempt)? {
            Lease::Http1(mut connection) if state.idle.len() < self.settings.most_idle => {
                connection.rest();
                state.idle.push(connection);
                None
            }
            unwanted => Some(unwanted),
        }
    }

    fn residence(&self) -> MutexGuard<'_, Residence> {
        // It is replaced as a whole.
        self.residence
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use crate::task::Runtime;

    use super::*;

    #[tokio::test]
    async fn no_connection_is_opened_for_those_who_have_gone() {
        let settings = Settings::plain(Runtime::current().unwrap());
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
