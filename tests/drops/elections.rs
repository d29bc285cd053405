use std::time::Duration;

use lictor::coordination::{Election, LeaderView, Next, Outcome};
use lictor::embedded::Fault;
use tokio::sync::oneshot;
use tokio::time::sleep;
use tokio_stream::StreamExt;

use crate::stage::{KEY, Stage, Subject, cases};

cases![
    "Election::run: it is told to stop while it leads" => run_stopped,
    "Election::run: it is told to stop before it leads" => run_stopped_early,
    "Election::run: others lead first" => run_later,
    "Election::run: the work ends it" => run_finished,
    "Election::run: it steps down and lets others go first" => run_in_turn,
    "Election::run: in line, and its registration tells that it leads" => run_advertised,
    "Election::run: it makes way for a preferred candidate" => run_outranked,
    "Election::run: by a shared lease" => run_shared,
    "Election::run: by a shared lease, the answer is lost" => run_shared_unanswered,
    "Election::run: by a shared lease, the try comes late" => run_shared_late,
    "Election::campaign" => campaign,
    "Election::campaign: others lead first" => campaign_later,
    "Leadership::publish" => publish,
    "Leadership::resign" => resign,
    "Leadership::resign: by a shared lease" => resign_shared,
    "Term::publish" => term_publish,
    "Term::stopping" => term_stopping,
    "Observer::next" => observe,
    "Observer::poll_next" => observe_as_stream,
    "States::next: of a candidate" => roles,
];

/// How long others lead.
const WHILE: Duration = Duration::from_millis(60);

fn election(stage: &Stage) -> Election {
    stage.client.election(KEY).candidate("us")
}

/// Somebody else leads, and hands over after a while.
async fn others_lead(stage: &mut Stage) {
    let leadership = stage.other.election(KEY).campaign().await.unwrap();
    stage.others.spawn(async move {
        sleep(WHILE).await;
        leadership.resign().await.unwrap();
    });
}

/// A run whose work has a task beside it and goes on until it is told to stop, after this long.
fn run_for(stage: &mut Stage, election: Election, time: Duration) -> Subject {
    let (stop, stopped) = oneshot::channel::<()>();
    stage.others.spawn(async move {
        sleep(time).await;
        drop(stop);
    });
    let stop = async move { drop(stopped.await) };
    let run = election.run(stop, async move |term| {
        term.spawn(std::future::pending());
        term.stopping().await;
        Next::Rejoin
    });
    Box::pin(async move { run.await.map(drop) })
}

async fn run_advertised(stage: &mut Stage) -> Subject {
    others_lead(stage).await;
    let service = lictor::api::agent::ServiceDefinition::new("mailer").port(80);
    let registration = stage.client.register(service).await.unwrap();
    let election = election(stage).fair().advertise(&registration, "leader");
    stage.keep(registration);
    run_for(stage, election, 3 * WHILE)
}

async fn run_outranked(stage: &mut Stage) -> Subject {
    let preferred = stage.other.election(KEY).preference(1);
    stage.others.spawn(async move {
        sleep(WHILE).await;
        let leadership = preferred.campaign().await.unwrap();
        leadership.resign().await.unwrap();
    });
    let election = election(stage).yields_to_preferred(WHILE);
    run_for(stage, election, 20 * WHILE)
}

async fn run_stopped(stage: &mut Stage) -> Subject {
    let election = election(stage);
    run_for(stage, election, WHILE)
}

async fn run_stopped_early(stage: &mut Stage) -> Subject {
    let election = election(stage);
    // In the middle of the making of its session.
    run_for(stage, election, Duration::from_millis(4))
}

async fn run_later(stage: &mut Stage) -> Subject {
    others_lead(stage).await;
    let election = election(stage);
    run_for(stage, election, 2 * WHILE)
}

async fn run_finished(stage: &mut Stage) -> Subject {
    let run = election(stage).run(std::future::pending(), async move |term| {
        term.publish("working").await.ok();
        Next::Stop
    });
    Box::pin(async move {
        let outcome = run.await?;
        assert!(matches!(outcome, Outcome::Finished), "{outcome:?}");
        Ok(())
    })
}

async fn run_in_turn(stage: &mut Stage) -> Subject {
    let other = stage.other.election(KEY);
    stage.others.spawn(async move {
        sleep(Duration::from_millis(10)).await;
        let leadership = other.campaign().await.unwrap();
        sleep(WHILE).await;
        leadership.resign().await.unwrap();
    });
    let mut terms = 0;
    let run = election(stage).run(std::future::pending(), async move |_| {
        terms += 1;
        match terms {
            1 => Next::StepDown,
            _ => Next::Stop,
        }
    });
    Box::pin(async move { run.await.map(drop) })
}

async fn run_shared(stage: &mut Stage) -> Subject {
    let lease = stage.client.lease().build().unwrap();
    let election = election(stage).lease(&lease);
    stage.keep(lease);
    run_for(stage, election, WHILE)
}

async fn run_shared_late(stage: &mut Stage) -> Subject {
    let subject = run_shared(stage).await;
    // While the seeker, who sees the key free, is about to try again.
    stage.path.delay_next("/v1/txn", Duration::from_millis(15));
    // One that comes while the session is being ended is as if its holder had died.
    stage.others.spawn(sleep(WHILE));
    subject
}

async fn run_shared_unanswered(stage: &mut Stage) -> Subject {
    stage
        .agent
        .inject(Fault::lose_answer().under("/v1/txn").times(1));
    run_shared(stage).await
}

async fn campaign(stage: &mut Stage) -> Subject {
    let election = election(stage);
    Box::pin(async move { election.campaign().await.map(drop) })
}

async fn campaign_later(stage: &mut Stage) -> Subject {
    others_lead(stage).await;
    campaign(stage).await
}

async fn publish(stage: &mut Stage) -> Subject {
    let leadership = election(stage).campaign().await.unwrap();
    Box::pin(async move { leadership.publish("working").await })
}

async fn resign(stage: &mut Stage) -> Subject {
    let leadership = election(stage).campaign().await.unwrap();
    Box::pin(async move { leadership.resign().await.map(drop) })
}

async fn resign_shared(stage: &mut Stage) -> Subject {
    let lease = stage.client.lease().build().unwrap();
    let leadership = election(stage).lease(&lease).campaign().await.unwrap();
    stage.keep(lease);
    Box::pin(async move { leadership.resign().await.map(drop) })
}

/// The run of a work that hands out its term and waits, and what the term is handed to.
async fn term(stage: &mut Stage) -> (lictor::coordination::Term, Subject) {
    let (give, given) = oneshot::channel();
    let mut give = Some(give);
    let election = election(stage);
    let (stop, stopped) = oneshot::channel::<()>();
    stage.others.spawn(async move {
        sleep(WHILE).await;
        drop(stop);
    });
    let stop = async move { drop(stopped.await) };
    let run = election.run(stop, async move |term| {
        if let Some(give) = give.take() {
            give.send(term.clone()).ok();
        }
        term.stopping().await;
        Next::Stop
    });
    let mut run: Subject = Box::pin(async move { run.await.map(drop) });
    let term = tokio::select! {
        _ = &mut run => panic!("it leads until it is told to stop"),
        term = given => term.unwrap(),
    };
    (term, run)
}

async fn term_publish(stage: &mut Stage) -> Subject {
    let (term, run) = term(stage).await;
    Box::pin(async move {
        let published = term.publish("working").await;
        drop(run);
        published
    })
}

async fn term_stopping(stage: &mut Stage) -> Subject {
    let (term, run) = term(stage).await;
    Box::pin(async move {
        let both = async { tokio::join!(term.stopping(), run).1 };
        both.await
    })
}

async fn observe(stage: &mut Stage) -> Subject {
    others_lead(stage).await;
    let mut observer = election(stage).observe::<()>().unwrap();
    Box::pin(async move {
        while let Some(view) = observer.next().await {
            if matches!(view, LeaderView::Nobody) {
                break;
            }
        }
        Ok(())
    })
}

async fn observe_as_stream(stage: &mut Stage) -> Subject {
    others_lead(stage).await;
    let mut observer = election(stage).observe::<()>().unwrap();
    Box::pin(async move {
        while let Some(view) = StreamExt::next(&mut observer).await {
            if matches!(view, LeaderView::Nobody) {
                break;
            }
        }
        Ok(())
    })
}

async fn roles(stage: &mut Stage) -> Subject {
    let election = election(stage);
    let mut roles = election.roles();
    stage.others.spawn(async move {
        let leadership = election.campaign().await.unwrap();
        leadership.resign().await.unwrap();
    });
    Box::pin(async move {
        while roles.next().await.is_some() {}
        Ok(())
    })
}
