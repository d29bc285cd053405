use std::time::Duration;

use lictor::ErrorKind;
use lictor::coordination::{Attempt, LockGuard, Profile};
use lictor::embedded::Fault;
use tokio::time::sleep;

use crate::stage::{KEY, Stage, Subject, cases};

cases![
    "Lock::acquire" => acquire,
    "Lock::acquire: several keys" => acquire_several,
    "Lock::acquire: by a session with a check" => acquire_fast,
    "Lock::acquire: others release it" => acquire_released,
    "Lock::acquire: others die with it" => acquire_after_a_death,
    "Lock::acquire: a deadline that is met" => acquire_in_time,
    "Lock::acquire: a deadline that is missed" => acquire_too_late,
    "Lock::acquire: by a shared lease" => acquire_shared,
    "Lock::acquire: after another task of its lease" => acquire_in_turn,
    "Lock::acquire: the answer is lost" => acquire_unanswered,
    "Lock::acquire: by a shared lease, the answer is lost" => acquire_shared_unanswered,
    "Lock::acquire: by a shared lease, the try comes late" => acquire_shared_late,
    "Lock::acquire: by a shared lease, all requests are lost" => acquire_shared_unheard,
    "Lock::acquire: in line" => acquire_in_line,
    "Lock::acquire: in line, by a shared lease" => acquire_in_line_shared,
    "Lock::acquire: in line, the answer to the ticket is lost" => acquire_in_line_unanswered,
    "Lock::acquire: in line, the ticket comes late" => acquire_in_line_late,
    "Lock::acquire: far behind in line" => acquire_far_in_line,
    "Lock::try_acquire" => try_acquire,
    "Lock::try_acquire: others hold it" => try_acquire_held,
    "Lock::try_acquire: a lock-delay runs" => try_acquire_delayed,
    "Lock::explain" => explain,
    "Lock::explain: others hold it" => explain_held,
    "LockGuard::release" => release,
    "LockGuard::release: by a shared lease" => release_shared,
    "LockGuard::set_value" => set_value,
    "Held::lost" => lost,
];

/// How long others hold.
const WHILE: Duration = Duration::from_millis(60);

async fn guard(stage: &Stage) -> LockGuard {
    stage.client.lock(KEY).acquire().await.unwrap()
}

/// Somebody else holds, and releases after a while.
async fn others_hold(stage: &mut Stage) {
    let guard = stage.other.lock(KEY).acquire().await.unwrap();
    stage.others.spawn(async move {
        sleep(WHILE).await;
        guard.release().await.unwrap();
    });
}

async fn acquire(stage: &mut Stage) -> Subject {
    let lock = stage.client.lock(KEY);
    Box::pin(async move { lock.acquire().await.map(drop) })
}

async fn acquire_several(stage: &mut Stage) -> Subject {
    let lock = stage.client.lock(KEY).and("job/2").and("job/3").value("us");
    Box::pin(async move { lock.acquire().await.map(drop) })
}

async fn acquire_fast(stage: &mut Stage) -> Subject {
    let lock = stage.client.lock(KEY).profile(Profile::fast());
    Box::pin(async move { lock.acquire().await.map(drop) })
}

async fn acquire_released(stage: &mut Stage) -> Subject {
    others_hold(stage).await;
    acquire(stage).await
}

/// Somebody else's session ends while it holds, which makes a short lock-delay run.
async fn others_die(stage: &mut Stage) -> LockGuard {
    let profile = Profile::balanced().lock_delay(Duration::from_secs(1));
    let profile = profile.belief(Duration::from_millis(800));
    let lock = stage.other.lock(KEY).profile(profile);
    lock.acquire().await.unwrap()
}

async fn acquire_after_a_death(stage: &mut Stage) -> Subject {
    let guard = others_die(stage).await;
    let agent = stage.agent.clone();
    stage.others.spawn(async move {
        sleep(WHILE).await;
        assert!(agent.expire_session(guard.session().as_str()));
    });
    acquire(stage).await
}

async fn acquire_in_time(stage: &mut Stage) -> Subject {
    others_hold(stage).await;
    let lock = stage.client.lock(KEY).deadline(2 * WHILE);
    Box::pin(async move { lock.acquire().await.map(drop) })
}

async fn acquire_too_late(stage: &mut Stage) -> Subject {
    others_hold(stage).await;
    let lock = stage.client.lock(KEY).deadline(WHILE / 2);
    Box::pin(async move {
        match lock.acquire().await {
            Err(err) if err.kind() == ErrorKind::Timeout => Ok(()),
            other => other.map(drop),
        }
    })
}

async fn acquire_shared(stage: &mut Stage) -> Subject {
    let lease = stage.client.lease().build().unwrap();
    lease.session().await.unwrap();
    let lock = stage.client.lock(KEY).lease(&lease);
    stage.keep(lease);
    Box::pin(async move { lock.acquire().await.map(drop) })
}

async fn acquire_in_line(stage: &mut Stage) -> Subject {
    others_hold(stage).await;
    let lock = stage.client.lock(KEY).fair();
    Box::pin(async move { lock.acquire().await.map(drop) })
}

async fn acquire_in_line_shared(stage: &mut Stage) -> Subject {
    others_hold(stage).await;
    let lease = stage.client.lease().build().unwrap();
    lease.session().await.unwrap();
    let lock = stage.client.lock(KEY).lease(&lease).fair();
    stage.keep(lease);
    Box::pin(async move { lock.acquire().await.map(drop) })
}

async fn acquire_in_line_unanswered(stage: &mut Stage) -> Subject {
    let subject = acquire_in_line_shared(stage).await;
    let lost = Fault::lose_answer().under("/v1/txn").times(1);
    stage.agent.inject(lost);
    subject
}

async fn acquire_in_line_late(stage: &mut Stage) -> Subject {
    let subject = acquire_in_line_shared(stage).await;
    stage.path.delay_next("/v1/txn", Duration::from_millis(15));
    // The lease lives for as long as the ticket may come.
    stage.others.spawn(sleep(Duration::from_secs(1)));
    subject
}

/// Behind four others, of whom three follow the lock.
async fn acquire_far_in_line(stage: &mut Stage) -> Subject {
    let lock = stage.other.lock(KEY).fair();
    let guard = lock.acquire().await.unwrap();
    for place in 1..=4 {
        let one = lock.clone();
        stage.others.spawn(async move {
            let guard = one.acquire().await.unwrap();
            guard.release().await.unwrap();
        });
        while lock.explain().await.unwrap().line().len() < place {
            sleep(Duration::from_millis(1)).await;
        }
    }
    stage.others.spawn(async move {
        sleep(WHILE).await;
        guard.release().await.unwrap();
    });
    let lock = stage.client.lock(KEY).fair();
    Box::pin(async move { lock.acquire().await.map(drop) })
}

async fn acquire_in_turn(stage: &mut Stage) -> Subject {
    let lease = stage.client.lease().build().unwrap();
    let lock = stage.client.lock(KEY).lease(&lease);
    let guard = lock.acquire().await.unwrap();
    stage.others.spawn(async move {
        sleep(WHILE).await;
        guard.release().await.unwrap();
    });
    stage.keep(lease);
    Box::pin(async move { lock.acquire().await.map(drop) })
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

async fn acquire_shared_unheard(stage: &mut Stage) -> Subject {
    let subject = acquire_shared(stage).await;
    stage
        .agent
        .inject(Fault::disconnect().under("/v1/txn").times(1));
    subject
}

async fn try_acquire(stage: &mut Stage) -> Subject {
    let lock = stage.client.lock(KEY);
    Box::pin(async move { lock.try_acquire().await.map(drop) })
}

async fn try_acquire_held(stage: &mut Stage) -> Subject {
    others_hold(stage).await;
    try_acquire(stage).await
}

async fn try_acquire_delayed(stage: &mut Stage) -> Subject {
    let guard = others_die(stage).await;
    assert!(stage.agent.expire_session(guard.session().as_str()));
    guard.lost().await;
    let lock = stage.client.lock(KEY);
    Box::pin(async move {
        match lock.try_acquire().await? {
            Attempt::Delayed { .. } => Ok(()),
            other => panic!("{other:?}"),
        }
    })
}

async fn explain(stage: &mut Stage) -> Subject {
    let lock = stage.client.lock(KEY);
    Box::pin(async move { lock.explain().await.map(drop) })
}

async fn explain_held(stage: &mut Stage) -> Subject {
    others_hold(stage).await;
    explain(stage).await
}

async fn release(stage: &mut Stage) -> Subject {
    let guard = guard(stage).await;
    Box::pin(async move { guard.release().await.map(drop) })
}

async fn release_shared(stage: &mut Stage) -> Subject {
    let lease = stage.client.lease().build().unwrap();
    let lock = stage.client.lock(KEY).lease(&lease);
    let guard = lock.acquire().await.unwrap();
    stage.keep(lease);
    Box::pin(async move { guard.release().await.map(drop) })
}

async fn set_value(stage: &mut Stage) -> Subject {
    let guard = guard(stage).await;
    Box::pin(async move { guard.set_value("us").await })
}

async fn lost(stage: &mut Stage) -> Subject {
    let guard = guard(stage).await;
    let other = stage.other.clone();
    stage.others.spawn(async move {
        sleep(WHILE).await;
        // A session that was destroyed instead would make a lock-delay run.
        other.kv().delete(KEY).await.unwrap();
    });
    Box::pin(async move {
        guard.lost().await;
        Ok(())
    })
}
