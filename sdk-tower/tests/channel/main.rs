//! The channel against real servers on loopback, through its public interface only.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests fail their test"
)]

mod body;
mod bounds;
mod connections;
mod deadlines;
mod early;
mod failover;
mod hedge;
mod http2;
mod kept;
mod membership;
#[cfg(feature = "metrics")]
mod metered;
mod options;
mod policies;
mod retry;
mod scripted;
mod silence;
mod spread;
mod streams;
mod support;
mod tasks;
mod watched;
