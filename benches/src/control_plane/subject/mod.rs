//! The contenders, each behind the same few calls.

#[cfg(feature = "peers")]
mod consulrs;
mod fetch;
mod ours;
mod by_hand;
mod raw;
#[cfg(feature = "peers")]
mod rs_consul;

use crate::contest::Contender;
use crate::control_plane::Stage;
use crate::{Outcome, peers};

pub(super) use by_hand::ByHand;
#[cfg(feature = "peers")]
pub(super) use consulrs::Consulrs;
pub(super) use fetch::Fetch;
pub(super) use ours::Ours;
pub(super) use raw::Raw;
#[cfg(feature = "peers")]
pub(super) use rs_consul::RsConsul;

pub(super) use crate::peers::{CONSULRS, GO, RS_CONSUL};

/// Those of the named peers that are at hand.
pub(super) fn peers<'a>(
    stage: &Stage,
    names: &'a [&'static str],
) -> impl Iterator<Item = Contender> + use<'a> {
    peers::at_hand(stage.go.is_some(), names)
}

/// A client under measurement.
pub(super) trait Subject: Sized + Send + 'static {
    /// Makes a client of the agent at `address`.
    fn connect(address: &str) -> impl Future<Output = Outcome<Self>> + Send;

    /// Another handle for a concurrent loop; it shares what the client shares.
    fn another(&self) -> impl Future<Output = Outcome<Self>> + Send;
}

/// One that reads and writes keys.
pub(super) trait Kv: Subject {
    /// The length of the key's value.
    fn get(&mut self, key: &str) -> impl Future<Output = Outcome<usize>> + Send;

    /// Overwrites the key.
    fn put(&mut self, key: &str, value: &'static [u8]) -> impl Future<Output = Outcome<()>> + Send;
}

/// One that asks for the instances of a service.
pub(super) trait Health: Subject {
    /// How many instances there are, if it looks into the answer.
    fn health(&mut self, service: &str) -> impl Future<Output = Outcome<Option<usize>>> + Send;
}

/// One that follows a service by blocking queries.
pub(super) trait Follow: Subject {
    /// Waits for what comes after what was seen last.
    fn next(&mut self, service: &str) -> impl Future<Output = Outcome<Seen>> + Send;
}

/// What a follower sees.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// The index of the answer.
    pub(super) index: u64,
    /// When it was there, in nanoseconds of the monotonic clock.
    pub(super) at: u64,
    /// The port of the first instance, if it looks into the answer.
    pub(super) port: Option<u16>,
}
