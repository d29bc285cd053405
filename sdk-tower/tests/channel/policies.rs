use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use lictor_tower::channel::{Channel, HashKey, Policy};
use lictor_tower::endpoint::{Endpoint, Target};
use lictor_tower::error::ErrorKind;
use lictor_tower::source;

use crate::support::{Server, Told, channel_with, get, in_flight, registry, text, who};

async fn servers(count: usize) -> Vec<Server> {
    let mut servers = Vec::new();
    for _ in 0..count {
        servers.push(Server::start().await);
    }
    servers
}

/// A channel over these servers, each with what is done to its endpoint.
fn over(
    servers: &[Server],
    with: impl Fn(usize, Endpoint) -> Endpoint,
) -> lictor_tower::channel::Builder<Told> {
    let (registry, told) = registry();
    let endpoints = servers
        .iter()
        .enumerate()
        .map(|(at, server)| with(at, Endpoint::new(server.target.clone())));
    registry.tell_set(endpoints.collect());
    Channel::from_source(told)
}

async fn calls(channel: &Channel, count: u32) -> BTreeMap<u16, u32> {
    let mut calls = BTreeMap::new();
    for _ in 0..count {
        *calls.entry(who(channel).await).or_default() += 1;
    }
    calls
}

async fn answered_by(channel: &Channel, request: Request<Empty<Bytes>>) -> Target {
    let response = channel.request(request).await.unwrap();
    let target = response.body().target().clone();
    // A body that is held is a request in flight, and the load is bounded.
    text(response).await;
    target
}

async fn owner(channel: &Channel, key: &str) -> Target {
    let mut request = get("/");
    request.extensions_mut().insert(HashKey::new(key));
    answered_by(channel, request).await
}

#[tokio::test]
async fn round_robin_takes_turns_across_all_clones() {
    let servers = servers(3).await;
    let channel = over(&servers, |at, endpoint| endpoint.with_weight([1, 2, 3][at]));
    let channel = channel.policy(Policy::RoundRobin).build().unwrap();
    channel.wait_ready().await.unwrap();
    let calls = calls(&channel, 600).await;
    for (server, wanted) in servers.iter().zip([100, 200, 300]) {
        assert_eq!(calls[&server.port()], wanted, "{calls:?}");
    }
}

#[tokio::test]
async fn equal_keys_meet_the_same_instance_whichever_channel_they_go_through() {
    let servers = servers(5).await;
    let build = || {
        let channel = over(&servers, |_, endpoint| endpoint);
        channel.policy(Policy::RingHash).build().unwrap()
    };
    let (one, other) = (build(), build());
    let mut owners = BTreeSet::new();
    for key in 0..100 {
        let key = format!("user-{key}");
        let target = owner(&one, &key).await;
        assert_eq!(owner(&other, &key).await, target);
        owners.insert(target);
    }
    assert_eq!(owners.len(), 5);
    assert_eq!(in_flight(&one) + in_flight(&other), 0);
}

#[tokio::test]
async fn a_rule_makes_the_key_where_the_request_carries_none() {
    let servers = servers(5).await;
    let channel = over(&servers, |_, endpoint| endpoint)
        .policy(Policy::RingHash)
        .hash_by(|request| Some(HashKey::new(request.headers.get("x-user")?)))
        .build()
        .unwrap();
    for key in 0..20 {
        let mut request = get("/");
        let user = key.to_string();
        request
            .headers_mut()
            .insert("x-user", user.parse().unwrap());
        let mut own = request.clone();
        let told = answered_by(&channel, request).await;
        assert_eq!(told, owner(&channel, &user).await);
        // What the request carries goes before the rule.
        own.extensions_mut().insert(HashKey::new("one"));
        let told = answered_by(&channel, own).await;
        assert_eq!(told, owner(&channel, "one").await);
    }
}

#[tokio::test]
async fn a_key_goes_on_to_one_other_instance_when_its_own_is_gone() {
    let mut servers = servers(4).await;
    let channel = over(&servers, |_, endpoint| endpoint);
    let channel = channel.policy(Policy::RingHash).build().unwrap();
    let gone = owner(&channel, "cart").await;
    servers.retain(|server| server.target != gone);
    let next = owner(&channel, "cart").await;
    assert_ne!(next, gone);
    for _ in 0..20 {
        assert_eq!(owner(&channel, "cart").await, next);
    }
}

#[tokio::test]
async fn a_rule_for_keys_without_a_policy_that_asks_for_them_is_refused() {
    let channel = Channel::from_source(source::fixed([])).hash_by(|_| None);
    let error = channel.build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("RingHash"), "{error}");
    let error = Channel::from_source(source::fixed([]))
        .subset(0)
        .build()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

/// While the near ones are well all is near; when all of them die at once, nothing fails.
#[tokio::test]
async fn g13_the_loss_of_all_that_are_near_fails_no_request() {
    let mut servers = servers(6).await;
    let far: BTreeSet<u16> = servers[4..].iter().map(Server::port).collect();
    let channel = over(&servers, |at, endpoint| {
        endpoint.with_distance(u16::from(at >= 4))
    });
    let channel = channel.max_attempts(2).build().unwrap();
    let before = calls(&channel, 100).await;
    assert!(before.keys().all(|port| !far.contains(port)), "{before:?}");
    drop(servers.drain(..4));
    // Two attempts are enough for each request: the second one goes far at once.
    let after = calls(&channel, 200).await;
    assert!(after.keys().all(|port| far.contains(port)), "{after:?}");
    let told = channel.endpoints();
    assert_eq!(told.iter().filter(|e| e.distance == 1).count(), 2);
}

#[tokio::test]
async fn a_channel_uses_its_subset_only_and_fills_it_up() {
    let servers = servers(8).await;
    let (registry, told) = registry();
    let targets: Vec<_> = servers.iter().map(|server| &server.target).collect();
    registry.tell(&targets);
    let channel = Channel::from_source(told)
        .policy(Policy::RoundRobin)
        .subset(3)
        .subset_seed(7)
        .build()
        .unwrap();
    channel.wait_ready().await.unwrap();
    let calls = calls(&channel, 30).await;
    assert_eq!(calls.values().copied().collect::<Vec<_>>(), [10, 10, 10]);
    // One of the three leaves: another one takes its place, the other two stay.
    let gone = *calls.keys().next().unwrap();
    let rest: Vec<_> = targets.into_iter().filter(|t| t.port() != gone).collect();
    registry.tell(&rest);
    let used = || -> BTreeSet<u16> {
        let endpoints = channel.endpoints();
        endpoints.iter().map(|e| e.target.port()).collect()
    };
    crate::support::eventually("the set has changed", || !used().contains(&gone)).await;
    assert_eq!(used().len(), 3);
    assert_eq!(used().iter().filter(|p| calls.contains_key(p)).count(), 2);
}

#[tokio::test]
async fn a_slow_start_is_no_hindrance_for_the_first_set() {
    let servers = [Server::start().await, Server::start().await];
    let (_registry, channel) = channel_with(&[&servers[0], &servers[1]], |builder| {
        let builder = builder.policy(Policy::RoundRobin);
        builder.slow_start(Duration::from_secs(3_600))
    });
    channel.wait_ready().await.unwrap();
    let calls = calls(&channel, 20).await;
    assert_eq!(calls.values().copied().collect::<Vec<_>>(), [10, 10]);
}
