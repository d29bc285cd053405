//! Locks while the real Consul that they are held at breaks: never two holders.

mod consul {
    use std::sync::Arc;
    use std::time::Duration;

    use lictor::Client;
    use lictor::coordination::{LockGuard, LossCause, Permit, Profile};
    use support::consul::{Agent, Cluster};
    use support::eventually;
    use support::proxy::Proxy;
    use tokio::sync::Barrier;
    use tokio::task::JoinSet;
    use tokio::time::{Instant, sleep, timeout};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn client(url: impl Into<String>) -> Client {
        let client = Client::builder().address(url);
        client.build().expect("a plain address")
    }

    async fn acquire(client: &Client, key: &str, profile: Profile) -> LockGuard {
        let lock = client.lock(key).profile(profile);
        let guard = timeout(PATIENCE, lock.acquire()).await;
        guard.expect("it is taken in time").expect("it is taken")
    }

    async fn sessions(client: &Client, of: &str) -> usize {
        let all = client.session().list().await.unwrap();
        all.iter()
            .filter(|session| session.name().contains(of))
            .count()
    }

    /// Twenty rounds at once: each a holder whose path to Consul goes silent, and a contender.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_holder_that_is_cut_off_stops_before_the_next_one_holds() {
        let agent = Agent::start().await;
        let proxy = Proxy::start(agent.http_addr()).await.unwrap();
        let (cut_off, direct) = (client(proxy.url()), client(agent.http_url()));
        let mut rounds = JoinSet::new();
        let (ready, mut holding) = tokio::sync::mpsc::channel(20);
        let (silence, _) = tokio::sync::watch::channel(false);
        for round in 0..20 {
            let (cut_off, direct) = (cut_off.clone(), direct.clone());
            let (ready, mut silence) = (ready.clone(), silence.subscribe());
            rounds.spawn(async move {
                let key = format!("round-{round}");
                let guard = acquire(&cut_off, &key, Profile::fast()).await;
                ready.send(()).await.unwrap();
                let next = async {
                    let next = acquire(&direct, &key, Profile::fast()).await;
                    (Instant::now(), next)
                };
                let former = async {
                    silence.wait_for(|silent| *silent).await.unwrap();
                    let cut = Instant::now();
                    let lost = guard.lost().await;
                    assert_eq!(lost.cause(), LossCause::Unproven);
                    assert!(guard.check().is_err());
                    (cut, Instant::now())
                };
                let ((held, next), (cut, lost)) = tokio::join!(next, former);
                assert!(lost < held, "{key}: both believe for {:?}", lost - held);
                assert!(
                    lost - cut <= Duration::from_secs(3),
                    "{key}: {:?}",
                    lost - cut
                );
                assert!(next.token() > guard.token());
                next.release().await.unwrap();
                (lost - cut, held - cut)
            });
        }
        for _ in 0..20 {
            holding.recv().await.unwrap();
        }
        eventually(PATIENCE, async || sessions(&direct, "round-").await == 40).await;
        proxy.black_hole();
        silence.send_replace(true);
        let mut slowest = (Duration::ZERO, Duration::ZERO);
        while let Some(round) = rounds.join_next().await {
            let (lost, held) = round.unwrap();
            slowest = (slowest.0.max(lost), slowest.1.max(held));
        }
        println!(
            "cut off: lost after at most {:?}, held again after {:?}",
            slowest.0, slowest.1
        );
    }

    #[tokio::test]
    async fn a_leader_of_the_servers_that_dies_costs_no_lock() {
        let mut cluster = Cluster::start(3).await;
        let leader = cluster.leader().await;
        let other = (leader + 1) % 3;
        let client = client(cluster.servers[other].http_url());
        let guard = acquire(&client, "job", Profile::balanced()).await;
        let token = guard.token();
        cluster.servers[leader].kill();
        let lost = timeout(Duration::from_secs(15), guard.lost()).await;
        assert!(lost.is_err(), "{lost:?}");
        guard.check().unwrap();
        let pair = client.kv().get("job").consistent().await.unwrap();
        assert_eq!(
            pair.value().as_ref().unwrap().session(),
            Some(guard.session())
        );
        guard.release().await.unwrap();
        let next = acquire(&client, "job", Profile::balanced()).await;
        assert!(next.token() > token);
    }

    /// Twenty-five rounds at once, with three contenders each that try without a pause.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn contenders_that_hammer_do_not_get_in_before_the_lock_delay_is_over() {
        const DELAY: Duration = Duration::from_secs(5);
        let agent = Agent::start().await;
        let client = client(agent.http_url());
        let mut rounds = JoinSet::new();
        for round in 0..25 {
            let client = client.clone();
            rounds.spawn(async move {
                let key = format!("hammered-{round}");
                let profile = Profile::balanced()
                    .lock_delay(DELAY)
                    .belief(Duration::from_secs(4));
                let guard = acquire(&client, &key, profile).await;
                let mut hammers = JoinSet::new();
                // All three have been refused once.
                let hammering = Arc::new(Barrier::new(4));
                for hammer in 0..3 {
                    let (client, key) = (client.clone(), key.clone());
                    let hammering = Arc::clone(&hammering);
                    hammers.spawn(async move {
                        let lease = client.lease().name(format!("{key} {hammer}"));
                        let lease = lease.build().unwrap();
                        let lock = client.lock(key.as_str()).lease(&lease);
                        assert!(lock.try_acquire().await.unwrap().acquired().is_none());
                        hammering.wait().await;
                        loop {
                            if let Some(guard) = lock.try_acquire().await.unwrap().acquired() {
                                return (Instant::now(), guard);
                            }
                            sleep(Duration::from_millis(20)).await;
                        }
                    });
                }
                hammering.wait().await;
                // The delay begins when the servers end the session, which is after this.
                let destroyed = Instant::now();
                client.session().destroy(guard.session()).await.unwrap();
                guard.lost().await;
                let lost = Instant::now();
                let (held, next) = hammers.join_next().await.unwrap().unwrap();
                assert!(lost < held, "{key}: both believe");
                let waited = held - destroyed;
                assert!(
                    waited + Duration::from_millis(100) >= DELAY,
                    "{key}: {waited:?}"
                );
                drop(next);
            });
        }
        while let Some(round) = rounds.join_next().await {
            round.unwrap();
        }
    }

    /// A semaphore's document has no lock-delay of its own; the places have one all the same.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn contenders_that_hammer_do_not_get_a_place_before_its_lock_delay_is_over() {
        const DELAY: Duration = Duration::from_secs(4);
        let agent = Agent::start().await;
        let client = client(agent.http_url());
        let mut rounds = JoinSet::new();
        for round in 0..15 {
            let client = client.clone();
            rounds.spawn(async move {
                let prefix = format!("hammered-{round}");
                let profile = Profile::balanced()
                    .lock_delay(DELAY)
                    .belief(Duration::from_secs(3));
                let semaphore = client.semaphore(&prefix, 2);
                let stays = semaphore.acquire().await.unwrap();
                let dies = semaphore.clone().profile(profile).acquire().await.unwrap();
                let mut hammers: JoinSet<(Instant, Permit)> = JoinSet::new();
                for hammer in 0..3 {
                    let lease = client.lease().name(format!("{prefix} {hammer}"));
                    let semaphore = semaphore.clone().lease(&lease.build().unwrap());
                    hammers.spawn(async move {
                        loop {
                            if let Some(permit) = semaphore.try_acquire().await.unwrap() {
                                return (Instant::now(), permit);
                            }
                            sleep(Duration::from_millis(20)).await;
                        }
                    });
                }
                sleep(Duration::from_millis(300)).await;
                // The delay begins when the servers end the session, which is after this.
                let destroyed = Instant::now();
                client.session().destroy(dies.session()).await.unwrap();
                dies.lost().await;
                let lost = Instant::now();
                let (held, next) = hammers.join_next().await.unwrap().unwrap();
                assert!(lost < held, "{prefix}: three believe");
                let waited = held - destroyed;
                assert!(
                    waited + Duration::from_millis(100) >= DELAY,
                    "{prefix}: {waited:?}"
                );
                stays.check().unwrap();
                assert!(next.token() > dies.token());
            });
        }
        while let Some(round) = rounds.join_next().await {
            round.unwrap();
        }
    }

    /// Its path to Consul goes silent: it stops before another one has the place.
    #[tokio::test]
    async fn one_that_is_cut_off_stops_before_another_one_has_its_place() {
        let agent = Agent::start().await;
        let proxy = Proxy::start(agent.http_addr()).await.unwrap();
        let (cut_off, direct) = (client(proxy.url()), client(agent.http_url()));
        let semaphore = cut_off.semaphore("uploads", 1).profile(Profile::fast());
        let permit = semaphore.acquire().await.unwrap();
        let (lost, next) = tokio::join!(
            async {
                eventually(PATIENCE, async || sessions(&direct, "uploads").await == 2).await;
                proxy.black_hole();
                assert_eq!(permit.lost().await.cause(), LossCause::Unproven);
                Instant::now()
            },
            async {
                let semaphore = direct.semaphore("uploads", 1);
                let next = timeout(PATIENCE, semaphore.acquire()).await;
                (Instant::now(), next.unwrap().unwrap())
            },
        );
        assert!(lost < next.0, "both believe");
        assert!(next.1.token() > permit.token());
        next.1.release().await.unwrap();
    }

    /// Thirty that want three places, again and again: never more than three at once.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_that_contend_are_never_more_than_there_are_places() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicUsize, Ordering};

        let agent = Agent::start().await;
        let client = client(agent.http_url());
        let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut all = JoinSet::new();
        for _ in 0..30 {
            let semaphore = client.semaphore("crowd", 3);
            let (inside, most) = (Arc::clone(&inside), Arc::clone(&most));
            all.spawn(async move {
                for _ in 0..3 {
                    let permit = semaphore.acquire().await.unwrap();
                    let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    permit.check().unwrap();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    permit.release().await.unwrap();
                }
            });
        }
        let started = Instant::now();
        let done = timeout(PATIENCE, async {
            while let Some(one) = all.join_next().await {
                one.unwrap();
            }
        });
        done.await.expect("all had their turns in time");
        println!("ninety turns in {:?}", started.elapsed());
        assert!((1..=3).contains(&most.load(Ordering::SeqCst)));
        let places = client.semaphore("crowd", 3).explain().await.unwrap();
        assert!(places.taken().is_empty(), "{places}");
    }

    #[tokio::test]
    async fn an_agent_that_leaves_costs_the_lock_before_the_next_one_holds() {
        let server = Agent::start().await;
        let mut agent = Agent::options().client_of(&server).start().await;
        let (leaving, staying) = (client(agent.http_url()), client(server.http_url()));
        let guard = acquire(&leaving, "job", Profile::balanced()).await;
        let (lost, (), next) = tokio::join!(
            async {
                guard.lost().await;
                Instant::now()
            },
            async {
                eventually(PATIENCE, async || sessions(&staying, "job").await == 2).await;
                agent.leave().await;
            },
            async {
                let next = acquire(&staying, "job", Profile::balanced()).await;
                (Instant::now(), next)
            },
        );
        assert!(lost < next.0, "both believe");
        assert!(next.1.token() > guard.token());
    }
}
