use std::time::Duration;

use lictor::coordination::{Permit, Profile};
use lictor::embedded::Fault;
use tokio::time::sleep;

use crate::stage::{PLACES, Stage, Subject, cases};

cases![
    "Semaphore::acquire" => acquire,
    "Semaphore::acquire: others give a place back" => acquire_full,
    "Semaphore::acquire: others die with theirs" => acquire_after_a_death,
    "Semaphore::acquire: a deadline" => acquire_in_time,
    "Semaphore::acquire: by a shared lease" => acquire_shared,
    "Semaphore::acquire: the answer is lost" => acquire_unanswered,
    "Semaphore::acquire: by a shared lease, the answer is lost" => acquire_shared_unanswered,
    "Semaphore::acquire: by a shared lease, the try comes late" => acquire_shared_late,
    "Semaphore::try_acquire" => try_acquire,
    "Semaphore::try_acquire: full" => try_acquire_full,
    "Semaphore::set_limit" => set_limit,
    "Semaphore::set_limit: while it is in use" => set_limit_in_use,
    "Semaphore::explain" => explain,
    "Permit::release" => release,
    "Permit::release: by a shared lease" => release_shared,
];

/// How long others have their place.
const WHILE: Duration = Duration::from_millis(60);

/// Somebody else has the only place, and gives it back after a while.
async fn others_have_it(stage: &mut Stage) {
    let permit = stage.other.semaphore(PLACES, 1).acquire().await.unwrap();
    stage.others.spawn(async move {
        sleep(WHILE).await;
        permit.release().await.unwrap();
    });
}

async fn acquire(stage: &mut Stage) -> Subject {
    let semaphore = stage.client.semaphore(PLACES, 1);
    Box::pin(async move { semaphore.acquire().await.map(drop) })
}

async fn acquire_full(stage: &mut Stage) -> Subject {
    others_have_it(stage).await;
    acquire(stage).await
}

async fn acquire_after_a_death(stage: &mut Stage) -> Subject {
    let profile = Profile::balanced().lock_delay(Duration::from_secs(1));
    let profile = profile.belief(Duration::from_millis(800));
    let semaphore = stage.other.semaphore(PLACES, 1).profile(profile);
    let permit = semaphore.acquire().await.unwrap();
    let (agent, other) = (stage.agent.clone(), stage.other.clone());
    stage.others.spawn(async move {
        sleep(WHILE).await;
        assert!(agent.expire_session(permit.session().as_str()));
        permit.lost().await;
        drop(permit);
        // If nobody else strikes the dead one off, this one does.
        let next = other.semaphore(PLACES, 1).acquire().await.unwrap();
        next.release().await.unwrap();
    });
    acquire(stage).await
}

async fn acquire_in_time(stage: &mut Stage) -> Subject {
    others_have_it(stage).await;
    let semaphore = stage.client.semaphore(PLACES, 1).deadline(2 * WHILE);
    Box::pin(async move { semaphore.acquire().await.map(drop) })
}

async fn acquire_shared(stage: &mut Stage) -> Subject {
    let lease = stage.client.lease().build().unwrap();
    lease.session().await.unwrap();
    let semaphore = stage.client.semaphore(PLACES, 1).lease(&lease);
    stage.keep(lease);
    Box::pin(async move { semaphore.acquire().await.map(drop) })
}

async fn acquire_unanswered(stage: &mut Stage) -> Subject {
    stage
        .agent
        .inject(Fault::lose_answer().under("/v1/txn").times(1));
    acquire(stage).await
}

async fn acquire_shared_late(stage: &mut Stage) -> Subject {
    let subject = acquire_shared(stage).await;
    // While the seeker, who sees the key free, is about to try again.
    stage.path.delay_next("/v1/txn", Duration::from_millis(15));
    // One that comes while the session is being ended is as if its holder had died.
    stage.others.spawn(sleep(WHILE));
    subject
}

async fn acquire_shared_unanswered(stage: &mut Stage) -> Subject {
    let subject = acquire_shared(stage).await;
    stage
        .agent
        .inject(Fault::lose_answer().under("/v1/txn").times(1));
    subject
}

async fn try_acquire(stage: &mut Stage) -> Subject {
    let semaphore = stage.client.semaphore(PLACES, 1);
    Box::pin(async move { semaphore.try_acquire().await.map(drop) })
}

async fn try_acquire_full(stage: &mut Stage) -> Subject {
    others_have_it(stage).await;
    try_acquire(stage).await
}

async fn set_limit(stage: &mut Stage) -> Subject {
    let semaphore = stage.client.semaphore(PLACES, 1);
    Box::pin(async move { semaphore.set_limit(2).await })
}

async fn set_limit_in_use(stage: &mut Stage) -> Subject {
    others_have_it(stage).await;
    set_limit(stage).await
}

async fn explain(stage: &mut Stage) -> Subject {
    others_have_it(stage).await;
    let semaphore = stage.client.semaphore(PLACES, 1);
    Box::pin(async move { semaphore.explain().await.map(drop) })
}

async fn permit(stage: &Stage) -> Permit {
    stage.client.semaphore(PLACES, 1).acquire().await.unwrap()
}

async fn release(stage: &mut Stage) -> Subject {
    let permit = permit(stage).await;
    Box::pin(async move { permit.release().await.map(drop) })
}

async fn release_shared(stage: &mut Stage) -> Subject {
    let lease = stage.client.lease().build().unwrap();
    let semaphore = stage.client.semaphore(PLACES, 1).lease(&lease);
    let permit = semaphore.acquire().await.unwrap();
    stage.keep(lease);
    Box::pin(async move { permit.release().await.map(drop) })
}
