//! What the tests of this workspace share: real agents, faulty networks, hostile servers, waiting.
//!
//! Two conventions hold for every test that uses it:
//!
//! - A test that needs a real Consul stands in a module named `consul`, so that
//!   `tests/run --embedded-only` can leave it out by name. [`consul::Agent`] refuses to start
//!   in such a run and says so.
//! - A test waits with [`eventually`] or on a signal, never by sleeping, and takes its ports from
//!   the system or from [`free_port`].

pub mod backend;
pub mod certs;
pub mod consul;
pub mod engine;
pub mod hostile;
pub mod http;
pub mod instance;
pub mod nsd;
pub mod path;
pub mod proxy;

mod long;
mod ports;
mod process;
mod rng;
mod tally;
mod wait;

pub use long::{is_long, length};
pub use ports::{free_port, free_ports};
pub use rng::Rng;
pub use tally::{left_out, tally};
pub use wait::{eventually, eventually_some};

/// Compiles and runs the snippets of the README.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
