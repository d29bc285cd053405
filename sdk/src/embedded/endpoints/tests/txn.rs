use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{get, put, send};
use crate::embedded::Agent;

async fn txn(agent: &Agent, ops: Value) -> super::Answer {
    put(agent, "/v1/txn", &ops.to_string()).await
}

fn kv(verb: &str, key: &str) -> Value {
    json!({"KV": {"Verb": verb, "Key": key}})
}

fn set(key: &str, value: &str) -> Value {
    json!({"KV": {"Verb": "set", "Key": key, "Value": value}})
}

#[tokio::test]
async fn a_write_tells_keys_without_their_values() {
    let agent = Agent::in_memory();
    let answer = txn(
        &agent,
        json!([set("k", "dg=="), kv("get", "k"), kv("delete", "x")]),
    )
    .await;
    assert_eq!(answer.status, StatusCode::OK);
    let key = |value: Value| {
        json!({"KV": {
            "LockIndex": 0,
            "Key": "k",
            "Flags": 0,
            "Value": value,
            "CreateIndex": 13,
            "ModifyIndex": 13,
        }})
    };
    assert_eq!(
        answer.json(),
        json!({"Results": [key(Value::Null), key(json!("dg=="))], "Errors": null})
    );
    assert_eq!(answer.header("x-consul-knownleader"), "");
}

#[tokio::test]
async fn reads_alone_tell_of_the_leader_and_may_be_stale() {
    let agent = Agent::in_memory();
    agent.lose_leader();
    let read = json!([kv("get-tree", "k")]).to_string();
    let answer = put(&agent, "/v1/txn?stale", &read).await;
    let told = answer.json();
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(told["Results"], json!([]));
    assert_eq!(
        (&told["Index"], &told["KnownLeader"]),
        (&json!(0), &json!(false))
    );
    assert_eq!(answer.header("x-consul-knownleader"), "false");
    agent.elect_leader();
    let answer = put(&agent, "/v1/txn", &read).await;
    assert_eq!(answer.json()["KnownLeader"], true);
    assert_eq!(answer.header("x-consul-lastcontact"), "0");
    assert_eq!(answer.header("x-consul-index"), "");
}

#[tokio::test]
async fn a_failed_transaction_names_its_steps_and_changes_nothing() {
    let agent = Agent::in_memory();
    let answer = txn(
        &agent,
        json!([set("k", "dg=="), {}, kv("get", "none"), kv("lock", "k")]),
    )
    .await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert_eq!(
        answer.json(),
        json!({
            "Results": null,
            // What asks for nothing has no number.
            "Errors": [
                {"OpIndex": 1, "What": "key \"none\" doesn't exist"},
                {"OpIndex": 2, "What": "missing session"},
            ],
        })
    );
    assert_eq!(get(&agent, "/v1/kv/k").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn nodes_services_and_checks_are_told_as_consul_tells_them() {
    let agent = Agent::in_memory();
    let answer = txn(
        &agent,
        json!([
            {"Node": {"Verb": "set", "Node": {"Node": "ext", "Address": "10.0.0.1"}}},
            {"Service": {"Verb": "set", "Node": "ext", "Service": {"Service": "s", "Port": 80}}},
            {"Check": {"Verb": "set", "Check": {
                "Node": "ext",
                "CheckID": "c",
                "ServiceID": "s",
                "Definition": {"Interval": "5s", "Foo": 1},
            }}},
        ]),
    )
    .await;
    assert_eq!(
        answer.json()["Results"],
        json!([
            {"Node": {
                "ID": "",
                "Node": "ext",
                "Address": "10.0.0.1",
                "Datacenter": "dc1",
                "TaggedAddresses": null,
                "Meta": null,
                "CreateIndex": 13,
                "ModifyIndex": 13,
            }},
            {"Service": {
                "ID": "s",
                "Service": "s",
                "Tags": null,
                "Address": "",
                "Meta": null,
                "Port": 80,
                "Weights": {"Passing": 1, "Warning": 1},
                "EnableTagOverride": false,
                "Proxy": {"MeshGateway": {}, "Expose": {}},
                "Connect": {},
                "CreateIndex": 13,
                "ModifyIndex": 13,
            }},
            {"Check": {
                "Node": "ext",
                "CheckID": "c",
                "Name": "",
                "Status": "critical",
                "Notes": "",
                "Output": "",
                "ServiceID": "s",
                "ServiceName": "s",
                "ServiceTags": null,
                "Type": "",
                "Definition": {"Interval": "5s"},
                "CreateIndex": 13,
                "ModifyIndex": 13,
            }},
        ])
    );
}

#[tokio::test]
async fn bodies_that_are_no_transaction_are_refused_in_consuls_words() {
    let agent = Agent::in_memory();
    let many = json!(vec![kv("get", "k"); 65]).to_string();
    let large = json!([set("k", &"x".repeat(512 * 1024))]).to_string();
    let too_large = format!(
        "Request body({} bytes) too large, max size: 524288 bytes. See https://www.consul.io/docs/agent/options.html#txn_max_req_len.",
        large.len()
    );
    for (body, status, text) in [
        ("", 400, "Failed to parse body: EOF"),
        (
            "{}",
            400,
            "Failed to parse body: json: cannot unmarshal object into Go value of type api.TxnOps",
        ),
        (
            r#"[{"Foo":1}]"#,
            400,
            "Failed to parse body: json: unknown field \"Foo\"",
        ),
        (
            r#"[{"KV":{"Index":-1}}]"#,
            400,
            "Failed to parse body: json: cannot unmarshal number -1 into Go struct field KVTxnOp.KV.Index of type uint64",
        ),
        (
            r#"[{"KV":{"Value":"YWJjZA"}}]"#,
            400,
            "Failed to parse body: illegal base64 data at input byte 4",
        ),
        (
            &many,
            413,
            "Transaction contains too many operations (65 > 64)",
        ),
        (&large, 413, &too_large),
    ] {
        let refused = put(&agent, "/v1/txn", body).await;
        let got = (refused.status.as_u16(), refused.text());
        assert_eq!(got, (status, text));
    }
    let post = send(&agent, Method::POST, "/v1/txn", "[]").await;
    assert_eq!(post.status, StatusCode::METHOD_NOT_ALLOWED);
    let verbs = [
        ("get-or-empty", "unknown KV verb \"get-or-empty\""),
        ("GET", "unknown KV verb \"GET\""),
    ];
    for (verb, text) in verbs {
        let answer = txn(&agent, json!([kv(verb, "k")])).await;
        assert_eq!(answer.json()["Errors"][0]["What"], text);
    }
}
