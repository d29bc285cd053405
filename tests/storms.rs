//! Locks, semaphores and elections as they are, through storms of random faults.
//!
//! Several contenders, each along a path of its own, contend at one embedded agent under a paused
//! clock, while everything goes wrong that may: paths that are cut, slow and broken, an agent that
//! freezes, leaves and forgets, servers without a leader, answers that fail, come late or not at
//! all, sessions that are ended, seekers that are dropped. Never do more believe to hold than there
//! are places, tokens rise, writes of former holders are refused, and when the storm is over
//! everybody gets a turn and nothing is left behind.
//!
//! The simulation of `coordination` is the proof of the rules, over far more schedules; this is the
//! test of the code. A seed brings the same storm again:
//! `LICTOR_STORM_SEED=17 cargo test -p lictor-tests --test storms`. What the library itself draws,
//! its jitter, is not the seed's, so that a seed is gone through many times then.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use lictor::Client;
use lictor::api::session::Session as SessionInfo;
use lictor::coordination::{
    Attempt, Held, Leadership, Lease, LockGuard, Next, Permit, Profile, Released, Term,
};
use lictor::embedded::{Agent, Body, Fault};
use lictor::transport::Request;
use support::Rng;
use support::path::{Path, Weather};
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tower::{Service, service_fn};

/// How long things go wrong, and how long it is calm then.
const STORM: Duration = Duration::from_secs(150);
const CALM: Duration = Duration::from_secs(90);

/// For how long each test goes from storm to storm.
const TIME: Duration = Duration::from_secs(14);

const KEY: &str = "job";

/// What is contended for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Prize {
    Lock,
    /// By [`lictor::coordination::Election::campaign`].
    Leadership,
    /// By [`lictor::coordination::Election::run`].
    Work,
    Places(u32),
}

/// Something that is held.
enum Holding {
    Lock(LockGuard),
    Leadership(Leadership),
    Work(Term),
    Place(Permit),
}

impl Holding {
    fn held(&self) -> &Held {
        match self {
            Self::Lock(guard) => guard,
            Self::Leadership(leadership) => leadership,
            Self::Work(term) => term,
            Self::Place(permit) => permit,
        }
    }

    async fn release(self) -> lictor::Result<Released> {
        match self {
            Self::Lock(guard) => guard.release().await,
            Self::Leadership(leadership) => leadership.resign().await,
            Self::Place(permit) => permit.release().await,
            Self::Work(_) => Ok(Released::WasLost),
        }
    }
}

struct World {
    prize: Prize,
    profile: Profile,
    agent: Agent,
    end_of_storm: Instant,
    table: Mutex<Table>,
}

/// What is known of all.
struct Table {
    rng: Rng,
    holdings: Vec<Option<Arc<Holding>>>,
    /// How often each has begun to hold.
    begun: Vec<u32>,
    /// Whether it has begun to in the calm.
    served: Vec<bool>,
    newest: u64,
    writes: u64,
    /// Fenced writes that were taken, for all that is known.
    taken: u64,
    wrong: Option<String>,
}

impl World {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn below(&self, bound: u64) -> u64 {
        self.table().rng.below(bound)
    }

    fn chance(&self, percent: u64) -> bool {
        self.table().rng.chance(percent)
    }

    /// A time up to so many seconds.
    fn within(&self, seconds: u64) -> Duration {
        Duration::from_millis(self.below(1000 * seconds))
    }

    fn places(&self) -> usize {
        match self.prize {
            Prize::Places(places) => usize::try_from(places).unwrap(),
            Prize::Lock | Prize::Leadership | Prize::Work => 1,
        }
    }

    /// Somebody begins to hold. Nobody who has stopped begins again without this, so that it is
    /// the only moment at which there can be one too many.
    fn began(&self, number: usize, holding: &Arc<Holding>) {
        let places = self.places();
        let token = holding.held().token().get();
        let mut table = self.table();
        table.begun[number] += 1;
        table.served[number] = Instant::now() >= self.end_of_storm;
        if places == 1 && holding.held().check().is_ok() && token <= table.newest {
            table.wrong = Some(format!("token {token} after {}", table.newest));
        }
        table.newest = table.newest.max(token);
        table.holdings[number] = Some(Arc::clone(holding));
        let all = table.holdings.iter().flatten();
        let believing: Vec<String> = all
            .filter(|one| one.held().check().is_ok())
            .map(|one| format!("{:?}", one.held()))
            .collect();
        if believing.len() > places {
            table.wrong = Some(format!("of {places} places: {believing:#?}"));
        }
    }

    /// Works for a while, or until it is lost.
    async fn work(&self, client: &Client, held: &Held) {
        let most = if Instant::now() < self.end_of_storm {
            20
        } else {
            4
        };
        let until = Instant::now() + self.within(most);
        let lost = held.lost();
        let working = async {
            while Instant::now() < until {
                let write = {
                    let mut table = self.table();
                    table.writes += 1;
                    format!("writes/{}", table.writes)
                };
                let kv = client.kv().fenced(held);
                let written = kv.put(write, held.token().to_string());
                if written.await.is_ok() {
                    self.table().taken += 1;
                }
                sleep(self.within(3)).await;
            }
        };
        tokio::select! {
            _ = lost => {}
            () = working => {}
        }
    }

    async fn seek(&self, client: &Client, lease: Option<&Lease>) -> lictor::Result<Holding> {
        match self.prize {
            Prize::Lock | Prize::Work => {
                let mut lock = client.lock(KEY).profile(self.profile.clone());
                if let Some(lease) = lease {
                    lock = lock.lease(lease);
                }
                lock.acquire().await.map(Holding::Lock)
            }
            Prize::Leadership => {
                let mut election = client.election(KEY).profile(self.profile.clone());
                if let Some(lease) = lease {
                    election = election.lease(lease);
                }
                election.campaign().await.map(Holding::Leadership)
            }
            Prize::Places(places) => {
                let semaphore = client.semaphore(KEY, places);
                let mut semaphore = semaphore.profile(self.profile.clone());
                if let Some(lease) = lease {
                    semaphore = semaphore.lease(lease);
                }
                semaphore.acquire().await.map(Holding::Place)
            }
        }
    }

    /// Whether it has had the turn that everybody is to get when the storm is over.
    fn is_served(&self, number: usize) -> bool {
        self.table().served[number]
    }

    /// One contender, until it has had its turn in the calm.
    ///
    /// Before, nobody is promised one: whoever comes back is as fast as those that wait.
    async fn contend(self: Arc<Self>, number: usize, client: Client, lease: Option<Lease>) {
        while !self.is_served(number) {
            sleep(self.within(5)).await;
            if self.prize == Prize::Work {
                self.run(number, &client, lease.as_ref()).await;
                continue;
            }
            let patience = match self.chance(20) {
                true => self.within(10),
                false => Duration::from_secs(3600),
            };
            let Ok(Ok(holding)) = timeout(patience, self.seek(&client, lease.as_ref())).await
            else {
                continue;
            };
            let holding = Arc::new(holding);
            self.began(number, &holding);
            self.work(&client, holding.held()).await;
            self.table().holdings[number] = None;
            let holding = Arc::into_inner(holding).expect("nobody else keeps it");
            match self.chance(25) {
                true => drop(holding),
                false => drop(holding.release().await),
            }
        }
    }

    async fn run(self: &Arc<Self>, number: usize, client: &Client, lease: Option<&Lease>) {
        let mut election = client.election(KEY).profile(self.profile.clone());
        if let Some(lease) = lease {
            election = election.lease(lease);
        }
        let (world, client) = (Arc::clone(self), client.clone());
        let run = election.run(std::future::pending(), async move |term: Term| {
            world.began(number, &Arc::new(Holding::Work(term.clone())));
            world.work(&client, &term).await;
            match world.below(3) {
                _ if world.is_served(number) => Next::Stop,
                0 => Next::StepDown,
                1 => Next::Rejoin,
                _ => Next::Stop,
            }
        });
        drop(run.await);
    }

    /// Lets things go wrong until the storm is over.
    async fn storm(self: Arc<Self>, paths: Vec<Path>) {
        let mut repairs = JoinSet::new();
        while Instant::now() < self.end_of_storm {
            let (kind, number) = (self.below(14), self.below(64));
            let number = usize::try_from(number).unwrap() % paths.len();
            let (path, agent) = (paths[number].clone(), self.agent.clone());
            let (long, short) = (self.within(25), self.within(8));
            let times = 1 + u32::try_from(self.below(4)).unwrap();
            match kind {
                0 | 1 => {
                    path.cut(true);
                    repairs.spawn(async move {
                        sleep(long).await;
                        path.cut(false);
                    });
                }
                2 | 3 => {
                    path.set(Weather {
                        slow: Duration::from_secs(5),
                        slow_percent: 60,
                        broken_percent: 5,
                        ..Weather::default()
                    });
                    repairs.spawn(async move {
                        sleep(long).await;
                        path.set(Weather::default());
                    });
                }
                4 => {
                    path.set(Weather {
                        broken_percent: 30,
                        ..Weather::default()
                    });
                    repairs.spawn(async move {
                        sleep(long).await;
                        path.set(Weather::default());
                    });
                }
                5 => {
                    agent.freeze();
                    repairs.spawn(async move {
                        sleep(short).await;
                        agent.thaw();
                    });
                }
                6 => {
                    agent.lose_leader();
                    repairs.spawn(async move {
                        sleep(short).await;
                        agent.elect_leader();
                    });
                }
                7 => {
                    agent.leave();
                    repairs.spawn(async move {
                        sleep(short).await;
                        agent.rejoin();
                    });
                }
                8 => agent.wipe(),
                9 => agent.inject(Fault::delay(short).times(times)),
                10 => agent.inject(Fault::lose_answer().under("/v1/txn").times(times)),
                11 => {
                    let failing = Fault::answer(StatusCode::INTERNAL_SERVER_ERROR, "rpc error");
                    agent.inject(failing.times(times));
                }
                12 => agent.inject(Fault::lose_answer().under("/v1/session/").times(times)),
                _ => {
                    // Most of what happens to a holder is interesting.
                    let table = self.table();
                    let holding = table.holdings.iter().flatten().next();
                    if let Some(holding) = holding {
                        // It may have ended by itself.
                        let _ = agent.expire_session(holding.held().session().as_str());
                    }
                }
            }
            sleep(self.within(8)).await;
        }
        repairs.shutdown().await;
        for path in paths {
            path.cut(false);
            path.set(Weather::default());
        }
        self.agent.clear_faults();
        self.agent.thaw();
        self.agent.rejoin();
        self.agent.elect_leader();
    }

    fn sound(&self) -> Result<(), String> {
        self.table().wrong.take().map_or(Ok(()), Err)
    }
}

/// How often somebody held, and how many fenced writes were taken.
#[derive(Default)]
struct Tally {
    storms: u64,
    held: u64,
    writes: u64,
}

fn weather(seed: u64, tally: &mut Tally) -> Result<(), String> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut rng = Rng::new(seed);
        let prize = match rng.below(5) {
            0 => Prize::Lock,
            1 => Prize::Leadership,
            2 => Prize::Work,
            places => Prize::Places(u32::try_from(places).unwrap() - 2),
        };
        let profile = match rng.below(4) {
            0 => Profile::fast(),
            1 => Profile::balanced()
                .lock_delay(Duration::from_secs(3))
                .belief(Duration::from_millis(2_800)),
            _ => Profile::balanced(),
        };
        let count = 3 + usize::try_from(rng.below(2)).unwrap();
        let agent = Agent::builder().seed(seed).in_memory();
        let paths: Vec<Path> = (0..count).map(|_| Path::to(&agent, rng.bits())).collect();
        let sharing: Vec<bool> = (0..count).map(|_| rng.chance(30)).collect();
        let world = Arc::new(World {
            prize,
            profile,
            agent: agent.clone(),
            end_of_storm: Instant::now() + STORM,
            table: Mutex::new(Table {
                rng,
                holdings: (0..count).map(|_| None).collect(),
                begun: vec![0; count],
                served: vec![false; count],
                newest: 0,
                writes: 0,
                taken: 0,
                wrong: None,
            }),
        });
        let made = Made::default();
        let mut contenders = JoinSet::new();
        for (number, path) in paths.iter().enumerate() {
            let client = Client::builder().transport(made.heard(path.clone()));
            let client = client.build().unwrap();
            let lease = sharing[number].then(|| {
                let lease = client.lease().profile(world.profile.clone());
                lease.build().unwrap()
            });
            contenders.spawn(Arc::clone(&world).contend(number, client, lease));
        }
        Arc::clone(&world).storm(paths).await;
        world.sound()?;
        let calm = timeout(CALM, async {
            while let Some(served) = contenders.join_next().await {
                served.unwrap();
            }
        });
        if calm.await.is_err() {
            let (begun, served) = {
                let table = world.table();
                (table.begun.clone(), table.served.clone())
            };
            return Err(format!(
                "{prize:?}: not everybody got a turn within {CALM:?} of calm: {served:?}; held \
                 {begun:?} times; shared leases: {sharing:?}, {:?}",
                world.profile
            ));
        }
        world.sound()?;
        world.table().holdings.clear();
        let look = Client::builder().transport(agent.clone()).build().unwrap();
        if world.places() == 1 && !sharing.contains(&true) {
            in_order(&look).await?;
        }
        nothing_left(&agent, &look, &made).await?;
        tally.storms += 1;
        let begun = world.table().begun.clone();
        tally.held += begun.into_iter().map(u64::from).sum::<u64>();
        tally.writes += world.table().taken;
        Ok(())
    })
}

/// The writes of each holder come before those of the next.
async fn in_order(look: &Client) -> Result<(), String> {
    let mut writes = look.kv().list("writes/").await.unwrap().into_value();
    writes.sort_by_key(|write| write.create_index());
    let token = |place: usize| writes[place].value_str().unwrap().parse::<u64>().unwrap();
    match (1..writes.len()).find(|place| token(place - 1) > token(*place)) {
        Some(place) => Err(format!(
            "a write with token {} after {}",
            token(place),
            token(place - 1)
        )),
        None => Ok(()),
    }
}

/// What the sessions were asked for with whose makers have heard that they are made.
#[derive(Clone, Default)]
struct Made(Arc<Mutex<Vec<Bytes>>>);

impl Made {
    /// A path whose answers are noted.
    fn heard(
        &self,
        path: Path,
    ) -> impl Service<Request, Response = Response<Body>, Error = io::Error, Future: Send>
    + Clone
    + Send
    + Sync
    + use<> {
        let all = Arc::clone(&self.0);
        service_fn(move |request: Request| {
            let is_making = request.uri().path() == "/v1/session/create";
            let made = is_making.then(|| (Arc::clone(&all), request.body().clone()));
            let answer = path.clone().call(request);
            async move {
                let answer = answer.await?;
                if let Some((all, asked)) = made.filter(|_| answer.status().is_success()) {
                    all.lock().unwrap().push(asked);
                }
                Ok(answer)
            }
        })
    }

    fn has(&self, session: &SessionInfo) -> bool {
        let all = self.0.lock().unwrap();
        let mut asked = all.iter().map(|asked| String::from_utf8_lossy(asked));
        asked.any(|asked| asked.contains(session.name()))
    }
}

/// All have gone: so must what they held, within the time that a goodbye has.
///
/// A session whose maker never heard of it, because the request was late or its answer was lost,
/// holds nothing, and ends by its TTL.
async fn nothing_left(agent: &Agent, look: &Client, made: &Made) -> Result<(), String> {
    let goodbye = Instant::now() + Duration::from_secs(12);
    let expiry = Instant::now() + Duration::from_secs(40);
    loop {
        let pairs = look.kv().list("").await.unwrap().into_value();
        let locks = pairs.iter().filter(|pair| pair.session().is_some()).count();
        let sessions = look.session().list().await.unwrap().into_value();
        let tasks = Handle::current().metrics().num_alive_tasks();
        let queries = agent.requests().open_queries();
        let more = locks + tasks + queries;
        if more + sessions.len() == 0 {
            break;
        }
        let late = more > 0 || sessions.iter().any(|session| made.has(session));
        if Instant::now() > if late { goodbye } else { expiry } {
            return Err(format!(
                "left behind: {locks} locks, {tasks} tasks, {queries} queries, {sessions:?}"
            ));
        }
        sleep(Duration::from_millis(50)).await;
    }
    match look.lock(KEY).try_acquire().await {
        Ok(Attempt::Held(_) | Attempt::Delayed { .. }) => Err("the lock is not free".to_owned()),
        _ => Ok(()),
    }
}

/// Goes through storms of its own, or many times through the one that it is told.
fn nobody_is_wronged() {
    let mut tally = Tally::default();
    let mut storm = |seed| {
        if let Err(what) = weather(seed, &mut tally) {
            panic!("LICTOR_STORM_SEED={seed}: {what}");
        }
    };
    match std::env::var("LICTOR_STORM_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("a seed is a number");
            (0..50).for_each(|_| storm(seed));
        }
        Err(_) => {
            let first = seed();
            let start = Instant::now();
            (first..)
                .take_while(|_| start.elapsed() < TIME)
                .for_each(storm);
        }
    }
    let Tally {
        storms,
        held,
        writes,
    } = tally;
    println!(
        "{storms} storms of {STORM:?} and {CALM:?} of calm: held {held} times, {writes} writes"
    );
    assert!(held > 3 * storms && writes > 3 * storms);
}

/// Another one each time.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one("storm") >> 1
}

#[test]
fn no_storm_makes_too_many_believe_or_keeps_one_waiting() {
    nobody_is_wronged();
}

#[test]
fn no_other_storm_makes_too_many_believe_or_keeps_one_waiting() {
    nobody_is_wronged();
}
