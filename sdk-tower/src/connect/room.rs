//! How many requests a shared connection has room for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

/// How many streams may be open before the server has said how many (RFC 9113, 6.5.2, recommends no
/// fewer than it may say).
pub(super) const AT_FIRST: usize = 100;

/// The places of a connection, as many as the server allows streams.
///
/// What hyper gets beyond these it takes out of the request's hands and waits with it inside. If the
/// connection ends then, nobody can tell any more that nothing was sent. So a request for which there
/// is no place waits before it is handed over: what has ended then is not its own affair.
#[derive(Debug)]
pub(super) struct Room {
    places: Semaphore,
    most: AtomicUsize,
    /// Places that are no longer allowed, and still taken.
    owed: AtomicUsize,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            places: Semaphore::new(AT_FIRST),
            most: AtomicUsize::new(AT_FIRST),
            owed: AtomicUsize::new(0),
        }
    }
}

impl Room {
    /// The server allows so many streams from now on. For one caller at a time.
    pub(super) fn allow(&self, most: usize) {
        let most = most.min(Semaphore::MAX_PERMITS);
        let before = self.most.swap(most, Ordering::AcqRel);
        if let Some(fewer) = before.checked_sub(most) {
            let gone = self.places.forget_permits(fewer);
            self.owed
                .fetch_add(fewer.saturating_sub(gone), Ordering::AcqRel);
        } else {
            let more = most.saturating_sub(before);
            let owed = self.pay(more);
            self.places.add_permits(more.saturating_sub(owed));
        }
    }

    /// The connection takes no new request.
    pub(super) fn close(&self) {
        self.places.close();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.places.is_closed()
    }

    /// Sets off up to so many places against those that are owed; says how many.
    fn pay(&self, places: usize) -> usize {
        let paying = |owed: usize| Some(owed.saturating_sub(places));
        match self
            .owed
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, paying)
        {
            Ok(owed) | Err(owed) => owed.min(places),
        }
    }
}

/// One request's part of the room.
#[derive(Debug)]
pub(super) struct Ticket {
    room: Arc<Room>,
    is_inside: bool,
}

impl Ticket {
    pub(super) fn new(room: &Arc<Room>) -> Self {
        Self {
            room: Arc::clone(room),
            is_inside: false,
        }
    }

    pub(super) fn is_inside(&self) -> bool {
        self.is_inside
    }

    /// Takes a place if there is one now.
    pub(super) fn enter(&mut self) -> bool {
        if let Ok(place) = self.room.places.try_acquire() {
            place.forget();
            self.is_inside = true;
        }
        self.is_inside
    }

    /// Waits for a place, in the order of coming, and tells whether there is one.
    ///
    /// [`entered`](Self::entered) is to follow at once.
    pub(super) fn entering(&self) -> impl Future<Output = bool> + Send + use<> {
        let room = Arc::clone(&self.room);
        async move {
            let place = room.places.acquire().await;
            place.map(SemaphorePermit::forget).is_ok()
        }
    }

    pub(super) fn entered(&mut self) {
        self.is_inside = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.is_inside && self.room.pay(1) == 0 {
            self.room.places.add_permits(1);
        }
    }
}

/// Tells those who wait when the connection has ended, whatever has ended it.
pub(super) struct CloseOnDrop(pub(super) Arc<Room>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inside(room: &Arc<Room>) -> Vec<Ticket> {
        let mut inside = Vec::new();
        loop {
            let mut ticket = Ticket::new(room);
            if !ticket.enter() {
                return inside;
            }
            inside.push(ticket);
        }
    }

    #[test]
    fn as_many_are_inside_as_the_server_allows() {
        let room = Arc::default();
        assert_eq!(inside(&room).len(), AT_FIRST);
        room.allow(3);
        let three = inside(&room);
        assert_eq!(three.len(), 3);
        room.allow(5);
        let two = inside(&room);
        assert_eq!(two.len(), 2);
        // Who is inside stays; who leaves leaves no place before all that are owed are gone.
        room.allow(1);
        drop(two);
        assert!(inside(&room).is_empty());
        room.allow(2);
        let [one, other, third] = <[_; 3]>::try_from(three).unwrap();
        drop(one);
        assert!(inside(&room).is_empty());
        drop(other);
        assert_eq!(inside(&room).len(), 1);
        drop(third);
        assert_eq!(inside(&room).len(), 2);
        room.allow(0);
        assert!(inside(&room).is_empty());
        room.allow(usize::MAX);
        room.allow(1);
        assert_eq!(inside(&room).len(), 1);
    }

    #[tokio::test]
    async fn those_who_wait_are_told_of_a_place_and_of_the_end() {
        let room = Arc::<Room>::default();
        room.allow(1);
        let mut first = Ticket::new(&room);
        assert!(first.enter());
        let mut second = Ticket::new(&room);
        assert!(!second.enter());
        let (second_enters, third_enters) = (second.entering(), Ticket::new(&room).entering());
        drop(first);
        assert!(second_enters.await);
        second.entered();
        let closing = CloseOnDrop(Arc::clone(&room));
        drop(closing);
        assert!(!third_enters.await && room.is_closed());
        assert!(!Ticket::new(&room).enter());
        drop(second);
        assert!(!Ticket::new(&room).enter());
    }
}
