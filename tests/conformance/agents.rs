//! The two agents behind one face, and the tally of what ran on each.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::time::Duration;

use lictor::Client;
use support::{consul, tally};

/// The agent a case runs on.
#[derive(Debug)]
pub(crate) struct TestAgent {
    kind: Kind,
    http_url: String,
    dns_addr: SocketAddr,
    prefix: String,
}

/// Which of the two agents it is; for the few lines of a case that must differ, with a reason.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// `lictor::embedded::Agent`.
    Embedded,
    /// A real Consul of this version.
    Consul(u32, u32),
}

impl TestAgent {
    /// Which of the two it is.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Its HTTP API, a URL without a slash at its end.
    pub(crate) fn http_url(&self) -> String {
        self.http_url.clone()
    }

    /// Its DNS, over UDP and TCP.
    pub(crate) fn dns_addr(&self) -> SocketAddr {
        self.dns_addr
    }

    /// A client of it.
    pub(crate) fn client(&self) -> Client {
        let client = Client::builder().address(self.http_url());
        client.build().expect("an address without surprises")
    }

    /// How many sessions have `part` in their names.
    pub(crate) async fn sessions(&self, part: &str) -> usize {
        let all = self.client().session().list().await.unwrap();
        all.iter()
            .filter(|session| session.name().contains(part))
            .count()
    }

    /// A name that no other case uses: `stem` with something before it that is this case's own.
    ///
    /// It is good for a service, a node, a key and a DNS label alike.
    pub(crate) fn name(&self, stem: &str) -> String {
        format!("{}-{stem}", self.prefix)
    }
}

/// What `waiting` brings when `change` is made while it waits; fails if that takes too long.
pub(crate) async fn woken<T>(
    waiting: impl IntoFuture<Output = T>,
    change: impl AsyncFnOnce(),
) -> T {
    let both = async { tokio::join!(waiting.into_future(), change()).0 };
    let soon = tokio::time::timeout(Duration::from_secs(20), both);
    soon.await.expect("it is woken")
}

/// Runs a case on an embedded agent of its own.
pub(crate) async fn on_embedded(test: &str, case: impl AsyncFnOnce(&TestAgent)) {
    let embedded = lictor::embedded::Agent::start()
        .await
        .expect("the loopback interface gives a port");
    let agent = TestAgent {
        kind: Kind::Embedded,
        http_url: embedded.http_url(),
        dns_addr: embedded.dns_addr(),
        prefix: prefix(test),
    };
    counted(test, &agent, case).await;
    embedded.stop().await;
}

/// Runs a case on the real Consul that all cases of this binary share.
pub(crate) async fn on_consul(test: &str, case: impl AsyncFnOnce(&TestAgent)) {
    let real = consul::Agent::shared().await;
    let (major, minor) = real.version();
    let agent = TestAgent {
        kind: Kind::Consul(major, minor),
        http_url: real.http_url(),
        dns_addr: real.dns_addr(),
        prefix: prefix(test),
    };
    counted(test, &agent, case).await;
}

/// Every case adds a line to the tally when it begins and one when it has passed.
async fn counted(test: &str, agent: &TestAgent, case: impl AsyncFnOnce(&TestAgent)) {
    let on = match agent.kind() {
        Kind::Embedded => "embedded",
        Kind::Consul(..) => "consul",
    };
    tally(&format!("ran {on} {test}"));
    case(agent).await;
    tally(&format!("passed {on} {test}"));
}

/// Nine characters that begin with a letter, from the test's name and a seed of this process.
fn prefix(test: &str) -> String {
    let hash = RandomState::new().hash_one(test);
    format!("t{:08x}", hash >> 32)
}
