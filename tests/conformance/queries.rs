//! Prepared queries.

use std::time::Duration;

use lictor::ErrorKind;
use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use lictor::api::catalog::Entry;
use lictor::api::health::Status;
use lictor::api::query::PreparedQuery;
use lictor::ident::{QueryId, SessionId};
use lictor::watch::Status as WatchStatus;
use serde_json::{Value, json};
use support::eventually;
use tokio::time::timeout;

use crate::gossip::{is, send};
use crate::{TestAgent, woken};

on_both_agents![
    a_query_is_kept_changed_and_deleted,
    a_query_finds_instances_by_health_tags_and_limit,
    a_template_answers_for_every_name_that_begins_alike,
    a_query_ends_with_its_session,
    a_query_whose_session_is_changed_ends_with_the_new_one,
    names_of_queries_are_alike_without_regard_to_case,
    a_template_is_filled_in_everywhere,
    queries_are_answered_alike,
    a_query_is_followed_by_polling,
];

const SOON: Duration = Duration::from_secs(20);
/// Longer than any test.
const LONG: Duration = Duration::from_secs(60);

async fn a_query_is_kept_changed_and_deleted(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("query"));
    let query = PreparedQuery::new("web")
        .name(&name)
        .only_passing()
        .tag("v1")
        .failover_to_nearest(2)
        .failover_to("dc9")
        .dns_ttl(Duration::from_secs(10));
    let id = client.query().create(&query).await.unwrap();
    let kept = client
        .query()
        .read(&id)
        .await
        .unwrap()
        .into_value()
        .unwrap();
    assert_eq!((kept.name(), kept.nearest()), (Some(&*name), 2));
    assert_eq!((kept.service().as_str(), kept.tags().len()), ("web", 1));
    assert!(kept.is_only_passing() && kept.datacenters()[0] == "dc9");
    let listed = client.query().list().await.unwrap();
    assert!(listed.iter().any(|query| **query == kept));

    let taken = client.query().create(&query).await.unwrap_err();
    assert!(taken.to_string().contains("aliases an existing"), "{taken}");
    is(&taken, ErrorKind::Conflict);
    let other = PreparedQuery::new("db").name(&name);
    client.query().update(&id, &other).await.unwrap();
    let explained = client.query().explain(&*name).await.unwrap();
    assert_eq!((explained.service().as_str(), explained.id()), ("db", &id));
    assert!(explained.modify_index() > explained.create_index());

    client.query().delete(&id).await.unwrap();
    assert!(client.query().read(&id).await.unwrap().is_none());
    let gone = client.query().execute(&*name).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    is(
        &client.query().delete(&id).await.unwrap_err(),
        ErrorKind::NotFound,
    );
    is(
        &client.query().update(&id, &query).await.unwrap_err(),
        ErrorKind::NotFound,
    );
    let odd = QueryId::new("no-uuid").unwrap();
    is(
        &client.query().delete(&odd).await.unwrap_err(),
        ErrorKind::NotFound,
    );
    assert!(client.query().read(&odd).await.unwrap().is_none());
    let nameless = PreparedQuery::new("");
    let err = client.query().create(&nameless).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid);
}

async fn register(agent: &TestAgent, name: &str, id: &str, tag: &str, status: Status) {
    let check = CheckDefinition::ttl(Duration::from_secs(600)).status(status);
    let service = ServiceDefinition::new(name).id(id).tag(tag).check(check);
    agent.client().agent().register(&service).await.unwrap();
}

async fn a_query_finds_instances_by_health_tags_and_limit(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("web"));
    let id = |number: u8| format!("{web}-{number}");
    register(agent, &web, &id(1), "blue", Status::Passing).await;
    register(agent, &web, &id(2), "blue", Status::Warning).await;
    register(agent, &web, &id(3), "red", Status::Passing).await;
    register(agent, &web, &id(4), "red", Status::Critical).await;
    eventually(SOON, async || {
        client.catalog().service(&*web).await.unwrap().len() == 4
    })
    .await;
    let found = async |name: &str, query: PreparedQuery| {
        let name = agent.name(name);
        client.query().create(&query.name(&name)).await.unwrap();
        let found = client.query().execute(&*name).await.unwrap();
        assert_eq!(found.failovers(), 0);
        let ids = found.nodes().iter().map(|entry| entry.service().id());
        let mut ids: Vec<String> = ids.map(|id| id.as_str().to_owned()).collect();
        ids.sort();
        ids
    };
    let query = || PreparedQuery::new(&*web);
    assert_eq!(found("all", query()).await, [id(1), id(2), id(3)]);
    assert_eq!(found("pass", query().only_passing()).await, [id(1), id(3)]);
    assert_eq!(found("blue", query().tag("blue")).await, [id(1), id(2)]);
    assert_eq!(found("notblue", query().tag("!blue")).await, [id(3)]);
    let limited = client.query().execute(agent.name("all")).limit(2).await;
    assert_eq!(limited.unwrap().nodes().len(), 2);
    for number in 1..=4 {
        client.agent().deregister(id(number)).await.unwrap();
    }
}

async fn a_template_answers_for_every_name_that_begins_alike(agent: &TestAgent) {
    let (client, prefix) = (agent.client(), agent.name("tpl-"));
    let template = PreparedQuery::new("${name.suffix}")
        .name(&prefix)
        .template();
    let id = client.query().create(&template).await.unwrap();
    let explained = client.query().explain(format!("{prefix}consul")).await;
    assert_eq!(explained.unwrap().service(), &"consul");
    let found = client.query().execute(format!("{prefix}consul")).await;
    let found = found.unwrap();
    assert_eq!(found.nodes().len(), 1);
    assert_eq!(found.datacenter(), &"dc1");
    client.query().delete(&id).await.unwrap();
}

async fn session(agent: &TestAgent, node: &str) -> SessionId {
    let body = json!({"NodeChecks": [], "Node": node}).to_string();
    let (_, created) = send(agent, "PUT", "/v1/session/create", &body).await;
    let created: Value = serde_json::from_str(&created).unwrap();
    SessionId::new(created["ID"].as_str().unwrap()).unwrap()
}

async fn a_query_ends_with_its_session(agent: &TestAgent) {
    let (client, node) = (agent.client(), agent.name("node"));
    let register = async || {
        let entry = Entry::new(&*node, "192.0.2.9");
        client.catalog().register(entry).await.unwrap();
    };
    let listed = async |ids: &[QueryId]| {
        let all = client.query().list().await.unwrap();
        let ours = all.iter().filter(|query| ids.contains(query.id()));
        (ours.count(), all.meta().index().unwrap())
    };
    for end in ["destroy", "deregister", "delete"] {
        register().await;
        let session = session(agent, &node).await;
        let (name, other) = (agent.name(end), agent.name(&format!("{end}-other")));
        let query = PreparedQuery::new("consul");
        let named = query.clone().name(&name).session(&session);
        // One without a name has nothing else to end with.
        let nameless = query.clone().session(&session);
        let unbound = query.clone().name(&other);
        let mut ids = Vec::new();
        for query in [named, nameless, unbound] {
            ids.push(client.query().create(&query).await.unwrap());
        }
        let kept = client.query().explain(&*name).await.unwrap();
        assert_eq!(kept.session(), Some(session.as_str()));
        let nameless = ids[1].to_string();
        assert_eq!(
            client
                .query()
                .execute(nameless)
                .await
                .unwrap()
                .nodes()
                .len(),
            1
        );
        let (count, index) = listed(&ids).await;
        assert_eq!(count, 3);

        let ended = async {
            let mut index = index;
            loop {
                let read = client.query().list().wait_for_change(index, LONG);
                let all = read.await.unwrap();
                index = all.meta().index().unwrap();
                if all.iter().all(|query| query.id() != &ids[0]) {
                    return index;
                }
            }
        };
        let ending = async || match end {
            "destroy" => {
                let path = format!("/v1/session/destroy/{session}");
                assert_eq!(send(agent, "PUT", &path, "").await.0, 200);
            }
            "deregister" => client.catalog().deregister_node(&*node).await.unwrap(),
            _ => {
                let steps = json!([{"Node": {"Verb": "delete", "Node": {"Node": node}}}]);
                let done = send(agent, "PUT", "/v1/txn", &steps.to_string()).await;
                assert_eq!(done.0, 200, "{}", done.1);
            }
        };
        assert!(woken(ended, ending).await > index);
        assert_eq!(listed(&ids).await.0, 1);
        assert!(client.query().read(&ids[1]).await.unwrap().is_none());
        let gone = client.query().execute(&*name).await.unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound);
        client.query().delete(&ids[2]).await.unwrap();
    }
    client.catalog().deregister_node(&*node).await.unwrap();
}

async fn a_query_whose_session_is_changed_ends_with_the_new_one(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("moved"));
    let entry = Entry::new(agent.name("node"), "192.0.2.9");
    client.catalog().register(entry).await.unwrap();
    let node = agent.name("node");
    let (first, second) = (session(agent, &node).await, session(agent, &node).await);
    let query = PreparedQuery::new("consul").name(&name);
    let id = client.query().create(&query.clone().session(&first)).await;
    let id = id.unwrap();
    // A session that is not there leaves all as it was.
    let none = SessionId::new("8f246b77-f3e1-ff88-5b48-8ec93abf3e05").unwrap();
    let err = client.query().update(&id, &query.clone().session(&none));
    assert_eq!(err.await.unwrap_err().kind(), ErrorKind::UnknownSession);
    let kept = async || client.query().read(&id).await.unwrap().into_value();
    assert_eq!(kept().await.unwrap().session(), Some(first.as_str()));
    let update = client.query().update(&id, &query.clone().session(&second));
    update.await.unwrap();
    let destroy = async |session: &SessionId| {
        let path = format!("/v1/session/destroy/{session}");
        assert_eq!(send(agent, "PUT", &path, "").await.0, 200);
    };
    destroy(&first).await;
    assert_eq!(kept().await.unwrap().session(), Some(second.as_str()));
    client.query().update(&id, &query).await.unwrap();
    assert_eq!(kept().await.unwrap().session(), None);
    destroy(&second).await;
    assert!(kept().await.is_some());
    client.query().delete(&id).await.unwrap();
    client.catalog().deregister_node(node).await.unwrap();
}

async fn names_of_queries_are_alike_without_regard_to_case(agent: &TestAgent) {
    let (client, name) = (agent.client(), agent.name("name"));
    let query = || PreparedQuery::new("consul");
    let create = async |query: PreparedQuery| client.query().create(&query).await;
    let id = create(query().name(&name)).await.unwrap();
    let shouted = name.to_uppercase();
    let found = client.query().execute(&*shouted).await.unwrap();
    assert_eq!(found.nodes().len(), 1);
    let refused = async |query: PreparedQuery| create(query).await.unwrap_err().to_string();
    for query in [query().name(&shouted), query().name(&name).template()] {
        let told = refused(query).await;
        assert!(told.contains("aliases an existing query name"), "{told}");
    }
    let told = refused(query().name(id.to_string())).await;
    assert!(told.contains("aliases an existing query ID"), "{told}");
    client.query().delete(&id).await.unwrap();

    let template = PreparedQuery::new("${name.suffix}").name(agent.name("Tpl-"));
    let id = create(template.template()).await.unwrap();
    let suffix = async |name: String| {
        let explained = client.query().explain(name).await.unwrap();
        explained.service().to_string()
    };
    assert_eq!(suffix(agent.name("Tpl-web")).await, "web");
    // It fits however it is spelt, but only what is spelt alike is cut off.
    let other = agent.name("tPL-web");
    assert_eq!(suffix(other.clone()).await, other);
    let told = client.query().explain(id.to_string()).await.unwrap_err();
    let told = told.to_string();
    assert!(told.contains("only be resolved up by name"), "{told}");
    client.query().delete(&id).await.unwrap();
}

async fn a_template_is_filled_in_everywhere(agent: &TestAgent) {
    let prefix = agent.name("all-");
    let create = async |service: Value| {
        let template = json!({"Type": "name_prefix_match", "RemoveEmptyTags": true});
        let body = json!({"Name": prefix, "Template": template, "Service": service});
        send(agent, "POST", "/v1/query", &body.to_string()).await
    };
    let (status, created) = create(json!({
        "Service": "a-${ name.suffix }",
        "Tags": ["${name.prefix}", "${name.suffix}", "${match(1)}", "!${name.full}"],
        "IgnoreCheckIDs": ["i-$${name.full}"],
        "Near": "${name.full}",
        "NodeMeta": {"k": "v-${name.suffix}${agent.segment}"},
        "ServiceMeta": {"k": "${\"lit\"}"},
        "Failover": {"Datacenters": ["dc-${name.suffix}"]},
    }))
    .await;
    assert_eq!(status, 200, "{created}");
    let explain = async |suffix: &str| {
        let path = format!("/v1/query/{prefix}{suffix}/explain");
        let (_, explained) = send(agent, "GET", &path, "").await;
        let mut explained: Value = serde_json::from_str(&explained).unwrap();
        explained["Query"]["Service"].take()
    };
    let full = format!("{prefix}x");
    let expected = json!({
        "Service": "a-x", "Failover": {"NearestN": 0, "Datacenters": ["dc-x"]},
        "OnlyPassing": false, "IgnoreCheckIDs": ["i-${name.full}"], "Near": full,
        "Tags": [prefix, "x", format!("!{full}")], "NodeMeta": {"k": "v-x"},
        "ServiceMeta": {"k": "lit"}, "Connect": false,
    });
    assert_eq!(explain("x").await, expected);
    let tags = explain("").await["Tags"].take();
    assert_eq!(tags, json!([prefix, format!("!{prefix}")]));
    let created: Value = serde_json::from_str(&created).unwrap();
    let path = format!("/v1/query/{}", created["ID"].as_str().unwrap());
    assert_eq!(send(agent, "DELETE", &path, "").await.0, 200);

    for (service, text) in [
        (
            json!({"Service": "${name.fulll}", "Tags": ["${"]}),
            "Bad format '${' in Service.Tags[0]: parse error: syntax error",
        ),
        (
            json!({"Service": "x", "Near": "${}"}),
            "Bad format '${}' in Service.Near: parse error: syntax error",
        ),
        (
            json!({"Service": "x", "NodeMeta": {"k": "a${foo}"}}),
            "Bad evaluation for 'a${foo}' in Service.NodeMeta[k]: 1:4: unknown variable \
             accessed: foo",
        ),
        (
            json!({"Service": "${upper(name.full)}"}),
            "Bad evaluation for '${upper(name.full)}' in Service.Service: 1:3: unknown function \
             called: upper",
        ),
    ] {
        let answer = create(service).await;
        let text = format!("failed compiling template: {text}");
        assert_eq!(answer, (500, text));
    }
}

/// Answers of a long list of requests, which say the same on both agents.
async fn queries_are_answered_alike(agent: &TestAgent) {
    let unknown = "/v1/query/8f246b77-f3e1-ff88-5b48-8ec93abf3e05";
    let modify = "Cannot modify non-existent prepared query: \
                  '8f246b77-f3e1-ff88-5b48-8ec93abf3e05'";
    let lookup = "failed prepared query lookup: index error: UUID must be 36 characters";
    let looked_up = format!("Prepared Query lookup failed: {lookup}");
    let good = r#"{"Service":{"Service":"x"}}"#;
    for (method, path, body, status, text) in [
        (
            "GET",
            "/v1/query/nope-zz/execute",
            "",
            404,
            "Query not found",
        ),
        (
            "GET",
            "/v1/query/nope-zz/explain",
            "",
            404,
            "Query not found",
        ),
        ("GET", unknown, "", 404, "Query not found"),
        ("GET", "/v1/query/nope", "", 500, lookup),
        ("PUT", unknown, good, 500, modify),
        ("DELETE", unknown, "", 500, modify),
        ("DELETE", "/v1/query/zzz", "", 500, &*looked_up),
        ("PUT", "/v1/query/zzz", good, 500, &*looked_up),
        (
            "POST",
            "/v1/query",
            r#"{"Name":"z1","Service":{}}"#,
            500,
            "Invalid prepared query: Must provide a Service name to query",
        ),
        (
            "POST",
            "/v1/query",
            r#"{"Nme":"z1"}"#,
            400,
            "Request decode failed: json: unknown field \"Nme\"",
        ),
        ("POST", "/v1/query", "", 400, "Request decode failed: EOF"),
        (
            "POST",
            "/v1/query",
            r#"{"Name":"z1","Service":{"Service":"x","Failover":{"NearestN":-1}}}"#,
            500,
            "Invalid prepared query: Bad NearestN '-1', must be >= 0",
        ),
        (
            "POST",
            "/v1/query",
            r#"{"Name":"z1","Service":{"Service":"x"},"DNS":{"TTL":"5x"}}"#,
            500,
            "Invalid prepared query: Bad DNS TTL '5x': time: unknown unit \"x\" in duration \"5x\"",
        ),
        (
            "POST",
            "/v1/query",
            r#"{"Name":"z1","Service":{"Service":"x"},"DNS":{"TTL":"-1s"}}"#,
            500,
            "Invalid prepared query: DNS TTL '-1000000000', must be >=0",
        ),
        (
            "POST",
            "/v1/query",
            r#"{"Service":{"Service":""}}"#,
            500,
            "Invalid prepared query: Must be bound to a session",
        ),
        (
            "POST",
            "/v1/query",
            r#"{"Name":"z1","Token":"<hidden>","Service":{"Service":""}}"#,
            500,
            "Invalid prepared query: Bad Token '<hidden>', it looks like a query definition with a \
             redacted token was submitted",
        ),
        (
            "POST",
            "/v1/query",
            r#"{"Name":"z1","Service":{"Service":"x","NodeMeta":{"a b":"1"}}}"#,
            500,
            "Invalid prepared query: Couldn't load metadata pair ('a b', '1'): Key contains \
             invalid characters",
        ),
        (
            "POST",
            "/v1/query",
            r#"{"Name":"z1","ID":"8f246b77-f3e1-ff88-5b48-8ec93abf3e05"}"#,
            500,
            "ID must be empty when creating a new prepared query",
        ),
        (
            "POST",
            "/v1/query",
            r#"{"Name":"z1","Template":{"Type":"xx"},"Service":{"Service":"x"}}"#,
            500,
            "failed compiling template: Bad Template.Type 'xx'",
        ),
        (
            "POST",
            "/v1/query",
            r#"{"Name":"z1","Session":"8f246b77-f3e1-ff88-5b48-8ec93abf3e05","Service":{"Service":"x"}}"#,
            500,
            "invalid session \"8f246b77-f3e1-ff88-5b48-8ec93abf3e05\"",
        ),
        (
            "POST",
            "/v1/query",
            r#"{"Name":"z1","Session":"x","Template":{"Type":"xx"},"Service":{"Service":"x"}}"#,
            500,
            "invalid session: index error: UUID must be 36 characters",
        ),
        (
            "GET",
            "/v1/query/nope-zz/execute?limit=x",
            "",
            500,
            "Bad limit: strconv.Atoi: parsing \"x\": invalid syntax",
        ),
    ] {
        let answer = send(agent, method, path, body).await;
        assert_eq!(answer, (status, text.to_owned()), "{method} {path} {body}");
    }
    // The shape of an answer, field by field.
    let name = agent.name("shape");
    let body = json!({"Name": name, "Service": {"Service": name}}).to_string();
    let (status, created) = send(agent, "POST", "/v1/query", &body).await;
    assert_eq!(status, 200);
    let created: Value = serde_json::from_str(&created).unwrap();
    let (_, found) = send(agent, "GET", &format!("/v1/query/{name}/execute"), "").await;
    let found: Value = serde_json::from_str(&found).unwrap();
    let expected = json!({
        "Service": name, "Nodes": [], "DNS": {"TTL": ""}, "Datacenter": "dc1", "Failovers": 0,
        "Index": 0, "LastContact": 0, "KnownLeader": true, "ConsistencyLevel": "leader",
    });
    assert_eq!(found, expected);
    let path = format!("/v1/query/{}", created["ID"].as_str().unwrap());
    let (_, kept) = send(agent, "GET", &path, "").await;
    let kept: Value = serde_json::from_str(&kept).unwrap();
    let expected = json!([{
        "ID": created["ID"], "Name": name, "Session": "", "Token": "",
        "Template": {"Type": "", "Regexp": "", "RemoveEmptyTags": false},
        "Service": {
            "Service": name, "Failover": {"NearestN": 0, "Datacenters": null},
            "OnlyPassing": false, "IgnoreCheckIDs": null, "Near": "", "Tags": null,
            "NodeMeta": null, "ServiceMeta": null, "Connect": false,
        },
        "DNS": {"TTL": ""},
        "CreateIndex": kept[0]["CreateIndex"], "ModifyIndex": kept[0]["CreateIndex"],
    }]);
    assert_eq!(kept, expected);
    assert_eq!(send(agent, "DELETE", &path, "").await, (200, String::new()));
}

async fn a_query_is_followed_by_polling(agent: &TestAgent) {
    let (client, web) = (agent.client(), agent.name("polled"));
    let query = PreparedQuery::new(&*web).name(&web);
    let id = client.query().create(&query).await.unwrap();
    let every = Duration::from_secs(1);
    let hasty = client.query().execute(&*web).watch_every(every / 2);
    assert_eq!(hasty.unwrap_err().kind(), ErrorKind::Invalid);
    let mut watch = client.query().execute(&*web).watch_every(every).unwrap();
    let next = async |watch: &mut lictor::watch::Watch<_>| {
        timeout(SOON, watch.changed()).await.unwrap().unwrap()
    };
    assert!(next(&mut watch).await.is_empty());
    register(agent, &web, &web, "blue", Status::Passing).await;
    let there = next(&mut watch).await;
    assert_eq!(there[0].service().id(), &*web);
    client.query().delete(&id).await.unwrap();
    let stale = async {
        loop {
            if let WatchStatus::Stale(outage) = watch.status_changed().await.unwrap() {
                return outage;
            }
        }
    };
    let outage = timeout(SOON, stale).await.unwrap();
    assert_eq!(outage.error().kind(), ErrorKind::NotFound);
    assert_eq!(watch.latest().unwrap().len(), 1);
    client.agent().deregister(&*web).await.unwrap();
}
