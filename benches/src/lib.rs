//! What the bench programs share: how contenders are alternated, measured and reported.
//!
//! A bench program builds a [`contest::Contest`] per figure it wants to show, lets it measure its
//! contenders round by round, and hands it to a [`report::Report`]. What is measured in a process
//! of its own runs in a [`worker`]; CPU time and memory of the process come from [`usage`], a
//! closed loop of concurrent operations from [`load`].
//!
//! The README beside this crate says what each figure means.

pub mod usage;
pub mod args;
pub mod contest;
pub mod report;
pub mod worker;
pub mod load;
pub mod scratch;
pub mod bodies;
pub mod consul;
pub mod canned;
pub mod tap;
pub mod go;
pub mod peers;
pub mod control_plane;
pub mod balancing;
pub mod coordination;
pub mod lifecycle;

/// The error of the benches: they only ever print it.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What everything that can fail here returns.
pub type Outcome<T> = Result<T, Failure>;
