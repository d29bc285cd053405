//! The source against a DNS server that does what it is told.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Waker;

use hickory_resolver::proto::op::{Message, OpCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, SOA, TXT};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::builder::{DAY, LOCAL_AGENT, ms};
use super::*;
use crate::error::ErrorKind;

mod extremes;
mod failures;
mod records;
mod targets;

/// Longer than anything takes on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);

/// For a server that will not answer.
const SHORT: Duration = ms(200);

/// What the server does with a question.
enum Reply {
    /// Answers it.
    Answer(Message),
    /// Sends these octets as they are, then keeps the connection open.
    Octets(Vec<u8>),
    /// Sends these octets as they are, then closes the connection.
    Last(Vec<u8>),
    /// Says nothing.
    Silence,
}

type Script = Box<dyn FnMut(&Message) -> Reply + Send>;

/// A DNS server over TCP on a free port; it ends when it is dropped.
struct Dns {
    addr: SocketAddr,
    script: Arc<Mutex<Script>>,
    asked: Arc<Mutex<Vec<Instant>>>,
    open: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Dns {
    async fn start(script: impl FnMut(&Message) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let script: Arc<Mutex<Script>> = Arc::new(Mutex::new(Box::new(script)));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let open = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let shared = (Arc::clone(&script), Arc::clone(&asked), Arc::clone(&open));
        tasks.spawn(async move {
            let (script, asked, open) = shared;
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (script, asked) = (Arc::clone(&script), Arc::clone(&asked));
                let open = Arc::clone(&open);
                open.fetch_add(1, Ordering::SeqCst);
                connections.spawn(async move {
                    serve(stream, &script, &asked).await.ok();
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self {
            addr,
            script,
            asked,
            open,
            _tasks: tasks,
        }
    }

    /// Changes what the server does from now on.
    fn turn(&self, script: impl FnMut(&Message) -> Reply + Send + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    fn source(&self) -> SrvSource {
        self.builder().build().unwrap()
    }

    fn builder(&self) -> SrvSourceBuilder {
        SrvSource::builder("web.service.consul")
            .server(self.addr)
            .timeout(PATIENCE)
            .min_refresh(ms(10))
            .grace(Duration::ZERO)
    }
}

async fn serve(
    mut stream: TcpStream,
    script: &Mutex<Script>,
    asked: &Mutex<Vec<Instant>>,
) -> std::io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut question = vec![0; length.into()];
        stream.read_exact(&mut question).await?;
        let question = Message::from_vec(&question).unwrap();
        asked.lock().unwrap().push(Instant::now());
        let reply = (script.lock().unwrap())(&question);
        match reply {
            Reply::Answer(answer) => stream.write_all(&framed(&answer)).await?,
            Reply::Octets(octets) => stream.write_all(&octets).await?,
            Reply::Last(octets) => return stream.write_all(&octets).await,
            Reply::Silence => {}
        }
    }
}

fn framed(message: &Message) -> Vec<u8> {
    let message = message.to_vec().unwrap();
    let length = u16::try_from(message.len()).unwrap();
    [&length.to_be_bytes()[..], &message].concat()
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn reply(question: &Message, code: ResponseCode) -> Message {
    let mut message = Message::response(question.id, OpCode::Query);
    message.metadata.response_code = code;
    message.add_queries(question.queries.iter().cloned());
    message
}

fn srv(weight: u16, port: u16, target: &str) -> Record {
    srv_of("web.service.consul.", weight, port, target)
}

fn srv_of(owner: &str, weight: u16, port: u16, target: &str) -> Record {
    let data = SRV::new(1, weight, port, name(target));
    Record::from_rdata(name(owner), 0, RData::SRV(data))
}

fn a(owner: &str, ip: &str) -> Record {
    Record::from_rdata(name(owner), 0, RData::A(A(ip.parse().unwrap())))
}

fn aaaa(owner: &str, ip: &str) -> Record {
    Record::from_rdata(name(owner), 0, RData::AAAA(AAAA(ip.parse().unwrap())))
}

fn alias(owner: &str, target: &str) -> Record {
    Record::from_rdata(name(owner), 0, RData::CNAME(CNAME(name(target))))
}

/// A script that answers each question with the records that it asks for, and NXDOMAIN when there
/// are none of its name.
fn zone(records: Vec<Record>) -> impl FnMut(&Message) -> Reply + Send {
    move |question| {
        let query = question.queries.first().unwrap();
        let of_name = |record: &&Record| record.name == *query.name();
        let fits = |record: &&Record| {
            [query.query_type(), RecordType::CNAME].contains(&record.record_type())
        };
        let known = records.iter().any(|record| of_name(&record));
        let code = if known {
            ResponseCode::NoError
        } else {
            ResponseCode::NXDomain
        };
        let mut message = reply(question, code);
        message.add_answers(records.iter().filter(of_name).filter(fits).cloned());
        Reply::Answer(message)
    }
}

fn code(code: ResponseCode) -> impl FnMut(&Message) -> Reply + Send {
    move |question| Reply::Answer(reply(question, code))
}

async fn next(source: &mut SrvSource) -> EndpointSet {
    let next = std::future::poll_fn(|cx| Pin::new(&mut *source).poll_next(cx));
    let next = tokio::time::timeout(PATIENCE, next);
    next.await.expect("a set in time").expect("no end")
}

/// Drives the source until its status fits; it must not tell a set meanwhile.
async fn until(source: &mut SrvSource, fits: impl Fn(&Status) -> bool + Send + Sync) -> Status {
    let driven = std::future::poll_fn(|cx| {
        let told = Pin::new(&mut *source).poll_next(cx);
        assert!(told.is_pending(), "no set is told: {told:?}");
        let status = source.status();
        if fits(&status) {
            Poll::Ready(status)
        } else {
            Poll::Pending
        }
    });
    let driven = tokio::time::timeout(PATIENCE, driven);
    driven.await.expect("the status in time")
}

/// How long it still waits before it asks again.
fn waits(source: &SrvSource) -> Duration {
    let Phase::Waiting(sleep) = &source.phase else {
        panic!("waits after an answer");
    };
    sleep.deadline().duration_since(Instant::now())
}

fn shown(set: &EndpointSet) -> Vec<String> {
    let shown = |e: &Arc<Endpoint>| format!("{} {}", e.target(), e.weight());
    set.iter().map(shown).collect()
}

fn reason(status: &Status) -> &str {
    match status {
        Status::Failing { reason } | Status::Stale { reason, .. } => reason,
        other => panic!("no reason in {other:?}"),
    }
}

const GOOD: &str = "0a000001.addr.dc1.consul.";

#[tokio::test]
async fn the_negative_ttl_sets_the_pace_of_an_empty_name() {
    let dns = Dns::start(|question: &Message| {
        let mut message = reply(question, ResponseCode::NXDomain);
        let soa = SOA::new(
            name("ns.consul."),
            name("host.consul."),
            1,
            3600,
            600,
            86400,
            30,
        );
        message.add_authority(Record::from_rdata(name("consul."), 60, RData::SOA(soa)));
        Reply::Answer(message)
    })
    .await;
    let mut source = dns.source();
    next(&mut source).await;
    let wait = waits(&source);
    assert!(wait > Duration::from_secs(29), "{wait:?}");
    assert!(wait < Duration::from_secs(38), "{wait:?}");
}

#[tokio::test]
async fn a_ttl_of_zero_does_not_make_the_source_spin() {
    let dns = Dns::start(zone(vec![srv(1, 80, GOOD)])).await;
    let mut source = dns.builder().min_refresh(ms(50)).build().unwrap();
    next(&mut source).await;
    let asked = Arc::clone(&dns.asked);
    until(&mut source, move |_| asked.lock().unwrap().len() >= 6).await;
    let asked = dns.asked.lock().unwrap();
    for pair in asked.windows(2) {
        let [first, second] = pair else {
            unreachable!()
        };
        assert!(second.duration_since(*first) >= ms(50));
    }
}

#[tokio::test]
async fn dropping_the_source_closes_its_connection_at_once() {
    let asked = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&asked);
    let dns = Dns::start(move |_: &Message| {
        heard.store(true, Ordering::SeqCst);
        Reply::Silence
    })
    .await;
    let mut source = dns
        .builder()
        .timeout(Duration::from_secs(60))
        .build()
        .unwrap();
    while !asked.load(Ordering::SeqCst) {
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut source).poll_next(&mut cx).is_pending());
        tokio::task::yield_now().await;
    }
    assert_eq!(dns.open.load(Ordering::SeqCst), 1);
    let dropped = Instant::now();
    drop(source);
    while dns.open.load(Ordering::SeqCst) > 0 {
        tokio::task::yield_now().await;
        assert!(dropped.elapsed() < PATIENCE);
    }
}

#[tokio::test]
async fn no_connection_is_held_between_two_refreshes() {
    let dns = Dns::start(zone(vec![srv(1, 80, GOOD)])).await;
    let mut source = dns
        .builder()
        .min_refresh(DAY)
        .max_refresh(DAY)
        .build()
        .unwrap();
    next(&mut source).await;
    let answered = Instant::now();
    while dns.open.load(Ordering::SeqCst) > 0 {
        tokio::task::yield_now().await;
        assert!(answered.elapsed() < PATIENCE);
    }
}

#[test]
fn a_source_polled_outside_a_runtime_says_so_and_does_not_panic() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let built = runtime.block_on(async { SrvSource::builder("web.service.consul").build() });
    let mut source = built.unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut source).poll_next(&mut cx).is_pending());
    assert!(reason(&source.status()).contains("outside a Tokio runtime"));
}

#[test]
fn a_source_is_not_made_outside_a_runtime() {
    let refused = SrvSource::builder("web.service.consul")
        .build()
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoRuntime);
}

#[tokio::test]
async fn nonsense_options_are_refused_with_what_would_be_right() {
    let web = || SrvSource::builder("web.service.consul");
    let day = DAY + ms(1);
    for (builder, says) in [
        (SrvSource::builder(""), "empty"),
        (SrvSource::builder("."), "empty"),
        (SrvSource::builder("web"), "web.service.consul"),
        (SrvSource::builder("my web.service.consul"), "letters"),
        (SrvSource::builder("web..consul"), "empty label"),
        (SrvSource::builder("10.0.0.1"), "number"),
        (SrvSource::builder("http://web.service.consul"), "DNS name"),
        (SrvSource::builder("wéb.service.consul"), "Punycode"),
        (
            SrvSource::builder(format!("{}.consul", "a".repeat(64))),
            "63",
        ),
        (SrvSource::builder("a.".repeat(130)), "253"),
        (web().server(([127, 0, 0, 1], 0).into()), "port 0"),
        (web().server(([0, 0, 0, 0], 8600).into()), "one host"),
        (web().timeout(ms(0)), "timeout is 0ns; choose 10ms to 60s"),
        (web().timeout(ms(60_001)), "timeout"),
        (web().min_refresh(ms(0)), "min_refresh"),
        (web().min_refresh(Duration::MAX), "min_refresh"),
        (web().max_refresh(ms(999)), "max_refresh"),
        (web().max_refresh(day), "max_refresh"),
        (web().grace(day), "grace"),
        ((0..17).fold(web(), |web, _| web.server(LOCAL_AGENT)), "16"),
    ] {
        let refused = builder.build().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid);
        assert!(refused.to_string().contains(says), "{refused}");
    }
    for name in [
        "WEB.Service.Consul.",
        "_web._tcp.service.consul",
        "v1_2.web.query.consul",
    ] {
        assert!(SrvSource::builder(name).build().is_ok(), "{name}");
    }
}
