//! What the process has used: CPU time, memory, allocations; and a clock two processes share.

use std::alloc::System;
use std::sync::OnceLock;
use std::time::Duration;

use cap::Cap;
use rustix::time::{ClockId, clock_gettime};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

use crate::Outcome;

/// CPU time of all threads of this process so far, user and system, living and ended.
///
/// The scheduler's own nanosecond account, not the 10 ms ticks of `/proc/self/stat`.
#[must_use]
pub fn cpu_time() -> Duration {
    since_start(ClockId::ProcessCPUTime)
}

/// CPU time of the calling thread so far: what the machine does meanwhile is not in it.
#[must_use]
pub fn thread_cpu_time() -> Duration {
    since_start(ClockId::ThreadCPUTime)
}

/// Nanoseconds of the machine's monotonic clock, which is the same in every process.
#[must_use]
pub fn monotonic_nanos() -> u64 {
    u64::try_from(since_start(ClockId::Monotonic).as_nanos()).unwrap_or(u64::MAX)
}

fn since_start(clock: ClockId) -> Duration {
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}

/// Resident memory of this process, in MiB.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// What it holds now (`VmRSS`).
    pub resident_mib: f64,
    /// The most it ever held (`VmHWM`).
    pub peak_mib: f64,
}

impl Memory {
    /// Reads `/proc/self/status`.
    ///
    /// # Errors
    /// Where there is no `/proc`, as on systems other than Linux.
    pub fn read() -> Outcome<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let mib = |field: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(field)?.trim().strip_suffix("kB"))
                .and_then(|kib| kib.trim().parse::<f64>().ok())
                .map(|kib| kib / 1024.0)
                .ok_or_else(|| format!("no {field} in /proc/self/status"))
        };
        Ok(Self {
            resident_mib: mib("VmRSS:")?,
            peak_mib: mib("VmHWM:")?,
        })
    }
}

/// The allocator of programs that count their allocations.
///
/// A program makes it its own with
/// `#[global_allocator] static ALLOCATOR: CountingAllocator = counting_allocator();`, and tells by
/// [`count_heap`] how it is asked. Counting costs some ten nanoseconds per allocation, so a program
/// that measures time must not.
pub type CountingAllocator = Cap<&'static StatsAlloc<System>>;

/// See [`CountingAllocator`].
#[must_use]
pub const fn counting_allocator() -> CountingAllocator {
    Cap::new(INSTRUMENTED_SYSTEM_REF, usize::MAX)
}

const INSTRUMENTED_SYSTEM_REF: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

static HEAP: OnceLock<fn() -> Heap> = OnceLock::new();

/// Has [`Heap::read`] ask the program's allocator.
pub fn count_heap(heap: fn() -> Heap) {
    HEAP.set(heap).ok();
}

/// What is allocated and not given back; zeros unless the program counts it.
///
/// Other than resident memory it is the client's alone: no code, no free pages that the allocator
/// keeps, and the same in every run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Heap {
    /// Bytes now.
    pub now: usize,
    /// The most there ever was.
    pub peak: usize,
}

impl Heap {
    /// Reads the counters.
    #[must_use]
    pub fn read() -> Self {
        HEAP.get().map(|heap| heap()).unwrap_or_default()
    }

    /// What an allocator says.
    #[must_use]
    pub fn of(allocator: &CountingAllocator) -> Self {
        Self {
            now: allocator.allocated(),
            peak: allocator.max_allocated(),
        }
    }
}

/// Allocations of this process so far; zeros unless it uses the [`CountingAllocator`].
#[derive(Debug, Clone, Copy)]
pub struct Allocations {
    /// Calls of `alloc` and `realloc`.
    pub count: u64,
    /// Bytes asked for by them.
    pub bytes: u64,
}

impl Allocations {
    /// Reads the counters.
    #[must_use]
    pub fn read() -> Self {
        let stats = INSTRUMENTED_SYSTEM.stats();
        Self {
            count: (stats.allocations + stats.reallocations) as u64,
            bytes: stats.bytes_allocated as u64,
        }
    }

    /// What was added since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            count: self.count.saturating_sub(earlier.count),
            bytes: self.bytes.saturating_sub(earlier.bytes),
        }
    }
}
