//! What a worker is asked to measure; the Go program reads the same JSON.

use serde::{Deserialize, Serialize};

/// The first argument of a worker; the second is the job.
pub const MODE: &str = "__measure";

/// One measurement of one contender.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Job {
    /// The bench.
    pub bench: String,
    /// The contender.
    pub contender: String,
    /// The agent's address, as `http://127.0.0.1:PORT`.
    pub address: String,
    /// The key to lock, or what the keys of the loops begin with. No two measurements share one.
    pub key: String,
    /// How the lease is kept, by the name of the profile.
    pub profile: String,
    /// Whether each lock of ours has a lease of its own, which ends with it: what one gets without
    /// a word.
    pub own_lease: bool,
    /// Whether ours stands in line.
    pub fair: bool,
    /// What this process does in a crash: hold, or wait.
    pub role: String,
    /// Concurrent loops, or contenders.
    pub concurrency: usize,
    /// How many hand-overs, or cycles, to measure at least.
    pub at_least: u64,
    /// How long one holds before it releases, in milliseconds.
    pub hold_ms: u64,
    /// How long to run before measuring, in milliseconds.
    pub warm_up_ms: u64,
    /// How long to measure, in milliseconds; 0 is exactly as often as `at_least` says, one after
    /// the other.
    pub measured_ms: u64,
}
