//! lictor and the reference client exclude each other: `consul lock`, which is made of it, and a
//! program of our own (`tests/go`), where Go is on the machine. Of events and prepared queries both are
//! told the same.

mod calls;

mod consul {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Stdio;
    use std::time::Duration;

    use lictor::Client;
    use lictor::api::kv::Pair;
    use lictor::coordination::Attempt;
    use support::consul::{Agent, binary};
    use support::{eventually, left_out};
    use tokio::io::{AsyncBufReadExt, BufReader, Lines};
    use tokio::process::{Child, ChildStdin, ChildStdout, Command};
    use tokio::sync::OnceCell;

    pub(crate) const LONG: Duration = Duration::from_secs(60);
    const LOCK: u64 = 0x2ddc_cbc0_58a5_0c18;
    const SEMAPHORE: u64 = 0xe0f6_9a2b_aa41_4de0;

    pub(crate) fn client(agent: &Agent) -> Client {
        let client = Client::builder().address(agent.http_url());
        client.build().expect("a plain address")
    }

    async fn document(client: &Client, prefix: &str) -> Pair {
        let pair = client.kv().get(format!("{prefix}/.lock")).await.unwrap();
        pair.into_value().expect("it is there")
    }

    /// `consul lock` with a command that says that it runs, and runs until it is told to end.
    struct Reference {
        child: Child,
        runs: PathBuf,
        end: PathBuf,
        folder: PathBuf,
    }

    impl Reference {
        fn start(agent: &Agent, prefix: &str, places: Option<u32>) -> Self {
            let folder = std::env::temp_dir().join(format!(
                "lictor-interop-{}-{}",
                std::process::id(),
                prefix.replace('/', "-")
            ));
            fs::remove_dir_all(&folder).ok();
            fs::create_dir_all(&folder).unwrap();
            let (runs, end) = (folder.join("runs"), folder.join("end"));
            let mut command = Command::new(binary().expect("a Consul"));
            command.arg("lock").arg("-http-addr").arg(agent.http_url());
            if let Some(places) = places {
                command.arg(format!("-n={places}"));
            }
            command.arg(prefix).arg(format!(
                "touch '{}'; while [ ! -e '{}' ]; do sleep 0.02; done; rm '{}'",
                runs.display(),
                end.display(),
                runs.display()
            ));
            command.stdin(Stdio::null()).stdout(Stdio::null());
            let child = command.stderr(Stdio::null()).kill_on_drop(true).spawn();
            Self {
                child: child.expect("consul starts"),
                runs,
                end,
                folder,
            }
        }

        fn runs(&self) -> bool {
            self.runs.exists()
        }

        async fn running(&self) {
            eventually(LONG, async || self.runs()).await;
        }

        async fn end(mut self) {
            fs::write(&self.end, "").unwrap();
            let status = tokio::time::timeout(LONG, self.child.wait()).await;
            assert!(status.expect("it ends").unwrap().success());
        }
    }

    impl Drop for Reference {
        fn drop(&mut self) {
            // A shell whose parent is killed sees its order to end.
            fs::write(&self.end, "").ok();
            fs::remove_dir_all(&self.folder).ok();
        }
    }

    /// Waits until the reference client waits, which it does by a session.
    async fn waits(client: &Client) {
        eventually(LONG, async || {
            let sessions = client.session().list().await.unwrap();
            sessions
                .iter()
                .any(|session| session.name().starts_with("Consul lock"))
        })
        .await;
    }

    #[tokio::test]
    async fn a_lock_of_the_reference_client_keeps_lictor_out_until_it_ends() {
        let agent = Agent::start().await;
        let client = client(&agent);
        let theirs = Reference::start(&agent, "jobs/theirs", None);
        theirs.running().await;
        let lock = client.lock("jobs/theirs/.lock").value("ours");
        match lock.try_acquire().await.unwrap() {
            Attempt::Held(holder) => assert!(holder.session().is_some()),
            other => panic!("{other:?}"),
        }
        let runs = theirs.runs.clone();
        let ((), guard) = tokio::join!(theirs.end(), lock.acquire());
        let guard = guard.unwrap();
        assert!(!runs.exists(), "both held");
        let held = document(&client, "jobs/theirs").await;
        assert_eq!(held.flags(), LOCK);
        assert_eq!(held.session(), Some(guard.session()));
        guard.release().await.unwrap();
        let left = document(&client, "jobs/theirs").await;
        assert_eq!((left.flags(), left.value()), (LOCK, &b"ours"[..]));
        assert_eq!(left.session(), None);
    }

    #[tokio::test]
    async fn a_lock_of_lictor_keeps_the_reference_client_out_until_it_is_released() {
        let agent = Agent::start().await;
        let client = client(&agent);
        let lock = client.lock("jobs/ours/.lock");
        let guard = lock.acquire().await.unwrap();
        let theirs = Reference::start(&agent, "jobs/ours", None);
        waits(&client).await;
        assert!(!theirs.runs(), "both hold");
        guard.check().unwrap();
        guard.release().await.unwrap();
        theirs.running().await;
        assert!(lock.try_acquire().await.unwrap().acquired().is_none());
        theirs.end().await;
    }

    #[tokio::test]
    async fn both_share_the_places_of_a_semaphore() {
        let agent = Agent::start().await;
        let client = client(&agent);
        let semaphore = client.semaphore("jobs/shared", 2);
        let ours = semaphore.acquire().await.unwrap();
        let theirs = Reference::start(&agent, "jobs/shared", Some(2));
        theirs.running().await;
        assert!(semaphore.try_acquire().await.unwrap().is_none());
        let places = semaphore.explain().await.unwrap();
        assert_eq!(places.taken().len(), 2);
        // Another limit is refused by both.
        let err = client.semaphore("jobs/shared", 3).acquire().await;
        assert!(err.unwrap_err().to_string().contains("limit is 2"));
        // A place that one gives back is the other's, and both ways.
        let ((), second) = tokio::join!(theirs.end(), semaphore.acquire());
        let second = second.unwrap();
        ours.check().unwrap();
        second.check().unwrap();
        let next = Reference::start(&agent, "jobs/shared", Some(2));
        eventually(LONG, async || {
            semaphore.explain().await.unwrap().waiting() == 1
        })
        .await;
        assert!(!next.runs(), "three hold");
        second.release().await.unwrap();
        next.running().await;
        assert_eq!(document(&client, "jobs/shared").await.flags(), SEMAPHORE);
        ours.check().unwrap();
        ours.release().await.unwrap();
        next.end().await;
    }

    #[tokio::test]
    async fn each_refuses_what_is_the_others_kind() {
        let agent = Agent::start().await;
        let client = client(&agent);
        let permit = client.semaphore("jobs/kind", 2).acquire().await.unwrap();
        // `consul lock` of one place is a plain lock on the document of a semaphore.
        let mut theirs = Reference::start(&agent, "jobs/kind", None);
        let status = tokio::time::timeout(LONG, theirs.child.wait()).await;
        assert!(!status.expect("it gives up").unwrap().success());
        permit.check().unwrap();
        permit.release().await.unwrap();
    }

    /// The reference client's program, built once; `None` where it cannot be, which is told.
    pub(crate) async fn go() -> Option<&'static Path> {
        static BUILT: OnceCell<Result<PathBuf, String>> = OnceCell::const_new();
        match BUILT.get_or_init(build).await {
            Ok(program) => Some(program),
            Err(why) => {
                left_out("go", why);
                None
            }
        }
    }

    async fn build() -> Result<PathBuf, String> {
        let go = |arguments: &[&str]| {
            let mut command = Command::new("go");
            command
                .args(arguments)
                .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("go"))
                .stdin(Stdio::null())
                .kill_on_drop(true);
            async move { tokio::time::timeout(LONG, command.output()).await }
        };
        // What the machine lacks is told apart from what is wrong with the program.
        let modules = match go(&["list", "-deps", "."]).await {
            Ok(Ok(modules)) => modules,
            Ok(Err(_)) => return Err("Go is not on this machine".to_owned()),
            Err(_) => return Err("Go's modules are not to be had in time".to_owned()),
        };
        if !modules.status.success() {
            let complaint = String::from_utf8_lossy(&modules.stderr);
            let line = complaint.lines().last().unwrap_or_default();
            return Err(format!("Go's modules are not to be had: {line}"));
        }
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lictor-tests-go");
        let output = program.to_str().expect("a path in UTF-8");
        let built = go(&["build", "-trimpath", "-o", output, "."]).await;
        let built = built.expect("it is built in time").unwrap();
        let complaint = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{complaint}");
        Ok(program)
    }

    /// The reference client in a process of its own: it takes something, and gives it back when it
    /// is told to end.
    struct Go {
        child: Child,
        input: ChildStdin,
        lines: Lines<BufReader<ChildStdout>>,
        session: String,
    }

    impl Go {
        /// What it wants is one of `lock`, `try-lock`, `semaphore` and `try-semaphore`.
        async fn start(agent: &Agent, program: &Path, want: &str, name: &str, limit: u32) -> Self {
            let mut child = Command::new(program)
                .args([agent.http_url().as_str(), want, name])
                .args([limit.to_string().as_str(), "theirs"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .expect("it starts");
            let output = child.stdout.take().expect("its output");
            let mut go = Self {
                input: child.stdin.take().expect("its input"),
                child,
                lines: BufReader::new(output).lines(),
                session: String::new(),
            };
            go.session = go.says().await.expect("its session");
            go
        }

        /// Its next line; `None` if it has ended.
        async fn says(&mut self) -> Option<String> {
            let line = tokio::time::timeout(LONG, self.lines.next_line()).await;
            line.expect("it says something").unwrap()
        }

        async fn holds(&mut self) {
            assert_eq!(self.says().await.as_deref(), Some("holds"));
        }

        /// Whether a try is refused, because others hold.
        async fn refused(mut self) -> bool {
            let refused = self.says().await.as_deref() == Some("refused");
            self.end().await;
            refused
        }

        /// Has it give back what it holds, and end.
        async fn end(self) {
            let Self {
                mut child, input, ..
            } = self;
            drop(input);
            let status = tokio::time::timeout(LONG, child.wait()).await;
            assert!(status.expect("it ends").unwrap().success());
        }

        /// Waits for the end of one that gives up by itself.
        async fn gives_up(mut self) {
            assert_eq!(self.says().await, None);
            let status = tokio::time::timeout(LONG, self.child.wait()).await;
            assert!(!status.expect("it ends").unwrap().success());
        }
    }

    async fn pair(client: &Client, key: &str) -> Pair {
        let pair = client.kv().get(key).await.unwrap().into_value();
        pair.expect("it is there")
    }

    #[tokio::test]
    async fn a_lock_of_the_go_client_and_one_of_lictor_exclude_each_other() {
        let Some(program) = go().await else { return };
        let agent = Agent::start().await;
        let client = client(&agent);
        let key = "jobs/go";
        let mut theirs = Go::start(&agent, program, "lock", key, 0).await;
        theirs.holds().await;
        let lock = client.lock(key);
        match lock.try_acquire().await.unwrap() {
            Attempt::Held(holder) => {
                assert_eq!(holder.session().unwrap().as_str(), theirs.session);
                assert_eq!(holder.value(), b"theirs");
            }
            other => panic!("{other:?}"),
        }

        // Theirs is released: ours holds, and what it found stands there.
        let ((), guard) = tokio::join!(theirs.end(), lock.acquire());
        let guard = guard.unwrap();
        let held = pair(&client, key).await;
        assert_eq!((held.flags(), held.value()), (LOCK, &b"theirs"[..]));
        assert_eq!(held.session(), Some(guard.session()));
        assert!(
            Go::start(&agent, program, "try-lock", key, 0)
                .await
                .refused()
                .await,
            "both hold"
        );

        // Ours is released: whoever waits holds.
        let mut next = Go::start(&agent, program, "lock", key, 0).await;
        guard.check().unwrap();
        guard.release().await.unwrap();
        next.holds().await;
        assert!(lock.try_acquire().await.unwrap().acquired().is_none());
        next.end().await;

        // Nobody holds: a value of ours stays, and is theirs to take.
        let ours = lock.value("ours").acquire().await.unwrap();
        ours.release().await.unwrap();
        let left = pair(&client, key).await;
        assert_eq!((left.flags(), left.value()), (LOCK, &b"ours"[..]));
        assert_eq!(left.session(), None);
        let mut last = Go::start(&agent, program, "try-lock", key, 0).await;
        last.holds().await;
        last.end().await;
    }

    #[tokio::test]
    async fn the_go_client_and_lictor_share_the_places_of_a_semaphore() {
        let Some(program) = go().await else { return };
        let agent = Agent::start().await;
        let client = client(&agent);
        let prefix = "jobs/go-places";
        let semaphore = client.semaphore(prefix, 2);
        let mut theirs = Go::start(&agent, program, "semaphore", prefix, 2).await;
        theirs.holds().await;
        let ours = semaphore.acquire().await.unwrap();
        for (session, value) in [
            (theirs.session.as_str(), &b"theirs"[..]),
            (ours.session().as_str(), b""),
        ] {
            let entry = pair(&client, &format!("{prefix}/{session}")).await;
            assert_eq!((entry.flags(), entry.value()), (SEMAPHORE, value));
        }
        let document = document(&client, prefix).await;
        assert_eq!((document.flags(), document.session()), (SEMAPHORE, None));

        // Both places are taken, for both, and both know how many there are.
        assert!(semaphore.try_acquire().await.unwrap().is_none());
        let third = Go::start(&agent, program, "try-semaphore", prefix, 2).await;
        assert!(third.refused().await, "three hold");
        let other = Go::start(&agent, program, "semaphore", prefix, 3).await;
        other.gives_up().await;

        // A place that one gives back is the other's, and both ways.
        let ((), second) = tokio::join!(theirs.end(), semaphore.acquire());
        let second = second.unwrap();
        let mut next = Go::start(&agent, program, "semaphore", prefix, 2).await;
        eventually(LONG, async || {
            semaphore.explain().await.unwrap().waiting() == 1
        })
        .await;
        ours.check().unwrap();
        second.check().unwrap();
        second.release().await.unwrap();
        next.holds().await;
        assert!(semaphore.try_acquire().await.unwrap().is_none());
        ours.check().unwrap();
        ours.release().await.unwrap();
        next.end().await;
        assert_eq!(semaphore.explain().await.unwrap().taken().len(), 0);
    }

    #[tokio::test]
    async fn the_go_client_and_lictor_refuse_what_is_not_of_the_kind() {
        let Some(program) = go().await else { return };
        let agent = Agent::start().await;
        let client = client(&agent);
        let permit = client.semaphore("jobs/kind", 2).acquire().await.unwrap();
        let theirs = Go::start(&agent, program, "lock", "jobs/kind/.lock", 0).await;
        theirs.gives_up().await;
        permit.check().unwrap();
        permit.release().await.unwrap();

        let mut theirs = Go::start(&agent, program, "semaphore", "jobs/places", 2).await;
        theirs.holds().await;
        let err = client.lock("jobs/places/.lock").acquire().await;
        assert!(err.unwrap_err().to_string().contains("semaphore"));
        theirs.end().await;
    }
}
