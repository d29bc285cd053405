//! Transactions: several changes and reads at once, all of them or none, `/v1/txn`.

mod answer;
mod catalog;
mod kv;
mod place;
mod reason;

use std::fmt;
use std::future::IntoFuture;
use std::time::Duration;

use http::StatusCode;
use serde::Serialize;

use super::endpoint::Answered;
use super::{Consistency, Endpoint, Sending, Write};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::ident::{CheckId, Datacenter, Key, NodeName, ServiceId, Token};
use crate::proto::query::Target;

pub use answer::{Failure, FailureReason, KvEntry, OpResult, Outcome, Results};
pub use catalog::{CheckOp, NewNode, NodeOp, ServiceOp};
pub use kv::KvOp;

impl Client {
    /// A transaction: several changes and reads at once, all of them or none.
    pub fn txn(&self) -> Txn {
        Txn {
            write: Write::put(self, Target::new("/v1/txn"), Commit::default()),
            client: self.clone(),
            ops: Vec::new(),
            consistency: None,
        }
    }
}

/// Operations that take place together, in their order, or not at all.
///
/// Put in what is wanted, then await it, or [`send`](Self::send) it.
///
/// Range: 1 to 64 operations, 128 for Consul 1.14 and later; more are refused, by this crate above
/// 128 and by an older Consul above 64 ([`ErrorKind::RequestTooLarge`](crate::ErrorKind::RequestTooLarge)).
/// The whole, with its values in base64, may have 512 KiB (Consul's default `txn_max_req_len`), so
/// that a value of more than about 384 KiB does not fit.
///
/// # Examples
///
/// Takes a lock, provided that nobody has changed the key since it was read:
///
/// ```no_run
/// # async fn example(client: lictor::Client, session: lictor::ident::SessionId) -> lictor::Result<()> {
/// use lictor::api::txn::{FailureReason, KvOp, Outcome};
///
/// let Some(seen) = client.kv().get("web/leader").await?.into_value() else {
///     return Ok(());
/// };
/// let outcome = client
///     .txn()
///     .kv(KvOp::check_index("web/leader", seen.modify_index()))
///     .kv(KvOp::lock("web/leader", &session, "me"))
///     .await?;
/// match outcome {
///     Outcome::Committed(results) => {
///         println!("held since {:?}", results.kv(1).map(|held| held.modify_index()));
///     }
///     Outcome::RolledBack(failures) => {
///         for failure in failures {
///             match failure.reason() {
///                 FailureReason::LockHeld => println!("somebody else was faster"),
///                 FailureReason::LockDelay => println!("not yet"),
///                 _ => println!("{failure}"),
///             }
///         }
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "a transaction does nothing until it is awaited"]
#[derive(Clone)]
pub struct Txn {
    write: Write<Commit>,
    client: Client,
    ops: Vec<Op>,
    consistency: Option<Consistency>,
}

/// One operation: what is sent, and what its result looks like.
#[derive(Clone, Debug)]
struct Op {
    body: Body,
    writes: bool,
    result: Expected,
}

/// The operation on the wire, under the name of its kind.
#[derive(Clone, Debug, Serialize)]
enum Body {
    #[serde(rename = "KV")]
    Kv(kv::Body),
    Node(catalog::NodeBody),
    Service(Box<catalog::ServiceBody>),
    Check(Box<catalog::CheckBody>),
}

/// What an operation is answered with.
#[derive(Clone, Debug)]
enum Expected {
    /// No result at all.
    Nothing,
    /// The state of one key, with or without its value.
    Key {
        key: Key,
        with_value: bool,
    },
    /// Any number of keys that begin with this.
    Tree(String),
    Node(NodeName),
    Service(ServiceId),
    Check(NodeName, CheckId),
}

/// What any Consul takes; those before 1.14 half of it.
const MOST_OPERATIONS: usize = 128;

/// `txn_max_req_len` of a server, by default.
const LONGEST_BODY: usize = 512 * 1024;

impl Txn {
    /// Adds an operation on the key-value store.
    pub fn kv(self, op: KvOp) -> Self {
        self.push(op.into_op())
    }

    /// Adds an operation on a node of the catalog.
    pub fn node(self, op: NodeOp) -> Self {
        self.push(op.into_op())
    }

    /// Adds an operation on an instance of a service in the catalog.
    pub fn service(self, op: ServiceOp) -> Self {
        self.push(op.into_op())
    }

    /// Adds an operation on a check in the catalog.
    pub fn check(self, op: CheckOp) -> Self {
        self.push(op.into_op())
    }

    /// Which server may answer. Default: [`Consistency::Default`].
    ///
    /// Only for a transaction that reads and does not write; on another it is refused, for that
    /// one goes to the leader by way of a quorum anyhow.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = Some(consistency);
        self
    }

    /// Short for [`Consistency::Stale`].
    pub fn stale(self) -> Self {
        self.consistency(Consistency::Stale)
    }

    /// Short for [`Consistency::Consistent`].
    pub fn consistent(self) -> Self {
        self.consistency(Consistency::Consistent)
    }

    /// The datacenter that takes it. Default: the client's.
    pub fn datacenter(mut self, datacenter: impl TryInto<Datacenter, Error = Error>) -> Self {
        self.write = self.write.datacenter(datacenter);
        self
    }

    /// Asks with this token. Default: the client's.
    pub fn token(mut self, token: Token) -> Self {
        self.write = self.write.token(token);
        self
    }

    /// Ends the call after `timeout`. Default: the client's, 15 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.write = self.write.timeout(timeout);
        self
    }

    /// Goes out beside all other calls, because lateness does harm.
    pub(crate) fn beat(mut self) -> Self {
        self.write = self.write.beat();
        self
    }

    fn push(mut self, op: Result<Op>) -> Self {
        match op {
            Ok(op) => self.ops.push(op),
            Err(err) => {
                // Right for the first that is refused, and no other error is told.
                let place = format!("operation {}", self.ops.len());
                self.write = self.write.refuse(err.at(&place));
            }
        }
        self
    }

    /// The same behind other operations on keys, in their order.
    pub(crate) fn behind(mut self, first: impl IntoIterator<Item = KvOp>) -> Self {
        let own = std::mem::take(&mut self.ops);
        let mut whole = first.into_iter().fold(self, Self::kv);
        whole.ops.extend(own);
        whole
    }

    /// Sends the transaction, once.
    ///
    /// One that Consul rolled back is a good answer: [`Outcome::RolledBack`] tells why.
    ///
    /// # Errors
    ///
    /// An argument that was refused, a failure on the way, or what Consul answered instead. After
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) and
    /// [`ErrorKind::Transport`](crate::ErrorKind::Transport) the transaction may have taken effect.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the transaction may take effect even if the future is dropped, then as a whole;
    /// its outcome is unknown.
    pub async fn send(self) -> Result<Outcome> {
        self.assemble().send().await
    }

    /// The whole as one write; what is wrong with it is told when that is sent.
    fn assemble(self) -> Write<Commit> {
        let Self {
            mut write,
            client,
            mut ops,
            consistency,
        } = self;
        if let Err(err) = check(&ops, consistency) {
            return write.refuse(err);
        }
        if let Some(consistency) = consistency {
            consistency.ask(&mut write.call.target);
        }
        let (namespace, partition) = client.tenancy();
        for op in &mut ops {
            op.body.place_in(namespace, partition);
        }
        let bodies: Vec<&Body> = ops.iter().map(|op| &op.body).collect();
        let mut write = write.json(&bodies);
        let size = write.call.body.len();
        write.endpoint.expected = ops.into_iter().map(|op| op.result).collect();
        if size > LONGEST_BODY {
            return write.refuse(Error::invalid(format!(
                "transaction of {size} bytes, with its values in base64: Consul takes at most \
                 {LONGEST_BODY}"
            )));
        }
        write
    }
}

/// Whether a transaction can be sent, and its answer be understood.
fn check(ops: &[Op], consistency: Option<Consistency>) -> Result<()> {
    if ops.is_empty() {
        return Err(Error::invalid(
            "transaction without operations: put in at least one",
        ));
    }
    if ops.len() > MOST_OPERATIONS {
        return Err(Error::invalid(format!(
            "transaction of {} operations: Consul takes at most {MOST_OPERATIONS}, and at most 64 \
             before 1.14",
            ops.len()
        )));
    }
    if consistency.is_some_and(|asked| asked != Consistency::Default)
        && ops.iter().any(|op| op.writes)
    {
        return Err(Error::invalid(
            "consistency of a transaction that writes: it goes to the leader by way of a quorum, \
             so leave it out",
        ));
    }
    place::can_be_told_apart(ops)
}

impl Body {
    /// Names namespace and partition, which Consul does not take from a transaction's URL.
    fn place_in(&mut self, namespace: Option<&str>, partition: Option<&str>) {
        let tenancy = Tenancy {
            namespace: namespace.map(str::to_owned),
            partition: partition.map(str::to_owned),
        };
        match self {
            Self::Kv(body) => body.tenancy = tenancy,
            Self::Service(body) => body.service.tenancy = tenancy,
            Self::Check(body) => body.check.tenancy = tenancy,
            // Nodes have no namespace.
            Self::Node(body) => body.node.partition = tenancy.partition,
        }
    }
}

/// Where a thing stands (Consul Enterprise).
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Tenancy {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<String>,
}

impl IntoFuture for Txn {
    type Output = Result<Outcome>;
    type IntoFuture = Sending<Outcome>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

impl fmt::Debug for Txn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Txn")
            .field("operations", &self.ops.len())
            .field("consistency", &self.consistency)
            .finish_non_exhaustive()
    }
}

/// What the answer must be read by.
#[derive(Clone, Debug, Default)]
struct Commit {
    expected: Box<[Expected]>,
}

impl Endpoint for Commit {
    type Output = Outcome;

    fn interpret(&self, answer: Answered) -> Result<Outcome> {
        let raw = answer.0;
        // 409 is Consul's status for a transaction that it rolled back.
        if raw.status == StatusCode::CONFLICT {
            return match answer::failures(&raw) {
                Some(failures) => Ok(Outcome::RolledBack(failures)),
                None => Err(raw.error()),
            };
        }
        let raw = raw.good()?;
        let results = answer::results(&raw)?;
        let results = place::place(&self.expected, results).map_err(|err| raw.unexpected(err))?;
        Ok(Outcome::Committed(Results::new(results, raw.meta())))
    }
}
