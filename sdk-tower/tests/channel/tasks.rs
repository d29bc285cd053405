use lictor_tower::channel::Channel;
use tokio::runtime::{Builder, Handle};
use tokio::task::{JoinSet, yield_now};

use crate::support::{Server, channel, get, in_flight, text, who};

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// Lets all tasks that can go on do so, without any time passing for them to wait for.
async fn settle() {
    for _ in 0..1_000 {
        yield_now().await;
    }
}

/// Servers whose tasks are none of the channel's, because they run in a runtime of their own.
fn elsewhere(count: usize) -> (tokio::runtime::Runtime, Vec<Server>) {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let servers = runtime.block_on(async {
        let mut servers = Vec::new();
        for _ in 0..count {
            servers.push(Server::start().await);
        }
        servers
    });
    (runtime, servers)
}

async fn at_once(channel: &Channel, calls: usize) {
    let calls = (0..calls).map(|_| channel.request(get("/")));
    // Futures of the caller's own: they are no tasks.
    let mut calls: Vec<_> = calls.map(Box::pin).collect();
    for call in &mut calls {
        text(call.await.unwrap()).await;
    }
}

#[test]
fn g20_a_channel_runs_one_task_and_one_for_each_connection_and_none_for_a_request() {
    let (_servers_run_here, servers) = elsewhere(2);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let before = tasks();
        let (registry, channel) = channel(&[&servers[0], &servers[1]]);
        channel.wait_ready().await.unwrap();
        assert_eq!(tasks(), before + 1, "the driver");

        for _ in 0..200 {
            who(&channel).await;
        }
        let opened: u32 = servers.iter().map(|server| server.seen.accepted()).sum();
        assert!((1..=2).contains(&opened), "{opened}");
        assert_eq!(tasks(), before + 1 + opened as usize);

        at_once(&channel, 64).await;
        let opened: u32 = servers.iter().map(|server| server.seen.accepted()).sum();
        assert!(
            tasks() <= before + 1 + opened as usize,
            "{} {opened}",
            tasks()
        );
        assert_eq!(in_flight(&channel), 0);

        // Nothing that ends with the channel waits for a time to pass or for an answer to come.
        drop(channel);
        settle().await;
        assert_eq!(tasks(), before);
        registry.deserted().await;
    });
}

#[test]
fn g20_tasks_end_with_the_last_handle_whichever_it_is() {
    let (_servers_run_here, servers) = elsewhere(1);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let before = tasks();
        let (_registry, channel) = channel(&[&servers[0]]);
        who(&channel).await;
        let clone = channel.clone();
        let mut slow = Box::pin(channel.request(get("/slow")));
        tokio::select! {
            biased;
            answer = slow.as_mut() => panic!("{answer:?}"),
            () = settle() => {}
        }
        drop(channel);
        drop(clone);
        settle().await;
        assert!(tasks() > before, "a request is under way");
        drop(slow);
        settle().await;
        assert_eq!(tasks(), before);
    });
}

#[test]
fn g20_a_channel_may_be_dropped_outside_of_its_runtime_while_others_use_it() {
    let (_servers_run_here, servers) = elsewhere(1);
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (_registry, channel) = runtime.block_on(async { channel(&[&servers[0]]) });
    runtime.block_on(async {
        let mut callers = JoinSet::new();
        for _ in 0..8 {
            let channel = channel.clone();
            callers.spawn(async move {
                for _ in 0..20 {
                    who(&channel).await;
                }
            });
        }
        while let Some(caller) = callers.join_next().await {
            caller.unwrap();
        }
    });
    drop(channel);
    runtime.block_on(async {
        crate::support::eventually("all tasks have ended", || tasks() == 0).await;
    });
}
