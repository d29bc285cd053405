//! What probes find, as the agent is told it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::probe::{Health, Probe};

/// A probe that does as it is told.
fn switched(well: &Arc<AtomicBool>) -> Probe {
    let well = Arc::clone(well);
    Probe::new("database", move || {
        let found = match well.load(Ordering::SeqCst) {
            true => Health::passing("fine"),
            false => Health::critical("refused"),
        };
        async move { found }
    })
    .interval(Duration::from_secs(1))
}

async fn output(client: &Client) -> String {
    let checks = client.agent().checks().await.unwrap();
    let check = checks.values().next().unwrap();
    check.output().to_owned()
}

#[tokio::test(start_paused = true)]
async fn the_status_is_there_when_register_returns_and_follows() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    for begins_well in [true, false] {
        let well = Arc::new(AtomicBool::new(begins_well));
        let registration = client
            .register(beating())
            .probe(switched(&well))
            .await
            .unwrap();
        let wanted = |well| {
            if well {
                Status::Passing
            } else {
                Status::Critical
            }
        };
        assert_eq!(status(&client).await, Some(wanted(begins_well)));
        for now in [!begins_well, begins_well, !begins_well] {
            well.store(now, Ordering::SeqCst);
            let wanted = wanted(now);
            let took = eventually(async || status(&client).await == Some(wanted)).await;
            assert!(took <= Duration::from_secs(2), "{took:?}");
        }
        let text = output(&client).await;
        match well.load(Ordering::SeqCst) {
            true => assert_eq!(text, "all probes pass"),
            false => assert_eq!(text, "database (critical): refused"),
        }
        registration.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_worse_of_what_is_said_and_what_is_found_counts() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let well = Arc::new(AtomicBool::new(true));
    let starting = web().check(CheckDefinition::alive_only(TTL).status(Status::Critical));
    let registration = client
        .register(starting)
        .probe(switched(&well))
        .await
        .unwrap();
    // Not ready before it says so, however well it is.
    sleep(Duration::from_secs(60)).await;
    assert_eq!(status(&client).await, Some(Status::Critical));
    registration
        .set_status(Status::Passing, "ready")
        .await
        .unwrap();
    assert_eq!(status(&client).await, Some(Status::Passing));
    assert_eq!(output(&client).await, "ready");
    well.store(false, Ordering::SeqCst);
    eventually(async || status(&client).await == Some(Status::Critical)).await;
    assert_eq!(output(&client).await, "database (critical): refused");
    well.store(true, Ordering::SeqCst);
    eventually(async || status(&client).await == Some(Status::Passing)).await;
    registration
        .set_status(Status::Critical, "draining")
        .await
        .unwrap();
    assert_eq!(status(&client).await, Some(Status::Critical));
    assert_eq!(output(&client).await, "draining");
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_delays_no_heartbeat() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let turn = AtomicUsize::new(0);
    let hangs = Probe::new("hangs", move || {
        let first = turn.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            if !first {
                std::future::pending::<()>().await;
            }
        }
    })
    // It never fails in the time of this test.
    .failures(1_000);
    let _registration = client.register(beating()).probe(hangs).await.unwrap();
    for _ in 0..120 {
        assert_eq!(status(&client).await, Some(Status::Passing));
        sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_found_survives_that_the_agent_forgets() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let well = Arc::new(AtomicBool::new(false));
    let _registration = client
        .register(beating())
        .probe(switched(&well))
        .await
        .unwrap();
    client.agent().deregister("web-1").await.unwrap();
    eventually(async || status(&client).await == Some(Status::Critical)).await;
    well.store(true, Ordering::SeqCst);
    eventually(async || status(&client).await == Some(Status::Passing)).await;
}

#[tokio::test(start_paused = true)]
async fn probes_end_with_the_registration_however_it_ends() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let held = Arc::new(());
    let probe = || {
        let held = Arc::clone(&held);
        Probe::new("held", move || {
            let _held = Arc::clone(&held);
            async {}
        })
    };
    let gone = async || {
        eventually(async || Arc::strong_count(&held) == 1).await;
    };
    let registration = client.register(beating()).probe(probe()).await.unwrap();
    registration.close().await.unwrap();
    gone().await;
    drop(client.register(beating()).probe(probe()).await.unwrap());
    gone().await;
    agent.inject(Fault::delay(Duration::from_millis(7)));
    let register = client.register(beating()).probe(probe()).send();
    let dropped = tokio::time::timeout(Duration::from_millis(10), register).await;
    assert!(dropped.is_err());
    agent.clear_faults();
    gone().await;
    eventually(async || service(&client).await.is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn probes_without_a_check_to_say_by_are_refused() {
    let agent = Agent::in_memory();
    let client = client(&agent);
    let probe = || Probe::new("database", || async {});
    let error = client.register(web()).probe(probe()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(
        error.to_string().contains("CheckDefinition::ttl"),
        "{error}"
    );
    let wrong = probe().interval(Duration::ZERO);
    let error = client.register(beating()).probe(wrong).await.unwrap_err();
    assert!(error.to_string().contains("\"database\""), "{error}");
    assert!(service(&client).await.is_none());
}
