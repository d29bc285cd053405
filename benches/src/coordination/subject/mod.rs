//! The contenders, each behind the same few calls.

mod by_hand;
#[cfg(feature = "peers")]
mod consulrs;
mod ours;
mod raw;
#[cfg(feature = "peers")]
mod rs_consul;

use std::time::Duration;

use serde::Serialize;

use crate::Outcome;

pub(super) use by_hand::ByHand;
#[cfg(feature = "peers")]
pub(super) use consulrs::Consulrs;
pub(super) use ours::{Ours, OursAlone, OursFair};
pub(super) use raw::Raw;
#[cfg(feature = "peers")]
pub(super) use rs_consul::RsConsul;

/// The floor that is a bare reqwest call each, decoded.
pub(super) const REQWEST: &str = "reqwest";

/// The floor that is one hyper connection, and as little decoding as will do.
pub(super) const HYPER: &str = "hyper";

/// What marks a key as a lock, for all clients alike.
const FLAGS: u64 = 0x2ddc_cbc0_58a5_0c18;

/// How long one blocking query waits.
const WAIT: &str = "60s";

/// The TTL of the sessions that nobody renews: longer than any measurement.
const TTL: Duration = Duration::from_secs(300);

/// One that locks keys, as a process does: with connections and a session of its own.
pub(super) trait Subject: Sized + Send + 'static {
    /// What it has in its hands while it holds.
    type Guard: Send + 'static;

    /// Makes a client of the agent at `address`, and a session if it keeps one.
    fn connect(address: &str) -> impl Future<Output = Outcome<Self>> + Send;

    /// Another handle for a concurrent loop: it shares client and session.
    fn another(&self) -> Self;

    /// Waits until it holds the key.
    fn lock(&mut self, key: &str) -> impl Future<Output = Outcome<Self::Guard>> + Send;

    /// Releases the key.
    fn unlock(&mut self, guard: Self::Guard) -> impl Future<Output = Outcome<()>> + Send;
}

/// What the floors have in their hands.
#[derive(Debug)]
pub(super) struct Written {
    key: String,
    /// The index at which the key was taken.
    index: u64,
}

/// The session of a floor, as the body of `PUT /v1/session/create`.
fn session() -> String {
    format!(
        r#"{{"TTL":"{}s","LockDelay":"10s","NodeChecks":[]}}"#,
        TTL.as_secs()
    )
}

/// An operation of a transaction.
#[derive(Debug, Serialize)]
struct Operation<'a> {
    #[serde(rename = "KV")]
    kv: KvOperation<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct KvOperation<'a> {
    verb: &'static str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flags: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
}

/// The transaction that locks or unlocks a key, if nothing has happened to it since this index; 0 is
/// the index of a key that is not there.
fn transaction<'a>(
    verb: &'static str,
    key: &'a str,
    index: u64,
    session: &'a str,
) -> Outcome<Vec<u8>> {
    let guard = KvOperation {
        verb: if index == 0 {
            "check-not-exists"
        } else {
            "check-index"
        },
        key,
        value: None,
        flags: None,
        index: Some(index).filter(|index| *index > 0),
        session: None,
    };
    let deed = KvOperation {
        verb,
        key,
        value: Some(""),
        flags: Some(FLAGS),
        index: None,
        session: Some(session),
    };
    let both = [guard, deed].map(|kv| Operation { kv });
    Ok(serde_json::to_vec(&both)?)
}
