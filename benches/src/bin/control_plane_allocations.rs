//! The workers of `control_plane` with an allocator that counts; `control_plane` starts it.

use std::process::ExitCode;

use lictor_benches::usage::{COUNTING_ALLOCATOR, CountingAllocator};

#[global_allocator]
static ALLOCATOR: &CountingAllocator = COUNTING_ALLOCATOR;

#[tokio::main]
async fn main() -> ExitCode {
    lictor_benches::control_plane::main().await
}
