//! The engine against a scripted agent, on a paused clock.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use tokio::time::Instant;
use tower_service::Service;

use super::*;
use crate::api::{Consistency, kv};
use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::transport::Request;

mod restarts;
mod views;

/// What the scripted agent does with one request.
#[derive(Clone)]
enum Act {
    /// Answers after a time: status, index, body, last contact in ms.
    Answer(Duration, u16, u64, String, u64),
    /// Cannot be reached.
    Refuse,
    /// Never answers.
    Hang,
}

fn at_once(index: u64, body: &str) -> Act {
    Act::Answer(Duration::ZERO, 200, index, body.to_owned(), 0)
}

fn after(secs: u64, index: u64, body: &str) -> Act {
    Act::Answer(Duration::from_secs(secs), 200, index, body.to_owned(), 0)
}

fn error(status: u16, body: &str) -> Act {
    Act::Answer(Duration::ZERO, status, 1, body.to_owned(), 0)
}

/// Plays its acts one by one, the last one for ever, and notes what it was asked.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<Play>>);

#[derive(Default)]
struct Play {
    acts: VecDeque<Act>,
    asked: Vec<(Instant, String)>,
    open: usize,
}

impl Script {
    fn new(acts: impl IntoIterator<Item = Act>) -> Self {
        let script = Self::default();
        script.0.lock().unwrap().acts.extend(acts);
        script
    }

    fn client(&self) -> Client {
        Client::builder().transport(self.clone()).build().unwrap()
    }

    fn asked(&self) -> Vec<String> {
        let play = self.0.lock().unwrap();
        play.asked.iter().map(|(_, uri)| uri.clone()).collect()
    }

    fn times(&self) -> Vec<Instant> {
        let play = self.0.lock().unwrap();
        play.asked.iter().map(|(at, _)| *at).collect()
    }

    fn open(&self) -> usize {
        self.0.lock().unwrap().open
    }
}

/// Counts a request as open for as long as its future lives.
struct Open(Script);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().open -= 1;
    }
}

impl Service<Request> for Script {
    type Response = Response<Full<Bytes>>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let mut play = self.0.lock().unwrap();
        let uri = request.uri().path_and_query().unwrap().to_string();
        play.asked.push((Instant::now(), uri));
        play.open += 1;
        let act = if play.acts.len() > 1 {
            play.acts.pop_front()
        } else {
            play.acts.front().cloned()
        };
        let open = Open(self.clone());
        Box::pin(async move {
            let _open = open;
            match act {
                Some(Act::Answer(delay, status, index, body, last_contact)) => {
                    tokio::time::sleep(delay).await;
                    let mut answer = Response::builder().status(status);
                    if index > 0 {
                        answer = answer
                            .header("X-Consul-Index", index)
                            .header("X-Consul-LastContact", last_contact);
                    }
                    Ok(answer.body(Full::from(body)).unwrap())
                }
                Some(Act::Refuse) => Err(Error::new(ErrorKind::Connect)),
                Some(Act::Hang) | None => std::future::pending().await,
            }
        })
    }
}

fn pairs(pairs: &[(&str, u64)]) -> String {
    let all: Vec<_> = pairs
        .iter()
        .map(|(key, index)| format!(r#"{{"Key":"{key}","Value":null,"ModifyIndex":{index}}}"#))
        .collect();
    format!("[{}]", all.join(","))
}

fn keys(snapshot: &Snapshot<kv::Pair>) -> Vec<&str> {
    snapshot.iter().map(|pair| pair.key().as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn the_first_query_does_not_block_and_the_next_waits_from_its_index() {
    let script = Script::new([at_once(7, &pairs(&[("a", 7)])), Act::Hang]);
    let mut watch = script.client().kv().list("a").watch().unwrap();
    let snapshot = watch.changed().await.unwrap();
    assert_eq!(keys(&snapshot), ["a"]);
    assert_eq!(snapshot.index(), Some(7));
    assert!(snapshot.status().is_live());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        script.asked(),
        [
            "/v1/kv/a?recurse&stale",
            "/v1/kv/a?recurse&stale&index=7&wait=60000ms"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn an_error_answer_is_not_taken_for_content_and_its_index_is_ignored() {
    let script = Script::new([
        at_once(7, &pairs(&[("a", 7)])),
        Act::Answer(
            Duration::from_secs(1),
            500,
            1,
            "No cluster leader".to_owned(),
            0,
        ),
        Act::Hang,
    ]);
    let mut watch = script.client().kv().list("a").watch().unwrap();
    watch.changed().await.unwrap();
    let status = watch.status_changed().await.unwrap();
    assert!(status.error().unwrap().is_no_leader(), "{status:?}");
    assert_eq!(keys(&watch.latest().unwrap()), ["a"]);
    tokio::time::sleep(Duration::from_secs(20)).await;
    // The agent is the same, so its index holds, but not for long at first.
    let asked = script.asked();
    assert!(asked[2].ends_with("index=7&wait=10000ms"), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn an_outage_keeps_the_last_good_content_and_ends_by_itself() {
    let mut acts = vec![at_once(7, &pairs(&[("a", 7)]))];
    acts.extend(vec![Act::Refuse; 20]);
    acts.extend([at_once(8, &pairs(&[("a", 7)])), Act::Hang]);
    let script = Script::new(acts);
    let mut watch = script.client().kv().list("a").watch().unwrap();
    let before = watch.changed().await.unwrap();
    let status = watch.status_changed().await.unwrap();
    assert!(matches!(status, Status::Stale(_)), "{status:?}");
    let after = watch.live().await.unwrap();
    assert!(
        Arc::ptr_eq(&before[0], &after[0]),
        "equal content is told again"
    );
    // Another agent may have answered: the first query after the outage has no index.
    assert!(
        !script.asked()[21].contains("index"),
        "{:?}",
        script.asked()
    );
    // Nothing new was told.
    let nothing = tokio::time::timeout(Duration::from_secs(5), watch.changed()).await;
    assert!(nothing.is_err());
}

#[tokio::test(start_paused = true)]
async fn retries_after_failures_are_spread_out() {
    let script = Script::new([Act::Refuse]);
    let watch = script.client().kv().list("a").watch().unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let asked = script.times().len();
    assert!(
        (600..=2000).contains(&asked),
        "{asked} requests in ten minutes"
    );
    let apart = script.times().windows(2).map(|two| two[1] - two[0]).max();
    assert!(apart.unwrap() <= Duration::from_secs(1), "{apart:?}");
    assert!(matches!(
        watch.status(),
        Status::Connecting { error: Some(_) }
    ));
}

#[tokio::test(start_paused = true)]
async fn an_agent_in_trouble_is_asked_less_often_than_one_that_is_not_there() {
    let script = Script::new([error(500, "rpc error")]);
    let _watch = script.client().kv().list("a").watch().unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let asked = script.times().len();
    assert!(
        (60..=300).contains(&asked),
        "{asked} requests in ten minutes"
    );
}

#[tokio::test(start_paused = true)]
async fn answers_that_come_at_once_do_not_make_a_hot_loop() {
    // Every answer has a new index and the same content.
    let acts = (1..100_000).map(|index| at_once(index, "[]"));
    let script = Script::new(acts);
    let mut watch = script.client().kv().list("a").watch().unwrap();
    assert!(watch.changed().await.unwrap().is_empty());
    tokio::time::sleep(Duration::from_secs(60)).await;
    let asked = script.asked().len();
    assert!((590..=620).contains(&asked), "{asked} requests in a minute");
    let again = tokio::time::timeout(Duration::from_secs(1), watch.changed()).await;
    assert!(again.is_err(), "the same content was told twice");
}

#[tokio::test(start_paused = true)]
async fn a_query_that_hangs_is_given_up_after_its_deadline() {
    let script = Script::new([at_once(7, "[]"), Act::Hang, at_once(8, "[]"), Act::Hang]);
    let mut watch = script.client().kv().list("a").watch().unwrap();
    watch.changed().await.unwrap();
    let started = Instant::now();
    let status = watch.status_changed().await.unwrap();
    assert_eq!(status.error().unwrap().kind(), ErrorKind::Timeout);
    let waited = started.elapsed();
    let deadline = Duration::from_secs(60) + Duration::from_millis(3750) + Duration::from_secs(10);
    assert!(waited >= deadline && waited < deadline + Duration::from_secs(1));
    watch.live().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn equal_queries_share_one_and_different_ones_do_not() {
    let script = Script::new([at_once(7, &pairs(&[("a", 7)])), Act::Hang]);
    let client = script.client();
    let mut readers: Vec<_> = (0..200)
        .map(|_| client.clone().kv().list("a").watch().unwrap())
        .collect();
    for reader in &mut readers {
        reader.changed().await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((script.asked().len(), script.open()), (2, 1));

    let token = crate::ident::Token::new("other").unwrap();
    let others = [
        client.kv().list("b").watch(),
        client
            .kv()
            .list("a")
            .consistency(Consistency::Default)
            .watch(),
        client.kv().list("a").token(token).watch(),
        client.kv().list("a").datacenter("dc2").watch(),
    ];
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(script.open(), 1 + others.len());
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_reader_ends_the_query_at_once() {
    let script = Script::new([at_once(7, "[]"), Act::Hang]);
    let client = script.client();
    let mut first = client.kv().list("a").watch().unwrap();
    let second = first.clone();
    first.changed().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(first);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(script.open(), 1);
    drop(second);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(script.open(), 0);
    let alive = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    assert_eq!(alive, 0, "the task has ended");

    let mut third = client.kv().list("a").watch().unwrap();
    assert!(third.latest().is_none(), "a new query knows nothing");
    drop(third.changed());
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_gets_the_newest_content_and_holds_nobody_back() {
    let acts = (1..=50).map(|index| after(1, index, &pairs(&[("a", index)])));
    let script = Script::new(acts.chain([Act::Hang]));
    let client = script.client();
    let mut slow = client.kv().list("a").watch().unwrap();
    let mut fast = slow.clone();
    for index in 1..=50 {
        assert_eq!(fast.changed().await.unwrap()[0].modify_index(), index);
    }
    assert_eq!(slow.changed().await.unwrap()[0].modify_index(), 50);
}

#[tokio::test(start_paused = true)]
async fn elements_that_did_not_change_are_the_same_allocation() {
    let script = Script::new([
        at_once(7, &pairs(&[("a", 1), ("b", 2), ("c", 3)])),
        after(1, 8, &pairs(&[("a", 1), ("b", 8), ("c", 3)])),
        Act::Hang,
    ]);
    let mut watch = script.client().kv().list("").watch().unwrap();
    let old = watch.changed().await.unwrap();
    let new = watch.changed().await.unwrap();
    let shared: Vec<_> = (0..3).map(|at| Arc::ptr_eq(&old[at], &new[at])).collect();
    assert_eq!(shared, [true, false, true]);
}

#[tokio::test(start_paused = true)]
async fn differences_begin_with_everything_and_go_on_with_what_changed() {
    let script = Script::new([
        at_once(7, &pairs(&[("a", 1), ("b", 2)])),
        after(1, 8, &pairs(&[("b", 8), ("c", 3)])),
        Act::Hang,
    ]);
    let mut changes = script.client().kv().list("").watch().unwrap().changes();
    assert_eq!(changes.next().await.unwrap().added.len(), 2);
    let difference = changes.next().await.unwrap();
    assert_eq!(difference.added[0].key(), &"c");
    assert_eq!(difference.changed[0].1.modify_index(), 8);
    assert_eq!(difference.removed[0].key(), &"a");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_does_not_exist_is_a_snapshot_of_nothing() {
    let script = Script::new([
        Act::Answer(Duration::ZERO, 404, 3, String::new(), 0),
        after(1, 4, &pairs(&[("a", 4)])),
        Act::Answer(Duration::from_secs(1), 404, 5, String::new(), 0),
        Act::Hang,
    ]);
    let mut watch = script.client().kv().get("a").watch().unwrap();
    assert_eq!(watch.changed().await.unwrap().len(), 0);
    assert_eq!(watch.changed().await.unwrap().len(), 1);
    assert_eq!(watch.changed().await.unwrap().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_404_of_something_in_between_is_not_a_missing_key() {
    // The scripted agent sends no index with an answer of index 0, as a proxy would.
    let proxy = Act::Answer(Duration::ZERO, 404, 0, "<html>".to_owned(), 0);
    let script = Script::new([proxy]);
    let watch = script.client().kv().get("a").watch().unwrap();
    let err = watch.ready().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_refused_query_is_told_to_who_waits_for_the_first_content() {
    let script = Script::new([error(403, "Permission denied")]);
    let watch = script.client().kv().get("a").watch().unwrap();
    let err = watch.ready().await.unwrap_err();
    assert!(err.is_permission_denied());
}

#[tokio::test(start_paused = true)]
async fn garbage_keeps_the_last_good_content() {
    let script = Script::new([
        at_once(7, &pairs(&[("a", 1)])),
        after(1, 8, "[{\"Key\":\"a\"},{\"Ke"),
        Act::Hang,
    ]);
    let mut watch = script.client().kv().list("").watch().unwrap();
    watch.changed().await.unwrap();
    let status = watch.status_changed().await.unwrap();
    assert_eq!(status.error().unwrap().kind(), ErrorKind::Decode);
    assert_eq!(keys(&watch.latest().unwrap()), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_from_a_server_far_behind_is_asked_again_of_the_leader() {
    let late = Act::Answer(Duration::ZERO, 200, 7, pairs(&[("late", 1)]), 6000);
    let script = Script::new([late, at_once(9, &pairs(&[("fresh", 9)])), Act::Hang]);
    let mut watch = script.client().kv().list("").watch().unwrap();
    assert_eq!(keys(&watch.changed().await.unwrap()), ["fresh"]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let asked = script.asked();
    assert_eq!(asked[1], "/v1/kv/?recurse&consistent");
    assert!(asked[2].contains("stale&index=9"), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_a_late_answer_is_better_than_none_and_told_as_stale() {
    let late = Act::Answer(Duration::ZERO, 200, 7, pairs(&[("late", 1)]), 6000);
    let script = Script::new([late, error(500, "No cluster leader"), Act::Hang]);
    let watch = script.client().kv().list("").watch().unwrap();
    let snapshot = watch.ready().await.unwrap();
    assert_eq!(keys(&snapshot), ["late"]);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(watch.status().error().unwrap().is_no_leader());
}

#[tokio::test(start_paused = true)]
async fn a_future_that_is_dropped_loses_nothing() {
    let script = Script::new([after(5, 7, &pairs(&[("a", 1)])), Act::Hang]);
    let mut watch = script.client().kv().list("").watch().unwrap();
    for _ in 0..10 {
        let waited = tokio::time::timeout(Duration::from_millis(100), watch.changed()).await;
        assert!(waited.is_err());
    }
    assert_eq!(keys(&watch.changed().await.unwrap()), ["a"]);
    assert_eq!(script.asked().len(), 1 + usize::from(script.open() == 1));
}

#[tokio::test(start_paused = true)]
async fn as_a_stream_it_tells_the_same() {
    let script = Script::new([
        at_once(7, &pairs(&[("a", 1)])),
        after(1, 8, &pairs(&[("b", 1)])),
        Act::Hang,
    ]);
    let mut watch = script.client().kv().list("").watch().unwrap();
    let mut next = async || {
        std::future::poll_fn(|cx| futures_core::Stream::poll_next(Pin::new(&mut watch), cx)).await
    };
    assert_eq!(keys(&next().await.unwrap()), ["a"]);
    assert_eq!(keys(&next().await.unwrap()), ["b"]);
}

#[test]
fn outside_of_a_runtime_a_watch_is_refused() {
    let client = Script::new([Act::Hang]).client();
    let err = client.kv().get("a").watch().unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NoRuntime);
}

#[test]
fn readers_end_when_the_runtime_is_gone() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = Script::new([Act::Hang]).client();
    let mut watch = runtime.block_on(async { client.kv().get("a").watch().unwrap() });
    drop(runtime);
    let other = tokio::runtime::Runtime::new().unwrap();
    let err = other.block_on(watch.changed()).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Closed);
    assert_eq!(watch.status().error().unwrap().kind(), ErrorKind::Closed);
    drop(watch);
}

#[test]
fn a_reader_whose_runtime_is_gone_does_not_keep_others_from_asking() {
    let script = Script::new([
        at_once(7, &pairs(&[("old", 7)])),
        Act::Hang,
        at_once(8, &pairs(&[("new", 8)])),
        Act::Hang,
    ]);
    let client = script.client();
    let first = tokio::runtime::Runtime::new().unwrap();
    let dead = first.block_on(async {
        let watch = client.kv().list("a").watch().unwrap();
        watch.ready().await.unwrap();
        while script.asked().len() < 2 {
            tokio::task::yield_now().await;
        }
        watch
    });
    drop(first);
    let second = tokio::runtime::Runtime::new().unwrap();
    let fresh = second.block_on(async {
        let watch = client.kv().list("a").watch().unwrap();
        watch.ready().await.unwrap()
    });
    assert_eq!(keys(&fresh), ["new"]);
    assert_eq!(keys(&dead.latest().unwrap()), ["old"]);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_argument_is_refused_before_anything_is_sent() {
    let script = Script::new([Act::Hang]);
    let client = script.client();
    assert!(client.kv().get("/a").watch().is_err());
    let by_hand = client.kv().get("a").wait_for_change(7, WAIT);
    assert!(by_hand.watch().is_err());
    assert_eq!(script.asked(), [""; 0]);
}
