//! What a channel keeps for one endpoint.

use http::HeaderValue;
use http::uri::Authority;

use crate::balance::Backend;
use crate::connect::Pool;
use crate::endpoint::Target;
use crate::telemetry::Counts;

/// The connections to an endpoint, and its name in requests that name no host.
#[derive(Debug)]
pub(super) struct Upstream {
    pool: Pool,
    named: Option<(HeaderValue, Authority)>,
    counts: Counts,
}

impl Upstream {
    pub(super) fn new(target: &Target, pool: Pool) -> Self {
        let named = Authority::try_from(target.to_string())
            .ok()
            .and_then(|name| Some((HeaderValue::from_str(name.as_str()).ok()?, name)));
        Self {
            pool,
            named,
            counts: Counts::default(),
        }
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(super) fn host(&self) -> Option<&HeaderValue> {
        self.named.as_ref().map(|(host, _)| host)
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

    fn counts(&self) -> Option<&Counts> {
        Some(&self.counts)
    }
}

#[cfg(test)]
impl Upstream {
    /// One that is only a name.
    pub(super) fn unconnected(target: &Target) -> Self {
        use std::sync::Arc;

        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let _inside = runtime.enter();
        let settings = crate::connect::Settings {
            runtime: crate::task::Runtime::current().unwrap(),
            protocol: crate::connect::Protocol::Http1,
            connect_timeout: std::time::Duration::from_secs(1),
            most_idle: 1,
        };
        Self::new(target, Pool::new(target.clone(), Arc::new(settings)))
    }
}
