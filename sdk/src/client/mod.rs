//! The client: where the agent is, who asks, and what every request has in common.
//!
//! A [`Client`] knows no endpoint. The calls stand with what they return: `client.kv()` in
//! [`api::kv`](crate::api::kv), `client.health()` in [`api::health`](crate::api::health), and so on.

mod address;
mod builder;
mod env;
mod request;
mod route;
mod slots;
mod token;

pub use builder::Builder;
pub(crate) use request::{Call, Raw};

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use crate::error::Result;
use crate::ident::{Datacenter, Token};
use crate::transport::Transport;

use address::Address;
use slots::Slots;
use token::TokenSource;

/// A cheap handle to a Consul agent.
///
/// Clone it freely: copies share connections and watches. A client starts no task; what it hands
/// out (a [`Watch`](crate::watch::Watch), a [`Registration`](crate::registration::Registration))
/// may, and says so. Dropping a client closes nothing that still uses it.
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> lictor::Result<()> {
/// let client = lictor::Client::from_env()?;
/// client.kv().put("greeting", "hello").await?;
/// let pair = client.kv().get("greeting").await?.into_value();
/// assert_eq!(pair.unwrap().value(), b"hello");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    scope: Arc<Scope>,
}

/// What all copies have in common.
struct Shared {
    transport: Transport,
    address: Address,
    basic_auth: Option<HeaderValue>,
    response_limit: usize,
    slots: Slots,
}

/// What a copy may have of its own.
#[derive(Clone)]
struct Scope {
    token: TokenSource,
    datacenter: Option<Datacenter>,
    namespace: Option<Arc<str>>,
    partition: Option<Arc<str>>,
    timeout: Duration,
}

impl Client {
    /// A client set up by the environment: see [`Builder::from_env`] for every variable.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) naming the variable, what is wrong with it and what would be right.
    pub fn from_env() -> Result<Self> {
        Builder::from_env()?.build()
    }

    /// Settings for a client of the agent at `http://127.0.0.1:8500`, whatever the environment says.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// A copy that asks with this token.
    #[must_use]
    pub fn with_token(&self, token: Token) -> Self {
        self.with(|scope| scope.token = TokenSource::Fixed(token))
    }

    /// A copy that asks without any token, as the agent's default token allows.
    #[must_use]
    pub fn without_token(&self) -> Self {
        self.with(|scope| scope.token = TokenSource::None)
    }

    /// A copy whose requests are answered by this datacenter.
    #[must_use]
    pub fn with_datacenter(&self, datacenter: Datacenter) -> Self {
        self.with(|scope| scope.datacenter = Some(datacenter))
    }

    /// A copy whose requests end after `timeout`, unless they say otherwise themselves.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        self.with(|scope| scope.timeout = timeout)
    }

    /// The address as it was given, for people to read.
    #[must_use]
    pub fn address(&self) -> String {
        self.shared.address.to_string()
    }

    fn with(&self, change: impl FnOnce(&mut Scope)) -> Self {
        let mut scope = Scope::clone(&self.scope);
        change(&mut scope);
        Self {
            shared: Arc::clone(&self.shared),
            scope: Arc::new(scope),
        }
    }

    /// The token that the next request will bear.
    pub(crate) fn current_token(&self) -> Option<Token> {
        self.scope.token.current()
    }

    /// The datacenter that is asked, if not the agent's own.
    pub(crate) fn datacenter(&self) -> Option<&Datacenter> {
        self.scope.datacenter.as_ref()
    }

    /// Namespace and admin partition, where a request must name them in its body.
    pub(crate) fn tenancy(&self) -> (Option<&str>, Option<&str>) {
        (
            self.scope.namespace.as_deref(),
            self.scope.partition.as_deref(),
        )
    }

    /// The one living `T` that stands under `key` in this process, or a new one.
    ///
    /// The key must tell all that makes two of them different; who asks (token, datacenter) is
    /// added here. One that is held on to but no longer `lives` is not shared.
    pub(crate) fn shared_slot<T: Send + Sync + 'static>(
        &self,
        key: &str,
        lives: impl Fn(&T) -> bool,
        make: impl FnOnce() -> Result<Arc<T>>,
    ) -> Result<Arc<T>> {
        let scope = Some(&*self.scope);
        self.shared.slots.enter(scope, key, lives, make)
    }

    /// The one living `T` of all copies of this client, whoever they ask for, or a new one.
    pub(crate) fn shared_by_all<T: Send + Sync + 'static>(
        &self,
        key: &str,
        make: impl Fn() -> T,
    ) -> Arc<T> {
        let made = || Ok(Arc::new(make()));
        let slot = self.shared.slots.enter(None, key, |_: &T| true, made);
        // What is made cannot fail.
        slot.unwrap_or_else(|_| Arc::new(make()))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("address", &self.shared.address)
            .field("token", &self.scope.token)
            .field("datacenter", &self.scope.datacenter)
            .field("namespace", &self.scope.namespace)
            .field("partition", &self.scope.partition)
            .field("timeout", &self.scope.timeout)
            .finish_non_exhaustive()
    }
}
