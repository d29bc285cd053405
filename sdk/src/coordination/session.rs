//! The session behind a lease: how it is made, proven and ended.

use std::time::Duration;

use tokio::time::Instant;

use super::clock::Clock;
use crate::api::agent::{CheckDefinition, ServiceDefinition};
use crate::api::health::Status;
use crate::api::session::NewSession;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::ident::SessionId;
use crate::proto::backoff::Backoff;
use crate::proto::lease::{Proof, Terms};

/// What is needed to make a session, and to find it again.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) terms: Terms,
    /// Its name, which no other session has.
    pub(super) name: String,
    /// The ID of the service, and of the check, that it is bound to.
    pub(super) check: Option<String>,
}

/// The service that the checks of leases belong to.
const SERVICE: &str = "lictor-lease";

/// How long an answer is waited for while there is no session yet, or no more.
const PATIENCE: Duration = Duration::from_secs(5);

impl Plan {
    pub(super) fn new(terms: Terms, name: Option<&str>) -> Self {
        let nonce: u64 = rand::random();
        let name = match name {
            Some(name) => format!("{name} (lictor {nonce:016x})"),
            None => format!("lictor {nonce:016x}"),
        };
        let check = terms.check.map(|_| format!("{SERVICE}-{nonce:016x}"));
        Self { terms, name, check }
    }

    fn session(&self) -> NewSession {
        // Without a word about checks, Consul would bind it to the node's own health.
        let session = NewSession::new()
            .name(self.name.as_str())
            .ttl(self.terms.ttl)
            .lock_delay(self.terms.lock_delay)
            .no_checks();
        match &self.check {
            Some(check) => session.service_checks([check.as_str()]),
            None => session,
        }
    }
}

/// A session that was just made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) id: SessionId,
    /// The request that made it was sent then.
    pub(super) sent: Instant,
    /// So was the one that registered the check it is bound to.
    pub(super) beaten: Option<Instant>,
}

pub(super) async fn make(client: &Client, plan: &Plan, clock: Clock) -> Result<Made> {
    let beaten = match (&plan.check, plan.terms.check) {
        (Some(id), Some(ttl)) => {
            let sent = clock.now();
            let check = CheckDefinition::ttl(ttl)
                .id(id.as_str())
                .name("lictor lease")
                .status(Status::Passing)
                .deregister_critical_service_after(Duration::from_secs(60));
            let service = ServiceDefinition::new(SERVICE).id(id.as_str()).check(check);
            let registered = client.agent().register(&service).timeout(PATIENCE).await;
            registered.map_err(|err| err.at("the check that the lease's session is bound to"))?;
            Some(sent)
        }
        _ => None,
    };
    let sent = clock.now();
    let created = client.session().create(&plan.session()).timeout(PATIENCE);
    let id = match created.await {
        Ok(id) => id,
        Err(err) if matches!(err.kind(), ErrorKind::Timeout | ErrorKind::Transport) => {
            match find(client, &plan.name).await {
                Ok(Some(id)) => id,
                _ => return Err(given_up(client, plan, err).await),
            }
        }
        Err(err) => return Err(nowhere(client, given_up(client, plan, err).await)),
    };
    Ok(Made { id, sent, beaten })
}

/// The session of this name: the answer to its creation was lost.
async fn find(client: &Client, name: &str) -> Result<Option<SessionId>> {
    let all = client.session().list().consistent().timeout(PATIENCE);
    let all = all.await?.into_value();
    let found = all.iter().find(|session| session.name() == name);
    Ok(found.map(|session| session.id().clone()))
}

/// A session belongs to a node of the datacenter that it is in: what is wrong if there is none.
fn nowhere(client: &Client, err: Error) -> Error {
    let is_refused = err.kind() == ErrorKind::Refused;
    match client.datacenter() {
        Some(datacenter) if err.kind() == ErrorKind::UnknownDatacenter => {
            err.at(&format!("a session in datacenter {datacenter:?}"))
        }
        // Consul took longer than the check's TTL between the two requests: another try may be faster.
        _ if is_refused && err.to_string().contains("is in critical state") => {
            Error::new(ErrorKind::Timeout)
                .context("a session: the check that it is bound to had expired before it was made")
                .caused_by(err)
        }
        Some(datacenter) if is_refused => err.at(&format!(
            "a session in datacenter {datacenter:?}, where the agent's own node is to be: ask an \
             agent of that datacenter"
        )),
        // An agent that was started a moment ago; it tells the servers of itself soon.
        None if is_refused && err.to_string().contains("Missing node registration") => {
            Error::new(ErrorKind::NoLeader)
                .context("a session: the servers do not know the agent's node yet")
                .caused_by(err)
        }
        _ => err,
    }
}

/// Takes back what was registered for a session that could not be made.
async fn given_up(client: &Client, plan: &Plan, err: Error) -> Error {
    if let Some(check) = &plan.check {
        let deregister = client.agent().deregister(check.as_str());
        // It turns critical and is removed by Consul, if this does not arrive.
        deregister.timeout(PATIENCE).await.ok();
    }
    err
}

/// Asks Consul for one proof: whether the session is there.
pub(super) async fn prove(
    client: &Client,
    session: &SessionId,
    plan: &Plan,
    proof: Proof,
    patience: Duration,
) -> Result<bool> {
    match proof {
        Proof::Renewal => {
            let renewed = client.session().renew(session).timeout(patience).await?;
            Ok(renewed.is_some())
        }
        Proof::Reading => {
            let info = client.session().info(session).consistent().beat();
            Ok(info.timeout(patience).await?.into_value().is_some())
        }
        Proof::Beat => {
            let check = plan.check.as_deref().unwrap_or_default();
            let update = client.agent().update_check(check, Status::Passing, "");
            update.timeout(patience).await.map(|()| true)
        }
    }
}

/// Ends the session, and the check that it was bound to.
pub(super) async fn end(
    client: &Client,
    session: &SessionId,
    plan: &Plan,
    deadline: Instant,
) -> Result<()> {
    let destroy = || client.session().destroy(session).timeout(PATIENCE).send();
    let destroyed = repeated(deadline, destroy).await;
    if let Some(check) = &plan.check {
        let deregister = || client.agent().deregister(check.as_str());
        let deregister = || deregister().timeout(PATIENCE).send();
        match repeated(deadline, deregister).await {
            Err(err) if err.kind() == ErrorKind::UnknownService => {}
            other => other?,
        }
    }
    destroyed
}

/// Repeats what failed for the moment, as long as there is time.
pub(super) async fn repeated<F>(deadline: Instant, mut request: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send,
{
    let mut pause = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    loop {
        let err = match request().await {
            Ok(()) => return Ok(()),
            Err(err) => err,
        };
        let wait = pause.next(rand::random());
        if !err.is_transient() || Instant::now() + wait >= deadline {
            return Err(err);
        }
        tokio::time::sleep(wait).await;
    }
}
