//! Transactions, as their bodies are read and their results written.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::Call;
use super::catalog::definition_members;
use super::decode::{Fields, Undecodable, value};
use super::definition::check_weights;
use super::query::{Consistency, Options};
use super::reply::{self, Refusal, Reply};
use super::views::{CheckView, KeyView, NodeServiceView, NodeView};
use crate::embedded::state::Leader;
use crate::embedded::state::model::{Check, Node, Service, Weights, status};
use crate::embedded::state::session::Named;
use crate::embedded::state::txn::{Failure, Found, KvOp, KvVerb, Op, Verb};

/// More operations in one transaction are refused; 128 from Consul 1.14 on.
const MAX_OPS: usize = 64;
/// `txn_max_req_len`, 512 KiB of the body as it is sent.
const MAX_BODY: u64 = 512 * 1024;

impl Call {
    pub(super) async fn txn(&self) -> Result<Reply, Refusal> {
        let ops = self.txn_ops()?;
        let is_write = ops.iter().any(Op::is_write);
        // Only reads have options.
        let options = if is_write {
            None
        } else {
            Some(Options::parse(&self.params, &self.headers)?)
        };
        self.check_datacenter(self.params.value("dc"))?;
        if options.is_none_or(|it| it.consistency != Consistency::Stale) {
            self.await_leader().await?;
        }
        let now = Self::now();
        let mut locked = self.core.lock();
        let done = locked.state.transact(ops, now);
        let meta = (!is_write).then(|| Meta::new(locked.state.leader, now));
        let datacenter = &locked.state.identity.datacenter;
        let (found, failures) = match &done {
            Ok(found) => (Some(found), None),
            Err(failures) => (None, Some(failures)),
        };
        let answer = Answer {
            results: found.map(|found| {
                let views = found.iter().map(|one| ResultView::new(one, datacenter));
                views.collect()
            }),
            errors: failures.map(|failures| failures.iter().map(FailureView::new).collect()),
            meta: meta.as_ref(),
        };
        let mut reply = reply::json(&answer, self.layout());
        if done.is_err() {
            *reply.status_mut() = StatusCode::CONFLICT;
        }
        if let Some(meta) = meta {
            let contact = (meta.last_contact / NANOS_PER_MILLI).to_string();
            reply::set(&mut reply, "x-consul-lastcontact", &contact);
            let known = meta.known_leader.to_string();
            reply::set(&mut reply, "x-consul-knownleader", &known);
        }
        Ok(reply)
    }

    fn txn_ops(&self) -> Result<Vec<Op>, Refusal> {
        let too_large = |told: String| {
            let text = format!(
                "Request body{told} too large, max size: {MAX_BODY} bytes. See \
                 https://www.consul.io/docs/agent/options.html#txn_max_req_len."
            );
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, text)
        };
        if let Some(length) = self.announced_length().filter(|length| *length > MAX_BODY) {
            return Err(too_large(format!("({length} bytes)")));
        }
        if self.body.len() as u64 > MAX_BODY {
            return Err(too_large(String::new()));
        }
        let undecodable =
            |Undecodable(text)| Refusal::bad_request(format!("Failed to parse body: {text}"));
        let (count, ops) = decoded(&self.body).map_err(undecodable)?;
        if count > MAX_OPS {
            return Err(Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("Transaction contains too many operations ({count} > {MAX_OPS})"),
            ));
        }
        Ok(ops)
    }
}

/// The operations of a body, and how many there are with those that ask for nothing.
fn decoded(body: &[u8]) -> Result<(usize, Vec<Op>), Undecodable> {
    let items = match value(body)? {
        Value::Array(items) => items,
        Value::Null => Vec::new(),
        other => return Err(Undecodable::value(&other, "api.TxnOps")),
    };
    let count = items.len();
    let mut ops = Vec::new();
    for item in items {
        let mut fields = Fields::of_value(item, "api.TxnOp", "TxnOp")?;
        let kv = fields.object_as(&["KV"], "api.KVTxnOp", "KVTxnOp.KV")?;
        let node = fields.object_as(&["Node"], "api.NodeTxnOp", "NodeTxnOp.Node")?;
        let service = fields.object_as(&["Service"], "api.ServiceTxnOp", "ServiceTxnOp.Service")?;
        let check = fields.object_as(&["Check"], "api.CheckTxnOp", "CheckTxnOp.Check")?;
        fields.finish()?;
        let kv = kv.map(kv_op).transpose()?;
        let node = node.map(node_op).transpose()?;
        let service = service.map(service_op).transpose()?;
        let check = check.map(check_op).transpose()?;
        // Of several the first counts.
        ops.extend(kv.or(node).or(service).or(check));
    }
    Ok((count, ops))
}

fn kv_op(mut fields: Fields) -> Result<Op, Undecodable> {
    let op = KvOp {
        verb: kv_verb(fields.string_as(&["Verb"], "api.KVOp")?),
        key: fields.string(&["Key"])?,
        value: fields.take(&["Value"]).map_or_else(
            || Ok(Bytes::new()),
            |given| match given {
                Value::String(text) => decode_base64(&text),
                other => Err(fields.mismatch(&other, &["Value"], "[]uint8")),
            },
        )?,
        flags: fields.unsigned(&["Flags"])?,
        index: fields.unsigned(&["Index"])?,
        session: Named::parse(&fields.string(&["Session"])?),
    };
    fields.string(&["Namespace"])?;
    fields.finish()?;
    Ok(Op::Kv(op))
}

fn kv_verb(text: String) -> KvVerb {
    match text.as_str() {
        "set" => KvVerb::Set,
        "cas" => KvVerb::Cas,
        "lock" => KvVerb::Lock,
        "unlock" => KvVerb::Unlock,
        "get" => KvVerb::Get,
        "get-tree" => KvVerb::GetTree,
        "check-index" => KvVerb::CheckIndex,
        "check-session" => KvVerb::CheckSession,
        "check-not-exists" => KvVerb::CheckNotExists,
        "delete" => KvVerb::Delete,
        "delete-cas" => KvVerb::DeleteCas,
        "delete-tree" => KvVerb::DeleteTree,
        _ => KvVerb::Unknown(text),
    }
}

fn verb(text: String) -> Verb {
    match text.as_str() {
        "get" => Verb::Get,
        "set" => Verb::Set,
        "cas" => Verb::Cas,
        "delete" => Verb::Delete,
        "delete-cas" => Verb::DeleteCas,
        _ => Verb::Unknown(text),
    }
}

fn node_op(mut fields: Fields) -> Result<Op, Undecodable> {
    let verb = verb(fields.string_as(&["Verb"], "api.NodeOp")?);
    let node = fields.object_as(&["Node"], "api.Node", "Node.Node.Node")?;
    fields.finish()?;
    let mut fields = node.unwrap_or_default();
    let node = Node {
        id: fields.string(&["ID"])?,
        name: fields.string(&["Node"])?,
        address: fields.string(&["Address"])?,
        tagged_addresses: fields.pairs(&["TaggedAddresses"])?,
        meta: fields.pairs(&["Meta"])?.filter(|meta| !meta.is_empty()),
        modified: fields.unsigned(&["ModifyIndex"])?,
        ..Node::default()
    };
    fields.string(&["Datacenter"])?;
    fields.unsigned(&["CreateIndex"])?;
    fields.finish()?;
    Ok(Op::Node(verb, node))
}

/// Of a service only what Consul takes over: its proxy, its kind and the addresses under other
/// names are read and forgotten.
fn service_op(mut fields: Fields) -> Result<Op, Undecodable> {
    let verb = verb(fields.string_as(&["Verb"], "api.ServiceOp")?);
    let node = fields.string(&["Node"])?;
    let service = fields.object_as(
        &["Service"],
        "api.AgentService",
        "AgentService.Service.Service",
    )?;
    fields.string(&["Namespace"])?;
    fields.finish()?;
    let mut fields = service.unwrap_or_default();
    let mut weights = Weights {
        passing: 0,
        warning: 0,
    };
    if let Some(mut given) = fields.object_as(
        &["Weights"],
        "api.AgentWeights",
        "AgentWeights.Service.Service.Weights",
    )? {
        weights.passing = given.integer(&["Passing"])?;
        weights.warning = given.integer(&["Warning"])?;
        given.finish()?;
    }
    let service = Service {
        id: fields.string(&["ID"])?,
        name: fields.string(&["Service"])?,
        tags: fields.strings(&["Tags"])?.into(),
        address: fields.string(&["Address"])?,
        meta: fields.pairs(&["Meta"])?.unwrap_or_default(),
        port: fields.integer(&["Port"])?,
        weights: if check_weights(weights).is_ok() {
            weights
        } else {
            Weights::default()
        },
        enable_tag_override: fields.boolean(&["EnableTagOverride"])?,
        modified: fields.unsigned(&["ModifyIndex"])?,
        ..Service::default()
    };
    fields.unsigned(&["CreateIndex"])?;
    for ignored in [
        "Kind",
        "TaggedAddresses",
        "ContentHash",
        "Proxy",
        "Connect",
        "Namespace",
    ] {
        fields.take(&[ignored]);
    }
    fields.finish()?;
    Ok(Op::Service(verb, node, service))
}

fn check_op(mut fields: Fields) -> Result<Op, Undecodable> {
    const DEFINITION: &str = "struct { IntervalDuration interface {}; TimeoutDuration interface \
                              {}; DeregisterCriticalServiceAfterDuration interface {}; \
                              *api.Alias }";
    let verb = verb(fields.string_as(&["Verb"], "api.CheckOp")?);
    let check = fields.object_as(&["Check"], "api.HealthCheck", "HealthCheck.Check.Check")?;
    fields.finish()?;
    let mut fields = check.unwrap_or_default();
    let definition = match fields.object(&["Definition"], DEFINITION)? {
        None => Map::new(),
        Some(mut given) => {
            // The older names win where both are there, and what is unknown is ignored.
            for name in ["Interval", "Timeout", "DeregisterCriticalServiceAfter"] {
                if given.has(&[&format!("{name}Duration")]) {
                    given.take(&[name]);
                }
            }
            definition_members(&mut given)?
        }
    };
    let check = Check {
        node: fields.string(&["Node"])?,
        id: fields.string(&["CheckID"])?,
        name: fields.string(&["Name"])?,
        status: status(&fields.string(&["Status"])?),
        notes: fields.string(&["Notes"])?,
        output: fields.string(&["Output"])?,
        service_id: fields.string(&["ServiceID"])?,
        service_name: fields.string(&["ServiceName"])?,
        service_tags: fields.strings(&["ServiceTags"])?.into(),
        definition,
        modified: fields.unsigned(&["ModifyIndex"])?,
        ..Check::default()
    };
    // The type of a check is the agent's to say.
    for ignored in ["Type", "Namespace"] {
        fields.string(&[ignored])?;
    }
    fields.unsigned(&["CreateIndex"])?;
    fields.finish()?;
    Ok(Op::Check(verb, check))
}

fn decode_base64(text: &str) -> Result<Bytes, Undecodable> {
    let packed: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    STANDARD.decode(&packed).map(Bytes::from).map_err(|_| {
        let at = misplaced(packed.as_bytes());
        Undecodable(format!("illegal base64 data at input byte {at}"))
    })
}

/// Where Go's decoder stops: at the character that is wrong, or where the last four begin when
/// there are too few.
fn misplaced(text: &[u8]) -> usize {
    for (part, four) in text.chunks(4).enumerate() {
        let start = part * 4;
        for (at, byte) in four.iter().enumerate() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' => {}
                b'=' if at == 2 && four.len() == 3 => return text.len(),
                b'=' if at == 3 || (at == 2 && four.last() == Some(&b'=')) => return start + 4,
                _ => return start + at,
            }
        }
        if four.len() < 4 {
            return start;
        }
    }
    text.len()
}

const NANOS_PER_MILLI: u64 = 1_000_000;

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Answer<'a> {
    results: Option<Vec<ResultView<'a>>>,
    errors: Option<Vec<FailureView>>,
    #[serde(flatten)]
    meta: Option<&'a Meta>,
}

/// What an answer to reads alone tells besides them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Meta {
    index: u64,
    /// In nanoseconds.
    last_contact: u64,
    known_leader: bool,
    consistency_level: &'static str,
}

impl Meta {
    fn new(leader: Leader, now: Instant) -> Self {
        let (known_leader, contact) = match leader {
            Leader::Elected => (true, 0),
            Leader::Lost { at } => {
                let nanos = now.saturating_duration_since(at).as_nanos();
                (false, u64::try_from(nanos).unwrap_or(u64::MAX))
            }
        };
        Self {
            index: 0,
            last_contact: contact,
            known_leader,
            consistency_level: "",
        }
    }
}

#[derive(Debug, Serialize)]
enum ResultView<'a> {
    #[serde(rename = "KV")]
    Key(KeyView<'a>),
    Node(NodeView<'a>),
    Service(Box<NodeServiceView<'a>>),
    Check(CheckView<'a>),
}

impl<'a> ResultView<'a> {
    fn new(found: &'a Found, datacenter: &'a str) -> Self {
        match found {
            Found::Key(key, entry) => Self::Key(KeyView::new(key, entry)),
            Found::Bare(key, entry) => Self::Key(KeyView::without_value(key, entry)),
            Found::Node(node) => Self::Node(NodeView::new(node, datacenter)),
            Found::Service(service) => {
                Self::Service(Box::new(NodeServiceView::in_transaction(service)))
            }
            Found::Check(check) => Self::Check(CheckView::in_transaction(check)),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct FailureView {
    op_index: usize,
    what: String,
}

impl FailureView {
    fn new(failure: &Failure) -> Self {
        Self {
            op_index: failure.op,
            what: failure.why.to_string(),
        }
    }
}
