//! Holders, leaders and observers whose path to the real Consul goes silent.

mod consul {
    use std::fs;
    use std::path::PathBuf;
    use std::process::Stdio;
    use std::time::{Duration, SystemTime};

    use lictor::Client;
    use lictor::coordination::{LeaderView, LossCause, Next, Profile, Role, Term};
    use support::consul::{Agent, binary};
    use support::proxy::Proxy;
    use support::{eventually, eventually_some};
    use tokio::process::{Child, Command};
    use tokio::sync::oneshot;
    use tokio::task::JoinSet;
    use tokio::time::{Instant, sleep, timeout};

    const LONG: Duration = Duration::from_secs(120);

    fn client(url: impl Into<String>) -> Client {
        let client = Client::builder().address(url);
        client.build().expect("a plain address")
    }

    async fn sessions(client: &Client, of: &str) -> usize {
        let all = client.session().list().await.unwrap();
        all.iter()
            .filter(|session| session.name().contains(of))
            .count()
    }

    /// `consul lock` with work that writes into a file again and again for as long as it runs.
    struct Reference {
        _child: Child,
        folder: PathBuf,
    }

    impl Reference {
        fn start(url: &str, name: &str) -> Self {
            let unique = format!("lictor-cut-off-{}-{name}", std::process::id());
            let folder = std::env::temp_dir().join(unique);
            fs::remove_dir_all(&folder).ok();
            fs::create_dir_all(&folder).unwrap();
            let beat = folder.join("beat");
            let end = folder.join("end");
            let mut command = Command::new(binary().expect("a Consul"));
            command.arg("lock").arg("-http-addr").arg(url);
            command.arg("jobs/reference").arg(format!(
                "while [ ! -e '{}' ]; do : > '{}'; sleep 0.05; done",
                end.display(),
                beat.display(),
            ));
            command.stdin(Stdio::null()).stdout(Stdio::null());
            let child = command.stderr(Stdio::null()).kill_on_drop(true).spawn();
            Self {
                _child: child.expect("consul starts"),
                folder,
            }
        }

        /// When its work was last seen to run.
        fn worked(&self) -> Option<SystemTime> {
            let beat = fs::metadata(self.folder.join("beat")).ok()?;
            beat.modified().ok()
        }
    }

    impl Drop for Reference {
        fn drop(&mut self) {
            // A shell whose parent is killed sees its order to end.
            fs::write(self.folder.join("end"), "").ok();
        }
    }

    /// The same silence for both: what the reference client's holder does, and what lictor's does.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_reference_client_lets_two_work_at_once_and_lictor_does_not() {
        let agent = Agent::start().await;
        let proxy = Proxy::start(agent.http_addr()).await.unwrap();
        let (cut_off, direct) = (client(proxy.url()), client(agent.http_url()));

        let guard = cut_off.lock("jobs/ours").acquire().await.unwrap();
        let first = Reference::start(&proxy.url(), "first");
        eventually(LONG, async || first.worked().is_some()).await;
        let second = Reference::start(&agent.http_url(), "second");
        let mut next = JoinSet::new();
        let contender = direct.lock("jobs/ours");
        next.spawn(async move {
            let next = timeout(LONG, contender.acquire()).await;
            (Instant::now(), next.unwrap().unwrap())
        });
        eventually(LONG, async || {
            sessions(&direct, "jobs/ours").await == 2 && sessions(&direct, "Consul lock").await == 2
        })
        .await;

        proxy.black_hole();
        let cut = Instant::now();
        let ours = async {
            let lost = guard.lost().await;
            assert_eq!(lost.cause(), LossCause::Unproven);
            let lost = Instant::now();
            let (held, next) = next.join_next().await.unwrap().unwrap();
            assert!(lost < held, "both believe");
            assert!(next.token() > guard.token());
            assert!(lost - cut <= Profile::balanced().believed_for());
            assert!(held - cut <= Duration::from_secs(30), "{:?}", held - cut);
            (lost - cut, held - cut)
        };
        let theirs = async {
            let began = eventually_some(LONG, async || second.worked()).await;
            let entered = cut.elapsed();
            // For so long the first one still works while the second one does, and then, too.
            let overlap = Duration::from_secs(3);
            let later = began + overlap;
            eventually(2 * overlap, async || {
                let works = |one: &Reference| one.worked().is_some_and(|worked| worked > later);
                works(&first) && works(&second)
            })
            .await;
            (entered, overlap)
        };
        let ((lost, held), (entered, overlap)) = tokio::join!(ours, theirs);
        println!(
            "cut off, lictor: stopped after {lost:?}, the next one held after {held:?}, no overlap"
        );
        println!(
            "cut off, consul lock: the next one worked after {entered:?}, and both of them for the \
             {overlap:?} that were looked at"
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn roles_and_observers_tell_a_silence_and_its_end() {
        let agent = Agent::start().await;
        let proxy = Proxy::start(agent.http_addr()).await.unwrap();
        let (cut_off, direct) = (client(proxy.url()), client(agent.http_url()));
        let election = cut_off
            .election("leader")
            .candidate("cut off")
            .profile(Profile::fast());
        let (stop, stopped) = oneshot::channel::<()>();
        let mut run = JoinSet::new();
        let stopped = async move { drop(stopped.await) };
        run.spawn(election.run(stopped, async |term: Term| {
            term.stopping().await;
            Next::Stop
        }));
        let becomes = async |is_meant: fn(&Role) -> bool| {
            let mut roles = election.roles();
            let waiting = timeout(LONG, async {
                loop {
                    let role = roles.next().await.expect("the election is there");
                    if is_meant(&role) {
                        return role;
                    }
                }
            });
            waiting.await.expect("in time")
        };
        let Role::Leader { token } = becomes(Role::is_leader).await else {
            panic!("nothing was wrong");
        };
        let mut observer = cut_off.election("leader").observe::<String>().unwrap();
        let mut shows = async |is_meant: fn(&LeaderView<String>) -> bool| {
            let waiting = timeout(LONG, async {
                loop {
                    let view = observer.next().await.expect("the runtime is there");
                    if is_meant(&view) {
                        return view;
                    }
                }
            });
            waiting.await.expect("in time")
        };
        let is_unknown = |view: &LeaderView<String>| matches!(view, LeaderView::Unknown { .. });
        shows(|view| view.leader().is_some()).await;
        // A connection that breaks is noticed at once, and known to be whole again soon.
        let broken = Instant::now();
        proxy.cut();
        shows(is_unknown).await;
        assert!(broken.elapsed() <= Duration::from_secs(1));
        proxy.resume();
        shows(|view| view.leader().is_some()).await;

        // Some proofs come before the silence.
        sleep(Duration::from_secs(3)).await;
        becomes(|role| matches!(role, Role::Leader { .. })).await;
        let next = direct.election("leader").candidate("direct");
        let mut campaign = JoinSet::new();
        campaign.spawn(async move { (next.campaign().await.unwrap(), Instant::now()) });
        eventually(LONG, async || sessions(&direct, "leader").await == 2).await;
        proxy.black_hole();
        let silent = Instant::now();
        let role = becomes(|role| matches!(role, Role::Jeopardy { .. })).await;
        let Role::Jeopardy { deadline, .. } = role else {
            unreachable!()
        };
        let deadline = Instant::from_std(deadline);
        assert!(deadline <= silent + Profile::fast().believed_for());
        becomes(|role| !role.is_leader()).await;
        let stopped = Instant::now();
        assert!(stopped >= deadline);
        let role = becomes(|role| matches!(role, Role::Unknown { .. })).await;
        let Role::Unknown { since, .. } = role else {
            unreachable!()
        };
        let unknown = silent.elapsed();
        assert!(Instant::from_std(since) >= deadline);
        let (leadership, led) = campaign.join_next().await.unwrap().unwrap();
        assert!(stopped < led, "both lead");
        assert!(led - silent <= Duration::from_secs(6), "{:?}", led - silent);
        assert!(leadership.token() > token);

        let LeaderView::Unknown { since, last, .. } = shows(is_unknown).await else {
            unreachable!()
        };
        let noticed = silent.elapsed();
        assert!(noticed <= Duration::from_secs(76), "{noticed:?}");
        assert!(Instant::from_std(since) >= silent);
        assert_eq!(last.unwrap().value().unwrap(), "cut off");
        println!(
            "silence: stopped after {:?}, unknown after {unknown:?}, the next one led after {:?}, \
             observers knew after {noticed:?}",
            stopped - silent,
            led - silent
        );
        proxy.resume();
        let view = shows(|view| view.leader().is_some()).await;
        assert_eq!(view.leader().unwrap().session(), leadership.session());
        becomes(|role| matches!(role, Role::Follower { .. })).await;
        leadership.resign().await.unwrap();
        becomes(Role::is_leader).await;
        stop.send(()).unwrap();
        run.join_next().await.unwrap().unwrap().unwrap();
    }
}
