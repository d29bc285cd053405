//! Preferred candidates: who leads next, and who makes way.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lictor::coordination::{Election, Next, Outcome, Role, Term};
use support::eventually;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::TestAgent;

on_both_agents![
    the_preferred_lead_before_those_who_came_first,
    a_leader_makes_way_for_a_preferred_candidate_and_leads_again_after_it,
    a_leader_does_not_make_way_for_an_equal_or_for_one_that_comes_and_goes,
    a_leader_that_is_told_to_stop_while_it_makes_way_stops,
];

const LONG: Duration = Duration::from_secs(30);

async fn in_line(agent: &TestAgent, key: &str, count: usize) {
    let lock = agent.client().lock(key);
    eventually(LONG, async || {
        lock.explain().await.unwrap().line().len() == count
    })
    .await;
}

async fn becomes(election: &Election, mut is_meant: impl FnMut(&Role) -> bool) {
    let mut roles = election.roles();
    let waiting = async { while !is_meant(&roles.next().await.expect("it is there")) {} };
    tokio::time::timeout(LONG, waiting).await.expect("in time");
}

/// Runs as a task until the stop is sent; its work ends when it is asked to, and notes that.
fn start(election: &Election, told: &Arc<Mutex<u32>>) -> (oneshot::Sender<()>, JoinSet<Outcome>) {
    let (stop, stopped) = oneshot::channel::<()>();
    let told = Arc::clone(told);
    let run = election.run(
        async move { drop(stopped.await) },
        async move |term: Term| {
            term.stopping().await;
            term.check().unwrap();
            *told.lock().unwrap() += 1;
            Next::StepDown
        },
    );
    let mut task = JoinSet::new();
    task.spawn(async move { run.await.unwrap() });
    (stop, task)
}

async fn outcome((stop, mut run): (oneshot::Sender<()>, JoinSet<Outcome>)) -> Outcome {
    stop.send(()).unwrap();
    let ended = tokio::time::timeout(LONG, run.join_next()).await;
    ended.expect("in time").unwrap().unwrap()
}

async fn the_preferred_lead_before_those_who_came_first(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("election"));
    let first = client.election(key.as_str()).fair();
    let leadership = first.campaign().await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut candidates = JoinSet::new();
    for (number, preference) in [0, 7, 255, 7, 1].into_iter().enumerate() {
        let election = client.election(key.as_str()).preference(preference);
        let order = Arc::clone(&order);
        candidates.spawn(async move {
            let leadership = election.campaign().await.unwrap();
            order.lock().unwrap().push(number);
            leadership.resign().await.unwrap();
        });
        in_line(agent, &key, number + 1).await;
    }
    let explanation = client.lock(key.as_str()).explain().await.unwrap();
    let line = explanation.line().iter().map(|one| one.preference());
    assert_eq!(line.collect::<Vec<u8>>(), [255, 7, 7, 1, 0]);
    leadership.resign().await.unwrap();
    let all = async { while candidates.join_next().await.transpose().unwrap().is_some() {} };
    tokio::time::timeout(LONG, all).await.expect("in time");
    assert_eq!(*order.lock().unwrap(), [2, 1, 3, 4, 0]);
}

async fn a_leader_makes_way_for_a_preferred_candidate_and_leads_again_after_it(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("election"));
    let after = Duration::from_millis(700);
    let low = client.election(key.as_str()).yields_to_preferred(after);
    let told = Arc::default();
    let run = start(&low, &told);
    becomes(&low, Role::is_leader).await;
    let high = client.election(key.as_str()).preference(1);
    let begun = Instant::now();
    let leadership = tokio::time::timeout(LONG, high.campaign()).await;
    let leadership = leadership.expect("in time").unwrap();
    assert!(begun.elapsed() >= after, "{:?}", begun.elapsed());
    assert_eq!(*told.lock().unwrap(), 1, "the work was not asked");
    in_line(agent, &key, 1).await;
    becomes(&low, |role| matches!(role, Role::Follower { .. })).await;
    leadership.check().unwrap();
    leadership.resign().await.unwrap();
    becomes(&low, Role::is_leader).await;
    assert!(matches!(outcome(run).await, Outcome::SteppedDown));
    assert_eq!(*told.lock().unwrap(), 2);
    in_line(agent, &key, 0).await;
    eventually(LONG, async || agent.sessions(&key).await == 0).await;
}

async fn a_leader_does_not_make_way_for_an_equal_or_for_one_that_comes_and_goes(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("election"));
    let after = Duration::from_secs(4);
    let election = || client.election(key.as_str()).preference(1);
    let low = election().yields_to_preferred(after);
    let told = Arc::default();
    let run = start(&low, &told);
    becomes(&low, Role::is_leader).await;
    let begun = Instant::now();
    let mut equal = JoinSet::new();
    let same = election();
    equal.spawn(async move { drop(same.campaign().await) });
    in_line(agent, &key, 1).await;
    // Together they are there for longer than it takes, and none of them is.
    while begun.elapsed() < after + Duration::from_secs(1) {
        let high = client.election(key.as_str()).preference(2);
        let campaign = tokio::time::timeout(Duration::from_millis(600), high.campaign());
        let seen = in_line(agent, &key, 2);
        let (campaign, ()) = tokio::join!(campaign, seen);
        assert!(campaign.is_err(), "it leads");
        in_line(agent, &key, 1).await;
    }
    assert_eq!(*told.lock().unwrap(), 0, "it made way");
    equal.shutdown().await;
    assert!(matches!(outcome(run).await, Outcome::SteppedDown));
}

async fn a_leader_that_is_told_to_stop_while_it_makes_way_stops(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("election"));
    let low = client.election(key.as_str());
    let low = low.yields_to_preferred(Duration::ZERO);
    let (stop, stopped) = oneshot::channel::<()>();
    let mut stop = Some(stop);
    let high = client.election(key.as_str()).preference(1);
    let run = low.run(async move { drop(stopped.await) }, async |term: Term| {
        term.stopping().await;
        stop.take().expect("it leads once").send(()).unwrap();
        Next::Rejoin
    });
    let follows = async {
        becomes(&low, Role::is_leader).await;
        high.campaign().await.unwrap()
    };
    let both = async { tokio::join!(run, follows) };
    let both = tokio::time::timeout(LONG, both).await;
    let (outcome, leadership) = both.expect("in time");
    let outcome = outcome.unwrap();
    assert!(matches!(outcome, Outcome::SteppedDown), "{outcome:?}");
    leadership.resign().await.unwrap();
}
