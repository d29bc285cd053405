//! Names of services as hosts of URIs, and what is kept for each.
//!
//! The [`Connector`](crate::connector::Connector) and the [`Router`](crate::router::Router) take
//! services by the host of a URI. [`Services`] says which hosts are services, and how long what was
//! set up for one is kept.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lictor::Client;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::about::Wanted;
use crate::endpoint::dns_name;
use crate::error::{Error, ErrorKind, Result};
use crate::task::{Runtime, Worker};

/// The services of a Consul, by the names that URIs give them.
///
/// | host | what it names |
/// |---|---|
/// | `web` | the service `web` (a host of one label, other than `localhost`) |
/// | `web.service.consul` | the same |
/// | `v1.web.service.consul` | its instances with the tag `v1`; a tag may have dots in it |
/// | `_web._v1.service.consul` | the same in the form of RFC 2782; `_web._tcp` is without a tag |
/// | `web.service.dc2.consul` | the service in the datacenter `dc2`, also written `web.service.dc2.dc.consul` |
/// | everything else | no service: other names, IP addresses, `localhost`, and whatever has a port |
///
/// These are the rules of Consul's DNS (its `dns.go`, `dispatch`), but that no DNS is asked: the
/// instances are followed over HTTP. Case does not matter, nor does a final dot. A host with a port
/// is no service because the instances have ports of their own.
///
/// What is set up for a service (a watch, its connections) is kept until nobody has asked for it for
/// a while. There is a bound, too, because the hosts of URIs may come from outside: beyond it the one
/// that was asked for longest ago is dropped. What is dropped finishes what is under way; asked for
/// again, a service begins anew, without memory of how its instances fared.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
///
/// use lictor_tower::names::Services;
/// use lictor_tower::router::Router;
///
/// # async fn example(client: lictor::Client) -> Result<(), lictor_tower::Error> {
/// let services = Services::new(client)
///     .domain("consul.example.com")
///     .forget_after(Duration::from_secs(60));
/// let router = Router::new(services)?;
/// # drop(router);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "services are the argument of a connector or a router"]
pub struct Services {
    client: Client,
    domain: String,
    most: usize,
    forget_after: Duration,
}

impl Services {
    /// The services that are found through this client.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            domain: "consul".to_owned(),
            most: 256,
            forget_after: Duration::from_secs(300),
        }
    }

    /// Sets the domain under which services have names: the option `domain` of Consul's agents.
    ///
    /// Default `consul`.
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.domain = domain.into();
        self
    }

    /// Sets how many names are known at once.
    ///
    /// At least 1. Default 256: each is a watch, and more than this in one process is mostly a sign of
    /// names that come from outside.
    pub fn max_services(mut self, most: usize) -> Self {
        self.most = most;
        self
    }

    /// Sets how long a service is followed that nobody asks for.
    ///
    /// It is forgotten after this time or up to a quarter later. Above zero; more than four days are
    /// four days. Default 5 min.
    pub fn forget_after(mut self, time: Duration) -> Self {
        self.forget_after = time;
        self
    }
}

impl From<Client> for Services {
    fn from(client: Client) -> Self {
        Self::new(client)
    }
}

/// What is set up for each service that was asked for; one task forgets those that nobody wants.
pub(crate) struct Directory<T> {
    shared: Arc<Shared<T>>,
    domain: Arc<str>,
    client: Client,
    runtime: Runtime,
    most: usize,
    make: Make<T>,
    /// Ends with this.
    _forgetting: Worker,
}

type Make<T> = Box<dyn Fn(&Client, &Wanted) -> Result<T> + Send + Sync>;

struct Shared<T>(Mutex<HashMap<Box<str>, Known<T>>>);

struct Known<T> {
    wanted: Wanted,
    value: T,
    used: Instant,
}

impl<T: Clone + Send + 'static> Directory<T> {
    pub(crate) fn new(
        services: Services,
        make: impl Fn(&Client, &Wanted) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        let Services {
            client,
            domain,
            most,
            forget_after,
        } = services;
        if most == 0 {
            return Err(invalid("max_services is 0; give 1 at least"));
        }
        if forget_after.is_zero() {
            return Err(invalid("forget_after is zero; give a time above"));
        }
        let domain = dns_name(&domain)?;
        let runtime = Runtime::current().map_err(|error| {
            error.context("services are followed by tasks: set this up inside a runtime")
        })?;
        let shared = Arc::new(Shared(Mutex::new(HashMap::new())));
        let kept = Arc::clone(&shared);
        let forget_after = forget_after.min(LONGEST);
        let forgetting = Worker::spawn(&runtime, move |mut stop| async move {
            let every = (forget_after / 4).max(Duration::from_millis(1));
            let mut turns = interval_at(Instant::now() + every, every);
            turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = stop.recv() => return,
                    now = turns.tick() => kept.forget(now, forget_after),
                }
            }
        });
        Ok(Self {
            shared,
            domain,
            client,
            runtime,
            most,
            make: Box::new(make),
            _forgetting: forgetting,
        })
    }

    /// What is set up for the service that this host names; `None` if it names none.
    pub(crate) fn find(&self, host: &str) -> Result<Option<T>> {
        if let Some(value) = self.shared.touch(host) {
            return Ok(Some(value));
        }
        let Some(wanted) = read(host, &self.domain)? else {
            return Ok(None);
        };
        let mut known = self.shared.lock();
        let same = known.values().find(|known| known.wanted == wanted);
        let value = match same {
            Some(same) => same.value.clone(),
            None => {
                // In the runtime that all of this began in, whatever that of the caller is.
                let _inside = self.runtime.inside();
                (self.make)(&self.client, &wanted)?
            }
        };
        let mut forgotten = None;
        if known.len() >= self.most {
            let oldest = known.iter().min_by_key(|(_, known)| known.used);
            let oldest = oldest.map(|(host, _)| host.clone());
            forgotten = oldest.and_then(|host| known.remove(&host));
        }
        let entry = Known {
            wanted,
            value: value.clone(),
            used: Instant::now(),
        };
        let replaced = known.insert(host.into(), entry);
        drop(known);
        // Not under the lock: this may close connections.
        drop((forgotten, replaced));
        Ok(Some(value))
    }

    /// How many names are known.
    pub(crate) fn len(&self) -> usize {
        self.shared.lock().len()
    }
}

const LONGEST: Duration = Duration::from_secs(4 * 24 * 3_600);

impl<T: Clone> Shared<T> {
    fn touch(&self, host: &str) -> Option<T> {
        let mut known = self.lock();
        let known = known.get_mut(host)?;
        known.used = Instant::now();
        Some(known.value.clone())
    }

    fn forget(&self, now: Instant, forget_after: Duration) {
        let mut known = self.lock();
        let old = |known: &Known<T>| now.saturating_duration_since(known.used) >= forget_after;
        let forgotten: Vec<_> = known.extract_if(|_, known| old(known)).collect();
        drop(known);
        drop(forgotten);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Known<T>>> {
        // Nothing under the lock can panic half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> fmt::Debug for Directory<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory")
            .field("domain", &self.domain)
            .field("max_services", &self.most)
            .finish_non_exhaustive()
    }
}

/// The service that a host names; an error for a name of Consul's that cannot be one.
fn read(host: &str, domain: &str) -> Result<Option<Wanted>> {
    let name = host.to_ascii_lowercase();
    if !name.contains('.') {
        let is_service = name != "localhost" && !name.starts_with('[') && dns_name(&name).is_ok();
        return Ok(is_service.then(|| Wanted::from(name)));
    }
    let bare = name.strip_suffix('.').unwrap_or(&name);
    let Some(within) = bare
        .strip_suffix(domain)
        .and_then(|rest| rest.strip_suffix('.'))
    else {
        return Ok(None);
    };
    let labels: Vec<&str> = within.split('.').collect();
    // "dc" marks the datacenter in newer versions of Consul.
    let (before, datacenter) = match labels.as_slice() {
        [before @ .., "service"] => (before, None),
        [before @ .., "service", datacenter] | [before @ .., "service", datacenter, "dc"] => {
            (before, Some((*datacenter).to_owned()))
        }
        // A node, a prepared query, an address: known to DNS alone.
        _ => return Ok(None),
    };
    let (service, tag) = match before {
        [service, tag] if service.starts_with('_') && tag.starts_with('_') => {
            let tag = tag.trim_start_matches('_');
            // "Treat _name._tcp.service.consul as a default, no need to filter on that tag" (dns.go).
            let tag = (tag != "tcp").then(|| tag.to_owned());
            (service.trim_start_matches('_'), tag)
        }
        [tags @ .., service] => (*service, (!tags.is_empty()).then(|| tags.join("."))),
        [] => ("", None),
    };
    if service.is_empty() || labels.iter().any(|label| label.is_empty()) {
        return Err(Error::new(ErrorKind::InvalidRequest).context(format!(
            "the host {host:?} names no service; write web.service.{domain}"
        )));
    }
    Ok(Some(Wanted {
        service: service.to_owned(),
        tag,
        datacenter,
    }))
}

fn invalid(why: &'static str) -> Error {
    Error::new(ErrorKind::Invalid).context(why)
}

#[cfg(test)]
mod tests;
