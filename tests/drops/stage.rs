//! Where a future is polled so many times and dropped, and what must not be left behind.

use std::any::Any;
use std::cell::Cell;
use std::panic;
use std::pin::Pin;
use std::sync::Once;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use lictor::coordination::Attempt;
use lictor::embedded::Agent;
use lictor::{Client, ErrorKind};
use support::path::Path;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// A future that is to be dropped, with all that it needs.
pub(crate) type Subject = Pin<Box<dyn Future<Output = lictor::Result<()>> + Send>>;

/// One of the futures of the crate, in one of the situations that it may be dropped in.
pub(crate) struct Case {
    /// The type and the function, and after a colon what is special.
    pub(crate) name: &'static str,
    pub(crate) prepare: Prepare,
}

pub(crate) type Prepare = for<'a> fn(&'a mut Stage) -> Preparing<'a>;
pub(crate) type Preparing<'a> = Pin<Box<dyn Future<Output = Subject> + 'a>>;

/// Names the cases of a family, and tests each way of dropping all of them.
macro_rules! cases {
    ($($name:literal => $prepare:ident,)*) => {
        const CASES: &[crate::stage::Case] = &[$(
            crate::stage::Case {
                name: $name,
                prepare: |stage| Box::pin($prepare(stage)),
            },
        )*];

        #[test]
        fn dropped_between_any_two_polls_nothing_is_left() {
            crate::stage::all(CASES, crate::stage::Way::AtOnce);
        }

        #[test]
        fn dropped_with_news_that_it_has_not_seen_nothing_is_left() {
            crate::stage::all(CASES, crate::stage::Way::Woken);
        }

        #[test]
        fn dropped_at_any_moment_nothing_is_left() {
            crate::stage::all(CASES, crate::stage::Way::InTime);
        }

        #[test]
        fn dropped_outside_of_its_runtime_nothing_is_left() {
            crate::stage::all(CASES, crate::stage::Way::Outside);
        }

        #[test]
        fn dropped_with_its_runtime_it_does_no_harm() {
            crate::stage::all(CASES, crate::stage::Way::WithRuntime);
        }

        #[test]
        fn dropped_after_its_runtime_it_does_no_harm() {
            crate::stage::all(CASES, crate::stage::Way::AfterRuntime);
        }

        #[test]
        fn polled_outside_of_a_runtime_it_says_so_or_works() {
            crate::stage::without_runtime(CASES);
        }

        #[test]
        fn polled_after_the_runtime_of_what_it_needs_it_comes_to_an_end() {
            crate::stage::in_another_runtime(CASES);
        }
    };
}
pub(crate) use cases;

/// When a future is dropped, and where.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    /// Right after a poll that found it pending.
    AtOnce,
    /// When it has been woken, and would be polled again.
    Woken,
    /// So many milliseconds after it was polled first, whatever is on its way then.
    InTime,
    /// Right after a poll, while no runtime is entered.
    Outside,
    /// As a task of a runtime that ends.
    WithRuntime,
    /// When the runtime that polled it has ended.
    AfterRuntime,
}

/// The agent, the client whose futures are dropped, and what others do meanwhile.
pub(crate) struct Stage {
    pub(crate) agent: Agent,
    pub(crate) client: Client,
    /// The path that it takes.
    pub(crate) path: Path,
    /// Somebody else's client.
    pub(crate) other: Client,
    /// What others do meanwhile; it is waited for.
    pub(crate) others: JoinSet<()>,
    /// What lives on after the future, and is itself to leave nothing behind.
    kept: Vec<Box<dyn Any>>,
    /// Reaches the agent at once, whatever happens on the way of the others.
    look: Client,
}

/// How long what goes on in the background may take: nothing may be left to TTLs, the shortest of
/// which lets a session live for 20 s.
const SOON: Duration = Duration::from_secs(5);

/// No future here has as many await points.
const MOST_TURNS: usize = 500;

/// The key that locks and elections of all cases are about, and the prefix of all semaphores.
pub(crate) const KEY: &str = "job";
pub(crate) const PLACES: &str = "places";

impl Stage {
    fn new() -> Self {
        let agent = Agent::in_memory();
        let client = |path| Client::builder().transport(path).build().unwrap();
        let path = Path::to(&agent, 1);
        Self {
            client: client(path.clone()),
            path,
            other: client(Path::to(&agent, 2)),
            others: JoinSet::new(),
            kept: Vec::new(),
            look: Client::builder().transport(agent.clone()).build().unwrap(),
            agent,
        }
    }

    /// Keeps something until it is known that the future alone has left nothing behind.
    pub(crate) fn keep(&mut self, what: impl Any) {
        self.kept.push(Box::new(what));
    }

    /// Waits until nothing is left of the future, and then of all others.
    async fn end(mut self, what: &str) {
        while let Some(done) = self.others.join_next().await {
            done.unwrap_or_else(|err| panic!("{what}: {err}"));
        }
        let holds = || async { held(&self.look).await };
        nothing_left(what, holds).await;
        self.kept.clear();
        let (agent, look) = (&self.agent, &self.look);
        nothing_left(what, || async { left(agent, look).await }).await;
        // Nor does a lock-delay run, which a session that ended without its unlock leaves behind.
        let lock = self.look.lock(KEY);
        let free = async {
            loop {
                match lock.try_acquire().await.unwrap() {
                    Attempt::Acquired(guard) => break guard.release().await.unwrap(),
                    Attempt::Held(_) | Attempt::Delayed { .. } => {
                        sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        };
        let free = timeout(SOON, free).await;
        assert!(free.is_ok(), "{what}: the lock is not to be had");
        nothing_left(what, || async { left(agent, look).await }).await;
    }
}

/// Waits until there is nothing any more.
async fn nothing_left<F: Future<Output = Vec<String>>>(what: &str, look: impl Fn() -> F) {
    let end = Instant::now() + SOON;
    loop {
        let found = look().await;
        if found.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "{what}: left behind: {found:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// What somebody holds.
async fn held(look: &Client) -> Vec<String> {
    let pairs = look.kv().list("").await.unwrap().into_value();
    let locked = pairs.iter().filter(|pair| pair.session().is_some());
    let mut found: Vec<String> = locked
        .map(|pair| format!("lock of {}", pair.key()))
        .collect();
    // A ticket that nobody locks any more is one that was left behind.
    let tickets = pairs.iter().filter(|pair| pair.key().contains(".queue/"));
    found.extend(tickets.map(|pair| format!("ticket {}", pair.key())));
    let places = look.semaphore(PLACES, 1).explain().await.unwrap();
    found.extend(places.taken().iter().map(|place| format!("{place:?}")));
    found
}

/// All that is there, by anybody.
async fn left(agent: &Agent, look: &Client) -> Vec<String> {
    let mut found = held(look).await;
    let sessions = look.session().list().await.unwrap();
    found.extend(sessions.iter().map(|session| format!("{session:?}")));
    let services = look.agent().services().await.unwrap();
    found.extend(services.iter().map(|service| format!("{service:?}")));
    let checks = look.agent().checks().await.unwrap();
    found.extend(checks.iter().map(|check| format!("{check:?}")));
    let queries = agent.requests().open_queries();
    let tasks = Handle::current().metrics().num_alive_tasks();
    if queries + tasks > 0 {
        found.push(format!("{tasks} tasks, {queries} open queries"));
    }
    found
}

fn runtime() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap()
}

/// Polls a future so many times at most; the last time it is not waited for what comes of it.
async fn polled(
    subject: &mut Subject,
    times: usize,
    until_woken: bool,
) -> Option<lictor::Result<()>> {
    let mut done = 0;
    std::future::poll_fn(|cx| {
        if done == times {
            return Poll::Ready(None);
        }
        done += 1;
        match subject.as_mut().poll(cx) {
            Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
            Poll::Pending if done == times && !until_woken => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Drops each at each of its await points.
pub(crate) fn all(cases: &[Case], way: Way) {
    for case in cases {
        let (mut turns, mut steps) = (0, 0);
        while !once(case, way, steps) {
            turns += 1;
            steps += match steps {
                0..60 => 1,
                60..200 if way == Way::InTime => 7,
                _ if way == Way::InTime => 190,
                _ => 1,
            };
            assert!(turns < MOST_TURNS, "{}: it never ends", case.name);
        }
    }
}

/// Whether the future was done before it was dropped.
fn once(case: &Case, way: Way, steps: usize) -> bool {
    let what = format!("{}, dropped after {steps}, {way:?}", case.name);
    let panics = Panics::count();
    let runtime = runtime();
    let mut stage = runtime.block_on(async { Stage::new() });
    let mut subject = runtime.block_on((case.prepare)(&mut stage));
    let outcome = runtime.block_on(async {
        match way {
            Way::InTime => {
                let time = Duration::from_millis(u64::try_from(steps).unwrap());
                timeout(time, &mut subject).await.ok()
            }
            _ => polled(&mut subject, steps, way == Way::Woken).await,
        }
    });
    let done = outcome.is_some();
    outcome
        .transpose()
        .unwrap_or_else(|err| panic!("{what}: {err:?}"));
    match way {
        Way::AtOnce | Way::Woken | Way::InTime => runtime.block_on(async { drop(subject) }),
        Way::Outside => drop(subject),
        Way::WithRuntime => {
            if !done {
                let task = async move { drop(subject.await) };
                stage.others.spawn_on(task, runtime.handle());
            }
            drop(runtime);
            drop(stage);
            panics.none(&what);
            return done;
        }
        Way::AfterRuntime => {
            drop(runtime);
            drop(subject);
            drop(stage);
            panics.none(&what);
            return done;
        }
    }
    runtime.block_on(stage.end(&what));
    panics.none(&what);
    done
}

/// Polls each where there is no runtime.
pub(crate) fn without_runtime(cases: &[Case]) {
    for case in cases {
        let what = format!("{}, outside of a runtime", case.name);
        let panics = Panics::count();
        let runtime = runtime();
        let mut stage = runtime.block_on(async { Stage::new() });
        let mut subject = runtime.block_on((case.prepare)(&mut stage));
        match subject
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Pending | Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(err)) => {
                assert_eq!(err.kind(), ErrorKind::NoRuntime, "{what}: {err:?}")
            }
        }
        drop(subject);
        runtime.block_on(stage.end(&what));
        panics.none(&what);
    }
}

/// Polls each to its end when the runtime on which it was prepared has ended.
pub(crate) fn in_another_runtime(cases: &[Case]) {
    for case in cases {
        let what = format!("{}, after the runtime", case.name);
        let panics = Panics::count();
        let first = runtime();
        let mut stage = first.block_on(async { Stage::new() });
        let subject = first.block_on((case.prepare)(&mut stage));
        drop(first);
        // What was held by the first one ends by its TTL and its lock-delay.
        let patience = Duration::from_secs(60);
        let ended = runtime().block_on(async { timeout(patience, subject).await });
        assert!(ended.is_ok(), "{what}: it hangs");
        drop(stage);
        panics.none(&what);
    }
}

thread_local! {
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

/// How many panics there were on this thread, on which all tasks of a stage run.
struct Panics(usize);

impl Panics {
    fn count() -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let former = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                PANICS.set(PANICS.get() + 1);
                former(info);
            }));
        });
        Self(PANICS.get())
    }

    fn none(self, what: &str) {
        assert_eq!(PANICS.get(), self.0, "{what}: a task panicked");
    }
}
