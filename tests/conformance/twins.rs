//! Long sequences of requests, sent to both agents at once: every answer must be the same.
//!
//! The cases of the other modules say what is right. These say nothing, and find what nobody
//! thought of.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use support::http;

use crate::TestAgent;

mod consul {
    #[tokio::test]
    async fn equal_requests_have_equal_answers() {
        let test = concat!(module_path!(), "::equal_requests_have_equal_answers");
        crate::agents::on_consul(test, super::equal_requests_have_equal_answers).await;
    }
}

/// How many requests change something; a read of all keys follows each.
const REQUESTS: usize = 250;
const SEEDS: [u64; 3] = [7, 42, 1001];

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
        if let Some(members) = body.as_object_mut() {
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
