//! Registrations while the real Consul that they are kept on breaks.
//!
//! Every test ends by looking whether a task is left over.

mod consul {
    use std::fs;
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use lictor::api::agent::{CheckDefinition, ServiceDefinition};
    use lictor::api::health::Status;
    use lictor::probe::{Health, Probe};
    use lictor::registration::{Event, Happening, Registration, State};
    use lictor::{Client, ErrorKind};
    use support::consul::Agent;
    use support::proxy::Proxy;
    use support::{eventually, free_port, is_long};
    use tokio::runtime::{Handle, Runtime};
    use tokio::time::{Instant, sleep, timeout};

    const PATIENCE: Duration = Duration::from_secs(60);
    const TTL: Duration = Duration::from_secs(10);

    fn client(agent: &Agent) -> Client {
        let client = Client::builder().address(agent.http_url());
        client.build().expect("a plain address")
    }

    fn web(id: &str) -> ServiceDefinition {
        ServiceDefinition::new("web")
            .id(id)
            .port(8080)
            .check(CheckDefinition::alive_only(TTL))
    }

    async fn until(registration: &mut Registration, fits: impl Fn(&State) -> bool) {
        let reached = timeout(PATIENCE, async {
            while !fits(&registration.state()) {
                registration.state_changed().await;
            }
        });
        if reached.await.is_err() {
            panic!("{registration:?} after {PATIENCE:?}");
        }
    }

    async fn passes(client: &Client, id: &str) -> bool {
        let Ok(entries) = client.health().service("web").passing().await else {
            return false;
        };
        entries.iter().any(|entry| *entry.service().id() == *id)
    }

    async fn on_agent(client: &Client, id: &str) -> bool {
        let service = client.agent().service(id).await;
        service.is_ok_and(|service| service.is_some())
    }

    /// Waits until only the tasks are left that were there before.
    async fn no_task_is_left(before: usize) {
        let tasks = || Handle::current().metrics().num_alive_tasks();
        eventually(PATIENCE, async || tasks() <= before).await;
    }

    fn tasks() -> usize {
        Handle::current().metrics().num_alive_tasks()
    }

    #[tokio::test]
    async fn an_agent_that_was_killed_and_comes_back_with_its_data_keeps_the_service() {
        let before = tasks();
        let mut agent = Agent::options().server().start().await;
        let client = client(&agent);
        let mut registration = client.register(web("web-1")).await.unwrap();
        agent.kill();
        until(&mut registration, |state| {
            matches!(state, State::Healing { .. })
        })
        .await;
        agent.restart_with_data().await;
        until(&mut registration, State::is_registered).await;
        eventually(PATIENCE, async || passes(&client, "web-1").await).await;
        registration.close().await.unwrap();
        assert!(!on_agent(&client, "web-1").await);
        drop(client);
        no_task_is_left(before).await;
    }

    /// How long the catalog of `server` was without the service at a stretch, at most.
    async fn longest_absence(server: &Client, until: impl Future<Output = ()>) -> Duration {
        let mut until = std::pin::pin!(until);
        let (mut longest, mut gone) = (Duration::ZERO, None::<Instant>);
        loop {
            if let Ok(instances) = server.catalog().service("web").await {
                match instances.is_empty() {
                    true => drop(gone.get_or_insert_with(Instant::now)),
                    false => gone = None,
                }
            }
            let lasts = gone.map_or(Duration::ZERO, |since| since.elapsed());
            longest = longest.max(lasts);
            tokio::select! {
                () = &mut until => return longest,
                () = sleep(Duration::from_millis(5)) => {}
            }
        }
    }

    #[tokio::test]
    async fn wiped_again_and_again_the_catalog_is_never_without_the_service_for_a_second() {
        let before = tasks();
        let server = Agent::start().await;
        let id = "0f3c7a52-2f5e-4c0e-9a53-6d1c2b7e4f11";
        let options = Agent::options().client_of(&server).node_id(id);
        let mut agent = options.start().await;
        let (client, catalog) = (client(&agent), client(&server));
        let mut registration = client.register(web("web-1")).await.unwrap();
        eventually(PATIENCE, async || passes(&catalog, "web-1").await).await;
        let rounds = if is_long() { 20 } else { 3 };
        let mut gaps = Vec::new();
        for _ in 0..rounds {
            let wiped = async {
                agent.wipe_and_restart().await;
                until(&mut registration, State::is_registered).await;
                // Whatever the agent removes, it has removed by then.
                sleep(Duration::from_secs(4)).await;
                eventually(PATIENCE, async || passes(&catalog, "web-1").await).await;
            };
            gaps.push(longest_absence(&catalog, wiped).await);
        }
        let healed = registration
            .history()
            .into_iter()
            .filter_map(|event| match event.what {
                Happening::Healed(after) => Some(after),
                _ => None,
            });
        println!(
            "{rounds} rounds, gaps {gaps:?}, healed after {:?}",
            healed.collect::<Vec<_>>()
        );
        let longest = gaps.iter().max().copied().unwrap_or_default();
        assert!(longest < Duration::from_secs(1), "{gaps:?}");
        registration.close().await.unwrap();
        drop((client, catalog));
        no_task_is_left(before).await;
    }

    fn conflicts(registration: &Registration) -> usize {
        let history = registration.history();
        let conflict = |event: &&Event| matches!(event.what, Happening::Conflict(Some(_)));
        history.iter().filter(conflict).count()
    }

    #[tokio::test]
    async fn twins_of_one_id_both_report_it_within_a_second_and_do_not_fight() {
        let before = tasks();
        let agent = Agent::start().await;
        let client = client(&agent);
        let one = client.register(web("web-1")).await.unwrap();
        let two = client.register(web("web-1").port(8081)).await.unwrap();
        let registered = Instant::now();
        eventually(PATIENCE, async || {
            conflicts(&one) > 0 && conflicts(&two) > 0 && matches!(one.state(), State::Yielded)
        })
        .await;
        let took = registered.elapsed();
        println!("both know after {took:?}");
        assert!(took < Duration::from_secs(1), "{took:?}");
        let index = async || {
            let service = client.health().service("web").await.unwrap();
            assert_eq!(service.len(), 1);
            assert_eq!(service[0].port(), 8081);
            service.meta().index()
        };
        eventually(PATIENCE, async || two.state().is_registered()).await;
        let quiet = index().await;
        sleep(TTL).await;
        assert_eq!(index().await, quiet, "somebody registers still");
        assert!(passes(&client, "web-1").await);
        assert_eq!((conflicts(&one), conflicts(&two)), (1, 1));
        two.close().await.unwrap();
        eventually(PATIENCE, async || {
            let service = client.agent().service("web-1").await.unwrap();
            service
                .as_ref()
                .is_some_and(|service| service.port() == 8080)
        })
        .await;
        one.close().await.unwrap();
        assert!(!on_agent(&client, "web-1").await);
        drop(client);
        no_task_is_left(before).await;
    }

    #[expect(clippy::disallowed_methods, reason = "this is what is not to be done")]
    #[tokio::test]
    async fn a_runtime_that_is_blocked_for_twice_the_ttl_is_told_of_and_heals() {
        const SHORT: Duration = Duration::from_secs(1);
        let agent = Agent::start().await;
        let client = client(&agent);
        let short = ServiceDefinition::new("web")
            .id("web-1")
            .check(CheckDefinition::alive_only(SHORT));
        let registration = client.register(short).await.unwrap();
        sleep(SHORT / 2).await;
        // Nothing else runs meanwhile: this runtime has one thread.
        std::thread::sleep(SHORT * 2);
        eventually(PATIENCE, async || {
            let history = registration.history();
            let late = |event: &Event| matches!(event.what, Happening::BeatLate(by) if by >= SHORT);
            history.iter().any(late)
        })
        .await;
        eventually(PATIENCE, async || {
            let checks = client.agent().checks().await.unwrap();
            let check = checks.values().next().expect("one");
            check.status() == Status::Passing && check.output().contains("the runtime was starved")
        })
        .await;
        registration.close().await.unwrap();
    }

    #[tokio::test]
    async fn probes_that_hang_panic_and_flap_are_told_by_name_and_the_beat_goes_on() {
        let agent = Agent::start().await;
        let client = client(&agent);
        let short = Duration::from_millis(100);
        let flaps = Arc::new(AtomicUsize::new(0));
        let runs = Arc::clone(&flaps);
        let flapping = move || {
            let bad = runs.fetch_add(1, Ordering::SeqCst) % 2 == 1;
            async move {
                match bad {
                    true => Health::critical("flaps"),
                    false => Health::passing("fine"),
                }
            }
        };
        let check = CheckDefinition::ttl(Duration::from_secs(1));
        let registration = client
            .register(ServiceDefinition::new("web").id("web-1").check(check))
            .probe(Probe::new("hangs", std::future::pending::<()>).interval(short))
            .probe(
                Probe::new("panics", || async {
                    if true {
                        panic!("on purpose")
                    }
                })
                .interval(short),
            )
            .probe(Probe::new("flaps", flapping).interval(short).failures(3))
            .await
            .unwrap();
        // Longer than the TTL: had the beat waited for one, it would have run out.
        for _ in 0..20 {
            let checks = client.agent().checks().await.unwrap();
            let check = checks.values().next().expect("one");
            let text = check.output();
            assert_eq!(check.status(), Status::Critical);
            assert!(
                text.contains("hangs (critical): not back within 100ms"),
                "{text}"
            );
            assert!(
                text.contains("panics (critical): panicked: on purpose"),
                "{text}"
            );
            assert!(!text.contains("flaps"), "{text}");
            sleep(Duration::from_millis(100)).await;
        }
        assert!(flaps.load(Ordering::SeqCst) > 10);
        registration.close().await.unwrap();
    }

    /// Looks at the catalog of `server` all the time and fails when the service is not there.
    async fn never_absent(server: &Client) {
        loop {
            let there = match server.catalog().service("web").await {
                Ok(instances) => !instances.is_empty(),
                // What the server does not say is no absence.
                Err(_) => true,
            };
            assert!(there, "the catalog has lost it");
            sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn an_agent_that_was_wiped_has_the_service_again_before_the_catalog_has_lost_it() {
        let before = tasks();
        let server = Agent::start().await;
        // A wiped agent of the same name is the same node only if it has the same ID.
        let id = "0f3c7a52-2f5e-4c0e-9a53-6d1c2b7e4f10";
        let options = Agent::options().client_of(&server).node_id(id);
        let mut agent = options.start().await;
        let (client, catalog) = (client(&agent), client(&server));
        let mut registration = client.register(web("web-1")).await.unwrap();
        eventually(PATIENCE, async || passes(&catalog, "web-1").await).await;

        let wiped = async {
            agent.kill();
            until(&mut registration, |state| {
                matches!(state, State::Healing { .. })
            })
            .await;
            // Once it has joined the servers, the agent removes from the catalog what it does not
            // have, at a moment that it draws from three seconds, the first included. Whether a
            // registration comes first is then a matter of luck, small as the risk is: the agent
            // is asked twenty times a second. That it comes before the agent can do harm is not.
            agent.wipe_and_restart_alone().await;
            until(&mut registration, State::is_registered).await;
            assert!(on_agent(&client, "web-1").await);
            agent.join(&server).await;
            eventually(PATIENCE, async || passes(&catalog, "web-1").await).await;
        };
        tokio::select! {
            () = never_absent(&catalog) => {}
            () = wiped => {}
        }
        assert!(passes(&catalog, "web-1").await);
        registration.close().await.unwrap();
        drop((client, catalog));
        no_task_is_left(before).await;
    }

    #[tokio::test]
    async fn a_frozen_agent_is_told_of_and_has_the_service_when_it_thaws() {
        let before = tasks();
        let agent = Agent::start().await;
        let client = client(&agent);
        let mut registration = client.register(web("web-1")).await.unwrap();
        agent.freeze();
        until(&mut registration, |state| {
            matches!(state, State::Healing { .. })
        })
        .await;
        // Longer than the TTL, so that the check has run out when it thaws.
        sleep(TTL).await;
        agent.thaw();
        until(&mut registration, State::is_registered).await;
        eventually(PATIENCE, async || passes(&client, "web-1").await).await;
        registration.close().await.unwrap();
        drop(client);
        no_task_is_left(before).await;
    }

    #[tokio::test]
    async fn a_goodbye_to_a_frozen_agent_ends_in_time_and_leaves_no_service() {
        let before = tasks();
        let agent = Agent::start().await;
        let client = client(&agent);
        let registration = client.register(web("web-1")).await.unwrap();
        let dropped = client.register(web("web-2")).await.unwrap();
        agent.freeze();
        drop(dropped);
        let start = Instant::now();
        let err = registration.close().await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Timeout);
        assert!(start.elapsed() < Duration::from_secs(15));
        agent.thaw();
        // The agent still reads what was sent to it.
        eventually(PATIENCE, async || {
            !on_agent(&client, "web-1").await && !on_agent(&client, "web-2").await
        })
        .await;
        drop(client);
        no_task_is_left(before).await;
    }

    #[tokio::test]
    async fn a_service_that_was_overwritten_is_taken_back() {
        let before = tasks();
        let agent = Agent::start().await;
        let client = client(&agent);
        let mut registration = client.register(web("web-1")).await.unwrap();
        for port in 1..4 {
            let other = ServiceDefinition::new("web").id("web-1").port(port);
            client.agent().register(&other).await.unwrap();
            until(&mut registration, |state| matches!(state, State::Contested)).await;
            eventually(PATIENCE, async || {
                let service = client.agent().service("web-1").await.unwrap();
                service
                    .as_ref()
                    .is_some_and(|service| service.port() == 8080)
            })
            .await;
        }
        until(&mut registration, State::is_registered).await;
        assert!(passes(&client, "web-1").await);
        registration.close().await.unwrap();
        drop(client);
        no_task_is_left(before).await;
    }

    struct TokenFile(PathBuf);

    impl TokenFile {
        fn new(secret: &str) -> Self {
            let name = format!("lictor-faults-{}-{}", std::process::id(), free_port());
            let file = Self(std::env::temp_dir().join(name));
            file.write(secret);
            file
        }

        fn write(&self, secret: &str) {
            fs::write(&self.0, secret).expect("a writable folder");
        }
    }

    impl Drop for TokenFile {
        fn drop(&mut self) {
            fs::remove_file(&self.0).ok();
        }
    }

    const RULES: &str =
        r#"service_prefix "" { policy = "write" } node_prefix "" { policy = "read" }"#;

    #[tokio::test]
    async fn a_revoked_token_is_told_of_and_a_new_one_is_used() {
        let before = tasks();
        let agent = Agent::options().acl().start().await;
        let first = agent.create_token("first", RULES).await;
        let file = TokenFile::new(&first.secret);
        let client = Client::builder()
            .address(agent.http_url())
            .token_file(&file.0)
            .build()
            .unwrap();
        let mut registration = client.register(web("web-1")).await.unwrap();
        assert!(passes(&client, "web-1").await);

        agent.revoke_token(&first).await;
        until(&mut registration, |state| {
            matches!(state, State::Denied { .. })
        })
        .await;
        assert!(!format!("{registration:?}").contains(&first.secret));

        let second = agent.create_token("second", RULES).await;
        file.write(&second.secret);
        until(&mut registration, State::is_registered).await;
        eventually(PATIENCE, async || passes(&client, "web-1").await).await;
        registration.close().await.unwrap();
        assert!(!passes(&client, "web-1").await, "{}", agent.log());
        drop(client);
        no_task_is_left(before).await;
    }

    #[tokio::test]
    async fn a_rotated_token_is_taken_up_before_the_old_one_dies() {
        let before = tasks();
        let agent = Agent::options().acl().start().await;
        let first = agent.create_token("first", RULES).await;
        let second = agent.create_token("second", RULES).await;
        let file = TokenFile::new(&first.secret);
        let client = Client::builder()
            .address(agent.http_url())
            .token_file(&file.0)
            .build()
            .unwrap();
        let mut registration = client.register(web("web-1")).await.unwrap();
        file.write(&second.secret);
        // The agent talks to the servers with the token of the registration: once it is the new
        // one, the old one may go.
        sleep(Duration::from_secs(7)).await;
        agent.revoke_token(&first).await;
        registration
            .set_status(Status::Warning, "told with the new token")
            .await
            .unwrap();
        let in_catalog = async || {
            let checks = client.health().checks("web").await.unwrap();
            checks.iter().any(|check| check.status() == Status::Warning)
        };
        eventually(PATIENCE, in_catalog).await;
        until(&mut registration, State::is_registered).await;
        registration.close().await.unwrap();
        drop(client);
        no_task_is_left(before).await;
    }

    #[tokio::test]
    async fn a_token_that_was_rotated_while_the_agent_was_out_of_reach_leaves_no_ghost() {
        let agent = Agent::options().acl().start().await;
        let first = agent.create_token("first", RULES).await;
        let second = agent.create_token("second", RULES).await;
        let file = TokenFile::new(&first.secret);
        let proxy = Proxy::start(agent.http_addr()).await.unwrap();
        let before = tasks();
        let client = Client::builder()
            .address(proxy.url())
            .token_file(&file.0)
            .build()
            .unwrap();
        let registration = client.register(web("web-1")).await.unwrap();
        proxy.cut();
        file.write(&second.secret);
        agent.revoke_token(&first).await;
        // Long enough for a registration with the new token, which fails.
        sleep(Duration::from_secs(8)).await;
        proxy.resume();
        registration.close().await.unwrap();
        let instances = client.catalog().service("web").await.unwrap();
        assert!(instances.is_empty(), "{}", agent.log());
        drop(client);
        no_task_is_left(before).await;
    }

    #[tokio::test]
    async fn node_maintenance_is_switched_on_and_off() {
        let agent = Agent::start().await;
        let client = client(&agent);
        let registration = client.register(web("web-1")).await.unwrap();
        client
            .agent()
            .enable_node_maintenance("disk")
            .await
            .unwrap();
        assert!(!passes(&client, "web-1").await);
        client.agent().disable_node_maintenance().await.unwrap();
        assert!(passes(&client, "web-1").await);
        registration.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_register_that_is_dropped_after_any_step_leaves_nothing() {
        let before = tasks();
        let agent = Agent::start().await;
        let client = client(&agent);
        let mut finished = 0;
        for step in 0..60 {
            let id = format!("web-{step}");
            let limit = Duration::from_micros(100 * step);
            if let Ok(registered) = timeout(limit, client.register(web(&id))).await {
                finished += 1;
                drop(registered.unwrap());
            }
        }
        let none = async || {
            let services = client.agent().services().await.unwrap();
            services.is_empty()
        };
        eventually(PATIENCE, none).await;
        sleep(Duration::from_secs(2)).await;
        assert!(none().await, "one came late");
        println!("{finished} of 60 registrations were done before they were dropped");
        drop(client);
        no_task_is_left(before).await;
    }

    #[test]
    fn a_guard_may_be_dropped_inside_outside_and_after_its_runtime() {
        let runtime = Runtime::new().unwrap();
        let agent = runtime.block_on(Agent::start());
        let client = client(&agent);
        let inside = async || {
            drop(client.register(web("web-1")).await.unwrap());
            eventually(PATIENCE, async || !on_agent(&client, "web-1").await).await;
        };
        runtime.block_on(inside());

        let outside = runtime
            .block_on(client.register(web("web-2")).send())
            .unwrap();
        drop(outside);
        runtime.block_on(eventually(PATIENCE, async || {
            !on_agent(&client, "web-2").await
        }));

        // A runtime of its own, with a client of its own, whose connections live on it.
        let own = Runtime::new().unwrap();
        let short = ServiceDefinition::new("web").id("web-3");
        let short = short.check(CheckDefinition::alive_only(Duration::from_secs(1)));
        let after = own
            .block_on(async { self::client(&agent).register(short).await })
            .unwrap();
        drop(own);
        drop(after);
        // Nobody is left to say goodbye: the check runs out.
        runtime.block_on(eventually(PATIENCE, async || {
            let health = client.agent().health_by_id("web-3").await.unwrap();
            let health = health.into_value().expect("still registered");
            health.status() == Status::Critical
        }));
    }
}
