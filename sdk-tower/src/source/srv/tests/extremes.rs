//! The largest, the smallest, and the same again.

use super::*;

#[tokio::test]
async fn the_longest_ttl_is_cut_to_the_ceiling_and_the_shortest_raised_to_the_floor() {
    // Above 2^31 - 1 a TTL is an error of the server, to be taken for 0 (RFC 2181, 8).
    for (ttl, least, most) in [
        (0, 3, 4),
        (3600, 60, 75),
        (u32::MAX >> 1, 60, 75),
        (u32::MAX, 3, 4),
    ] {
        let mut record = srv(1, 80, GOOD);
        record.ttl = ttl;
        let dns = Dns::start(zone(vec![record])).await;
        let builder = dns.builder().min_refresh(Duration::from_secs(3));
        let mut source = builder.build().unwrap();
        next(&mut source).await;
        let wait = waits(&source);
        // Some of it has gone by.
        assert!(wait > Duration::from_secs(least - 1), "{ttl}: {wait:?}");
        assert!(wait <= Duration::from_secs(most), "{ttl}: {wait:?}");
    }
}

#[tokio::test]
async fn weights_and_priorities_are_kept_from_the_smallest_to_the_largest() {
    let record = |priority, weight, port| {
        let data = SRV::new(priority, weight, port, name(GOOD));
        Record::from_rdata(name("web.service.consul."), 0, RData::SRV(data))
    };
    let dns = Dns::start(zone(vec![
        record(0, 0, 1),
        record(u16::MAX, u16::MAX, u16::MAX),
    ]))
    .await;
    let set = next(&mut dns.source()).await;
    let told: Vec<_> = set
        .iter()
        .map(|e| (e.target().port(), e.priority(), e.weight()))
        .collect();
    assert_eq!(told, [(1, 0, 0), (u16::MAX, u16::MAX, 65_535)]);
}

#[tokio::test]
async fn a_record_that_is_told_twice_is_one_endpoint() {
    let mut preferred = srv(2, 80, GOOD);
    preferred.data = RData::SRV(SRV::new(0, 1, 80, name(GOOD)));
    let dns = Dns::start(zone(vec![
        srv(1, 80, GOOD),
        srv(1, 80, GOOD),
        srv(5, 80, "0A000001.ADDR.DC1.CONSUL."),
        preferred,
    ]))
    .await;
    let mut source = dns.source();
    let set = next(&mut source).await;
    // The larger weight and the preferred priority, as in every set.
    assert_eq!(shown(&set), ["10.0.0.1:80 5"]);
    assert_eq!(set.iter().next().unwrap().priority(), 0);
    assert_eq!(source.oddities, Oddities::default());
}

/// No DNS message holds 5,000 records: Consul names some, others each time.
#[tokio::test]
async fn of_5_000_instances_nearly_all_are_known_after_some_answers_and_nobody_else() {
    const INSTANCES: u64 = 5_000;
    const NAMED: u64 = 1_024;
    let mut seed: u64 = 1;
    let dns = Dns::start(move |question: &Message| {
        let mut message = reply(question, ResponseCode::NoError);
        // Steps of a prime number through all of them, from another place each time.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let from = seed >> 33;
        message.add_answers((0..NAMED).map(|n| {
            let instance = (from + n * 997) % INSTANCES;
            srv(
                1,
                80,
                &format!("{:08x}.addr.dc1.consul.", 0x0a00_0001 + instance),
            )
        }));
        Reply::Answer(message)
    })
    .await;
    let mut source = dns.source();
    let mut known = next(&mut source).await;
    assert_eq!(known.len(), 1_024);
    while known.len() < 4_900 {
        known = next(&mut source).await;
    }
    assert!(known.len() <= 5_000);
    assert!(source.oddities.cut);
    assert!(dns.asked.lock().unwrap().len() < 40);
    let past = "10.0.19.137:80".parse::<Target>().unwrap();
    assert!(known.iter().all(|endpoint| *endpoint.target() < past));
}
