//! A hundred that want one lock: what each hand-over costs the servers.

mod consul {
    use std::collections::BTreeSet;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use lictor::Client;
    use support::consul::Agent;
    use support::{eventually, http};
    use tokio::task::JoinSet;

    const CONTENDERS: usize = 100;
    const ROUNDS: usize = 2;
    const PATIENCE: Duration = Duration::from_secs(120);

    /// How many entries the servers' log has.
    async fn written(agent: &Agent) -> u64 {
        let url = format!("{}/v1/agent/self", agent.http_url());
        let answer = http::get(&url).await.unwrap().json();
        let index = answer["Stats"]["raft"]["last_log_index"].as_str();
        index.expect("a server says it").parse().unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_hundred_in_line_hold_in_order_and_write_three_times_each() {
        // By default it takes 200 connections of one address; each contender has one that waits, and
        // one that proves its lease.
        let limits = serde_json::json!({ "http_max_conns_per_client": 1000 });
        let agent = Agent::options().config("limits", limits).start().await;
        let client = Client::builder().address(agent.http_url());
        let client = client.build().unwrap();
        let guard = client.lock("herd").acquire().await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut contenders = JoinSet::new();
        for _ in 0..CONTENDERS {
            let lease = client.lease().build().unwrap();
            let lock = client.lock("herd").lease(&lease).fair();
            let order = Arc::clone(&order);
            contenders.spawn(async move {
                for _ in 0..ROUNDS {
                    let guard = lock.acquire().await.unwrap();
                    order.lock().unwrap().push(guard.session().clone());
                    guard.release().await.unwrap();
                }
                lease
            });
        }
        let lock = client.lock("herd").fair();
        eventually(PATIENCE, async || {
            lock.explain().await.unwrap().line().len() == CONTENDERS
        })
        .await;
        let explanation = lock.explain().await.unwrap();
        let line: Vec<_> = explanation
            .line()
            .iter()
            .map(|one| one.session().clone())
            .collect();
        let before = written(&agent).await;
        guard.release().await.unwrap();
        let mut leases = Vec::new();
        let all = async {
            while let Some(lease) = contenders.join_next().await {
                // It lives: what its end writes is not to be counted.
                leases.push(lease.unwrap());
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("in time");
        let after = written(&agent).await;
        let order = order.lock().unwrap().clone();
        let (first, second) = order.split_at(CONTENDERS);
        assert_eq!(first, line);
        // Nobody holds again before all others have held.
        let again: BTreeSet<_> = second.iter().collect();
        assert_eq!(again.len(), CONTENDERS);
        let hand_overs = u64::try_from(CONTENDERS * ROUNDS).unwrap();
        let each = (after - before) as f64 / hand_overs as f64;
        // An unlock and a lock, and in one of two rounds a ticket.
        assert!(each < 3.0, "{each} writes for each hand-over");
        let tickets = client.kv().list("herd.queue/").await.unwrap();
        assert_eq!(tickets.len(), 0);
    }
}

mod watches {
    use std::time::Duration;

    use lictor::Client;
    use lictor::api::agent::{CheckDefinition, ServiceDefinition};
    use lictor::api::kv::Pair;
    use lictor::watch::Snapshot;
    use support::consul::Agent;
    use support::eventually;
    use tokio::time::timeout;

    const WATCHES: usize = 400;
    const PATIENCE: Duration = Duration::from_secs(60);

    /// By default Consul takes 200 connections of one address.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn four_hundred_watches_hear_of_changes_and_leave_room_for_heartbeats_and_others() {
        let agent = Agent::start().await;
        let client = || Client::builder().address(agent.http_url()).build().unwrap();
        let (watching, other) = (client(), client());
        let mut watches = Vec::new();
        for number in 0..WATCHES {
            let key = format!("many/{number}");
            watches.push(watching.kv().get(key).watch().unwrap());
        }
        for watch in &watches {
            timeout(PATIENCE, watch.ready()).await.unwrap().unwrap();
        }
        // Only now: there are connections left for it, and for another process.
        let ttl = CheckDefinition::alive_only(Duration::from_secs(3));
        let definition = |id: &str| ServiceDefinition::new("web").id(id).check(ttl.clone());
        let ours = watching.register(definition("ours")).await.unwrap();
        let theirs = other.register(definition("theirs")).await.unwrap();
        for round in 0..2 {
            for number in 0..WATCHES {
                let key = format!("many/{number}");
                other.kv().put(key, round.to_string()).await.unwrap();
            }
            for watch in &mut watches {
                let told = async {
                    let is_new = |now: Snapshot<Pair>| {
                        let pair = now.first().map(|pair| pair.value().to_vec());
                        pair == Some(round.to_string().into_bytes())
                    };
                    while !watch.latest().is_some_and(is_new) {
                        watch.changed().await.unwrap();
                    }
                };
                timeout(PATIENCE, told).await.expect("each hears of it");
                assert!(watch.status().is_live());
            }
            eventually(Duration::from_secs(10), async || {
                let passing = other.health().service("web").passing();
                passing.send().await.unwrap().len() == 2
            })
            .await;
        }
        for registration in [ours, theirs] {
            registration.close().await.unwrap();
        }
    }
}
