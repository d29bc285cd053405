//! Sessions, on which locks hang: `/v1/session`.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde::{Deserialize, Deserializer, Serialize};

use super::endpoint::{Answered, answers_with_list};
use super::model::accessors;
use super::{Endpoint, Read, Write};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::ident::{CheckId, NodeName, SessionId};
use crate::proto::duration;
use crate::proto::json::{self, Text};
use crate::proto::query::Target;

impl Client {
    /// Sessions, on which locks hang.
    #[must_use]
    pub fn session(&self) -> Sessions {
        Sessions {
            client: self.clone(),
        }
    }
}

/// Calls about sessions.
///
/// A session belongs to a node. It ends when it is destroyed, when its TTL runs out, when one of
/// the checks it is bound to turns critical or is removed, and when its node leaves; the keys it
/// holds as locks are then released, or deleted.
#[derive(Clone, Debug)]
pub struct Sessions {
    client: Client,
}

impl Sessions {
    /// Makes a session; the answer is its ID.
    ///
    /// Not to be repeated blindly: after a lost answer a session may be there that nobody knows
    /// of. One with a TTL goes by itself.
    #[doc(alias = "PUT /v1/session/create")]
    pub fn create(&self, session: &NewSession) -> Write<Create> {
        let target = Target::new("/v1/session/create");
        let write = Write::put(&self.client, target, Create(()));
        match &session.body {
            Ok(body) => write.json(body),
            Err(err) => write.refuse(err.clone()),
        }
    }

    /// Ends a session; one that is not there is no error.
    ///
    /// The keys it still holds fall under its lock-delay. Release them before, and the next holder
    /// need not wait.
    #[doc(alias = "PUT /v1/session/destroy/:session")]
    pub fn destroy(&self, session: &SessionId) -> Write<Destroy> {
        let target = Target::of("/v1/session/destroy/", session);
        Write::put(&self.client, target, Destroy(())).beat()
    }

    /// Starts the TTL of a session anew; `None` if the session is gone.
    ///
    /// The answer is the session: its TTL may be another than the one asked for.
    #[doc(alias = "PUT /v1/session/renew/:session")]
    pub fn renew(&self, session: &SessionId) -> Write<Renew> {
        let target = Target::of("/v1/session/renew/", session);
        Write::put(&self.client, target, Renew(())).beat()
    }

    /// One session; `None` if it is gone, or if the token may not see it.
    #[doc(alias = "GET /v1/session/info/:session")]
    pub fn info(&self, session: &SessionId) -> Read<Info> {
        let target = Target::of("/v1/session/info/", session);
        Read::new(&self.client, target, Info(()))
    }

    /// All sessions of a node; none if the node is unknown.
    #[doc(alias = "GET /v1/session/node/:node")]
    pub fn node(&self, node: impl Into<Arc<str>>) -> Read<List> {
        let node = NodeName::new(node);
        Read::named(&self.client, "/v1/session/node/", node, List(()))
    }

    /// All sessions of the datacenter.
    #[doc(alias = "GET /v1/session/list")]
    pub fn list(&self) -> Read<List> {
        Read::new(&self.client, Target::new("/v1/session/list"), List(()))
    }
}

/// A session to be made.
///
/// Only what is set is sent. What was wrong is told when the call is awaited.
///
/// # Examples
///
/// ```no_run
/// # async fn example(client: lictor::Client) -> lictor::Result<()> {
/// use std::time::Duration;
///
/// use lictor::api::session::NewSession;
///
/// // Lives for as long as it is renewed, whatever any check says.
/// let session = NewSession::new()
///     .name("leader of web")
///     .ttl(Duration::from_secs(10))
///     .no_checks();
/// let session = client.session().create(&session).await?;
/// if client.kv().acquire("web/leader", &session, "me").await? {
///     client.session().renew(&session).await?;
///     client.kv().release("web/leader", &session, "").await?;
/// }
/// client.session().destroy(&session).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a session is not there until it is created"]
pub struct NewSession {
    body: Result<Body>,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Body {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<NodeName>,
    #[serde(rename = "TTL", skip_serializing_if = "Option::is_none")]
    ttl: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lock_delay: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    behavior: Option<&'static str>,
    // An empty list says something else than none: see `NewSession::node_checks`.
    #[serde(skip_serializing_if = "Option::is_none")]
    node_checks: Option<Vec<CheckId>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    service_checks: Vec<CheckOfService>,
}

#[derive(Clone, Debug, Serialize)]
struct CheckOfService {
    #[serde(rename = "ID")]
    id: CheckId,
}

/// Consul takes no longer TTL.
const LONGEST_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Consul stores a longer lock-delay, and applies this one.
const LONGEST_LOCK_DELAY: Duration = Duration::from_secs(60);

impl NewSession {
    /// A session of the agent's node, without a TTL, bound to the node's own health (`serfHealth`).
    pub fn new() -> Self {
        Self {
            body: Ok(Body::default()),
        }
    }

    /// A name for people. Default: none.
    pub fn name(self, name: impl Into<String>) -> Self {
        self.with(|body| {
            body.name = Some(name.into());
            Ok(())
        })
    }

    /// The node it belongs to; when that leaves, the session ends. Default: the agent's own.
    pub fn node(self, node: impl Into<Arc<str>>) -> Self {
        self.with(|body| {
            body.node = Some(NodeName::new(node)?);
            Ok(())
        })
    }

    /// How long it lives without being [renewed](Sessions::renew). Default: for ever.
    ///
    /// Consul never ends it sooner, but takes up to twice as long; an election among its servers
    /// starts the time anew.
    ///
    /// Range: above zero and up to 24 h, and as servers are configured by default from 10 s
    /// (`session_ttl_min`); a shorter one is then answered with
    /// [`ErrorKind::Refused`].
    #[doc(alias = "TTL")]
    pub fn ttl(self, ttl: Duration) -> Self {
        self.with(|body| {
            if ttl.is_zero() || ttl > LONGEST_TTL {
                return Err(Error::invalid(format!(
                    "session TTL {ttl:?}: must be above zero and at most 24 h, and servers take \
                     from 10 s by default; leave it out for a session without one"
                )));
            }
            body.ttl = Some(duration::format(ttl));
            Ok(())
        })
    }

    /// How long the keys it held cannot be acquired after it ended. Default: Consul's 15 s.
    ///
    /// It gives a holder that has not noticed its loss the time to stop. A key that was released,
    /// or deleted by hand, before the session ended has no such delay; one that was deleted by the
    /// session's [`behavior`](Self::behavior) has.
    ///
    /// Range: 0 to 60 s. Consul would store a longer one and apply 60 s.
    pub fn lock_delay(self, delay: Duration) -> Self {
        self.with(|body| {
            if delay > LONGEST_LOCK_DELAY {
                return Err(Error::invalid(format!(
                    "lock-delay {delay:?}: must be at most 60 s; Consul would apply no more, \
                     without saying so"
                )));
            }
            body.lock_delay = Some(duration::format(delay));
            Ok(())
        })
    }

    /// What becomes of the keys it holds when it ends. Default: [`Behavior::Release`].
    pub fn behavior(self, behavior: Behavior) -> Self {
        self.with(|body| {
            body.behavior = Some(match behavior {
                Behavior::Release => "release",
                Behavior::Delete => "delete",
                Behavior::Unknown => {
                    return Err(Error::invalid(
                        "behavior of a session: must be to release or to delete",
                    ));
                }
            });
            Ok(())
        })
    }

    /// The checks of the node it is bound to, by ID: it ends when one of them turns critical.
    ///
    /// Default: `serfHealth` alone, by which the other nodes tell that this one is gone. A list
    /// replaces it, so name it again where it is wanted. None of them may be critical now.
    pub fn node_checks<I>(self, checks: I) -> Self
    where
        I: IntoIterator<Item: Into<Arc<str>>>,
    {
        self.with(|body| {
            let checks = checks.into_iter().map(CheckId::new);
            body.node_checks = Some(checks.collect::<Result<_>>()?);
            Ok(())
        })
    }

    /// The checks of services it is bound to, by ID, as in `service:web`. Default: none.
    ///
    /// The services must be registered at the session's node. The node's own checks are not
    /// replaced by these: see [`node_checks`](Self::node_checks).
    pub fn service_checks<I>(self, checks: I) -> Self
    where
        I: IntoIterator<Item: Into<Arc<str>>>,
    {
        self.with(|body| {
            let checks = checks
                .into_iter()
                .map(|id| CheckId::new(id).map(|id| CheckOfService { id }));
            body.service_checks = checks.collect::<Result<_>>()?;
            Ok(())
        })
    }

    /// Binds it to no check at all, not even to `serfHealth`.
    ///
    /// A false alarm of the nodes about each other then ends no session; without a TTL, nothing
    /// does but [`destroy`](Sessions::destroy) and the leave of its node.
    pub fn no_checks(self) -> Self {
        self.with(|body| {
            body.node_checks = Some(Vec::new());
            body.service_checks = Vec::new();
            Ok(())
        })
    }

    /// The first thing that was wrong stays.
    fn with(mut self, change: impl FnOnce(&mut Body) -> Result<()>) -> Self {
        if let Ok(body) = &mut self.body
            && let Err(err) = change(body)
        {
            self.body = Err(err);
        }
        self
    }
}

impl Default for NewSession {
    fn default() -> Self {
        Self::new()
    }
}

/// What becomes of the keys a session holds when it ends.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Behavior {
    /// They are released, and keep their values.
    #[default]
    Release,
    /// They are deleted.
    Delete,
    /// A behaviour that this crate does not know.
    Unknown,
}

impl<'de> Deserialize<'de> for Behavior {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let behavior = Text::deserialize(deserializer)?;
        Ok(match behavior.as_str() {
            "" | "release" => Self::Release,
            "delete" => Self::Delete,
            _ => Self::Unknown,
        })
    }
}

/// A session as Consul knows it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase")]
pub struct Session {
    #[serde(rename = "ID")]
    id: SessionId,
    #[serde(default)]
    name: Text,
    node: NodeName,
    #[serde(default, deserialize_with = "delay")]
    lock_delay: Duration,
    #[serde(default)]
    behavior: Behavior,
    #[serde(rename = "TTL", default, deserialize_with = "json::span")]
    ttl: Option<Duration>,
    #[serde(default, deserialize_with = "json::list")]
    node_checks: Box<[CheckId]>,
    #[serde(default, deserialize_with = "json::list")]
    service_checks: Box<[ServiceCheck]>,
    #[serde(default, deserialize_with = "json::list")]
    checks: Box<[CheckId]>,
    #[serde(default)]
    namespace: Text,
    #[serde(default)]
    partition: Text,
    #[serde(default, deserialize_with = "json::number")]
    create_index: u64,
    #[serde(default, deserialize_with = "json::number")]
    modify_index: u64,
}

impl Session {
    accessors! {
        /// The ID.
        #[doc(alias = "ID")]
        reference id: SessionId;
        /// The name that it was given for people; empty if none.
        text name;
        /// The node it belongs to.
        reference node: NodeName;
        /// How long the keys it held cannot be acquired after it ended.
        ///
        /// As it was asked for: Consul applies at most 60 s.
        copy lock_delay: Duration;
        /// What becomes of the keys it holds when it ends.
        copy behavior: Behavior;
        /// How long it lives without being renewed; absent if it does not end by itself.
        #[doc(alias = "TTL")]
        copy ttl: Option<Duration>;
        /// The checks of its node that it is bound to.
        slice node_checks: CheckId;
        /// The checks of services that it is bound to.
        slice service_checks: ServiceCheck;
        /// The checks of a session that was made as before Consul 1.7; empty for any other.
        slice checks: CheckId;
        /// The namespace (Consul Enterprise); empty for the default one.
        text namespace;
        /// The admin partition (Consul Enterprise); empty for the default one.
        text partition;
        /// The index at which the session came to be.
        copy create_index: u64;
        /// The index of the last change of the session; a renewal is none.
        copy modify_index: u64;
    }
}

/// A check of a service that a session is bound to.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceCheck {
    #[serde(rename = "ID")]
    id: CheckId,
    #[serde(default)]
    namespace: Text,
}

impl ServiceCheck {
    accessors! {
        /// The check's ID.
        #[doc(alias = "ID")]
        reference id: CheckId;
        /// The namespace of the service (Consul Enterprise); empty for the default one.
        text namespace;
    }
}

/// A lock-delay; Consul writes nanoseconds, and below zero what it was never asked to wait.
fn delay<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Duration, D::Error> {
    Ok(json::span(deserializer)?.unwrap_or_default())
}

/// The making of a session: [`Sessions::create`].
#[derive(Clone, Debug)]
pub struct Create(());

impl Endpoint for Create {
    type Output = SessionId;

    fn interpret(&self, answer: Answered) -> Result<SessionId> {
        #[derive(Deserialize)]
        struct Made {
            #[serde(rename = "ID")]
            id: SessionId,
        }

        Ok(answer.good()?.decode::<Made>()?.id)
    }
}

/// The end of a session: [`Sessions::destroy`].
#[derive(Clone, Debug)]
pub struct Destroy(());

impl Endpoint for Destroy {
    type Output = ();

    fn interpret(&self, answer: Answered) -> Result<()> {
        // Consul answers `true`, or an error.
        let raw = answer.good()?;
        match raw.decode::<bool>()? {
            true => Ok(()),
            false => Err(raw.unexpected("the answer is `false`")),
        }
    }
}

/// The renewal of a session: [`Sessions::renew`].
#[derive(Clone, Debug)]
pub struct Renew(());

impl Endpoint for Renew {
    type Output = Option<Session>;

    fn interpret(&self, answer: Answered) -> Result<Self::Output> {
        let raw = answer.0;
        if raw.status == StatusCode::NOT_FOUND {
            // Only Consul's own words count: a 404 of something that stands in between does not
            // mean that the session is gone.
            let err = raw.error();
            return match err.kind() {
                ErrorKind::UnknownSession => Ok(None),
                _ => Err(err),
            };
        }
        let raw = raw.good()?;
        match raw.decode::<Vec<Session>>()?.pop() {
            Some(session) => Ok(Some(session)),
            None => Err(raw.unexpected("a renewal without a session")),
        }
    }
}

/// One session: [`Sessions::info`].
#[derive(Clone, Debug)]
pub struct Info(());

impl Endpoint for Info {
    type Output = Option<Session>;

    fn interpret(&self, answer: Answered) -> Result<Self::Output> {
        Ok(answer.good()?.json::<Vec<Session>>()?.pop())
    }
}

/// Sessions: [`Sessions::list`], [`Sessions::node`].
#[derive(Clone, Debug)]
pub struct List(());

answers_with_list!(List => Session);
