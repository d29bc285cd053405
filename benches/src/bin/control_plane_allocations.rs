//! The workers of `control_plane` with an allocator that counts; `control_plane` starts it.

use std::process::ExitCode;

use lictor_benches::usage::{CountingAllocator, Heap, count_heap, counting_allocator};

#[global_allocator]
static ALLOCATOR: CountingAllocator = counting_allocator();

#[tokio::main]
async fn main() -> ExitCode {
    count_heap(|| Heap::of(&ALLOCATOR));
    lictor_benches::control_plane::main().await
}
