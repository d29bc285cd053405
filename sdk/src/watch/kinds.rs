//! What can be watched: the typed entrances.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::reader::Watch;
use crate::api::{Endpoint, Read, catalog, coordinate, event, health, kv, query};
use crate::error::Result;
use crate::ident::{CheckId, Key, NodeName, QueryId, ServiceId, ServiceName};
use crate::proto::json;
use crate::proto::query::Target;
use crate::transport::BoxError;

/// An element of a snapshot: it has an identity, and it can be compared.
///
/// The trait cannot be implemented outside this crate.
pub trait Watched: fmt::Debug + PartialEq + Send + Sync + Sized + 'static {
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
    Array(fn(&[u8]) -> Result<T, BoxError>),
    /// Something else, which is decoded as a whole.
    Whole(fn(&[u8]) -> Result<Items<T>, BoxError>),
}

type Items<T> = Vec<Arc<T>>;

/// An array whose elements are decoded one by one.
const fn array<T: DeserializeOwned>() -> Shape<T> {
    Shape::Array(|text| Ok(json::read(text)?))
}

/// The parameters of a query.
#[expect(unnameable_types, reason = "seals the trait")]
#[derive(Debug)]
pub struct Asked<'a>(pub(super) &'a Target);

/// A read that can be watched.
///
/// The trait cannot be implemented outside this crate.
pub trait Watchable: Endpoint {
    /// The elements of its answers.
    type Item: Watched;

    /// Whether a 404 with an index is an answer without elements.
    #[doc(hidden)]
    const ABSENT_IS_EMPTY: bool = false;

    /// Whether a lower index means that the servers lost something, or have not read it back yet.
    #[doc(hidden)]
    const INDEX_IS_ORDERED: bool = true;

    /// Which elements of the answer were asked for, where an agent may answer with others.
    #[doc(hidden)]
    #[must_use]
    fn selects(_asked: &Asked<'_>) -> Option<fn(&Self::Item) -> bool> {
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

    const SHAPE: Shape<Self> = array();
}

impl Watchable for kv::Get {
    type Item = kv::Pair;

    const ABSENT_IS_EMPTY: bool = true;
}

impl Watchable for kv::List {
    type Item = kv::Pair;

    const ABSENT_IS_EMPTY: bool = true;
}

impl Watched for health::ServiceEntry {
    type Identity<'a> = (&'a NodeName, &'a ServiceId);

    fn identity(&self) -> Self::Identity<'_> {
        (self.node().name(), self.service().id())
    }

    const SHAPE: Shape<Self> = array();
}

impl Watchable for health::Instances {
    type Item = health::ServiceEntry;

    /// `passing` moved from agents to servers in 1.19: an agent of 1.19 in front of older servers
    /// answers with instances that do not pass. Selecting again costs nothing and is always right.
    fn selects(asked: &Asked<'_>) -> Option<fn(&Self::Item) -> bool> {
        asked
            .0
            .has_flag("passing")
            .then_some(|entry| entry.status() == health::Status::Passing)
    }
}

impl Watched for health::Check {
    type Identity<'a> = (&'a NodeName, &'a CheckId);

    fn identity(&self) -> Self::Identity<'_> {
        (self.node(), self.id())
    }

    const SHAPE: Shape<Self> = array();
}

impl Watchable for health::Checks {
    type Item = health::Check;
}

impl Watched for catalog::Node {
    type Identity<'a> = &'a NodeName;

    fn identity(&self) -> &NodeName {
        self.name()
    }

    const SHAPE: Shape<Self> = array();
}

impl Watchable for catalog::Nodes {
    type Item = catalog::Node;
}

impl Watched for catalog::ServiceTags {
    type Identity<'a> = &'a ServiceName;

    fn identity(&self) -> &ServiceName {
        self.name()
    }

    const SHAPE: Shape<Self> = Shape::Whole(|body| {
        let all: Option<catalog::AllServiceTags> = json::read(body)?;
        Ok(all.unwrap_or_default().0)
    });
}

impl Watchable for catalog::Services {
    type Item = catalog::ServiceTags;
}

impl Watched for catalog::CatalogService {
    type Identity<'a> = (&'a NodeName, &'a ServiceId);

    fn identity(&self) -> Self::Identity<'_> {
        (self.node().name(), self.service().id())
    }

    const SHAPE: Shape<Self> = array();
}

impl Watchable for catalog::Instances {
    type Item = catalog::CatalogService;
}

impl Watched for event::Event {
    type Identity<'a> = &'a str;

    fn identity(&self) -> &str {
        self.id()
    }

    const SHAPE: Shape<Self> = array();
}

/// The index of this list is made of the ID of its last event, so that it goes backwards at every
/// second one; then the list is read at once, once more.
impl Watchable for event::List {
    type Item = event::Event;

    const INDEX_IS_ORDERED: bool = false;
}

impl Watched for coordinate::NodeCoordinate {
    type Identity<'a> = (&'a NodeName, &'a str);

    fn identity(&self) -> Self::Identity<'_> {
        (self.node(), self.segment())
    }

    const SHAPE: Shape<Self> = array();
}

impl Watchable for coordinate::Nodes {
    type Item = coordinate::NodeCoordinate;
}

impl Watched for query::StoredQuery {
    type Identity<'a> = &'a QueryId;

    fn identity(&self) -> &QueryId {
        self.id()
    }

    const SHAPE: Shape<Self> = array();
}

impl Watchable for query::List {
    type Item = query::StoredQuery;
}
