//! What a channel keeps for one endpoint.

use std::sync::Arc;

use http::HeaderValue;
use http::uri::{Authority, Scheme};

use crate::balance::{Backend, Candidate, Clock};
use crate::connect::Pool;
use crate::endpoint::{Endpoint, Target};
use crate::telemetry::Counts;

use super::warm::Warming;

/// The connections to an endpoint, and its name in requests that name no host.
#[derive(Debug)]
pub(super) struct Upstream {
    pool: Pool,
    named: Option<(HeaderValue, Authority)>,
    warming: Option<Warming>,
    counts: Counts,
}

impl Upstream {
    pub(super) fn new(target: &Target, pool: Pool, warming: Option<Warming>) -> Self {
        let named = Authority::try_from(target.to_string())
            .ok()
            .and_then(|name| Some((HeaderValue::from_str(name.as_str()).ok()?, name)));
        Self {
            pool,
            named,
            warming,
            counts: Counts::default(),
        }
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(super) fn host(&self) -> Option<&HeaderValue> {
        self.named.as_ref().map(|(host, _)| host)
    }

    pub(super) fn scheme(&self) -> Scheme {
        if self.pool.is_secured() {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        }
    }

    pub(super) fn authority(&self) -> Option<&Authority> {
        self.named.as_ref().map(|(_, authority)| authority)
    }
}

impl Backend for Upstream {
    fn retire(&self) {
        self.pool.retire();
    }

    fn age(&self) {
        self.pool.age();
    }

    fn follow(&self, endpoint: &Endpoint) {
        self.pool.follow(endpoint.node(), endpoint.datacenter());
    }

    fn joined(member: &Arc<Candidate<Self>>, clock: Clock) {
        if let Some(warming) = &member.backend().warming {
            warming.ask(member, clock);
        }
    }

    fn counts(&self) -> Option<&Counts> {
        Some(&self.counts)
    }
}

#[cfg(test)]
impl Upstream {
    /// One that is only a name.
    pub(super) fn unconnected(target: &Target) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let _inside = runtime.enter();
        let runtime = crate::task::Runtime::current().unwrap();
        let settings = crate::connect::Settings::plain(runtime);
        Self::new(target, Pool::new(target.clone(), Arc::new(settings)), None)
    }
}
