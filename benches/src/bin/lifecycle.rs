//! Heartbeats of many registrations and readers of one watch; see `benches/README.md`.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    lictor_benches::lifecycle::main().await
}
