//! Leader and peers.

use crate::TestAgent;

on_both_agents![the_leader_is_one_of_the_peers];

async fn the_leader_is_one_of_the_peers(agent: &TestAgent) {
    let status = agent.client().status();
    let leader = status.leader().await.unwrap().into_value().unwrap();
    assert!(leader.parse::<std::net::SocketAddr>().is_ok(), "{leader}");
    let peers = status.peers().await.unwrap();
    assert_eq!(*peers, [leader]);
}
