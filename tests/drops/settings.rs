//! Settings that are followed, and updates.

use std::time::Duration;

use lictor::ErrorKind;
use lictor::config::Config;
use tokio::time::sleep;

use crate::stage::{Stage, Subject, cases};

cases![
    "Update::send" => update,
    "Update::send: somebody else writes" => update_against_others,
    "Update::into_future" => update_awaited,
    "Settings::open" => open,
    "Settings::open: with a fallback" => open_with_fallback,
    "Config::changed" => changed,
];

async fn update(stage: &mut Stage) -> Subject {
    let kv = stage.client.kv();
    let update = kv.update("config/a", |count: Option<u8>| count.or(Some(1)));
    Box::pin(async move { update.send().await.map(drop) })
}

async fn update_against_others(stage: &mut Stage) -> Subject {
    let kv = stage.client.kv();
    let other = stage.other.kv();
    let mut left = 2;
    let update = kv.update_async("config/a", move |count: Option<u8>| {
        let other = (left > 0).then(|| other.clone());
        left -= i32::from(left > 0);
        async move {
            if let Some(other) = other {
                other.put_as("config/a", &5).await?;
            }
            Ok::<_, lictor::Error>(count.or(Some(1)))
        }
    });
    Box::pin(async move { update.send().await.map(drop) })
}

async fn update_awaited(stage: &mut Stage) -> Subject {
    let kv = stage.client.kv();
    let update = kv.update("config/a", |count: Option<u8>| count.or(Some(1)));
    Box::pin(async move { update.await.map(drop) })
}

/// What a reader is told whose runtime has ended.
fn or_closed<T>(result: lictor::Result<T>) -> lictor::Result<()> {
    match result {
        Err(err) if err.kind() != ErrorKind::Closed => Err(err),
        _ => Ok(()),
    }
}

async fn open(stage: &mut Stage) -> Subject {
    stage.other.kv().put("config/a", "1").await.unwrap();
    let settings = stage.client.config::<u8>().key("config/a");
    Box::pin(async move { or_closed(settings.open().await) })
}

async fn open_with_fallback(stage: &mut Stage) -> Subject {
    let settings = stage.client.config::<u8>().key("config/a");
    let settings = settings.fallback(7);
    Box::pin(async move { or_closed(settings.open().await) })
}

async fn changed(stage: &mut Stage) -> Subject {
    let other = stage.other.clone();
    other.kv().put("config/a", "1").await.unwrap();
    let settings = stage.client.config::<u8>().key("config/a");
    let mut config: Config<u8> = settings.open().await.unwrap();
    stage.others.spawn(async move {
        sleep(Duration::from_millis(20)).await;
        other.kv().put("config/a", "2").await.unwrap();
    });
    Box::pin(async move { or_closed(config.changed().await) })
}
