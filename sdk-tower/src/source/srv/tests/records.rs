//! What an answer says, and what becomes of it.

use super::*;

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
