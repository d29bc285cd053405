//! The workers of `balancing` with an allocator that counts; `balancing` starts it.

use std::process::ExitCode;

use lictor_benches::usage::{CountingAllocator, Heap, count_heap, counting_allocator};

#[global_allocator]
static ALLOCATOR: CountingAllocator = counting_allocator();

#[tokio::main]
async fn main() -> ExitCode {
    count_heap(|| Heap::of(&ALLOCATOR));
    lictor_benches::balancing::main().await
}
