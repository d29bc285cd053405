//! Requests, decoding and watch propagation against floors and peers; see `benches/README.md`.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    lictor_benches::control_plane::main().await
}
