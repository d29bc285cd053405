//! The endpoints of a service, asked for one after the other until one will do.
//!
//! What the doors beside [`Channel`](crate::channel::Channel) have in common: the balance, how long
//! the first resolution may take, and the errors that tell why there is nobody.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_core::Stream;

use crate::about::About;
use crate::balance::{
    self, Absence, Backend, Balance, Candidate, Choice, InFlight, MOST_ATTEMPTS, Picker, Policy,
    Rng, Rules, Tried,
};
use crate::channel::{EndpointStatus, Snapshot};
use crate::endpoint::{EndpointSet, Target};
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::task::Runtime;
use crate::telemetry::{Fate, Followed, Probe, Telemetry};

/// What all users of one service share.
pub(crate) struct Rotation<S: Backend> {
    balance: Arc<Balance<S>>,
    runtime: Runtime,
    about: About,
    options: Options,
}

/// How endpoints are looked for.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) policy: Policy,
    pub(crate) first_resolution: Duration,
    /// How long an endpoint has to become ready, or to accept a connection.
    pub(crate) patience: Duration,
    pub(crate) max_attempts: usize,
}

/// The wait for the first set of endpoints; what came of it is seen by the pick that follows.
pub(crate) type Resolving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The endpoints that were tried for one request or connection.
pub(crate) struct Round<S: Backend> {
    tried: Tried,
    rng: Option<Rng>,
    last: Option<(Arc<Candidate<S>>, BoxError)>,
}

/// What is next.
pub(crate) enum Next<S: Backend> {
    Try(InFlight<S>),
    Wait(Resolving),
}

impl Options {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            first_resolution: Duration::from_secs(10),
            patience: Duration::from_secs(1),
            max_attempts: MOST_ATTEMPTS,
        }
    }

    /// Refuses what cannot work; `patience` is what the caller calls that option.
    pub(crate) fn check(&self, patience: &str) -> Result<()> {
        let why = if self.patience.is_zero() {
            format!("{patience} is zero; give a time above")
        } else if self.policy == Policy::RingHash {
            "the policy is RingHash, which needs the key of an HTTP request; take a Channel for it"
                .to_owned()
        } else if !(1..=MOST_ATTEMPTS).contains(&self.max_attempts) {
            format!(
                "max_attempts is {}; give 1 to {MOST_ATTEMPTS}",
                self.max_attempts
            )
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Invalid).context(why))
    }
}

impl<S: Backend> Rotation<S> {
    /// Begins to follow the source, in a task that ends with this.
    pub(crate) fn start<St>(
        source: St,
        probe: Probe<St>,
        about: About,
        options: Options,
        make: impl Fn(&Target) -> S + Send + 'static,
    ) -> Result<Self>
    where
        St: Stream<Item = EndpointSet> + Send + 'static,
    {
        let runtime = Runtime::current().map_err(|error| {
            error.context("the endpoints are followed by a task: build it inside one")
        })?;
        // What is kept for an endpoint has nothing that grows old within a quarter of a day.
        let rules = Rules {
            age_every: AGE_EVERY,
            ..Rules::of(options.policy)
        };
        let telemetry = Arc::new(Telemetry::new(about.service(), false));
        let source = Followed::new(source, probe, Arc::clone(&telemetry));
        let balance = balance::start(&runtime, source, rules, &telemetry, make);
        Ok(Self {
            balance,
            runtime,
            about,
            options,
        })
    }

    pub(crate) fn balance(&self) -> &Balance<S> {
        &self.balance
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn picker(&self) -> Picker<S> {
        Picker::new(&self.balance)
    }

    pub(crate) fn statuses(&self) -> Vec<EndpointStatus> {
        EndpointStatus::all(&self.balance)
    }

    pub(crate) fn told(&self) -> Snapshot {
        Snapshot::of(&self.balance)
    }

    pub(crate) fn telemetry(&self) -> &Telemetry {
        self.balance.telemetry()
    }

    /// Waits until there is somebody, from now on as long as for the first resolution.
    pub(crate) async fn wait_ready(&self) -> Result<()> {
        let limit = self.options.first_resolution;
        let ready = self.balance.ready_within(limit);
        ready.await.map_err(|absence| match absence {
            Absence::Empty => self.about.no_endpoints(),
            Absence::Unknown => self.about.never_resolved(limit),
            Absence::Deserted => deserted(),
        })
    }

    /// Begins the wait for the first resolution; its time runs from here on.
    fn resolving(&self) -> Result<Resolving> {
        if self.balance.is_deserted() {
            return Err(deserted());
        }
        let limit = self.options.first_resolution;
        let left = limit.saturating_sub(self.balance.age());
        if left.is_zero() {
            return Err(self.about.never_resolved(limit));
        }
        Ok(Box::pin(self.balance.resolved(left)))
    }
}

const AGE_EVERY: Duration = Duration::from_secs(6 * 3_600);

fn deserted() -> Error {
    Error::new(ErrorKind::NoRuntime)
        .context("the one in which the endpoints are followed has ended")
}

impl<S: Backend> Round<S> {
    pub(crate) fn new() -> Self {
        Self {
            tried: Tried::default(),
            rng: None,
            last: None,
        }
    }

    /// What comes of a pick.
    pub(crate) fn follow(&mut self, rotation: &Rotation<S>, choice: Choice<S>) -> Result<Next<S>> {
        match choice {
            Choice::Picked(flight) => Ok(Next::Try(flight)),
            Choice::Exhausted => Err(self.exhausted()),
            Choice::Empty => Err(rotation.about.no_endpoints()),
            Choice::Unknown => rotation.resolving().map(Next::Wait),
        }
    }

    /// The next endpoint that was not tried.
    pub(crate) fn next(&mut self, rotation: &Rotation<S>) -> Result<Next<S>> {
        let choice = if self.tried.len() < rotation.options.max_attempts {
            let balance = &rotation.balance;
            let rng = self.rng.get_or_insert_with(|| balance.rng());
            balance.pick(rng, &self.tried, balance.now())
        } else {
            Choice::Exhausted
        };
        self.follow(rotation, choice)
    }

    /// The next endpoint, after the first resolution.
    pub(crate) async fn found(&mut self, rotation: &Rotation<S>) -> Result<InFlight<S>> {
        loop {
            match self.next(rotation)? {
                Next::Try(flight) => return Ok(flight),
                Next::Wait(resolving) => resolving.await,
            }
        }
    }

    /// The endpoint cannot be had: it is left alone for a while.
    pub(crate) fn refused(&mut self, rotation: &Rotation<S>, flight: &InFlight<S>, why: BoxError) {
        let telemetry = rotation.telemetry();
        let service = telemetry.service();
        tracing::debug!(service, target = %flight.target(), error = %why, "endpoint is passed over");
        telemetry.attempt_ended(Fate::Refused, flight.backend().counts());
        flight.refused(rotation.balance.now());
        self.last = Some((Arc::clone(flight), why));
        self.pass(flight);
    }

    /// The endpoint has left, or is not wanted this time.
    pub(crate) fn pass(&mut self, flight: &InFlight<S>) {
        self.tried.note(flight.id());
    }

    fn exhausted(&mut self) -> Error {
        let tried = self.tried.len();
        let error = Error::new(ErrorKind::Connect);
        match self.last.take() {
            Some((last, cause)) => error
                .context(format!("{tried} tried, the last was {}", last.target()))
                .because(cause),
            None => error.context(format!("{tried} tried")),
        }
    }
}
