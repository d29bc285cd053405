use std::time::Duration;

use lictor::coordination::{LeaseState, Profile};
use lictor::embedded::Fault;
use tokio::time::sleep;

use crate::stage::{KEY, Stage, Subject, cases};

cases![
    "Lease::session" => session,
    "Lease::session: with a check" => session_with_a_check,
    "Lease::session: two want it" => session_of_two,
    "Lease::session: the answer is lost" => session_unanswered,
    "Lease::session: with a check, the answer is lost" => session_with_a_check_unanswered,
    "Lease::close" => close,
    "Lease::close: with a check" => close_with_a_check,
    "Lease::close: while it holds" => close_held,
    "States::next: of a lease" => states,
];

async fn session(stage: &mut Stage) -> Subject {
    let lease = stage.client.lease().build().unwrap();
    Box::pin(async move { lease.session().await.map(drop) })
}

async fn session_with_a_check(stage: &mut Stage) -> Subject {
    let lease = stage
        .client
        .lease()
        .profile(Profile::fast())
        .build()
        .unwrap();
    Box::pin(async move { lease.session().await.map(drop) })
}

async fn session_of_two(stage: &mut Stage) -> Subject {
    let lease = stage.client.lease().build().unwrap();
    let shared = lease.clone();
    stage.others.spawn(async move {
        // Neither future takes the session away from the other.
        sleep(Duration::from_millis(2)).await;
        shared.session().await.unwrap();
    });
    Box::pin(async move { lease.session().await.map(drop) })
}

async fn session_unanswered(stage: &mut Stage) -> Subject {
    let create = Fault::lose_answer().under("/v1/session/create");
    stage.agent.inject(create.times(1));
    session(stage).await
}

async fn session_with_a_check_unanswered(stage: &mut Stage) -> Subject {
    let create = Fault::lose_answer().under("/v1/session/create");
    stage.agent.inject(create.times(1));
    session_with_a_check(stage).await
}

async fn close(stage: &mut Stage) -> Subject {
    let lease = stage.client.lease().build().unwrap();
    lease.session().await.unwrap();
    Box::pin(async move { lease.close().await })
}

async fn close_with_a_check(stage: &mut Stage) -> Subject {
    let lease = stage
        .client
        .lease()
        .profile(Profile::fast())
        .build()
        .unwrap();
    lease.session().await.unwrap();
    Box::pin(async move { lease.close().await })
}

async fn close_held(stage: &mut Stage) -> Subject {
    let lease = stage.client.lease().build().unwrap();
    let guard = stage
        .client
        .lock(KEY)
        .lease(&lease)
        .acquire()
        .await
        .unwrap();
    Box::pin(async move {
        let closed = lease.close().await;
        drop(guard);
        closed
    })
}

async fn states(stage: &mut Stage) -> Subject {
    let lease = stage.client.lease().build().unwrap();
    let mut states = lease.states();
    stage.others.spawn(async move {
        sleep(Duration::from_millis(10)).await;
        // It may be gone with its runtime.
        lease.session().await.unwrap();
        sleep(Duration::from_millis(10)).await;
        lease.close().await.unwrap();
    });
    Box::pin(async move {
        while let Some(state) = states.next().await {
            if matches!(state, LeaseState::Lost(_)) {
                break;
            }
        }
        Ok(())
    })
}
