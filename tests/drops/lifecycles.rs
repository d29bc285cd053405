use std::time::Duration;

use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use lictor::lifecycle::{Lifecycle, Stage as ShutdownStage};
use tokio::time::sleep;

use crate::stage::{KEY, Stage, Subject, cases};

cases![
    "Lifecycle::run" => run,
    "Lifecycle::run: the work ends by itself" => work_ends,
    "Lifecycle::run: nothing is registered" => empty,
    "Lifecycle::ready" => ready,
    "Shutdown::reached" => reached,
];

async fn lifecycle(stage: &Stage) -> Lifecycle {
    let check = CheckDefinition::alive_only(Duration::from_secs(15));
    let web = ServiceDefinition::new("web").port(80).check(check);
    let web = stage.client.register(web).not_ready().await.unwrap();
    let lock = stage.client.lock(KEY).acquire().await.unwrap();
    let lease = stage.client.lease().build().unwrap();
    let watch = stage.client.health().service("web").watch().unwrap();
    Lifecycle::of(web)
        .lame_duck(Duration::from_millis(50))
        .step_down("lock", lock.release())
        .end("lease", async move { lease.close().await })
        .keep(watch)
}

async fn run(stage: &mut Stage) -> Subject {
    let lifecycle = lifecycle(stage).await;
    let shutdown = lifecycle.shutdown();
    Box::pin(async move {
        shutdown.begin();
        let drain = shutdown.reached(ShutdownStage::Drain);
        drop(lifecycle.run(drain).await);
        Ok(())
    })
}

async fn work_ends(stage: &mut Stage) -> Subject {
    let lifecycle = lifecycle(stage).await;
    Box::pin(async move {
        drop(lifecycle.run(std::future::ready(())).await);
        Ok(())
    })
}

async fn empty(_: &mut Stage) -> Subject {
    let lifecycle = Lifecycle::new();
    let shutdown = lifecycle.shutdown();
    Box::pin(async move {
        shutdown.begin();
        drop(lifecycle.run(async {}).await);
        Ok(())
    })
}

async fn ready(stage: &mut Stage) -> Subject {
    let lifecycle = lifecycle(stage).await;
    Box::pin(async move {
        let outcome = lifecycle.ready().await;
        drop(lifecycle);
        outcome
    })
}

async fn reached(stage: &mut Stage) -> Subject {
    let lifecycle = lifecycle(stage).await;
    let shutdown = lifecycle.shutdown();
    stage.others.spawn(async move {
        sleep(Duration::from_millis(10)).await;
        drop(lifecycle);
    });
    Box::pin(async move {
        shutdown.reached(ShutdownStage::End).await;
        Ok(())
    })
}
