//! The options of a channel.

mod connections;
mod observe;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_core::Stream;
use http::request::Parts;
use http::uri::Authority;

use crate::about::About;
use crate::balance::{
    self, Care, Ejection, HashKey, LoadReport, Lost, MOST_ATTEMPTS, Policy, Rules, Subset,
};
use crate::connect::Pool;
use crate::endpoint::{EndpointSet, Target};
use crate::error::{Error, ErrorKind};
use crate::retry::{Classifier, Delay, Hedge, Outcome, RetryPolicy, Verdict};
use crate::source::HealthSource;
use crate::task::Runtime;
use crate::telemetry::{Followed, Probe, Telemetry};

use super::admission::Admission;
use super::effort::Persistence;
use super::request::{Addressing, Name};
use super::upstream::Upstream;
use super::{Channel, Core, KeyRule, Keys, Picker};

use connections::Connections;

/// Builds a [`Channel`]; made by [`Channel::builder`] or [`Channel::from_source`].
#[must_use = "a builder does nothing until it is built"]
pub struct Builder<S> {
    source: Result<S, Error>,
    about: About,
    probe: Probe<S>,
    endpoint_gauges: bool,
    host: Option<String>,
    policy: Policy,
    hash_by: Option<KeyRule>,
    slow_start: Duration,
    subset: Option<usize>,
    subset_seed: Option<u64>,
    care: Care,
    load_report: Option<LoadReport>,
    connections: Connections,
    first_resolution: Duration,
    timeout: Option<Duration>,
    max_attempts: usize,
    tell_target: bool,
    classifier: Classifier,
    retry: Option<RetryPolicy>,
    hedge: Option<Hedge>,
    max_in_flight: Option<usize>,
    max_waiting: usize,
    waiting_timeout: Duration,
    wait_for_ready: Option<Duration>,
}

impl<S> Builder<S>
where
    S: Stream<Item = EndpointSet> + Send + 'static,
{
    pub(crate) fn new(source: Result<S, Error>) -> Self {
        Self {
            source,
            about: About::default(),
            probe: None,
            endpoint_gauges: false,
            host: None,
            policy: Policy::default(),
            hash_by: None,
            slow_start: Duration::ZERO,
            subset: None,
            subset_seed: None,
            care: Care::default(),
            load_report: None,
            connections: Connections::default(),
            first_resolution: Duration::from_secs(10),
            timeout: None,
            max_attempts: MOST_ATTEMPTS,
            tell_target: false,
            classifier: Classifier::default(),
            retry: None,
            hedge: None,
            max_in_flight: None,
            max_waiting: 10_000,
            waiting_timeout: Duration::from_secs(1),
            wait_for_ready: None,
        }
    }

    pub(crate) fn about(mut self, about: About) -> Self {
        self.about = about;
        self
    }

    /// Sets the host that requests name which name none themselves.
    ///
    /// A host with an optional port, mostly the name of the service. Without it such requests
    /// name the address of the endpoint they are sent to.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = Some(host.into());
        self
    }

    /// Sets how the endpoint for a request is chosen.
    ///
    /// Default [`Policy::PeakEwma`].
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets how the key of a request is made, for [`Policy::RingHash`].
    ///
    /// A request that carries a [`HashKey`] in its extensions has that one. Where the rule gives
    /// none, the request goes to the less loaded of two endpoints. Default: no rule, only
    /// extensions. It is called once for each request, within
    /// [`call`](tower_service::Service::call), so it must not block.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(client: lictor::Client) -> Result<(), lictor_tower::Error> {
    /// use lictor_tower::channel::{Channel, HashKey, Policy};
    ///
    /// let channel = Channel::builder(client)
    ///     .service("carts")
    ///     .policy(Policy::RingHash)
    ///     .hash_by(|request| Some(HashKey::new(request.headers.get("x-user")?)))
    ///     .build()?;
    /// # drop(channel);
    /// # Ok(())
    /// # }
    /// ```
    pub fn hash_by<F>(mut self, rule: F) -> Self
    where
        F: Fn(&Parts) -> Option<HashKey> + Send + Sync + 'static,
    {
        self.hash_by = Some(Box::new(rule));
        self
    }

    /// Sets how long the share of an endpoint grows that joins others.
    ///
    /// It begins with a tenth of its weight, as in Envoy, and grows linearly to the whole. For
    /// services that are slow at first: caches to fill, code to compile. An endpoint in the first
    /// set, or in one where all are new, has its whole weight at once; [`Policy::RingHash`] gives
    /// a newcomer its keys at once. Default zero, which is none, as in Envoy, nginx and HAProxy: a
    /// service that passes its checks should be ready, and one that was scaled up because it had
    /// too much to do needs its new instances now. More than four days are four days.
    pub fn slow_start(mut self, window: Duration) -> Self {
        self.slow_start = window.min(LONGEST_SLOW_START);
        self
    }

    /// Sets how many endpoints this channel uses at most, of each distance and priority.
    ///
    /// For services of hundreds of instances that hundreds of clients call: each client then has
    /// connections to a few instances and not to all. Each channel takes another subset, so that
    /// all instances are used about equally by many clients; when an instance comes or goes, at
    /// most one place of a subset changes. Instances should weigh about the same, because those
    /// that weigh more are not taken by more clients. At least 1; 20 leaves enough to choose from.
    /// Default: all are used.
    pub fn subset(mut self, size: usize) -> Self {
        self.subset = Some(size);
        self
    }

    /// Sets the number that decides which endpoints are in the [`subset`](Self::subset).
    ///
    /// Equal numbers choose equally: a client that is started again with its number has the same
    /// subset as before. Any number; default random.
    pub fn subset_seed(mut self, seed: u64) -> Self {
        self.subset_seed = Some(seed);
        self
    }

    /// Sets when an endpoint that fares badly is put out of rotation, and for how long.
    ///
    /// Default [`Ejection::default`]; [`Ejection::off`] for never.
    pub fn ejection(mut self, ejection: Ejection) -> Self {
        self.care.ejection = ejection;
        self
    }

    /// Sets the share of the endpoints that has to be well for ejections to count.
    ///
    /// Of the endpoints with the lowest priority number, and where they are fewer of those with
    /// the next. If no priority has so many left that are neither ejected, nor about to be, nor
    /// refuse connections, requests go to the ejected ones as well: where most of a service is
    /// bad, what is left would be swamped, and mostly the reason lies behind all of them.
    /// Endpoints that refuse connections are left alone all the same, until all do: they take no
    /// load off the others.
    ///
    /// 0 to 1; 0 means that ejections always count. Default 0.5, as in Envoy.
    pub fn panic_threshold(mut self, share: f64) -> Self {
        self.care.panic_threshold = share;
        self
    }

    /// Sets what happens to endpoints when the source loses most of them at one time.
    ///
    /// Most is more than the [`panic_threshold`](Self::panic_threshold) allows. Default
    /// [`Lost::Leave`]: what the source says holds.
    pub fn lost_endpoints(mut self, lost: Lost) -> Self {
        self.care.lost = lost;
        self
    }

    /// Lets the load that servers report decide on their weights.
    ///
    /// Default off: only servers that are known to be honest and of one kind should be believed.
    pub fn load_report(mut self, report: LoadReport) -> Self {
        self.care.weighs_reports = true;
        self.load_report = Some(report);
        self
    }

    /// Sets how long after the channel is built requests wait for the first set of endpoints.
    ///
    /// After that they fail with [`ErrorKind::NeverResolved`] at once, until the set is there.
    /// Zero means not to wait. Default 10 s: enough for an agent that has just started, and less
    /// than most callers wait.
    pub fn first_resolution(mut self, limit: Duration) -> Self {
        self.first_resolution = limit;
        self
    }

    /// Sets the deadline of a request, until the head of the response is there.
    ///
    /// It includes the wait for the first resolution and all attempts; it does not include
    /// reading the body. Above zero. Default none.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Sets on how many endpoints a request is tried that cannot be sent.
    ///
    /// 1 to 16. Default 16: each endpoint is tried at most once.
    pub fn max_attempts(mut self, most: usize) -> Self {
        self.max_attempts = most;
        self
    }

    /// Puts the [`Target`] that answered into the extensions of each response.
    ///
    /// For middleware above the channel that replaces the body; everybody else asks
    /// [`Body::target`](super::Body::target), which costs nothing. Default off: an extension costs
    /// three allocations.
    pub fn target_extension(mut self) -> Self {
        self.tell_target = true;
        self
    }

    /// Sets what counts as a failure of an endpoint, and what another attempt may mend.
    ///
    /// The rule is asked once for each outcome, on the path of each request: keep it short. What
    /// it does not care about it leaves to the default, [`Outcome::verdict`]. Default: that.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn example(client: lictor::Client) -> Result<(), lictor_tower::Error> {
    /// use lictor_tower::Channel;
    /// use lictor_tower::retry::Verdict;
    ///
    /// let channel = Channel::builder(client)
    ///     .service("web")
    ///     .classify(|outcome| match outcome.status() {
    ///         // This service says so when its cache is cold.
    ///         Some(http::StatusCode::NOT_FOUND) => Verdict::unrated().retryable(),
    ///         _ => outcome.verdict(),
    ///     })
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn classify(
        mut self,
        rule: impl Fn(&Outcome<'_>) -> Verdict + Send + Sync + 'static,
    ) -> Self {
        self.classifier = Classifier::new(rule);
        self
    }

    /// Sends requests again that were sent in vain, as this policy says.
    ///
    /// Default: they are not, but for an idempotent one without a body whose connection was closed
    /// (see [`Channel`]).
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }

    /// Sends a request to a second endpoint as well if the first takes long.
    ///
    /// Which requests may be sent twice, and the budget, is said by [`retry`](Self::retry); without
    /// it by the default policy, with nothing sent again after a failure. Default off.
    pub fn hedge(mut self, hedge: Hedge) -> Self {
        self.hedge = Some(hedge);
        self
    }

    /// Sets how many requests may be under way at one time.
    ///
    /// A request is under way from its call until the body of its response has ended or is
    /// dropped. Who comes when all places are taken waits in line, up to
    /// [`waiting_timeout`](Self::waiting_timeout). Above zero. Default no bound: what suits
    /// depends on the service.
    pub fn max_in_flight(mut self, most: usize) -> Self {
        self.max_in_flight = Some(most);
        self
    }

    /// Sets how many requests may wait at one time, for whatever they wait.
    ///
    /// This is for the first resolution, for a place among
    /// [`max_in_flight`](Self::max_in_flight), and for an endpoint
    /// ([`wait_for_ready`](Self::wait_for_ready)). Whoever comes then fails with
    /// [`ErrorKind::Overloaded`] at once. 0 means that nobody waits. Default 10,000, as in
    /// linkerd's proxy.
    pub fn max_waiting(mut self, most: usize) -> Self {
        self.max_waiting = most;
        self
    }

    /// Sets how long a request waits for a place among [`max_in_flight`](Self::max_in_flight).
    ///
    /// After that it fails with [`ErrorKind::Overloaded`]. Zero means not to wait. Default 1 s: a
    /// line that does not move within a second grows.
    pub fn waiting_timeout(mut self, limit: Duration) -> Self {
        self.waiting_timeout = limit;
        self
    }

    /// Lets requests wait for an endpoint where the service has none, or none that accepts
    /// connections.
    ///
    /// Up to this time after it was found so; then they fail as they would have before, with
    /// [`ErrorKind::NoEndpoints`] or [`ErrorKind::Connect`]. Zero means not to wait, as without it. It
    /// suits jobs that would try again
    /// themselves. It does not change the wait for the first resolution, and not what becomes of
    /// a request that was sent. Default off: a caller who is told at once can do something else.
    pub fn wait_for_ready(mut self, limit: Duration) -> Self {
        self.wait_for_ready = Some(limit);
        self
    }

    /// Starts to follow the source and gives the channel.
    ///
    /// Nothing is connected yet: connections are opened when there are requests.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoRuntime`] outside of a Tokio runtime, [`ErrorKind::Invalid`] for an option
    /// out of its range.
    pub fn build(self) -> Result<Channel, Error> {
        let runtime = Runtime::current()
            .map_err(|error| error.context("a channel runs as a task: build it inside one"))?;
        let host = self.host.as_deref().map(host_name).transpose()?;
        let retry = self.retry.as_ref().map(RetryPolicy::limits);
        let attempt_timeout = retry.and_then(|limits| limits.attempt_timeout);
        let hedge = match self.hedge.map(|hedge| hedge.delay()) {
            Some(Delay::Fixed(time)) => Some(time),
            Some(Delay::Percentile(share)) if share > 0.0 && share < 1.0 => None,
            Some(Delay::Percentile(share)) => {
                return Err(invalid(format!(
                    "the percentile of hedge is {share}; give a share between 0 and 1, as 0.95"
                )));
            }
            None => None,
        };
        for (option, time) in [
            ("timeout", self.timeout.unwrap_or(Duration::MAX)),
            ("attempt_timeout", attempt_timeout.unwrap_or(Duration::MAX)),
            ("hedge", hedge.unwrap_or(Duration::MAX)),
        ] {
            if time.is_zero() {
                return Err(invalid(format!("{option} is zero; give a time above")));
            }
        }
        for (option, time) in [("attempt_timeout", attempt_timeout), ("hedge", hedge)] {
            if let (Some(time), Some(limit)) = (time, self.timeout)
                && time > limit
            {
                return Err(invalid(format!(
                    "{option} is {time:?}, but timeout only {limit:?}; give no more"
                )));
            }
        }
        if let Some(why) = self.retry.as_ref().and_then(RetryPolicy::refusal) {
            return Err(invalid(why));
        }
        if !(1..=MOST_ATTEMPTS).contains(&self.max_attempts) {
            return Err(invalid(format!(
                "max_attempts is {}; give 1 to {MOST_ATTEMPTS}",
                self.max_attempts
            )));
        }
        if self.subset == Some(0) {
            return Err(invalid("subset is 0; give 1 or more".to_owned()));
        }
        let seed = self.subset_seed.unwrap_or_else(rand::random);
        let subset = self.subset.map(|size| Subset { size, seed });
        let key = match (self.policy, self.hash_by) {
            (Policy::RingHash, Some(rule)) => Some(Keys::Made(rule)),
            (Policy::RingHash, None) => Some(Keys::Carried),
            (_, None) => None,
            (policy, Some(_)) => {
                return Err(invalid(format!(
                    "hash_by is set but the policy is {policy:?}, which asks for no keys; \
                     set Policy::RingHash"
                )));
            }
        };
        if let Some(why) = self.care.ejection.refusal() {
            return Err(invalid(why));
        }
        if let Some(why) = self.care.lost.refusal() {
            return Err(invalid(why));
        }
        if !(0.0..=1.0).contains(&self.care.panic_threshold) {
            return Err(invalid(format!(
                "panic_threshold is {}; give 0 to 1",
                self.care.panic_threshold
            )));
        }
        if self.max_in_flight == Some(0) {
            return Err(invalid("max_in_flight is 0; give 1 or more".to_owned()));
        }
        let age_every = self.connections.age_every();
        let service = match (self.about.wanted(), &host) {
            (Some(wanted), _) => Some(wanted.service.as_str()),
            (None, Some(name)) => Some(name.host()),
            (None, None) => None,
        };
        let settings = Arc::new(self.connections.settings(&runtime, service)?);
        let warming = self.connections.warming(&runtime);
        let make = move |target: &Target| {
            let pool = Pool::new(target.clone(), Arc::clone(&settings));
            // The worker is kept here: it ends with the driver.
            let warming = warming.as_ref().map(|(warming, _worker)| warming.clone());
            Upstream::new(target, pool, warming)
        };
        let rules = Rules {
            policy: self.policy,
            slow_start: self.slow_start,
            subset,
            care: self.care,
            age_every,
        };
        let named = self.about.service().or(self.host.as_deref());
        let telemetry = Arc::new(Telemetry::new(named, self.endpoint_gauges));
        let source = Followed::new(self.source?, self.probe, Arc::clone(&telemetry));
        let balance = balance::start(&runtime, source, rules, &telemetry, make);
        let admission = Admission::new(self.max_in_flight, self.max_waiting, self.waiting_timeout);
        telemetry.watch_waiting(admission.waiting());
        Ok(Channel {
            picker: Picker::new(&balance),
            core: Arc::new(Core {
                balance,
                telemetry,
                runtime,
                about: self.about,
                addressing: Addressing {
                    protocol: self.connections.protocol(),
                    is_secured: self.connections.is_secured(),
                    host,
                },
                first_resolution: self.first_resolution,
                timeout: self.timeout,
                max_attempts: self.max_attempts,
                wait_for_ready: self.wait_for_ready,
                classifier: self.classifier,
                persistence: Persistence::new(self.retry, self.hedge),
                admission,
                tell_target: self.tell_target,
                key,
                load_report: self.load_report,
            }),
            hosts: None,
        })
    }
}

impl Builder<HealthSource> {
    /// Calls critical instances as a last resort where fewer than this share of all are well.
    ///
    /// See [`HealthSource::critical_below`]. Default 0: critical instances are never called.
    pub fn critical_below(mut self, share: f64) -> Self {
        self.source = self.source.map(|source| source.critical_below(share));
        self
    }
}
/// Far below the time in which the milliseconds of the statistics wrap.
const LONGEST_SLOW_START: Duration = Duration::from_secs(4 * 24 * 3_600);

impl<S> fmt::Debug for Builder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("host", &self.host)
            .field("policy", &self.policy)
            .field("slow_start", &self.slow_start)
            .field("subset", &self.subset)
            .field("care", &self.care)
            .field("connections", &self.connections)
            .field("first_resolution", &self.first_resolution)
            .field("timeout", &self.timeout)
            .field("max_attempts", &self.max_attempts)
            .field("classify", &self.classifier)
            .field("retry", &self.retry)
            .field("hedge", &self.hedge)
            .field("max_in_flight", &self.max_in_flight)
            .field("max_waiting", &self.max_waiting)
            .field("waiting_timeout", &self.waiting_timeout)
            .field("wait_for_ready", &self.wait_for_ready)
            .finish_non_exhaustive()
    }
}

/// Whether requests can name this host.
pub(super) fn is_host(host: &str) -> bool {
    host_name(host).is_ok()
}

fn host_name(host: &str) -> Result<Name, Error> {
    let wrong = || invalid(format!("{host:?} is no host; write web or web:8080"));
    if host.contains('@') {
        return Err(wrong());
    }
    let authority: Authority = host.parse().map_err(|error| wrong().because(error))?;
    Name::new(&authority).ok_or_else(wrong)
}

fn invalid(why: String) -> Error {
    Error::new(ErrorKind::Invalid).context(why)
}
