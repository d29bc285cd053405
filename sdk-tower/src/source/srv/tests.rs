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
async fn each_kind_of_target_becomes_the_host_that_consul_means() {
    let dns = Dns::start(|question: &Message| {
        let mut message = reply(question, ResponseCode::NoError);
        message.add_answers([
            srv(3, 80, "0a000001.addr.dc1.consul."),
            srv(4, 81, "20010db8000000000000000000000001.addr.dc1.consul."),
            srv(0, 82, "n1.node.dc1.consul."),
            srv(6, 83, "n2.node.dc1.consul."),
            srv(65535, 84, "Web-1.Example.com."),
        ]);
        message.add_additionals([
            a("n1.node.dc1.consul.", "10.0.0.2"),
            Record::from_rdata(
                name("n1.node.dc1.consul."),
                0,
                RData::TXT(TXT::new(vec!["consul-network-segment=".to_owned()])),
            ),
            aaaa("N2.node.dc1.consul.", "2001:db8::2"),
            // An address for a foreign name is ignored: over HTTP it is a name, too.
            a("web-1.example.com.", "192.0.2.1"),
        ]);
        Reply::Answer(message)
    })
    .await;
    let set = next(&mut dns.source()).await;
    assert_eq!(
        shown(&set),
        [
            "10.0.0.1:80 3",
            "10.0.0.2:82 0",
            "[2001:db8::1]:81 4",
            "[2001:db8::2]:83 6",
            "web-1.example.com:84 65535",
        ]
    );
    assert!(set.iter().all(|endpoint| endpoint.priority() == 1));
}

#[tokio::test]
async fn a_node_without_an_additional_record_is_asked_for() {
    let dns = Dns::start(zone(vec![
        srv(1, 80, "n4.node.dc1.consul."),
        srv(1, 81, "n4.node.dc1.consul."),
        srv(1, 80, "n6.node.dc1.consul."),
        srv(1, 80, "named.node.dc1.consul."),
        srv(1, 80, "gone.node.dc1.consul."),
        a("n4.node.dc1.consul.", "10.0.0.9"),
        a("n4.node.dc1.consul.", "10.0.0.4"),
        aaaa("n4.node.dc1.consul.", "2001:db8::4"),
        aaaa("n6.node.dc1.consul.", "2001:db8::6"),
        alias("named.node.dc1.consul.", "outside.example.com."),
    ]))
    .await;
    let mut source = dns.source();
    let set = next(&mut source).await;
    assert_eq!(
        shown(&set),
        [
            "10.0.0.4:80 1",
            "10.0.0.4:81 1",
            "[2001:db8::6]:80 1",
            "outside.example.com:80 1",
        ]
    );
    assert_eq!(source.oddities.skipped, 1);
    // SRV; A of n4 (once); A and AAAA of n6; A of the alias; A and AAAA of the one that is gone.
    assert_eq!(dns.asked.lock().unwrap().len(), 7);
}

#[tokio::test]
async fn a_node_that_cannot_be_asked_for_keeps_the_known_set() {
    let mut records = zone(vec![srv(1, 80, GOOD)]);
    let dns = Dns::start(move |question| records(question)).await;
    let mut source = dns.source();
    next(&mut source).await;
    let mut records = zone(vec![srv(1, 80, "n1.node.dc1.consul.")]);
    dns.turn(move |question| match question.queries.first() {
        Some(query) if query.query_type() == RecordType::SRV => records(question),
        _ => Reply::Answer(reply(question, ResponseCode::ServFail)),
    });
    let status = until(&mut source, |status| *status != Status::Live).await;
    assert!(reason(&status).contains("Server Failure"), "{status:?}");
}

#[tokio::test]
async fn records_that_name_nobody_are_skipped() {
    let spaced = Name::from_labels([&b"with space"[..], b"example", b"com"]).unwrap();
    let spaced = RData::SRV(SRV::new(1, 1, 80, spaced));
    let dns = Dns::start(zone(vec![
        srv(1, 80, GOOD),
        srv(1, 0, "0a000002.addr.dc1.consul."),
        srv(1, 80, "00000000.addr.dc1.consul."),
        srv(1, 80, "00000000000000000000000000000000.addr.dc1.consul."),
        srv(1, 80, "ffffffff.addr.dc1.consul."),
        Record::from_rdata(name("web.service.consul."), 0, spaced),
        srv(1, 80, "10.0.0.3."),
        srv(1, 80, "."),
    ]))
    .await;
    let mut source = dns.source();
    assert_eq!(shown(&next(&mut source).await), ["10.0.0.1:80 1"]);
    assert_eq!(source.oddities.skipped, 6);
    assert_eq!(source.status(), Status::Live);
}

#[tokio::test]
async fn a_target_of_the_root_says_that_the_service_is_not_offered() {
    let dns = Dns::start(zone(vec![srv(1, 80, GOOD)])).await;
    let mut source = dns.builder().grace(DAY).build().unwrap();
    assert_eq!(next(&mut source).await.len(), 1);
    dns.turn(zone(vec![srv(0, 0, ".")]));
    assert_eq!(next(&mut source).await, EndpointSet::empty());
    assert_eq!(source.status(), Status::Live);
    assert_eq!(source.oddities, Oddities::default());
}

#[tokio::test]
async fn aliases_are_followed_within_an_answer_and_across_answers() {
    let dns = Dns::start(|question: &Message| {
        let mut message = reply(question, ResponseCode::NoError);
        let asked = question.queries.first().unwrap().name();
        if *asked == name("web.service.consul.") {
            message.add_answers([
                alias("two.example.com.", "three.example.com."),
                alias("web.service.consul.", "two.example.com."),
            ]);
        } else {
            message.add_answers([
                alias("three.example.com.", "four.example.com."),
                srv_of("four.example.com.", 1, 80, "a.example.com."),
                // Not what was asked for.
                srv_of("five.example.com.", 1, 80, "b.example.com."),
            ]);
        }
        Reply::Answer(message)
    })
    .await;
    assert_eq!(
        shown(&next(&mut dns.source()).await),
        ["a.example.com:80 1"]
    );
}

#[tokio::test]
async fn aliases_without_end_fail_in_bounded_time() {
    let circle = zone(vec![
        alias("web.service.consul.", "two.example.com."),
        alias("two.example.com.", "web.service.consul."),
    ]);
    let dns = Dns::start(circle).await;
    let status = until(&mut dns.source(), |status| *status != Status::Unknown).await;
    assert!(reason(&status).contains("aliases in a row"), "{status:?}");

    dns.turn(|question| {
        let mut message = reply(question, ResponseCode::NoError);
        message.add_answers([
            alias("web.service.consul.", "two.example.com."),
            alias("two.example.com.", "web.service.consul."),
        ]);
        Reply::Answer(message)
    });
    let status = until(&mut dns.source(), |status| *status != Status::Unknown).await;
    assert!(reason(&status).contains("circle"), "{status:?}");

    let mut count = 0;
    dns.turn(move |question| {
        count += 1;
        let asked = question.queries.first().unwrap().name().to_ascii();
        let mut message = reply(question, ResponseCode::NoError);
        message.add_answer(alias(&asked, &format!("next{count}.example.com.")));
        Reply::Answer(message)
    });
    let status = until(&mut dns.source(), |status| *status != Status::Unknown).await;
    assert!(reason(&status).contains("aliases in a row"), "{status:?}");
}

/// Each way in which a server can fail to answer, and a word of the reason that is told.
fn failures() -> Vec<(&'static str, Script)> {
    fn wrong_id(question: &Message) -> Reply {
        let mut message = reply(question, ResponseCode::NoError);
        message.metadata.id = question.id.wrapping_add(1);
        message.add_answer(srv(1, 80, "0a0000ff.addr.dc1.consul."));
        Reply::Octets(framed(&message))
    }
    fn truncated(question: &Message) -> Reply {
        let mut message = reply(question, ResponseCode::NoError);
        message.add_answer(srv(1, 80, "0a0000ff.addr.dc1.consul."));
        let mut octets = framed(&message);
        octets.truncate(octets.len() - 7);
        Reply::Last(octets)
    }
    fn cut_inside(question: &Message) -> Reply {
        let mut message = reply(question, ResponseCode::NoError);
        message.add_answer(srv(1, 80, "0a0000ff.addr.dc1.consul."));
        let octets = message.to_vec().unwrap();
        let (octets, _) = octets.split_at(octets.len() - 7);
        let length = u16::try_from(octets.len()).unwrap();
        Reply::Octets([&length.to_be_bytes()[..], octets].concat())
    }
    fn a_query_back(question: &Message) -> Reply {
        Reply::Octets(framed(question))
    }
    fn compressed_for_ever(question: &Message) -> Reply {
        // A name that points at itself, right behind the header.
        let [high, low] = question.id.to_be_bytes();
        let header = [high, low, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        let message = [&header[..], &[0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
        let length = u16::try_from(message.len()).unwrap();
        Reply::Octets([&length.to_be_bytes()[..], &message].concat())
    }
    fn tc_and_nothing(question: &Message) -> Reply {
        let mut message = reply(question, ResponseCode::NoError);
        message.metadata.truncation = true;
        Reply::Answer(message)
    }
    vec![
        ("Query Refused", Box::new(code(ResponseCode::Refused))),
        ("Server Failure", Box::new(code(ResponseCode::ServFail))),
        ("Not Implemented", Box::new(code(ResponseCode::NotImp))),
        ("Form Error", Box::new(code(ResponseCode::FormErr))),
        ("no answer within", Box::new(|_: &Message| Reply::Silence)),
        ("closed", Box::new(|_: &Message| Reply::Last(Vec::new()))),
        ("closed", Box::new(truncated)),
        ("no answer within", Box::new(cut_inside)),
        ("no answer within", Box::new(wrong_id)),
        ("no answer within", Box::new(a_query_back)),
        ("no answer within", Box::new(compressed_for_ever)),
        ("cut to nothing", Box::new(tc_and_nothing)),
        (
            "no answer within",
            Box::new(|_: &Message| Reply::Octets(b"\0\x08garbage!".to_vec())),
        ),
        (
            "no answer within",
            Box::new(|_: &Message| Reply::Octets(vec![0xff; 3 * 65_537])),
        ),
        (
            "",
            Box::new(|_: &Message| Reply::Last(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())),
        ),
    ]
}

#[tokio::test]
async fn nothing_becomes_known_from_a_server_that_does_not_answer() {
    for (at, (says, script)) in failures().into_iter().enumerate() {
        let dns = Dns::start(script).await;
        let timeout = match says {
            "no answer within" => SHORT,
            _ => PATIENCE,
        };
        let mut source = dns.builder().timeout(timeout).build().unwrap();
        let status = until(&mut source, |status| *status != Status::Unknown).await;
        assert!(matches!(status, Status::Failing { .. }), "{at}: {status:?}");
        assert!(reason(&status).contains(says), "{at}: {status:?}");
        assert!(reason(&status).contains(&dns.addr.to_string()), "{at}");
    }
}

#[tokio::test]
async fn a_known_set_outlives_every_failure_and_is_confirmed_afterwards() {
    let dns = Dns::start(zone(vec![srv(1, 80, GOOD)])).await;
    let mut source = dns.builder().timeout(SHORT).build().unwrap();
    assert_eq!(shown(&next(&mut source).await), ["10.0.0.1:80 1"]);
    for (says, script) in failures() {
        *dns.script.lock().unwrap() = script;
        let fits = |status: &Status| match status {
            Status::Stale { reason, .. } => reason.contains(says),
            _ => false,
        };
        until(&mut source, fits).await;
        dns.turn(zone(vec![srv(1, 80, GOOD)]));
        // The set is the same as before, so it is not told again.
        until(&mut source, |status| *status == Status::Live).await;
    }
    dns.turn(zone(vec![srv(2, 80, GOOD)]));
    assert_eq!(shown(&next(&mut source).await), ["10.0.0.1:80 2"]);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_a_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let builder = SrvSource::builder("web.service.consul").server(nobody);
    let mut source = builder.build().unwrap();
    let status = until(&mut source, |status| *status != Status::Unknown).await;
    assert!(reason(&status).contains("refused"), "{status:?}");
}

#[tokio::test]
async fn a_denied_name_is_empty_at_once_when_nothing_was_known() {
    for script in [code(ResponseCode::NXDomain), code(ResponseCode::NoError)] {
        let dns = Dns::start(script).await;
        let mut source = dns.builder().grace(DAY).build().unwrap();
        assert_eq!(next(&mut source).await, EndpointSet::empty());
        assert_eq!(source.status(), Status::Live);
    }
}

#[tokio::test]
async fn a_denied_name_empties_a_known_set_after_the_grace_period_and_not_before() {
    for denial in [code(ResponseCode::NXDomain), code(ResponseCode::NoError)] {
        let dns = Dns::start(zone(vec![srv(1, 80, GOOD)])).await;
        let mut source = dns.builder().grace(ms(300)).build().unwrap();
        next(&mut source).await;
        let turned = Instant::now();
        dns.turn(denial);
        let stale = |status: &Status| matches!(status, Status::Stale { .. });
        let status = until(&mut source, stale).await;
        assert!(reason(&status).contains("no "), "{status:?}");
        assert_eq!(next(&mut source).await, EndpointSet::empty());
        assert!(turned.elapsed() >= ms(300));
        assert_eq!(source.status(), Status::Live);
        dns.turn(zone(vec![srv(1, 80, GOOD)]));
        assert_eq!(next(&mut source).await.len(), 1);
    }
}

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
    let Phase::Waiting(sleep) = &source.phase else {
        panic!("waits after an answer");
    };
    let wait = sleep.deadline().duration_since(Instant::now());
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
async fn the_fullest_message_is_read_and_known_to_be_cut() {
    // A DNS message over TCP ends at 65,535 octets; that is the limit of what a server can send.
    const COUNT: u16 = 3118;
    let dns = Dns::start(|question: &Message| {
        let head = reply(question, ResponseCode::NoError).to_vec().unwrap();
        let mut message = head;
        for octet in message.iter_mut().skip(6).take(2).zip(COUNT.to_be_bytes()) {
            *octet.0 = octet.1;
        }
        for port in 1..=COUNT {
            // The name of the question, SRV, IN, TTL 0, 9 octets: priority, weight, port, "a.".
            message.extend([0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 0, 0, 9, 0, 1, 0, 1]);
            message.extend(port.to_be_bytes());
            message.extend(b"\x01a\x00");
        }
        let length = u16::try_from(message.len()).unwrap();
        Reply::Octets([&length.to_be_bytes()[..], &message].concat())
    })
    .await;
    let mut source = dns.source();
    assert_eq!(next(&mut source).await.len(), usize::from(COUNT));
    assert!(source.oddities.cut);
}

#[tokio::test]
async fn records_of_an_answer_that_says_it_is_cut_are_used() {
    let dns = Dns::start(|question: &Message| {
        let mut message = reply(question, ResponseCode::NoError);
        message.metadata.truncation = true;
        message.add_answer(srv(1, 80, GOOD));
        Reply::Answer(message)
    })
    .await;
    let mut source = dns.source();
    assert_eq!(next(&mut source).await.len(), 1);
    assert!(source.oddities.cut);
}

#[tokio::test]
async fn records_of_another_name_or_class_are_not_taken() {
    let dns = Dns::start(|question: &Message| {
        let mut message = reply(question, ResponseCode::NoError);
        let mut chaos = srv(1, 80, "0a000002.addr.dc1.consul.");
        chaos.dns_class = DNSClass::CH;
        message.add_answers([
            srv_of("db.service.consul.", 1, 80, "0a000003.addr.dc1.consul."),
            chaos,
            srv(1, 80, GOOD),
        ]);
        Reply::Answer(message)
    })
    .await;
    assert_eq!(shown(&next(&mut dns.source()).await), ["10.0.0.1:80 1"]);
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_fails_and_then_stays() {
    let broken = Dns::start(code(ResponseCode::ServFail)).await;
    let good = Dns::start(zone(vec![srv(1, 80, GOOD)])).await;
    let builder = broken.builder().server(good.addr);
    let mut source = builder.build().unwrap();
    assert_eq!(next(&mut source).await.len(), 1);
    let asked = Arc::clone(&good.asked);
    until(&mut source, move |_| asked.lock().unwrap().len() >= 4).await;
    assert_eq!(broken.asked.lock().unwrap().len(), 1);

    broken.turn(zone(vec![srv(7, 80, GOOD)]));
    good.turn(code(ResponseCode::Refused));
    assert_eq!(shown(&next(&mut source).await), ["10.0.0.1:80 7"]);

    broken.turn(code(ResponseCode::NotAuth));
    let stale = |status: &Status| matches!(status, Status::Stale { .. });
    let status = until(&mut source, stale).await;
    assert!(reason(&status).contains("Refused"), "{status:?}");
    assert!(
        reason(&status).contains(&broken.addr.to_string()),
        "{status:?}"
    );
    assert!(
        reason(&status).contains(&good.addr.to_string()),
        "{status:?}"
    );
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
