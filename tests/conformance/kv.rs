//! The key-value store: what is written is what is read, whatever it is called.

use std::time::Duration;

use lictor::ErrorKind;
use lictor::api::kv::Pair;
use lictor::api::session::NewSession;
use lictor::ident::SessionId;
use tokio::time::Instant;

use crate::{TestAgent, woken};

on_both_agents![
    keys_of_every_sort_are_kept_apart_and_come_back_as_written,
    keys_that_the_server_would_redirect_are_refused_and_write_nothing,
    values_are_bytes,
    a_value_has_its_metadata,
    a_missing_key_is_none_and_can_be_waited_for,
    flags_stay_with_a_value_and_a_plain_write_drops_them,
    a_conditional_write_takes_place_only_at_its_index,
    a_conditional_deletion_takes_place_only_at_its_index,
    a_deletion_of_what_is_not_there_succeeds,
    a_prefix_is_text_and_not_a_folder,
    names_are_listed_up_to_a_separator,
    the_same_value_written_again_changes_nothing,
    a_read_that_waits_is_woken_by_a_change,
    a_read_that_waits_comes_back_unchanged_when_the_time_is_over,
    a_prefix_that_is_waited_for_tells_a_deletion,
    a_missing_prefix_is_an_empty_list,
    all_consistencies_answer_alike,
    a_lock_has_one_holder,
    a_release_gives_a_key_up_and_replaces_its_value,
    the_lock_index_counts_holders_until_a_plain_write,
    a_lock_stops_no_plain_write_and_no_deletion,
    a_lock_needs_a_session_that_is_there,
];

/// Longer than any test.
const LONG: Duration = Duration::from_secs(60);

async fn one(agent: &TestAgent, key: &str) -> Pair {
    let pair = agent.client().kv().get(key).await.unwrap().into_value();
    pair.unwrap_or_else(|| panic!("{key:?} is missing"))
}

async fn keys_of_every_sort_are_kept_apart_and_come_back_as_written(agent: &TestAgent) {
    let kv = agent.client().kv();
    let prefix = agent.name("keys/");
    let mut names = vec![
        "plain",
        "with space",
        "plus+plus",
        "what?",
        "num#ber",
        "100%",
        "100%25",
        "a%2Fb",
        "a&b=c;d,e",
        "a:b@c!d$e'f(g)*h",
        "[brackets]{braces}",
        "back\\slash",
        "quote\"quote",
        "<tag>|`^~",
        "ünïcödé/日本語/🦀",
        "...",
        "a/.b/c..",
        "deep/er/",
        "-_.~",
    ];
    for name in &names {
        let key = format!("{prefix}{name}");
        assert!(kv.put(key, name.to_string()).await.unwrap(), "{name}");
    }
    for name in &names {
        let pair = one(agent, &format!("{prefix}{name}")).await;
        assert_eq!(pair.key().as_str(), format!("{prefix}{name}"));
        assert_eq!(pair.value_str(), Some(*name));
    }
    let listed = kv.keys(&prefix).await.unwrap();
    let mut listed: Vec<&str> = listed
        .iter()
        .map(|key| key.strip_prefix(&prefix).unwrap())
        .collect();
    listed.sort_unstable();
    names.sort_unstable();
    assert_eq!(listed, names);
    for name in &names {
        assert!(kv.delete(format!("{prefix}{name}")).await.unwrap());
    }
    assert!(kv.list(&prefix).await.unwrap().is_empty());
}

async fn keys_that_the_server_would_redirect_are_refused_and_write_nothing(agent: &TestAgent) {
    let kv = agent.client().kv();
    let own = agent.name("key");
    for key in [
        String::new(),
        format!("/{own}"),
        format!("{own}//b"),
        format!("{own}/../b"),
        format!("{own}/./b"),
        format!("{own}/.."),
        format!("{own}\n"),
        format!("{own}\0"),
        own.repeat(2000),
    ] {
        for err in [
            kv.put(key.as_str(), "x").await.unwrap_err(),
            kv.get(key.as_str()).await.unwrap_err(),
            kv.raw(key.as_str()).await.unwrap_err(),
            kv.delete(key.as_str()).await.unwrap_err(),
        ] {
            assert_eq!(err.kind(), ErrorKind::Invalid, "{err}");
        }
    }
    assert!(kv.list(&own).await.unwrap().is_empty());
    // For a prefix emptiness is meant: everything.
    assert!(kv.keys("").await.is_ok());
}

async fn values_are_bytes(agent: &TestAgent) {
    let kv = agent.client().kv();
    let every_byte: Vec<u8> = (0..=255).collect();
    let longest = vec![b'x'; 512 * 1024];
    for value in [
        &b""[..],
        b"text",
        b"true",
        b"null",
        b"\0",
        &every_byte,
        &longest,
    ] {
        let key = agent.name("value");
        assert!(kv.put(key.as_str(), value.to_vec()).await.unwrap());
        let pair = one(agent, &key).await;
        assert!(pair.value() == value, "{} bytes", value.len());
        let raw = kv.raw(key.as_str()).await.unwrap().into_value().unwrap();
        assert!(raw == value, "{} bytes", value.len());
    }
}

async fn a_value_has_its_metadata(agent: &TestAgent) {
    let (kv, key) = (agent.client().kv(), agent.name("key"));
    kv.put(key.as_str(), "one").await.unwrap();
    let first = kv.get(key.as_str()).await.unwrap();
    let index = first.meta().index().unwrap();
    assert_eq!(first.meta().known_leader(), Some(true));
    let first = first.into_value().unwrap();
    assert_eq!(first.create_index(), first.modify_index());
    assert_eq!(index, first.modify_index());
    assert_eq!((first.flags(), first.lock_index()), (0, 0));
    assert!(first.session().is_none());

    kv.put(key.as_str(), "two").await.unwrap();
    let second = one(agent, &key).await;
    assert_eq!(second.create_index(), first.create_index());
    assert!(second.modify_index() > first.modify_index());
}

async fn a_missing_key_is_none_and_can_be_waited_for(agent: &TestAgent) {
    let (kv, key) = (agent.client().kv(), agent.name("none"));
    let missing = kv.get(key.as_str()).await.unwrap();
    assert_eq!(*missing, None);
    let index = missing.meta().index().unwrap();
    assert_eq!(*kv.raw(key.as_str()).await.unwrap(), None);

    let read = kv.get(key.as_str());
    let found = woken(read.wait_for_change(index, LONG), async || {
        assert!(kv.put(key.as_str(), "there").await.unwrap());
    });
    // An old server also wakes for other keys: then the answer is still that there is none.
    match found.await.unwrap().into_value() {
        Some(pair) => assert_eq!(pair.value(), b"there"),
        None => assert_eq!(one(agent, &key).await.value(), b"there"),
    }
}

async fn flags_stay_with_a_value_and_a_plain_write_drops_them(agent: &TestAgent) {
    let (kv, key) = (agent.client().kv(), agent.name("key"));
    kv.put(key.as_str(), "v").flags(u64::MAX).await.unwrap();
    assert_eq!(one(agent, &key).await.flags(), u64::MAX);
    kv.put(key.as_str(), "v").await.unwrap();
    assert_eq!(one(agent, &key).await.flags(), 0);
}

async fn a_conditional_write_takes_place_only_at_its_index(agent: &TestAgent) {
    let (kv, key) = (agent.client().kv(), agent.name("key"));
    assert!(!kv.put(key.as_str(), "never").cas(7).await.unwrap());
    assert!(kv.put(key.as_str(), "one").cas(0).flags(9).await.unwrap());
    assert!(!kv.put(key.as_str(), "again").cas(0).await.unwrap());
    let first = one(agent, &key).await;
    assert_eq!((first.value(), first.flags()), (&b"one"[..], 9));
    let index = first.modify_index();
    assert!(!kv.put(key.as_str(), "late").cas(index - 1).await.unwrap());
    assert!(kv.put(key.as_str(), "two").cas(index).await.unwrap());
    assert!(!kv.put(key.as_str(), "three").cas(index).await.unwrap());
    assert_eq!(one(agent, &key).await.value(), b"two");
}

async fn a_conditional_deletion_takes_place_only_at_its_index(agent: &TestAgent) {
    let (kv, key) = (agent.client().kv(), agent.name("key"));
    kv.put(key.as_str(), "v").await.unwrap();
    let index = one(agent, &key).await.modify_index();
    assert!(!kv.delete(key.as_str()).cas(index + 1).await.unwrap());
    assert!(!kv.delete(key.as_str()).cas(index - 1).await.unwrap());
    assert!(kv.delete(key.as_str()).cas(index).await.unwrap());
    assert_eq!(*kv.get(key.as_str()).await.unwrap(), None);
    // What is gone counts as deleted, whatever the index.
    assert!(kv.delete(key.as_str()).cas(index).await.unwrap());
}

async fn a_deletion_of_what_is_not_there_succeeds(agent: &TestAgent) {
    let kv = agent.client().kv();
    assert!(kv.delete(agent.name("none")).await.unwrap());
    assert!(kv.delete_tree(agent.name("none/")).await.unwrap());
}

async fn a_prefix_is_text_and_not_a_folder(agent: &TestAgent) {
    let kv = agent.client().kv();
    let app = agent.name("app");
    let keys: Vec<String> = ["", "/a", "/b/c", "le"]
        .iter()
        .map(|end| format!("{app}{end}"))
        .collect();
    for key in &keys {
        kv.put(key.as_str(), "v").flags(3).await.unwrap();
    }
    let listed = kv.list(&app).await.unwrap();
    assert_eq!(
        listed
            .iter()
            .map(|pair| pair.key().as_str())
            .collect::<Vec<_>>(),
        keys
    );
    assert!(
        listed
            .iter()
            .all(|pair| pair.value() == b"v" && pair.flags() == 3)
    );
    assert_eq!(
        listed.meta().index(),
        listed.iter().map(|pair| pair.modify_index()).max()
    );

    assert_eq!(kv.list(format!("{app}/")).await.unwrap().len(), 2);
    assert!(kv.delete_tree(format!("{app}/")).await.unwrap());
    assert_eq!(
        *kv.keys(&app).await.unwrap(),
        [keys[0].as_str(), keys[3].as_str()]
    );
    assert!(kv.delete_tree(&app).await.unwrap());
    assert!(kv.list(&app).await.unwrap().is_empty());
}

async fn names_are_listed_up_to_a_separator(agent: &TestAgent) {
    let kv = agent.client().kv();
    let prefix = agent.name("dir/");
    for name in ["a", "b/1", "b/2", "c/d/e", "f-g"] {
        kv.put(format!("{prefix}{name}"), "").await.unwrap();
    }
    let names = async |separator: &str| {
        let keys = kv.keys(&prefix).separator(separator).await.unwrap();
        keys.iter()
            .map(|key| key.strip_prefix(&prefix).unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names("/").await, ["a", "b/", "c/", "f-g"]);
    assert_eq!(names("-").await, ["a", "b/1", "b/2", "c/d/e", "f-"]);
    assert_eq!(names("").await, ["a", "b/1", "b/2", "c/d/e", "f-g"]);
    assert_eq!(kv.keys(&prefix).await.unwrap().len(), 5);
}

async fn the_same_value_written_again_changes_nothing(agent: &TestAgent) {
    let (kv, key) = (agent.client().kv(), agent.name("key"));
    kv.put(key.as_str(), "v").flags(1).await.unwrap();
    let first = one(agent, &key).await;
    assert!(kv.put(key.as_str(), "v").flags(1).await.unwrap());
    assert_eq!(one(agent, &key).await, first);
    kv.put(key.as_str(), "v").flags(2).await.unwrap();
    assert!(one(agent, &key).await.modify_index() > first.modify_index());
}

async fn a_read_that_waits_is_woken_by_a_change(agent: &TestAgent) {
    let (kv, key) = (agent.client().kv(), agent.name("key"));
    kv.put(key.as_str(), "one").await.unwrap();
    let index = kv.get(key.as_str()).await.unwrap().meta().index().unwrap();
    let read = kv.get(key.as_str());
    let found = woken(read.wait_for_change(index, LONG), async || {
        // A change of another key leaves it waiting.
        kv.put(agent.name("other"), "x").await.unwrap();
        kv.put(key.as_str(), "two").await.unwrap();
    });
    let found = found.await.unwrap();
    assert!(found.meta().index().unwrap() > index);
    assert_eq!(found.into_value().unwrap().value(), b"two");
}

async fn a_read_that_waits_comes_back_unchanged_when_the_time_is_over(agent: &TestAgent) {
    let (kv, key) = (agent.client().kv(), agent.name("key"));
    kv.put(key.as_str(), "one").await.unwrap();
    let index = kv.get(key.as_str()).await.unwrap().meta().index().unwrap();
    let began = Instant::now();
    let wait = Duration::from_millis(300);
    let found = kv.get(key.as_str()).wait_for_change(index, wait).await;
    assert!(began.elapsed() >= wait);
    let found = found.unwrap();
    assert_eq!(found.meta().index(), Some(index));
    assert_eq!(found.into_value().unwrap().value(), b"one");
    // An index that is behind is answered at once.
    let began = Instant::now();
    let late = kv.get(key.as_str());
    late.wait_for_change(index - 1, Duration::from_secs(60))
        .await
        .unwrap();
    assert!(began.elapsed() < Duration::from_secs(20));
}

async fn a_prefix_that_is_waited_for_tells_a_deletion(agent: &TestAgent) {
    let (kv, prefix) = (agent.client().kv(), agent.name("dir/"));
    kv.put(format!("{prefix}a"), "").await.unwrap();
    kv.put(format!("{prefix}b"), "").await.unwrap();
    let index = kv.list(&prefix).await.unwrap().meta().index().unwrap();
    let found = woken(kv.list(&prefix).wait_for_change(index, LONG), async || {
        kv.delete(format!("{prefix}a")).await.unwrap();
    });
    let found = found.await.unwrap();
    assert!(found.meta().index().unwrap() > index);
    assert_eq!(found.len(), 1);
}

async fn a_missing_prefix_is_an_empty_list(agent: &TestAgent) {
    let kv = agent.client().kv();
    let none = kv.list(agent.name("none/")).await.unwrap();
    assert!(none.is_empty() && none.meta().index().is_some());
    assert!(kv.keys(agent.name("none/")).await.unwrap().is_empty());
}

async fn all_consistencies_answer_alike(agent: &TestAgent) {
    use lictor::api::Consistency;
    let (kv, key) = (agent.client().kv(), agent.name("key"));
    kv.put(key.as_str(), "v").await.unwrap();
    for consistency in [
        Consistency::Default,
        Consistency::Stale,
        Consistency::Consistent,
        Consistency::Leader,
        Consistency::MaxStale(Duration::from_secs(5)),
    ] {
        let read = kv.get(key.as_str()).consistency(consistency);
        let found = read.await.unwrap();
        assert_eq!(found.meta().known_leader(), Some(true), "{consistency:?}");
        assert!(found.meta().last_contact().is_some(), "{consistency:?}");
        assert_eq!(found.into_value().unwrap().value(), b"v");
    }
}

/// A session that nothing ends but its destruction.
async fn session(agent: &TestAgent) -> SessionId {
    let session = NewSession::new().no_checks();
    agent.client().session().create(&session).await.unwrap()
}

async fn a_lock_has_one_holder(agent: &TestAgent) {
    let (kv, key) = (agent.client().kv(), agent.name("lock"));
    let (mine, other) = (session(agent).await, session(agent).await);
    let taken = kv.acquire(key.as_str(), &mine, "me").flags(7);
    assert!(taken.await.unwrap());
    let first = one(agent, &key).await;
    assert_eq!(first.session(), Some(&mine));
    assert_eq!((first.value(), first.flags()), (&b"me"[..], 7));
    assert_eq!(first.lock_index(), 1);

    let again = kv.acquire(key.as_str(), &other, "other");
    assert!(!again.await.unwrap());
    assert_eq!(one(agent, &key).await, first);

    // For the holder it succeeds, and with the same value it changes nothing.
    let same = kv.acquire(key.as_str(), &mine, "me").flags(7);
    assert!(same.await.unwrap());
    assert_eq!(one(agent, &key).await, first);
    assert!(kv.acquire(key.as_str(), &mine, "still me").await.unwrap());
    let second = one(agent, &key).await;
    assert!(second.modify_index() > first.modify_index());
    assert_eq!((second.value(), second.flags()), (&b"still me"[..], 0));
    assert_eq!((second.lock_index(), second.session()), (1, Some(&mine)));
}

async fn a_release_gives_a_key_up_and_replaces_its_value(agent: &TestAgent) {
    let (kv, key) = (agent.client().kv(), agent.name("lock"));
    let (mine, other) = (session(agent).await, session(agent).await);
    assert!(kv.acquire(key.as_str(), &mine, "me").await.unwrap());
    let held = one(agent, &key).await;
    assert!(!kv.release(key.as_str(), &other, "x").await.unwrap());
    assert_eq!(one(agent, &key).await, held);

    let released = kv.release(key.as_str(), &mine, "left").flags(8);
    assert!(released.await.unwrap());
    let free = one(agent, &key).await;
    assert_eq!((free.value(), free.flags()), (&b"left"[..], 8));
    assert_eq!((free.session(), free.lock_index()), (None, 1));
    assert!(free.modify_index() > held.modify_index());

    // Twice is once too often, and a missing key is held by nobody.
    assert!(!kv.release(key.as_str(), &mine, "x").await.unwrap());
    assert_eq!(one(agent, &key).await, free);
    let missing = agent.name("none");
    assert!(!kv.release(missing.as_str(), &mine, "x").await.unwrap());
    assert_eq!(*kv.get(missing).await.unwrap(), None);

    // A release has no delay: the next one holds at once.
    assert!(kv.acquire(key.as_str(), &other, "other").await.unwrap());
}

async fn the_lock_index_counts_holders_until_a_plain_write(agent: &TestAgent) {
    let (kv, key) = (agent.client().kv(), agent.name("lock"));
    let (mine, other) = (session(agent).await, session(agent).await);
    for holder in [&mine, &other, &mine] {
        assert!(kv.acquire(key.as_str(), holder, "v").await.unwrap());
        assert!(kv.release(key.as_str(), holder, "v").await.unwrap());
    }
    assert_eq!(one(agent, &key).await.lock_index(), 3);
    assert!(kv.acquire(key.as_str(), &other, "v").await.unwrap());
    assert_eq!(one(agent, &key).await.lock_index(), 4);

    assert!(kv.put(key.as_str(), "plain").await.unwrap());
    let written = one(agent, &key).await;
    assert_eq!((written.lock_index(), written.session()), (0, Some(&other)));
    // For the holder itself nothing is counted.
    assert!(kv.acquire(key.as_str(), &other, "v").await.unwrap());
    assert_eq!(one(agent, &key).await.lock_index(), 0);
    assert!(kv.release(key.as_str(), &other, "v").await.unwrap());
    assert!(kv.acquire(key.as_str(), &mine, "v").await.unwrap());
    assert_eq!(one(agent, &key).await.lock_index(), 1);
    // And so does a conditional write.
    let index = one(agent, &key).await.modify_index();
    assert!(kv.put(key.as_str(), "w").cas(index).await.unwrap());
    let written = one(agent, &key).await;
    assert_eq!((written.lock_index(), written.session()), (0, Some(&mine)));
}

async fn a_lock_stops_no_plain_write_and_no_deletion(agent: &TestAgent) {
    let (kv, key) = (agent.client().kv(), agent.name("lock"));
    let (mine, other) = (session(agent).await, session(agent).await);
    assert!(kv.acquire(key.as_str(), &mine, "me").await.unwrap());
    assert!(kv.put(key.as_str(), "somebody").await.unwrap());
    assert_eq!(one(agent, &key).await.value(), b"somebody");
    assert!(kv.delete(key.as_str()).await.unwrap());
    // The lock went with it, and nobody has to wait.
    assert!(kv.acquire(key.as_str(), &other, "other").await.unwrap());
    assert_eq!(one(agent, &key).await.session(), Some(&other));
}

async fn a_lock_needs_a_session_that_is_there(agent: &TestAgent) {
    let (kv, key) = (agent.client().kv(), agent.name("lock"));
    let gone = session(agent).await;
    agent.client().session().destroy(&gone).await.unwrap();
    for session in [gone, SessionId::new("nope").unwrap()] {
        let err = kv.acquire(key.as_str(), &session, "x").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::UnknownSession, "{err}");
        assert!(err.is_unknown_session() && !err.is_transient(), "{err}");
        assert!(!kv.release(key.as_str(), &session, "x").await.unwrap());
    }
    assert_eq!(*kv.get(key).await.unwrap(), None);
}
