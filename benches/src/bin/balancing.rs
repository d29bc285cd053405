//! Picks and calls through a balanced channel against a floor; see `benches/README.md`.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    lictor_benches::balancing::main().await
}
