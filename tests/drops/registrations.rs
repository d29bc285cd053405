use std::future::IntoFuture;
use std::time::Duration;

use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use lictor::api::health::Status;
use lictor::embedded::Fault;
use lictor::probe::Probe;
use lictor::registration::{Registration, State};
use tokio::time::sleep;
use tokio_stream::StreamExt;

use crate::stage::{Stage, Subject, cases};

cases![
    "Register::send" => register,
    "Register::send: with a probe" => register_probed,
    "Register::into_future" => register_awaited,
    "Register::send: without a check" => register_plain,
    "Register::send: the answer is lost" => register_unanswered,
    "Registration::set_status" => set_status,
    "Registration::update" => update,
    "Registration::set_tags" => set_tags,
    "Registration::set_meta" => set_meta,
    "Registration::maintenance" => maintenance,
    "Registration::ready" => ready,
    "Registration::not_ready" => not_ready,
    "Readiness::ready" => readiness_ready,
    "Readiness::not_ready" => readiness_not_ready,
    "Registration::close" => close,
    "Registration::state_changed" => state_changed,
    "States::next: of a registration" => states,
    "States::poll_next" => states_as_stream,
    "Events::next" => events,
    "Events::poll_next" => events_as_stream,
    "Register::send: without the agent" => register_anyway,
    "Register::send: of a lineage" => register_lineage,
];

fn definition() -> ServiceDefinition {
    let check = CheckDefinition::alive_only(Duration::from_secs(15));
    ServiceDefinition::new("web")
        .id("web-1")
        .port(80)
        .check(check)
}

async fn registered(stage: &Stage) -> Registration {
    stage.client.register(definition()).await.unwrap()
}

async fn register(stage: &mut Stage) -> Subject {
    let client = stage.client.clone();
    Box::pin(async move { client.register(definition()).send().await.map(drop) })
}

async fn register_awaited(stage: &mut Stage) -> Subject {
    let client = stage.client.clone();
    Box::pin(async move { client.register(definition()).into_future().await.map(drop) })
}

async fn register_probed(stage: &mut Stage) -> Subject {
    let client = stage.client.clone();
    let probe = Probe::new("slow", || sleep(Duration::from_millis(5)));
    Box::pin(async move {
        client
            .register(definition())
            .probe(probe)
            .send()
            .await
            .map(drop)
    })
}

async fn register_plain(stage: &mut Stage) -> Subject {
    let client = stage.client.clone();
    let web = ServiceDefinition::new("web").port(80);
    Box::pin(async move { client.register(web).await.map(drop) })
}

async fn register_unanswered(stage: &mut Stage) -> Subject {
    let register = Fault::lose_answer().under("/v1/agent/service/register");
    stage.agent.inject(register.times(1));
    let client = stage.client.clone();
    Box::pin(async move {
        match client.register(definition()).await {
            // It is not repeated, and told.
            Err(err) if err.is_transient() => Ok(()),
            other => other.map(drop),
        }
    })
}

async fn set_status(stage: &mut Stage) -> Subject {
    let web = registered(stage).await;
    Box::pin(async move { web.set_status(Status::Warning, "busy").await })
}

async fn update(stage: &mut Stage) -> Subject {
    let web = registered(stage).await;
    Box::pin(async move { web.update(|web| web.tag("canary")).await })
}

async fn set_tags(stage: &mut Stage) -> Subject {
    let web = registered(stage).await;
    Box::pin(async move { web.set_tags(["a", "b"]).await })
}

async fn set_meta(stage: &mut Stage) -> Subject {
    let web = registered(stage).await;
    Box::pin(async move { web.set_meta("version", "2").await })
}

async fn maintenance(stage: &mut Stage) -> Subject {
    let web = registered(stage).await;
    Box::pin(async move {
        web.maintenance(Some("moved")).await?;
        web.maintenance(None).await
    })
}

async fn ready(stage: &mut Stage) -> Subject {
    let web = stage
        .client
        .register(definition())
        .not_ready()
        .await
        .unwrap();
    Box::pin(async move { web.ready().await })
}

async fn not_ready(stage: &mut Stage) -> Subject {
    // Without a TTL check it is a registration that tells it.
    let web = ServiceDefinition::new("web").port(80);
    let web = stage.client.register(web).await.unwrap();
    Box::pin(async move { web.not_ready("cold").await })
}

async fn readiness_ready(stage: &mut Stage) -> Subject {
    let web = stage
        .client
        .register(definition())
        .not_ready()
        .await
        .unwrap();
    let readiness = web.readiness();
    Box::pin(async move {
        let outcome = readiness.ready().await;
        drop(web);
        outcome
    })
}

async fn readiness_not_ready(stage: &mut Stage) -> Subject {
    let web = registered(stage).await;
    let readiness = web.readiness();
    Box::pin(async move {
        let outcome = readiness.not_ready("cold").await;
        drop(web);
        outcome
    })
}

async fn close(stage: &mut Stage) -> Subject {
    let web = registered(stage).await;
    Box::pin(async move { web.close().await })
}

/// The agent does not answer for a while.
fn trouble(stage: &mut Stage) {
    let agent = stage.agent.clone();
    stage.others.spawn(async move {
        sleep(Duration::from_millis(10)).await;
        agent.inject(Fault::disconnect().under("/v1/agent/check/update"));
        sleep(Duration::from_secs(8)).await;
        agent.clear_faults();
    });
}

async fn state_changed(stage: &mut Stage) -> Subject {
    let mut web = registered(stage).await;
    trouble(stage);
    Box::pin(async move {
        while !matches!(web.state_changed().await, State::Registered | State::Closed) {}
        Ok(())
    })
}

async fn states(stage: &mut Stage) -> Subject {
    let web = registered(stage).await;
    let mut states = web.states();
    stage.others.spawn(async move {
        sleep(Duration::from_millis(10)).await;
        web.close().await.unwrap();
    });
    Box::pin(async move {
        while states.next().await.is_some() {}
        Ok(())
    })
}

async fn states_as_stream(stage: &mut Stage) -> Subject {
    let web = registered(stage).await;
    let mut states = web.states();
    stage.others.spawn(async move {
        sleep(Duration::from_millis(10)).await;
        web.close().await.unwrap();
    });
    Box::pin(async move {
        while StreamExt::next(&mut states).await.is_some() {}
        Ok(())
    })
}

async fn events(stage: &mut Stage) -> Subject {
    let web = registered(stage).await;
    let mut events = web.events();
    stage.others.spawn(async move {
        sleep(Duration::from_millis(10)).await;
        web.close().await.unwrap();
    });
    Box::pin(async move {
        while events.next().await.is_some() {}
        Ok(())
    })
}

async fn events_as_stream(stage: &mut Stage) -> Subject {
    let web = registered(stage).await;
    let mut events = web.events();
    stage.others.spawn(async move {
        sleep(Duration::from_millis(10)).await;
        web.close().await.unwrap();
    });
    Box::pin(async move {
        while StreamExt::next(&mut events).await.is_some() {}
        Ok(())
    })
}

async fn register_anyway(stage: &mut Stage) -> Subject {
    let register = Fault::disconnect().under("/v1/agent/service/register");
    stage.agent.inject(register.times(1));
    let client = stage.client.clone();
    Box::pin(async move {
        client
            .register(definition())
            .starts_anyway()
            .await
            .map(drop)
    })
}

async fn register_lineage(stage: &mut Stage) -> Subject {
    let former = ServiceDefinition::new("web")
        .id("web-0")
        .meta("lictor-lineage", "slot");
    stage.other.agent().register(&former).await.unwrap();
    let (client, other) = (stage.client.clone(), stage.other.clone());
    stage.others.spawn(async move {
        // Where the future is dropped before, it is its own leftover.
        sleep(Duration::from_secs(1)).await;
        other.agent().deregister("web-0").await.unwrap();
    });
    Box::pin(async move {
        client
            .register(definition())
            .lineage("slot")
            .await
            .map(drop)
    })
}
