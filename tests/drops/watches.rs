use std::time::Duration;

use lictor::ErrorKind;
use lictor::api::kv::Pair;
use lictor::api::query::PreparedQuery;
use lictor::embedded::Fault;
use lictor::watch::{Failover, Guard, Watch};
use tokio::time::sleep;
use tokio_stream::StreamExt;

use crate::stage::{Stage, Subject, cases};

cases![
    "Watch::ready" => ready,
    "Watch::changed" => changed,
    "Watch::changed: another reader stays" => changed_for_two,
    "Watch::live" => live,
    "Watch::status_changed" => status_changed,
    "Watch::poll_next" => stream,
    "Changes::next" => changes,
    "Changes::poll_next" => changes_as_stream,
    "Watch::changed: through all views" => changed_through_views,
    "Watch::changed: of a prepared query" => changed_by_polling,
    "Occurrences::next" => event,
    "Occurrences::ready" => events_known,
    "Occurrences::poll_next" => events_as_stream,
    "Across::changed" => across,
    "Failover::order" => order,
];

fn watch(stage: &Stage) -> Watch<Pair> {
    stage.client.kv().list("config/").watch().unwrap()
}

/// Somebody writes a key after a while.
fn write(stage: &mut Stage) {
    let other = stage.other.clone();
    stage.others.spawn(async move {
        sleep(Duration::from_millis(20)).await;
        other.kv().put("config/a", "1").await.unwrap();
    });
}

/// What a reader is told whose runtime has ended.
fn or_closed<T>(result: lictor::Result<T>) -> lictor::Result<()> {
    match result {
        Err(err) if err.kind() != ErrorKind::Closed => Err(err),
        _ => Ok(()),
    }
}

async fn ready(stage: &mut Stage) -> Subject {
    let watch = watch(stage);
    Box::pin(async move { or_closed(watch.ready().await) })
}

async fn changed(stage: &mut Stage) -> Subject {
    write(stage);
    let mut watch = watch(stage);
    Box::pin(async move {
        // Nothing first, and then what was written.
        or_closed(watch.changed().await)?;
        or_closed(watch.changed().await)
    })
}

async fn changed_for_two(stage: &mut Stage) -> Subject {
    let mut watch = watch(stage);
    let mut second = watch.clone();
    stage.others.spawn(async move {
        second.changed().await.unwrap();
        let there = second.changed().await.unwrap();
        assert_eq!(there.len(), 1);
    });
    write(stage);
    Box::pin(async move {
        or_closed(watch.changed().await)?;
        or_closed(watch.changed().await)
    })
}

async fn live(stage: &mut Stage) -> Subject {
    stage
        .agent
        .inject(Fault::disconnect().under("/v1/kv/config").times(2));
    let watch = watch(stage);
    Box::pin(async move { or_closed(watch.live().await) })
}

async fn status_changed(stage: &mut Stage) -> Subject {
    let mut watch = watch(stage);
    Box::pin(async move { or_closed(watch.status_changed().await) })
}

async fn stream(stage: &mut Stage) -> Subject {
    write(stage);
    let mut watch = watch(stage);
    Box::pin(async move {
        watch.next().await;
        watch.next().await;
        Ok(())
    })
}

async fn changes(stage: &mut Stage) -> Subject {
    write(stage);
    let mut changes = watch(stage).changes();
    Box::pin(async move { or_closed(changes.next().await) })
}

async fn changes_as_stream(stage: &mut Stage) -> Subject {
    write(stage);
    let mut changes = watch(stage).changes();
    Box::pin(async move {
        StreamExt::next(&mut changes).await;
        Ok(())
    })
}

async fn changed_through_views(stage: &mut Stage) -> Subject {
    write(stage);
    let watch = watch(stage).guard(Guard::hold(Duration::from_secs(1)));
    let moment = Duration::from_millis(10);
    let mut watch = watch.unwrap().settle(moment, moment).unwrap();
    Box::pin(async move {
        or_closed(watch.changed().await)?;
        or_closed(watch.changed().await)
    })
}

async fn changed_by_polling(stage: &mut Stage) -> Subject {
    let query = PreparedQuery::new("consul").name("all");
    stage.other.query().create(&query).await.unwrap();
    let watch = stage.client.query().execute("all");
    let mut watch = watch.watch_every(Duration::from_secs(1)).unwrap();
    Box::pin(async move { or_closed(watch.changed().await) })
}

/// Somebody fires an event after a while.
fn fire(stage: &mut Stage) {
    let other = stage.other.clone();
    stage.others.spawn(async move {
        sleep(Duration::from_millis(100)).await;
        other.event().fire("deploy", "1").await.unwrap();
    });
}

async fn event(stage: &mut Stage) -> Subject {
    let mut events = stage.client.event().list().follow().unwrap();
    fire(stage);
    Box::pin(async move { or_closed(events.next().await) })
}

async fn events_known(stage: &mut Stage) -> Subject {
    let mut events = stage.client.event().list().follow().unwrap();
    Box::pin(async move { or_closed(events.ready().await) })
}

async fn events_as_stream(stage: &mut Stage) -> Subject {
    let mut events = stage.client.event().list().follow().unwrap();
    fire(stage);
    Box::pin(async move {
        StreamExt::next(&mut events).await;
        Ok(())
    })
}

async fn across(stage: &mut Stage) -> Subject {
    let datacenters = ["dc1", "nowhere"].map(|name| name.parse().unwrap());
    let keys = stage.client.kv().list("config/");
    let mut across = keys.watch_across(datacenters).unwrap();
    Box::pin(async move { or_closed(across.changed().await) })
}

async fn order(stage: &mut Stage) -> Subject {
    let client = stage.client.clone();
    let order = Failover::new().nearest(2);
    Box::pin(async move { order.order(&client).await.map(drop) })
}
