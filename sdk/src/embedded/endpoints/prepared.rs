//! Prepared queries.

use std::sync::Arc;

use http::{Method, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};

use super::Call;
use super::blocking::with_first_index;
use super::decode::{Fields, Given, Undecodable};
use super::query::Options;
use super::read::{Headers, Narrow, Read, What};
use super::reply::{self, Layout, Refusal, Reply};
use super::views::HealthView;
use crate::embedded::core::Core;
use crate::embedded::state::State;
use crate::embedded::state::model::{CRITICAL, PASSING};
use crate::embedded::state::queries::Query;
use crate::embedded::state::session::SessionId;
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
        let query = self.wanted()?;
        self.check_datacenter(self.params.value("dc"))?;
        self.await_leader().await?;
        let mut locked = self.core.lock();
        let state = &mut locked.state;
        if let Some(id) = id {
            known(state, id)?;
        }
        judge(&query)
            .map_err(|text| Refusal::internal(format!("Invalid prepared query: {text}")))?;
        if state.replica.queries.named_alike(id, &query) {
            let text = match query.is_template && query.name.is_empty() {
                true => "a query template with an empty name already exists".to_owned(),
                false => format!("name '{}' aliases an existing query name", query.name),
            };
            return Err(Refusal::internal(text));
        }
        let new = SessionId::new(state.random(u64::MAX), state.random(u64::MAX));
        let index = state.next_index();
        state.replica.queries.put(index, id.unwrap_or(new), query);
        Ok(match id {
            Some(_) => reply::empty(StatusCode::OK),
            None => reply::json(&json!({"ID": new.to_string()}), self.layout()),
        })
    }

    /// Reads a query from the body.
    fn wanted(&self) -> Result<Query, Refusal> {
        let mut fields = Fields::parse_as("PreparedQuery", &self.body).map_err(of_structs)?;
        let name = fields.string(&["Name"])?;
        fields.string(&["ID"])?;
        fields.string(&["Token"])?;
        if !fields.string(&["Session"])?.is_empty() {
            return Err(self.unserved(" with a session"));
        }
        let mut query = Query {
            name,
            ..Query::default()
        };
        if let Some(mut template) = fields.object(&["Template"], "structs.QueryTemplateOptions")? {
            let kind = template.string(&["Type"])?;
            if !template.string(&["Regexp"])?.is_empty() {
                return Err(self.unserved(" with a regular expression"));
            }
            query.remove_empty_tags = template.boolean(&["RemoveEmptyTags"])?;
            template.finish()?;
            query.is_template = match &*kind {
                "" => false,
                "name_prefix_match" => true,
                other => {
                    return Err(Refusal::internal(format!(
                        "Invalid prepared query: Bad Template.Type '{other}'"
                    )));
                }
            };
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
        Ok(query)
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
            text => text.parse::<usize>().map_err(|_| {
                let text = format!("Bad limit: strconv.Atoi: parsing {text:?}: invalid syntax");
                Refusal::bad_request(text)
            })?,
        };
        self.check_datacenter(&options.datacenter)
            .map_err(with_first_index)?;
        self.await_leader().await.map_err(with_first_index)?;
        let (query, own) = {
            let locked = self.core.lock();
            let (_, query) = resolved(&locked.state, name)?;
            (query, locked.state.identity.datacenter.clone())
        };
        let mut found = found_in(&self.core, &query, limit);
        let mut place = own.clone();
        let mut failovers = 0;
        if found.is_empty() {
            let near: Vec<String> = self.core.links().into_keys().collect();
            let nearest = usize::try_from(query.nearest).unwrap_or(0);
            let mut left: Vec<&String> = near.iter().take(nearest).collect();
            for named in query.datacenters.iter().flatten() {
                // Itself was asked already, and one that nobody knows is passed over.
                if *named != own && near.contains(named) && !left.contains(&named) {
                    left.push(named);
                }
            }
            for datacenter in left {
                let Some(peer) = self.core.linked(datacenter) else {
                    continue;
                };
                failovers += 1;
                place.clone_from(datacenter);
                found = found_in(&peer, &query, limit);
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
    found.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "Query not found"))
}

/// What a server refuses to keep.
fn judge(query: &Query) -> Result<(), String> {
    if query.service.is_empty() {
        return Err("Must provide a Service name to query".to_owned());
    }
    if query.nearest < 0 {
        return Err(format!("Bad NearestN '{}', must be >= 0", query.nearest));
    }
    if !query.ttl.is_empty() {
        match duration::parse(&query.ttl) {
            Ok(_) => {}
            Err(duration::Invalid::Negative(_)) => {
                return Err(format!("DNS TTL '{}', must be >=0", query.ttl));
            }
            Err(wrong) => return Err(format!("Bad DNS TTL '{}': time: {wrong}", query.ttl)),
        }
    }
    Ok(())
}

/// The instances of one datacenter, shuffled.
fn found_in(core: &Arc<Core>, query: &Query, limit: usize) -> Vec<Value> {
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
                found.push(serde_json::to_value(view).unwrap_or_default());
            }
        }
    }
    // Fisher and Yates.
    for last in (1..found.len()).rev() {
        let bound = u64::try_from(last + 1).unwrap_or(u64::MAX);
        let other = usize::try_from(locked.state.random(bound)).unwrap_or(0);
        found.swap(last, other);
    }
    if limit > 0 {
        found.truncate(limit);
    }
    found
}

fn queries(what: What, layout: Layout) -> Read {
    Read {
        what,
        narrow: Narrow::default(),
        filter: None,
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
        "Session": "",
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
