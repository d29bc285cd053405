//! Servers that come back with less than what is known.

use super::*;

#[tokio::test(start_paused = true)]
async fn an_index_that_goes_backwards_leads_to_a_read_without_one() {
    let script = Script::new([
        at_once(500, &pairs(&[("a", 7)])),
        after(1, 480, &pairs(&[("b", 8)])),
        at_once(480, &pairs(&[("b", 8)])),
        at_once(480, &pairs(&[("b", 8)])),
        Act::Hang,
    ]);
    let mut watch = script.client().kv().list("a").watch().unwrap();
    watch.changed().await.unwrap();
    assert_eq!(keys(&watch.changed().await.unwrap()), ["b"]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let asked = script.asked();
    assert_eq!(asked[2], "/v1/kv/a?recurse&stale");
    assert_eq!(asked[3], "/v1/kv/a?recurse&consistent");
    assert!(
        asked[4].ends_with("stale&index=480&wait=60000ms"),
        "{asked:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_not_read_its_log_back_empties_nothing() {
    let known = pairs(&[("a", 7)]);
    let script = Script::new([
        at_once(7, &known),
        Act::Refuse,
        at_once(1, "[]"),
        error(500, "No cluster leader"),
        at_once(1, "[]"),
        at_once(7, &known),
        Act::Hang,
    ]);
    let mut watch = script.client().kv().list("a").watch().unwrap();
    watch.changed().await.unwrap();
    let nothing = tokio::time::timeout(Duration::from_secs(10), watch.changed()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    assert!(watch.status().is_live());
    let asked = script.asked();
    for (at, mode) in [
        (2, "stale"),
        (3, "consistent"),
        (4, "stale"),
        (5, "consistent"),
    ] {
        assert_eq!(asked[at], format!("/v1/kv/a?recurse&{mode}"), "{asked:?}");
    }
    assert!(asked[6].contains("index=7"), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_confirmed_lower_index_says_is_believed() {
    let script = Script::new([
        at_once(500, &pairs(&[("a", 7)])),
        Act::Refuse,
        at_once(3, "[]"),
        at_once(3, "[]"),
        Act::Hang,
    ]);
    let mut watch = script.client().kv().list("a").watch().unwrap();
    watch.changed().await.unwrap();
    assert!(watch.changed().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn doubt_is_settled_by_the_leader_whoever_was_asked_before() {
    for (consistency, asks) in [
        (Consistency::Default, true),
        (Consistency::Stale, true),
        (Consistency::Consistent, false),
    ] {
        let script = Script::new([
            at_once(500, &pairs(&[("a", 7)])),
            Act::Refuse,
            at_once(3, &pairs(&[("b", 2)])),
            at_once(4, &pairs(&[("b", 2)])),
            Act::Hang,
        ]);
        let read = script.client().kv().list("a").consistency(consistency);
        let mut watch = read.watch().unwrap();
        watch.changed().await.unwrap();
        assert_eq!(keys(&watch.changed().await.unwrap()), ["b"]);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let asked = script.asked();
        assert_eq!(asked[3].ends_with("&consistent"), asks, "{asked:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_early_answer_with_the_same_index_leads_to_a_read_without_one() {
    // A snapshot was restored: the query in flight is answered with the old content and index.
    let script = Script::new([
        at_once(510, &pairs(&[("old", 7)])),
        after(1, 510, &pairs(&[("old", 7)])),
        at_once(480, &pairs(&[("restored", 8)])),
        at_once(480, &pairs(&[("restored", 8)])),
        Act::Hang,
    ]);
    let mut watch = script.client().kv().list("").watch().unwrap();
    watch.changed().await.unwrap();
    let started = Instant::now();
    assert_eq!(keys(&watch.changed().await.unwrap()), ["restored"]);
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_status_is_told_in_words() {
    let known = pairs(&[("a", 7)]);
    let script = Script::new([at_once(7, &known), after(5, 8, &known), Act::Refuse]);
    let mut watch = script.client().kv().list("a").watch().unwrap();
    assert_eq!(watch.status().to_string(), "not answered yet");
    watch.ready().await.unwrap();
    assert_eq!(watch.status().to_string(), "live");
    while watch.status_changed().await.unwrap().is_live() {}
    let told = watch.status().to_string();
    assert!(told.starts_with("stale for 0.0ns: "), "{told}");
}
