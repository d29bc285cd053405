//! The workers of `balancing` with an allocator that counts; `balancing` starts it.

use std::process::ExitCode;

use lictor_benches::usage::{COUNTING_ALLOCATOR, CountingAllocator};

#[global_allocator]
static ALLOCATOR: &CountingAllocator = COUNTING_ALLOCATOR;

#[tokio::main]
async fn main() -> ExitCode {
    lictor_benches::balancing::main().await
}
