//! Locks while an operator of the real Consul does what clients do not expect.

mod consul {
    use std::time::Duration;

    use lictor::api::kv::Pair;
    use lictor::coordination::{FencingToken, LockGuard, LossCause, Profile, Released};
    use lictor::{Client, ErrorKind};
    use support::consul::Agent;
    use support::eventually;
    use tokio::task::JoinSet;
    use tokio::time::{Instant, sleep_until, timeout};

    const PATIENCE: Duration = Duration::from_secs(60);

    /// What a guard is told within, where a watch of its key tells it; proofs take longer.
    const SOON: Duration = Duration::from_secs(2);

    fn client(agent: &Agent) -> Client {
        let client = Client::builder().address(agent.http_url());
        client.build().expect("a plain address")
    }

    async fn acquire(client: &Client, key: &str) -> LockGuard {
        acquire_as(client, key, Profile::balanced()).await
    }

    async fn acquire_as(client: &Client, key: &str, profile: Profile) -> LockGuard {
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

    async fn pair(client: &Client, key: &str) -> Option<Pair> {
        client
            .kv()
            .get(key)
            .consistent()
            .await
            .unwrap()
            .into_value()
    }

    /// Somebody who waits for the key, and when they had it.
    fn contender(client: &Client, key: &str, all: &mut JoinSet<(Instant, LockGuard)>) {
        let (client, key) = (client.clone(), key.to_owned());
        all.spawn(async move {
            let guard = acquire(&client, &key).await;
            (Instant::now(), guard)
        });
    }

    /// Held long enough to be watched, which what is let go at once is not.
    async fn watched(since: Instant) {
        sleep_until(since + Duration::from_millis(700)).await;
    }

    #[tokio::test]
    async fn a_session_destroyed_while_contenders_wait_lets_one_in_after_the_lock_delay() {
        const DELAY: Duration = Duration::from_secs(3);
        let agent = Agent::start().await;
        let client = client(&agent);
        let profile = Profile::balanced()
            .lock_delay(DELAY)
            .belief(Duration::from_millis(2800));
        let guard = acquire_as(&client, "job", profile).await;
        let mut contenders = JoinSet::new();
        for _ in 0..3 {
            contender(&client, "job", &mut contenders);
        }
        eventually(PATIENCE, async || sessions(&client, "job").await == 4).await;
        client.session().destroy(guard.session()).await.unwrap();
        let destroyed = Instant::now();
        let lost = guard.lost().await;
        let told = Instant::now();
        assert_eq!(lost.cause(), LossCause::SessionGone);
        assert!(told - destroyed <= SOON, "{:?}", told - destroyed);
        let mut newest = guard.token();
        for place in 0..3 {
            let (held, next) = contenders.join_next().await.unwrap().unwrap();
            assert!(told < held, "both believe");
            assert!(next.token() > newest);
            newest = next.token();
            if place == 0 {
                let waited = held - destroyed;
                assert!(waited + Duration::from_millis(50) >= DELAY, "{waited:?}");
                assert!(waited <= DELAY + SOON, "{waited:?}");
            }
            // The others went on waiting, and have their turns.
            assert!(contenders.try_join_next().is_none(), "two hold");
            assert_eq!(next.release().await.unwrap(), Released::Unlocked);
        }
    }

    #[tokio::test]
    async fn a_contender_whose_session_is_destroyed_waits_on_by_another() {
        let agent = Agent::start().await;
        let client = client(&agent);
        let guard = acquire(&client, "job").await;
        let lease = client.lease().name("waits").build().unwrap();
        let first = lease.session().await.unwrap();
        let lock = client.lock("job").lease(&lease);
        let (next, ()) = tokio::join!(lock.acquire(), async {
            client.session().destroy(&first).await.unwrap();
            let another = async || {
                let all = client.session().list().await.unwrap();
                all.iter()
                    .any(|session| session.name().contains("waits") && *session.id() != first)
            };
            eventually(PATIENCE, another).await;
            guard.check().unwrap();
            guard.release().await.unwrap();
        });
        let next = next.unwrap();
        assert_ne!(*next.session(), first);
        next.release().await.unwrap();
    }

    /// Ten keys that are held and waited for are deleted: there is no lock-delay, as documented.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_deleted_key_is_told_within_milliseconds_and_the_next_one_enters_at_once() {
        let agent = Agent::start().await;
        let client = client(&agent);
        let mut held = Vec::new();
        for round in 0..10 {
            let key = format!("deleted-{round}");
            let guard = acquire(&client, &key).await;
            let mut next = JoinSet::new();
            contender(&client, &key, &mut next);
            held.push((key, guard, next));
        }
        eventually(PATIENCE, async || sessions(&client, "deleted").await == 20).await;
        watched(Instant::now()).await;
        let mut rounds = JoinSet::new();
        for (key, guard, mut next) in held {
            let client = client.clone();
            rounds.spawn(async move {
                client.kv().delete(key.as_str()).await.unwrap();
                let deleted = Instant::now();
                let (lost, next) = tokio::join!(
                    async {
                        let lost = guard.lost().await;
                        assert_eq!(lost.cause(), LossCause::KeyGone);
                        assert!(guard.check().is_err());
                        deleted.elapsed()
                    },
                    next.join_next()
                );
                let (held, next) = next.unwrap().unwrap();
                assert!(lost <= SOON, "{lost:?}");
                assert!(held - deleted <= SOON, "{:?}", held - deleted);
                // The key's own counter began again; the token did not.
                let pair = pair(&client, &key).await.unwrap();
                assert_eq!(pair.lock_index(), 1);
                assert!(next.token() > guard.token());
                assert_eq!(guard.release().await.unwrap(), Released::WasLost);
                next.check().unwrap();
                (lost, held - deleted)
            });
        }
        let mut slowest = (Duration::ZERO, Duration::ZERO);
        while let Some(round) = rounds.join_next().await {
            let (lost, held) = round.unwrap();
            slowest = (slowest.0.max(lost), slowest.1.max(held));
        }
        println!(
            "deleted: told after at most {:?}, held again after at most {:?}",
            slowest.0, slowest.1
        );
    }

    #[tokio::test]
    async fn a_plain_write_to_a_held_key_changes_nothing_but_its_value_and_counter() {
        let agent = Agent::start().await;
        let client = client(&agent);
        let mut newest: Option<FencingToken> = None;
        for _ in 0..3 {
            let guard = acquire(&client, "job").await;
            let taken = Instant::now();
            let token = guard.token();
            assert!(newest.is_none_or(|newest| newest < token));
            watched(taken).await;
            let before = pair(&client, "job").await.unwrap();
            assert!(before.lock_index() >= 1);
            client.kv().put("job", "plain").await.unwrap();
            let after = pair(&client, "job").await.unwrap();
            assert_eq!(after.lock_index(), 0, "Consul has forgotten how often");
            assert_eq!(after.session(), Some(guard.session()));
            let cas = client.kv().put("job", "cas").cas(after.modify_index());
            assert!(cas.await.unwrap());
            let other = client.lock("job").try_acquire().await.unwrap();
            assert!(other.acquired().is_none());
            guard.check().unwrap();
            assert_eq!(guard.token(), token);
            let kv = client.kv();
            kv.fenced(&guard).put("data", "fenced").await.unwrap();
            assert_eq!(guard.release().await.unwrap(), Released::Unlocked);
            let left = pair(&client, "job").await.unwrap();
            assert_eq!((left.value(), left.session()), (&b"cas"[..], None));
            newest = Some(token);
        }
    }

    #[tokio::test]
    async fn a_restored_snapshot_leaves_the_holder_of_its_time_its_lock() {
        let agent = Agent::start().await;
        let client = client(&agent);
        let guard = acquire(&client, "job").await;
        let snapshot = agent.snapshot().await;
        let mut next = JoinSet::new();
        contender(&client, "job", &mut next);
        eventually(PATIENCE, async || sessions(&client, "job").await == 2).await;
        for n in 0..20 {
            client.kv().put("other", n.to_string()).await.unwrap();
        }
        agent.restore(&snapshot).await;
        // The contender's session is not in it: it needs another one, and waits on.
        eventually(PATIENCE, async || sessions(&client, "job").await == 2).await;
        let lease = guard.lease().clone();
        let lost = timeout(Duration::from_secs(11), guard.lost()).await;
        assert!(lost.is_err(), "{lost:?}");
        assert!(lease.state().is_held());
        assert!(next.try_join_next().is_none(), "two hold");
        let kv = client.kv();
        kv.fenced(&guard).put("data", "fenced").await.unwrap();
        let token = guard.token();
        assert_eq!(guard.release().await.unwrap(), Released::Unlocked);
        let (_, next) = next.join_next().await.unwrap().unwrap();
        assert!(next.token() > token);
    }

    #[tokio::test]
    async fn a_restored_snapshot_takes_away_what_was_taken_since() {
        taken_away_by_a_snapshot(LossCause::SessionGone).await;
    }

    #[tokio::test]
    async fn a_restored_snapshot_takes_away_what_older_sessions_have_taken_since() {
        taken_away_by_a_snapshot(LossCause::KeyGone).await;
    }

    async fn taken_away_by_a_snapshot(cause: LossCause) {
        let agent = Agent::start().await;
        let client = client(&agent);
        let lease = || client.lease().name("lease").build().unwrap();
        let (former, later) = (lease(), lease());
        let mut snapshot = agent.snapshot().await;
        if cause == LossCause::KeyGone {
            former.session().await.unwrap();
            later.session().await.unwrap();
            snapshot = agent.snapshot().await;
        }
        let guard = client.lock("job").lease(&former).acquire().await.unwrap();
        let taken = Instant::now();
        let next = async {
            let lock = client.lock("job").lease(&later);
            let next = timeout(PATIENCE, lock.acquire()).await;
            (guard.check(), Instant::now(), next.unwrap().unwrap())
        };
        let restored = async {
            eventually(PATIENCE, async || sessions(&client, "lease").await == 2).await;
            watched(taken).await;
            agent.restore(&snapshot).await;
            let restored = Instant::now();
            let lost = guard.lost().await;
            assert_eq!(lost.cause(), cause);
            (restored, restored.elapsed())
        };
        let ((believed, held, next), (restored, lost)) = tokio::join!(next, restored);
        let held = held.saturating_duration_since(restored);
        println!("restored: {cause:?} told after {lost:?}, held again after {held:?}");
        assert!(lost <= SOON, "{lost:?}");
        assert!(believed.is_err(), "both believe");
        // The lock-delay that the servers have forgotten is waited for. A contender whose session
        // is gone, too, learns that meanwhile.
        assert!(held >= Duration::from_secs(9), "{held:?}");
        // On the same servers the index goes on, behind all that it was before.
        assert!(next.token() > guard.token());
        let kv = client.kv();
        let stale = kv.fenced(&guard).put("data", "stale").await.unwrap_err();
        assert_eq!(stale.kind(), ErrorKind::Conflict);
        kv.fenced(&next).put("data", "fenced").await.unwrap();
        next.release().await.unwrap();
    }

    #[tokio::test]
    async fn a_restored_snapshot_makes_the_servers_forget_a_lock_delay_but_not_the_loss() {
        let agent = Agent::start().await;
        let client = client(&agent);
        let snapshot = agent.snapshot().await;
        let guard = acquire(&client, "job").await;
        client.session().destroy(guard.session()).await.unwrap();
        let destroyed = Instant::now();
        let mut next = JoinSet::new();
        contender(&client, "job", &mut next);
        guard.lost().await;
        let told = Instant::now();
        assert!(told - destroyed <= SOON);
        eventually(PATIENCE, async || sessions(&client, "job").await == 1).await;
        agent.restore(&snapshot).await;
        let (held, next) = next.join_next().await.unwrap().unwrap();
        assert!(told < held, "both believe");
        let waited = held - destroyed;
        assert!(waited < Duration::from_secs(9), "{waited:?}");
        assert!(next.token() > guard.token());
    }

    /// A session that ended since is there again, and nobody renews it.
    #[tokio::test]
    async fn a_restored_snapshot_holds_a_key_for_the_dead_until_their_ttl_is_over() {
        const TTL: Duration = Duration::from_secs(2);
        let options = Agent::options().config("session_ttl_min", "1s".into());
        let agent = options.start().await;
        let client = client(&agent);
        let profile = Profile::balanced()
            .servers_ttl_min(Duration::from_secs(1))
            .ttl(TTL);
        let guard = acquire_as(&client, "job", profile).await;
        let token = guard.token();
        let snapshot = agent.snapshot().await;
        guard.release().await.unwrap();
        agent.restore(&snapshot).await;
        let restored = Instant::now();
        let next = acquire(&client, "job").await;
        let waited = restored.elapsed();
        // Twice its TTL, and its lock-delay.
        assert!(waited >= 2 * TTL, "{waited:?}");
        assert!(waited <= 3 * TTL + SOON, "{waited:?}");
        assert!(next.token() > token);
    }

    #[tokio::test]
    async fn a_snapshot_in_other_servers_sets_tokens_back_to_its_time() {
        let mut agent = Agent::options().server().start().await;
        let client = client(&agent);
        let before = acquire(&client, "job").await;
        let of_then = before.token();
        before.release().await.unwrap();
        let snapshot = agent.snapshot().await;
        for n in 0..50 {
            client.kv().put("other", n.to_string()).await.unwrap();
        }
        let newest = acquire(&client, "job").await;
        let token = newest.token();
        newest.release().await.unwrap();
        agent.wipe_and_restart().await;
        agent.restore(&snapshot).await;
        let next = acquire(&client, "job").await;
        assert!(next.token() > of_then);
        assert!(
            next.token() < token,
            "what is written to must forget, as documented"
        );
        next.release().await.unwrap();
    }
}
