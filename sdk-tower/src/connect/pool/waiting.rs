//! The wait for a connection, and why it may end without one.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use crate::connect::lease::Lease;
use crate::error::BoxError;

/// Which connection will do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Need {
    Any,
    /// One that is opened now: others have just turned out to be dead.
    Fresh,
    /// Any, and if all that there may be are in use the request stands in line for one.
    InLine,
}

/// Somebody who waits, as the pool sees it.
pub(super) struct Waiter {
    pub(super) deliver: oneshot::Sender<Result<Lease, Denied>>,
    pub(super) need: Need,
    /// The last attempt to connect that had begun before.
    since: u64,
}

impl Waiter {
    pub(super) fn new(need: Need, since: u64) -> (Self, Waiting) {
        let (deliver, waiting) = oneshot::channel();
        let waiter = Self {
            deliver,
            need,
            since,
        };
        (waiter, Waiting(waiting))
    }

    /// Whether the attempt was under way when the request came: what it met may be over.
    pub(super) fn came_after(&self, attempt: u64) -> bool {
        attempt <= self.since
    }

    pub(super) fn refusal(&self, refused: &Refused, attempt: u64) -> Denied {
        // Whoever has waited as long as connecting may take does not do so once more.
        let is_older = self.came_after(attempt) && !refused.is_late();
        let whose = if is_older { Whose::Older } else { Whose::Own };
        Denied::Refused(refused.clone(), whose)
    }
}

/// The wait for a connection: a new one, or one that another request gives back before.
///
/// Dropping it does not end the attempt to connect; the connection goes to the next request.
pub(crate) struct Waiting(oneshot::Receiver<Result<Lease, Denied>>);

/// Why somebody who waits gets no connection.
pub(super) enum Denied {
    Refused(Refused, Whose),
    Busy,
}

/// Whether an attempt to connect says something of the endpoint as it was when a request came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Whose {
    /// It began for the request, or later.
    Own,
    /// It was under way before. The endpoint may have been started anew since.
    Older,
}

/// Why there is no connection.
pub(crate) enum Unavailable {
    Refused(Refused, Whose),
    /// As many connections as there may be are in use.
    Busy,
    Retired,
    /// The runtime that connections live in has ended.
    Deserted,
}

/// Why an attempt to connect failed; told to everybody who waited for it.
#[derive(Clone, Debug)]
pub(crate) struct Refused(Arc<BoxError>);

#[derive(Debug)]
pub(super) struct RuntimeEnded;

impl Refused {
    pub(super) fn because(error: BoxError) -> Self {
        Self(Arc::new(error))
    }

    pub(super) fn is_deserted(&self) -> bool {
        self.0.is::<RuntimeEnded>()
    }

    /// The time for connecting was over.
    fn is_late(&self) -> bool {
        let told = self.0.downcast_ref::<io::Error>();
        told.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
    }
}

impl Future for Waiting {
    type Output = Result<Lease, Unavailable>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.get_mut().0)
            .poll(cx)
            .map(|delivered| match delivered {
                Ok(Ok(lease)) => Ok(lease),
                Ok(Err(Denied::Refused(refused, _))) if refused.is_deserted() => {
                    Err(Unavailable::Deserted)
                }
                Ok(Err(Denied::Refused(refused, whose))) => {
                    Err(Unavailable::Refused(refused, whose))
                }
                Ok(Err(Denied::Busy)) => Err(Unavailable::Busy),
                Err(_) => Err(Unavailable::Retired),
            })
    }
}

impl fmt::Display for RuntimeEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the runtime of the channel has ended")
    }
}

impl StdError for RuntimeEnded {}

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
