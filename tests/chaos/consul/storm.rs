//! Requests that are given up and bodies that are dropped half-way leave nothing behind.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty, Full};
use lictor_tower::channel::Channel;
use support::consul::Agent;
use support::{Rng, eventually, is_long, length};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::stage::{SOON, Stage, client, tell};

/// How many idle connections a pool keeps.
const IDLE: usize = 4;

/// What a caller may do to a request.
async fn one(channel: &Channel, rng: &mut Rng) -> &'static str {
    let sent = if rng.chance(50) {
        let path = if rng.chance(50) { "/pieces" } else { "/" };
        channel.request(Request::get(path).body(Empty::<Bytes>::new()).unwrap())
    } else {
        let body = Full::new(Bytes::from(vec![b'x'; 2_000]));
        channel.request(Request::post("/").body(body).unwrap())
    };
    if rng.chance(5) {
        drop(sent);
        return "dropped at once";
    }
    let patience = match rng.chance(50) {
        true => Duration::from_micros(rng.below(6_000)),
        false => SOON,
    };
    let Ok(answered) = timeout(patience, sent).await else {
        return "given up";
    };
    let mut body = answered.expect("all instances are well").into_body();
    if rng.chance(30) {
        for _ in 0..rng.below(8) {
            body.frame().await;
        }
        return "dropped half-way";
    }
    body.collect().await.expect("all instances are well");
    "read"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_requests_that_are_given_up_leaves_nothing_behind() {
    let agent = Agent::shared().await;
    let stage = Stage::of(agent, 3).await;
    let metrics = Handle::current().metrics();
    let tasks = metrics.num_alive_tasks();
    // By a client of its own, which keeps a connection to Consul for as long as it lives.
    let channel = Channel::builder(client(agent))
        .service(stage.service())
        .max_idle_per_endpoint(IDLE)
        .build()
        .unwrap();
    channel.wait_ready().await.unwrap();
    let end = Instant::now() + length(Duration::from_secs(4), Duration::from_secs(60));
    let callers = if is_long() { 64 } else { 24 };
    let mut calling = JoinSet::new();
    for number in 0..callers {
        let channel = channel.clone();
        calling.spawn(async move {
            let mut rng = Rng::new(number);
            let mut ends = std::collections::BTreeMap::new();
            while Instant::now() < end {
                *ends.entry(one(&channel, &mut rng).await).or_insert(0_u32) += 1;
            }
            ends
        });
    }
    let mut ends = std::collections::BTreeMap::new();
    for one in calling.join_all().await {
        for (end, count) in one {
            *ends.entry(end).or_insert(0) += count;
        }
    }
    tell(format_args!("{ends:?}"));
    assert_eq!(ends.len(), 4, "{ends:?}");
    assert!(ends.values().all(|count| *count > 20), "{ends:?}");

    // Nobody waits for anything now: this is exact, and at once.
    let in_flight: u32 = channel.endpoints().iter().map(|one| one.in_flight).sum();
    assert_eq!(in_flight, 0);
    // The servers notice within a moment who is gone.
    for instance in &stage.instances {
        eventually(SOON, async || {
            let counts = instance.counts().await;
            counts.in_flight == 0 && counts.open <= u64::try_from(IDLE).unwrap()
        })
        .await;
    }
    drop(channel);
    for instance in &stage.instances {
        eventually(SOON, async || instance.counts().await.open == 0).await;
    }
    eventually(SOON, async || metrics.num_alive_tasks() <= tasks).await;
    tell(format_args!("{tasks} tasks before and after"));
}
