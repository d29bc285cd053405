//! What all endpoints have in common.

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::client::Raw;
use crate::error::Result;
use crate::ident::text::Table;
use crate::proto::json;
use crate::proto::pieces::Splitter;
use crate::transport::{BoxError, Gather};

/// What an endpoint's answer means.
///
/// Each of Consul's endpoints is a type; [`Read`](super::Read) and [`Write`](super::Write) are
/// generic over it. The trait cannot be implemented outside this crate.
pub trait Endpoint: Send + Sync + 'static {
    /// What a good answer holds.
    type Output: Send + 'static;

    /// Reads an answer of any status.
    #[doc(hidden)]
    fn interpret(&self, answer: Answered) -> Result<Self::Output>;

    /// What reads a good answer while it comes, if that saves memory.
    #[doc(hidden)]
    fn gathering(&self) -> Option<Gathering<Self::Output>> {
        None
    }
}

/// What an answer that comes in pieces is gathered in; it cannot be named outside this crate.
#[expect(unnameable_types, reason = "seals the trait")]
pub struct Gathering<T>(Box<dyn Gathered<T>>);

/// The other end of a [`Gather`].
trait Gathered<T>: Gather {
    /// Whether anything was taken in.
    fn began(&self) -> bool;

    /// All that was taken in.
    fn finish(self: Box<Self>) -> Result<T, BoxError>;
}

impl<T> Gathering<T> {
    pub(super) fn as_gather(&mut self) -> &mut (dyn Gather + 'static) {
        &mut *self.0
    }

    /// What was gathered, if the answer came in pieces.
    pub(super) fn finish(self) -> Option<Result<T, BoxError>> {
        self.0.began().then(|| self.0.finish())
    }
}

impl<T> fmt::Debug for Gathering<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gathering")
    }
}

/// Makes an endpoint's answer a list, which is read while it comes if it is long.
macro_rules! answers_with_list {
    ($endpoint:ty => $item:ty) => {
        impl $crate::api::Endpoint for $endpoint {
            type Output = Vec<std::sync::Arc<$item>>;

            fn interpret(
                &self,
                answer: $crate::api::endpoint::Answered,
            ) -> $crate::error::Result<Self::Output> {
                answer.good()?.json()
            }

            fn gathering(&self) -> Option<$crate::api::endpoint::Gathering<Self::Output>> {
                $crate::api::endpoint::list()
            }
        }
    };
}

pub(super) use answers_with_list;

/// Gathers the elements of a list, each decoded as soon as it is complete.
pub(super) fn list<T>() -> Option<Gathering<Vec<Arc<T>>>>
where
    T: DeserializeOwned + Send + Sync + 'static,
{
    Some(Gathering(Box::new(List {
        splitter: Splitter::new(),
        table: Table::default(),
        items: Vec::new(),
    })))
}

struct List<T> {
    splitter: Splitter,
    table: Table,
    items: Vec<Arc<T>>,
}

impl<T: DeserializeOwned + Send + Sync> Gather for List<T> {
    fn take(&mut self, piece: &[u8]) -> Result<(), BoxError> {
        let Self {
            splitter,
            table,
            items,
        } = self;
        table.within(splitter.came().saturating_add(piece.len()), || {
            splitter.push(piece, |text| {
                items.push(Arc::new(json::read(text)?));
                Ok(())
            })
        })
    }
}

impl<T: DeserializeOwned + Send + Sync> Gathered<Vec<Arc<T>>> for List<T> {
    fn began(&self) -> bool {
        self.splitter.came() > 0
    }

    fn finish(self: Box<Self>) -> Result<Vec<Arc<T>>, BoxError> {
        self.splitter.finish()?;
        Ok(self.items)
    }
}

/// An answer as it came; it cannot be named outside this crate, which seals [`Endpoint`].
#[expect(unnameable_types, reason = "seals the trait")]
#[derive(Debug)]
pub struct Answered(pub(crate) Raw);

impl Answered {
    /// The answer itself if its status is a success.
    pub(crate) fn good(self) -> Result<Raw> {
        self.0.good()
    }
}
