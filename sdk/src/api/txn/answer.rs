//! What a transaction is answered with.

use std::fmt;

use bytes::Bytes;
use serde::Deserialize;

use super::reason;
use crate::api::Meta;
use crate::api::kv::Pair;
use crate::api::model::{Check, Node, ServiceInstance};
use crate::client::Raw;
use crate::error::{Error, ErrorKind, Result};
use crate::ident::{Key, SessionId};
use crate::proto::json;

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "a transaction may have been rolled back"]
#[expect(clippy::exhaustive_enums, reason = "there is no third way")]
pub enum Outcome {
    /// All operations took place.
    Committed(Results),
    /// None did; these are the operations that failed, in their order.
    RolledBack(Vec<Failure>),
}

impl Outcome {
    /// The results if it was committed.
    #[must_use]
    pub fn committed(self) -> Option<Results> {
        match self {
            Self::Committed(results) => Some(results),
            Self::RolledBack(_) => None,
        }
    }

    /// The results, or an error that tells the first failure.
    ///
    /// For a transaction that is not expected to fail.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::PermissionDenied`], [`ErrorKind::UnknownSession`] or
    /// [`ErrorKind::Unsupported`] if that is why it was rolled back, and else
    /// [`ErrorKind::Conflict`].
    pub fn into_result(self) -> Result<Results> {
        let failures = match self {
            Self::Committed(results) => return Ok(results),
            Self::RolledBack(failures) => failures,
        };
        let first = failures.first();
        let kind = match first.map(Failure::reason) {
            Some(FailureReason::PermissionDenied) => ErrorKind::PermissionDenied,
            Some(FailureReason::UnknownSession) => ErrorKind::UnknownSession,
            Some(FailureReason::Unsupported) => ErrorKind::Unsupported,
            _ => ErrorKind::Conflict,
        };
        let context = match first {
            Some(failure) => format!("transaction rolled back: {failure}"),
            None => "transaction rolled back".to_owned(),
        };
        Err(Error::new(kind).context(context))
    }

    /// The same without its first operations, which were not the caller's own.
    pub(crate) fn behind(self, first: usize) -> Self {
        match self {
            Self::Committed(Results { results, meta }) => {
                let results = results.into_iter().skip(first).collect();
                Self::Committed(Results { results, meta })
            }
            Self::RolledBack(failures) => {
                let own = failures.into_iter().filter_map(|failure| {
                    let operation = failure.operation.checked_sub(first)?;
                    Some(Failure {
                        operation,
                        ..failure
                    })
                });
                Self::RolledBack(own.collect())
            }
        }
    }
}

/// The results of a transaction that was committed, by the operations' places.
#[derive(Clone, Debug, PartialEq)]
pub struct Results {
    results: Box<[OpResult]>,
    meta: Meta,
}

impl Results {
    pub(super) fn new(results: Vec<OpResult>, meta: Meta) -> Self {
        Self {
            results: results.into_boxed_slice(),
            meta,
        }
    }

    /// The result of the operation at this place, counted from 0.
    #[must_use]
    pub fn get(&self, operation: usize) -> Option<&OpResult> {
        self.results.get(operation)
    }

    /// All results, as many as there were operations and in their order.
    pub fn iter(&self) -> std::slice::Iter<'_, OpResult> {
        self.results.iter()
    }

    /// The key's state, if the operation at this place was one on a single key.
    #[must_use]
    pub fn kv(&self, operation: usize) -> Option<&KvEntry> {
        match self.get(operation)? {
            OpResult::Kv(entry) => Some(entry),
            _ => None,
        }
    }

    /// The keys that were read by the [`get_tree`](super::KvOp::get_tree) at this place, sorted;
    /// none if it is another operation.
    #[must_use]
    pub fn tree(&self, operation: usize) -> &[Pair] {
        match self.get(operation) {
            Some(OpResult::Tree(pairs)) => pairs,
            _ => &[],
        }
    }

    /// The node, if the operation at this place was one on a node.
    #[must_use]
    pub fn node(&self, operation: usize) -> Option<&Node> {
        match self.get(operation)? {
            OpResult::Node(node) => Some(node),
            _ => None,
        }
    }

    /// The instance, if the operation at this place was one on a service.
    #[must_use]
    pub fn service(&self, operation: usize) -> Option<&ServiceInstance> {
        match self.get(operation)? {
            OpResult::Service(service) => Some(service),
            _ => None,
        }
    }

    /// The check, if the operation at this place was one on a check.
    #[must_use]
    pub fn check(&self, operation: usize) -> Option<&Check> {
        match self.get(operation)? {
            OpResult::Check(check) => Some(check),
            _ => None,
        }
    }

    /// What Consul said about the answer: last contact and leader of a transaction that only
    /// reads, and nothing of one that writes. Neither has an index.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl<'a> IntoIterator for &'a Results {
    type Item = &'a OpResult;
    type IntoIter = std::slice::Iter<'a, OpResult>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl IntoIterator for Results {
    type Item = OpResult;
    type IntoIter = std::vec::IntoIter<OpResult>;

    fn into_iter(self) -> Self::IntoIter {
        self.results.into_vec().into_iter()
    }
}

/// What one operation is answered with.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum OpResult {
    /// Nothing: a deletion, a [`check_not_exists`](super::KvOp::check_not_exists), or a read of
    /// what the token may not see.
    Nothing,
    /// The state of one key after the operation.
    Kv(KvEntry),
    /// The keys of a [`get_tree`](super::KvOp::get_tree), sorted, without those that the token may
    /// not see.
    Tree(Vec<Pair>),
    /// A node of the catalog after the operation.
    Node(Box<Node>),
    /// An instance in the catalog after the operation.
    Service(Box<ServiceInstance>),
    /// A check in the catalog after the operation.
    Check(Box<Check>),
}

/// The state of a key after an operation of a transaction.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KvEntry {
    pair: Pair,
    with_value: bool,
}

impl KvEntry {
    pub(super) fn new(pair: Pair, with_value: bool) -> Self {
        Self { pair, with_value }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &Key {
        self.pair.key()
    }

    /// Whether the key exists; only [`get_or_empty`](super::KvOp::get_or_empty) finds one that
    /// does not.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.pair.modify_index() > 0
    }

    /// The value, if the operation was one that reads it and the key exists.
    #[must_use]
    pub fn value(&self) -> Option<&[u8]> {
        self.has_value().then(|| self.pair.value())
    }

    /// The value, shared.
    #[must_use]
    pub fn value_bytes(&self) -> Option<Bytes> {
        self.has_value().then(|| self.pair.value_bytes())
    }

    /// The value as text, if there is one and it is UTF-8.
    #[must_use]
    pub fn value_str(&self) -> Option<&str> {
        self.pair.value_str().filter(|_| self.has_value())
    }

    /// The number that the last write stored with the value.
    #[must_use]
    pub fn flags(&self) -> u64 {
        self.pair.flags()
    }

    /// The session that holds the key as a lock.
    #[must_use]
    pub fn session(&self) -> Option<&SessionId> {
        self.pair.session()
    }

    /// How often the key was acquired as a lock; a plain write sets it back to 0.
    ///
    /// So it does not tell a former holder from a later one:
    /// [`modify_index`](Self::modify_index) does.
    #[must_use]
    pub fn lock_index(&self) -> u64 {
        self.pair.lock_index()
    }

    /// The index at which the key came to be.
    #[must_use]
    pub fn create_index(&self) -> u64 {
        self.pair.create_index()
    }

    /// The index of the last change: what [`cas`](super::KvOp::cas) and
    /// [`check_index`](super::KvOp::check_index) compare.
    #[must_use]
    pub fn modify_index(&self) -> u64 {
        self.pair.modify_index()
    }

    fn has_value(&self) -> bool {
        self.with_value && self.exists()
    }
}

/// An operation that failed, so that the whole was rolled back.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    operation: usize,
    reason: FailureReason,
    text: Box<str>,
}

impl Failure {
    /// The operation's place, counted from 0.
    #[must_use]
    pub fn operation(&self) -> usize {
        self.operation
    }

    /// Why it failed.
    #[must_use]
    pub fn reason(&self) -> &FailureReason {
        &self.reason
    }

    /// What Consul said, for people.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "operation {}: {}", self.operation, self.text)
    }
}

/// Why an operation failed.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum FailureReason {
    /// Another session holds the key: [`lock`](super::KvOp::lock).
    LockHeld,
    /// The key's last holder ended a short while ago: [`lock`](super::KvOp::lock).
    LockDelay,
    /// The session does not exist, or does not exist any more: [`lock`](super::KvOp::lock).
    UnknownSession,
    /// The key is held by another session than the expected one, or by none:
    /// [`check_session`](super::KvOp::check_session).
    OtherSession {
        /// The one that holds it.
        current: Option<SessionId>,
        /// The one that was asked about.
        expected: Option<SessionId>,
    },
    /// The session does not hold the key: [`unlock`](super::KvOp::unlock).
    NotHeld,
    /// The thing was last changed at another index, or is not there though the index says so.
    OtherIndex {
        /// The index of its last change; only [`check_index`](super::KvOp::check_index) is told.
        current: Option<u64>,
    },
    /// The key exists: [`check_not_exists`](super::KvOp::check_not_exists).
    Exists,
    /// What the operation needs does not exist: the key, node, instance or check that it reads, or
    /// the node or service that it writes something of.
    Missing,
    /// The token may not do this.
    PermissionDenied,
    /// This Consul does not know the operation.
    Unsupported,
    /// Something else: see [`Failure::text`].
    Other,
}

/// A good answer's results, in their order; operations without one leave no gap.
pub(super) fn results(raw: &Raw) -> Result<Vec<Wire>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Body {
        results: Option<Vec<Wire>>,
    }

    Ok(raw.decode::<Body>()?.results.unwrap_or_default())
}

/// One result on the wire, under the name of its kind.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Wire {
    #[serde(rename = "KV")]
    pub(super) kv: Option<Pair>,
    pub(super) node: Option<Box<Node>>,
    pub(super) service: Option<Box<ServiceInstance>>,
    pub(super) check: Option<Box<Check>>,
}

/// The failures that a 409 tells, if it is Consul's.
pub(super) fn failures(raw: &Raw) -> Option<Vec<Failure>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Body {
        errors: Vec<Told>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Told {
        #[serde(default, deserialize_with = "json::number")]
        op_index: u64,
        what: String,
    }

    let errors = raw.decode::<Body>().ok()?.errors;
    let failures = errors.into_iter().map(|Told { op_index, what }| Failure {
        operation: usize::try_from(op_index).unwrap_or(usize::MAX),
        reason: reason::of(&what),
        text: raw.masked(&what).into(),
    });
    Some(failures.collect()).filter(|failures: &Vec<_>| !failures.is_empty())
}
