//! Servers that do not answer, or deny the name.

use super::*;

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
