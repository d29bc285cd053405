//! Tests that have a short form, for every run, and a long one.

use std::io::Write;
use std::time::Duration;

const LONG: &str = "LICTOR_LONG";

/// Whether tests are to run in their long form: `LICTOR_LONG=1`, which `tests/run --long` sets.
#[must_use]
pub fn is_long() -> bool {
    std::env::var_os(LONG).is_some_and(|value| value == "1")
}

/// How long a test goes on, said on standard error past what captures it.
#[must_use]
pub fn length(short: Duration, long: Duration) -> Duration {
    let length = if is_long() { long } else { short };
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let line = format!("{test} runs for {length:?}\n");
    std::io::stderr().write_all(line.as_bytes()).ok();
    length
}
