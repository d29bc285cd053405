//! Locks: hand-overs, cycles and herds against floors and peers; see `benches/README.md`.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    lictor_benches::coordination::main().await
}
