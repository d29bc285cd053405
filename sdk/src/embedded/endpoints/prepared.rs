//! Prepared queries.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use http::{Method, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};

use super::Call;
use super::blocking::with_first_index;
use super::decode::{Fields, Given, Undecodable};
use super::definition::judge_meta;
use super::query::Options;
use super::read::{Headers, Narrow, Read, What};
use super::reply::{self, Layout, Refusal, Reply};
use super::views::HealthView;
use crate::embedded::core::Core;
use crate::embedded::state::State;
use crate::embedded::state::model::{CRITICAL, PASSING};
use crate::embedded::state::queries::Query;
use crate::embedded::state::session::{Named, SessionId};
use crate::embedded::state::template::Wrong;
use crate::proto::duration;

impl Call {
    pub(super) async fn queries(&self) -> Result<Reply, Refusal> {
        if self.method == Method::POST {
            return self.query_put(None).await;
        }
        let options = Options::parse(&self.params, &self.headers)?;
        self.read(&queries(What::Queries, options.layout), &options)
            .await
    }

    pub(super) async fn query(&self) -> Result<Reply, Refusal> {
        if self.method == Method::GET {
            if let Some(name) = self.rest.strip_suffix("/execute") {
                return self.query_execute(name).await;
            }
            if let Some(name) = self.rest.strip_suffix("/explain") {
                return self.query_explain(name).await;
            }
            let options = Options::parse(&self.params, &self.headers)?;
            let id = SessionId::parse(&self.rest)
                .map_err(|wrong| with_first_index(Refusal::internal(as_query(&wrong))))?;
            self.check_datacenter(&options.datacenter)
                .map_err(with_first_index)?;
            if self.core.lock().state.replica.queries.get(id).is_none() {
                return Err(Refusal::new(StatusCode::NOT_FOUND, "Query not found"));
            }
            return self
                .read(&queries(What::Query { id }, options.layout), &options)
                .await;
        }
        let id = SessionId::parse(&self.rest).map_err(|wrong| {
            let text = format!("Prepared Query lookup failed: {}", as_query(&wrong));
            Refusal::internal(text)
        })?;
        if self.method == Method::PUT {
            return self.query_put(Some(id)).await;
        }
        self.check_datacenter(self.params.value("dc"))?;
        self.await_leader().await?;
        let mut locked = self.core.lock();
        known(&locked.state, id)?;
        let index = locked.state.next_index();
        locked.state.replica.queries.remove(index, id);
        Ok(reply::empty(StatusCode::OK))
    }

    async fn query_put(&self, id: Option<SessionId>) -> Result<Reply, Refusal> {
        let wanted = self.wanted()?;
        self.check_datacenter(self.params.value("dc"))?;
        self.await_leader().await?;
        let mut locked = self.core.lock();
        let state = &mut locked.state;
        match id {
            Some(id) => known(state, id)?,
            None if wanted.has_id => {
                let text = "ID must be empty when creating a new prepared query";
                return Err(Refusal::internal(text));
            }
            None => {}
        }
        wanted
            .judge()
            .map_err(|text| Refusal::internal(format!("Invalid prepared query: {text}")))?;
        let new = SessionId::new(state.random(u64::MAX), state.random(u64::MAX));
        // What is looked at from here on the servers have agreed on before.
        let index = state.next_index();
        let kept = id.unwrap_or(new);
        if let Some(text) = state.replica.queries.conflict(kept, &wanted.query) {
            return Err(Refusal::internal(text));
        }
        let query = wanted.bound(state)?;
        if query.is_template {
            query.filled(&query.name).map_err(|wrong| match wrong {
                Wrong::Unserved(_) => self.unserved(&format!(" {wrong}")),
                _ => Refusal::internal(format!("failed compiling template: {wrong}")),
            })?;
        }
        state.replica.queries.put(index, kept, query);
        Ok(match id {
            Some(_) => reply::empty(StatusCode::OK),
            None => reply::json(&json!({"ID": new.to_string()}), self.layout()),
        })
    }

    /// Reads a query from the body.
    fn wanted(&self) -> Result<Wanted, Refusal> {
        let mut fields = Fields::parse_as("PreparedQuery", &self.body).map_err(of_structs)?;
        let name = fields.string(&["Name"])?;
        let has_id = !fields.string(&["ID"])?.is_empty();
        let token = fields.string(&["Token"])?;
        let session = Named::parse(&fields.string(&["Session"])?);
        let mut kind = String::new();
        let mut query = Query {
            name,
            ..Query::default()
        };
        if let Some(mut template) = fields.object(&["Template"], "structs.QueryTemplateOptions")? {
            kind = template.string(&["Type"])?;
            if !template.string(&["Regexp"])?.is_empty() {
                return Err(self.unserved(" with a regular expression"));
            }
            query.remove_empty_tags = template.boolean(&["RemoveEmptyTags"])?;
            template.finish()?;
            query.is_template = !kind.is_empty();
        }
        if let Some(mut service) = fields.object(&["Service"], "structs.ServiceQuery")? {
            query.service = service.string(&["Service"])?;
            query.only_passing = service.boolean(&["OnlyPassing"])?;
            query.near = service.string(&["Near"])?;
            query.connect = service.boolean(&["Connect"])?;
            query.tags = given(service.list(&["Tags"], "string")?);
            query.ignored_checks = given(service.list(&["IgnoreCheckIDs"], "types.CheckID")?);
            query.node_meta = service.pairs(&["NodeMeta"])?;
            query.service_meta = service.pairs(&["ServiceMeta"])?;
            if let Some(mut failover) =
                service.object(&["Failover"], "structs.QueryDatacenterOptions")?
            {
                query.nearest = failover.integer(&["NearestN"])?;
                query.datacenters = given(failover.list(&["Datacenters"], "string")?);
                failover.finish()?;
            }
            service.finish()?;
        }
        if let Some(mut dns) = fields.object(&["DNS"], "structs.QueryDNSOptions")? {
            query.ttl = dns.string(&["TTL"])?;
            dns.finish()?;
        }
        fields.finish()?;
        Ok(Wanted {
            query,
            has_id,
            is_redacted: token == REDACTED,
            session,
            kind,
        })
    }

    async fn query_explain(&self, name: &str) -> Result<Reply, Refusal> {
        let options = Options::parse(&self.params, &self.headers)?;
        self.check_datacenter(&options.datacenter)
            .map_err(with_first_index)?;
        self.await_leader().await.map_err(with_first_index)?;
        let locked = self.core.lock();
        let (id, query) = resolved(&locked.state, name)?;
        let mut body = json!({ "Query": view(id, &query) });
        close(&mut body, &options);
        Ok(headed(reply::json(&body, options.layout), &options))
    }

    async fn query_execute(&self, name: &str) -> Result<Reply, Refusal> {
        let options = Options::parse(&self.params, &self.headers)?;
        let limit = match self.params.value("limit") {
            "" => 0,
            text => text.parse::<i64>().map_err(|_| {
                let text = format!("Bad limit: strconv.Atoi: parsing {text:?}: invalid syntax");
                Refusal::internal(text)
            })?,
        };
        // Less than none at all limits nothing.
        let limit = usize::try_from(limit).unwrap_or(0);
        self.check_datacenter(&options.datacenter)
            .map_err(with_first_index)?;
        self.await_leader().await.map_err(with_first_index)?;
        let (mut near, asked) = (self.near(), self.asked_node());
        let (query, own) = {
            let locked = self.core.lock();
            let state = &locked.state;
            let (_, query) = resolved(state, name)?;
            if near.is_empty() {
                near.clone_from(&query.near);
            }
            match &*near {
                "_agent" => near = asked,
                "_ip" => near = self.callers_node(state).unwrap_or_default(),
                _ => {}
            }
            (query, state.identity.datacenter.clone())
        };
        let mut found = found_in(&self.core, &query, &near, limit);
        let mut place = own;
        let mut failovers = 0;
        if found.is_empty() {
            let others = self.core.nearest();
            let nearest = usize::try_from(query.nearest).unwrap_or(0);
            let mut left: Vec<&(String, Arc<Core>)> = others.iter().take(nearest).collect();
            for named in query.datacenters.iter().flatten() {
                // Itself was asked already, and one that nobody knows is passed over.
                let other = others.iter().find(|(name, _)| name == named);
                if let Some(other) = other
                    && left.iter().all(|(name, _)| name != named)
                {
                    left.push(other);
                }
            }
            for (datacenter, peer) in left {
                failovers += 1;
                place.clone_from(datacenter);
                // Places of another datacenter say nothing here.
                found = found_in(peer, &query, "", limit);
                if !found.is_empty() {
                    break;
                }
            }
        }
        let mut body = json!({
            "Service": query.service,
            "Nodes": found,
            "DNS": {"TTL": query.ttl},
            "Datacenter": place,
            "Failovers": failovers,
        });
        close(&mut body, &options);
        Ok(headed(reply::json(&body, options.layout), &options))
    }

    /// The node at the address of who asks, as a proxy tells it.
    ///
    /// Without one it is the loopback's, on which alone this agent listens.
    fn callers_node(&self, state: &State) -> Option<String> {
        let told = self.headers.get("x-forwarded-for");
        let told = told
            .and_then(|value| value.to_str().ok()?.split(',').next()?.trim().parse().ok())
            .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let mut nodes = state.replica.catalog.nodes();
        let node = nodes.find(|node| node.address == told.to_string())?;
        Some(node.name.clone())
    }
}

/// What stands for a token that its reader may not see.
const REDACTED: &str = "<hidden>";

/// A query as it is asked for.
#[derive(Debug)]
struct Wanted {
    query: Query,
    has_id: bool,
    is_redacted: bool,
    session: Named,
    /// Of which type a template is; none if it is empty.
    kind: String,
}

impl Wanted {
    /// What a server refuses before it asks the others.
    fn judge(&self) -> Result<(), String> {
        let query = &self.query;
        if query.name.is_empty() && !query.is_template && self.session == Named::Nobody {
            return Err("Must be bound to a session".to_owned());
        }
        if self.is_redacted {
            return Err(format!(
                "Bad Token '{REDACTED}', it looks like a query definition with a redacted token \
                 was submitted"
            ));
        }
        if query.service.is_empty() {
            return Err("Must provide a Service name to query".to_owned());
        }
        if query.nearest < 0 {
            return Err(format!("Bad NearestN '{}', must be >= 0", query.nearest));
        }
        if let Some(meta) = &query.node_meta {
            judge_meta(meta, false)?;
        }
        match (query.ttl.as_str(), duration::parse(&query.ttl)) {
            ("", _) | (_, Ok(_)) => Ok(()),
            (ttl, Err(duration::Invalid::Negative(_))) => {
                // Go tells it in nanoseconds.
                let time = ttl
                    .strip_prefix('-')
                    .and_then(|it| duration::parse(it).ok());
                let nanos = time.unwrap_or_default().as_nanos();
                Err(format!("DNS TTL '-{nanos}', must be >=0"))
            }
            (ttl, Err(wrong)) => Err(format!("Bad DNS TTL '{ttl}': time: {wrong}")),
        }
    }

    /// The query to keep, with a session that is there.
    fn bound(self, state: &State) -> Result<Query, Refusal> {
        let mut query = self.query;
        query.session = match self.session {
            Named::Nobody => None,
            Named::Session(id) if state.replica.sessions.session(id).is_some() => Some(id),
            Named::Session(id) => {
                return Err(Refusal::internal(format!("invalid session \"{id}\"")));
            }
            Named::Malformed(_, wrong) => {
                let text = wrong.to_string();
                let text = text.replace("failed session lookup", "invalid session");
                return Err(Refusal::internal(text));
            }
        };
        if !matches!(&*self.kind, "" | "name_prefix_match") {
            return Err(Refusal::internal(format!(
                "failed compiling template: Bad Template.Type '{}'",
                self.kind
            )));
        }
        Ok(query)
    }
}

fn given<T>(given: Given<T>) -> Option<T> {
    match given {
        Given::Value(value) => Some(value),
        Given::Absent | Given::Null => None,
    }
}

/// Go tells these types by another package.
fn of_structs(Undecodable(text): Undecodable) -> Undecodable {
    Undecodable(text.replace("agent.PreparedQuery", "structs.PreparedQuery"))
}

fn as_query(wrong: &impl std::fmt::Display) -> String {
    wrong
        .to_string()
        .replace("session lookup", "prepared query lookup")
}

fn known(state: &State, id: SessionId) -> Result<(), Refusal> {
    match state.replica.queries.get(id) {
        Some(_) => Ok(()),
        None => Err(Refusal::internal(format!(
            "Cannot modify non-existent prepared query: '{id}'"
        ))),
    }
}

fn resolved(state: &State, name: &str) -> Result<(SessionId, Query), Refusal> {
    let found = state.replica.queries.resolve(name);
    let found = found.map_err(|wrong| Refusal::internal(wrong.to_string()))?;
    found.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "Query not found"))
}

/// How many instances Consul looks at for those on the node that the others are sorted from.
const FIRST: usize = 10;

/// The instances of one datacenter, shuffled, and then sorted by the distance from a node if there
/// is one and it has a place.
fn found_in(core: &Arc<Core>, query: &Query, near: &str, limit: usize) -> Vec<Value> {
    let mut locked = core.lock();
    let mut found = Vec::new();
    {
        let state = &locked.state;
        let catalog = &state.replica.catalog;
        let instances: Vec<_> = match query.connect {
            true => catalog.connect_instances(&query.service).collect(),
            false => catalog.instances(&query.service).collect(),
        };
        for instance in instances {
            let is_ignored = |id: &String| query.ignored_checks.iter().flatten().any(|it| it == id);
            let is_out = instance.checks().any(|check| {
                !is_ignored(&check.id)
                    && (check.status == CRITICAL || (query.only_passing && check.status != PASSING))
            });
            let has = |wanted: &str| {
                let mut tags = instance.service.tags.iter();
                tags.any(|tag| tag.eq_ignore_ascii_case(wanted))
            };
            let fits = query
                .tags
                .iter()
                .flatten()
                .all(|tag| match tag.strip_prefix('!') {
                    Some(unwanted) => !has(unwanted),
                    None => has(tag),
                });
            let on_node = query.node_meta.iter().flatten().all(|(key, value)| {
                instance.node.meta.as_ref().and_then(|meta| meta.get(key)) == Some(value)
            });
            let in_service = query
                .service_meta
                .iter()
                .flatten()
                .all(|(key, value)| instance.service.meta.get(key) == Some(value));
            if !is_out && fits && on_node && in_service {
                let view = HealthView::new(instance, &state.identity.datacenter);
                let view = serde_json::to_value(view).unwrap_or_default();
                found.push((instance.node.name.clone(), view));
            }
        }
    }
    // Fisher and Yates.
    for last in (1..found.len()).rev() {
        let bound = u64::try_from(last + 1).unwrap_or(u64::MAX);
        let other = usize::try_from(locked.state.random(bound)).unwrap_or(0);
        found.swap(last, other);
    }
    let places = &locked.state.replica.coordinates;
    places.sort(near, &mut found, |(node, _)| node);
    // One without a place is the nearest to itself, too.
    let on_it = found.iter().take(FIRST).position(|(node, _)| node == near);
    if let Some(at) = on_it {
        found.swap(0, at);
    }
    if limit > 0 {
        found.truncate(limit);
    }
    found.into_iter().map(|(_, view)| view).collect()
}

fn queries(what: What, layout: Layout) -> Read {
    Read {
        what,
        narrow: Narrow::default(),
        filter: None,
        near: String::new(),
        layout,
        headers: Headers::Catalog,
        cacheable: false,
    }
}

/// What stands at the end of both answers.
fn close(body: &mut Value, options: &Options) {
    if let Value::Object(body) = body {
        body.insert("Index".to_owned(), json!(0));
        body.insert("LastContact".to_owned(), json!(0));
        body.insert("KnownLeader".to_owned(), json!(true));
        let level = options.consistency.as_str();
        body.insert("ConsistencyLevel".to_owned(), json!(level));
    }
}

fn headed(mut reply: Reply, options: &Options) -> Reply {
    reply::set(&mut reply, "x-consul-index", "1");
    reply::set(&mut reply, "x-consul-knownleader", "true");
    reply::set(&mut reply, "x-consul-lastcontact", "0");
    let level = options.consistency.as_str();
    reply::set(&mut reply, "x-consul-effective-consistency", level);
    reply
}

/// A query as lists show it.
pub(super) fn view(id: SessionId, query: &Query) -> impl Serialize + use<> {
    json!({
        "ID": id.to_string(),
        "Name": query.name,
        "Session": query.session.map(|id| id.to_string()).unwrap_or_default(),
        "Token": "",
        "Template": {
            "Type": if query.is_template { "name_prefix_match" } else { "" },
            "Regexp": "",
            "RemoveEmptyTags": query.remove_empty_tags,
        },
        "Service": {
            "Service": query.service,
            "Failover": {
                "NearestN": query.nearest,
                "Datacenters": query.datacenters,
            },
            "OnlyPassing": query.only_passing,
            "IgnoreCheckIDs": query.ignored_checks,
            "Near": query.near,
            "Tags": query.tags,
            "NodeMeta": query.node_meta,
            "ServiceMeta": query.service_meta,
            "Connect": query.connect,
        },
        "DNS": {"TTL": query.ttl},
        "CreateIndex": query.created,
        "ModifyIndex": query.modified,
    })
}
