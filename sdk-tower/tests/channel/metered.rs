//! What the metrics tell.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use lictor_tower::channel::{Channel, Ejection, Policy};
use lictor_tower::endpoint::{Endpoint, Target};
use lictor_tower::error::ErrorKind;
use lictor_tower::retry::{Budget, Hedge, RetryPolicy};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};

use crate::scripted::{Do, Scripted, ok, over, status};
use crate::support::{eventually, get, nobody, registry, text};

/// Gauges, added up: a snapshot of this recorder takes what was told with it.
struct Gauges {
    snapshotter: Snapshotter,
    sums: Mutex<HashMap<String, f64>>,
}

impl Gauges {
    /// The gauge with this name and of this endpoint, or else that of the service.
    fn read(&self, name: &str, endpoint: Option<&Target>) -> f64 {
        let mut sums = self.sums.lock().unwrap();
        for (key, _, _, value) in self.snapshotter.snapshot().into_vec() {
            if let DebugValue::Gauge(value) = value {
                let labels = key.key().labels().map(|label| label.value());
                let key = format!(
                    "{} {}",
                    key.key().name(),
                    labels.collect::<Vec<_>>().join(" ")
                );
                *sums.entry(key).or_default() += value.into_inner();
            }
        }
        let key = match endpoint {
            Some(target) => format!("{name} web {target}"),
            None => format!("{name} web"),
        };
        sums.get(&key).copied().unwrap_or(-1.0)
    }
}

/// All counters at one moment: a snapshot of this recorder takes counts with it.
fn counters(snapshotter: &Snapshotter) -> Vec<String> {
    let mut lines: Vec<_> = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .filter_map(|(key, _, _, value)| {
            let labels: Vec<_> = key
                .key()
                .labels()
                .map(|label| format!("{}={}", label.key(), label.value()))
                .collect();
            let value = match value {
                DebugValue::Counter(count) => count.to_string(),
                DebugValue::Histogram(values) => format!("{} values", values.len()),
                DebugValue::Gauge(_) => return None,
            };
            Some(format!("{} {} {value}", key.key().name(), labels.join(" ")))
        })
        .collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn requests_attempts_and_retries_are_counted_by_what_became_of_them() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let (dead, good) = (nobody().await, Scripted::start(|_| ok()).await);
    let (registry, told) = registry();
    let first = Endpoint::new(dead).with_priority(0);
    let second = Endpoint::new(good.target.clone()).with_priority(1);
    registry.tell_set([first, second].into_iter().collect());
    let channel = Channel::from_source(told).name("web").build().unwrap();
    for _ in 0..3 {
        text(channel.request(get("/")).await.unwrap()).await;
    }
    let clone = channel.clone();
    text(clone.request(get("/")).await.unwrap()).await;
    assert_eq!(
        counters(&snapshotter),
        [
            "lictor_attempt_duration_seconds service=web 4 values",
            "lictor_attempts_total service=web outcome=answered 4",
            "lictor_attempts_total service=web outcome=refused 1",
            "lictor_requests_total service=web outcome=answered 4",
            "lictor_retries_total service=web reason=refused 1",
        ]
    );
}

#[tokio::test]
async fn hedges_and_an_empty_budget_are_counted() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let stuck = Scripted::start(|_| Do::Hang).await;
    let bad = Scripted::start(|_| status(503)).await;
    let (_registry, channel) = over(&[&bad, &bad], |builder| {
        builder
            .name("poor")
            .retry(RetryPolicy::new().budget(Budget::new(0, 0)))
    });
    text(channel.request(get("/")).await.unwrap()).await;
    let good = Scripted::start(|_| ok()).await;
    let (registry, told) = registry();
    let first = Endpoint::new(stuck.target.clone()).with_priority(0);
    let second = Endpoint::new(good.target.clone()).with_priority(1);
    registry.tell_set([first, second].into_iter().collect());
    let hedged = Channel::from_source(told)
        .name("slow")
        .hedge(Hedge::after(Duration::from_millis(10)))
        .build()
        .unwrap();
    text(hedged.request(get("/")).await.unwrap()).await;
    let lines = counters(&snapshotter);
    for line in [
        "lictor_retry_budget_exhausted_total service=poor 1",
        "lictor_requests_total service=poor outcome=failed 1",
        "lictor_hedges_total service=slow 1",
        "lictor_attempts_total service=slow outcome=outrun 1",
    ] {
        assert!(lines.iter().any(|one| one == line), "{line}\n{lines:#?}");
    }
}

#[tokio::test]
async fn each_metric_says_what_it_is_and_in_which_unit() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let server = Scripted::start(|_| ok()).await;
    let (_registry, channel) = over(&[&server], |builder| builder.name("web"));
    text(channel.request(get("/")).await.unwrap()).await;
    eventually("the gauges are told", || {
        let told = snapshotter.snapshot().into_vec();
        told.iter()
            .any(|(.., value)| matches!(value, DebugValue::Gauge(_)))
    })
    .await;
    let told = snapshotter.snapshot().into_vec();
    assert!(told.len() > 5, "{told:?}");
    for (key, unit, description, _) in told {
        let name = key.key().name().to_owned();
        assert!(description.is_some(), "{name}");
        // A yes or no has no unit.
        assert_eq!(unit.is_some(), name != "lictor_source_stale", "{name}");
    }
}

#[tokio::test]
async fn shed_requests_are_counted_as_overloaded() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let stuck = Scripted::start(|_| Do::Hang).await;
    let (_registry, channel) = over(&[&stuck], |builder| {
        builder.name("web").max_in_flight(1).max_waiting(0)
    });
    channel.wait_ready().await.unwrap();
    let under_way = channel.request(get("/"));
    let shed = channel.request(get("/")).await.unwrap_err();
    assert_eq!(shed.kind(), ErrorKind::Overloaded);
    drop(under_way);
    let lines = counters(&snapshotter);
    assert_eq!(
        lines,
        [
            "lictor_requests_total service=web outcome=given_up 1",
            "lictor_requests_total service=web outcome=overloaded 1",
        ]
    );
}

#[tokio::test]
async fn gauges_follow_the_endpoints_and_are_taken_back() {
    let recorder = DebuggingRecorder::new();
    let gauges = Gauges {
        snapshotter: recorder.snapshotter(),
        sums: Mutex::default(),
    };
    let _guard = metrics::set_default_local_recorder(&recorder);
    let bad = Scripted::start(|_| status(500)).await;
    let stuck = Scripted::start(|_| Do::Hang).await;
    let (registry, told) = registry();
    registry.tell(&[&bad.target, &stuck.target]);
    let time = Duration::from_secs(60);
    let channel = Channel::from_source(told)
        .name("web")
        .policy(Policy::RoundRobin)
        .ejection(
            Ejection::default()
                .consecutive_failures(1)
                .times(time, time),
        )
        .endpoint_gauges()
        .build()
        .unwrap();
    let (_other, second) = over(&[&stuck], |builder| builder.name("web"));
    channel.wait_ready().await.unwrap();
    second.wait_ready().await.unwrap();

    // One of the two hangs, the other gets its endpoint ejected.
    let mut calls = Vec::new();
    for _ in 0..2 {
        calls.push(Box::pin(channel.request(get("/"))));
    }
    let all = futures(&mut calls);
    tokio::select! {
        () = all => panic!("one of them hangs"),
        () = eventually("it is ejected", || {
            // Two of one channel, one of the other.
            gauges.read("lictor_endpoints_ejected", None) == 1.0
                && gauges.read("lictor_endpoints", None) == 3.0
        }) => {}
    }
    for (name, endpoint, value) in [
        ("lictor_requests_in_flight", None, 1.0),
        ("lictor_requests_waiting", None, 0.0),
        ("lictor_source_stale", None, 0.0),
        ("lictor_endpoint_ejected", Some(&bad.target), 1.0),
        ("lictor_endpoint_ejected", Some(&stuck.target), 0.0),
        ("lictor_endpoint_in_flight", Some(&stuck.target), 1.0),
    ] {
        assert_eq!(gauges.read(name, endpoint), value, "{name} {endpoint:?}");
    }

    drop((calls, channel, second));
    eventually("all is taken back", || {
        gauges.read("lictor_endpoints", None) == 0.0
    })
    .await;
    let bad = Some(&bad.target);
    assert_eq!(gauges.read("lictor_endpoint_ejected", bad), 0.0);
    let stuck = Some(&stuck.target);
    assert_eq!(gauges.read("lictor_endpoint_in_flight", stuck), 0.0);
}

/// Drives all of them.
async fn futures(calls: &mut [std::pin::Pin<Box<lictor_tower::channel::ResponseFuture>>]) {
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for call in calls.iter_mut() {
            // Who has answered is not asked again.
            if !format!("{call:?}").contains("done") {
                pending |= call.as_mut().poll(cx).is_pending();
            }
        }
        if pending {
            std::task::Poll::Pending
        } else {
            std::task::Poll::Ready(())
        }
    })
    .await;
}
