use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::task::Worker;

type Told = watch::Receiver<Option<Verdict>>;

fn begin(probes: Vec<Probe>) -> (Worker<()>, Told) {
    for probe in &probes {
        probe.validate().unwrap();
    }
    let runtime = Handle::current();
    let (rounds, told) = Rounds::new(runtime.clone(), probes);
    (Worker::spawn(&runtime, |stop| rounds.run(stop)), told)
}

async fn next(told: &mut Told) -> (Status, String) {
    let told = timeout(secs(600), async {
        loop {
            told.changed().await.unwrap();
            if let Some(verdict) = told.borrow_and_update().clone() {
                return verdict;
            }
        }
    });
    let verdict = told.await.unwrap();
    (verdict.status, verdict.output.to_string())
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Finds one after the other, and the last one for ever.
fn scripted(name: &'static str, found: Vec<Health>) -> Probe {
    let turn = AtomicUsize::new(0);
    Probe::new(name, move || {
        let at = turn.fetch_add(1, Ordering::SeqCst).min(found.len() - 1);
        let found = found[at].clone();
        async move { found }
    })
}

fn well() -> Health {
    Health::passing("")
}

#[tokio::test(start_paused = true)]
async fn the_worst_counts_and_the_text_names_those_that_are_not_well() {
    let probes = vec![
        scripted("disk", vec![Health::warning("nearly full")]),
        scripted("database", vec![Health::critical("refused")]),
        scripted("cache", vec![Health::passing("3 ms")]),
    ];
    let (_worker, mut told) = begin(probes);
    assert_eq!(
        next(&mut told).await,
        (
            Status::Critical,
            "database (critical): refused; disk (warning): nearly full".to_owned()
        )
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_is_told_before_each_has_been_seen_and_nothing_new_while_all_pass() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let quick = Probe::new("quick", move || {
        let run = counted.fetch_add(1, Ordering::SeqCst);
        // A text that differs each time.
        async move { Health::passing(run.to_string()) }
    });
    let slow = Probe::new("slow", || sleep(secs(4)));
    let start = Instant::now();
    let (_worker, mut told) = begin(vec![quick, slow]);
    let pass = (Status::Passing, "all probes pass".to_owned());
    assert_eq!(next(&mut told).await, pass);
    assert_eq!(start.elapsed(), secs(4));
    assert!(timeout(secs(300), told.changed()).await.is_err());
    assert_eq!(runs.load(Ordering::SeqCst), 31);
}

#[tokio::test(start_paused = true)]
async fn one_that_hangs_has_failed_at_its_deadline_and_holds_up_no_other() {
    let hangs = Probe::new("hangs", std::future::pending::<Health>).deadline(secs(2));
    let beside = scripted("beside", vec![well()]);
    let start = Instant::now();
    let (_worker, mut told) = begin(vec![hangs, beside]);
    let (status, output) = next(&mut told).await;
    assert_eq!(start.elapsed(), secs(2));
    assert_eq!(status, Status::Critical);
    assert_eq!(output, "hangs (critical): not back within 2s");
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failure_and_the_probe_runs_again() {
    let turn = AtomicUsize::new(0);
    let odd = Probe::new("odd", move || {
        let turn = turn.fetch_add(1, Ordering::SeqCst);
        assert!(turn != 2, "in the closure");
        async move {
            assert!(turn != 0, "turn {turn}");
        }
    });
    let (_worker, mut told) = begin(vec![odd]);
    let critical = |text: &str| {
        (
            Status::Critical,
            format!("odd (critical): panicked: {text}"),
        )
    };
    assert_eq!(next(&mut told).await, critical("turn 0"));
    assert_eq!(next(&mut told).await.0, Status::Passing);
    assert_eq!(next(&mut told).await, critical("in the closure"));
    assert_eq!(next(&mut told).await.0, Status::Passing);
}

#[tokio::test(start_paused = true)]
async fn a_state_changes_after_so_many_in_a_row() {
    let bad = || Health::critical("no");
    let found = vec![
        well(),
        bad(),
        bad(),
        well(),
        bad(),
        bad(),
        bad(),
        well(),
        well(),
    ];
    let flaps = scripted("flaps", found).failures(3).successes(2);
    let start = Instant::now();
    let (_worker, mut told) = begin(vec![flaps]);
    assert_eq!(next(&mut told).await.0, Status::Passing);
    assert_eq!(next(&mut told).await.0, Status::Critical);
    assert_eq!(start.elapsed(), secs(60));
    assert_eq!(next(&mut told).await.0, Status::Passing);
    assert_eq!(start.elapsed(), secs(80));
}

#[tokio::test(start_paused = true)]
async fn what_an_error_says_is_the_text_and_a_megabyte_is_cut() {
    let fails = Probe::new("fails", || async { Err::<(), _>("no route") });
    let (_worker, mut told) = begin(vec![fails]);
    assert_eq!(next(&mut told).await.1, "fails (critical): no route");

    let loud = || Probe::new("loud", || async { Health::warning("ä".repeat(1 << 20)) });
    let (_worker, mut told) = begin(vec![loud()]);
    let (_, output) = next(&mut told).await;
    assert!((500..600).contains(&output.len()), "{}", output.len());
    assert!(output.ends_with('…'));
    let (_worker, mut told) = begin((0..20).map(|_| loud()).collect());
    let (_, output) = next(&mut told).await;
    assert!((2_500..3_200).contains(&output.len()), "{}", output.len());
}

#[tokio::test(start_paused = true)]
async fn probes_end_with_their_owner() {
    let runs = Arc::new(());
    let held = Arc::clone(&runs);
    let hangs = Probe::new("hangs", move || {
        let held = Arc::clone(&held);
        async move {
            let _held = held;
            std::future::pending::<()>().await;
        }
    });
    let (worker, told) = begin(vec![hangs]);
    sleep(secs(1)).await;
    assert!(Arc::strong_count(&runs) > 1);
    drop((worker, told));
    timeout(secs(1), async {
        while Arc::strong_count(&runs) > 1 {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn one_that_holds_up_its_thread_is_told_and_not_started_twice() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let blocks = Probe::new("blocks", move || {
        let run = counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let end = Instant::now() + Duration::from_millis(700);
            while run == 0 && Instant::now() < end {
                std::thread::park_timeout(Duration::from_millis(10));
            }
        }
    })
    .interval(Duration::from_millis(100));
    let (_worker, mut told) = begin(vec![blocks]);
    let (status, output) = next(&mut told).await;
    assert_eq!(status, Status::Critical);
    assert!(output.contains("holds up its thread"), "{output}");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    assert_eq!(next(&mut told).await.0, Status::Passing);
}

#[test]
fn settings_that_cannot_work_are_refused_with_what_would() {
    let probe = || Probe::new("db", || async {});
    let cases = [
        (Probe::new(" ", || async {}), "must have a name"),
        (probe().interval(Duration::ZERO), "at least 10 ms"),
        (
            probe().interval(secs(1)).deadline(secs(2)),
            "not more than the interval",
        ),
        (probe().deadline(Duration::ZERO), "above zero"),
        (probe().failures(0), "1 or more"),
    ];
    for (probe, wanted) in cases {
        let error = probe.validate().unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    assert!(probe().interval(secs(1)).validate().is_ok());
}

#[cfg(unix)]
mod plugins {
    use super::*;

    async fn found(script: &str) -> Health {
        let plugin = Probe::plugin("plug-in", "/bin/sh", ["-c", script]);
        (plugin.run)().await
    }

    #[tokio::test]
    async fn the_exit_code_is_the_status_and_the_first_line_the_text() {
        let cases = [
            (
                "echo 'OK - load 0.1|load1=0.1;4;8'",
                Status::Passing,
                "OK - load 0.1",
            ),
            (
                "echo WARNING; echo more; exit 1",
                Status::Warning,
                "WARNING",
            ),
            (
                "echo 'CRITICAL - full' ; exit 2",
                Status::Critical,
                "CRITICAL - full",
            ),
            ("echo 'what?'; exit 3", Status::Critical, "unknown: what?"),
            (
                "echo odd; exit 77",
                Status::Critical,
                "exit status: 77: odd",
            ),
            (
                "echo 'not found' >&2; exit 2",
                Status::Critical,
                "not found",
            ),
            ("exit 0", Status::Passing, ""),
        ];
        for (script, status, output) in cases {
            let found = found(script).await;
            assert_eq!(
                (found.status(), found.output()),
                (status, output),
                "{script}"
            );
        }
        let killed = found("kill -9 $$").await;
        assert_eq!(killed.status(), Status::Critical);
        assert!(killed.output().contains('9'), "{killed:?}");
    }

    #[tokio::test]
    async fn a_megabyte_of_output_is_read_and_forgotten() {
        let found = found("yes 0123456789 | head -c 1000000; exit 1").await;
        assert_eq!(found.status(), Status::Warning);
        assert_eq!(found.output(), "0123456789");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_critical() {
        let missing = Probe::plugin("gone", "/nowhere/check_it", Vec::<String>::new());
        let found = (missing.run)().await;
        assert_eq!(found.status(), Status::Critical);
        assert!(
            found.output().contains("/nowhere/check_it: cannot be run"),
            "{found:?}"
        );
    }

    #[tokio::test]
    async fn one_that_takes_too_long_is_killed() {
        let plugin = Probe::plugin("slow", "/bin/sh", ["-c", "echo $$; exec sleep 1000"]);
        let plugin = plugin.deadline(Duration::from_millis(300));
        let (_worker, mut told) = begin(vec![plugin]);
        let (status, output) = next(&mut told).await;
        assert_eq!(status, Status::Critical);
        assert_eq!(output, "slow (critical): not back within 300ms");
    }
}
