//! Elections: the work of one at a time, and what others see of it.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use lictor::ErrorKind;
use lictor::coordination::{Election, LeaderView, LossCause, Next, Outcome, Profile, Role, Term};
use support::{eventually, eventually_some};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::TestAgent;

on_both_agents![
    one_of_three_works_at_a_time_and_lets_others_go_first,
    a_destroyed_session_ends_the_work_before_the_next_leader_works,
    a_leader_that_is_told_to_stop_steps_down_in_order,
    work_that_does_not_end_is_dropped_when_its_time_is_over,
    what_a_term_spawned_ends_with_it,
    observers_see_leaders_come_publish_and_go,
    a_candidate_that_is_told_to_stop_leaves_nothing_behind,
    a_run_that_is_dropped_anywhere_leaves_nothing_behind,
    a_leadership_that_is_dropped_is_handed_over,
    roles_tell_what_a_candidate_is,
    a_rejoining_leader_has_a_new_term,
    candidates_share_a_lease,
];

const LONG: Duration = Duration::from_secs(30);

async fn is_held(agent: &TestAgent, key: &str) -> bool {
    let pair = agent.client().kv().get(key).await.unwrap().into_value();
    pair.is_some_and(|pair| pair.session().is_some())
}

/// Notes that it is dropped.
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Counts those who are inside.
struct Inside(Arc<AtomicUsize>);

impl Inside {
    fn enter(inside: &Arc<AtomicUsize>) -> Self {
        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two work");
        Self(Arc::clone(inside))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A signal to stop, and its other end.
fn signal() -> (
    oneshot::Sender<()>,
    impl Future<Output = ()> + Send + 'static,
) {
    let (stop, stopped) = oneshot::channel::<()>();
    (stop, async move { drop(stopped.await) })
}

type Run = JoinSet<lictor::Result<Outcome>>;

/// A run as a task, which ends with the case.
fn start(run: impl Future<Output = lictor::Result<Outcome>> + Send + 'static) -> Run {
    let mut task = JoinSet::new();
    task.spawn(run);
    task
}

async fn outcome(mut run: Run) -> Outcome {
    let ended = tokio::time::timeout(LONG, run.join_next()).await;
    ended.expect("in time").unwrap().unwrap().unwrap()
}

/// Waits until a candidate has the role that is meant.
async fn becomes(election: &Election, mut is_meant: impl FnMut(&Role) -> bool) -> Role {
    let mut roles = election.roles();
    let waiting = async {
        loop {
            let role = roles.next().await.expect("the election is there");
            if is_meant(&role) {
                return role;
            }
        }
    };
    tokio::time::timeout(LONG, waiting).await.expect("in time")
}

async fn one_of_three_works_at_a_time_and_lets_others_go_first(agent: &TestAgent) {
    let key = agent.name("election");
    let inside = Arc::new(AtomicUsize::new(0));
    let terms = Arc::new(Mutex::new(Vec::new()));
    let mut runs = Vec::new();
    for candidate in 0..3 {
        let election = agent.client().election(key.as_str()).candidate(candidate);
        let (inside, terms) = (Arc::clone(&inside), Arc::clone(&terms));
        let run = election.run(std::future::pending(), async move |term: Term| {
            let _inside = Inside::enter(&inside);
            term.check().unwrap();
            let again = {
                let mut terms = terms.lock().unwrap();
                terms.push((candidate, term.token()));
                terms.iter().filter(|(one, _)| *one == candidate).count() == 2
            };
            term.publish(format!("{candidate} works")).await.unwrap();
            if again { Next::Stop } else { Next::StepDown }
        });
        runs.push(start(run));
    }
    for run in runs {
        assert!(matches!(outcome(run).await, Outcome::Finished));
    }
    let terms = terms.lock().unwrap().clone();
    assert_eq!(terms.len(), 6, "{terms:?}");
    assert!(terms.is_sorted_by(|a, b| a.1 < b.1), "{terms:?}");
    // Only the sixth may follow itself, when the two others are done.
    for pair in terms[..5].windows(2) {
        assert_ne!(pair[0].0, pair[1].0, "nobody else went first: {terms:?}");
    }
    assert!(!is_held(agent, &key).await);
    assert_eq!(agent.sessions(&key).await, 0);
}

async fn a_destroyed_session_ends_the_work_before_the_next_leader_works(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("election"));
    let profile = Profile::balanced()
        .lock_delay(Duration::from_secs(2))
        .belief(Duration::from_millis(1800));
    let inside = Arc::new(AtomicUsize::new(0));
    let (led, mut leads) = watch::channel(None);
    let led = Arc::new(led);
    let mut stops = Vec::new();
    let mut runs = Vec::new();
    for _ in 0..2 {
        let election = client.election(key.as_str()).profile(profile.clone());
        let election = election.step_down_within(Duration::from_millis(50));
        let (stop, stopped) = signal();
        let (inside, led) = (Arc::clone(&inside), Arc::clone(&led));
        runs.push(start(election.run(stopped, async move |term: Term| {
            let _inside = Inside::enter(&inside);
            let session = term.session().clone();
            led.send_replace(Some((session, term.clone())));
            std::future::pending().await
        })));
        stops.push(stop);
    }
    let first = tokio::time::timeout(LONG, leads.wait_for(Option::is_some)).await;
    let (session, term) = first.unwrap().unwrap().clone().unwrap();
    eventually(LONG, async || agent.sessions(&key).await == 2).await;
    let destroyed = Instant::now();
    client.session().destroy(&session).await.unwrap();
    let lost = tokio::time::timeout(LONG, term.lost()).await.unwrap();
    assert_ne!(lost.cause(), LossCause::Released);
    // Nobody is inside when the next one enters, or it panics and this waits in vain.
    let next = leads.wait_for(|led| led.as_ref().is_some_and(|led| led.0 != session));
    let next = tokio::time::timeout(LONG, next).await.unwrap().unwrap();
    let waited = destroyed.elapsed();
    assert!(waited > Duration::from_millis(1900), "{waited:?}");
    assert!(next.as_ref().unwrap().1.token() > term.token());
    drop(next);
    assert!(term.check().is_err());
    // Who leads is interrupted, because its work never ends by itself; the other campaigns.
    drop(stops);
    let mut interrupted = 0;
    for run in runs {
        match outcome(run).await {
            Outcome::Interrupted => interrupted += 1,
            Outcome::NotLeading => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(interrupted, 1);
    eventually(LONG, async || agent.sessions(&key).await == 0).await;
}

async fn a_leader_that_is_told_to_stop_steps_down_in_order(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("election"));
    let election = client.election(key.as_str());
    let (stop, stopped) = signal();
    let log = Arc::new(Mutex::new(Vec::new()));
    let spawned = Arc::new(AtomicBool::new(false));
    let run = {
        let (log, spawned, key) = (Arc::clone(&log), Arc::clone(&spawned), key.clone());
        let client = client.clone();
        start(election.run(stopped, async move |term: Term| {
            let dropped = Dropped(Arc::clone(&spawned));
            term.spawn(async move {
                let _dropped = dropped;
                std::future::pending().await
            });
            assert!(!term.is_stopping());
            term.stopping().await;
            assert!(term.is_stopping());
            log.lock().unwrap().push("told");
            // It leads as before until it is done.
            let pair = client.kv().get(key.as_str()).await.unwrap().into_value();
            assert_eq!(pair.unwrap().session(), Some(term.session()));
            term.check().unwrap();
            assert!(!spawned.load(Ordering::SeqCst));
            log.lock().unwrap().push("done");
            Next::Rejoin
        }))
    };
    becomes(&election, Role::is_leader).await;
    stop.send(()).unwrap();
    assert!(matches!(outcome(run).await, Outcome::SteppedDown));
    assert_eq!(*log.lock().unwrap(), ["told", "done"]);
    assert!(spawned.load(Ordering::SeqCst));
    assert!(!is_held(agent, &key).await);
    assert_eq!(agent.sessions(&key).await, 0);
}

async fn work_that_does_not_end_is_dropped_when_its_time_is_over(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("election"));
    let election = client
        .election(key.as_str())
        .step_down_within(Duration::from_millis(50));
    let (stop, stopped) = signal();
    let dropped = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&dropped);
    let run = start(election.run(stopped, async move |_| {
        let _dropped = Dropped(Arc::clone(&seen));
        std::future::pending().await
    }));
    becomes(&election, Role::is_leader).await;
    stop.send(()).unwrap();
    let outcome = outcome(run).await;
    assert!(matches!(outcome, Outcome::Interrupted), "{outcome:?}");
    assert!(dropped.load(Ordering::SeqCst));
    assert!(!is_held(agent, &key).await);
}

async fn what_a_term_spawned_ends_with_it(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("election"));
    let election = client.election(key.as_str());
    let ended = Arc::new(AtomicUsize::new(0));
    let (kept, mut keeper) = watch::channel(None);
    let outcome = {
        let ended = Arc::clone(&ended);
        let work = async move |term: Term| {
            let (begun, began) = oneshot::channel();
            for begun in [Some(begun), None] {
                let ended = Arc::clone(&ended);
                term.spawn(async move {
                    struct Ended(Arc<AtomicUsize>);
                    impl Drop for Ended {
                        fn drop(&mut self) {
                            self.0.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                    let _ended = Ended(ended);
                    if let Some(begun) = begun {
                        begun.send(()).unwrap();
                    }
                    std::future::pending().await
                });
            }
            // One that panics takes nobody with it.
            term.spawn(async { panic!("on purpose") });
            began.await.unwrap();
            kept.send_replace(Some(term));
            Next::Stop
        };
        election.run(std::future::pending(), work).await.unwrap()
    };
    assert!(matches!(outcome, Outcome::Finished), "{outcome:?}");
    assert!(ended.load(Ordering::SeqCst) >= 1);
    let term = keeper.borrow_and_update().clone().unwrap();
    assert_eq!(term.check().unwrap_err().cause(), LossCause::Released);
    term.stopping().await;
    // Nothing is started after the term.
    let started = Arc::new(AtomicBool::new(false));
    let dropped = Dropped(Arc::clone(&started));
    term.spawn(async move {
        let _never = dropped;
        panic!("it is polled after the term");
    });
    assert!(started.load(Ordering::SeqCst), "it is dropped at once");
    assert!(term.publish("late").await.is_err());
}

async fn observers_see_leaders_come_publish_and_go(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("election"));
    let election = client.election(key.as_str());
    let mut observer = election.observe::<String>().unwrap();
    let numbers = client.election(key.as_str()).observe::<u32>().unwrap();
    assert!(matches!(observer.next().await, Some(LeaderView::Nobody)));
    let mut leaders = Vec::new();
    for name in ["one", "two"] {
        let election = client.election(key.as_str()).candidate(name);
        let leadership = election.campaign().await.unwrap();
        match observer.next().await {
            Some(LeaderView::Leader(leader)) => {
                assert_eq!(leader.value().unwrap(), name);
                assert_eq!(leader.session(), leadership.session());
                assert_eq!(leader.index(), leadership.token().get());
            }
            other => panic!("{other:?}"),
        }
        let token = leadership.token();
        leadership.publish(format!("{name} works")).await.unwrap();
        match observer.next().await {
            Some(LeaderView::Leader(leader)) => {
                assert_eq!(leader.value().unwrap(), &format!("{name} works"));
                assert_eq!(leader.session(), leadership.session());
                assert!(leader.index() > token.get());
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(leadership.token(), token);
        leadership.check().unwrap();
        // Who comes late sees who leads, and one that expects another type is told so.
        let late = election.observe::<String>().unwrap().next().await;
        assert_eq!(
            late.unwrap().leader().unwrap().session(),
            leadership.session()
        );
        let wrong = eventually_some(LONG, async || numbers.current().leader().cloned()).await;
        assert_eq!(wrong.value().unwrap_err().kind(), ErrorKind::Value);
        leaders.push(leadership.session().clone());
        leadership.resign().await.unwrap();
        assert!(matches!(observer.next().await, Some(LeaderView::Nobody)));
    }
    assert_ne!(leaders[0], leaders[1]);
}

async fn a_candidate_that_is_told_to_stop_leaves_nothing_behind(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("election"));
    let guard = client.lock(key.as_str()).acquire().await.unwrap();
    let election = client.election(key.as_str());
    let (stop, stopped) = signal();
    let run = start(election.run(stopped, async |_| panic!("it never leads")));
    let role = becomes(&election, |role| matches!(role, Role::Follower { .. })).await;
    match role {
        Role::Follower { leader } => assert_eq!(leader, *guard.session()),
        other => panic!("{other:?}"),
    }
    stop.send(()).unwrap();
    let outcome = outcome(run).await;
    assert!(matches!(outcome, Outcome::NotLeading), "{outcome:?}");
    assert_eq!(agent.sessions(&key).await, 1);
    guard.check().unwrap();
    guard.release().await.unwrap();
    becomes(&election, |role| matches!(role, Role::Idle)).await;
}

async fn a_run_that_is_dropped_anywhere_leaves_nothing_behind(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("election"));
    let working = Arc::new(AtomicUsize::new(0));
    let mut polls = 0;
    loop {
        polls += 1;
        assert!(polls < 500, "it never ends by itself");
        let election = client.election(key.as_str());
        let inside = Arc::clone(&working);
        let reader = client.clone();
        let read = key.clone();
        let mut run = Box::pin(
            election.run(std::future::pending(), async move |term: Term| {
                let work = Inside::enter(&inside);
                term.spawn(std::future::pending());
                reader.kv().get(read.as_str()).await.unwrap();
                drop(work);
                Next::Stop
            }),
        );
        let mut left = polls;
        let ended = std::future::poll_fn(|cx| {
            let polled = run.as_mut().poll(cx);
            left -= 1;
            match polled {
                Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
                Poll::Pending if left == 0 => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        drop(run);
        // The work is gone at once; the lock and the session follow.
        assert_eq!(working.load(Ordering::SeqCst), 0);
        assert!(matches!(election.roles().next().await, Some(Role::Idle)));
        eventually(LONG, async || {
            !is_held(agent, &key).await && agent.sessions(&key).await == 0
        })
        .await;
        if let Some(outcome) = ended {
            assert!(matches!(outcome.unwrap(), Outcome::Finished));
            break;
        }
    }
    assert!(polls > 3, "{polls} polls");
}

async fn a_leadership_that_is_dropped_is_handed_over(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("election"));
    let first = client.election(key.as_str());
    let leadership = first.campaign().await.unwrap();
    let token = leadership.token();
    let lost = leadership.lost();
    let second = client.election(key.as_str());
    let mut campaign = pin!(second.campaign());
    tokio::select! {
        biased;
        _ = &mut campaign => panic!("two lead"),
        _ = becomes(&second, |role| matches!(role, Role::Follower { .. })) => {}
    }
    drop(leadership);
    assert_eq!(lost.await.cause(), LossCause::Released);
    let leadership = campaign.await.unwrap();
    assert!(leadership.token() > token);
    leadership.resign().await.unwrap();
    eventually(LONG, async || agent.sessions(&key).await == 0).await;
}

async fn roles_tell_what_a_candidate_is(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("election"));
    let election = client.election(key.as_str());
    let mut roles = election.roles();
    assert!(matches!(roles.next().await, Some(Role::Idle)));
    let leadership = election.campaign().await.unwrap();
    match roles.next().await {
        Some(Role::Leader { token }) => assert_eq!(token, leadership.token()),
        other => panic!("{other:?}"),
    }
    let err = election.clone().campaign().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict);
    let run = election.run(std::future::pending(), async |_| Next::Stop);
    assert_eq!(run.await.unwrap_err().kind(), ErrorKind::Conflict);
    assert!(leadership.check().is_ok());
    // A leadership that is lost is not told any more, though its guard is there.
    client.kv().delete(key.as_str()).await.unwrap();
    assert!(matches!(roles.next().await, Some(Role::Idle)));
    drop(leadership);
    let leadership = election.campaign().await.unwrap();
    assert!(matches!(roles.next().await, Some(Role::Leader { .. })));
    leadership.resign().await.unwrap();
    assert!(matches!(roles.next().await, Some(Role::Idle)));
    drop(election);
    assert!(roles.next().await.is_none());
}

async fn a_rejoining_leader_has_a_new_term(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("election"));
    let election = client.election(key.as_str());
    let mut tokens = Vec::new();
    // What the work borrows needs no clone where the run is not spawned.
    let run = election.run(std::future::pending(), async |term: Term| {
        tokens.push(term.token());
        if tokens.len() < 3 {
            Next::Rejoin
        } else {
            Next::Stop
        }
    });
    assert!(matches!(run.await.unwrap(), Outcome::Finished));
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
    assert_eq!(tokens.len(), 3);
    assert_eq!(agent.sessions(&key).await, 0);
}

async fn candidates_share_a_lease(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("shared"));
    let lease = client.lease().name(name.as_str()).build().unwrap();
    let one = client.election(agent.name("one")).lease(&lease);
    let two = client.election(agent.name("two")).lease(&lease);
    let (one, two) = tokio::join!(one.campaign(), two.campaign());
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.session(), two.session());
    one.resign().await.unwrap();
    two.check().unwrap();
    assert_eq!(agent.sessions(&name).await, 1);
    // What the lease loses, the leader loses.
    let lost = two.lost();
    lease.close().await.unwrap();
    assert_eq!(lost.await.cause(), LossCause::Released);
    assert_eq!(agent.sessions(&name).await, 0);
}
