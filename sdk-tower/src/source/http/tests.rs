use super::*;

const PLAIN: Instance<'_> = Instance {
    address: "10.0.0.1",
    port: 80,
    health: Health::Passing,
    weight: 7,
};

fn shown(instance: &Instance<'_>) -> String {
    let endpoint = instance.endpoint().unwrap().unwrap();
    assert_eq!(endpoint.priority(), 1);
    format!("{} {}", endpoint.target(), endpoint.weight())
}

#[test]
fn an_instance_is_called_at_its_address_with_the_weight_of_its_state() {
    for (address, wanted) in [
        ("10.0.0.1", "10.0.0.1:80 7"),
        ("2001:db8::1", "[2001:db8::1]:80 7"),
        ("::ffff:10.0.0.9", "10.0.0.9:80 7"),
        ("Web-1.Example.com", "web-1.example.com:80 7"),
    ] {
        assert_eq!(shown(&Instance { address, ..PLAIN }), wanted);
    }
    let warning = Instance {
        health: Health::Warning,
        weight: 0,
        ..PLAIN
    };
    assert_eq!(shown(&warning), "10.0.0.1:80 0");
}

#[test]
fn an_instance_that_is_out_is_nobody_even_if_its_address_is_nonsense() {
    for health in [Health::Critical, Health::Maintenance, Health::Unknown] {
        let out = Instance {
            health,
            port: 0,
            ..PLAIN
        };
        assert_eq!(out.endpoint(), Ok(None), "{health:?}");
    }
}

#[test]
fn nonsense_is_nobody_and_says_why() {
    for (address, port, says) in [
        ("10.0.0.1", 0, "port 0"),
        ("0.0.0.0", 80, "one host"),
        ("::", 80, "one host"),
        ("224.0.0.1", 80, "many hosts"),
        ("http://10.0.0.1", 80, "not a DNS name"),
        ("10.0.0.1:80", 80, "not a DNS name"),
        ("[::1]", 80, "not a DNS name"),
        ("my host", 80, "not a DNS name"),
        ("10.0.0", 80, "number"),
        (" ", 80, "not a DNS name"),
        ("", 80, "empty"),
    ] {
        let instance = Instance {
            address,
            port,
            ..PLAIN
        };
        let why = instance.endpoint().unwrap_err();
        assert!(why.contains(says), "{address:?}:{port}: {why}");
    }
}

#[test]
fn critical_instances_are_told_where_too_few_are_well_but_not_where_nobody_is() {
    assert!(are_needed(1, 9, 0.5));
    assert!(are_needed(4, 6, 0.5));
    assert!(!are_needed(5, 5, 0.5));
    assert!(!are_needed(0, 10, 0.5));
    assert!(!are_needed(1, 9, 0.0));
    assert!(!are_needed(10, 0, 1.0));
    assert!(!are_needed(0, 0, 1.0));
}

#[test]
fn a_critical_instance_is_a_last_resort_and_one_in_maintenance_is_none() {
    let with = |health, port| {
        let instance = Instance {
            health,
            port,
            ..PLAIN
        };
        instance.last_resort().map(|endpoint| endpoint.priority())
    };
    assert_eq!(with(Health::Critical, 80), Some(u16::MAX));
    assert_eq!(with(Health::Critical, 0), None);
    assert_eq!(with(Health::Maintenance, 80), None);
    assert_eq!(with(Health::Unknown, 80), None);
}

mod grace {
    use std::future::poll_fn;

    use lictor::Client;
    use lictor::api::agent::{CheckDefinition, ServiceDefinition};
    use lictor::embedded::{Agent, Fault};
    use tokio::time::{Instant, timeout};

    use super::*;

    async fn next(source: &mut HealthSource) -> Vec<u16> {
        let set = poll_fn(|cx| Pin::new(&mut *source).poll_next(cx));
        let set = timeout(Duration::from_secs(60), set)
            .await
            .unwrap()
            .unwrap();
        set.iter()
            .map(|endpoint| endpoint.target().port())
            .collect()
    }

    fn web(status: Health) -> ServiceDefinition {
        let check = CheckDefinition::alive_only(Duration::from_secs(600)).status(status);
        let web = ServiceDefinition::new("web")
            .id("web-1")
            .address("10.0.0.1");
        web.port(80).check(check)
    }

    async fn known() -> (Agent, Client, HealthSource) {
        let agent = Agent::in_memory();
        let client = Client::builder().transport(agent.clone()).build().unwrap();
        client
            .agent()
            .register(&web(Health::Passing))
            .await
            .unwrap();
        let watch = client.health().service("web").watch().unwrap();
        let mut source = HealthSource::new(watch);
        assert_eq!(next(&mut source).await, [80]);
        (agent, client, source)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_without_instances_is_believed_after_the_grace() {
        for grace in [0, 1_000, 30_000].map(Duration::from_millis) {
            let (_agent, client, source) = known().await;
            let mut source = source.grace(grace);
            let start = Instant::now();
            client.agent().deregister("web-1").await.unwrap();
            assert!(next(&mut source).await.is_empty());
            let late = start.elapsed().saturating_sub(grace);
            assert!(
                start.elapsed() >= grace && late < Duration::from_millis(200),
                "{late:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn instances_that_are_back_within_the_grace_were_never_gone() {
        let (_agent, client, mut source) = known().await;
        client.agent().deregister("web-1").await.unwrap();
        assert!(
            timeout(Duration::from_millis(600), next(&mut source))
                .await
                .is_err()
        );
        client
            .agent()
            .register(&web(Health::Passing))
            .await
            .unwrap();
        assert!(
            timeout(Duration::from_secs(30), next(&mut source))
                .await
                .is_err()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_that_is_listed_as_critical_is_believed_at_once() {
        let (_agent, client, mut source) = known().await;
        let start = Instant::now();
        let check = client
            .agent()
            .update_check("service:web-1", Health::Critical, "no disk");
        check.await.unwrap();
        assert!(next(&mut source).await.is_empty());
        assert!(start.elapsed() < Duration::from_millis(500));
    }

    /// The agent is away for longer than the TTL, and then calls all critical.
    async fn away_and_critical(agent: &Agent, client: &Client, source: &mut HealthSource) {
        agent.inject(Fault::disconnect());
        // The query under way is answered, and is the last one.
        let nothing = timeout(Duration::from_secs(59), next(source)).await;
        assert!(nothing.is_err(), "{nothing:?}");
        let nothing = timeout(Duration::from_secs(20), next(source)).await;
        assert!(nothing.is_err(), "{nothing:?}");
        assert!(matches!(source.status(), Status::Stale { .. }));
        agent.clear_faults();
        let check = client
            .agent()
            .update_check("service:web-1", Health::Critical, "TTL expired");
        check.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_critical_soon_after_an_outage_is_a_last_resort_for_a_while() {
        let (agent, client, mut source) = known().await;
        away_and_critical(&agent, &client, &mut source).await;
        let start = Instant::now();
        let set = poll_fn(|cx| Pin::new(&mut source).poll_next(cx)).await;
        let set = set.unwrap();
        assert_eq!(set.len(), 1);
        assert!(set.iter().all(|endpoint| endpoint.is_last_resort()));
        // Nobody has sent a heartbeat: it is true.
        assert!(next(&mut source).await.is_empty());
        let lasted = start.elapsed().as_secs_f64();
        assert!((8.0..12.0).contains(&lasted), "{lasted}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_a_heartbeat_after_an_outage_was_never_gone() {
        let (agent, client, mut source) = known().await;
        away_and_critical(&agent, &client, &mut source).await;
        assert_eq!(next(&mut source).await, [80]);
        let check = client
            .agent()
            .update_check("service:web-1", Health::Passing, "back");
        check.await.unwrap();
        assert_eq!(next(&mut source).await, [80]);
        let more = timeout(Duration::from_secs(30), next(&mut source)).await;
        assert!(more.is_err(), "{more:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_grace_health_is_believed_after_an_outage_too() {
        let (agent, client, source) = known().await;
        let mut source = source.grace(Duration::ZERO);
        away_and_critical(&agent, &client, &mut source).await;
        assert!(next(&mut source).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_never_had_anybody_is_empty_at_once() {
        let agent = Agent::in_memory();
        let client = Client::builder().transport(agent.clone()).build().unwrap();
        let start = Instant::now();
        let watch = client.health().service("nobody").watch().unwrap();
        assert!(next(&mut HealthSource::new(watch)).await.is_empty());
        assert!(start.elapsed() < Duration::from_millis(500));
    }
}
