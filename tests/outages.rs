//! Watches while the real Consul they look at breaks.

mod consul {
    use std::time::Duration;

    use lictor::api::kv::Pair;
    use lictor::watch::{Snapshot, Status, Watch};
    use lictor::{Client, ErrorKind};
    use support::consul::{Agent, Cluster};
    use support::http;
    use support::proxy::Proxy;
    use tokio::task::JoinSet;
    use tokio::time::{Instant, timeout};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn client(url: impl Into<String>) -> Client {
        let client = Client::builder()
            .address(url)
            .timeout(Duration::from_secs(5));
        client.build().expect("a plain address")
    }

    fn value(snapshot: &Snapshot<Pair>) -> Option<&[u8]> {
        snapshot.first().map(|pair| pair.value())
    }

    async fn until(watch: &mut Watch<Pair>, wanted: &[u8]) {
        let told = timeout(PATIENCE, async {
            while value(&watch.changed().await.expect("the runtime lives")) != Some(wanted) {}
        });
        if told.await.is_err() {
            panic!("{wanted:?} is not told; the watch is {watch:?}");
        }
    }

    async fn until_status(watch: &mut Watch<Pair>, fits: impl Fn(&Status) -> bool) -> Status {
        let reached = timeout(PATIENCE, async {
            let mut status = watch.status();
            while !fits(&status) {
                status = watch.status_changed().await.expect("the runtime lives");
            }
            status
        });
        reached.await.expect("the status changes")
    }

    /// Writes as soon as the agent takes writes again.
    async fn put(client: &Client, value: &'static str) {
        let written = timeout(PATIENCE, async {
            while client.kv().put("watched", value).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        written.await.expect("the agent takes writes");
    }

    async fn watching(client: &Client) -> Watch<Pair> {
        put(client, "before").await;
        let mut watch = client.kv().get("watched").watch().expect("a good key");
        until(&mut watch, b"before").await;
        watch
    }

    #[tokio::test]
    async fn a_watch_follows_an_agent_that_is_killed_and_restarted_with_its_data() {
        let mut agent = Agent::options().server().start().await;
        let client = client(agent.http_url());
        let mut watch = watching(&client).await;
        agent.kill();
        until_status(&mut watch, |status| matches!(status, Status::Stale(_))).await;
        assert_eq!(value(&watch.latest().unwrap()), Some(&b"before"[..]));
        agent.restart_with_data().await;
        until_status(&mut watch, Status::is_live).await;
        put(&client, "after").await;
        until(&mut watch, b"after").await;
    }

    /// A server that has just become leader answers before it has read its log back: for half a
    /// second, after eight thousand writes, it said that there was nothing.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_server_that_reads_back_a_long_log_takes_nothing_from_a_watch() {
        const WRITES: usize = 4_000;
        let mut agent = Agent::options().server().start().await;
        let client = client(agent.http_url());
        let mut writing = JoinSet::new();
        for writer in 0..8 {
            let client = client.clone();
            writing.spawn(async move {
                for number in 0..WRITES / 8 {
                    let put = client.kv().put(format!("log/{writer}/{number}"), "x");
                    put.await.expect("a server that leads");
                }
            });
        }
        writing.join_all().await;
        // The last of all, so that it is read back last.
        let mut watch = watching(&client).await;
        let mut seen = watch.clone();
        let looking = async {
            loop {
                let snapshot = seen.changed().await.expect("the runtime lives");
                assert!(!snapshot.is_empty(), "emptied: {seen:?}");
            }
        };
        let crash = async {
            agent.kill();
            until_status(&mut watch, |status| matches!(status, Status::Stale(_))).await;
            agent.restart_with_data().await;
            until_status(&mut watch, Status::is_live).await;
            put(&client, "after").await;
            until(&mut watch, b"after").await;
        };
        tokio::select! {
            () = looking => {}
            () = crash => {}
        }
    }

    #[tokio::test]
    async fn a_watch_follows_an_agent_that_lost_all_its_data() {
        let mut agent = Agent::start().await;
        let client = client(agent.http_url());
        // A high index, which the new state will not reach for a long time.
        for n in 0..200 {
            client.kv().put("other", n.to_string()).await.unwrap();
        }
        let mut watch = watching(&client).await;
        agent.wipe_and_restart().await;
        let gone = timeout(PATIENCE, async {
            while !watch.changed().await.unwrap().is_empty() {}
        });
        gone.await.expect("the loss is told");
        put(&client, "after").await;
        until(&mut watch, b"after").await;
    }

    #[tokio::test]
    async fn a_frozen_agent_makes_a_watch_stale_only_when_it_owes_an_answer() {
        let agent = Agent::start().await;
        let client = client(agent.http_url());
        let mut watch = watching(&client).await;
        agent.freeze();
        // A new watch has no answer and no content; the old one still has what it was told.
        let other = client.kv().get("other").watch().unwrap();
        let refused = timeout(Duration::from_secs(1), other.ready()).await;
        assert!(refused.is_err(), "a frozen agent answered");
        assert_eq!(value(&watch.latest().unwrap()), Some(&b"before"[..]));
        agent.thaw();
        timeout(PATIENCE, other.ready()).await.unwrap().unwrap();
        put(&client, "after").await;
        until(&mut watch, b"after").await;
    }

    #[tokio::test]
    async fn a_cut_network_is_told_and_a_mended_one_is_used_at_once() {
        let agent = Agent::start().await;
        let proxy = Proxy::start(agent.http_addr()).await.unwrap();
        let mut watch = watching(&client(proxy.url())).await;
        proxy.cut();
        proxy.reset_open();
        let status = until_status(&mut watch, |status| status.error().is_some()).await;
        assert!(status.error().unwrap().is_transient(), "{status:?}");
        put(&client(agent.http_url()), "after").await;
        proxy.resume();
        until(&mut watch, b"after").await;
        until_status(&mut watch, Status::is_live).await;
    }

    #[tokio::test]
    async fn a_connection_that_dies_silently_ends_with_the_query_s_deadline() {
        // The deadline of a query from before the first answer is the client's own, 5 s here.
        let agent = Agent::start().await;
        let proxy = Proxy::start(agent.http_addr()).await.unwrap();
        proxy.black_hole();
        let mut watch = client(proxy.url()).kv().get("watched").watch().unwrap();
        let started = Instant::now();
        let status = until_status(&mut watch, |status| status.error().is_some()).await;
        assert_eq!(status.error().unwrap().kind(), ErrorKind::Timeout);
        assert!(started.elapsed() < Duration::from_secs(8));
        proxy.resume();
        timeout(PATIENCE, watch.ready()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_restored_snapshot_is_seen_although_its_index_is_lower() {
        let agent = Agent::options().server().start().await;
        let client = client(agent.http_url());
        let watch = watching(&client).await;
        let url = format!("{}/v1/snapshot", agent.http_url());
        let snapshot = http::get(&url).await.unwrap().body;
        drop(watch);
        for n in 0..100 {
            client.kv().put("other", n.to_string()).await.unwrap();
        }
        put(&client, "newer").await;
        let mut watch = client.kv().get("watched").watch().unwrap();
        until(&mut watch, b"newer").await;
        assert!(http::put(&url, snapshot).await.unwrap().is_success());
        let started = Instant::now();
        until(&mut watch, b"before").await;
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "a query hung with an index the server does not have"
        );
    }

    #[tokio::test]
    async fn a_revoked_token_leaves_the_last_good_content_and_says_why() {
        let agent = Agent::options().acl().start().await;
        let root = Client::builder()
            .address(agent.http_url())
            .token(agent.management_token())
            .build()
            .unwrap();
        put(&root, "before").await;
        let token = agent
            .create_token("reader", r#"key "watched" { policy = "read" }"#)
            .await;
        let reader = Client::builder()
            .address(agent.http_url())
            .token(&token.secret)
            .build()
            .unwrap();
        let mut watch = reader.kv().get("watched").watch().unwrap();
        until(&mut watch, b"before").await;
        agent.revoke_token(&token).await;
        // The query in flight was allowed; the change that ends it brings the next one.
        put(&root, "after").await;
        let status = until_status(&mut watch, |status| status.error().is_some()).await;
        assert!(status.error().unwrap().is_permission_denied(), "{status:?}");
        assert!(watch.latest().is_some_and(|all| all.len() == 1));
    }

    #[tokio::test]
    async fn a_watch_of_any_server_does_not_notice_that_the_leader_was_killed() {
        let mut cluster = Cluster::start(3).await;
        let leader = cluster.leader().await;
        let follower = (leader + 1) % 3;
        let client = client(cluster.servers[follower].http_url());
        let mut watch = watching(&client).await;
        cluster.servers[leader].kill();
        put(&client, "after").await;
        until(&mut watch, b"after").await;
        assert!(watch.status().is_live());
    }
}
