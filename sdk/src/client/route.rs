//! Which address of this machine the agent sees.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{UdpSocket, lookup_host};

use super::Client;
use crate::error::{Error, ErrorKind, Result};

impl Client {
    /// The address of this machine on the route to the agent, for a service to advertise.
    ///
    /// A container that has an address of its own is not reached at its agent's node: let its
    /// services [advertise](crate::environment::Environment::advertise) this one. `None` if the
    /// agent is reached by a unix socket or by loopback: then the service is on the agent's node,
    /// whose address it has without saying so.
    ///
    /// Nothing is sent: the kernel is asked which way a datagram would take.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Connect`] if the name of the agent's host cannot be looked up or no route leads
    /// there, [`ErrorKind::NoRuntime`] outside of a Tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn local_ip(&self) -> Result<Option<IpAddr>> {
        let address = &self.shared.address;
        if address.socket().is_some() {
            return Ok(None);
        }
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(Error::new(ErrorKind::NoRuntime)
                .context("a name is looked up by a task: call this within a runtime"));
        }
        let (host, port) = (address.host(), address.port());
        let failed = |err: std::io::Error| {
            Error::new(ErrorKind::Connect)
                .context(format!("the route to the agent at {host}:{port}"))
                .caused_by(err)
        };
        let mut last = None;
        for agent in lookup_host((host, port)).await.map_err(failed)? {
            match towards(agent).await {
                Ok(ip) => return Ok(Some(ip).filter(|ip| !ip.is_loopback())),
                Err(err) => last = Some(err),
            }
        }
        Err(failed(last.unwrap_or_else(|| {
            std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address")
        })))
    }
}

async fn towards(agent: SocketAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = match agent {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(agent).await?;
    Ok(socket.local_addr()?.ip().to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn local_ip(address: &str) -> Result<Option<IpAddr>> {
        let client = Client::builder().address(address).build()?;
        client.local_ip().await
    }

    #[tokio::test]
    async fn an_agent_on_this_machine_needs_no_address() {
        for address in [
            "127.0.0.1:8500",
            "unix:///run/consul.sock",
            "http://127.0.0.2",
        ] {
            assert_eq!(local_ip(address).await.unwrap(), None, "{address}");
        }
    }

    #[tokio::test]
    async fn the_route_tells_the_address() {
        // An address of this machine that is not loopback, if it has one: the route to it is local.
        let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
        let out = socket.connect("192.0.2.1:9").await;
        let (Ok(()), Ok(own)) = (out, socket.local_addr()) else {
            let error = local_ip("192.0.2.1:8500").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Connect);
            return;
        };
        assert_eq!(local_ip("192.0.2.1:8500").await.unwrap(), Some(own.ip()));
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_told() {
        let error = local_ip("agent.invalid:8500").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connect);
        assert!(error.to_string().contains("agent.invalid:8500"), "{error}");
    }
}
