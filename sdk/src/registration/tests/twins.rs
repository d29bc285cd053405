//! Two of one ID, former selves, and what is told of all that.

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn told(registration: &Registration) -> Vec<String> {
    let history = registration.history();
    let texts = history.iter().map(ToString::to_string);
    let texts = texts.map(|text| text.split(": ").nth(1).unwrap_or_default().to_owned());
    // Without what differs from run to run.
    let words = texts.map(|text| text.split([' ']).next().unwrap_or_default().to_owned());
    words.collect()
}

async fn port(client: &Client) -> Option<u16> {
    service(client).await.map(|service| service.port())
}

#[tokio::test(start_paused = true)]
async fn both_of_one_id_report_the_conflict_and_the_older_lets_go() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let one = client.register(beating()).await.unwrap();
    let two = client.register(beating().port(81)).await.unwrap();
    let known = eventually(async || {
        matches!(one.state(), State::Yielded) && matches!(two.state(), State::Contested)
    });
    let known = known.await;
    assert!(known < Duration::from_secs(1), "{known:?}");
    assert_eq!(told(&one), ["registered", "conflict", "yielded"]);
    assert_eq!(told(&two), ["registered", "conflict"]);
    assert_eq!(port(&client).await, Some(81));
    // What is asked of the one that has let go is told to be in vain, and is kept.
    let err = one.update(|web| web.tag("kept")).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict);
    sleep(10 * MINUTE).await;
    assert!(two.state().is_registered());
    assert_eq!(agent.requests().count(&Method::PUT, REGISTER), 4);
    assert_eq!(status(&client).await, Some(Status::Passing));

    two.close().await.unwrap();
    let taken = eventually(async || port(&client).await == Some(80)).await;
    assert!(taken < Duration::from_millis(100), "{taken:?}");
    eventually(async || one.state().is_registered()).await;
    assert!(service(&client).await.unwrap().tags().contains("kept"));
    let last = told(&one);
    assert_eq!(last[3..], ["taken", "healed"]);
}

#[tokio::test(start_paused = true)]
async fn one_that_has_let_go_says_no_goodbye_for_the_other() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let mut one = client.register(beating()).await.unwrap();
    let _two = client.register(beating().port(81)).await.unwrap();
    while !matches!(one.state_changed().await, State::Yielded) {}
    one.close().await.unwrap();
    sleep(MINUTE).await;
    assert_eq!(port(&client).await, Some(81));
    assert_eq!(status(&client).await, Some(Status::Passing));
}

#[tokio::test(start_paused = true)]
async fn an_id_whose_owner_has_died_is_taken_back_when_its_ttl_is_over() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let mut one = client.register(beating()).await.unwrap();
    let two = client.register(beating().port(81)).await.unwrap();
    while !matches!(one.state_changed().await, State::Yielded) {}
    // The other dies: nothing of it reaches the agent any more.
    let (beat, goodbye) = (
        Fault::hang().under(BEAT),
        Fault::hang().under("/v1/agent/service/deregister/"),
    );
    agent.inject(beat);
    agent.inject(goodbye);
    two.close().await.unwrap_err();
    sleep(TTL * 2).await;
    agent.clear_faults();
    let taken = eventually(async || port(&client).await == Some(80)).await;
    assert!(taken <= TTL + Duration::from_secs(1), "{taken:?}");
    eventually(async || status(&client).await == Some(Status::Passing)).await;
}

#[tokio::test(start_paused = true)]
async fn a_former_self_is_replaced_without_a_word() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let former = client.register(beating()).await.unwrap();
    agent.inject(Fault::disconnect().under("/v1/agent/service/deregister/"));
    former.close().await.unwrap_err();
    agent.clear_faults();
    let now = client.register(beating().port(81)).await.unwrap();
    sleep(MINUTE).await;
    assert_eq!(told(&now), ["registered"]);
    assert_eq!(agent.requests().count(&Method::PUT, REGISTER), 2);
    let mark = service(&client).await.unwrap();
    let mark = mark.meta().get("lictor-boot").unwrap();
    assert!(mark.starts_with("2-"), "{mark}");
    assert_eq!(now.definition(), beating().port(81));
}

#[tokio::test(start_paused = true)]
async fn each_policy_does_what_it_says() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let of = |policy| client.register(beating()).on_conflict(policy);
    let other = || {
        client
            .register(beating().port(81))
            .on_conflict(OnConflict::Reassert)
    };

    let mut fails = of(OnConflict::Fail).await.unwrap();
    let two = other().await.unwrap();
    while !matches!(fails.state_changed().await, State::Closed) {}
    let err = fails.close().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict);
    assert_eq!(port(&client).await, Some(81));
    two.close().await.unwrap();

    let mut yields = of(OnConflict::Yield).await.unwrap();
    let two = other().await.unwrap();
    assert!(matches!(yields.state_changed().await, State::Yielded));
    assert_eq!(told(&two), ["registered"]);
    two.close().await.unwrap();
    yields.close().await.unwrap();

    let before = agent.requests().count(&Method::PUT, REGISTER);
    let _reasserts = of(OnConflict::Reassert).await.unwrap();
    let _two = other().await.unwrap();
    sleep(10 * MINUTE).await;
    let registers = agent.requests().count(&Method::PUT, REGISTER) - before;
    assert!((10..100).contains(&registers), "{registers} in ten minutes");
}

#[tokio::test(start_paused = true)]
async fn leftovers_of_the_same_lineage_are_removed_and_no_others() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let at = |port: u16| {
        ServiceDefinition::new("web")
            .id(format!("web-{port}"))
            .port(port)
    };
    let slot = |port: u16, lineage: &str| client.register(at(port)).lineage(lineage.to_owned());
    let former = slot(1, "slot-1").await.unwrap();
    let _sibling = slot(2, "slot-2").await.unwrap();
    let _plain = client.register(at(3)).await.unwrap();
    agent.inject(Fault::disconnect().under("/v1/agent/service/deregister/web-1"));
    former.close().await.unwrap_err();
    agent.clear_faults();
    let now = slot(4, "slot-1").await.unwrap();
    assert_eq!(told(&now), ["registered", "leftover"]);
    let services = client.agent().services().await.unwrap();
    let mut ids: Vec<String> = services.keys().map(|id| id.to_string()).collect();
    ids.sort();
    assert_eq!(ids, ["web-2", "web-3", "web-4"]);
    let err = slot(5, "").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn one_that_starts_anyway_is_registered_when_the_agent_is_there() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    agent.inject(Fault::disconnect());
    let mut web = client.register(beating()).starts_anyway().await.unwrap();
    assert!(matches!(web.state(), State::Healing { .. }), "{web:?}");
    assert!(matches!(web.state_changed().await, State::Healing { .. }));
    sleep(MINUTE).await;
    agent.clear_faults();
    let taken = eventually(async || web.state().is_registered()).await;
    assert!(taken <= Duration::from_secs(10), "{taken:?}");
    assert_eq!(status(&client).await, Some(Status::Passing));
    assert_eq!(told(&web), ["lost", "healed"]);
    web.close().await.unwrap();
    // What a repetition does not change is an error still.
    let refuse = Fault::answer(StatusCode::BAD_REQUEST, "no").under(REGISTER);
    agent.inject(refuse);
    client
        .register(beating())
        .starts_anyway()
        .await
        .unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn what_was_lost_and_healed_is_told_although_nobody_looked() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let web = client.register(beating()).await.unwrap();
    let mut events = web.events();
    sleep(MINUTE).await;
    agent.wipe();
    sleep(MINUTE).await;
    assert_eq!(told(&web), ["registered", "lost", "healed"]);
    let mut healed = None;
    for _ in 0..3 {
        if let Happening::Healed(after) = events.next().await.unwrap().what {
            healed = Some(after);
        }
    }
    assert!(healed.unwrap() <= Duration::from_millis(100), "{healed:?}");
    web.close().await.unwrap();
    assert!(events.next().await.is_none());
}

#[test]
fn heartbeats_that_are_late_because_the_runtime_was_starved_are_told() {
    const SHORT: Duration = Duration::from_millis(300);
    let elsewhere = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let agent = elsewhere.block_on(Agent::start()).unwrap();
    let client = Client::builder().address(agent.http_url()).build().unwrap();
    let starved = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    starved.block_on(async {
        let check = CheckDefinition::alive_only(SHORT);
        let web = client.register(web().check(check)).await.unwrap();
        // The task is to wait for its next heartbeat.
        sleep(SHORT / 2).await;
        #[expect(clippy::disallowed_methods, reason = "this is what is not to be done")]
        std::thread::sleep(SHORT * 2);
        let late = async || {
            let history = web.history();
            let mut late = history.iter().filter_map(|event| match event.what {
                Happening::BeatLate(by) => Some(by),
                _ => None,
            });
            late.next()
        };
        while late().await.is_none() {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(late().await.unwrap() >= SHORT);
        let text = async || {
            let checks = client.agent().checks().await.unwrap();
            checks.values().next().unwrap().output().to_owned()
        };
        while !text().await.contains("the runtime was starved") {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(text().await.starts_with("alive only: "), "{}", text().await);
        while status(&client).await != Some(Status::Passing) {
            sleep(Duration::from_millis(1)).await;
        }
        web.close().await.unwrap();
    });
}
