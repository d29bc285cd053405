//! The requests of a registration, each with what it came to.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::SemaphorePermit;
use tokio::time::Instant;

use super::crowd::{Crowd, Member};
use super::desired::{Desired, Present};
use super::mark::{Boot, LINEAGE};
use crate::api::Answer;
use crate::api::agent::AgentService;
use crate::api::health::Status;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::ident::{ServiceId, Token};

/// A request on its way; none while the place is empty.
pub(super) struct Slot<T>(Option<Pin<Box<dyn Future<Output = T> + Send>>>);

impl<T> Slot<T> {
    pub(super) fn empty() -> Self {
        Self(None)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn start(&mut self, request: impl Future<Output = T> + Send + 'static) {
        self.0 = Some(Box::pin(request));
    }

    /// Drops the request.
    pub(super) fn clear(&mut self) {
        self.0 = None;
    }

    /// What the request came to; pending for ever while there is none.
    ///
    /// Cancel safe: the request goes on at the next call.
    pub(super) async fn done(&mut self) -> T {
        match &mut self.0 {
            None => std::future::pending().await,
            Some(request) => {
                let outcome = request.as_mut().await;
                self.0 = None;
                outcome
            }
        }
    }
}

/// A registration that was tried.
#[derive(Debug)]
pub(super) struct Registered {
    /// Which version of the definition.
    pub(super) version: u64,
    /// Who asked.
    pub(super) token: Option<Token>,
    /// Which life of the service it was.
    pub(super) boot: Option<Boot>,
    pub(super) result: Result<()>,
}

/// Registers what is desired, without losing a maintenance that somebody else switched on.
pub(super) async fn register(client: Client, mut desired: Desired) -> Registered {
    let token = client.current_token();
    let agent = client.agent();
    let look = agent.health_by_id(&*desired.id).await;
    let present = match look.map(Answer::into_value) {
        Ok(Some(health)) => {
            let own = format!("_service_maintenance:{}", desired.id);
            let mut checks = health.checks().iter();
            let found = checks.find(|check| *check.id() == own.as_str());
            let maintenance = found.map(|check| Arc::from(check.notes()));
            let former = Boot::of(health.service());
            let nonce = desired.nonce;
            desired
                .boot
                .get_or_insert_with(|| Boot::after(former, nonce));
            Present::Service { maintenance }
        }
        Ok(None) => Present::Nothing,
        // Without the right to read, or an endpoint for it, what we know ourselves is all there is.
        Err(err) if err.is_permission_denied() || err.kind() == ErrorKind::Unsupported => {
            Present::Nothing
        }
        // To register now could end a maintenance that an operator has switched on.
        Err(err) => {
            return Registered {
                version: desired.version,
                token,
                boot: desired.boot,
                result: Err(err),
            };
        }
    };
    let nonce = desired.nonce;
    desired.boot.get_or_insert_with(|| Boot::after(None, nonce));
    let body = desired.body(present);
    let result = agent.register(&body).replace_existing_checks().await;
    Registered {
        version: desired.version,
        token,
        boot: desired.boot,
        result,
    }
}

/// Heartbeats that were sent together.
#[derive(Debug)]
pub(super) struct Beaten {
    /// Which of the caller's statuses they told.
    pub(super) said: u64,
    pub(super) all: Vec<(Arc<str>, Instant, Result<()>)>,
}

/// One heartbeat to send.
#[derive(Debug)]
pub(super) struct ToBeat {
    pub(super) check: Arc<str>,
    pub(super) status: Status,
    pub(super) output: Arc<str>,
    pub(super) patience: Duration,
}

/// Sends all at once: none waits for the answer to another.
pub(super) async fn beat(
    (client, crowd): (Client, Arc<Crowd>),
    said: u64,
    beats: Vec<ToBeat>,
) -> Beaten {
    let agent = client.agent();
    let crowd = &crowd;
    let mut sent: Vec<_> = beats
        .into_iter()
        .map(|beat| {
            let update = agent
                .update_check(Arc::clone(&beat.check), beat.status, &*beat.output)
                .timeout(beat.patience);
            Box::pin(async move {
                let _turn = crowd.turn().await;
                let sent = Instant::now();
                (beat.check, sent, update.await)
            })
        })
        .collect();
    let mut all = Vec::with_capacity(sent.len());
    while !sent.is_empty() {
        all.push(next_of(&mut sent).await);
    }
    Beaten { said, all }
}

/// The first of these requests that is done, which is taken out; pending for ever if there is none.
async fn next_of<F: Future + Send>(requests: &mut Vec<Pin<Box<F>>>) -> F::Output {
    std::future::poll_fn(|cx| {
        let mut places = requests.iter_mut().enumerate();
        let done = places.find_map(|(place, request)| match request.as_mut().poll(cx) {
            Poll::Ready(output) => Some((place, output)),
            Poll::Pending => None,
        });
        match done {
            Some((place, output)) => {
                requests.swap_remove(place);
                Poll::Ready(output)
            }
            None => Poll::Pending,
        }
    })
    .await
}

/// Waits until the agent's service has another hash, or reads it if there is none to compare.
pub(super) async fn look(
    client: Client,
    id: ServiceId,
    hash: Option<Arc<str>>,
) -> Result<Option<AgentService>> {
    let read = client.agent().service(id.as_str());
    let read = match hash {
        Some(hash) => read.wait_for_change_of(hash, LOOK),
        None => read,
    };
    read.await.map(Answer::into_value)
}

/// What a look at the agent has shown.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) service: Option<AgentService>,
    pub(super) began_at: Instant,
    /// Whether a TTL check of it has run out: whoever beat it is gone.
    pub(super) has_run_out: bool,
}

pub(super) async fn look_at_ours(
    client: Client,
    id: ServiceId,
    hash: Option<Arc<str>>,
) -> Result<Looked> {
    let began_at = Instant::now();
    let service = look(client, id, hash).await?;
    Ok(Looked {
        service,
        began_at,
        has_run_out: false,
    })
}

/// The same for an ID that was left to somebody else, who may die without a word.
pub(super) async fn look_at_theirs(
    client: Client,
    id: ServiceId,
    hash: Option<Arc<str>>,
    ttl: Option<Duration>,
) -> Result<Looked> {
    let wait = ttl.map_or(LOOK, |ttl| ttl.clamp(SHORT_LOOK, LOOK));
    let read = client.agent().service(id.as_str());
    let read = match hash {
        Some(hash) => read.wait_for_change_of(hash, wait),
        None => read,
    };
    let began_at = Instant::now();
    let service = read.await?.into_value();
    let mut has_run_out = false;
    if service.is_some() && ttl.is_some() {
        let health = client.agent().health_by_id(id.as_str()).await?;
        // "TTL expired" (`agent/checks/check.go`, `CheckTTL.run`).
        has_run_out = health.into_value().is_some_and(|health| {
            let mut checks = health.checks().iter();
            checks.any(|check| {
                check.status() == Status::Critical && check.output().starts_with("TTL expired")
            })
        });
    }
    Ok(Looked {
        service,
        began_at,
        has_run_out,
    })
}

/// How often somebody else's service is looked at, at most.
pub(super) const SHORT_LOOK: Duration = Duration::from_secs(1);

/// Deregisters what former selves have left on this agent; which ones those were.
pub(super) async fn tidy_up(client: &Client, desired: &Desired) -> Result<Vec<ServiceId>> {
    let Some(lineage) = desired.lineage.as_deref() else {
        return Ok(Vec::new());
    };
    let name = desired.definition.service_name();
    let services = client.agent().services().await?;
    let left = services.values().filter(|service| {
        *service.name() == **name
            && service.meta().get(LINEAGE) == Some(lineage)
            && *service.id() != desired.id
            && Boot::of(service) != desired.boot
    });
    let mut gone = Vec::new();
    for service in left {
        client.agent().deregister(service.id().as_str()).await?;
        gone.push(service.id().clone());
    }
    Ok(gone)
}

/// How long the agent holds a look at an unchanged service: its state is compared this often even
/// if nothing happens.
pub(super) const LOOK: Duration = Duration::from_secs(60);

pub(super) async fn maintain(
    client: Client,
    id: ServiceId,
    reason: Option<Arc<str>>,
) -> Result<()> {
    let agent = client.agent();
    match reason {
        Some(reason) => agent.enable_service_maintenance(id.as_str(), reason).await,
        None => agent.disable_service_maintenance(id.as_str()).await,
    }
}

/// Deregisters the service, within a deadline.
///
/// With `haunted`, a registration may still be on its way to the agent: then it is repeated until
/// nothing can come late. With `renew`, the agent knows the service by a token that has changed:
/// without the new one, it could not tell the servers.
pub(super) async fn goodbye(
    (client, member): (Client, &Member),
    id: ServiceId,
    renew: Option<Desired>,
    haunted: bool,
) -> Result<()> {
    let turn = member.leave().await;
    let deadline = Instant::now() + GOODBYE;
    let mut last = None;
    let leave = async {
        let haunted = match renew {
            Some(desired) => renewed(&client, &id, desired, &mut last).await || haunted,
            None => haunted,
        };
        deregistered((&client, member), (turn, &id), haunted, &mut last).await
    };
    if let Ok(result) = tokio::time::timeout_at(deadline, leave).await {
        return result;
    }
    let late = Error::new(ErrorKind::Timeout).context(format!(
        "service {:?}: not deregistered within {GOODBYE:?}",
        id.as_str()
    ));
    Err(match last {
        Some(last) => late.caused_by(last),
        None => late,
    })
}

/// Makes the new token known to the agent, if that has the service; tells whether the registration
/// that does it may still be on its way.
///
/// An agent out of reach is waited for, because the goodbye would not reach it either. Whatever
/// else this comes to shows at the goodbye.
async fn renewed(
    client: &Client,
    id: &ServiceId,
    desired: Desired,
    last: &mut Option<Error>,
) -> bool {
    let mut haunted = false;
    let mut pause = PAUSE;
    loop {
        let seen = insist(last, || look(client.clone(), id.clone(), None)).await;
        let outcome = match seen {
            Ok(None) => return haunted,
            Ok(Some(_)) => {
                let register = register(client.clone(), desired.clone());
                let Ok(registered) = tokio::time::timeout(RENEWAL, register).await else {
                    return true;
                };
                registered.result
            }
            Err(err) => Err(err),
        };
        match outcome {
            Err(err) if err.is_connect() => *last = Some(err),
            Err(err) if err.kind() == ErrorKind::Transport => {
                *last = Some(err);
                haunted = true;
            }
            Err(err) => return haunted || err.is_timeout(),
            Ok(()) => return haunted,
        }
        tokio::time::sleep(pause).await;
        pause = longer(pause);
    }
}

async fn deregistered(
    (client, member): (&Client, &Member),
    (mut turn, id): (Option<SemaphorePermit<'_>>, &ServiceId),
    haunted: bool,
    last: &mut Option<Error>,
) -> Result<()> {
    let mut pause = PAUSE;
    let mut confirmations = if haunted { 4 } else { 0 };
    loop {
        let deregister = || {
            let deregister = client.agent().deregister(id.as_str());
            deregister.timeout(GOODBYE).send()
        };
        match insist(last, deregister).await {
            Ok(()) => {}
            Err(err) if err.kind() == ErrorKind::UnknownService => {}
            Err(err) if err.is_transient() => {
                *last = Some(err);
                tokio::time::sleep(pause).await;
                pause = longer(pause);
                continue;
            }
            Err(err) => return Err(err),
        }
        if confirmations == 0 {
            return Ok(());
        }
        confirmations -= 1;
        // Others leave meanwhile.
        drop(turn);
        tokio::time::sleep(pause).await;
        pause = longer(pause);
        turn = member.leave().await;
    }
}

/// Sends a request that may be repeated again, beside the first, as long as no answer comes: the
/// connection that it was sent over may be dead, and then only another one reaches the agent.
///
/// The first answer counts; a transient failure does if nothing else is on its way, and is kept in
/// `last` otherwise.
async fn insist<T, F>(last: &mut Option<Error>, send: impl Fn() -> F + Send) -> Result<T>
where
    T: Send,
    F: Future<Output = Result<T>> + Send,
{
    let mut sent = vec![Box::pin(send())];
    let mut again = Instant::now() + AGAIN;
    loop {
        match tokio::time::timeout_at(again, next_of(&mut sent)).await {
            Ok(Err(err)) if err.is_transient() && !sent.is_empty() => *last = Some(err),
            Ok(answer) => return answer,
            Err(_) => {
                sent.push(Box::pin(send()));
                again += AGAIN;
            }
        }
    }
}

/// How long a goodbye stays without an answer until it is said once more.
///
/// Over a connection that lives, an agent with a leader answers within milliseconds.
const AGAIN: Duration = Duration::from_millis(2500);

/// How long a goodbye may take.
///
/// An agent without a leader removes the service at once, but answers after 7 s (measured).
const GOODBYE: Duration = Duration::from_secs(10);

/// How long a goodbye waits for the agent to take the new token.
///
/// Without a leader the agent takes it at once, too, and answers as late.
const RENEWAL: Duration = Duration::from_secs(4);

/// The first pause between two tries.
const PAUSE: Duration = Duration::from_millis(50);

fn longer(pause: Duration) -> Duration {
    (pause * 2).min(Duration::from_secs(1))
}
