//! What the examples share: where Consul is, instances of a service, a steady load, and how a result
//! is told.

pub mod backend;
pub mod load;
pub mod place;
pub mod report;
pub mod summary;

use std::process::ExitCode;
use std::time::Duration;

/// Whatever went wrong.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What an example's steps return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

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
