//! The servers' own state: `/v1/status`.

use super::endpoint::Answered;
use super::{Endpoint, Read};
use crate::client::Client;
use crate::error::Result;
use crate::proto::query::Target;

impl Client {
    /// Leader and peers.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            client: self.clone(),
        }
    }
}

/// Calls about the servers' own state.
///
/// Neither needs a token. Of the options of a [`Read`] only datacenter, token and time-out matter.
#[derive(Clone, Debug)]
pub struct Status {
    client: Client,
}

impl Status {
    /// The address of the leader as `ip:port`; `None` while there is none.
    #[doc(alias = "GET /v1/status/leader")]
    pub fn leader(&self) -> Read<Leader> {
        Read::new(&self.client, Target::new("/v1/status/leader"), Leader(()))
    }

    /// The addresses of all servers that take part in elections, as `ip:port`.
    #[doc(alias = "GET /v1/status/peers")]
    pub fn peers(&self) -> Read<Peers> {
        Read::new(&self.client, Target::new("/v1/status/peers"), Peers(()))
    }
}

/// The leader's address: [`Status::leader`].
#[derive(Clone, Debug)]
pub struct Leader(());

impl Endpoint for Leader {
    type Output = Option<String>;

    fn interpret(&self, answer: Answered) -> Result<Self::Output> {
        let address: String = answer.good()?.json()?;
        // Consul answers with an empty text while it has no leader.
        Ok(Some(address).filter(|address| !address.is_empty()))
    }
}

/// The servers' addresses: [`Status::peers`].
#[derive(Clone, Debug)]
pub struct Peers(());

impl Endpoint for Peers {
    type Output = Vec<String>;

    fn interpret(&self, answer: Answered) -> Result<Self::Output> {
        answer.good()?.json()
    }
}
