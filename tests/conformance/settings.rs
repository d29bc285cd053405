//! Values as types, updates against others, and settings that are followed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lictor::codec::{BoxError, Json, Plain};
use lictor::config::{Change, Config, Removal, State, Updated};
use lictor::{Client, ErrorKind};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::TestAgent;

on_both_agents![
    a_value_is_read_as_the_type_it_was_written_as,
    a_value_of_another_type_is_told_with_its_key,
    updates_of_many_writers_all_count,
    an_update_gives_up_when_others_write_each_time,
    an_update_creates_deletes_keeps_and_fails_as_its_closure_says,
    an_update_keeps_flags_and_holder,
    settings_follow_a_document,
    settings_follow_a_folder_over_a_document_over_defaults,
    a_bad_value_keeps_the_last_good_one_and_tells_why,
    removed_settings_keep_the_last_good_value_until_they_are_back,
    removed_settings_fall_back_to_the_defaults_if_wished,
    settings_that_are_bad_or_absent_at_first_are_told_by_open,
    settings_that_are_kept_begin_without_consul,
    settings_wait_until_a_burst_is_over,
];

const SOON: Duration = Duration::from_secs(20);

async fn a_value_is_read_as_the_type_it_was_written_as(agent: &TestAgent) {
    let (kv, key) = (agent.client().kv(), agent.name("typed"));
    let key = key.as_str();
    assert!(kv.get_as::<u32>(key).await.unwrap().is_none());
    let map = BTreeMap::from([("a".to_owned(), 1_u32)]);
    assert!(kv.put_as(key, &map).await.unwrap());
    let read = kv.get_as::<BTreeMap<String, u32>>(key).await.unwrap();
    let read = read.into_value().unwrap();
    assert_eq!(*read, map);
    assert_eq!(read.pair().value_str(), Some(r#"{"a":1}"#));
    // Typed writes and reads have the options of all others.
    assert!(!kv.put_as(key, &map).cas(0).await.unwrap());
    let index = read.pair().modify_index();
    assert!(kv.put_with(key, "bare", Plain).cas(index).await.unwrap());
    let bare = kv.get_with::<String, _>(key, Plain).consistent().await;
    assert_eq!(bare.unwrap().as_ref().unwrap().value(), "bare");
}

async fn a_value_of_another_type_is_told_with_its_key(agent: &TestAgent) {
    let (kv, key) = (agent.client().kv(), agent.name("typed"));
    kv.put(&*key, r#"{"a": "many"}"#).await.unwrap();
    let read = kv.get_as::<BTreeMap<String, u32>>(&*key).await;
    let err = read.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Value);
    assert!(err.to_string().contains(&format!("{key:?}")), "{err}");
    assert!(err.to_string().contains("expected u32"), "{err}");
    let called = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let update = kv.update(&*key, {
        let called = Arc::clone(&called);
        move |present: Option<u32>| {
            called.store(true, std::sync::atomic::Ordering::SeqCst);
            present
        }
    });
    let err = update.await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Value);
    assert!(!called.load(std::sync::atomic::Ordering::SeqCst));
    // JSON has no maps by lists.
    let odd = BTreeMap::from([(vec![1], 1)]);
    let err = kv.put_as(&*key, &odd).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid);
    assert!(err.to_string().contains(&format!("{key:?}")), "{err}");
}

async fn updates_of_many_writers_all_count(agent: &TestAgent) {
    const WRITERS: u64 = 8;
    const EACH: u64 = 5;
    let (kv, key) = (agent.client().kv(), agent.name("count"));
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let (kv, key) = (kv.clone(), key.clone());
        writers.spawn(async move {
            for _ in 0..EACH {
                let more = |count: Option<u64>| Some(count.unwrap_or(0) + 1);
                kv.update(&*key, more).await.unwrap();
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    let count = kv.get_as::<u64>(&*key).await.unwrap().into_value();
    assert_eq!(*count.unwrap(), WRITERS * EACH);
}

async fn an_update_gives_up_when_others_write_each_time(agent: &TestAgent) {
    let (kv, key) = (agent.client().kv(), agent.name("busy"));
    let others = (kv.clone(), key.clone());
    let update = kv.update_async(&*key, move |present: Option<u64>| {
        let (kv, key) = others.clone();
        async move {
            kv.put_as(&*key, &(present.unwrap_or(0) + 1)).await?;
            Ok::<_, BoxError>(Some(1000))
        }
    });
    let err = update.attempts(3).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict);
    let told = err.to_string();
    assert!(told.contains("3 attempts") && told.contains(&key), "{told}");
    let count = kv.get_as::<u64>(&*key).await.unwrap().into_value();
    assert_eq!(*count.unwrap(), 3);
    let never = kv.update(&*key, |_: Option<u64>| Some(1)).attempts(0).await;
    assert_eq!(never.unwrap_err().kind(), ErrorKind::Invalid);
}

async fn an_update_creates_deletes_keeps_and_fails_as_its_closure_says(agent: &TestAgent) {
    let (kv, key) = (agent.client().kv(), agent.name("life"));
    let there = async || kv.get(&*key).await.unwrap().is_some();
    let delete = || kv.update(&*key, |_: Option<u8>| None);
    assert_eq!(delete().await.unwrap(), Updated::Deleted);
    let first = kv.update(&*key, |present: Option<u8>| present.or(Some(1)));
    assert_eq!(first.await.unwrap(), Updated::Written(1));
    let kept = kv.update(&*key, |_: Option<u8>| Change::Keep).await;
    assert_eq!(kept.unwrap(), Updated::Kept);
    let failed = kv.update(&*key, |_: Option<u8>| Err::<Option<u8>, _>("no more"));
    let err = failed.await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid);
    let source = std::error::Error::source(&err).unwrap().to_string();
    assert_eq!(source, "no more");
    assert!(there().await);
    assert_eq!(delete().await.unwrap(), Updated::Deleted);
    assert!(!there().await);
    let bytes = kv.update(&*key, |_: Option<Vec<u8>>| Some(vec![0xff]));
    bytes.codec(Plain).await.unwrap();
    let raw = kv.raw(&*key).await.unwrap().into_value();
    assert_eq!(raw.unwrap().as_ref(), [0xff]);
}

async fn an_update_keeps_flags_and_holder(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("held"));
    let kv = client.kv();
    let session = lictor::api::session::NewSession::new().no_checks();
    let session = client.session().create(&session).await.unwrap();
    assert!(kv.acquire(&*key, &session, "1").flags(7).await.unwrap());
    let update = kv.update(&*key, |present: Option<u8>| present.map(|n| n + 1));
    assert_eq!(update.codec(Json).await.unwrap(), Updated::Written(2));
    let pair = kv.get(&*key).await.unwrap().into_value().unwrap();
    assert_eq!((pair.flags(), pair.session()), (7, Some(&session)));
    client.session().destroy(&session).await.unwrap();
}

/// Waits until the settings are in such a state.
async fn until(config: &Config<Value>, mut wanted: impl FnMut(&State<Value>) -> bool) {
    let mut states = config.states();
    let reached = async {
        while let Some(state) = states.next().await {
            if wanted(&state) {
                return;
            }
        }
        panic!("the settings ended");
    };
    if timeout(SOON, reached).await.is_err() {
        panic!("still {}: {}", config.state(), config.get());
    }
}

async fn put(client: &Client, key: &str, value: &str) {
    assert!(client.kv().put(key, value.to_owned()).await.unwrap());
}

async fn settings_follow_a_document(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("config"));
    put(&client, &key, r#"{"requests": 1}"#).await;
    let mut config = client.config::<Value>().key(&*key).open().await.unwrap();
    assert_eq!(*config.get(), json!({"requests": 1}));
    put(&client, &key, r#"{"requests": 2}"#).await;
    let value = timeout(SOON, config.changed()).await.unwrap().unwrap();
    assert_eq!(*value, json!({"requests": 2}));
    assert!(Arc::ptr_eq(&value, &config.get()));
    assert!(config.state().is_current());
    // The same in other words is the same value.
    put(&client, &key, r#"{ "requests":2 }"#).await;
    put(&client, &key, r#"{"requests": 3}"#).await;
    let value = timeout(SOON, config.changed()).await.unwrap().unwrap();
    assert_eq!(*value, json!({"requests": 3}));
}

async fn settings_follow_a_folder_over_a_document_over_defaults(agent: &TestAgent) {
    let (client, document, folder) = (agent.client(), agent.name("doc"), agent.name("folder"));
    put(&client, &document, r#"{"a": 2, "b": {"c": 2, "d": 2}}"#).await;
    put(&client, &format!("{folder}/b/d"), "3").await;
    // Not below the folder, though the name begins alike.
    put(&client, &format!("{folder}er/a"), "4").await;
    let config = client.config::<Value>();
    let config = config
        .defaults(&json!({"a": 1, "z": 1}))
        .key(&*document)
        .tree(&folder);
    let config = config.open().await.unwrap();
    let expected = json!({"a": 2, "z": 1, "b": {"c": 2, "d": 3}});
    assert_eq!(*config.get(), expected);
    client.kv().delete(&*document).await.unwrap();
    let expected = json!({"a": 1, "z": 1, "b": {"d": 3}});
    until(&config, |state| **state.value() == expected).await;
    assert!(config.state().is_current());
}

async fn a_bad_value_keeps_the_last_good_one_and_tells_why(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("config"));
    put(&client, &key, "1").await;
    let config = client.config::<Value>().key(&*key);
    let config = config.validate(|value| match value.as_u64() {
        Some(13) => panic!("what a validation must not do"),
        Some(0) => Err("zero lets nobody in"),
        _ => Ok(()),
    });
    let config = config.open().await.unwrap();
    let rejected = |state: &State<Value>| match state {
        State::Rejected { value, error } => {
            assert_eq!(**value, json!(1));
            assert_eq!(error.kind(), ErrorKind::Value, "{error}");
            // Whatever is wrong with it, the key is named.
            assert!(error.to_string().contains(&key), "{error}");
            Some(error.to_string())
        }
        _ => None,
    };
    for (bad, why) in [
        ("{\"a\": ", key.as_str()),
        ("0", "zero lets nobody in"),
        ("13", "panicked"),
    ] {
        put(&client, &key, bad).await;
        until(&config, |state| {
            rejected(state).is_some_and(|told| told.contains(why))
        })
        .await;
        assert_eq!(*config.get(), json!(1));
    }
    put(&client, &key, "2").await;
    until(&config, State::is_current).await;
    assert_eq!(*config.get(), json!(2));
}

async fn removed_settings_keep_the_last_good_value_until_they_are_back(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("config"));
    put(&client, &key, "1").await;
    let config = client.config::<Value>().key(&*key).open().await.unwrap();
    client.kv().delete(&*key).await.unwrap();
    until(&config, |state| matches!(state, State::Removed(_))).await;
    assert_eq!(*config.get(), json!(1));
    put(&client, &key, "2").await;
    until(&config, State::is_current).await;
    assert_eq!(*config.get(), json!(2));
}

async fn removed_settings_fall_back_to_the_defaults_if_wished(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("config"));
    put(&client, &key, r#"{"a": 1}"#).await;
    let config = client.config::<Value>().removal(Removal::Defaults);
    let config = config.defaults(&json!({"a": 0})).key(&*key);
    let config = config.open().await.unwrap();
    assert_eq!(*config.get(), json!({"a": 1}));
    client.kv().delete(&*key).await.unwrap();
    until(&config, |state| **state.value() == json!({"a": 0})).await;
    assert!(config.state().is_current());
}

async fn settings_that_are_bad_or_absent_at_first_are_told_by_open(agent: &TestAgent) {
    let (client, key) = (agent.client(), agent.name("config"));
    let open = || client.config::<BTreeMap<String, u32>>().key(&*key);
    let number = client.config::<u32>().key(&*key).open().await;
    assert_eq!(number.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(open().open().await.unwrap().get().is_empty());
    put(&client, &key, r#"{"a": -1}"#).await;
    let err = open().open().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Value);
    let told = err.to_string();
    assert!(told.contains("`a` of key") && told.contains(&key), "{told}");
    let fallback = BTreeMap::from([("a".to_owned(), 9)]);
    let config = open().fallback(fallback.clone()).open().await.unwrap();
    assert_eq!(*config.get(), fallback);
    let mut states = config.states();
    let rejected =
        async { while !matches!(states.next().await.unwrap(), State::Rejected { .. }) {} };
    timeout(SOON, rejected).await.unwrap();
    assert_eq!(*config.get(), fallback);
    let none = client.config::<u32>().open().await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::Invalid);
    let odd = client.config::<u32>().tree("a//b").open().await;
    assert_eq!(odd.unwrap_err().kind(), ErrorKind::Invalid);
    let nowhere = client.with_datacenter("nowhere".parse().unwrap());
    let nowhere = nowhere.config::<u32>().key(&*key).open().await;
    assert_eq!(nowhere.unwrap_err().kind(), ErrorKind::UnknownDatacenter);
}

/// A folder that goes with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("lictor-settings-{}-{name}", std::process::id());
        let folder = Self(std::env::temp_dir().join(name.replace('/', "-")));
        std::fs::create_dir(&folder.0).unwrap();
        folder
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

async fn settings_that_are_kept_begin_without_consul(agent: &TestAgent) {
    const DAY: Duration = Duration::from_secs(24 * 3_600);
    let (client, document, tree) = (agent.client(), agent.name("doc"), agent.name("folder"));
    put(&client, &document, r#"{"a": 1}"#).await;
    put(&client, &format!("{tree}/b"), "2").await;
    let folder = Folder::new(&document);
    let settings = |client: &Client| {
        let config = client.config::<Value>().key(&*document).tree(&tree);
        config.keep_in(&folder.0, DAY)
    };
    let config = settings(&client).open().await.unwrap();
    let written = async {
        let layers = ["layer-0.watch", "layer-1.watch"];
        while !layers.iter().all(|name| folder.0.join(name).exists()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, written).await.unwrap();
    drop(config);
    // Nobody listens on this port.
    let nobody = Client::builder().address("http://127.0.0.1:1").build();
    let config = settings(&nobody.unwrap());
    let config = timeout(SOON, config.open()).await.unwrap().unwrap();
    assert_eq!(*config.get(), json!({"a": 1, "b": 2}));
    until(&config, |state| matches!(state, State::Stale { .. })).await;
}

async fn settings_wait_until_a_burst_is_over(agent: &TestAgent) {
    let (client, tree) = (agent.client(), agent.name("folder"));
    put(&client, &format!("{tree}/a"), "0").await;
    let config = client.config::<Value>().tree(&tree);
    let config = config.settle(Duration::from_millis(500), SOON);
    let mut config = config.open().await.unwrap();
    for number in 1..=5 {
        put(&client, &format!("{tree}/a"), &number.to_string()).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let value = timeout(SOON, config.changed()).await.unwrap().unwrap();
    assert_eq!(*value, json!({"a": 5}));
    let backwards = client.config::<Value>().tree(&tree);
    let backwards = backwards.settle(SOON, Duration::ZERO).open().await;
    assert_eq!(backwards.unwrap_err().kind(), ErrorKind::Invalid);
}
