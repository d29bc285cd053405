//! Sessions.

use std::time::Duration;

use http::StatusCode;
use serde::Serialize;
use serde_json::Value;

use super::Call;
use super::blocking::with_first_index;
use super::decode::{Fields, Given, GoTime, Undecodable};
use super::query::{Consistency, Options};
use super::read::{Headers, Narrow, Read, What};
use super::reply::{self, Refusal, Reply};
use super::views::SessionView;
use crate::embedded::state::locks::SessionRefused;
use crate::embedded::state::session::{Behavior, ServiceCheck, SessionId, SessionSpec, Ttl};

const SERF_HEALTH: &str = "serfHealth";
/// What Consul gives a session that does not say.
const LOCK_DELAY: Duration = Duration::from_secs(15);
/// A lock-delay below this is meant in seconds, whatever its unit.
const LOCK_DELAY_UNITS: i64 = 1000;
const NANOS_PER_SECOND: i64 = 1_000_000_000;

impl Call {
    pub(super) async fn session_create(&self) -> Result<Reply, Refusal> {
        let own = self.core.lock().state.identity.node.clone();
        // A body that came in pieces without telling its length is not looked at.
        let wish = if self.announced_length().unwrap_or(0) > 0 {
            Wish::parse(&self.body, own)?
        } else {
            Wish::new(own)
        };
        self.check_datacenter(self.params.value("dc"))?;
        self.await_leader().await?;
        let spec = wish.judged().map_err(Refusal::internal)?;
        let created = self.core.lock().state.create_session(spec, Self::now());
        let id = created.map_err(|refused| Refusal::internal(refused.to_string()))?;
        Ok(reply::json(&Created { id: id.to_string() }, self.layout()))
    }

    pub(super) async fn session_destroy(&self) -> Result<Reply, Refusal> {
        let id = self.named_session()?;
        self.check_datacenter(self.params.value("dc"))?;
        self.await_leader().await?;
        let mut locked = self.core.lock();
        match SessionId::parse(id) {
            Ok(id) => {
                locked.state.destroy_session(id, Self::now());
                Ok(reply::json(&true, self.layout()))
            }
            Err(wrong) => {
                // The servers agreed on it before one of them looked.
                locked.state.next_index();
                Err(Refusal::internal(wrong.to_string()))
            }
        }
    }

    pub(super) async fn session_renew(&self) -> Result<Reply, Refusal> {
        Options::parse(&self.params, &self.headers)?;
        let text = self.named_session()?;
        self.check_datacenter(self.params.value("dc"))?;
        self.await_leader().await?;
        let id = SessionId::parse(text).map_err(|wrong| Refusal::internal(wrong.to_string()))?;
        let renewed = self.core.lock().state.renew_session(id, Self::now());
        match renewed {
            Some(session) => Ok(reply::json(&[SessionView::new(&session)], self.layout())),
            None => {
                let text = format!("Session id '{text}' not found");
                Err(Refusal::new(StatusCode::NOT_FOUND, text))
            }
        }
    }

    pub(super) async fn session_info(&self) -> Result<Reply, Refusal> {
        let options = Options::parse(&self.params, &self.headers)?;
        let text = self.named_session()?;
        match SessionId::parse(text) {
            Ok(id) => self.sessions(What::Session { id }, &options).await,
            Err(wrong) => {
                self.check_datacenter(&options.datacenter)
                    .map_err(with_first_index)?;
                if options.consistency != Consistency::Stale {
                    self.await_leader().await.map_err(with_first_index)?;
                }
                Err(with_first_index(Refusal::internal(wrong.to_string())))
            }
        }
    }

    pub(super) async fn session_node(&self) -> Result<Reply, Refusal> {
        let options = Options::parse(&self.params, &self.headers)?;
        if self.rest.is_empty() {
            return Err(Refusal::bad_request("Missing node name"));
        }
        let node = self.rest.clone();
        self.sessions(What::NodeSessions { node }, &options).await
    }

    pub(super) async fn session_list(&self) -> Result<Reply, Refusal> {
        let options = Options::parse(&self.params, &self.headers)?;
        self.sessions(What::Sessions, &options).await
    }

    async fn sessions(&self, what: What, options: &Options) -> Result<Reply, Refusal> {
        let read = Read {
            what,
            narrow: Narrow::default(),
            filter: None,
            near: String::new(),
            layout: options.layout,
            headers: Headers::Session,
            cacheable: false,
        };
        self.read(&read, options).await
    }

    fn named_session(&self) -> Result<&str, Refusal> {
        if self.rest.is_empty() {
            return Err(Refusal::bad_request("Missing session"));
        }
        Ok(&self.rest)
    }
}

#[derive(Debug, Serialize)]
struct Created {
    #[serde(rename = "ID")]
    id: String,
}

/// The body of `session/create`, in which all may be left out.
#[derive(Debug)]
struct Wish {
    spec: SessionSpec,
    behavior: String,
    ttl: String,
}

impl Wish {
    fn new(node: String) -> Self {
        Self {
            spec: SessionSpec {
                node,
                lock_delay: LOCK_DELAY,
                node_checks: Some(vec![SERF_HEALTH.to_owned()]),
                ..SessionSpec::default()
            },
            behavior: String::new(),
            ttl: String::new(),
        }
    }

    fn parse(body: &[u8], own: String) -> Result<Self, Undecodable> {
        const GO_TYPE: &str = "struct { LockDelay interface {}; *structs.Alias }";
        // Of all bodies this one may have members that Consul does not know.
        let mut fields = Fields::parse_unnamed(GO_TYPE, body)?;
        let mut wish = Self::new(own);
        let spec = &mut wish.spec;
        spec.name = fields.string(&["Name"])?;
        if let Some(node) = fields.optional_string(&["Node"])? {
            spec.node = node;
        }
        wish.behavior = fields.string(&["Behavior"])?;
        wish.ttl = fields.string(&["TTL"])?;
        fields.string(&["ID"])?;
        fields.string(&["Namespace"])?;
        let node_checks = fields.list(&["NodeChecks"], "string")?;
        let checks = fields.list(&["Checks"], "types.CheckID")?;
        spec.service_checks = service_checks(&mut fields)?;
        spec.choose_checks(node_checks, checks);
        if let Some(given) = fields.take(&["LockDelay"]) {
            spec.lock_delay = lock_delay(&given)?;
        }
        Ok(wish)
    }

    /// What a server refuses before it asks the others.
    fn judged(self) -> Result<SessionSpec, String> {
        let mut spec = self.spec;
        if spec.node.is_empty() {
            return Err("Must provide Node".to_owned());
        }
        spec.behavior = match self.behavior.as_str() {
            "" | "release" => Behavior::Release,
            "delete" => Behavior::Delete,
            other => return Err(format!("Invalid Behavior setting '{other}'")),
        };
        if !self.ttl.is_empty() {
            let time = GoTime::parse(&self.ttl)
                .map_err(|wrong| format!("Session TTL '{}' invalid: time: {wrong}", self.ttl))?;
            if time.nanos() < 0 {
                return Err(SessionRefused::Ttl(time.nanos().into()).to_string());
            }
            spec.ttl = Ttl {
                text: self.ttl,
                time: time.positive(),
            };
        }
        Ok(spec)
    }
}

impl SessionSpec {
    /// Makes one of the two lists of checks and of what Consul takes for them when they are left
    /// out: the health of the node.
    fn choose_checks(&mut self, node_checks: Given<Vec<String>>, checks: Given<Vec<String>>) {
        match node_checks {
            Given::Absent => {}
            Given::Null => self.node_checks = None,
            Given::Value(given) => self.node_checks = Some(given),
        }
        match checks {
            Given::Absent => {}
            Given::Null => self.node_checks = Some(Vec::new()),
            Given::Value(older) if older.is_empty() => self.node_checks = Some(Vec::new()),
            Given::Value(older) if older == [SERF_HEALTH] => {}
            Given::Value(_) if self.node_checks.as_ref().is_none_or(Vec::is_empty) => {}
            Given::Value(older) => self.checks = older,
        }
    }
}

fn service_checks(fields: &mut Fields) -> Result<Option<Vec<ServiceCheck>>, Undecodable> {
    const NAMES: &[&str] = &["ServiceChecks"];
    match fields.take(NAMES) {
        None => Ok(None),
        Some(Value::Array(items)) => items
            .into_iter()
            .map(|item| {
                let mut fields = Fields::entry(item, NAMES, "structs.ServiceCheck")?;
                Ok(ServiceCheck {
                    id: fields.string(&["ID"])?,
                    namespace: fields.string(&["Namespace"])?,
                })
            })
            .collect::<Result<_, _>>()
            .map(Some),
        Some(other) => Err(fields.mismatch(&other, NAMES, "[]structs.ServiceCheck")),
    }
}

/// A duration, or a number; small ones are seconds. One below zero counts as zero.
fn lock_delay(given: &Value) -> Result<Duration, Undecodable> {
    let nanos = match given {
        Value::String(text) => GoTime::parse(text)
            .map_err(|wrong| Undecodable(format!("time: {wrong}")))?
            .nanos(),
        Value::Number(number) => whole(number),
        _ => 0,
    };
    let nanos = if nanos < LOCK_DELAY_UNITS {
        nanos.saturating_mul(NANOS_PER_SECOND)
    } else {
        nanos
    };
    Ok(Duration::from_nanos(u64::try_from(nanos).unwrap_or(0)))
}

/// The whole part of a number, of which a broken one has digits before its point.
fn whole(number: &serde_json::Number) -> i64 {
    let text = number.to_string();
    let digits = text.split('.').next().unwrap_or_default();
    number
        .as_i64()
        .or_else(|| digits.parse().ok())
        .unwrap_or_default()
}
