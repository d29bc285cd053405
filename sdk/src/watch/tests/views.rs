//! Views of a watch: guarded, settled, kept in a file.

use std::path::PathBuf;

use super::*;

const GRACE: Duration = Duration::from_secs(10);

fn many(count: usize) -> String {
    let names: Vec<String> = (0..count).map(|n| format!("k{n:02}")).collect();
    let all: Vec<_> = names.iter().map(|name| (name.as_str(), 1)).collect();
    pairs(&all)
}

fn list(script: &Script) -> Watch<kv::Pair> {
    script.client().kv().list("").watch().unwrap()
}

fn suspicion(watch: &Watch<kv::Pair>) -> Option<(usize, usize, bool)> {
    match watch.status() {
        Status::Suspect(doubt) => Some((doubt.gone(), doubt.of(), doubt.is_held())),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_answer_that_passes_is_told_to_nobody_who_is_guarded() {
    let script = Script::new([
        at_once(7, &many(4)),
        after(1, 8, "[]"),
        after(2, 9, &many(4)),
        Act::Hang,
    ]);
    let plain = list(&script);
    let mut guarded = plain.clone().guard(Guard::hold(GRACE)).unwrap();
    assert_eq!(guarded.changed().await.unwrap().len(), 4);
    while suspicion(&guarded).is_none() {
        guarded.status_changed().await.unwrap();
    }
    assert_eq!(suspicion(&guarded), Some((4, 4, true)));
    assert_eq!(plain.latest().unwrap().len(), 0);
    assert_eq!(guarded.latest().unwrap().len(), 4);
    while !guarded.status().is_live() {
        guarded.status_changed().await.unwrap();
    }
    let end = Instant::now() + GRACE * 3;
    while let Ok(told) = tokio::time::timeout_at(end, guarded.changed()).await {
        assert_eq!(told.unwrap().len(), 4);
    }
    assert_eq!(script.open(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_still_gone_after_the_grace_is_believed() {
    let script = Script::new([at_once(7, &many(4)), after(1, 8, &many(1)), Act::Hang]);
    let mut watch = list(&script).guard(Guard::hold(GRACE)).unwrap();
    assert_eq!(watch.changed().await.unwrap().len(), 4);
    let start = Instant::now();
    let left = watch.changed().await.unwrap();
    assert_eq!(left.len(), 1);
    assert!(left.status().is_live());
    let took = start.elapsed();
    assert!(
        took >= GRACE && took <= GRACE + Duration::from_secs(2),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn during_an_outage_the_grace_runs_out_for_nothing() {
    let script = Script::new([at_once(7, &many(4)), after(1, 8, "[]"), Act::Refuse]);
    let mut watch = list(&script).guard(Guard::hold(GRACE)).unwrap();
    watch.changed().await.unwrap();
    tokio::time::sleep(GRACE * 5).await;
    assert_eq!(watch.latest().unwrap().len(), 4);
    assert!(matches!(watch.status(), Status::Stale(_)));
}

#[tokio::test(start_paused = true)]
async fn a_warning_guard_tells_the_content_and_the_doubt() {
    let script = Script::new([at_once(7, &many(4)), after(1, 8, "[]"), Act::Hang]);
    let mut watch = list(&script).guard(Guard::warn(GRACE)).unwrap();
    watch.changed().await.unwrap();
    assert!(watch.changed().await.unwrap().is_empty());
    assert_eq!(suspicion(&watch), Some((4, 4, false)));
    assert!(watch.status_changed().await.unwrap().is_live());
}

#[tokio::test(start_paused = true)]
async fn a_few_that_go_are_told_at_once() {
    let acts = || [at_once(7, &many(4)), after(1, 8, &many(2)), Act::Hang];
    for guard in [Guard::hold(GRACE), Guard::off()] {
        let mut watch = list(&Script::new(acts())).guard(guard).unwrap();
        watch.changed().await.unwrap();
        let start = Instant::now();
        assert_eq!(watch.changed().await.unwrap().len(), 2);
        assert!(start.elapsed() < Duration::from_secs(2));
    }
    let strict = Guard::hold(GRACE).percent(49);
    let mut watch = list(&Script::new(acts())).guard(strict).unwrap();
    watch.changed().await.unwrap();
    let start = Instant::now();
    watch.changed().await.unwrap();
    assert!(start.elapsed() >= GRACE);
    let script = Script::new(acts());
    let refused = list(&script).guard(Guard::hold(GRACE).percent(101));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_told_once_when_it_is_over() {
    let (quiet, most) = (Duration::from_secs(3), Duration::from_secs(60));
    let script = Script::new([
        at_once(7, &many(1)),
        after(1, 8, &many(2)),
        after(1, 9, &many(3)),
        after(1, 10, &many(4)),
        Act::Hang,
    ]);
    let mut watch = list(&script).settle(quiet, most).unwrap();
    let start = Instant::now();
    assert_eq!(watch.changed().await.unwrap().len(), 1);
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(watch.changed().await.unwrap().len(), 4);
    let took = start.elapsed();
    assert!(
        took >= Duration::from_secs(6) && took < Duration::from_secs(7),
        "{took:?}"
    );
    let script = Script::new([Act::Hang]);
    let refused = list(&script).settle(most, quiet);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn a_burst_without_end_is_told_within_the_longest_time() {
    let (quiet, most) = (Duration::from_secs(3), Duration::from_secs(5));
    let endless = (8..200).map(|index| {
        let count = usize::try_from(index - 6).unwrap();
        after(1, index, &many(count))
    });
    let script = Script::new([at_once(7, &many(1))].into_iter().chain(endless));
    let mut watch = list(&script).settle(quiet, most).unwrap();
    watch.changed().await.unwrap();
    for _ in 0..5 {
        let start = Instant::now();
        watch.changed().await.unwrap();
        let took = start.elapsed();
        assert!(took <= most + Duration::from_secs(2), "{took:?}");
        assert!(took >= quiet, "{took:?}");
    }
}

/// A file that goes with its owner.
struct File(PathBuf);

impl File {
    fn new(name: &str) -> Self {
        let name = format!("lictor-watch-{}-{name}", std::process::id());
        let file = Self(std::env::temp_dir().join(name));
        std::fs::remove_file(&file.0).ok();
        file
    }

    /// Whether there is something beside it that was to take its place.
    fn has_leftovers(&self) -> bool {
        let name = self.0.file_name().unwrap().to_str().unwrap();
        let beside = std::fs::read_dir(self.0.parent().unwrap()).unwrap();
        let names = beside.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names
            .into_iter()
            .any(|one| one.starts_with(&format!("{name}.")))
    }

    /// Waits until it is written.
    async fn written(&self) {
        while !self.0.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::test]
async fn a_kept_content_is_there_when_consul_is_not_and_is_told_as_stale() {
    let file = File::new("kept");
    let script = Script::new([at_once(7, &pairs(&[("a", 1), ("b", 2)])), Act::Hang]);
    let watch = list(&script).keep_in(&file.0, DAY).unwrap();
    watch.live().await.unwrap();
    file.written().await;
    drop(watch);

    let script = Script::new([
        Act::Refuse,
        Act::Refuse,
        at_once(3, &pairs(&[("c", 3)])),
        Act::Hang,
    ]);
    let mut watch = list(&script).keep_in(&file.0, DAY).unwrap();
    let kept = watch.changed().await.unwrap();
    assert_eq!(keys(&kept), ["a", "b"]);
    assert_eq!((kept.source(), kept.index()), (Source::Disk, None));
    assert!(matches!(kept.status(), Status::Stale(_)));
    assert!(kept.age() < Duration::from_secs(60));
    let fresh = watch.changed().await.unwrap();
    assert_eq!(keys(&fresh), ["c"]);
    assert_eq!(fresh.source(), Source::Server);
    drop(watch);
    // What is being written when a view goes is written to its end.
    while file.has_leftovers() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_file_that_is_cut_or_of_another_query_is_not_taken() {
    let file = File::new("cut");
    let script = Script::new([at_once(7, &pairs(&[("a", 1)])), Act::Hang]);
    let watch = list(&script).keep_in(&file.0, DAY).unwrap();
    watch.live().await.unwrap();
    file.written().await;
    drop(watch);
    let whole = std::fs::read(&file.0).unwrap();
    let nothing = async |watch: Watch<kv::Pair>| {
        let early = tokio::time::timeout(Duration::from_millis(200), watch.ready()).await;
        assert!(early.is_err(), "{early:?}");
    };
    let script = Script::new([Act::Hang]);
    let other = script.client().kv().list("other").watch().unwrap();
    nothing(other.keep_in(&file.0, DAY).unwrap()).await;
    nothing(
        list(&script)
            .keep_in(&file.0, Duration::from_nanos(1))
            .unwrap(),
    )
    .await;
    std::fs::write(&file.0, &whole[..whole.len() / 2]).unwrap();
    nothing(list(&script).keep_in(&file.0, DAY).unwrap()).await;
    std::fs::write(&file.0, &whole).unwrap();
    let good = list(&script).keep_in(&file.0, DAY).unwrap();
    assert_eq!(good.ready().await.unwrap().len(), 1);
}
