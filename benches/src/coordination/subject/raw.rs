//! The floor under all: one hyper connection each, no pool, and of the answers two numbers only.

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Subject, WAIT, Written, session, transaction};
use crate::Outcome;

/// See the module.
pub(in crate::coordination) struct Raw {
    connection: Option<Connection>,
    host: String,
    session: String,
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    _task: JoinSet<()>,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Raw {
    async fn exchange(&mut self, method: &str, path: &str, body: Vec<u8>) -> Outcome<Answer> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", &self.host)
            .body(Full::new(Bytes::from(body)))?;
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(open(&self.host).await?),
        };
        connection.sender.ready().await?;
        let answer = connection.sender.send_request(request).await?;
        let (head, body) = answer.into_parts();
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body: body.collect().await?.to_bytes(),
        })
    }
}

async fn open(host: &str) -> Outcome<Connection> {
    let stream = TcpStream::connect(host).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    let mut task = JoinSet::new();
    task.spawn(async {
        // Its error is the sender's error too.
        connection.await.ok();
    });
    Ok(Connection {
        sender,
        _task: task,
    })
}

/// What stands behind the last field of this name, up to the comma, quote or brace.
fn field<'a>(body: &'a [u8], name: &str) -> Option<&'a str> {
    let body = std::str::from_utf8(body).ok()?;
    let (_, rest) = body.rsplit_once(name)?;
    let end = rest.find([',', '"', '}'])?;
    rest.get(..end)
}

impl Subject for Raw {
    type Guard = Written;

    async fn connect(address: &str) -> Outcome<Self> {
        let host = address
            .strip_prefix("http://")
            .ok_or("not an HTTP address")?;
        let mut raw = Self {
            connection: None,
            host: host.to_owned(),
            session: String::new(),
        };
        let body = session().into_bytes();
        let created = raw.exchange("PUT", "/v1/session/create", body).await?;
        raw.session = field(&created.body, "\"ID\":\"")
            .ok_or("no session")?
            .to_owned();
        Ok(raw)
    }

    fn another(&self) -> Self {
        Self {
            connection: None,
            host: self.host.clone(),
            session: self.session.clone(),
        }
    }

    async fn lock(&mut self, key: &str) -> Outcome<Written> {
        let mut path = format!("/v1/kv/{key}");
        loop {
            let seen = self.exchange("GET", &path, Vec::new()).await?;
            if field(&seen.body, "\"Session\":\"").is_some() {
                let index = seen.headers.get("X-Consul-Index").ok_or("no index")?;
                path = format!("/v1/kv/{key}?index={}&wait={WAIT}", index.to_str()?);
                continue;
            }
            let modified = match seen.status {
                StatusCode::NOT_FOUND => 0,
                _ => field(&seen.body, "\"ModifyIndex\":")
                    .ok_or("no index")?
                    .parse()?,
            };
            let body = transaction("lock", key, modified, &self.session)?;
            let answer = self.exchange("PUT", "/v1/txn", body).await?;
            if answer.status.is_success() {
                let index = field(&answer.body, "\"ModifyIndex\":").ok_or("no index")?;
                return Ok(Written {
                    key: key.to_owned(),
                    index: index.parse()?,
                });
            }
            path = format!("/v1/kv/{key}");
        }
    }

    async fn unlock(&mut self, guard: Written) -> Outcome<()> {
        let body = transaction("unlock", &guard.key, guard.index, &self.session)?;
        let answer = self.exchange("PUT", "/v1/txn", body).await?;
        match answer.status.is_success() {
            true => Ok(()),
            false => Err("not unlocked".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_field_of_a_name_is_found() {
        let body = br#"[{"Key":"a","Session":"s-1","ModifyIndex":11},{"ModifyIndex":12}]"#;
        assert_eq!(field(body, "\"ModifyIndex\":"), Some("12"));
        assert_eq!(field(body, "\"Session\":\""), Some("s-1"));
        assert_eq!(field(body, "\"Flags\":"), None);
    }
}
