//! What all tests here begin with: instances of a service, and channels to it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lictor::Client;
use lictor_tower::channel::{Builder, Channel, EndpointStatus};
use lictor_tower::endpoint::Target;
use lictor_tower::source::HealthSource;
use support::consul::Agent;
use support::instance::Instance;
use support::{eventually, is_long};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;

/// The longest wait for what happens within a second or two on a machine at rest.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Instances of one service.
pub(crate) struct Stage {
    client: Client,
    service: String,
    pub(crate) instances: Vec<Instance>,
    /// Too much load at one time is a test of the machine.
    _turn: Option<SemaphorePermit<'static>>,
}

/// Requests a second.
pub(crate) fn rate() -> u32 {
    if is_long() { 1_500 } else { 300 }
}

impl Stage {
    /// So many instances, registered at this agent, for a test with much load.
    pub(crate) async fn of(agent: &Agent, count: usize) -> Self {
        static TURNS: Semaphore = Semaphore::const_new(2);
        // All of them, where each is to have the machine for itself.
        let turns = if is_long() { 2 } else { 1 };
        let turn = TURNS.acquire_many(turns).await.expect("never closed");
        let stage = Self::beside_others(agent, count).await;
        Self {
            _turn: Some(turn),
            ..stage
        }
    }

    /// The same for a test with little load, which waits for no other.
    pub(crate) async fn beside_others(agent: &Agent, count: usize) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let service = format!("chaos-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        Self {
            client: client(agent),
            instances: instances(agent, &service, 0, count).await,
            service,
            _turn: None,
        }
    }

    pub(crate) fn service(&self) -> &str {
        &self.service
    }

    /// A channel to all instances, when it knows them.
    pub(crate) async fn channel(
        &self,
        options: impl FnOnce(Builder<HealthSource>) -> Builder<HealthSource>,
    ) -> Channel {
        let builder = Channel::builder(self.client.clone()).service(&self.service);
        let channel = options(builder).build().expect("good options");
        let count = self.instances.len();
        eventually(SOON, async || channel.endpoints().len() == count).await;
        channel
    }

    pub(crate) fn target(&self, at: usize) -> Target {
        target(&self.instances[at])
    }
}

pub(crate) fn client(agent: &Agent) -> Client {
    let builder = Client::builder().address(agent.http_url());
    builder.build().expect("a plain address")
}

/// Starts so many instances side by side, numbered from `first` on.
pub(crate) async fn instances(
    agent: &Agent,
    service: &str,
    first: usize,
    count: usize,
) -> Vec<Instance> {
    let mut starting = JoinSet::new();
    for number in first..first + count {
        let (url, service) = (agent.http_url(), service.to_owned());
        starting.spawn(async move {
            let id = format!("{service}-{number}");
            Instance::start(env!("CARGO_BIN_EXE_backend"), &url, &service, &id).await
        });
    }
    let mut started = starting.join_all().await;
    started.sort_by(|one, other| one.id().cmp(other.id()));
    started
}

pub(crate) fn target(instance: &Instance) -> Target {
    Target::try_from(instance.addr()).expect("an address")
}

/// How an endpoint fares, if the channel knows it.
pub(crate) fn status(channel: &Channel, target: &Target) -> Option<EndpointStatus> {
    let all = channel.endpoints();
    all.into_iter().find(|one| one.target == *target)
}

/// Says something past what captures the output, so that a run tells what it measured.
pub(crate) fn tell(what: std::fmt::Arguments<'_>) {
    use std::io::Write;

    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test").to_owned();
    let line = format!("{test}: {what}\n");
    std::io::stderr().write_all(line.as_bytes()).ok();
}
