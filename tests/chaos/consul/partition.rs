//! A partition takes nine of ten out of health, though they can be called.

use std::time::Duration;

use lictor_tower::channel::Lost;
use lictor_tower::error::ErrorKind;
use support::consul::Agent;
use support::eventually;
use tokio::time::sleep;

use crate::load::{Kind, Load};
use crate::stage::{SOON, Stage, instances, rate, tell};

const GRACE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nine_of_ten_that_drop_out_of_health_stay_in_use_where_that_is_asked_for() {
    let server = Agent::options().server().start().await;
    let cut_off = Agent::options().client_of(&server).start().await;
    let mut stage = Stage::of(&server, 1).await;
    let others = instances(&cut_off, stage.service(), 1, 9).await;
    stage.instances.extend(others);
    let believing = stage.channel(|builder| builder).await;
    let staying = stage
        .channel(|builder| builder.lost_endpoints(Lost::Stay(GRACE)))
        .await;
    let resorting = stage.channel(|builder| builder.critical_below(0.5)).await;
    let both = stage
        .channel(|builder| {
            builder
                .critical_below(0.5)
                .lost_endpoints(Lost::Stay(GRACE))
        })
        .await;
    // Consul's servers hear no more of a node and of all that is on it.
    cut_off.freeze();
    eventually(SOON, async || believing.endpoints().len() == 1).await;
    let preferred = |channel: &lictor_tower::Channel| {
        let all = channel.endpoints();
        all.iter().filter(|one| one.tier == 0).count()
    };
    eventually(SOON, async || preferred(&resorting) == 1).await;
    assert_eq!(staying.endpoints().len(), 10);
    assert_eq!(preferred(&staying), 10);
    assert_eq!(resorting.endpoints().len(), 10);
    assert_eq!(preferred(&both), 10);

    let channels = [&believing, &staying, &resorting, &both];
    let loads = channels.map(|channel| Load::start(channel, rate() / 4, &[Kind::Get]));
    sleep(Duration::from_secs(3)).await;
    let [believed, stayed, resorted, both] = loads;
    let left = stage.target(0);
    let (believed, stayed) = (believed.stop().await, stayed.stop().await);
    let (resorted, both) = (resorted.stop().await, both.stop().await);
    for samples in [&believed, &stayed, &resorted, &both] {
        samples.assert_none_failed();
    }
    // The one that is left bears all, or about a tenth.
    assert_eq!(believed.by(&left), believed.len());
    assert_eq!(resorted.by(&left), resorted.len());
    for spread in [&stayed, &both] {
        let by = |at| spread.by(&stage.target(at));
        assert!(by(0) * 4 < spread.len(), "{} of {}", by(0), spread.len());
        assert!((1..10).all(|at| by(at) > 0));
    }
    tell(format_args!(
        "the one that is left got {} of {}, with Lost::Stay {} of {}",
        believed.by(&left),
        believed.len(),
        stayed.by(&left),
        stayed.len()
    ));

    // And if it breaks down under it, the others are there.
    stage.instances[0].kill();
    let loads = channels.map(|channel| Load::start(channel, rate() / 4, &[Kind::Get]));
    sleep(Duration::from_secs(1)).await;
    let [believed, stayed, resorted, both] = loads;
    let believed = believed.stop().await;
    for load in [stayed, resorted, both] {
        load.stop().await.assert_none_failed();
    }
    assert_eq!(believed.failed().len(), believed.len());
    for sample in &believed.0 {
        let failure = sample.outcome.as_ref().expect_err("it is dead");
        assert_eq!(failure.kind, Some(ErrorKind::Connect), "{sample:?}");
    }

    cut_off.thaw();
    eventually(SOON, async || believing.endpoints().len() == 10).await;
    let load = Load::start(&believing, rate() / 4, &[Kind::Get]);
    sleep(Duration::from_secs(1)).await;
    load.stop().await.assert_none_failed();
}
