//! lictor and the reference client exclude each other: `consul lock`, which is made of it.

mod consul {
    use std::fs;
    use std::path::PathBuf;
    use std::process::Stdio;
    use std::time::Duration;

    use lictor::Client;
    use lictor::api::kv::Pair;
    use lictor::coordination::Attempt;
    use support::consul::{Agent, binary};
    use support::eventually;
    use tokio::process::{Child, Command};

    const LONG: Duration = Duration::from_secs(60);
    const LOCK: u64 = 0x2ddc_cbc0_58a5_0c18;
    const SEMAPHORE: u64 = 0xe0f6_9a2b_aa41_4de0;

    fn client(agent: &Agent) -> Client {
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
}
