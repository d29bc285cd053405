//! What can be watched: the typed entrances.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::reader::Watch;
use crate::api::{Endpoint, Read, kv};
use crate::error::Result;
use crate::ident::Key;
use crate::transport::BoxError;

/// An element of a snapshot: it has an identity, and it can be compared.
///
/// The trait cannot be implemented outside this crate.
pub trait Watched: fmt::Debug + PartialEq + DeserializeOwned + Send + Sync + 'static {
    /// What makes two elements the same one at different times.
    type Identity<'a>: Eq + Hash;

    /// The element's identity.
    fn identity(&self) -> Self::Identity<'_>;

    /// How elements stand in an answer.
    #[doc(hidden)]
    const SHAPE: Shape<Self>;
}

/// How elements stand in an answer's body.
#[expect(unnameable_types, reason = "seals the trait")]
#[derive(Debug)]
pub enum Shape<T> {
    /// An array of objects, each of them an element.
    Array,
    /// Something else, which is decoded as a whole.
    Whole(Decode<T>),
}

type Decode<T> = fn(&[u8]) -> Result<Vec<Arc<T>>, BoxError>;

/// A read that can be watched.
///
/// The trait cannot be implemented outside this crate.
pub trait Watchable: Endpoint {
    /// The elements of its answers.
    type Item: Watched;

    /// Whether a 404 with an index is an answer without elements.
    #[doc(hidden)]
    const ABSENT_IS_EMPTY: bool = false;

    /// Whether an element of the answer is one that was asked for.
    #[doc(hidden)]
    fn selects(&self) -> Option<fn(&Self::Item) -> bool> {
        None
    }
}

impl<E: Watchable> Read<E> {
    /// A live view of what this read returns.
    ///
    /// Starts a background task, or joins the one that already asks the same for another reader of
    /// this client or a copy of it. The task ends when the last of its readers is dropped: its
    /// query is given up at once.
    ///
    /// Does not wait for the first answer: [`Watch::ready`] does.
    ///
    /// # Errors
    ///
    /// An argument of the read that was refused; [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if the read waits for a
    /// change by hand; [`ErrorKind::NoRuntime`](crate::ErrorKind::NoRuntime) outside of a Tokio runtime.
    pub fn watch(self) -> Result<Watch<E::Item>> {
        Watch::open(self)
    }
}

impl Watched for kv::Pair {
    type Identity<'a> = &'a Key;

    fn identity(&self) -> &Key {
        self.key()
    }

    const SHAPE: Shape<Self> = Shape::Array;
}

impl Watchable for kv::Get {
    type Item = kv::Pair;

    const ABSENT_IS_EMPTY: bool = true;
}

impl Watchable for kv::List {
    type Item = kv::Pair;

    const ABSENT_IS_EMPTY: bool = true;
}
