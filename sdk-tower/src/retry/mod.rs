//! What counts as a failure, and what is done about it: rules and options of a
//! [`Channel`](crate::Channel).
//!
//! A request that no endpoint has seen goes to another endpoint always and needs nothing of this.
//! What was sent is sent again only with a [`RetryPolicy`] (or ahead of an answer, with a
//! [`Hedge`]), if
//! * it **may** be repeated: its method is idempotent, or the caller gave the word with
//!   [`MayRepeat`];
//! * it **can** be repeated: its body is empty, or not longer than
//!   [`RetryPolicy::body_limit`];
//! * its outcome is worth it: see [`Outcome::verdict`];
//! * the [`Budget`] has something left, so that retries do not finish off a service that is down.
//!
//! The modules are pure rules: time and randomness are arguments.

mod after;
mod budget;
mod classify;
mod hedge;
mod policy;

pub use budget::Budget;
pub use classify::{Outcome, Verdict};
pub use hedge::Hedge;
pub use policy::{MayRepeat, RetryPolicy};

pub(crate) use after::retry_after;
pub(crate) use classify::{Classifier, Standing, is_grpc};
pub(crate) use hedge::{Delay, Latencies};
pub(crate) use policy::BODY_LIMIT;
