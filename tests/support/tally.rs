//! What `tests/run` counts: a line in a file for each thing that it is to say at the end.

use std::fs::OpenOptions;
use std::io::Write;

const TALLY: &str = "LICTOR_TESTS_TALLY";

/// Adds a line to the tally, if there is one.
///
/// # Panics
///
/// When the file cannot be written.
pub fn tally(line: &str) {
    let Some(file) = std::env::var_os(TALLY) else {
        return;
    };
    // One write of one short line: lines of several processes do not mix.
    let line = format!("{line}\n");
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&file)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    written.unwrap_or_else(|error| panic!("cannot write the tally {}: {error}", file.display()));
}

/// Says that the test that calls this is left out, and why: in one line on standard error, past
/// what captures it, and in the tally.
///
/// # Panics
///
/// When the file of the tally cannot be written.
pub fn left_out(what: &str, why: &str) {
    let thread = std::thread::current();
    // A test's thread has its name.
    let test = thread.name().unwrap_or("a test");
    let line = format!("{test} is left out: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).ok();
    tally(&format!("left-out {what} {test}: {why}"));
}
