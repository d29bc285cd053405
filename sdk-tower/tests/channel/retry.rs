//! What was sent is sent again: to whom, how often, when, and when not.

use std::error::Error as _;
use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use lictor_tower::channel::{Builder, Channel, EndpointState};
use lictor_tower::endpoint::Target;
use lictor_tower::error::ErrorKind;
use lictor_tower::retry::{Budget, MayRepeat, RetryPolicy, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::scripted::{Do, Scripted, known, ok, over, status, with};
use crate::support::{Told, eventually, get, in_flight, nobody, post, registry, text};

fn policy() -> RetryPolicy {
    RetryPolicy::new().budget(Budget::new(100, 1_000))
}

fn with_policy(policy: RetryPolicy) -> impl FnOnce(Builder<Told>) -> Builder<Told> {
    |builder| builder.retry(policy)
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[tokio::test]
async fn an_answer_that_says_try_again_sends_the_request_to_another_endpoint() {
    for code in [429, 502, 503, 504] {
        let bad = Scripted::start(move |_| status(code)).await;
        let good = Scripted::start(|_| ok()).await;
        let (_registry, channel) = over(&[&bad, &good], with_policy(policy()));
        for _ in 0..50 {
            let response = channel.request(get("/")).await.unwrap();
            assert_eq!(response.body().target(), &good.target);
            assert_eq!(text(response).await, "ok");
        }
        assert!(bad.requests() > 0, "{code}");
        assert_eq!(good.requests(), 50);
        assert_eq!(in_flight(&channel), 0);
    }
}

#[tokio::test]
async fn other_answers_are_the_callers() {
    for code in [400, 404, 500, 501] {
        let server = Scripted::start(move |_| status(code)).await;
        let (_registry, channel) = over(&[&server], with_policy(policy()));
        let response = channel.request(get("/")).await.unwrap();
        assert_eq!(response.status().as_u16(), code);
        assert_eq!(server.requests(), 1);
    }
}

#[tokio::test]
async fn without_a_policy_an_answer_is_an_answer() {
    let server = Scripted::start(|_| status(503)).await;
    let other = Scripted::start(|_| status(503)).await;
    let (_registry, channel) = over(&[&server, &other], |builder| builder);
    let response = channel.request(get("/")).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(server.requests() + other.requests(), 1);
}

#[tokio::test]
async fn when_retries_run_out_the_last_answer_is_the_callers() {
    let servers = [
        Scripted::start(|_| status(503)).await,
        Scripted::start(|_| status(503)).await,
        Scripted::start(|_| status(503)).await,
        Scripted::start(|_| status(503)).await,
    ];
    let all: Vec<_> = servers.iter().collect();
    let (_registry, channel) = over(&all, with_policy(policy()));
    let response = channel.request(get("/")).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(text(response).await, "no");
    // Each attempt went to somebody else.
    let asked: Vec<_> = servers.iter().map(Scripted::requests).collect();
    assert_eq!(asked.iter().sum::<u32>(), 3, "{asked:?}");
    assert!(asked.iter().all(|count| *count <= 1), "{asked:?}");
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn an_answer_is_kept_in_case_that_nothing_better_comes() {
    let server = Scripted::start(|_| status(503)).await;
    let (registry, told) = registry();
    registry.tell(&[&server.target, &nobody().await]);
    let channel = Channel::from_source(told)
        .retry(policy().max_retries(1))
        .build()
        .unwrap();
    for _ in 0..20 {
        let response = channel.request(get("/")).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(text(response).await, "no");
    }
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn a_post_without_the_callers_word_is_never_sent_twice() {
    for (script, kind) in [
        ((|_| status(503)) as fn(u32) -> Do, None),
        (|_| Do::Crash, Some(ErrorKind::Request)),
        (|_| Do::Hang, Some(ErrorKind::Timeout)),
    ] {
        let servers = [Scripted::start(script).await, Scripted::start(script).await];
        let (_registry, channel) = over(&[&servers[0], &servers[1]], |builder| {
            builder
                .retry(policy().attempt_timeout(ms(20)))
                .timeout(ms(200))
        });
        match (channel.request(known(Method::POST, "order")).await, kind) {
            (Ok(response), None) => assert_eq!(response.status().as_u16(), 503),
            (Err(error), Some(kind)) => {
                assert_eq!(error.kind(), kind);
                assert!(error.was_sent());
                if kind == ErrorKind::Request {
                    let shown = error.to_string();
                    assert!(shown.contains("forbids a repetition"), "{shown}");
                }
            }
            (outcome, _) => panic!("{outcome:?}"),
        }
        assert_eq!(servers[0].requests() + servers[1].requests(), 1);
        assert_eq!(in_flight(&channel), 0);
    }
}

#[tokio::test]
async fn the_callers_word_goes_before_the_method() {
    let bad = Scripted::start(|_| Do::Crash).await;
    let good = Scripted::start(|_| ok()).await;
    let (_registry, channel) = over(&[&bad, &good], with_policy(policy()));
    for call in 0..20 {
        let mut request = post("/", format!("order {call}"));
        request.extensions_mut().insert(MayRepeat(true));
        let response = channel.request(request).await.unwrap();
        assert_eq!(text(response).await, "ok");
    }
    assert!(bad.requests() > 0);
    // A body of unknown length came whole each time.
    let bodies: Vec<_> = (0..20).map(|call| format!("order {call}")).collect();
    assert_eq!(good.bodies(), bodies);
    assert_eq!(in_flight(&channel), 0);
    // With a policy and without.
    let seen = bad.requests();
    for retry in [true, false] {
        let (_registry, channel) = over(&[&bad], |builder| match retry {
            true => builder.retry(policy()),
            false => builder,
        });
        let mut request = get("/");
        request.extensions_mut().insert(MayRepeat(false));
        let error = channel.request(request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Request);
    }
    assert_eq!(bad.requests(), seen + 2);
}

#[tokio::test]
async fn a_body_longer_than_what_is_kept_is_not_sent_again() {
    let servers = [
        Scripted::start(|_| Do::Crash).await,
        Scripted::start(|_| Do::Crash).await,
    ];
    let (_registry, channel) = over(
        &[&servers[0], &servers[1]],
        with_policy(policy().body_limit(4)),
    );
    let seen = || servers[0].requests() + servers[1].requests();
    // Its length is known from the start, or shows on the way.
    let mut streamed = post("/", "12345");
    *streamed.method_mut() = Method::PUT;
    let errors = [
        channel.request(known(Method::PUT, "12345")).await,
        channel.request(streamed).await,
    ];
    for error in errors {
        let error = error.unwrap_err();
        assert!(error.to_string().contains("the 4 bytes kept"), "{error}");
    }
    assert_eq!(seen(), 2);
    let error = channel
        .request(known(Method::PUT, "1234"))
        .await
        .unwrap_err();
    assert_eq!(error.attempts().len(), 3, "{error}");
    assert_eq!(seen(), 5);
}

#[tokio::test]
async fn an_error_tells_of_every_attempt_and_why_there_are_no_more() {
    let servers = [
        Scripted::start(|_| Do::Crash).await,
        Scripted::start(|_| Do::Crash).await,
        Scripted::start(|_| Do::Crash).await,
    ];
    let all: Vec<_> = servers.iter().collect();
    let (_registry, channel) = over(&all, with_policy(policy().max_retries(1)));
    let error = channel.request(get("/")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Request);
    assert!(error.was_sent());
    let shown = error.to_string();
    assert!(shown.contains("2 attempts"), "{shown}");
    assert!(shown.contains("max_retries is 1"), "{shown}");
    assert_eq!(error.attempts().len(), 2);
    for attempt in error.attempts() {
        assert!(attempt.source().is_some());
        let of_one = |server: &Scripted| attempt.to_string().contains(&server.target.to_string());
        assert!(servers.iter().any(of_one), "{attempt}");
    }
    assert!(error.source().is_some());
    // Without a budget there is one attempt, and the reason is said.
    let (_registry, channel) = over(&all, with_policy(policy().budget(Budget::new(0, 0))));
    let error = channel.request(get("/")).await.unwrap_err();
    assert!(error.to_string().contains("budget is used up"), "{error}");
}

#[tokio::test]
async fn a_closed_idle_connection_costs_no_budget() {
    // Answers once per connection, though it does not say so.
    let server = Scripted::start(|before| if before == 1 { Do::Crash } else { ok() }).await;
    let none = Budget::new(0, 0);
    let (_registry, channel) = over(&[&server], with_policy(policy().budget(none)));
    for _ in 0..3 {
        let response = channel.request(known(Method::PUT, "x")).await.unwrap();
        assert_eq!(text(response).await, "ok");
    }
    assert_eq!(server.requests(), 4);
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_replaced_by_another_within_the_deadline() {
    let stuck = Scripted::start(|_| Do::Hang).await;
    let good = Scripted::start(|_| ok()).await;
    let (_registry, channel) = over(&[&stuck, &good], |builder| {
        builder
            .retry(policy().attempt_timeout(ms(500)))
            .timeout(Duration::from_secs(20))
    });
    let start = Instant::now();
    let mut slow = 0;
    for _ in 0..20 {
        let before = Instant::now();
        let response = channel.request(get("/")).await.unwrap();
        assert_eq!(text(response).await, "ok");
        slow += u32::from(before.elapsed() >= ms(500));
    }
    assert!(stuck.requests() >= 1);
    assert!(slow >= stuck.requests());
    assert!(start.elapsed() < Duration::from_secs(20));
    eventually("it is told that nobody waits", || {
        stuck.given_up() == stuck.requests()
    })
    .await;
    let told = channel.endpoints();
    let stuck = told.iter().find(|e| e.target == stuck.target).unwrap();
    assert!(stuck.is_penalized, "{stuck:?}");
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn the_last_attempt_goes_on_until_the_deadline() {
    let servers = [
        Scripted::start(|_| Do::Hang).await,
        Scripted::start(|_| Do::Hang).await,
    ];
    let (_registry, channel) = over(&[&servers[0], &servers[1]], |builder| {
        builder
            .retry(policy().attempt_timeout(ms(100)))
            .timeout(ms(1_000))
    });
    let start = Instant::now();
    let error = channel.request(get("/")).await.unwrap_err();
    assert!(start.elapsed() >= ms(1_000));
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.was_sent());
    assert_eq!(error.attempts().len(), 2, "{error:?}");
    let shown = error.to_string();
    assert!(shown.contains("failed attempts before: 2"), "{shown}");
    // The third went back to the first.
    let mut asked = servers.map(|server| server.requests());
    asked.sort_unstable();
    assert_eq!(asked, [1, 2]);
    assert_eq!(in_flight(&channel), 0);
}

fn hangs_once() -> impl Fn(u32) -> Do + Send + Sync + 'static {
    |before| match before {
        0 => Do::Hang,
        _ => ok(),
    }
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_replaced_where_all_were_asked_before() {
    let servers = [
        Scripted::start(hangs_once()).await,
        Scripted::start(hangs_once()).await,
    ];
    let (_registry, channel) = over(&[&servers[0], &servers[1]], |builder| {
        builder
            .retry(policy().attempt_timeout(ms(50)))
            .timeout(Duration::from_secs(20))
    });
    let mut request = post("/", "order");
    request.extensions_mut().insert(MayRepeat(true));
    let response = channel.request(request).await.unwrap();
    assert_eq!(text(response).await, "ok");
    let mut asked = servers.each_ref().map(Scripted::requests);
    asked.sort_unstable();
    assert_eq!(asked, [1, 2]);
    let came: Vec<_> = servers.iter().flat_map(Scripted::bodies).collect();
    assert_eq!(came, ["order"; 3]);
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_goes_on_where_nobody_else_accepts_connections() {
    let slow = Scripted::start(|_| Do::Hang).await;
    let (registry, told) = registry();
    registry.tell(&[&slow.target, &nobody().await]);
    let channel = Channel::from_source(told)
        .retry(policy().attempt_timeout(ms(20)))
        .timeout(ms(60))
        .build()
        .unwrap();
    let refusals = || {
        let states = channel.endpoints().into_iter().map(|one| one.state);
        states.fold(None, |known, state| match state {
            EndpointState::Avoided { left, refusals } if !left.is_zero() => Some(refusals),
            _ => known,
        })
    };
    // The other one is left alone for longer each time, until it is for all of a request.
    loop {
        let (known, before) = (refusals(), slow.requests());
        let error = channel.request(get("/")).await.unwrap_err();
        if known.is_some() && refusals() == known {
            assert_eq!(error.kind(), ErrorKind::Timeout);
            assert_eq!(slow.requests(), before + 1, "{error:?}");
            assert!(error.attempts().is_empty(), "{error:?}");
            break;
        }
    }
}

#[tokio::test]
async fn one_endpoint_is_asked_again_after_the_time_it_asks_for_and_no_longer_than_the_clamp() {
    // In seconds, and as a date an hour after the response's own.
    let date = [
        ("retry-after", "Sun, 06 Nov 1994 13:00:00 GMT"),
        ("date", "Sun, 06 Nov 1994 12:00:00 GMT"),
    ];
    let scripts: [Box<dyn Fn(u32) -> Do + Send + Sync>; 2] = [
        Box::new(|before| match before {
            0 => with(503, &[("retry-after", "3600")]),
            _ => ok(),
        }),
        Box::new(move |before| match before {
            0 => with(503, &date),
            _ => ok(),
        }),
    ];
    for script in scripts {
        let server = Scripted::start(script).await;
        let clamped = policy().max_retry_after(ms(200));
        let (_registry, channel) = over(&[&server], with_policy(clamped));
        let start = Instant::now();
        let response = channel.request(get("/")).await.unwrap();
        assert_eq!(text(response).await, "ok");
        assert!(start.elapsed() >= ms(200), "{:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(20));
        assert_eq!(server.requests(), 2);
        assert_eq!(in_flight(&channel), 0);
    }
}

#[tokio::test]
async fn a_pause_that_outlasts_the_deadline_is_not_begun() {
    let server = Scripted::start(|_| with(503, &[("retry-after", "3")])).await;
    let (_registry, channel) = over(&[&server], |builder| {
        builder.retry(policy()).timeout(Duration::from_secs(2))
    });
    let start = Instant::now();
    let response = channel.request(get("/")).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn what_another_attempt_may_mend_is_for_the_user_to_say() {
    let cold = Scripted::start(|_| status(404)).await;
    let warm = Scripted::start(|_| ok()).await;
    let (_registry, channel) = over(&[&cold, &warm], |builder| {
        builder
            .retry(policy())
            .classify(|outcome| match outcome.status() {
                Some(StatusCode::NOT_FOUND) => Verdict::failed().retryable(),
                _ => outcome.verdict(),
            })
    });
    for _ in 0..20 {
        let response = channel.request(get("/")).await.unwrap();
        assert_eq!(text(response).await, "ok");
    }
    assert!(cold.requests() > 0);
    let told = channel.endpoints();
    let cold = told.iter().find(|e| e.target == cold.target).unwrap();
    assert!(cold.is_penalized, "{cold:?}");
}

#[tokio::test]
async fn a_call_of_grpc_that_is_unavailable_goes_to_another_endpoint() {
    let grpc = |code: &'static str| {
        with(
            200,
            &[("content-type", "application/grpc"), ("grpc-status", code)],
        )
    };
    let bad = Scripted::start(move |_| grpc("14")).await;
    let good = Scripted::start(move |_| grpc("0")).await;
    let (_registry, channel) = over(
        &[&bad, &good],
        with_policy(policy().methods([Method::POST])),
    );
    for _ in 0..20 {
        let response = channel.request(known(Method::POST, "call")).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "0");
    }
    assert!(bad.requests() > 0);
    assert!(good.bodies().iter().all(|body| body == "call"));
}

#[tokio::test]
async fn a_call_of_grpc_that_fails_in_its_trailers_fails_its_endpoint_when_it_ends() {
    for (code, is_penalized) in [("14", true), ("0", false)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::try_from(listener.local_addr().unwrap()).unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = Vec::new();
            while !read.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut read).await.unwrap() > 0);
            }
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\n\
                        transfer-encoding: chunked\r\n\r\n";
            let body = format!("2\r\nok\r\n0\r\ngrpc-status: {code}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(body.as_bytes()).await.unwrap();
            // Held open until the client closes it.
            stream.read_buf(&mut read).await.ok();
        });
        let (registry, told) = registry();
        registry.tell(&[&target]);
        let channel = Channel::from_source(told).build().unwrap();
        let response = channel.request(get("/")).await.unwrap();
        let told = || channel.endpoints().remove(0);
        assert_eq!((told().latency, told().is_penalized), (None, false));
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], code);
        assert!(told().latency.is_some());
        assert_eq!(told().is_penalized, is_penalized);
        assert_eq!(in_flight(&channel), 0);
    }
}
#[tokio::test(start_paused = true)]
async fn g15_when_everything_is_down_retries_stay_within_their_budget() {
    const REQUESTS: u32 = 2_000;
    for script in [(|_| status(503)) as fn(u32) -> Do, |_| Do::Crash] {
        let mut servers = Vec::new();
        for _ in 0..3 {
            servers.push(Scripted::start(script).await);
        }
        let all: Vec<_> = servers.iter().collect();
        let (_registry, channel) = over(&all, with_policy(RetryPolicy::new()));
        let start = Instant::now();
        for _ in 0..REQUESTS {
            if let Ok(response) = channel.request(get("/")).await {
                assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            }
            tokio::time::sleep(ms(1)).await;
        }
        let attempts: u32 = servers.iter().map(Scripted::requests).sum();
        let seconds = start.elapsed().as_secs_f64() + 1.0;
        let most = f64::from(REQUESTS) * 1.2 + 10.0 * seconds;
        assert!(f64::from(attempts) <= most, "{attempts} > {most}");
        // And they are used.
        assert!(attempts >= REQUESTS / 100 * 119, "{attempts}");
    }
}

#[tokio::test(start_paused = true)]
async fn g15_when_everybody_refuses_a_request_does_not_go_through_all_of_them() {
    const REQUESTS: u32 = 1_000;
    let (registry, told) = registry();
    let mut targets = Vec::new();
    for _ in 0..10 {
        targets.push(nobody().await);
    }
    registry.tell(&targets.iter().collect::<Vec<_>>());
    let channel = Channel::from_source(told)
        .retry(RetryPolicy::new())
        .build()
        .unwrap();
    let start = Instant::now();
    let mut attempts = 0;
    for _ in 0..REQUESTS {
        let error = channel.request(get("/")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connect);
        attempts += error.attempts().len().max(1);
        tokio::time::sleep(ms(1)).await;
    }
    // The first request finds out about each of them.
    let seconds = start.elapsed().as_secs_f64() + 1.0;
    let most = f64::from(REQUESTS) * 1.2 + 10.0 * seconds + 10.0;
    let attempts = f64::from(u32::try_from(attempts).unwrap());
    assert!(attempts <= most, "{attempts} > {most}");
}
