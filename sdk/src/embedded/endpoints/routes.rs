//! Which paths Consul 1.8.7 knows, with which methods, and which of them this agent serves.

use http::Method;

/// What is served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Endpoint {
    AgentSelf,
    AgentMembers,
    AgentLeave,
    AgentServices,
    AgentService,
    AgentChecks,
    AgentHealthById,
    AgentHealthByName,
    ServiceRegister,
    ServiceDeregister,
    ServiceMaintenance,
    NodeMaintenance,
    CheckRegister,
    CheckDeregister,
    CheckUpdate,
    CheckPass,
    CheckWarn,
    CheckFail,
    CatalogDatacenters,
    CatalogNodes,
    CatalogServices,
    CatalogService,
    CatalogConnect,
    CatalogNode,
    CatalogNodeServices,
    CatalogRegister,
    CatalogDeregister,
    HealthNode,
    HealthChecks,
    HealthService,
    HealthConnect,
    HealthState,
    Kv,
    SessionCreate,
    SessionDestroy,
    SessionRenew,
    SessionInfo,
    SessionNode,
    SessionList,
    Txn,
    EventFire,
    EventList,
    Queries,
    Query,
    CoordinateDatacenters,
    CoordinateNodes,
    CoordinateNode,
    CoordinateUpdate,
    StatusLeader,
    StatusPeers,
    /// Consul has it and this agent does not.
    Unserved,
}

#[derive(Debug)]
pub(super) struct Route {
    path: &'static str,
    methods: &'static [Method],
    pub(super) endpoint: Endpoint,
}

const fn route(path: &'static str, methods: &'static [Method], endpoint: Endpoint) -> Route {
    Route {
        path,
        methods,
        endpoint,
    }
}

const GET: &[Method] = &[Method::GET];
const PUT: &[Method] = &[Method::PUT];
const POST: &[Method] = &[Method::POST];
const ALL: &[Method] = &[Method::GET, Method::PUT, Method::DELETE];
const GET_POST: &[Method] = &[Method::GET, Method::POST];
const GET_PUT: &[Method] = &[Method::GET, Method::PUT];
const GET_DELETE: &[Method] = &[Method::GET, Method::DELETE];
const ANY: &[Method] = &[Method::GET, Method::POST, Method::PUT, Method::DELETE];

use Endpoint::Unserved;

/// A path that ends in a slash stands for everything below it, as in Go's `ServeMux`.
const ROUTES: &[Route] = &[
    route("/v1/agent/self", GET, Endpoint::AgentSelf),
    route("/v1/agent/members", GET, Endpoint::AgentMembers),
    route("/v1/agent/services", GET, Endpoint::AgentServices),
    route("/v1/agent/service/", GET, Endpoint::AgentService),
    route("/v1/agent/checks", GET, Endpoint::AgentChecks),
    route(
        "/v1/agent/health/service/id/",
        GET,
        Endpoint::AgentHealthById,
    ),
    route(
        "/v1/agent/health/service/name/",
        GET,
        Endpoint::AgentHealthByName,
    ),
    route("/v1/agent/service/register", PUT, Endpoint::ServiceRegister),
    route(
        "/v1/agent/service/deregister/",
        PUT,
        Endpoint::ServiceDeregister,
    ),
    route(
        "/v1/agent/service/maintenance/",
        PUT,
        Endpoint::ServiceMaintenance,
    ),
    route("/v1/agent/maintenance", PUT, Endpoint::NodeMaintenance),
    route("/v1/agent/check/register", PUT, Endpoint::CheckRegister),
    route(
        "/v1/agent/check/deregister/",
        PUT,
        Endpoint::CheckDeregister,
    ),
    route("/v1/agent/check/update/", PUT, Endpoint::CheckUpdate),
    route("/v1/agent/check/pass/", PUT, Endpoint::CheckPass),
    route("/v1/agent/check/warn/", PUT, Endpoint::CheckWarn),
    route("/v1/agent/check/fail/", PUT, Endpoint::CheckFail),
    route("/v1/agent/host", GET, Unserved),
    route("/v1/agent/metrics", GET, Unserved),
    route("/v1/agent/monitor", GET, Unserved),
    route("/v1/agent/reload", PUT, Unserved),
    route("/v1/agent/join/", PUT, Unserved),
    route("/v1/agent/leave", PUT, Endpoint::AgentLeave),
    route("/v1/agent/force-leave/", PUT, Unserved),
    route("/v1/agent/token/", PUT, Unserved),
    route("/v1/agent/connect/authorize", POST, Unserved),
    route("/v1/agent/connect/ca/roots", GET, Unserved),
    route("/v1/agent/connect/ca/leaf/", GET, Unserved),
    route("/v1/catalog/datacenters", GET, Endpoint::CatalogDatacenters),
    route("/v1/catalog/nodes", GET, Endpoint::CatalogNodes),
    route("/v1/catalog/services", GET, Endpoint::CatalogServices),
    route("/v1/catalog/service/", GET, Endpoint::CatalogService),
    route("/v1/catalog/connect/", GET, Endpoint::CatalogConnect),
    route("/v1/catalog/node/", GET, Endpoint::CatalogNode),
    route(
        "/v1/catalog/node-services/",
        GET,
        Endpoint::CatalogNodeServices,
    ),
    route("/v1/catalog/register", PUT, Endpoint::CatalogRegister),
    route("/v1/catalog/deregister", PUT, Endpoint::CatalogDeregister),
    route("/v1/catalog/gateway-services/", GET, Unserved),
    route("/v1/health/node/", GET, Endpoint::HealthNode),
    route("/v1/health/checks/", GET, Endpoint::HealthChecks),
    route("/v1/health/service/", GET, Endpoint::HealthService),
    route("/v1/health/connect/", GET, Endpoint::HealthConnect),
    route("/v1/health/state/", GET, Endpoint::HealthState),
    route("/v1/health/ingress/", GET, Unserved),
    route("/v1/kv/", ALL, Endpoint::Kv),
    route("/v1/status/leader", GET, Endpoint::StatusLeader),
    route("/v1/status/peers", GET, Endpoint::StatusPeers),
    route("/v1/session/create", PUT, Endpoint::SessionCreate),
    route("/v1/session/destroy/", PUT, Endpoint::SessionDestroy),
    route("/v1/session/renew/", PUT, Endpoint::SessionRenew),
    route("/v1/session/info/", GET, Endpoint::SessionInfo),
    route("/v1/session/node/", GET, Endpoint::SessionNode),
    route("/v1/session/list", GET, Endpoint::SessionList),
    route("/v1/txn", PUT, Endpoint::Txn),
    route("/v1/event/fire/", PUT, Endpoint::EventFire),
    route("/v1/event/list", GET, Endpoint::EventList),
    route("/v1/query", GET_POST, Endpoint::Queries),
    route("/v1/query/", ALL, Endpoint::Query),
    route(
        "/v1/coordinate/datacenters",
        GET,
        Endpoint::CoordinateDatacenters,
    ),
    route("/v1/coordinate/nodes", GET, Endpoint::CoordinateNodes),
    route("/v1/coordinate/node/", GET, Endpoint::CoordinateNode),
    route("/v1/coordinate/update", PUT, Endpoint::CoordinateUpdate),
    route("/v1/snapshot", GET_PUT, Unserved),
    route("/v1/config", PUT, Unserved),
    route("/v1/config/", GET_DELETE, Unserved),
    route("/v1/connect/ca/roots", GET, Unserved),
    route("/v1/connect/ca/configuration", GET_PUT, Unserved),
    route("/v1/connect/intentions", GET_POST, Unserved),
    route("/v1/connect/intentions/", ALL, Unserved),
    route("/v1/discovery-chain/", GET_POST, Unserved),
    route("/v1/internal/", ANY, Unserved),
    route("/v1/operator/", ANY, Unserved),
    route("/v1/acl/", ANY, Unserved),
    route("/ui/", ANY, Unserved),
];

impl Endpoint {
    /// Whether a server of another datacenter answers if `?dc=` names it.
    pub(super) fn is_forwarded(self) -> bool {
        matches!(
            self,
            Self::CatalogNodes
                | Self::CatalogServices
                | Self::CatalogService
                | Self::CatalogConnect
                | Self::CatalogNode
                | Self::CatalogNodeServices
                | Self::HealthNode
                | Self::HealthChecks
                | Self::HealthService
                | Self::HealthConnect
                | Self::HealthState
                | Self::Kv
                | Self::SessionCreate
                | Self::SessionDestroy
                | Self::SessionRenew
                | Self::SessionInfo
                | Self::SessionNode
                | Self::SessionList
                | Self::Txn
                | Self::EventFire
                | Self::Queries
                | Self::Query
                | Self::CoordinateNodes
                | Self::CoordinateNode
                | Self::CoordinateUpdate
        )
    }

    /// Whether Consul reads `?ns=` here, which its community edition refuses.
    pub(super) fn reads_namespace(self) -> bool {
        !matches!(
            self,
            Self::AgentSelf
                | Self::AgentMembers
                | Self::AgentLeave
                | Self::NodeMaintenance
                | Self::CatalogDatacenters
                | Self::CatalogNodes
                | Self::StatusLeader
                | Self::StatusPeers
                | Self::Txn
        )
    }
}

impl Route {
    /// The longest path that fits, with what follows it.
    pub(super) fn find(path: &str) -> Option<(&'static Self, &str)> {
        ROUTES
            .iter()
            .filter_map(|route| {
                let rest = path.strip_prefix(route.path)?;
                (rest.is_empty() || route.path.ends_with('/')).then_some((route, rest))
            })
            .max_by_key(|(route, _)| route.path.len())
    }

    /// Whether a path is known with a slash at its end only.
    pub(super) fn is_folder(path: &str) -> bool {
        ROUTES
            .iter()
            .any(|route| route.path.strip_suffix('/') == Some(path))
    }

    pub(super) fn takes(&self, method: &Method) -> bool {
        self.methods.contains(method)
    }

    /// The value of the `Allow` header.
    pub(super) fn allowed(&self) -> String {
        let mut allowed = "OPTIONS".to_owned();
        for method in self.methods {
            allowed.push(',');
            allowed.push_str(method.as_str());
        }
        allowed
    }
}
