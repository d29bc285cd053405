//! Shared connections whose server allows few streams.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use lictor_tower::channel::{Channel, Protocol};
use lictor_tower::endpoint::Target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::support::{Server, eventually, get, in_flight, post, registry, text, who};

/// What a server of one stream does, one after the other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Then {
    /// Says that it goes away, and has processed the streams up to this one.
    GoAway(u8),
    /// Answers the stream of this number.
    Answer(u8),
    Close,
}

/// A server that allows one stream, on one connection.
struct Narrow {
    target: Target,
    /// Resolves with the number of each stream that is opened.
    opened: mpsc::UnboundedReceiver<u8>,
    order: mpsc::UnboundedSender<Then>,
    _tasks: JoinSet<()>,
}

impl Narrow {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::try_from(listener.local_addr().unwrap()).unwrap();
        let (tell, opened) = mpsc::unbounded_channel();
        let (order, mut orders) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            drop(listener);
            let (mut read, mut write) = stream.into_split();
            let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1];
            write.write_all(&settings).await.unwrap();
            let (agree, agreed) = oneshot::channel();
            let mut reading = JoinSet::new();
            reading.spawn(async move {
                let mut agree = Some(agree);
                let mut preface = [0; 24];
                read.read_exact(&mut preface).await.unwrap();
                loop {
                    let mut head = [0; 9];
                    if read.read_exact(&mut head).await.is_err() {
                        return;
                    }
                    let [a, b, c, kind, flags, _, _, _, id] = head;
                    let length = u32::from_be_bytes([0, a, b, c]);
                    let mut payload = vec![0; length.try_into().unwrap()];
                    read.read_exact(&mut payload).await.unwrap();
                    match (kind, flags) {
                        (1, _) => tell.send(id).unwrap(),
                        (4, 1) => agree.take().unwrap().send(()).unwrap(),
                        _ => {}
                    }
                }
            });
            agreed.await.unwrap();
            while let Some(order) = orders.recv().await {
                let frame = match order {
                    Then::GoAway(last) => {
                        vec![0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, last, 0, 0, 0, 0]
                    }
                    // No more than ":status: 200".
                    Then::Answer(id) => vec![0, 0, 1, 1, 5, 0, 0, 0, id, 0x88],
                    Then::Close => return,
                };
                write.write_all(&frame).await.unwrap();
            }
        });
        Self {
            target,
            opened,
            order,
            _tasks: tasks,
        }
    }
}

fn requests() -> impl Iterator<Item = (Request<Full<Bytes>>, String)> {
    let long = "long".repeat(50_000);
    let of = |method: Method, body: &str| {
        let request = Request::builder().method(method).uri("/echo");
        let body = body.to_owned();
        let request = request.body(Full::new(Bytes::from(body.clone())));
        (request.unwrap(), body)
    };
    [
        of(Method::GET, ""),
        of(Method::POST, ""),
        of(Method::POST, "short"),
        of(Method::POST, &long),
    ]
    .into_iter()
}

#[tokio::test]
async fn what_waits_for_a_stream_of_a_connection_that_ends_goes_elsewhere_whole() {
    for end in [Then::GoAway(3), Then::Close] {
        for (waiting, sent) in requests() {
            let mut narrow = Narrow::start().await;
            let (registry, told) = registry();
            registry.tell(&[&narrow.target]);
            let channel = Channel::from_source(told)
                .protocol(Protocol::Http2)
                .build()
                .unwrap();
            let mut first = JoinSet::new();
            first.spawn(channel.request(get("/")));
            assert_eq!(narrow.opened.recv().await, Some(1));
            // One that is answered shows that the limit is known by now.
            narrow.order.send(Then::Answer(1)).unwrap();
            assert!(first.join_next().await.unwrap().is_ok());
            first.spawn(channel.request(get("/")));
            assert_eq!(narrow.opened.recv().await, Some(3));

            let mut calls = JoinSet::new();
            calls.spawn(channel.request(waiting));
            eventually("it waits", || in_flight(&channel) == 2).await;
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            let other = Server::speaking(Protocol::Http2).await;
            registry.tell(&[&narrow.target, &other.target]);
            eventually("both are known", || channel.endpoints().len() == 2).await;
            narrow.order.send(end).unwrap();
            let response = calls.join_next().await.unwrap().unwrap();
            let response = response.unwrap_or_else(|error| panic!("{end:?} {error:?}"));
            assert_eq!(*response.body().target(), other.target);
            assert_eq!(text(response).await, sent);
            assert!(narrow.opened.try_recv().is_err());

            // What was sent is answered still, or told as sent.
            if end != Then::Close {
                narrow.order.send(Then::Answer(3)).unwrap();
            }
            let ended = first.join_next().await.unwrap().unwrap();
            match ended {
                Ok(response) if end == Then::Close => {
                    // Idempotent and without a body, it may be sent again.
                    assert_eq!(*response.body().target(), other.target);
                }
                Ok(response) => assert_eq!(*response.body().target(), narrow.target),
                Err(error) => panic!("{end:?} {error:?}"),
            }
            assert_eq!(in_flight(&channel), 0);
        }
    }
}

#[tokio::test]
async fn streams_are_opened_one_after_the_other_where_one_is_allowed() {
    let mut narrow = Narrow::start().await;
    let (registry, told) = registry();
    registry.tell(&[&narrow.target]);
    let channel = Channel::from_source(told)
        .protocol(Protocol::Http2)
        .build()
        .unwrap();
    let mut calls = JoinSet::new();
    calls.spawn(channel.request(get("/")));
    assert_eq!(narrow.opened.recv().await, Some(1));
    narrow.order.send(Then::Answer(1)).unwrap();
    calls.join_next().await.unwrap().unwrap().unwrap();
    for _ in 0..8 {
        calls.spawn(channel.request(get("/")));
    }
    eventually("all are there", || in_flight(&channel) == 8).await;
    for id in (3..=17).step_by(2) {
        assert_eq!(narrow.opened.recv().await, Some(id));
        tokio::task::yield_now().await;
        assert!(narrow.opened.try_recv().is_err());
        if id == 5 {
            // One that gives up while it waits takes nobody's place.
            let call = std::pin::pin!(channel.request(post("/", "never sent")));
            tokio::select! {
                biased;
                _ = call => panic!("there is no room"),
                () = tokio::task::yield_now() => {}
            }
        }
        narrow.order.send(Then::Answer(id)).unwrap();
        calls.join_next().await.unwrap().unwrap().unwrap();
    }
    assert_eq!(in_flight(&channel), 0);
}

/// Such a server has read the head, and lets the body wait for a window that never opens.
#[tokio::test]
async fn a_long_body_that_a_server_has_not_processed_ends_with_a_word() {
    for round in 0..4 {
        let mut narrow = Narrow::start().await;
        let other = Server::speaking(Protocol::Http2).await;
        let (registry, told) = registry();
        registry.tell(&[&narrow.target]);
        let channel = Channel::from_source(told)
            .protocol(Protocol::Http2)
            .build()
            .unwrap();
        let mut calls = JoinSet::new();
        calls.spawn(channel.request(post("/", vec![b'x'; 200_000])));
        assert_eq!(narrow.opened.recv().await, Some(1));
        registry.tell(&[&narrow.target, &other.target]);
        eventually("both are known", || channel.endpoints().len() == 2).await;
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        narrow.order.send(Then::GoAway(0)).unwrap();
        let call = calls.join_next();
        let ended = tokio::time::timeout(std::time::Duration::from_secs(30), call).await;
        let error = ended.expect("it hangs").unwrap().unwrap().unwrap_err();
        // It is longer than what is kept, and part of it has left.
        assert!(error.was_sent(), "{error:?}");
        assert_eq!(in_flight(&channel), 0);
        assert_eq!(who(&channel).await, other.port());
    }
}
