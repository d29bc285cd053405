//! The crate consulrs 0.1.0.
//!
//! It has no lock. This is one of its calls for sessions and keys, as Consul's guide has it: a
//! blocking read, and a write with `?acquire` or `?release`.

use std::sync::Arc;

use consulrs::api::features::Blocking;
use consulrs::api::kv::common::KVPair;
use consulrs::api::kv::requests::{ReadKeyRequest, SetKeyRequest};
use consulrs::api::session::requests::CreateSessionRequest;
use consulrs::api::{ApiResponse, Features};
use consulrs::client::{ConsulClient, ConsulClientSettingsBuilder};
use consulrs::error::ClientError;

use super::{FLAGS, Subject, TTL, WAIT};
use crate::Outcome;

/// See the module.
pub(in crate::coordination) struct Consulrs {
    client: Arc<ConsulClient>,
    session: Arc<str>,
}

impl Consulrs {
    async fn write(&self, key: &str, deed: impl FnOnce(&mut Deed, &str)) -> Outcome<bool> {
        let mut request = SetKeyRequest::builder();
        request.flags(FLAGS);
        deed(&mut request, &self.session);
        let written = consulrs::kv::set(&*self.client, key, b"held", Some(&mut request)).await?;
        Ok(written.response)
    }
}

type Deed = consulrs::api::kv::requests::SetKeyRequestBuilder;

impl Subject for Consulrs {
    type Guard = String;

    async fn connect(address: &str) -> Outcome<Self> {
        let settings = ConsulClientSettingsBuilder::default()
            .address(address)
            .build()
            .map_err(|error| error.to_string())?;
        let client = ConsulClient::new(settings)?;
        let mut request = CreateSessionRequest::builder();
        request
            .ttl(format!("{}s", TTL.as_secs()))
            .lock_delay("10s")
            .node_checks(Vec::<String>::new());
        let created = consulrs::session::create(&client, Some(&mut request)).await?;
        Ok(Self {
            client: Arc::new(client),
            session: created.response.id.into(),
        })
    }

    fn another(&self) -> Self {
        Self {
            client: Arc::clone(&self.client),
            session: Arc::clone(&self.session),
        }
    }

    async fn lock(&mut self, key: &str) -> Outcome<String> {
        let mut seen = None;
        loop {
            let mut request = ReadKeyRequest::builder();
            if let Some(index) = seen {
                let blocking = Blocking {
                    index,
                    wait: Some(WAIT.to_owned()),
                };
                let features = Features::builder().blocking(blocking).build();
                request.features(features.map_err(|error| error.to_string())?);
            }
            let answer = consulrs::kv::read(&*self.client, key, Some(&mut request)).await;
            if let Some(index) = taken(answer)? {
                seen = Some(index);
                continue;
            }
            let acquire = |deed: &mut Deed, session: &str| {
                deed.acquire(session);
            };
            if self.write(key, acquire).await? {
                return Ok(key.to_owned());
            }
            seen = None;
        }
    }

    async fn unlock(&mut self, key: String) -> Outcome<()> {
        let release = |deed: &mut Deed, session: &str| {
            deed.release(session);
        };
        match self.write(&key, release).await? {
            true => Ok(()),
            false => Err("not unlocked".into()),
        }
    }
}

/// The index to wait from, if somebody holds the key.
fn taken(answer: Result<ApiResponse<Vec<KVPair>>, ClientError>) -> Outcome<Option<u64>> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(ClientError::APIError { code: 404, .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let pair = answer.response.into_iter().next();
    if pair.is_none_or(|pair| pair.session.is_none()) {
        return Ok(None);
    }
    let index = answer.index.ok_or("an answer without index")?;
    Ok(Some(index.parse()?))
}
