//! Single calls: what a write has begun may take effect, so that the writes here leave nothing that
//! would have to be undone.

use std::time::Duration;

use http::Method;
use lictor::api::txn::KvOp;
use lictor::embedded::Agent;
use tower::Service;

use crate::stage::{Stage, Subject, cases};

cases![
    "Read::send: of the agent" => about,
    "Read::send: of the catalog" => catalog,
    "Read::send: of health" => health,
    "Read::send: of keys" => keys,
    "Read::send: of sessions" => sessions,
    "Read::send: of the status" => leader,
    "Read::send: it waits for a change" => waiting,
    "Read::into_future" => awaited,
    "Write::send" => put,
    "Write::into_future" => delete,
    "Txn::send" => txn,
    "Txn::into_future" => txn_awaited,
    "Request::send" => raw,
    "Request::send_for_any_status" => raw_for_any_status,
    "Request::into_future" => raw_awaited,
    "Agent::start" => agent,
    "Builder::start" => agent_of_builder,
    "Agent::stop" => agent_stopped,
    "ResponseFuture::poll" => response,
    "Client::local_ip" => local_ip,
];

async fn about(stage: &mut Stage) -> Subject {
    let read = stage.client.agent().about();
    Box::pin(async move { read.send().await.map(drop) })
}

async fn catalog(stage: &mut Stage) -> Subject {
    let read = stage.client.catalog().nodes();
    Box::pin(async move { read.send().await.map(drop) })
}

async fn health(stage: &mut Stage) -> Subject {
    let read = stage.client.health().service("consul").passing();
    Box::pin(async move { read.send().await.map(drop) })
}

async fn keys(stage: &mut Stage) -> Subject {
    let read = stage.client.kv().list("config/");
    Box::pin(async move { read.send().await.map(drop) })
}

async fn sessions(stage: &mut Stage) -> Subject {
    let read = stage.client.session().list();
    Box::pin(async move { read.send().await.map(drop) })
}

async fn leader(stage: &mut Stage) -> Subject {
    let read = stage.client.status().leader();
    Box::pin(async move { read.send().await.map(drop) })
}

async fn waiting(stage: &mut Stage) -> Subject {
    let read = stage.client.kv().get("config/a");
    let read = read.wait_for_change(1_000_000, Duration::from_secs(10));
    Box::pin(async move { read.send().await.map(drop) })
}

async fn awaited(stage: &mut Stage) -> Subject {
    let read = stage.client.kv().get("config/a");
    Box::pin(async move { read.await.map(drop) })
}

async fn put(stage: &mut Stage) -> Subject {
    let write = stage.client.kv().put("config/a", "1");
    Box::pin(async move { write.send().await.map(drop) })
}

async fn delete(stage: &mut Stage) -> Subject {
    let write = stage.client.kv().delete("config/a");
    Box::pin(async move { write.await.map(drop) })
}

async fn txn(stage: &mut Stage) -> Subject {
    let txn = stage.client.txn().kv(KvOp::set("config/a", "1"));
    Box::pin(async move { txn.send().await.map(drop) })
}

async fn txn_awaited(stage: &mut Stage) -> Subject {
    let txn = stage.client.txn().kv(KvOp::set("config/a", "1"));
    Box::pin(async move { txn.await.map(drop) })
}

async fn raw(stage: &mut Stage) -> Subject {
    let request = stage.client.raw(Method::GET, "/v1/status/leader");
    Box::pin(async move { request.send().await.map(drop) })
}

async fn raw_for_any_status(stage: &mut Stage) -> Subject {
    let request = stage.client.raw(Method::GET, "/v1/nothing");
    Box::pin(async move { request.send_for_any_status().await.map(drop) })
}

async fn raw_awaited(stage: &mut Stage) -> Subject {
    let request = stage.client.raw(Method::GET, "/v1/status/leader");
    Box::pin(async move { request.await.map(drop) })
}

/// An agent that could not be started, because there is no runtime, has nothing that could be left.
async fn agent(_: &mut Stage) -> Subject {
    Box::pin(async move {
        drop(Agent::start().await);
        Ok(())
    })
}

async fn agent_of_builder(_: &mut Stage) -> Subject {
    Box::pin(async move {
        drop(Agent::builder().start().await);
        Ok(())
    })
}

async fn agent_stopped(_: &mut Stage) -> Subject {
    let agent = Agent::start().await.unwrap();
    Box::pin(async move {
        agent.stop().await;
        Ok(())
    })
}

async fn response(stage: &mut Stage) -> Subject {
    let mut agent = stage.agent.clone();
    Box::pin(async move {
        let request = http::Request::get("/v1/kv/config/a?index=1000000&wait=5s");
        let request = request.body(bytes::Bytes::new()).unwrap();
        drop(agent.call(request).await);
        Ok(())
    })
}

async fn local_ip(stage: &mut Stage) -> Subject {
    let client = stage.client.clone();
    Box::pin(async move { client.local_ip().await.map(drop) })
}
