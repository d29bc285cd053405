//! Client SDK for HashiCorp Consul: a service registers itself, others watch it live.
//!
//! Begin with a [`Client`]. It is a cheap handle to the agent on your node; everything else is made
//! from it.
//!
//! ```no_run
//! # async fn example() -> lictor::Result<()> {
//! use std::time::Duration;
//!
//! use lictor::Client;
//! use lictor::api::agent::{CheckDefinition, ServiceDefinition};
//!
//! let client = Client::from_env()?;
//!
//! // Announce a service. Heartbeats run until the registration is closed or dropped.
//! let definition = ServiceDefinition::new("web")
//!     .port(8080)
//!     .check(CheckDefinition::alive_only(Duration::from_secs(15)));
//! let registration = client.register(definition).await?;
//!
//! // See who is there, now and after every change.
//! let mut web = client.health().service("web").passing().watch()?;
//! web.ready().await?; // tells a query that Consul refuses
//! let snapshot = web.changed().await?;
//! println!("{} instances pass", snapshot.len());
//!
//! registration.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! | I want to | use |
//! |---|---|
//! | announce a service, report its health, leave cleanly | [`Client::register`], [`registration`] |
//! | take name, tags and checks from the environment of a container | [`environment`] |
//! | have its health found out, by closures or Nagios plug-ins | [`probe`] |
//! | follow services, checks, nodes or keys | [`watch`]: any read of [`api`] and `.watch()` |
//! | follow settings in the key-value store, as a type | [`config`]: [`Client::config`] |
//! | change a value whatever others do to it | [`Kv::update`](api::kv::Kv::update) |
//! | ask or change something once | [`api`]: [`Client::kv`], [`Client::health`], [`Client::catalog`], [`Client::agent`], [`Client::status`], [`Client::session`], [`Client::txn`], [`Client::raw`] |
//! | follow several datacenters at once, or fail over | [`Read::watch_across`](api::Read::watch_across), [`Client::query`] |
//! | tell something to all agents, or hear of it | [`Client::event`] |
//! | know how far nodes and datacenters are | [`Client::coordinate`] |
//! | hold a lock, or one of several places | [`Client::lock`], [`Client::semaphore`], [`coordination`] |
//! | write only while it is held | [`Kv::fenced`](api::kv::Kv::fenced), [`coordination::FenceGate`] |
//! | change several things at once | [`api::txn`] |
//! | do something in one process of many, or know who does | [`Client::election`], [`coordination`] |
//! | end a process without losing a request or leaving anything behind | [`lifecycle`] |
//! | set up address, token, TLS, limits | [`client::Builder`], or the environment: [`Client::from_env`] |
//! | react to failures | [`Error::kind`] and its predicates |
//! | replace the HTTP stack | [`transport`] |
//! | test without a Consul | `embedded` (feature `embedded-agent`) |
//!
//! To call services by name, balanced over their instances, take the crate `lictor-tower`.
//!
//! # Three layers
//!
//! **Calls.** One method of [`api`] is one HTTP request: no retry, no task, no state. A call is
//! built with its options and sent by awaiting it.
//!
//! **Watches.** A [`watch::Watch`] repeats a read as a blocking query, under all of Consul's rules
//! for its index. Readers of equal queries share one request on the wire, through every outage the
//! last good content stays, and it is told whether it is still up to date.
//!
//! **Guards.** A [`registration::Registration`] keeps something true at Consul for as long as it
//! lives, and heals it when the agent forgets. Its end is `close().await`, which reports; dropping
//! it does the same in the background.
//!
//! # Guarantees
//!
//! - **Cancel safety.** Dropping a future never leaves a task or a connection without an owner. Each async
//!   method says under *Cancel safety* what else it means; after a write was polled once, the write
//!   may take effect.
//! - **Tasks.** Calls start none. A watch runs one task for all its readers, a registration a few;
//!   both end with their owner. They run on the Tokio runtime that was current where they were made,
//!   and when it is gone they are too: nothing blocks, nothing panics.
//! - **Bounds.** Every request has a deadline and every answer a size limit. Retries back off with
//!   jitter. No input from outside makes the library panic.
//! - **Secrets.** A token reaches Consul and nothing else: no log, no error, no `Debug`.
//! - **Time.** Deadlines follow [`tokio::time`], so tests may pause the clock.
//!
//! Not promised: the texts of errors, the types behind [`std::error::Error::source`], and the
//! events that are written by `tracing`.
//!
//! # Runtime
//!
//! Everything runs inside a Tokio runtime with time and I/O (`enable_all()`). Outside of one, calls
//! return [`ErrorKind::NoRuntime`]; Tokio panics in one without a clock. A client belongs to the
//! runtimes that drive it: connections that one of them opened rest while it does.
//!
//! # Features
//!
//! - `tls` (default): HTTPS to the agent, by rustls with ring.
//! - `embedded-agent`: `lictor::embedded`, an agent in this process, for tests and first steps.
//!
//! # Consul
//!
//! 1.8 to 1.21, community edition. Only fields that are set are sent, because an older agent refuses
//! those it does not know; unknown fields of answers are ignored, and `null` is an empty list.

// The order of the `mod` lines below is the layering: a module may name, with `crate::`, only
// modules declared above it. `tests/tidy.rs` checks it.

#![cfg_attr(docsrs, feature(doc_cfg))]

// Words and rules: no sockets, no tasks, no clock, no randomness.
pub mod error;
pub mod ident;
pub mod codec;
mod proto;

// The only place that starts tasks.
mod task;

// How long-lived things tell what becomes of them.
mod states;

// A Consul-compatible agent in this process. It stands here so that it cannot name the client.
#[cfg(feature = "embedded-agent")]
pub mod embedded;

// The only modules that talk to Consul.
pub mod transport;
pub mod client;

// Consul's HTTP API: one file per endpoint family, one request per call.
pub mod api;

// What the environment says of the services of this process.
pub mod environment;

// What a service finds out about its own health.
pub mod probe;

// Long-lived behaviour built on the API.
pub mod watch;
pub mod config;
pub mod registration;
pub mod coordination;

// The end of all of it, in order.
pub mod lifecycle;

pub use client::Client;
pub use error::{Error, ErrorKind, Result};
