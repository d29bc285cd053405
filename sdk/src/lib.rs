//! Client SDK for HashiCorp Consul.
//!
//! The order of the `mod` lines below is the layering: a module may name, with `crate::`, only
//! modules declared above it. `tests/tidy.rs` checks it.

#![cfg_attr(docsrs, feature(doc_cfg))]

// Words and rules: no sockets, no tasks, no clock, no randomness.
pub mod error;
pub mod ident;
mod proto;

// The only place that starts tasks.
mod task;

// A Consul-compatible agent in this process. It stands here so that it cannot name the client.
#[cfg(feature = "embedded-agent")]
pub mod embedded;

// The only modules that talk to Consul.
pub mod transport;
pub mod client;

// Consul's HTTP API: one file per endpoint family, one request per call.
pub mod api;

// Long-lived behaviour built on the API.
pub mod watch;
pub mod registration;

pub use client::Client;
pub use error::{Error, ErrorKind, Result};
