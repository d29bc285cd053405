//! The two clients make the same calls, and are told the same.

mod consul {
    use std::error::Error;
    use std::path::Path;
    use std::process::Stdio;
    use std::time::Duration;

    use lictor::Client;
    use lictor::api::agent::ServiceDefinition;
    use lictor::api::query::{PreparedQuery, StoredQuery};
    use lictor::api::session::NewSession;
    use lictor::ident::{QueryId, SessionId};
    use serde_json::{Value, json};
    use support::consul::Agent;
    use support::{eventually, http};
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
    use tokio::process::{Child, ChildStdin, ChildStdout, Command};

    use crate::consul::{LONG, client, go};

    /// The two clients, which make the same calls.
    struct Twins<'a> {
        client: &'a Client,
        child: Child,
        input: ChildStdin,
        lines: Lines<BufReader<ChildStdout>>,
    }

    /// What one of them was told, or what was wrong.
    type Told = Result<Value, String>;

    impl<'a> Twins<'a> {
        fn start(agent: &Agent, program: &Path, client: &'a Client) -> Self {
            let mut child = Command::new(program)
                .args([agent.http_url().as_str(), "calls"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .expect("it starts");
            let output = child.stdout.take().expect("its output");
            Self {
                client,
                input: child.stdin.take().expect("its input"),
                child,
                lines: BufReader::new(output).lines(),
            }
        }

        async fn theirs(&mut self, call: &Value) -> Told {
            let line = format!("{call}\n");
            self.input.write_all(line.as_bytes()).await.unwrap();
            let line = tokio::time::timeout(LONG, self.lines.next_line()).await;
            let line = line.expect("it answers").unwrap().expect("it goes on");
            let answer: Value = serde_json::from_str(&line).unwrap();
            match answer["Wrong"].as_str() {
                Some(wrong) => Err(wrong.to_owned()),
                None => Ok(answer["Said"].clone()),
            }
        }

        async fn ours(&self, call: &Value) -> Told {
            called(self.client, call)
                .await
                .map_err(|err| err.to_string())
        }

        /// What both are told about what is there: the same.
        async fn same(&mut self, call: &Value) -> Value {
            let theirs = self.theirs(call).await.unwrap();
            let ours = self.ours(call).await.unwrap();
            assert_eq!(theirs, ours, "{call}");
            ours
        }

        /// Both are refused, in the same words of Consul.
        async fn refused(&mut self, call: &Value, words: &str) {
            let theirs = self.theirs(call).await.expect_err(words);
            assert!(theirs.contains(words), "{call}: {theirs}");
            let ours = self.ours(call).await.expect_err(words);
            assert!(ours.contains(words), "{call}: {ours}");
        }

        async fn end(mut self) {
            drop(self.input);
            let status = tokio::time::timeout(LONG, self.child.wait()).await;
            assert!(status.expect("it ends").unwrap().success());
        }
    }

    fn text<'a>(call: &'a Value, member: &str) -> &'a str {
        call[member].as_str().unwrap_or_default()
    }

    fn strings(value: &Value) -> impl Iterator<Item = &str> {
        value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
    }

    /// Makes a call with lictor, and tells of it as `tests/go/calls.go` does.
    async fn called(client: &Client, call: &Value) -> Result<Value, Box<dyn Error>> {
        let (name, id) = (text(call, "Name"), QueryId::new(text(call, "ID")));
        Ok(match text(call, "Call") {
            "fire" => {
                let mut fire = client.event().fire(name, text(call, "Payload").to_owned());
                for (member, pattern) in [("Node", 0), ("Service", 1), ("Tag", 2)] {
                    let given = text(call, member);
                    fire = match (given, pattern) {
                        ("", _) => fire,
                        (_, 0) => fire.node(given),
                        (_, 1) => fire.service(given),
                        _ => fire.tag(given),
                    };
                }
                json!(fire.await?.id())
            }
            "events" => {
                let events = client.event().list().name(name).await?;
                let filter = |filter: Option<&str>| filter.unwrap_or_default().to_owned();
                let told = events.iter().map(|event| {
                    json!([
                        event.id(),
                        event.name().as_str(),
                        String::from_utf8_lossy(event.payload()),
                        filter(event.node_filter()),
                        filter(event.service_filter()),
                        filter(event.tag_filter()),
                        event.time()
                    ])
                });
                told.collect()
            }
            "create" => json!(
                client
                    .query()
                    .create(&query(&call["Query"]))
                    .await?
                    .as_str()
            ),
            "update" => {
                client.query().update(&id?, &query(&call["Query"])).await?;
                Value::Null
            }
            "get" => {
                let found = client.query().read(&id?).await?.into_value();
                let found = found.ok_or("Query not found")?;
                json!([stored(&found)])
            }
            "list" => {
                let all = client.query().list().await?;
                all.iter().map(|query| stored(query)).collect()
            }
            "execute" => {
                let found = client.query().execute(name).await?;
                let nodes = found.nodes().iter();
                let mut nodes: Vec<&str> = nodes.map(|it| it.service().id().as_str()).collect();
                nodes.sort_unstable();
                json!([
                    found.service().as_str(),
                    found.datacenter().as_str(),
                    found.failovers(),
                    nodes
                ])
            }
            _ => {
                client.query().delete(&id?).await?;
                Value::Null
            }
        })
    }

    fn query(wanted: &Value) -> PreparedQuery {
        let mut query = PreparedQuery::new(text(wanted, "Service")).name(text(wanted, "Name"));
        for tag in strings(&wanted["Tags"]) {
            query = query.tag(tag);
        }
        for datacenter in strings(&wanted["Datacenters"]) {
            query = query.failover_to(datacenter);
        }
        for (key, value) in wanted["NodeMeta"].as_object().into_iter().flatten() {
            query = query.node_meta(key, value.as_str().expect("a text"));
        }
        for (key, value) in wanted["ServiceMeta"].as_object().into_iter().flatten() {
            query = query.service_meta(key, value.as_str().expect("a text"));
        }
        if let Some(nearest) = wanted["Nearest"].as_u64() {
            query = query.failover_to_nearest(nearest.try_into().unwrap());
        }
        if let Some(near) = wanted["Near"].as_str() {
            query = query.near(near);
        }
        if wanted["TTL"].is_string() {
            query = query.dns_ttl(Duration::from_secs(10));
        }
        if let Some(session) = wanted["Session"].as_str() {
            query = query.session(&SessionId::new(session).unwrap());
        }
        if wanted["OnlyPassing"] == true {
            query = query.only_passing();
        }
        if wanted["Template"] == true {
            query = query.template();
        }
        query
    }

    fn stored(query: &StoredQuery) -> Value {
        json!([
            query.id().as_str(),
            query.name().unwrap_or_default(),
            query.session().unwrap_or_default(),
            query.service().as_str(),
            query.is_only_passing(),
            query.tags(),
            query.nearest(),
            query
                .datacenters()
                .iter()
                .map(|it| it.as_str())
                .collect::<Vec<_>>(),
        ])
    }

    #[tokio::test]
    async fn events_are_the_same_to_the_go_client_and_to_lictor() {
        let Some(program) = go().await else { return };
        let agent = Agent::start().await;
        let client = client(&agent);
        let service = ServiceDefinition::new("web").tag("blue");
        client.agent().register(&service).await.unwrap();
        let mut twins = Twins::start(&agent, program, &client);
        let listed = json!({"Call": "events", "Name": "deploy"});
        assert_eq!(twins.same(&listed).await, json!([]));
        let mut fired = Vec::new();
        for call in [
            json!({"Call": "fire", "Name": "deploy"}),
            json!({"Call": "fire", "Name": "deploy", "Payload": "v2 \"ä\""}),
            json!({"Call": "fire", "Name": "deploy", "Service": "web", "Tag": "blue"}),
            json!({"Call": "fire", "Name": "deploy", "Service": "web", "Payload": "x"}),
        ] {
            for go in [true, false] {
                let answer = match go {
                    true => twins.theirs(&call).await,
                    false => twins.ours(&call).await,
                };
                fired.push(answer.unwrap());
                // One after the other, so that both are told them in this order.
                eventually(LONG, async || {
                    let events = client.event().list().name("deploy").await.unwrap();
                    events.len() == fired.len()
                })
                .await;
            }
        }
        let events = twins.same(&listed).await;
        let events = events.as_array().unwrap();
        let ids: Vec<&Value> = events.iter().map(|event| &event[0]).collect();
        assert_eq!(ids, fired.iter().collect::<Vec<_>>());
        // What one fired differs from what the other fired in its ID and its time alone.
        for pair in events.chunks(2) {
            assert_eq!(
                pair[0].as_array().unwrap()[1..6],
                pair[1].as_array().unwrap()[1..6]
            );
            assert!(pair[0][6].as_u64() < pair[1][6].as_u64());
        }
        let tagged = json!({"Call": "fire", "Name": "deploy", "Tag": "blue"});
        twins
            .refused(&tagged, "tag filter without service filter")
            .await;
        let other = json!({"Call": "events", "Name": "other"});
        assert_eq!(twins.same(&other).await, json!([]));
        twins.end().await;
    }

    #[tokio::test]
    async fn prepared_queries_are_the_same_to_the_go_client_and_to_lictor() {
        let Some(program) = go().await else { return };
        let agent = Agent::start().await;
        let client = client(&agent);
        for (id, tag) in [("web-1", "blue"), ("web-2", "red")] {
            let service = ServiceDefinition::new("web").id(id).tag(tag).meta("v", "2");
            client.agent().register(&service).await.unwrap();
        }
        let session = client.session().create(&NewSession::new()).await.unwrap();
        let mut twins = Twins::start(&agent, program, &client);
        let list = json!({"Call": "list"});
        assert_eq!(twins.same(&list).await, json!([]));
        let kept = async |id: &Value| {
            let url = format!("{}/v1/query/{}", agent.http_url(), id.as_str().unwrap());
            let mut kept = http::get(&url).await.unwrap().json()[0].take();
            for own in ["ID", "Name", "CreateIndex", "ModifyIndex"] {
                kept[own].take();
            }
            kept
        };
        let named = |name: &str, definition: &Value| {
            let mut definition = definition.clone();
            definition["Name"] = name.into();
            definition
        };
        let all = json!({
            "Service": "web", "OnlyPassing": true, "Tags": ["!red"], "NodeMeta": {"consul-network-segment": ""},
            "ServiceMeta": {"v": "2"}, "Near": "_agent", "Nearest": 2, "Datacenters": ["dc8", "dc9"],
            "TTL": "10s", "Session": session.as_str(),
        });
        for (stem, definition, expected) in [
            (
                "plain",
                json!({"Service": "web"}),
                json!(["web-1", "web-2"]),
            ),
            ("all", all, json!(["web-1"])),
            (
                "template",
                json!({"Service": "web", "Template": true}),
                json!(["web-1", "web-2"]),
            ),
        ] {
            let names = [format!("{stem}-theirs"), format!("{stem}-ours")];
            let [theirs, ours] = names
                .each_ref()
                .map(|name| json!({"Call": "create", "Query": named(name, &definition)}));
            let ids = [
                twins.theirs(&theirs).await.unwrap(),
                twins.ours(&ours).await.unwrap(),
            ];
            // Both say the same to Consul, also what only it makes something of.
            assert_eq!(kept(&ids[0]).await, kept(&ids[1]).await, "{stem}");
            twins
                .refused(&theirs, "aliases an existing query name")
                .await;
            for (id, name) in ids.iter().zip(&names) {
                let got = twins.same(&json!({"Call": "get", "ID": id})).await;
                assert_eq!((&got[0][0], &got[0][1]), (id, &json!(name)));
                let execute = json!({"Call": "execute", "Name": name});
                let found = twins.same(&execute).await;
                assert_eq!(found, json!(["web", "dc1", 0, expected]));
            }
            assert_eq!(twins.same(&list).await.as_array().unwrap().len(), 2);

            // Each changes what the other has created.
            let changed = json!({"Service": "consul", "Nearest": 1});
            let update = |id: &Value, name: &str| json!({"Call": "update", "ID": id, "Query": named(name, &changed)});
            twins.theirs(&update(&ids[1], &names[1])).await.unwrap();
            twins.ours(&update(&ids[0], &names[0])).await.unwrap();
            assert_eq!(kept(&ids[0]).await, kept(&ids[1]).await, "{stem}");
            for name in &names {
                let found = twins.same(&json!({"Call": "execute", "Name": name})).await;
                assert_eq!(found, json!(["consul", "dc1", 0, ["consul"]]));
            }
            let delete = |id: &Value| json!({"Call": "delete", "ID": id});
            twins.theirs(&delete(&ids[1])).await.unwrap();
            twins.ours(&delete(&ids[0])).await.unwrap();
            for (id, name) in ids.iter().zip(&names) {
                twins
                    .refused(&delete(id), "Cannot modify non-existent prepared query")
                    .await;
                twins
                    .refused(&json!({"Call": "get", "ID": id}), "Query not found")
                    .await;
                twins
                    .refused(&json!({"Call": "execute", "Name": name}), "Query not found")
                    .await;
            }
        }
        let unbound = json!({
            "Service": "web", "Name": "unbound", "Session": "8f246b77-f3e1-ff88-5b48-8ec93abf3e05",
        });
        let unbound = json!({"Call": "create", "Query": unbound});
        twins.refused(&unbound, "invalid session").await;
        assert_eq!(twins.same(&list).await, json!([]));
        twins.end().await;
    }
}
