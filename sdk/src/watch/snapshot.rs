//! What a reader sees.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::api::{Backend, Meta};
use crate::error::Error;

/// What Consul held at one moment.
///
/// Dereferences to the elements, in Consul's order. Cheap to clone: the elements are shared with
/// all readers, and those that did not change with the snapshots before and after.
pub struct Snapshot<T> {
    content: Arc<Content<T>>,
    status: Status,
    confirmed_at: Instant,
}

/// The elements and where they came from.
pub(super) struct Content<T> {
    pub(super) items: Vec<Arc<T>>,
    pub(super) meta: Meta,
    /// Rises with each content that is told.
    pub(super) version: u64,
    pub(super) received_at: Instant,
    /// What the elements were read from, shared.
    pub(super) body: Bytes,
    /// Whether it stood in a file.
    pub(super) is_kept: bool,
}

/// Whether a watch is up to date.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Status {
    /// Consul has not answered yet; after a failure, the error tells why.
    Connecting {
        /// The last failure, if there was one.
        error: Option<Error>,
    },
    /// The last query was answered, or is being waited on.
    Live,
    /// The last query failed: what was known before is still served.
    Stale(Outage),
    /// So many elements went at once that a [guard](super::Guard) does not believe it yet.
    Suspect(Suspicion),
}

/// As people read it: `live`, `stale for 3.2s: …`.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting { error: None } => f.write_str("not answered yet"),
            Self::Connecting { error: Some(error) } => {
                write!(f, "not answered yet: {}", error.chain())
            }
            Self::Live => f.write_str("live"),
            Self::Stale(outage) => {
                let Outage { error, .. } = outage;
                write!(f, "stale for {:.1?}: {}", outage.lasts(), error.chain())
            }
            Self::Suspect(suspicion) => {
                let Suspicion { gone, of, .. } = suspicion;
                write!(
                    f,
                    "doubted for {:.1?}: {gone} of {of} are gone",
                    suspicion.lasts()
                )
            }
        }
    }
}

/// A content that a [guard](super::Guard) does not believe yet.
#[derive(Clone, Debug)]
pub struct Suspicion {
    pub(super) since: Instant,
    pub(super) gone: usize,
    pub(super) of: usize,
    pub(super) held: bool,
}

impl Suspicion {
    /// How long ago they went.
    #[must_use]
    pub fn lasts(&self) -> Duration {
        self.since.elapsed()
    }

    /// How many elements are gone.
    #[must_use]
    pub fn gone(&self) -> usize {
        self.gone
    }

    /// Of how many.
    #[must_use]
    pub fn of(&self) -> usize {
        self.of
    }

    /// Whether the last content that was believed is told in its place.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held
    }
}

/// A time in which queries fail.
#[derive(Clone, Debug)]
pub struct Outage {
    pub(super) since: Instant,
    pub(super) error: Error,
}

impl Outage {
    /// How long ago the first of these failures was noticed.
    #[must_use]
    pub fn lasts(&self) -> Duration {
        self.since.elapsed()
    }

    /// The last failure.
    #[must_use]
    pub fn error(&self) -> &Error {
        &self.error
    }
}

/// What gave a snapshot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Source {
    /// A server answered a blocking query.
    Server,
    /// The agent's materialised view of a stream (Consul 1.10 and later).
    Streaming,
    /// The agent's cache.
    Cache,
    /// A file of a former process, or of this one: see [`Watch::keep_in`](super::Watch::keep_in).
    Disk,
}

impl Status {
    /// Whether the watch is up to date.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Live)
    }

    /// Why the watch is not up to date.
    #[must_use]
    pub fn error(&self) -> Option<&Error> {
        match self {
            Self::Connecting { error } => error.as_ref(),
            Self::Live | Self::Suspect(_) => None,
            Self::Stale(outage) => Some(outage.error()),
        }
    }

    /// Whether a reader that knows one need not be told the other.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Live, Self::Live) => true,
            (Self::Suspect(one), Self::Suspect(other)) => {
                (one.since, one.gone, one.of) == (other.since, other.gone, other.of)
            }
            (Self::Connecting { .. }, Self::Connecting { .. })
            | (Self::Stale(_), Self::Stale(_)) => {
                self.error().map(Error::kind) == other.error().map(Error::kind)
            }
            _ => false,
        }
    }
}

impl<T> Snapshot<T> {
    pub(super) fn new(content: Arc<Content<T>>, status: Status, confirmed_at: Instant) -> Self {
        Self {
            content,
            status,
            confirmed_at,
        }
    }

    /// The elements, shared.
    #[must_use]
    pub fn items(&self) -> &[Arc<T>] {
        &self.content.items
    }

    /// Consul's index of this content; absent where the answer had none.
    #[must_use]
    pub fn index(&self) -> Option<u64> {
        self.content.meta.index()
    }

    /// What Consul said about the answer.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.content.meta
    }

    /// What gave it.
    #[must_use]
    pub fn source(&self) -> Source {
        if self.content.is_kept {
            return Source::Disk;
        }
        if self.content.meta.cache().is_some_and(|cache| cache.hit) {
            return Source::Cache;
        }
        match self.content.meta.backend() {
            Some(Backend::Streaming) => Source::Streaming,
            _ => Source::Server,
        }
    }

    /// How long ago this content came.
    #[must_use]
    pub fn unchanged_for(&self) -> Duration {
        self.content.received_at.elapsed()
    }

    /// How long ago Consul last said, as far as this reader knew when it took the snapshot, that
    /// this is what it holds.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.confirmed_at.elapsed()
    }

    /// Whether the watch was up to date when the reader took the snapshot.
    #[must_use]
    pub fn status(&self) -> &Status {
        &self.status
    }

    pub(super) fn version(&self) -> u64 {
        self.content.version
    }
}

impl<T> Deref for Snapshot<T> {
    type Target = [Arc<T>];

    fn deref(&self) -> &[Arc<T>] {
        &self.content.items
    }
}

impl<T> Clone for Snapshot<T> {
    fn clone(&self) -> Self {
        Self {
            content: Arc::clone(&self.content),
            status: self.status.clone(),
            confirmed_at: self.confirmed_at,
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Snapshot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("items", &self.content.items)
            .field("index", &self.index())
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}
