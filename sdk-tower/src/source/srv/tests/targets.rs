//! Targets of other servers' zones, looked up where that is asked for.

use super::*;

impl Dns {
    fn resolving(&self) -> SrvSource {
        self.builder().resolve_targets(true).build().unwrap()
    }

    fn times_asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn with_ttl(mut record: Record, ttl: u32) -> Record {
    record.ttl = ttl;
    record
}

#[tokio::test]
async fn a_target_without_an_additional_record_is_asked_for_by_a_and_by_aaaa() {
    let dns = Dns::start(zone(vec![
        srv(1, 80, "four.example.com."),
        srv(2, 81, "four.example.com."),
        srv(3, 80, "six.example.com."),
        srv(4, 80, "both.example.com."),
        a("four.example.com.", "192.0.2.4"),
        aaaa("six.example.com.", "2001:db8::6"),
        aaaa("both.example.com.", "2001:db8::7"),
        a("both.example.com.", "192.0.2.7"),
    ]))
    .await;
    assert_eq!(
        shown(&next(&mut dns.resolving()).await),
        [
            "192.0.2.4:80 1",
            "192.0.2.4:81 2",
            "192.0.2.7:80 4",
            "[2001:db8::6]:80 3",
        ]
    );
    // SRV; A of the first, once; A and AAAA of the second; A of the third.
    assert_eq!(dns.times_asked(), 5);
    // Whoever did not ask for it gets the names.
    let names = shown(&next(&mut dns.source()).await);
    assert_eq!(names.len(), 4);
    assert!(
        names.iter().all(|name| name.contains("example.com")),
        "{names:?}"
    );
    assert_eq!(dns.times_asked(), 6);
}

#[tokio::test]
async fn addresses_that_come_with_the_answer_are_not_asked_for() {
    let dns = Dns::start(|question: &Message| {
        let mut message = reply(question, ResponseCode::NoError);
        message.add_answers([
            srv(1, 80, "web-1.example.com."),
            srv(1, 80, "web-2.example.com."),
        ]);
        message.add_additionals([
            a("Web-1.Example.com.", "192.0.2.1"),
            aaaa("web-2.example.com.", "2001:db8::2"),
        ]);
        Reply::Answer(message)
    })
    .await;
    assert_eq!(
        shown(&next(&mut dns.resolving()).await),
        ["192.0.2.1:80 1", "[2001:db8::2]:80 1"]
    );
    assert_eq!(dns.times_asked(), 1);
}

#[tokio::test]
async fn each_ipv4_address_of_a_target_is_an_endpoint_and_one_that_nobody_can_call_is_skipped() {
    let dns = Dns::start(zone(vec![
        srv(7, 80, "web.example.com."),
        a("web.example.com.", "192.0.2.2"),
        a("web.example.com.", "192.0.2.1"),
        a("web.example.com.", "0.0.0.0"),
        a("web.example.com.", "255.255.255.255"),
        aaaa("web.example.com.", "2001:db8::1"),
    ]))
    .await;
    let mut source = dns.resolving();
    assert_eq!(
        shown(&next(&mut source).await),
        ["192.0.2.1:80 7", "192.0.2.2:80 7"]
    );
    assert_eq!(source.oddities.skipped, 2);
}

#[tokio::test]
async fn a_target_that_is_an_alias_is_followed_and_a_circle_of_them_is_a_failure() {
    // RFC 2782 forbids it, and it is done all the same.
    let dns = Dns::start(|question: &Message| {
        let query = question.queries.first().unwrap();
        let mut message = reply(question, ResponseCode::NoError);
        match (query.query_type(), query.name().to_string().as_str()) {
            (RecordType::SRV, _) => {
                message.add_answers([
                    srv(1, 80, "here.example.com."),
                    srv(1, 80, "there.example.com."),
                ]);
            }
            (RecordType::A, "here.example.com.") => {
                message.add_answers([
                    alias("here.example.com.", "really.example.com."),
                    a("really.example.com.", "192.0.2.1"),
                    a("not-asked-for.example.com.", "192.0.2.9"),
                ]);
            }
            _ => {
                message.add_answer(alias("there.example.com.", "cdn.example.net."));
            }
        }
        Reply::Answer(message)
    })
    .await;
    assert_eq!(
        shown(&next(&mut dns.resolving()).await),
        ["192.0.2.1:80 1", "cdn.example.net:80 1"]
    );

    let mut source = dns.resolving();
    next(&mut source).await;
    dns.turn(|question: &Message| {
        let mut message = reply(question, ResponseCode::NoError);
        match question.queries.first().unwrap().query_type() {
            RecordType::SRV => message.add_answer(srv(1, 80, "one.example.com.")),
            _ => message.add_answers([
                alias("one.example.com.", "two.example.com."),
                alias("two.example.com.", "one.example.com."),
            ]),
        };
        Reply::Answer(message)
    });
    let status = until(&mut source, |status| *status != Status::Live).await;
    assert!(reason(&status).contains("circle"), "{status:?}");
}

#[tokio::test]
async fn a_target_that_does_not_exist_is_nobody_and_one_that_is_not_told_of_stays_a_name() {
    let records = zone(vec![
        srv(1, 80, "gone.example.com."),
        srv(1, 80, "elsewhere.example.net."),
        srv(1, 80, "web.example.com."),
        a("web.example.com.", "192.0.2.1"),
    ]);
    let mut records = Box::new(records);
    let dns = Dns::start(move |question: &Message| {
        let asked = question.queries.first().unwrap().name();
        match asked.to_string().ends_with("example.net.") {
            true => Reply::Answer(reply(question, ResponseCode::Refused)),
            false => records(question),
        }
    })
    .await;
    let mut source = dns.resolving();
    assert_eq!(
        shown(&next(&mut source).await),
        ["192.0.2.1:80 1", "elsewhere.example.net:80 1"]
    );
    assert_eq!(source.oddities.skipped, 1);
    assert_eq!(source.status(), Status::Live);
}

#[tokio::test]
async fn a_target_that_cannot_be_looked_up_keeps_the_known_set() {
    let records = || {
        zone(vec![
            srv(1, 80, "web.example.com."),
            a("web.example.com.", "192.0.2.1"),
        ])
    };
    let dns = Dns::start(records()).await;
    let mut source = dns.resolving();
    next(&mut source).await;
    let mut srv_only = records();
    dns.turn(move |question| match question.queries.first() {
        Some(query) if query.query_type() == RecordType::SRV => srv_only(question),
        _ => Reply::Answer(reply(question, ResponseCode::ServFail)),
    });
    let status = until(&mut source, |status| *status != Status::Live).await;
    assert!(reason(&status).contains("Server Failure"), "{status:?}");
    dns.turn(records());
    until(&mut source, |status| *status == Status::Live).await;
}

#[tokio::test]
async fn the_ttl_of_an_address_sets_the_pace_if_it_is_the_shorter_one() {
    for (of_name, of_address, wanted) in [(60, 20, 20), (20, 60, 20)] {
        let dns = Dns::start(zone(vec![
            with_ttl(srv(1, 80, "web.example.com."), of_name),
            with_ttl(a("web.example.com.", "192.0.2.1"), of_address),
        ]))
        .await;
        let mut source = dns.resolving();
        next(&mut source).await;
        let wait = waits(&source);
        assert!(wait > Duration::from_secs(wanted - 1), "{wait:?}");
        assert!(wait <= Duration::from_secs(wanted + wanted / 4), "{wait:?}");
    }
}
