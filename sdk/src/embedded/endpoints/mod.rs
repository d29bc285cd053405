//! Consul's HTTP API: from a request to its answer, without a socket.

mod agent;
mod blocking;
mod catalog;
mod coordinate;
mod decode;
mod definition;
mod event;
mod fields;
mod filter;
mod kv;
mod prepared;
mod query;
mod read;
mod reply;
mod routes;
mod session;
mod txn;
mod views;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use tokio::runtime::Handle;
use tokio::time::Instant;

use self::fields::Fields;
use self::filter::{Filter, Wrong};
use self::query::{Params, layout, token};
use self::reply::{Layout, Refusal, Reply};
use self::routes::{Endpoint, Route};
use super::body::Body;
use super::core::{Access, Core};
use super::fault::Effect;

/// One request on its way through the agent.
#[derive(Debug)]
struct Call {
    /// Who answers.
    core: Arc<Core>,
    /// Who was asked, which may have one of another datacenter answer.
    asked: Arc<Core>,
    method: Method,
    /// The whole path, decoded.
    path: String,
    /// What follows the path of the endpoint.
    rest: String,
    params: Params,
    headers: HeaderMap,
    body: Bytes,
}

/// Answers a request, or says how the connection breaks.
pub(super) async fn serve(core: Arc<Core>, request: Request<Bytes>) -> io::Result<Response<Body>> {
    // All its waiting is done by tokio's clock.
    Handle::try_current().map_err(io::Error::other)?;
    if core.faults.is_away() {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    let raw_path = request.uri().path().to_owned();
    core.traffic.count(request.method(), &raw_path);
    let plan = core.faults.plan(&raw_path);
    let work = async {
        core.faults.thawed().await;
        let reply = match &plan.effect {
            Some(Effect::Hang) => std::future::pending().await,
            Some(Effect::Disconnect) => {
                return Err(io::Error::from(io::ErrorKind::ConnectionReset));
            }
            Some(Effect::Answer(status, text)) => reply::text_reply(*status, text.clone()),
            _ => answer(Arc::clone(&core), request).await,
        };
        if !plan.delay.is_zero() {
            tokio::time::sleep(plan.delay).await;
        }
        // An agent that was stopped while it worked on the answer does not send it.
        core.faults.thawed().await;
        Ok(reply)
    };
    let reply = tokio::select! {
        // What is ready when the agent leaves is still sent.
        biased;
        reply = work => reply?,
        () = core.faults.left() => return Err(io::ErrorKind::ConnectionReset.into()),
    };
    Ok(match plan.effect {
        Some(Effect::LoseAnswer) => return Err(io::ErrorKind::ConnectionReset.into()),
        Some(Effect::Truncate) => reply.map(Body::cut),
        Some(Effect::Garble) => reply.map(|body| Body::whole(garbled(&body))),
        _ => reply.map(Body::whole),
    })
}

/// Bytes of the same length that are no JSON and no text.
fn garbled(body: &Bytes) -> Bytes {
    body.iter().map(|byte| byte ^ 0xa5).collect()
}

async fn answer(core: Arc<Core>, request: Request<Bytes>) -> Reply {
    let (head, body) = request.into_parts();
    let path = percent_decode_str(head.uri.path())
        .decode_utf8_lossy()
        .into_owned();
    if path.chars().any(char::is_control) {
        return reply::bare(StatusCode::BAD_REQUEST);
    }
    let cleaned = clean(&path);
    if cleaned != path {
        let mut to = encode(&cleaned);
        if let Some(query) = head.uri.query() {
            to.push('?');
            to.push_str(query);
        }
        return reply::redirect(&to, head.method == Method::GET);
    }
    if path == "/" || path == "/ui" {
        return reply::redirect("/ui/", head.method == Method::GET);
    }
    let found = Route::find(&path);
    if found.is_none() && Route::is_folder(&path) {
        return reply::redirect(&encode(&format!("{path}/")), head.method == Method::GET);
    }
    let Some((route, rest)) = found else {
        return reply::bare(StatusCode::NOT_FOUND);
    };
    if head.method == Method::OPTIONS {
        return reply::allow(reply::empty(StatusCode::OK), &route.allowed());
    }
    if !route.takes(&head.method) {
        let text = format!("method {} not allowed", head.method);
        let refused = reply::text_reply(StatusCode::METHOD_NOT_ALLOWED, text);
        return reply::allow(refused, &route.allowed());
    }
    let rest = rest.to_owned();
    let call = Call {
        asked: Arc::clone(&core),
        core,
        params: Params::parse(head.uri.query()),
        method: head.method,
        rest,
        path,
        headers: head.headers,
        body,
    };
    match call.answered_where_asked(route.endpoint).await {
        Ok(reply) => reply,
        Err(Refusal(reply)) => *reply,
    }
}

impl Call {
    /// Has another datacenter answer if that is asked for, and there is a way.
    async fn answered_where_asked(mut self, endpoint: Endpoint) -> Result<Reply, Refusal> {
        let mut links = self.core.links();
        let link = match endpoint.is_forwarded() {
            true => links.remove(self.params.value("dc")),
            false => None,
        };
        let Some((link, peer)) = link.and_then(|link| Some((link.clone(), link.peer()?))) else {
            return self.answer(endpoint).await;
        };
        self.core = Arc::clone(&peer);
        let work = async {
            peer.faults.thawed().await;
            self.answer(endpoint).await
        };
        tokio::select! {
            biased;
            reply = work => reply,
            () = link.cut() => Err(Refusal::internal("rpc error making call: EOF")),
            () = peer.faults.left() => Err(Refusal::internal("rpc error making call: EOF")),
        }
    }

    async fn answer(self, endpoint: Endpoint) -> Result<Reply, Refusal> {
        if endpoint == Endpoint::Unserved {
            return Err(self.unserved(""));
        }
        if endpoint.reads_namespace() && !self.params.value("ns").is_empty() {
            return Err(Refusal::bad_request(
                "Bad request: Invalid query parameter: \"ns\" - Namespaces are a Consul Enterprise \
                 feature",
            ));
        }
        self.authorize()?;
        match endpoint {
            Endpoint::AgentSelf => Ok(self.agent_self()),
            Endpoint::AgentMembers => Ok(self.agent_members()),
            Endpoint::AgentLeave => Ok(self.agent_leave()),
            Endpoint::AgentServices => self.agent_services(),
            Endpoint::AgentService => self.agent_service().await,
            Endpoint::AgentChecks => self.agent_checks(),
            Endpoint::AgentHealthById => self.agent_health_by_id(),
            Endpoint::AgentHealthByName => self.agent_health_by_name(),
            Endpoint::ServiceRegister => self.service_register(),
            Endpoint::ServiceDeregister => self.service_deregister(),
            Endpoint::ServiceMaintenance => self.service_maintenance(),
            Endpoint::NodeMaintenance => self.node_maintenance(),
            Endpoint::CheckRegister => self.check_register(),
            Endpoint::CheckDeregister => self.check_deregister(),
            Endpoint::CheckUpdate => self.check_update(),
            Endpoint::CheckPass => self.check_note("passing"),
            Endpoint::CheckWarn => self.check_note("warning"),
            Endpoint::CheckFail => self.check_note("critical"),
            Endpoint::CatalogDatacenters => self.catalog_datacenters(),
            Endpoint::CatalogRegister => self.catalog_register().await,
            Endpoint::CatalogDeregister => self.catalog_deregister().await,
            Endpoint::StatusLeader => self.status_leader(),
            Endpoint::StatusPeers => self.status_peers(),
            Endpoint::Kv => self.kv().await,
            Endpoint::SessionCreate => self.session_create().await,
            Endpoint::SessionDestroy => self.session_destroy().await,
            Endpoint::SessionRenew => self.session_renew().await,
            Endpoint::SessionInfo => self.session_info().await,
            Endpoint::SessionNode => self.session_node().await,
            Endpoint::SessionList => self.session_list().await,
            Endpoint::Txn => self.txn().await,
            Endpoint::EventFire => self.event_fire(),
            Endpoint::EventList => self.event_list().await,
            Endpoint::Queries => self.queries().await,
            Endpoint::Query => self.query().await,
            Endpoint::CoordinateDatacenters => Ok(self.coordinate_datacenters()),
            Endpoint::CoordinateNodes => self.coordinate_nodes().await,
            Endpoint::CoordinateNode => self.coordinate_node().await,
            Endpoint::CoordinateUpdate => self.coordinate_update().await,
            read => self.server_read(read).await,
        }
    }

    fn layout(&self) -> Layout {
        layout(&self.params)
    }

    /// The length of the body, unless it came in pieces without telling.
    fn announced_length(&self) -> Option<u64> {
        if let Some(told) = self.headers.get(CONTENT_LENGTH) {
            return told.to_str().ok()?.parse().ok();
        }
        // Who asks without a socket need not tell what can be counted.
        let in_pieces = self.headers.contains_key(TRANSFER_ENCODING);
        (!in_pieces).then_some(self.body.len() as u64)
    }

    fn now() -> Instant {
        Instant::now()
    }

    /// A clear "not here" for what Consul has and this agent has not.
    fn unserved(&self, what: &str) -> Refusal {
        let text = format!(
            "The embedded agent does not serve {} {}{what}",
            self.method, self.path
        );
        Refusal::new(StatusCode::NOT_IMPLEMENTED, text)
    }

    /// Consul's `default_policy = "deny"` with one token that may do everything.
    ///
    /// Reads without a token are allowed, because Consul answers them with an empty list and not
    /// with an error; writes are refused.
    fn authorize(&self) -> Result<(), Refusal> {
        let known = match self.core.access() {
            Access::Open => return Ok(()),
            Access::Token(secret) => Some(secret),
            Access::Nobody => None,
        };
        let token = token(&self.params, &self.headers);
        if known.is_some_and(|known| known.0 == token) {
            return Ok(());
        }
        if !token.is_empty() {
            return Err(Refusal::new(StatusCode::FORBIDDEN, "ACL not found"));
        }
        if self.method == Method::GET {
            return Ok(());
        }
        Err(Refusal::new(StatusCode::FORBIDDEN, "Permission denied"))
    }

    /// The filter that the request asks for, over the fields of what it lists.
    fn filter(&self, fields: Fields) -> Result<Option<Filter>, Refusal> {
        let text = self.params.value("filter");
        if text.is_empty() {
            return Ok(None);
        }
        match Filter::parse(text, fields) {
            Ok(filter) => Ok(Some(filter)),
            // Of all lists this one is told without the words before the reason.
            Err(Wrong::Meaning(text)) if self.path == "/v1/agent/checks" => {
                Err(Refusal::internal(text))
            }
            Err(Wrong::Meaning(text) | Wrong::Syntax(text)) => Err(Refusal::internal(format!(
                "Failed to create boolean expression evaluator: {text}"
            ))),
            Err(Wrong::Unserved(what)) => Err(self.unserved(&format!("?filter= with {what}"))),
        }
    }

    fn check_datacenter(&self, datacenter: &str) -> Result<(), Refusal> {
        let own = &self.core.lock().state.identity.datacenter;
        if datacenter.is_empty() || datacenter == own {
            Ok(())
        } else {
            Err(Refusal::internal("No path to datacenter"))
        }
    }
}

/// Go's `ServeMux` answers a path with `//`, `/./` or `/../` by a redirect to the clean one.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut cleaned = format!("/{}", parts.join("/"));
    if path.ends_with('/') && cleaned != "/" {
        cleaned.push('/');
    }
    cleaned
}

/// What Go's `url.URL` escapes in a path.
const ESCAPED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

fn encode(path: &str) -> String {
    utf8_percent_encode(path, ESCAPED).to_string()
}
