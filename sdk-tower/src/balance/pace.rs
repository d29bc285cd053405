//! Long work in short pieces: where there is one thread, requests wait for whoever works on it.

use tokio::task::yield_now;

/// How many steps are taken at a time: a tenth of a millisecond, even where each endpoint has to be
/// fetched from memory.
const AT_A_TIME: u32 = 512;

/// What a step costs in which an endpoint comes or goes.
const LONG: u32 = 4;

/// Counts steps, and lets others run after some.
#[derive(Debug, Default)]
pub(crate) struct Pace(u32);

impl Pace {
    /// One endpoint was looked at.
    pub(crate) async fn step(&mut self) {
        self.steps(1).await;
    }

    /// An endpoint was set up, or taken down.
    pub(crate) async fn long_step(&mut self) {
        self.steps(LONG).await;
    }

    /// So much was done at once.
    pub(crate) async fn steps(&mut self, steps: u32) {
        self.0 += steps;
        if self.0 >= AT_A_TIME {
            self.0 = 0;
            yield_now().await;
        }
    }

    /// Frees a list from its end on.
    pub(crate) async fn free<T>(&mut self, mut list: Vec<T>) {
        while list.pop().is_some() {
            self.steps(LONG).await;
        }
    }

    /// Something was done whose length is that of a list.
    pub(crate) async fn list(&mut self, len: usize) {
        self.steps(u32::try_from(len).unwrap_or(u32::MAX / 2)).await;
    }
}

/// Work without its pauses, for tests that have no runtime.
#[cfg(test)]
pub(crate) fn at_once<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(done) = work.as_mut().poll(&mut cx) {
            return done;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn short_work_does_not_pause_and_long_work_does() {
        let pauses = |steps: u32| {
            let mut work = std::pin::pin!(async {
                let mut pace = Pace::default();
                for _ in 0..steps {
                    pace.step().await;
                }
            });
            let mut cx = Context::from_waker(Waker::noop());
            let mut pauses = 0;
            while work.as_mut().poll(&mut cx).is_pending() {
                pauses += 1;
            }
            pauses
        };
        assert_eq!(pauses(AT_A_TIME - 1), 0);
        assert_eq!(pauses(10 * AT_A_TIME), 10);
    }
}
