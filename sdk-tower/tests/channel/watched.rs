//! What spans, events and snapshots tell.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use http::Request;
use http_body_util::Full;
use lictor_tower::channel::{Channel, EndpointState, Policy};
use lictor_tower::endpoint::{Endpoint, EndpointSet, Target};
use lictor_tower::error::ErrorKind;
use lictor_tower::retry::{Hedge, RetryPolicy};
use lictor_tower::source::{Source, Status};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Dispatch, Event, Subscriber};
use tracing_subscriber::layer::{Context as LayerContext, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::scripted::{Do, Scripted, ok, over, status};
use crate::support::{eventually, get, nobody, registry, text};

/// A span or an event, with all that was said of it.
#[derive(Clone, Debug, Default)]
struct Told {
    name: String,
    parent: Option<u64>,
    id: u64,
    closed: bool,
    fields: BTreeMap<&'static str, String>,
}

impl Told {
    fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

impl Visit for Told {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }
}

/// Collects all that is told on this thread.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Told>>>,
    events: Arc<Mutex<Vec<Told>>>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Collector {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: LayerContext<'_, S>) {
        let metadata = attributes.metadata();
        if !metadata.target().starts_with("lictor_tower") {
            return;
        }
        let mut told = Told {
            name: format!("{} {}", metadata.target(), metadata.name()),
            parent: context
                .span(id)
                .and_then(|span| span.parent().map(|parent| parent.id().into_u64())),
            id: id.into_u64(),
            ..Told::default()
        };
        attributes.record(&mut told);
        self.spans.lock().unwrap().push(told);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _context: LayerContext<'_, S>) {
        let mut spans = self.spans.lock().unwrap();
        let known = spans.iter_mut().rev().find(|span| span.id == id.into_u64());
        if let Some(span) = known {
            values.record(span);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: LayerContext<'_, S>) {
        let metadata = event.metadata();
        if !metadata.target().starts_with("lictor_tower") {
            return;
        }
        let mut told = Told {
            name: metadata.level().to_string(),
            parent: context.event_span(event).map(|span| span.id().into_u64()),
            ..Told::default()
        };
        event.record(&mut told);
        self.events.lock().unwrap().push(told);
    }

    fn on_close(&self, id: Id, _context: LayerContext<'_, S>) {
        let mut spans = self.spans.lock().unwrap();
        let known = spans.iter_mut().rev().find(|span| span.id == id.into_u64());
        if let Some(span) = known {
            span.closed = true;
        }
    }
}

impl Collector {
    fn listen() -> (Self, DefaultGuard) {
        // With one subscriber in all, a place in the code that another test reaches first, on a thread
        // without any, would count as one that nobody listens to.
        static ANOTHER: OnceLock<Dispatch> = OnceLock::new();
        ANOTHER.get_or_init(|| Dispatch::new(tracing_subscriber::registry()));
        let collector = Self::default();
        let subscriber = tracing_subscriber::registry().with(collector.clone());
        (collector, tracing::subscriber::set_default(subscriber))
    }

    fn named(&self, name: &str) -> Vec<Told> {
        let spans = self.spans.lock().unwrap();
        let name = format!("lictor_tower::request {name}");
        spans.iter().filter(|s| s.name == name).cloned().collect()
    }

    /// The attempts of a request as `kind reason outcome`.
    fn attempts(&self, request: &Told) -> Vec<String> {
        let spans = self.named("attempt");
        let of = spans.iter().filter(|span| span.parent == Some(request.id));
        of.map(|span| {
            assert!(span.closed, "{span:?}");
            let words = ["kind", "reason", "outcome"].map(|name| span.field(name));
            words.join(" ")
        })
        .collect()
    }

    fn only_request(&self) -> Told {
        let requests = self.named("request");
        assert_eq!(requests.len(), 1, "{requests:?}");
        assert!(requests[0].closed);
        requests[0].clone()
    }

    /// Levels and fields of the events whose text has these words.
    fn events(&self, words: &str) -> Vec<Told> {
        let events = self.events.lock().unwrap();
        let is_meant = |event: &&Told| event.field("message").contains(words);
        events.iter().filter(is_meant).cloned().collect()
    }
}

/// A channel that asks the first target and, if that is in vain, the second.
fn in_order(targets: [&Target; 2]) -> lictor_tower::channel::Builder<crate::support::Told> {
    let (registry, told) = registry();
    let endpoint =
        |(rank, target): (u16, &Target)| Endpoint::new(target.clone()).with_priority(rank);
    registry.tell_set((0..).zip(targets).map(endpoint).collect());
    Channel::from_source(told).name("web")
}

#[tokio::test]
async fn a_request_that_was_refused_shows_both_attempts_and_why() {
    let (collector, _guard) = Collector::listen();
    let (dead, good) = (nobody().await, Scripted::start(|_| ok()).await);
    let channel = in_order([&dead, &good.target]).build().unwrap();
    text(channel.request(get("/")).await.unwrap()).await;

    let request = collector.only_request();
    for (name, value) in [
        ("service", "web"),
        ("method", "GET"),
        ("attempts", "2"),
        ("status", "200"),
        ("outcome", "answered"),
    ] {
        assert_eq!(request.field(name), value, "{name}");
    }
    assert_eq!(
        collector.attempts(&request),
        ["first  refused", "retry refused answered"]
    );
    let attempts = collector.named("attempt");
    assert_eq!(attempts[0].field("endpoint"), dead.to_string());
    assert_eq!(attempts[0].field("attempt"), "1");
    assert_eq!(attempts[1].field("endpoint"), good.target.to_string());
    assert_eq!(attempts[1].field("attempt"), "2");
    let went_on = collector.events("goes to another endpoint");
    assert_eq!(went_on.len(), 1);
    assert_eq!(went_on[0].name, "DEBUG");
    assert_eq!(went_on[0].parent, Some(request.id));

    let snapshot = channel.snapshot();
    assert_eq!((snapshot.retries, snapshot.refused), (1, 1));
    let counts: Vec<_> = snapshot
        .endpoints
        .iter()
        .map(|e| (e.retries, e.refused))
        .collect();
    assert_eq!(counts, [(0, 1), (1, 0)]);
}

#[tokio::test]
async fn a_request_that_is_sent_again_after_a_503_says_that_the_first_answer_failed() {
    let (collector, _guard) = Collector::listen();
    let bad = Scripted::start(|_| status(503)).await;
    let good = Scripted::start(|_| ok()).await;
    let channel = in_order([&bad.target, &good.target]).retry(RetryPolicy::new());
    let channel = channel.build().unwrap();
    text(channel.request(get("/")).await.unwrap()).await;
    let request = collector.only_request();
    assert_eq!(
        collector.attempts(&request),
        ["first  failed", "retry failed answered"]
    );
}

#[tokio::test]
async fn a_request_that_ends_with_a_503_has_failed() {
    let (collector, _guard) = Collector::listen();
    let bad = Scripted::start(|_| status(503)).await;
    let (_registry, channel) = over(&[&bad], |builder| builder);
    text(channel.request(get("/")).await.unwrap()).await;
    let request = collector.only_request();
    assert_eq!(request.field("outcome"), "failed");
    assert_eq!(request.field("status"), "503");
    assert_eq!(collector.attempts(&request), ["first  failed"]);
}

#[tokio::test]
async fn a_hedged_request_shows_who_was_outrun() {
    let (collector, _guard) = Collector::listen();
    let stuck = Scripted::start(|_| Do::Hang).await;
    let good = Scripted::start(|_| ok()).await;
    let hedge = Hedge::after(Duration::from_millis(20));
    let channel = in_order([&stuck.target, &good.target])
        .hedge(hedge)
        .build()
        .unwrap();
    text(channel.request(get("/")).await.unwrap()).await;
    let request = collector.only_request();
    assert_eq!(
        collector.attempts(&request),
        ["first  outrun", "hedge  answered"]
    );
    assert_eq!(request.field("attempts"), "2");
    assert_eq!(channel.snapshot().hedges, 1);
}

#[tokio::test]
async fn a_request_given_up_and_one_that_is_late_say_so() {
    let (collector, _guard) = Collector::listen();
    let stuck = Scripted::start(|_| Do::Hang).await;
    let (_registry, channel) = over(&[&stuck], |builder| {
        builder
            .timeout(Duration::from_millis(50))
            .policy(Policy::PendingRequests)
    });
    let late = channel.request(get("/")).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Timeout);
    let mut call = Box::pin(channel.request(get("/")));
    let asked = stuck.requests();
    tokio::select! {
        _ = &mut call => panic!("nobody answers"),
        () = eventually("it is there", || stuck.requests() > asked) => {}
    }
    drop(call);
    let requests = collector.named("request");
    let outcomes = requests.iter().map(|request| request.field("outcome"));
    assert_eq!(outcomes.collect::<Vec<_>>(), ["timeout", "given_up"]);
    assert_eq!(collector.attempts(&requests[0]), ["first  late"]);
    assert_eq!(collector.attempts(&requests[1]), ["first  given_up"]);
}

#[tokio::test]
async fn nothing_that_may_be_secret_is_told() {
    let (collector, _guard) = Collector::listen();
    let bad = Scripted::start(|before| {
        if before % 2 == 0 {
            Do::Crash
        } else {
            status(503)
        }
    })
    .await;
    let (_registry, channel) = over(&[&bad], |builder| builder.retry(RetryPolicy::new()));
    for _ in 0..4 {
        let request = Request::put("http://me:hush@web/hush?token=hush")
            .header("authorization", "Bearer hush")
            .header("x-hush", "hush")
            .body(Full::new(Bytes::from_static(b"hush")))
            .unwrap();
        if let Ok(response) = channel.request(request).await {
            text(response).await;
        }
    }
    assert_eq!(collector.named("request").len(), 4);
    let spans = collector.spans.lock().unwrap().clone();
    let events = collector.events.lock().unwrap().clone();
    for told in spans.iter().chain(&events) {
        assert!(!format!("{told:?}").contains("hush"), "{told:?}");
    }
}

#[tokio::test]
async fn endpoints_that_come_go_are_ejected_and_return_are_told_with_their_service() {
    let (collector, _guard) = Collector::listen();
    let flaky = Scripted::start(|before| if before < 5 { status(500) } else { ok() }).await;
    let good = Scripted::start(|_| ok()).await;
    let (registry, told) = registry();
    registry.tell(&[&flaky.target, &good.target]);
    let ejection = lictor_tower::channel::Ejection::default()
        .times(Duration::from_millis(50), Duration::from_millis(50));
    let channel = Channel::from_source(told)
        .name("web")
        .policy(Policy::RoundRobin)
        .ejection(ejection)
        .build()
        .unwrap();
    let calls = async {
        loop {
            text(channel.request(get("/")).await.unwrap()).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let back = eventually("it is back", || !collector.events("is back in").is_empty());
    tokio::select! { () = calls => {}, () = back => {} }
    registry.tell(&[&good.target]);
    eventually("it has left", || !collector.events("has left").is_empty()).await;
    for (words, level) in [
        ("has joined", "DEBUG"),
        ("is ejected", "INFO"),
        ("is back in", "INFO"),
        ("has left", "DEBUG"),
    ] {
        let events = collector.events(words);
        let flaky = flaky.target.to_string();
        let event = events
            .iter()
            .find(|event| event.field("target") == flaky)
            .unwrap();
        assert_eq!(
            (event.name.as_str(), event.field("service")),
            (level, "web"),
            "{words}"
        );
    }
    assert_eq!(
        collector.events("is ejected")[0].field("why"),
        "failures in a row"
    );
}

/// One endpoint, of which it knows as much as it is told.
struct Moody(Arc<AtomicU8>, Option<EndpointSet>);

impl Stream for Moody {
    type Item = EndpointSet;

    fn poll_next(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<EndpointSet>> {
        match self.1.take() {
            Some(set) => Poll::Ready(Some(set)),
            None => Poll::Pending,
        }
    }
}

impl Source for Moody {
    fn status(&self) -> Status {
        match self.0.load(Ordering::SeqCst) {
            0 => Status::Live,
            _ => Status::Stale {
                age: Duration::from_secs(7),
                reason: "the wire is cut".into(),
            },
        }
    }
}

#[tokio::test]
async fn a_source_that_turns_stale_is_told_once_and_stands_in_the_snapshot() {
    let (collector, _guard) = Collector::listen();
    let mood = Arc::new(AtomicU8::new(0));
    let set = [Endpoint::new("10.0.0.1:80".parse().unwrap())]
        .into_iter()
        .collect();
    let source = Moody(Arc::clone(&mood), Some(set));
    let channel = Channel::from_source(source)
        .name("web")
        .observe_source()
        .build()
        .unwrap();
    channel.wait_ready().await.unwrap();
    assert_eq!(channel.snapshot().source, Some(Status::Live));

    mood.store(1, Ordering::SeqCst);
    let is_stale = || matches!(channel.snapshot().source, Some(Status::Stale { .. }));
    eventually("it is stale", is_stale).await;
    let snapshot = channel.snapshot();
    let Some(Status::Stale { age, reason }) = &snapshot.source else {
        panic!("{snapshot}");
    };
    assert!(*age >= Duration::from_secs(7), "{age:?}");
    assert_eq!(&**reason, "the wire is cut");
    assert!(snapshot.to_string().contains("source stale"), "{snapshot}");

    mood.store(0, Ordering::SeqCst);
    eventually("it is live", || {
        channel.snapshot().source == Some(Status::Live)
    })
    .await;
    let told: Vec<_> = ["is stale", "confirms"]
        .map(|words| collector.events(words))
        .concat();
    assert_eq!(told.len(), 2, "{told:?}");
    for event in told {
        assert_eq!(
            (event.name.as_str(), event.field("service")),
            ("INFO", "web")
        );
    }
}

#[tokio::test]
async fn a_snapshot_tells_who_is_in_flight_who_waits_and_who_was_shed() {
    let stuck = Scripted::start(|_| Do::Hang).await;
    let (_registry, channel) = over(&[&stuck], |builder| {
        builder
            .name("web")
            .max_in_flight(1)
            .max_waiting(1)
            .waiting_timeout(Duration::from_secs(60))
    });
    channel.wait_ready().await.unwrap();
    let mut under_way = Box::pin(channel.request(get("/")));
    let in_line = Box::pin(channel.request(get("/")));
    let shed = channel.request(get("/")).await.unwrap_err();
    assert_eq!(shed.kind(), ErrorKind::Overloaded);
    tokio::select! {
        _ = &mut under_way => panic!("nobody answers"),
        () = eventually("it is there", || stuck.requests() == 1) => {}
    }
    let snapshot = channel.snapshot();
    assert_eq!(snapshot.service.as_deref(), Some("web"));
    assert_eq!(
        (snapshot.in_flight, snapshot.waiting, snapshot.shed),
        (1, 1, 1)
    );
    assert_eq!(snapshot.source, None, "a stream of which nothing is known");
    assert_eq!(snapshot.ready(), 1);
    let page = serde_json::to_value(&snapshot).unwrap();
    assert_eq!(page["waiting"], 1);
    assert_eq!(page["endpoints"][0]["in_flight"], 1);
    assert_eq!(page["endpoints"][0]["latency_ms"], serde_json::Value::Null);

    drop((under_way, in_line));
    let snapshot = channel.snapshot();
    assert_eq!((snapshot.in_flight, snapshot.waiting), (0, 0));
}

#[tokio::test]
async fn the_state_of_an_endpoint_is_written_with_its_reason_and_its_time() {
    let state = EndpointState::Ejected {
        reason: lictor_tower::channel::Reason::SuccessRate,
        left: Duration::from_micros(1_500),
        times: 2,
    };
    assert_eq!(
        serde_json::to_value(state).unwrap(),
        serde_json::json!({ "is": "ejected", "reason": "success_rate", "left_ms": 1.5, "times": 2 })
    );
    assert_eq!(
        serde_json::to_value(EndpointState::Ready).unwrap(),
        serde_json::json!({ "is": "ready" })
    );
}
