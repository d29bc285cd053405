//! Promises of the public API that the compiler keeps, and those about what is printed.

use std::fmt::Debug;

use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use lictor::api::{Answer, Read, Write, agent, catalog, health, kv, session, txn};
use lictor::client::{Builder, Client};
use lictor::coordination::{Election, LeaderView, Leadership, Next, Observer, Role, Term};
use lictor::embedded::Agent;
use lictor::ident::{CheckId, Datacenter, Key, NodeName, ServiceId, ServiceName, SessionId, Token};
use lictor::registration::Registration;
use lictor::transport::Tls;
use lictor::watch::{Changes, Difference, Snapshot, Status, Watch};
use lictor_tower::Channel;
use lictor_tower::channel::{HashKey, Policy};
use lictor_tower::connector::{Connecting, Connection, Connector};
use lictor_tower::endpoint::{Endpoint, EndpointSet, Target};
use lictor_tower::layer::Balanced;
use lictor_tower::names::Services;
use lictor_tower::reqwest_013;
use lictor_tower::retry::{Budget, Hedge, MayRepeat, Outcome, RetryPolicy, Verdict};
use lictor_tower::router::Router;
use lictor_tower::source::{Fallback, HealthSource, Merged, Place, Ranked, SrvSource};
use lictor_tower::tcp::{self, Dialer};

fn shared<T: Send + Sync + 'static>() {}
fn movable<T: Send + Unpin + 'static>() {}
fn cheap<T: Clone + Send + Sync + Debug + 'static>() {}
fn sent<T: Send>(_: T) {}

#[test]
fn handles_are_shared_between_threads_and_cloned() {
    cheap::<Client>();
    cheap::<Builder>();
    cheap::<lictor::Error>();
    cheap::<Watch<health::ServiceEntry>>();
    cheap::<Snapshot<kv::Pair>>();
    cheap::<Difference<catalog::Node>>();
    cheap::<Status>();
    cheap::<Answer<Vec<kv::Pair>>>();
    cheap::<ServiceDefinition>();
    cheap::<CheckDefinition>();
    cheap::<session::NewSession>();
    cheap::<session::Session>();
    cheap::<txn::Txn>();
    cheap::<(txn::KvOp, txn::NodeOp, txn::ServiceOp, txn::CheckOp)>();
    cheap::<txn::Outcome>();
    cheap::<(Tls, lictor_tower::channel::Tls)>();
    cheap::<Token>();
    cheap::<Endpoint>();
    cheap::<EndpointSet>();
    cheap::<Target>();
    cheap::<(Place, HashKey, Policy)>();
    cheap::<(Budget, Hedge, MayRepeat, RetryPolicy, Verdict)>();
    cheap::<Outcome<'static>>();
    cheap::<Agent>();
    cheap::<(Election, Term, Role, LeaderView<String>)>();
    shared::<Leadership>();
    shared::<Observer<String>>();
    movable::<Observer<String>>();
    shared::<Registration>();
    shared::<lictor_tower::Error>();
    shared::<Changes<kv::Pair>>();
    movable::<Channel>();
    cheap::<(Services, Dialer, Connector, Router)>();
    cheap::<(reqwest_013::Client, reqwest_013::Resolver)>();
    // Each endpoint's service need not be `Sync`.
    cheap::<Balanced<std::cell::Cell<u8>>>();
    shared::<(tcp::Connection, tcp::InUse, Connection)>();
    movable::<(tcp::Connection, Connection, Connecting)>();
    movable::<HealthSource>();
    movable::<SrvSource>();
    movable::<Ranked<SrvSource>>();
    movable::<Merged<SrvSource>>();
    movable::<Fallback>();
}

#[test]
fn identifiers_compare_with_text() {
    cheap::<(ServiceName, ServiceId, CheckId, NodeName)>();
    cheap::<(Datacenter, SessionId, Key)>();
    assert_eq!(ServiceName::new("web").unwrap(), "web");
    assert_eq!("a/b".parse::<Key>().unwrap().as_str(), "a/b");
}

#[test]
fn all_futures_can_be_spawned() {
    let client = Client::builder().build().unwrap();
    sent(client.kv().get("a").send());
    let election = client.election("a");
    sent(election.campaign());
    sent(election.run(std::future::pending(), async |term| {
        term.publish("one").await.ok();
        Next::Rejoin
    }));
    let name = String::from("two");
    let mut terms = 0;
    sent(
        election.run(std::future::pending(), async move |term: Term| {
            terms += 1;
            term.publish(&name).await.ok();
            Next::Stop
        }),
    );
    sent(client.kv().get("a").into_future());
    sent(client.kv().put("a", "b").send());
    sent(client.health().service("web").send());
    sent(client.agent().deregister("web").send());
    sent(client.session().list().send());
    sent(client.txn().kv(txn::KvOp::get("a")).send());
    sent(client.txn().into_future());
    sent(client.register(ServiceDefinition::new("web")).send());
    fn of_watch(watch: &mut Watch<kv::Pair>) {
        sent(watch.changed());
        sent(watch.status_changed());
        sent(watch.ready());
        sent(watch.live());
    }
    fn of_registration(registration: Registration) {
        sent(registration.close());
    }
    fn of_dialer(dialer: &Dialer, connection: tcp::Connection, usage: tcp::InUse) {
        sent(dialer.connect());
        sent(dialer.wait_ready());
        sent(connection.next());
        sent(usage.next());
    }
    fn of_reqwest(client: &reqwest_013::Client, channel: &Channel, request: reqwest::Request) {
        sent(client.execute(reqwest::Request::new(
            http::Method::GET,
            request.url().clone(),
        )));
        sent(reqwest_013::execute(channel, request));
    }
    let _ = (of_watch, of_registration, of_dialer, of_reqwest);
    shared::<Read<agent::GetServices>>();
    shared::<Write<kv::Put>>();
}

#[test]
fn nothing_prints_an_empty_debug_or_a_secret() {
    let client = Client::builder()
        .address("http://127.0.0.1:1")
        .token("s3cret")
        .basic_auth("user", "p4ssword")
        .build()
        .unwrap();
    let token = Token::new("s3cret").unwrap();
    let printed = [
        format!("{client:?}"),
        format!("{:?}", Client::builder().token("s3cret")),
        format!("{:?}", client.kv().get("a").token(token.clone())),
        format!("{:?}", client.kv().put("a", "b").token(token.clone())),
        format!("{:?}", client.txn().token(token.clone())),
        format!("{:?}", client.session()),
        format!("{:?}", client.with_token(token.clone())),
        format!("{token:?}"),
        format!("{:?}", ServiceDefinition::new("web").meta("a", "b")),
        format!(
            "{:?}",
            CheckDefinition::alive_only(std::time::Duration::from_secs(9))
        ),
        format!("{:?}", Tls::new().client_certificate_pem("CERT", "K3Y")),
        format!("{:?}", client.agent()),
    ];
    for text in printed {
        assert!(text.len() > 4, "{text:?}");
        for secret in ["s3cret", "p4ssword", "K3Y"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[tokio::test]
async fn an_error_never_repeats_what_its_source_says() {
    let client = Client::builder().address("127.0.0.1:1").build().unwrap();
    let err = client.kv().get("a").await.unwrap_err();
    let mut level: &dyn std::error::Error = &err;
    while let Some(source) = level.source() {
        let (above, below) = (level.to_string(), source.to_string());
        assert!(!above.contains(&below), "{above:?} repeats {below:?}");
        level = source;
    }
}
