//! Waiting for a condition that some other task or process makes true.

use std::panic::Location;
use std::time::Duration;

use tokio::time::Instant;

/// Waits until `probe` answers `true`.
///
/// The probe is asked again and again, with a short pause between; one that hangs is given up at
/// the deadline like one that goes on saying no. It follows tokio's clock, so under a paused
/// clock it costs no time.
///
/// # Panics
///
/// When the deadline has passed; the message names the caller's line.
#[track_caller]
pub fn eventually(
    deadline: Duration,
    mut probe: impl AsyncFnMut() -> bool,
) -> impl Future<Output = ()> {
    let caller = Location::caller();
    async move {
        let wait = poll(deadline, async || probe().await.then_some(()));
        if wait.await.is_none() {
            panic!("{caller}: still not so after {deadline:?}");
        }
    }
}

/// Waits until `probe` answers `Some`, and returns what is in it.
///
/// # Panics
///
/// When the deadline has passed; the message names the caller's line.
#[track_caller]
pub fn eventually_some<T>(
    deadline: Duration,
    probe: impl AsyncFnMut() -> Option<T>,
) -> impl Future<Output = T> {
    let caller = Location::caller();
    async move {
        match poll(deadline, probe).await {
            Some(found) => found,
            None => panic!("{caller}: still nothing after {deadline:?}"),
        }
    }
}

/// As [`eventually_some`], but the caller decides what a missed deadline means.
pub(crate) async fn poll<T>(
    deadline: Duration,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> Option<T> {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(5);
    loop {
        match tokio::time::timeout_at(end, probe()).await {
            Ok(Some(found)) => return Some(found),
            Ok(None) if Instant::now() + pause < end => {}
            Ok(None) | Err(_) => return None,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_condition_that_becomes_true_ends_the_wait() {
        let mut asked = 0;
        eventually(Duration::from_secs(1), async || {
            asked += 1;
            asked == 3
        })
        .await;
        assert_eq!(asked, 3);
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "wait.rs")]
    async fn a_condition_that_stays_false_fails_and_names_the_line() {
        eventually(Duration::from_secs(1), async || false).await;
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "still nothing after 1s")]
    async fn a_probe_that_hangs_fails_at_the_deadline() {
        eventually_some(Duration::from_secs(1), async || -> Option<()> {
            std::future::pending().await
        })
        .await;
    }
}
