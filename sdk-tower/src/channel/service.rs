//! The shortest way to a channel: a client and the name of a service.

use std::fmt;

use lictor::Client;

use super::builder::is_host;
use super::{Builder, Channel};
use crate::about::{Wanted, watched};
use crate::source::HealthSource;

/// A client whose services can be called; made by [`Channel::builder`].
#[must_use = "a builder does nothing until it is built"]
#[derive(Clone)]
pub struct ClientBuilder {
    client: Client,
}

impl Channel {
    /// Begins a channel to a service that is found through this client.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(client: lictor::Client) -> Result<(), lictor_tower::Error> {
    /// use lictor_tower::Channel;
    ///
    /// let channel = Channel::builder(client).service("web").build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(client: Client) -> ClientBuilder {
        ClientBuilder { client }
    }
}

impl ClientBuilder {
    /// Calls the instances of this service, as its health is known to Consul.
    ///
    /// All instances that are passing or in warning are called, each by its weight. Requests that
    /// name no host name the service. To choose by tag, datacenter or filter, or to leave warning
    /// instances out, hand a [`HealthSource`] of your own watch to [`Channel::from_source`].
    ///
    /// A name that Consul cannot be asked for, such as an empty one, is told when the channel is built.
    /// One that no URL takes is known to Consul only: requests name the address of their endpoint then.
    pub fn service(self, name: impl Into<String>) -> Builder<HealthSource> {
        let name = name.into();
        let (source, about) = watched(&self.client, &Wanted::from(name.clone()));
        let builder = Builder::new(source).about(about).observe_source();
        // Consul takes names that no URL takes; such a service is then called by its address.
        if is_host(&name) {
            builder.host(name)
        } else {
            builder
        }
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("client", &self.client)
            .finish()
    }
}
