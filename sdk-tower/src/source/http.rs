//! Endpoints from Consul's health endpoint, over HTTP.

use std::error::Error as StdError;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use lictor::api::health::{ServiceEntry, Status as Health};
use lictor::ident::Datacenter;
use lictor::watch::{self, Watch};
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep_until};

use super::place::{Nearness, Place};
use super::{Source, Status};
use crate::endpoint::{Endpoint, EndpointSet, Host, Target, farthest};
use crate::error::Error;

/// How long an answer without instances is not believed.
const GRACE: Duration = Duration::from_secs(1);

/// For how many graces after an outage health is doubted, too.
const GRACES_AFTER_OUTAGE: u32 = 10;

const DAY: Duration = Duration::from_secs(24 * 3_600);

/// Endpoints from a watch of a service's health.
///
/// Changes arrive as soon as Consul has them, and all readers of equal watches share one query.
///
/// # What an instance becomes
///
/// - It is called at its own address, or at its node's if it has none.
/// - Its weight is that of its state, passing or warning. One that is critical or in maintenance
///   is not called, be it by its own checks or by those of its node.
/// - Without a port, or with an address that nobody can connect to, it does not become an endpoint;
///   a `tracing` warning says so.
///
/// All are equally near, unless [`prefer_near`](Self::prefer_near) or
/// [`prefer_first`](Self::prefer_first) says otherwise.
///
/// This is what Consul's DNS does, so [`SrvSource`](super::SrvSource) tells the same endpoints. To
/// leave warning instances out, watch `.passing()`; to choose by tag, datacenter or filter, say so
/// in the watch as well.
///
/// A failure of Consul leaves the last set in force, see [`Source::status`]. An answer without any
/// instance, where there were some, is believed after a [`grace`](Self::grace) period: a Consul that
/// has lost its data says so until its services are back. Mind that Consul also answers so when
/// the token may not read the service.
///
/// # Cancel safety
///
/// Waiting for the next item can be given up at any time; nothing is lost. The watch runs as a task
/// of `lictor`, which ends when the last reader of an equal watch is dropped. Of sets that follow
/// each other faster than they are read, the newest is told.
///
/// # Examples
///
/// ```no_run
/// use lictor_tower::source::HealthSource;
///
/// # async fn example(client: lictor::Client) -> lictor::Result<()> {
/// let source = HealthSource::new(client.health().service("web").watch()?);
/// # drop(source);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct HealthSource {
    watch: Watch<ServiceEntry>,
    nearness: Nearness,
    tells_nodes: bool,
    told: Option<EndpointSet>,
    /// How many instances could not be called when this was last said.
    skipped: usize,
    /// If a smaller share of the instances is well, those that are critical are told, too.
    least_well: f64,
    /// How long an answer without instances is not believed.
    grace: Duration,
    /// Since when there are none.
    none_since: Option<Instant>,
    /// When the watch was last seen to be out of date.
    was_stale: Option<Instant>,
    /// When the present answer is to be read again, because it is not believed as it is.
    review: Option<Pin<Box<Sleep>>>,
    /// A stream that has ended must not be polled again.
    ended: bool,
}

impl HealthSource {
    /// Reads endpoints from a watch, such as `client.health().service("web").watch()?`.
    #[must_use]
    pub fn new(watch: Watch<ServiceEntry>) -> Self {
        Self {
            watch,
            nearness: Nearness::Unasked,
            tells_nodes: false,
            told: None,
            skipped: 0,
            least_well: 0.0,
            grace: GRACE,
            none_since: None,
            was_stale: None,
            review: None,
            ended: false,
        }
    }

    /// Prefers instances that are near this place.
    ///
    /// Those on its node have the distance 0, others in its datacenter 1, and those elsewhere 2.
    /// Whoever is near takes the traffic while enough of them are well, see
    /// [`with_distance`](Endpoint::with_distance). Mind that one instance on the own node then gets
    /// all that this client sends; that suits sidecars and caches, and not a client that sends
    /// more than one instance can bear. Default: all are equally near.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use lictor_tower::source::{HealthSource, Place};
    ///
    /// # async fn example(client: lictor::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let here = Place::of_agent(&client).await?;
    /// let watch = client.health().service("web").watch()?;
    /// let source = HealthSource::new(watch).prefer_near(here);
    /// # drop(source);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn prefer_near(mut self, place: Place) -> Self {
        self.nearness = Nearness::To(place);
        self
    }

    /// Prefers the first instances that Consul lists, so many of them.
    ///
    /// For a watch that is sorted by round-trip time,
    /// `client.health().service("web").near("_agent").watch()?`: the first ones have the distance
    /// 0 and all others 1. Consul sorts when it answers, that is when something changes; it takes
    /// the nodes' network coordinates, which it learns over minutes. Any number; 0 makes all
    /// equally far. It takes the place of [`prefer_near`](Self::prefer_near), and the other way
    /// round. Default: all are equally near.
    #[must_use]
    pub fn prefer_first(mut self, count: usize) -> Self {
        self.nearness = Nearness::First(count);
        self
    }

    /// Tells critical instances as a last resort where too few are well.
    ///
    /// If fewer than this share of the instances are passing or warning, those that are critical
    /// become endpoints with the greatest priority number: they are called when nobody else can
    /// be. A partition between Consul and most of the instances does that to a service that is
    /// well. Instances in maintenance are never called, and where nobody is passing or warning
    /// Consul is believed. Together with [`Lost::Stay`](crate::channel::Lost::Stay) they are called
    /// like all others for its time.
    ///
    /// 0 to 1, what lies outside counts as the nearer of both. 0, the default, tells no critical
    /// instance. 0.5 is where Envoy stops to believe in health.
    #[must_use]
    pub fn critical_below(mut self, share: f64) -> Self {
        self.least_well = share.clamp(0.0, 1.0);
        self
    }

    /// Tells with each endpoint the node that it is on, and the datacenter.
    ///
    /// For names that TLS asks endpoints to prove and that are made of them, such as
    /// `{node}.node.consul`. A channel [by the name of a service](crate::channel::Channel::builder) asks
    /// for it by itself. Default off: other sources do not tell them, and a set with them is not
    /// equal to one without.
    #[must_use]
    pub fn tell_nodes(mut self) -> Self {
        self.tells_nodes = true;
        self
    }

    /// Sets how long instances stay in force after an answer that lists none at all.
    ///
    /// A registration that heals itself is back within a fraction of a second after the agent has
    /// lost it, and calls need not fail meanwhile. Who listed instances before and lists none for so
    /// long is believed.
    ///
    /// Instances that are listed and critical are believed to be at once, except soon after an
    /// outage of the watch: an agent that was away for longer than their TTL calls all of its
    /// services critical until each has sent its next heartbeat. Until ten times the grace after an
    /// outage those who were called before stay as a last resort.
    ///
    /// 0 to one day, what is above counts as a day; default 1 s. With 0 each answer is believed.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace.min(DAY);
        self
    }

    /// Takes in what the watch says, and tells what follows from it, if that is anything new.
    fn take(&mut self, entries: &[Arc<ServiceEntry>]) -> Option<EndpointSet> {
        // Outside of a runtime there is no clock to wait by.
        let doubts = !self.grace.is_zero() && Handle::try_current().is_ok();
        let now = doubts.then(Instant::now);
        let settled = now.and_then(|now| {
            let settled = self.was_stale? + self.grace * GRACES_AFTER_OUTAGE;
            (settled > now).then_some(settled)
        });
        let set = self.read(entries, settled.is_some());
        let is_known = self.told.as_ref().is_some_and(|told| !told.is_empty());
        let none_until = now.filter(|_| entries.is_empty() && is_known).map(|now| {
            let since = *self.none_since.get_or_insert(now);
            let until = since + self.grace;
            settled.map_or(until, |settled| settled.max(until))
        });
        if !entries.is_empty() {
            self.none_since = None;
        }
        let none_until = none_until.filter(|until| now.is_some_and(|now| *until > now));
        let keeps = set.iter().any(|endpoint| endpoint.is_last_resort());
        let again_at = none_until.or_else(|| settled.filter(|_| keeps));
        self.review = again_at.map(|at| Box::pin(sleep_until(at)));
        match none_until {
            Some(_) => None,
            None => self.tell(set, entries.len()),
        }
    }

    /// Tells a set, if it is another than the one before.
    fn tell(&mut self, set: EndpointSet, listed: usize) -> Option<EndpointSet> {
        // What changed may not matter for calls: the output of a check, a tag.
        if self.told.as_ref() == Some(&set) {
            return None;
        }
        if set.is_empty() {
            // Consul tells nothing of what the token may not read.
            tracing::warn!(
                listed,
                not_to_be_called = self.skipped,
                "no endpoints: the instances that Consul lists are critical or cannot \
                 be called; if it lists none, the name may be wrong, or the token \
                 may not read the service"
            );
        }
        self.told = Some(set.clone());
        Some(set)
    }

    /// The endpoints of these instances, those that were told before shared with that set; if
    /// `keeps`, with those of them that are critical now.
    fn read(&mut self, entries: &[Arc<ServiceEntry>], keeps: bool) -> EndpointSet {
        let mut skipped = 0;
        let mut example = None;
        let mut endpoints = Vec::with_capacity(entries.len());
        let mut critical = Vec::new();
        for entry in entries {
            let instance = Instance::of(entry);
            match instance.endpoint() {
                Ok(Some(endpoint)) => {
                    let distance = self.distance(entry, endpoints.len());
                    let endpoint = self.placed(endpoint.with_distance(distance), entry);
                    endpoints.push(self.shared(endpoint));
                }
                Ok(None) => {
                    let endpoint = instance.last_resort();
                    critical.extend(endpoint.map(|endpoint| self.placed(endpoint, entry)));
                }
                Err(why) => {
                    skipped += 1;
                    example.get_or_insert((why, entry));
                }
            }
        }
        if let Some((why, entry)) = example.filter(|_| skipped != self.skipped) {
            let name = entry.service().name().as_str();
            let id = entry.service().id().as_str();
            tracing::warn!(name, skipped, id, %why, "instances name nobody to call");
        }
        self.skipped = skipped;
        let all = are_needed(endpoints.len(), critical.len(), self.least_well);
        if all || keeps {
            let told = |endpoint: &Endpoint| {
                let told = self.told.as_ref();
                told.is_some_and(|told| told.get(endpoint.target()).is_some())
            };
            critical.retain(|endpoint| all || told(endpoint));
            let far = farthest(&endpoints);
            let resort = critical
                .into_iter()
                .map(|endpoint| self.shared(endpoint.into_last_resort(far)));
            endpoints.extend(resort.collect::<Vec<_>>());
        }
        endpoints.into_iter().collect()
    }

    /// How far away an instance is, if so many are listed before it.
    fn distance(&self, entry: &ServiceEntry, before: usize) -> u16 {
        let node = entry.node();
        let datacenter = node.datacenter().map(Datacenter::as_str);
        let place = (node.name().as_str(), datacenter);
        self.nearness.distance(place, before)
    }

    /// With the names of where it is, if they are asked for.
    fn placed(&self, endpoint: Endpoint, entry: &ServiceEntry) -> Endpoint {
        if !self.tells_nodes {
            return endpoint;
        }
        let node = entry.node();
        let endpoint = endpoint.with_node(node.name().as_str());
        match node.datacenter() {
            Some(datacenter) => endpoint.with_datacenter(datacenter.as_str()),
            None => endpoint,
        }
    }

    fn shared(&self, endpoint: Endpoint) -> Arc<Endpoint> {
        match self.told.as_ref().and_then(|t| t.get(endpoint.target())) {
            Some(told) if **told == endpoint => Arc::clone(told),
            _ => Arc::new(endpoint),
        }
    }
}

impl From<Watch<ServiceEntry>> for HealthSource {
    fn from(watch: Watch<ServiceEntry>) -> Self {
        Self::new(watch)
    }
}

impl Stream for HealthSource {
    type Item = EndpointSet;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<EndpointSet>> {
        let this = &mut *self;
        if matches!(this.watch.status(), watch::Status::Stale(_)) {
            this.was_stale = Some(Instant::now());
        }
        while !this.ended {
            match Pin::new(&mut this.watch).poll_next(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => this.ended = true,
                Poll::Ready(Some(snapshot)) => {
                    if let Some(set) = this.take(&snapshot) {
                        return Poll::Ready(Some(set));
                    }
                }
            }
        }
        while !this.ended
            && let Some(review) = this.review.as_mut()
            && review.as_mut().poll(cx).is_ready()
        {
            this.review = None;
            let latest = this.watch.latest();
            if let Some(set) = latest.and_then(|latest| this.take(&latest)) {
                return Poll::Ready(Some(set));
            }
        }
        // A watch only ends with the runtime it runs in; the last set stays in force.
        Poll::Pending
    }
}

impl Source for HealthSource {
    fn status(&self) -> Status {
        let reason = if self.ended {
            Some("the runtime that ran the watch is gone".into())
        } else {
            trouble(&self.watch)
        };
        match (self.watch.latest(), reason) {
            (None, None) => Status::Unknown,
            (None, Some(reason)) => Status::Failing { reason },
            (Some(_), None) => Status::Live,
            (Some(snapshot), Some(reason)) => Status::Stale {
                age: snapshot.age(),
                reason,
            },
        }
    }
}

/// Why the watch is not up to date, if it is not.
pub(crate) fn trouble(watch: &Watch<ServiceEntry>) -> Option<Arc<str>> {
    match watch.status() {
        watch::Status::Connecting { error } => error.as_ref().map(reason),
        watch::Status::Stale(outage) => Some(reason(outage.error())),
        _ => None,
    }
}

/// What went wrong, down to its cause. lictor's errors hold no secrets.
fn reason(error: &lictor::Error) -> Arc<str> {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text.into()
}

/// What matters of an instance for calling it.
#[derive(Clone, Copy, Debug)]
struct Instance<'a> {
    /// The address of the service, or of its node if it has none.
    address: &'a str,
    /// 0 if there is none.
    port: u16,
    /// The worst of all its checks, those of its node included.
    health: Health,
    /// The weight in that state.
    weight: u32,
}

impl<'a> Instance<'a> {
    fn of(entry: &'a ServiceEntry) -> Self {
        Self {
            address: entry.address(),
            port: entry.port(),
            health: entry.status(),
            weight: entry.weight().into(),
        }
    }

    /// The endpoint of this instance, `None` if it is not to be called; the error says why nobody
    /// could call it.
    fn endpoint(&self) -> Result<Option<Endpoint>, String> {
        match self.health {
            Health::Passing | Health::Warning => {}
            _ => return Ok(None),
        }
        let target = self.target().map_err(|why| why.to_string())?;
        Ok(Some(Endpoint::new(target).with_weight(self.weight)))
    }

    /// The endpoint of an instance that is critical, for when too few are well.
    fn last_resort(&self) -> Option<Endpoint> {
        let target = self.target().ok()?;
        let is_critical = matches!(self.health, Health::Critical);
        is_critical.then(|| Endpoint::new(target).into_last_resort(0))
    }

    fn target(&self) -> Result<Target, Error> {
        let host = match self.address.parse::<IpAddr>() {
            Ok(ip) => Host::Ip(ip),
            Err(_) => Host::Name(self.address.into()),
        };
        Target::new(host, self.port)
    }
}

/// Whether so few are well beside those that are critical that these are told.
fn are_needed(well: usize, critical: usize, least_well: f64) -> bool {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a number of instances is far below 2^52"
    )]
    let is_below = (well as f64) < (well + critical) as f64 * least_well;
    well > 0 && is_below
}

#[cfg(test)]
mod tests;
