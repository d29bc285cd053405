//! Pure rules: no sockets, no tasks, no clock and no randomness.
//!
//! `now` and seeds come in as arguments, so every rule about time is tested without waiting.

pub(crate) mod duration;
pub(crate) mod json;
pub(crate) mod query;
pub(crate) mod meta;
pub(crate) mod status;
pub(crate) mod backoff;
pub(crate) mod pace;
pub(crate) mod cursor;
pub(crate) mod elements;
pub(crate) mod pieces;
pub(crate) mod diff;
pub(crate) mod caution;
pub(crate) mod heartbeat;
pub(crate) mod hysteresis;
pub(crate) mod lease;
pub(crate) mod contest;
pub(crate) mod line;
