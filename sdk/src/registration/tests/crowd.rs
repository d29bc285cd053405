//! Many registrations of one client.

use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use super::trouble::Refusing;
use super::*;

struct Crowd {
    agent: Agent,
    client: Client,
    registrations: Vec<Registration>,
    switch: watch::Sender<bool>,
    tried: Arc<AtomicU64>,
}

impl Crowd {
    async fn of(count: usize, ttl: Duration) -> Self {
        Self::each(count, |one| one.check(CheckDefinition::alive_only(ttl))).await
    }

    /// Without any check.
    async fn of_silent(count: usize) -> Self {
        Self::each(count, |one| one).await
    }

    async fn each(count: usize, with: impl Fn(ServiceDefinition) -> ServiceDefinition) -> Self {
        let agent = Agent::in_memory();
        let (switch, refuses) = watch::channel(false);
        let tried = Arc::<AtomicU64>::default();
        let transport = Refusing {
            agent: agent.clone(),
            refuses,
            tried: Arc::clone(&tried),
        };
        let reaching = Client::builder().transport(transport).build().unwrap();
        let mut registrations = Vec::new();
        for number in 0..count {
            let one = ServiceDefinition::new("web").id(format!("web-{number}"));
            let one = with(one);
            registrations.push(reaching.register(one).await.unwrap());
        }
        Self {
            client: client(&agent),
            agent,
            registrations,
            switch,
            tried,
        }
    }

    async fn passing(&self) -> usize {
        let passing = self.client.health().service("web").passing();
        passing.send().await.unwrap().len()
    }
}

#[tokio::test(start_paused = true)]
async fn of_many_some_hold_a_query_and_whoever_is_forgotten_comes_back() {
    let crowd = Crowd::of(100, TTL).await;
    sleep(Duration::from_secs(90)).await;
    assert_eq!(crowd.agent.requests().open_queries(), 16);
    for (number, within) in [(0, Duration::from_millis(50)), (99, TTL / 2)] {
        let id = format!("web-{number}");
        crowd.client.agent().deregister(&*id).await.unwrap();
        let back = async || {
            let service = crowd.client.agent().service(&*id).await;
            service.unwrap().into_value().is_some()
        };
        let late = eventually(back).await;
        assert!(late <= within, "{id}: {late:?}");
    }
    // A place that is left is taken by somebody else.
    let mut registrations = crowd.registrations;
    registrations.remove(1).close().await.unwrap();
    sleep(Duration::from_secs(90)).await;
    assert_eq!(crowd.agent.requests().open_queries(), 16);
}

#[tokio::test(start_paused = true)]
async fn many_look_for_their_agent_no_more_often_than_a_few_and_are_back_together() {
    let ttl = Duration::from_secs(30);
    let away = 15;
    let mut tries = Vec::new();
    for count in [16, 400] {
        let crowd = Crowd::of(count, ttl).await;
        sleep(Duration::from_secs(20)).await;
        let before = crowd.tried.load(Ordering::Relaxed);
        crowd.switch.send_replace(true);
        sleep(Duration::from_secs(away)).await;
        tries.push(crowd.tried.load(Ordering::Relaxed) - before);
        crowd.agent.wipe();
        crowd.switch.send_replace(false);
        let late = eventually(async || crowd.passing().await == count).await;
        assert!(late <= Duration::from_millis(500), "{count}: {late:?}");
    }
    // Each of them finds out once for itself.
    assert!(tries[1] < 2 * tries[0] + 2 * 400, "{tries:?}");
}

#[tokio::test(start_paused = true)]
async fn many_without_heartbeats_are_back_soon_after_an_agent_that_was_wiped() {
    let crowd = Crowd::of_silent(100).await;
    sleep(Duration::from_secs(20)).await;
    crowd.switch.send_replace(true);
    sleep(Duration::from_secs(3)).await;
    crowd.agent.wipe();
    crowd.switch.send_replace(false);
    let late = eventually(async || crowd.passing().await == 100).await;
    assert!(late <= Duration::from_secs(1), "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_takes_nothing_from_a_successor_that_it_has_not_noticed() {
    let older = Crowd::of_silent(100).await;
    sleep(Duration::from_secs(20)).await;
    let client = Client::builder().transport(older.agent.clone()).build();
    let client = client.unwrap();
    let mut newer = Vec::new();
    for number in 0..100 {
        let one = ServiceDefinition::new("web").id(format!("web-{number}"));
        newer.push(client.register(one).await.unwrap());
    }
    for registration in older.registrations {
        registration.close().await.unwrap();
    }
    let passing = client.health().service("web").passing();
    assert_eq!(passing.send().await.unwrap().len(), 100);
}

/// Polled once: a few are on their way then, and the others stand in line.
#[tokio::test(start_paused = true)]
async fn of_many_that_are_given_up_only_those_say_goodbye_that_the_agent_has_heard_of() {
    for slow in [false, true] {
        let agent = Agent::in_memory();
        let client = Client::builder().transport(agent.clone()).build().unwrap();
        if slow {
            // They are not answered while they are waited for, and arrive after all.
            let late = Fault::delay(Duration::from_secs(3)).under("/v1/agent/service/register");
            agent.inject(late);
        }
        let mut given_up: Vec<_> = (0..1_000)
            .map(|number| {
                let one = ServiceDefinition::new("web").id(format!("web-{number}"));
                client.register(one).into_future()
            })
            .collect();
        for one in &mut given_up {
            let _sent = std::future::poll_fn(|cx| Poll::Ready(one.as_mut().poll(cx))).await;
        }
        sleep(Duration::from_millis(1)).await;
        drop(given_up);
        sleep(Duration::from_secs(30)).await;
        assert_eq!(agent.requests().open_queries(), 0);
        let known = client.agent().services().await.unwrap();
        assert_eq!(known.value().len(), 0, "{slow}");
        let goodbyes = agent.requests().count_under("/v1/agent/service/deregister");
        assert!(goodbyes <= if slow { 200 } else { 1_000 }, "{goodbyes}");
    }
}
