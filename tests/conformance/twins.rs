//! Long sequences of requests, sent to both agents at once: every answer must be the same.
//!
//! The cases of the other modules say what is right. These say nothing, and find what nobody
//! thought of.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use support::{eventually, http};

use crate::TestAgent;

mod consul {
    #[tokio::test]
    async fn equal_requests_have_equal_answers() {
        let test = concat!(module_path!(), "::equal_requests_have_equal_answers");
        crate::agents::on_consul(test, super::equal_requests_have_equal_answers).await;
    }

    #[tokio::test]
    async fn equal_requests_about_queries_have_equal_answers() {
        let name = "::equal_requests_about_queries_have_equal_answers";
        let test = format!("{}{name}", module_path!());
        let case = super::equal_requests_about_queries_have_equal_answers;
        crate::agents::on_consul(&test, case).await;
    }

    #[tokio::test]
    async fn equal_events_are_told_alike() {
        let test = concat!(module_path!(), "::equal_events_are_told_alike");
        crate::agents::on_consul(test, super::equal_events_are_told_alike).await;
    }
}

/// How many requests change something; a read of all keys follows each.
const REQUESTS: usize = 250;
const SEEDS: [u64; 3] = [7, 42, 1001];
const SOON: Duration = Duration::from_secs(20);

async fn equal_requests_have_equal_answers(agent: &TestAgent) {
    for seed in SEEDS {
        let embedded = lictor::embedded::Agent::start().await.unwrap();
        let prefix = agent.name(&format!("twins{seed}"));
        let (real, ours) = tokio::join!(
            Side::new(agent.http_url(), &prefix).play(seed),
            Side::new(embedded.http_url(), &prefix).play(seed),
        );
        assert_eq!(real.len(), ours.len());
        for (at, (real, ours)) in real.iter().zip(&ours).enumerate() {
            assert_eq!(real, ours, "answer {at} of seed {seed}");
        }
        embedded.stop().await;
    }
}

async fn equal_requests_about_queries_have_equal_answers(agent: &TestAgent) {
    for seed in SEEDS {
        let embedded = lictor::embedded::Agent::start().await.unwrap();
        let prefix = agent.name(&format!("queries{seed}"));
        let (real, ours) = tokio::join!(
            Side::new(agent.http_url(), &prefix).ask(seed),
            Side::new(embedded.http_url(), &prefix).ask(seed),
        );
        assert_eq!(real.len(), ours.len());
        for (at, (real, ours)) in real.iter().zip(&ours).enumerate() {
            assert_eq!(real, ours, "answer {at} of seed {seed}");
        }
        embedded.stop().await;
    }
}

async fn equal_events_are_told_alike(agent: &TestAgent) {
    let embedded = lictor::embedded::Agent::start().await.unwrap();
    let name = agent.name("event");
    let (real, ours) = tokio::join!(
        Side::new(agent.http_url(), &name).fire(),
        Side::new(embedded.http_url(), &name).fire(),
    );
    assert_eq!(real, ours);
    embedded.stop().await;
}

/// One of the two agents, with what it answered so far.
struct Side {
    url: String,
    prefix: String,
    sessions: Vec<String>,
    /// Every session that ever was, with the name that stands for it in answers.
    names: BTreeMap<String, String>,
    answers: Vec<Answer>,
}

#[derive(Debug, PartialEq)]
struct Answer {
    request: String,
    status: u16,
    body: Value,
}

impl Side {
    fn new(url: String, prefix: &str) -> Self {
        Self {
            url,
            prefix: format!("{prefix}/"),
            sessions: Vec::new(),
            names: BTreeMap::new(),
            answers: Vec::new(),
        }
    }

    /// Sends what the seed says and returns the answers, in which sessions and indexes are named
    /// by their order.
    async fn play(mut self, seed: u64) -> Vec<Answer> {
        let mut draw = Draw(seed);
        for behavior in ["release", "delete", "release"] {
            let session = self.session(behavior).await;
            self.sessions.push(session);
        }
        for _ in 0..REQUESTS {
            self.act(&mut draw).await;
            let all = format!("/v1/kv/{}?recurse", self.prefix);
            self.send("GET", &all, "").await;
        }
        for session in self.sessions.clone() {
            let path = format!("/v1/session/destroy/{session}");
            self.send("PUT", &path, "").await;
        }
        let all = format!("/v1/kv/{}?recurse", self.prefix);
        self.send("GET", &all, "").await;
        self.send("DELETE", &all, "").await;
        ranked(self.answers)
    }

    async fn act(&mut self, draw: &mut Draw) {
        let key = self.key(draw);
        let other = self.key(draw);
        let which = draw.below(self.sessions.len());
        let session = self.sessions[which].clone();
        let value = ["1", "2"][draw.below(2)];
        // "1" and "2" in base64.
        let coded = ["MQ==", "Mg=="][draw.below(2)];
        let kv = |verb: &str, key: &str| json!({"KV": {"Verb": verb, "Key": key}});
        let write = |verb: &str, key: &str| json!({"KV": {"Verb": verb, "Key": key, "Value": coded, "Session": session}});
        let prefix = self.prefix.clone();
        let steps = match draw.below(14) {
            0 => {
                let path = format!("/v1/kv/{key}?acquire={session}");
                return self.send("PUT", &path, value).await;
            }
            1 => {
                let path = format!("/v1/kv/{key}?release={session}&flags=3");
                return self.send("PUT", &path, value).await;
            }
            2 => return self.send("PUT", &format!("/v1/kv/{key}"), value).await,
            3 => return self.send("DELETE", &format!("/v1/kv/{key}"), "").await,
            4 => {
                let path = format!("/v1/session/destroy/{session}");
                self.send("PUT", &path, "").await;
                let behavior = ["release", "delete"][draw.below(2)];
                self.sessions[which] = self.session(behavior).await;
                // From now on the former one is a session that is not there.
                let late = format!("/v1/kv/{key}?acquire={session}");
                return self.send("PUT", &late, value).await;
            }
            5 => json!([write("lock", &key), write("lock", &other)]),
            6 => json!([write("unlock", &key)]),
            7 => json!([write("check-session", &key), write("set", &other)]),
            8 => json!([
                write("set", &key),
                kv("get-tree", &prefix),
                kv("check-not-exists", &other)
            ]),
            9 => json!([kv("delete", &key), write("lock", &key), kv("get", &other)]),
            10 => json!([write("cas", &key)]),
            11 => json!([
                kv("delete-tree", &prefix),
                write("set", &key),
                write("check-session", &other)
            ]),
            12 => json!([kv("get", &key), kv("get", &other), kv("get-tree", &prefix)]),
            _ => json!([
                kv("check-not-exists", &key),
                write("lock", &key),
                write("unlock", &other)
            ]),
        };
        self.send("PUT", "/v1/txn", &steps.to_string()).await;
    }

    /// Sends what the seed says about prepared queries, and reads all of them after each.
    async fn ask(mut self, seed: u64) -> Vec<Answer> {
        let mut draw = Draw(seed);
        for _ in 0..2 {
            let session = self.session("release").await;
            self.sessions.push(session);
        }
        let mut ids = vec!["8f246b77-f3e1-ff88-5b48-8ec93abf3e05".to_owned()];
        for _ in 0..REQUESTS {
            self.query(&mut draw, &mut ids).await;
            let (before, _) = (self.answers.len(), self.send("GET", "/v1/query", "").await);
            // Others ask the real one, too. What is sorted by a random ID is sorted anew.
            let ours: Vec<&String> = self.names.values().collect();
            if let Some(list) = self.answers[before].body.as_array_mut() {
                list.retain(|query| ours.iter().any(|id| query["ID"] == id.as_str()));
                list.sort_by_key(|query| query["ID"].to_string());
            }
        }
        for session in self.sessions.clone() {
            let path = format!("/v1/session/destroy/{session}");
            self.send("PUT", &path, "").await;
        }
        for id in ids {
            self.send("DELETE", &format!("/v1/query/{id}"), "").await;
        }
        ranked(self.answers)
    }

    async fn query(&mut self, draw: &mut Draw, ids: &mut Vec<String>) {
        let prefix = self.prefix.replace('/', "-");
        let name = ["a", "b", "A", "ab", "tpl-x", ""][draw.below(6)];
        let name = match name {
            "" => String::new(),
            stem => format!("{prefix}{stem}"),
        };
        let which = draw.below(self.sessions.len());
        let session = self.sessions[which].clone();
        let id = ids[draw.below(ids.len())].clone();
        let bound = [
            session.as_str(),
            session.as_str(),
            "",
            "",
            "8f246b77-f3e1-ff88-5b48-8ec93abf3e05",
            "x",
        ][draw.below(6)];
        let service = ["x", "y", "x-${name.suffix}", ""][draw.below(4)];
        // One that answers for every name would be asked by others.
        let is_template = !name.is_empty() && draw.below(3) == 0;
        let kind = if is_template { "name_prefix_match" } else { "" };
        let near = ["", "_agent", "nobody"][draw.below(3)];
        let nearest = [0, 1, 2, -1][draw.below(4)];
        let ttl = ["", "", "10s", "-1s", "x"][draw.below(5)];
        let only_passing = draw.below(2) == 0;
        let definition = json!({
            "Name": name,
            "Session": bound,
            "Template": {"Type": kind},
            "Service": {
                "Service": service,
                "Near": near,
                "OnlyPassing": only_passing,
                "Failover": {"NearestN": nearest, "Datacenters": ["dc9"]},
            },
            "DNS": {"TTL": ttl},
        })
        .to_string();
        match draw.below(9) {
            0..3 => {
                let before = self.answers.len();
                self.send("POST", "/v1/query", &definition).await;
                let created = &mut self.answers[before].body;
                if let Some(id) = created["ID"].as_str().map(str::to_owned) {
                    let name = format!("<query {:03}>", ids.len());
                    created["ID"] = name.as_str().into();
                    self.names.insert(id.clone(), name);
                    ids.push(id);
                }
            }
            3 => {
                let path = format!("/v1/query/{id}");
                self.send("PUT", &path, &definition).await;
            }
            4 => self.send("GET", &format!("/v1/query/{id}"), "").await,
            5 => self.send("DELETE", &format!("/v1/query/{id}"), "").await,
            6 => {
                let asked = [&id, &name, &name.to_uppercase()][draw.below(3)].clone();
                let verb = ["execute", "execute?near=_agent&limit=1", "explain"][draw.below(3)];
                self.send("GET", &format!("/v1/query/{asked}/{verb}"), "")
                    .await;
            }
            7 => {
                let path = format!("/v1/session/destroy/{session}");
                self.send("PUT", &path, "").await;
                self.sessions[which] = self.session("release").await;
            }
            _ => {
                let path = format!("/v1/query/{prefix}tpl-xz/execute");
                self.send("GET", &path, "").await;
            }
        }
    }

    /// Fires events of one name, and lists them when all are there.
    async fn fire(mut self) -> Vec<Answer> {
        let name = self.prefix.replace('/', "");
        let mut fired = 0;
        for (filter, payload) in [
            ("", ""),
            ("", "plain"),
            ("?node=nobody", "for others"),
            ("?service=consul", "for servers"),
            ("?service=consul&tag=none", "for none"),
            ("?tag=none", "refused"),
            ("?service=(", "refused"),
            ("", "\u{0}\u{ff}"),
        ] {
            let before = self.answers.len();
            let path = format!("/v1/event/fire/{name}{filter}");
            self.send("PUT", &path, payload).await;
            let answer = &mut self.answers[before].body;
            if let Some(id) = answer["ID"].as_str().map(str::to_owned) {
                let name = format!("<event {fired}>");
                answer["ID"] = name.as_str().into();
                self.names.insert(id, name);
                fired += 1;
            }
        }
        let url = format!("{}/v1/event/list?name={name}", self.url);
        eventually(SOON, async || {
            let listed = http::get(&url).await.unwrap().json();
            listed.as_array().is_some_and(|listed| listed.len() == 3)
        })
        .await;
        let before = self.answers.len();
        self.send("GET", &format!("/v1/event/list?name={name}"), "")
            .await;
        for event in self.answers[before]
            .body
            .as_array_mut()
            .into_iter()
            .flatten()
        {
            // The time is that of all events, of which others fire some.
            assert!(event["LTime"].take().as_u64() > Some(0), "{event}");
        }
        self.answers
    }

    fn key(&self, draw: &mut Draw) -> String {
        format!("{}{}", self.prefix, ["a", "b", "c"][draw.below(3)])
    }

    async fn session(&mut self, behavior: &str) -> String {
        let wish = json!({"NodeChecks": [], "LockDelay": "0s", "Behavior": behavior});
        let url = format!("{}/v1/session/create", self.url);
        let created = http::put(&url, wish.to_string()).await.unwrap().json();
        let id = created["ID"].as_str().expect("an ID").to_owned();
        let name = format!("<session {}>", self.names.len());
        self.names.insert(id.clone(), name);
        id
    }

    async fn send(&mut self, method: &str, path: &str, body: &str) {
        let url = format!("{}{path}", self.url);
        let answer = http::request(method, &url, &[], body.to_owned())
            .await
            .unwrap();
        let mut text = answer.text();
        let mut request = format!("{method} {path} {body}");
        for (id, name) in &self.names {
            text = text.replace(id, name);
            request = request.replace(id, name);
        }
        let mut body: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        if let Some(members) = body.as_object_mut().filter(|_| path == "/v1/txn") {
            // What a transaction of reads tells besides has no part in its outcome.
            members.retain(|name, _| matches!(name.as_str(), "Results" | "Errors"));
        }
        self.answers.push(Answer {
            request,
            status: answer.status,
            body,
        });
    }
}

/// Names every index by its place among all that were told.
fn ranked(mut answers: Vec<Answer>) -> Vec<Answer> {
    let mut found = BTreeMap::new();
    for answer in &mut answers {
        indexes(&mut answer.body, &mut |index| {
            found.insert(index, 0);
            index
        });
    }
    for (rank, place) in found.values_mut().enumerate() {
        *place = rank as u64;
    }
    for answer in &mut answers {
        indexes(&mut answer.body, &mut |index| found[&index]);
    }
    answers
}

fn indexes(value: &mut Value, change: &mut impl FnMut(u64) -> u64) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| indexes(item, change)),
        Value::Object(members) => {
            for (name, member) in members {
                match member.as_u64() {
                    Some(index) if matches!(name.as_str(), "CreateIndex" | "ModifyIndex") => {
                        *member = change(index).into();
                    }
                    _ => indexes(member, change),
                }
            }
        }
        _ => {}
    }
}

/// Equal seeds, equal draws (SplitMix64).
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        usize::try_from(mixed % bound as u64).expect("below a usize")
    }
}
