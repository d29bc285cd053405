//! Which Consul an example runs on: an agent of its own, or a real one.

use std::net::SocketAddr;
use std::process::ExitCode;

use lictor::Client;
use lictor::embedded::Agent;

use crate::Result;

/// What the command line says.
#[derive(Debug, Default)]
pub struct Options {
    /// The address of a real Consul.
    pub consul: Option<String>,
    /// Whether the result is told as one line of JSON.
    pub json: bool,
    /// Whether only the usage is asked for.
    pub help: bool,
}

impl Options {
    /// Reads the arguments behind the program's name.
    ///
    /// # Errors
    ///
    /// If an argument is unknown or lacks its value.
    pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--json" => options.json = true,
                "--help" | "-h" => options.help = true,
                "--consul" => {
                    let url = args.next().filter(|url| !url.starts_with("--"));
                    let url = url.ok_or("--consul: the address is missing")?;
                    options.consul = Some(url);
                }
                other => return Err(format!("{other}: unknown argument")),
            }
        }
        Ok(options)
    }

    /// Reads the arguments of an example; where there is nothing to run, it has said why.
    ///
    /// # Errors
    ///
    /// The status to end with: after the usage that was asked for, or after a wrong argument.
    pub fn of(example: &str, args: impl Iterator<Item = String>) -> Result<Self, ExitCode> {
        let usage = format!(
            "usage: {example} [--consul URL] [--json]\n\
             without --consul and CONSUL_HTTP_ADDR it brings an agent of its own"
        );
        match Self::parse(args) {
            Ok(options) if options.help => {
                println!("{usage}");
                Err(ExitCode::SUCCESS)
            }
            Ok(options) => Ok(options),
            Err(wrong) => {
                eprintln!("{wrong}\n{usage}");
                Err(ExitCode::from(2))
            }
        }
    }
}

/// A Consul to run on.
pub struct Place {
    address: Option<String>,
    name: String,
    dns: SocketAddr,
    // Kept alive for as long as the example runs.
    _agent: Option<Agent>,
}

impl Place {
    /// The Consul of `--consul` or `CONSUL_HTTP_ADDR`, else an agent in this process.
    ///
    /// # Errors
    ///
    /// If the agent cannot be reached, or none can be started.
    pub async fn find(options: &Options) -> Result<Self> {
        let in_environment =
            std::env::var_os("CONSUL_HTTP_ADDR").is_some_and(|set| !set.is_empty());
        if options.consul.is_none() && !in_environment {
            let agent = Agent::start().await?;
            return Ok(Self {
                address: Some(agent.http_url()),
                name: "embedded".to_owned(),
                dns: agent.dns_addr(),
                _agent: Some(agent),
            });
        }
        let mut place = Self {
            address: options.consul.clone(),
            name: String::new(),
            dns: SocketAddr::from(([127, 0, 0, 1], 8600)),
            _agent: None,
        };
        let client = place.client()?;
        eprintln!("on the Consul at {}", client.address());
        let about = client.agent().about().await?;
        place.name = match about.config().version() {
            Some(version) => format!("consul {version}"),
            None => "consul".to_owned(),
        };
        // The agent itself knows best where it answers DNS queries.
        #[derive(Default, serde::Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        struct Listens {
            #[serde(rename = "DNSAddrs")]
            dns_addrs: Vec<String>,
        }
        if let Some(config) = about.debug_config() {
            let listens: Listens = config.decode()?;
            let mut tcp = listens
                .dns_addrs
                .iter()
                .filter_map(|one| one.strip_prefix("tcp://"));
            if let Some(address) = tcp.find_map(|one| one.parse().ok()) {
                place.dns = address;
            }
        }
        Ok(place)
    }

    /// A client of this Consul.
    ///
    /// # Errors
    ///
    /// If the address or the environment is wrong.
    pub fn client(&self) -> lictor::Result<Client> {
        let builder = match &self.address {
            Some(address) => lictor::client::Builder::from_env()?.address(address),
            None => lictor::client::Builder::from_env()?,
        };
        builder.build()
    }

    /// What it is, for the report.
    #[must_use]
    pub fn describe(&self) -> &str {
        &self.name
    }

    /// Where it should answer DNS queries.
    #[must_use]
    pub fn dns(&self) -> SocketAddr {
        self.dns
    }

    /// Whether somebody listens there: an agent may serve no DNS, or not to this machine.
    pub async fn has_dns(&self) -> bool {
        let connected = tokio::net::TcpStream::connect(self.dns);
        let connected = tokio::time::timeout(std::time::Duration::from_secs(2), connected).await;
        matches!(connected, Ok(Ok(_)))
    }
}
