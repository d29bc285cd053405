//! Prepared queries: look-ups of services that Consul keeps, with failover to other datacenters;
//! `/v1/query`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::endpoint::{Answered, answers_with_list};
use super::health::ServiceEntry;
use super::{Endpoint, Read, Write};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::ident::{Datacenter, QueryId, QueryName, ServiceName, SessionId};
use crate::proto::duration;
use crate::proto::json;
use crate::proto::query::Target;

impl Client {
    /// Prepared queries.
    #[must_use]
    pub fn query(&self) -> Queries {
        Queries {
            client: self.clone(),
        }
    }
}

/// Calls about prepared queries.
///
/// # Examples
///
/// ```no_run
/// # async fn example(client: lictor::Client) -> lictor::Result<()> {
/// use lictor::api::query::PreparedQuery;
///
/// // Where this datacenter has none that pass, the two nearest are asked, and then `dc9`.
/// let query = PreparedQuery::new("web")
///     .name("web-anywhere")
///     .only_passing()
///     .failover_to_nearest(2)
///     .failover_to("dc9");
/// client.query().create(&query).await?;
///
/// let found = client.query().execute("web-anywhere").await?;
/// println!("{} instances in {}", found.nodes().len(), found.datacenter());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Queries {
    client: Client,
}

impl Queries {
    /// Keeps a query; the answer is its ID.
    ///
    /// A name that another query has is refused with [`ErrorKind::Conflict`]. Not to be repeated
    /// blindly: after a lost answer a query may be there whose ID nobody knows.
    #[doc(alias = "POST /v1/query")]
    pub fn create(&self, query: &PreparedQuery) -> Write<Create> {
        let target = Target::new("/v1/query");
        query.written(Write::put(&self.client, target, Create(())).posting())
    }

    /// Replaces a query; one that is not there is answered with [`ErrorKind::NotFound`].
    #[doc(alias = "PUT /v1/query/:id")]
    pub fn update(&self, id: &QueryId, query: &PreparedQuery) -> Write<Done> {
        let target = Target::of(PATH, id);
        query.written(Write::put(&self.client, target, Done(())))
    }

    /// Deletes a query; one that is not there is answered with [`ErrorKind::NotFound`].
    #[doc(alias = "DELETE /v1/query/:id")]
    pub fn delete(&self, id: &QueryId) -> Write<Done> {
        let target = Target::of(PATH, id);
        Write::put(&self.client, target, Done(())).deleting()
    }

    /// One query; `None` if there is none with this ID.
    #[doc(alias = "GET /v1/query/:id")]
    pub fn read(&self, id: &QueryId) -> Read<One> {
        Read::new(&self.client, Target::of(PATH, id), One(()))
    }

    /// All queries that the token may see.
    #[doc(alias = "GET /v1/query")]
    pub fn list(&self) -> Read<List> {
        Read::new(&self.client, Target::new("/v1/query"), List(()))
    }

    /// Asks a query, by its name, its ID, or a name that a template fits.
    ///
    /// One that is not there is answered with [`ErrorKind::NotFound`]. To follow it, see
    /// [`Read::watch_every`].
    #[doc(alias = "GET /v1/query/:name/execute")]
    pub fn execute(&self, name: impl Into<Arc<str>>) -> Read<Execute> {
        let path = QueryName::new(name).map(|name| format!("{name}/execute"));
        Read::named(&self.client, PATH, path, Execute(()))
    }

    /// Which query a name leads to, with the template filled in.
    #[doc(alias = "GET /v1/query/:name/explain")]
    pub fn explain(&self, name: impl Into<Arc<str>>) -> Read<Explain> {
        let path = QueryName::new(name).map(|name| format!("{name}/explain"));
        Read::named(&self.client, PATH, path, Explain(()))
    }
}

const PATH: &str = "/v1/query/";

impl Read<Execute> {
    /// At most so many instances. Default: all.
    pub fn limit(mut self, instances: u32) -> Self {
        self.call.target.push_number("limit", instances.into());
        self
    }
}

/// A query to be kept.
///
/// Only what is set is sent. What was wrong is told when the call is awaited.
#[derive(Clone, Debug)]
#[must_use = "a query does nothing until it is created"]
pub struct PreparedQuery {
    body: Body,
    wrong: Option<Error>,
}

impl PreparedQuery {
    /// A query for the instances of a service.
    pub fn new(service: impl Into<String>) -> Self {
        let service = service.into();
        let wrong = ServiceName::new(service.as_str()).err();
        let body = Body {
            service: Service {
                service,
                ..Service::default()
            },
            ..Body::default()
        };
        Self { body, wrong }
    }

    fn set(mut self, set: impl FnOnce(&mut Body)) -> Self {
        set(&mut self.body);
        self
    }

    /// The name by which it is asked, and by DNS as `NAME.query.consul`. Default: none, only its ID;
    /// Consul then wants it bound to a [session](Self::session).
    pub fn name(self, name: impl Into<String>) -> Self {
        let name = name.into();
        let mut named = self.set(|body| body.name = Some(name.clone()));
        if let Err(err) = QueryName::new(name.as_str()) {
            named.wrong.get_or_insert(err);
        }
        named
    }

    /// Makes it a template: it answers for every name that begins with its own, and `${name.full}`,
    /// `${name.prefix}` and `${name.suffix}` stand for parts of the one that was asked. Without a
    /// [name](Self::name) it answers for every name that nobody else does. Default: it is none.
    pub fn template(self) -> Self {
        let kind = "name_prefix_match";
        self.set(|body| body.template = Some(Template { kind, regexp: None }))
    }

    /// The same; `${match(N)}` also stands for the N-th group of this regular expression (Go's).
    pub fn template_matching(self, regexp: impl Into<String>) -> Self {
        let template = Template {
            kind: "name_prefix_match",
            regexp: Some(regexp.into()),
        };
        self.set(|body| body.template = Some(template))
    }

    /// Only instances all of whose checks pass. Default: also those that warn.
    pub fn only_passing(self) -> Self {
        self.set(|body| body.service.only_passing = true)
    }

    /// Only instances with this tag, or without it if it begins with `!`; call it again for more.
    /// Default: all.
    pub fn tag(self, tag: impl Into<String>) -> Self {
        let tag = tag.into();
        self.set(|body| body.service.tags.push(tag))
    }

    /// Only nodes with this metadata; call it again for more. Default: all.
    pub fn node_meta(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let (key, value) = (key.into(), value.into());
        self.set(|body| drop(body.service.node_meta.insert(key, value)))
    }

    /// Only instances with this metadata; call it again for more. Default: all.
    pub fn service_meta(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let (key, value) = (key.into(), value.into());
        self.set(|body| drop(body.service.service_meta.insert(key, value)))
    }

    /// Sorts by round-trip time from this node; `_agent` is that of the agent that is asked. Default:
    /// shuffled.
    pub fn near(self, node: impl Into<String>) -> Self {
        let node = node.into();
        self.set(|body| body.service.near = Some(node))
    }

    /// Where nothing is found, asks so many of the nearest other datacenters. Default: none.
    pub fn failover_to_nearest(self, datacenters: u32) -> Self {
        self.set(|body| body.service.failover.nearest_n = datacenters)
    }

    /// Where nothing is found still, asks this datacenter; call it again for more, which are asked
    /// in this order. Default: none.
    pub fn failover_to(mut self, datacenter: impl TryInto<Datacenter, Error = Error>) -> Self {
        match datacenter.try_into() {
            Ok(datacenter) => self.body.service.failover.datacenters.push(datacenter),
            Err(err) => drop(self.wrong.get_or_insert(err)),
        }
        self
    }

    /// Looks for proxies that speak for the service in the mesh. Default: for the service itself.
    pub fn connect(self) -> Self {
        self.set(|body| body.service.connect = true)
    }

    /// How long DNS answers may be kept, in whole seconds. Default: what the agent says.
    pub fn dns_ttl(self, ttl: Duration) -> Self {
        let ttl = duration::format(ttl);
        self.set(|body| body.dns = Some(Dns { ttl }))
    }

    /// Deletes the query when this session ends. Default: it stays.
    pub fn session(self, session: &SessionId) -> Self {
        let session = session.clone();
        self.set(|body| body.session = Some(session))
    }

    fn written<E>(&self, write: Write<E>) -> Write<E> {
        match &self.wrong {
            Some(err) => write.refuse(err.clone()),
            None => write.json(&self.body),
        }
    }
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Body {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<SessionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<Template>,
    service: Service,
    #[serde(rename = "DNS", skip_serializing_if = "Option::is_none")]
    dns: Option<Dns>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Template {
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    regexp: Option<String>,
}

fn is_no(is: &bool) -> bool {
    !is
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    service: String,
    #[serde(skip_serializing_if = "is_no")]
    only_passing: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    node_meta: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    service_meta: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    near: Option<String>,
    failover: Failover,
    #[serde(skip_serializing_if = "is_no")]
    connect: bool,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Failover {
    nearest_n: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    datacenters: Vec<Datacenter>,
}

#[derive(Clone, Debug, Serialize)]
struct Dns {
    #[serde(rename = "TTL")]
    ttl: String,
}

/// A query as Consul keeps it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase")]
pub struct StoredQuery {
    #[serde(rename = "ID")]
    id: QueryId,
    #[serde(default)]
    name: String,
    #[serde(default)]
    session: String,
    service: StoredService,
    #[serde(default)]
    create_index: u64,
    #[serde(default)]
    modify_index: u64,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase")]
struct StoredService {
    service: ServiceName,
    #[serde(default)]
    only_passing: bool,
    #[serde(default, deserialize_with = "json::list")]
    tags: Box<[String]>,
    #[serde(default)]
    failover: StoredFailover,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase", default)]
struct StoredFailover {
    nearest_n: i64,
    #[serde(deserialize_with = "json::list")]
    datacenters: Box<[Datacenter]>,
}

impl StoredQuery {
    /// Its ID.
    #[must_use]
    pub fn id(&self) -> &QueryId {
        &self.id
    }

    /// Its name, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        Some(self.name.as_str()).filter(|name| !name.is_empty())
    }

    /// The session that it ends with, if it does.
    #[must_use]
    pub fn session(&self) -> Option<&str> {
        Some(self.session.as_str()).filter(|session| !session.is_empty())
    }

    /// The service that it looks for.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.service.service
    }

    /// Whether only instances count that pass.
    #[must_use]
    pub fn is_only_passing(&self) -> bool {
        self.service.only_passing
    }

    /// Which tags instances must have, or must not.
    #[must_use]
    pub fn tags(&self) -> &[String] {
        &self.service.tags
    }

    /// How many of the nearest datacenters are asked where nothing is found.
    #[must_use]
    pub fn nearest(&self) -> u32 {
        u32::try_from(self.service.failover.nearest_n).unwrap_or(0)
    }

    /// Which datacenters are asked then.
    #[must_use]
    pub fn datacenters(&self) -> &[Datacenter] {
        &self.service.failover.datacenters
    }

    /// The index at which it came to be.
    #[must_use]
    pub fn create_index(&self) -> u64 {
        self.create_index
    }

    /// The index of its last change.
    #[must_use]
    pub fn modify_index(&self) -> u64 {
        self.modify_index
    }
}

/// What a query has found.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase")]
pub struct Execution {
    service: ServiceName,
    #[serde(default, deserialize_with = "json::list")]
    nodes: Box<[Arc<ServiceEntry>]>,
    datacenter: Datacenter,
    #[serde(default)]
    failovers: u32,
}

impl Execution {
    /// The service that was looked for.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// Its instances: shuffled, or the nearest first if that was asked for.
    #[must_use]
    pub fn nodes(&self) -> &[Arc<ServiceEntry>] {
        &self.nodes
    }

    /// The datacenter that they are in; the last one that was asked if there are none.
    #[must_use]
    pub fn datacenter(&self) -> &Datacenter {
        &self.datacenter
    }

    /// How many other datacenters were asked.
    #[must_use]
    pub fn failovers(&self) -> u32 {
        self.failovers
    }
}

/// The keeping of a query: [`Queries::create`].
#[derive(Clone, Debug)]
pub struct Create(());

impl Endpoint for Create {
    type Output = QueryId;

    fn interpret(&self, answer: Answered) -> Result<QueryId> {
        #[derive(Deserialize)]
        struct Created {
            #[serde(rename = "ID")]
            id: QueryId,
        }
        Ok(answer.good()?.decode::<Created>()?.id)
    }
}

/// A change that has nothing to say: [`Queries::update`], [`Queries::delete`].
#[derive(Clone, Debug)]
pub struct Done(());

impl Endpoint for Done {
    type Output = ();

    fn interpret(&self, answer: Answered) -> Result<()> {
        answer.good().map(drop)
    }
}

/// One query: [`Queries::read`].
#[derive(Clone, Debug)]
pub struct One(());

impl Endpoint for One {
    type Output = Option<StoredQuery>;

    fn interpret(&self, answer: Answered) -> Result<Self::Output> {
        // The only 404 without an index that means something: Consul says what is missing. Servers
        // that had to ask others say so before it.
        if answer.0.status == StatusCode::NOT_FOUND && answer.0.body.ends_with(b"Query not found") {
            return Ok(None);
        }
        let failed = answer.0.status == StatusCode::INTERNAL_SERVER_ERROR;
        match answer.good() {
            // An ID that is no UUID, which 1.8.7 answers with 500, is nobody's.
            Err(err) if failed && err.kind() == ErrorKind::NotFound => Ok(None),
            good => Ok(good?.json::<Vec<StoredQuery>>()?.pop()),
        }
    }
}

/// All queries: [`Queries::list`].
#[derive(Clone, Debug)]
pub struct List(());

answers_with_list!(List => StoredQuery);

/// What a query finds: [`Queries::execute`].
#[derive(Clone, Debug)]
pub struct Execute(());

impl Endpoint for Execute {
    type Output = Execution;

    fn interpret(&self, answer: Answered) -> Result<Execution> {
        answer.good()?.decode()
    }
}

/// Which query a name leads to: [`Queries::explain`].
#[derive(Clone, Debug)]
pub struct Explain(());

impl Endpoint for Explain {
    type Output = StoredQuery;

    fn interpret(&self, answer: Answered) -> Result<StoredQuery> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Explained {
            query: StoredQuery,
        }
        Ok(answer.good()?.decode::<Explained>()?.query)
    }
}
