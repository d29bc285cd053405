use lictor::api::txn::KvOp;

use crate::stage::{KEY, Stage, Subject, cases};

cases![
    "Fenced::put" => put,
    "Fenced::cas" => cas,
    "Fenced::delete" => delete,
    "Fenced::delete_tree" => delete_tree,
    "FencedTxn::send" => send,
    "FencedTxn::into_future" => awaited,
];

async fn put(stage: &mut Stage) -> Subject {
    let (client, guard) = (
        stage.client.clone(),
        stage.client.lock(KEY).acquire().await.unwrap(),
    );
    Box::pin(async move { client.kv().fenced(&guard).put("progress", "17").await })
}

async fn cas(stage: &mut Stage) -> Subject {
    let (client, guard) = (
        stage.client.clone(),
        stage.client.lock(KEY).acquire().await.unwrap(),
    );
    Box::pin(async move {
        client
            .kv()
            .fenced(&guard)
            .cas("progress", "17", 0)
            .await
            .map(drop)
    })
}

async fn delete(stage: &mut Stage) -> Subject {
    let (client, guard) = (
        stage.client.clone(),
        stage.client.lock(KEY).acquire().await.unwrap(),
    );
    Box::pin(async move { client.kv().fenced(&guard).delete("progress").await })
}

async fn delete_tree(stage: &mut Stage) -> Subject {
    let (client, guard) = (
        stage.client.clone(),
        stage.client.lock(KEY).acquire().await.unwrap(),
    );
    Box::pin(async move { client.kv().fenced(&guard).delete_tree("progress/").await })
}

async fn send(stage: &mut Stage) -> Subject {
    let (client, guard) = (
        stage.client.clone(),
        stage.client.lock(KEY).acquire().await.unwrap(),
    );
    Box::pin(async move {
        let txn = client.kv().fenced(&guard).txn();
        let txn = txn.kv(KvOp::set("progress", "17"));
        txn.kv(KvOp::set("at", "noon")).send().await.map(drop)
    })
}

async fn awaited(stage: &mut Stage) -> Subject {
    let (client, guard) = (
        stage.client.clone(),
        stage.client.lock(KEY).acquire().await.unwrap(),
    );
    Box::pin(async move {
        let txn = client.kv().fenced(&guard).txn();
        txn.kv(KvOp::set("progress", "17")).await.map(drop)
    })
}
