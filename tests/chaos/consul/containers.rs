//! Instances in real containers, which say in variables what they are called and how they are checked.
//! `docker stop` leaves no ghost and loses no request; `docker kill` is out of `passing` within the TTL.

use std::time::Duration;

use support::consul::Agent;
use support::engine::Engine;
use support::{eventually, free_ports, left_out};
use tokio::time::{Instant, sleep};

use crate::load::{Kind, Load};
use crate::stage::{SOON, Stage, client, tell};

const BACKEND: &str = env!("CARGO_BIN_EXE_backend");

const TTL: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_is_stopped_loses_no_request_and_one_that_is_killed_is_out_within_its_ttl()
{
    let engine = match Engine::start().await {
        Ok(engine) => engine,
        Err(why) => return left_out("container", &why),
    };
    let agent = Agent::shared().await;
    let stage = Stage::beside_others(agent, 1).await;
    let channel = stage.channel(|builder| builder).await;
    let consul = client(agent);
    let (url, service) = (agent.http_url(), stage.service());
    let (stopped, killed) = (format!("{service}-stopped"), format!("{service}-killed"));
    for id in [&stopped, &killed] {
        let [port, control] = free_ports().map(|port| port.to_string());
        // What the arguments say of the service is not what counts.
        let program = [BACKEND, &*url, "unnamed", "unnamed", &*port, &*control];
        let variables = [
            ("SERVICE_NAME", service),
            ("SERVICE_ID", &**id),
            ("SERVICE_TAGS", "in-a-container"),
            ("SERVICE_CHECK_TTL", "2s"),
            ("SERVICE_CHECK_DEREGISTER_AFTER", "1m"),
        ];
        let started = engine.run(id, &variables, &program, &[BACKEND]).await;
        started.unwrap_or_else(|error| panic!("{error}"));
    }
    let passing = async |id: &str| {
        let entries = consul.health().service(service).passing().await;
        let entries = entries.expect("an agent that answers");
        entries
            .iter()
            .any(|entry| entry.service().id().as_str() == id)
    };
    eventually(SOON, async || {
        passing(&stopped).await && passing(&killed).await
    })
    .await;
    eventually(SOON, async || channel.endpoints().len() == 3).await;

    let load = Load::start(&channel, 150, &[Kind::Get, Kind::Post]);
    sleep(Duration::from_secs(1)).await;
    let begin = Instant::now();
    let said = engine.docker(&["stop", &stopped]).await;
    said.unwrap_or_else(|error| panic!("{error}"));
    let stopping = begin.elapsed();
    let services = consul.agent().services().await;
    let services = services.expect("an agent that answers");
    assert!(!services.contains_key(&*stopped), "a ghost is left");
    assert!(services.contains_key(&*killed));
    let logs = engine.docker(&["logs", &stopped]).await.expect("a log");
    assert!(logs.contains("shut down: signal SIGTERM"), "{logs}");
    sleep(Duration::from_millis(500)).await;
    let samples = load.stop().await;
    samples.assert_none_failed();

    let begin = Instant::now();
    let said = engine.docker(&["kill", &killed]).await;
    said.unwrap_or_else(|error| panic!("{error}"));
    eventually(SOON, async || !passing(&killed).await).await;
    let out = begin.elapsed();
    // The last heartbeat was before the end; the rest is for the agent, and for a busy machine.
    assert!(out < TTL + Duration::from_secs(2), "{out:?}");
    tell(format_args!(
        "stopped within {stopping:?}, {} requests, 0 failed; killed, and out of passing after {out:?}",
        samples.len(),
    ));
}
