//! What a guard holds, and how it knows.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::belief::Belief;
use super::fence::FencingToken;
use super::roster::Prefix;
use super::state::{LossCause, Lost};
use crate::ident::{Key, SessionId};

/// What is held: keys, by a session, since a transaction.
///
/// Every guard dereferences to one. All of its questions are answered from memory, by the clock:
/// ask [`check`](Self::check) right before each side effect, and hand [`token`](Self::token) to the
/// resource that it reaches.
pub struct Held {
    pub(super) hold: Arc<Hold>,
}

impl Held {
    pub(super) const fn new(hold: Arc<Hold>) -> Self {
        Self { hold }
    }

    /// Whether it is held now.
    ///
    /// Without I/O: it compares the clock with the deadline that the last proof allows. `Ok` means
    /// that nobody else holds at this moment; see the [module](super) for what that rests on.
    ///
    /// # Errors
    ///
    /// Once it is lost, for good.
    pub fn check(&self) -> Result<(), Lost> {
        self.hold.check().map(|_| ())
    }

    /// How much longer it is held if nothing is proven from now on; zero once it is lost.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.hold.check().unwrap_or_default()
    }

    /// Resolves when it is no longer held, before anybody else can hold.
    ///
    /// Where Consul shows that the key is not its own any more, [`check`](Self::check) says so at
    /// once, and this as soon as Consul has told why, half a second later at most.
    ///
    /// The future owns what it needs: it may outlive the guard, whose release ends it. It depends
    /// on the clock and on nothing else; where the runtime itself stands still, ask
    /// [`check`](Self::check). Polled from outside of the runtime at the very moment that ends, it may
    /// panic, as all of Tokio's timers do.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: a loss is final and is told to everybody who asks.
    pub fn lost(&self) -> impl Future<Output = Lost> + Send + use<> {
        let hold = Arc::clone(&self.hold);
        async move { hold.lost().await }
    }

    /// The number that makes a resource refuse whoever held before.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.hold.token
    }

    /// The session that holds it.
    #[must_use]
    pub fn session(&self) -> &SessionId {
        &self.hold.session
    }

    /// The keys that are held, in the order in which they were asked for.
    #[must_use]
    pub fn keys(&self) -> &[Key] {
        &self.hold.keys
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("keys", &self.hold.keys)
            .field("token", &self.hold.token)
            .field("session", &self.hold.session)
            .field("remaining", &self.remaining())
            .finish()
    }
}

/// The shared half of a guard.
#[derive(Debug)]
pub(super) struct Hold {
    pub(super) keys: Vec<Key>,
    pub(super) session: SessionId,
    pub(super) token: FencingToken,
    /// The semaphore, if it is a place in one.
    pub(super) seat: Option<Prefix>,
    belief: Arc<Belief>,
    /// How this one ended, if not with the session.
    end: watch::Sender<End>,
    contents: Mutex<Vec<Content>>,
}

/// The end of one hold, apart from that of its session.
#[derive(Debug)]
enum End {
    NotYet,
    /// It is over, and it is being found out why.
    Near,
    Told(Lost),
}

/// What stands in a held key, as far as is known: an unlock writes it again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Content {
    pub(super) modify_index: u64,
    pub(super) value: Bytes,
    pub(super) flags: u64,
}

impl Hold {
    pub(super) fn new(
        keys: Vec<Key>,
        contents: Vec<Content>,
        seat: Option<Prefix>,
        session: SessionId,
        token: FencingToken,
        belief: Arc<Belief>,
    ) -> Self {
        let (end, _) = watch::channel(End::NotYet);
        Self {
            keys,
            session,
            token,
            seat,
            belief,
            end,
            contents: Mutex::new(contents),
        }
    }

    pub(super) fn check(&self) -> Result<Duration, Lost> {
        match &*self.end.borrow() {
            End::Told(lost) => Err(lost.clone()),
            End::Near => Err(Lost::new(LossCause::KeyGone)),
            End::NotYet => self.belief.check(),
        }
    }

    /// Ends this one; the session may live on.
    pub(super) fn end(&self, lost: Lost) {
        self.end.send_if_modified(|end| {
            let first = !matches!(end, End::Told(_));
            if first {
                *end = End::Told(lost);
            }
            first
        });
    }

    /// Whether this one has been ended, whatever became of the session.
    pub(super) fn is_over(&self) -> bool {
        !matches!(*self.end.borrow(), End::NotYet)
    }

    /// Ends this one at once, before it is known why: see [`Ending`].
    pub(super) fn ending(&self) -> Ending<'_> {
        self.end.send_if_modified(|end| {
            if matches!(end, End::NotYet) {
                *end = End::Near;
            }
            // Nobody is to be woken: those who wait are told the cause.
            false
        });
        Ending(self)
    }

    pub(super) async fn lost(&self) -> Lost {
        let mut end = self.end.subscribe();
        tokio::select! {
            biased;
            end = end.wait_for(|end| matches!(end, End::Told(_))) => match end.as_deref() {
                Ok(End::Told(lost)) => lost.clone(),
                _ => Lost::new(LossCause::Ended),
            },
            lost = self.belief.lost() => lost,
        }
    }

    pub(super) fn contents(&self) -> MutexGuard<'_, Vec<Content>> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what was seen in a key, unless something newer is known.
    pub(super) fn saw(&self, place: usize, content: Content) {
        if let Some(known) = self.contents().get_mut(place)
            && known.modify_index < content.modify_index
        {
            *known = content;
        }
    }
}

/// A hold that is over for a reason that is being found out. It is told when this is dropped.
pub(super) struct Ending<'a>(&'a Hold);

impl Ending<'_> {
    /// The session is gone, and with it all that it held.
    pub(super) fn with_the_session(self) {
        let lost = Lost::new(LossCause::SessionGone);
        self.0.belief.end(lost.clone());
        self.0.end(lost);
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.end(Lost::new(LossCause::KeyGone));
    }
}
