//! What the examples share: where Consul is, instances of a service, a steady load, and how a result
//! is told.

pub mod backend;
pub mod leaving;
pub mod load;
pub mod place;
pub mod report;
pub mod summary;

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use crate::place::Options;

/// Whatever went wrong.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What an example's steps return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an example has come to; it displays for people.
pub trait Findings: fmt::Display {
    /// The same as one line of JSON.
    fn json(&self) -> String;

    /// Whether all went as it should; else the example ends with status 1.
    fn is_good(&self) -> bool;
}

/// Runs an example as these arguments ask for, and tells what it has come to.
pub async fn example<F: Findings>(
    name: &str,
    args: impl Iterator<Item = String>,
    run: impl AsyncFnOnce(&Options) -> Result<F>,
) -> ExitCode {
    let options = match Options::of(name, args) {
        Ok(options) => options,
        Err(status) => return status,
    };
    let outcome = run(&options).await.map(|findings| {
        if options.json {
            println!("{}", findings.json());
        } else {
            print!("{findings}");
        }
        findings.is_good()
    });
    status(name, outcome)
}

/// The status that an example ends with: of a run that came to something good or bad, or failed.
///
/// A failure is told with all that stands behind it.
pub fn status(example: &str, outcome: Result<bool>) -> ExitCode {
    match outcome {
        Ok(good) => ExitCode::from(u8::from(!good)),
        Err(err) => {
            eprintln!("{example}: {err}");
            let mut cause = err.source();
            while let Some(err) = cause {
                eprintln!("  because: {err}");
                cause = err.source();
            }
            ExitCode::FAILURE
        }
    }
}

/// Waits until something is so; half a minute is enough for anything here.
///
/// # Errors
///
/// If it does not become so.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .map_err(|_| format!("waited 30 s in vain until {what}").into())
}
