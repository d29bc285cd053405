//! What candidates and observers tell of an election while Consul does not answer.

use std::time::Duration;

use lictor::Client;
use lictor::coordination::{
    Election, LeaderView, Next, Observer, Outcome, Profile, Role, States, Term,
};
use lictor::embedded::{Agent, Fault};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

const LONG: Duration = Duration::from_secs(120);

/// What it takes at most to notice a loss, to ask for another session, and to look for it.
const NOTICED: Duration = Duration::from_secs(11);

fn client(agent: &Agent) -> Client {
    Client::builder().transport(agent.clone()).build().unwrap()
}

async fn becomes(roles: &mut States<Role>, is_meant: impl Fn(&Role) -> bool) -> Role {
    let waiting = timeout(LONG, async {
        loop {
            let role = roles.next().await.expect("the election is there");
            if is_meant(&role) {
                return role;
            }
        }
    });
    waiting.await.expect("in time")
}

async fn shows(
    observer: &mut Observer<String>,
    is_meant: impl Fn(&LeaderView<String>) -> bool,
) -> LeaderView<String> {
    let waiting = timeout(LONG, async {
        loop {
            let view = observer.next().await.expect("the runtime is there");
            if is_meant(&view) {
                return view;
            }
        }
    });
    waiting.await.expect("in time")
}

/// A candidate that leads until it is told to stop.
struct Candidate {
    election: Election,
    run: JoinSet<lictor::Result<Outcome>>,
    stop: oneshot::Sender<()>,
}

impl Candidate {
    fn start(agent: &Agent, name: &str) -> Self {
        let election = client(agent).election("leader").candidate(name);
        let (stop, stopped) = oneshot::channel::<()>();
        let mut run = JoinSet::new();
        let stopped = async move { drop(stopped.await) };
        run.spawn(election.run(stopped, async |term: Term| {
            term.stopping().await;
            Next::Stop
        }));
        Self {
            election,
            run,
            stop,
        }
    }

    async fn stop(mut self) -> Outcome {
        self.stop.send(()).unwrap();
        let ended = timeout(LONG, self.run.join_next()).await;
        ended.expect("in time").unwrap().unwrap().unwrap()
    }
}

fn is_follower(role: &Role) -> bool {
    matches!(role, Role::Follower { .. })
}

fn is_unknown(role: &Role) -> bool {
    matches!(role, Role::Unknown { .. })
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_hears_nothing_knows_its_deadline_and_keeps_it() {
    let agent = Agent::in_memory();
    let leader = Candidate::start(&agent, "one");
    let mut roles = leader.election.roles();
    let Role::Leader { token } = becomes(&mut roles, Role::is_leader).await else {
        panic!("nothing was wrong");
    };
    let belief = Profile::balanced().believed_for();
    // Some renewals have been answered.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let frozen = Instant::now();
    agent.freeze();
    let role = becomes(&mut roles, |role| matches!(role, Role::Jeopardy { .. })).await;
    let Role::Jeopardy {
        token: of,
        deadline,
        error,
    } = role
    else {
        unreachable!()
    };
    assert_eq!(of, token);
    assert!(error.is_timeout(), "{error}");
    let deadline = Instant::from_std(deadline);
    assert!(Instant::now() < deadline, "it is told while it still leads");
    assert!(deadline <= frozen + belief, "the last answer was before");
    assert!(
        deadline + belief / 2 > frozen + belief,
        "and not long before"
    );
    becomes(&mut roles, |role| !role.is_leader()).await;
    assert!(Instant::now() >= deadline);
    assert!(Instant::now() <= deadline + Duration::from_millis(1));
    let role = becomes(&mut roles, is_unknown).await;
    let Role::Unknown { since, error } = role else {
        unreachable!()
    };
    assert!(Instant::now() <= deadline + NOTICED);
    assert!(Instant::from_std(since) >= deadline);
    assert!(error.is_timeout(), "{error}");
    agent.thaw();
    match becomes(&mut roles, Role::is_leader).await {
        Role::Leader { token: next } => assert!(next > token),
        other => panic!("{other:?}"),
    }
    assert!(matches!(leader.stop().await, Outcome::SteppedDown));
    assert_eq!(agent_sessions(&agent).await, 0);
}

async fn agent_sessions(agent: &Agent) -> usize {
    client(agent).session().list().await.unwrap().len()
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_passes_is_jeopardy_that_passes() {
    let agent = Agent::in_memory();
    let leader = Candidate::start(&agent, "one");
    let mut roles = leader.election.roles();
    becomes(&mut roles, Role::is_leader).await;
    agent.inject(Fault::disconnect().under("/v1/session/renew/").times(1));
    let role = becomes(&mut roles, |role| matches!(role, Role::Jeopardy { .. })).await;
    assert!(role.is_leader());
    let role = becomes(&mut roles, |role| !matches!(role, Role::Jeopardy { .. })).await;
    assert!(matches!(role, Role::Leader { .. }), "{role:?}");
    assert!(matches!(leader.stop().await, Outcome::SteppedDown));
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_hears_nothing_says_that_it_does_not_know_and_campaigns_on() {
    let agent = Agent::in_memory();
    let guard = client(&agent).lock("leader").acquire().await.unwrap();
    let follower = Candidate::start(&agent, "two");
    let mut roles = follower.election.roles();
    becomes(&mut roles, is_follower).await;
    let frozen = Instant::now();
    agent.freeze();
    let Role::Unknown { since, .. } = becomes(&mut roles, is_unknown).await else {
        unreachable!()
    };
    let noticed = Instant::now() - frozen;
    let belief = Profile::balanced().believed_for();
    assert!(noticed <= belief + NOTICED, "{noticed:?}");
    assert!(Instant::from_std(since) > frozen);
    // Who led has lost it meanwhile, too.
    assert!(guard.check().is_err());
    agent.thaw();
    becomes(&mut roles, Role::is_leader).await;
    follower.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_hears_nothing_says_since_when_and_who_led_and_recovers() {
    let agent = Agent::in_memory();
    let leader = Candidate::start(&agent, "one");
    let mut observer = client(&agent).election("leader").observe().unwrap();
    let view = shows(&mut observer, |view| view.leader().is_some()).await;
    let session = view.leader().unwrap().session().clone();
    // With the deadline of the query that waits for it.
    let frozen = Instant::now();
    agent.freeze();
    let unknown = |view: &LeaderView<String>| matches!(view, LeaderView::Unknown { .. });
    let LeaderView::Unknown { since, last, error } = shows(&mut observer, unknown).await else {
        unreachable!()
    };
    assert!(frozen.elapsed() <= Duration::from_secs(75));
    let since = Instant::from_std(since);
    assert!(frozen <= since && since <= Instant::now());
    assert!(error.unwrap().is_timeout());
    let last = last.unwrap();
    assert_eq!(last.session(), &session);
    assert_eq!(last.value().unwrap(), "one");
    agent.thaw();
    // The leader lost it meanwhile, and leads again by another session.
    let other = |view: &LeaderView<String>| {
        let leader = view.leader();
        leader.is_some_and(|leader| *leader.session() != session)
    };
    shows(&mut observer, other).await;
    leader.stop().await;
    shows(&mut observer, |view| matches!(view, LeaderView::Nobody)).await;
}

#[tokio::test(start_paused = true)]
async fn work_that_rejoins_at_once_does_not_keep_consul_busy() {
    let agent = Agent::in_memory();
    let mut terms = 0;
    let minute = tokio::time::sleep(Duration::from_secs(60));
    let election = client(&agent).election("leader");
    let run = election.run(minute, async |_| {
        terms += 1;
        match terms {
            // Without pauses the clock would never move.
            1000.. => Next::Stop,
            _ => Next::Rejoin,
        }
    });
    let outcome = timeout(LONG, run).await.expect("in time").unwrap();
    assert!(!matches!(outcome, Outcome::Finished), "{outcome:?}");
    assert!((12..=100).contains(&terms), "{terms} terms in a minute");
    let requests = agent.requests().total();
    assert!(requests < 1500, "{requests} requests in {terms} terms");
}

#[tokio::test(start_paused = true)]
async fn candidates_that_step_down_for_each_other_do_not_keep_consul_busy() {
    let agent = Agent::in_memory();
    let terms = std::sync::atomic::AtomicU64::new(0);
    let run = async || {
        let minute = tokio::time::sleep(Duration::from_secs(60));
        let election = client(&agent).election("leader");
        let run = election.run(minute, async |_| {
            match terms.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                1000.. => Next::Stop,
                _ => Next::StepDown,
            }
        });
        timeout(LONG, run).await.expect("in time").unwrap()
    };
    let outcomes = tokio::join!(run(), run());
    let terms = terms.into_inner();
    assert!((12..=200).contains(&terms), "{terms} terms in a minute");
    for outcome in [outcomes.0, outcomes.1] {
        assert!(!matches!(outcome, Outcome::Finished), "{outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_term_that_has_lasted_is_followed_by_the_next_at_once() {
    let agent = Agent::in_memory();
    let mut terms = 0;
    let minute = tokio::time::sleep(Duration::from_secs(60));
    let election = client(&agent).election("leader");
    let run = election.run(minute, async |_| {
        terms += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
        Next::Rejoin
    });
    timeout(LONG, run).await.expect("in time").unwrap();
    assert!((55..=60).contains(&terms), "{terms} terms in a minute");
}
