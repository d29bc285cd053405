//! Service discovery from Consul and client-side load balancing for tower and hyper clients.
//!
//! The order of the `mod` lines below is the layering: a module may name, with `crate::`, only
//! modules declared above it. `tests/tidy.rs` checks it.

#![cfg_attr(docsrs, feature(doc_cfg))]

// Words.
pub mod error;
pub mod endpoint;

// Who is there.
pub mod source;
pub mod discover;

// How a request gets to an endpoint.
mod task;
mod connect;
mod balance;
pub mod channel;

pub use channel::Channel;
pub use error::{Error, ErrorKind, Result};
