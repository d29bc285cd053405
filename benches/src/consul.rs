//! A real Consul for the time of a run: one server, not `-dev`, whose answers are pretty-printed.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::Outcome;
use crate::scratch::Scratch;

/// A running server; it is killed and its data removed when this is dropped.
#[derive(Debug)]
pub struct Consul {
    // Dropped first: the process ends before its data is removed.
    process: Child,
    data: Scratch,
    program: PathBuf,
    node: String,
    /// HTTP, DNS, RPC, and gossip on LAN and WAN.
    ports: [SocketAddr; 5],
}

impl Consul {
    /// The program to run: `CONSUL_BIN`, else `consul` on `PATH`.
    #[must_use]
    pub fn program() -> Option<PathBuf> {
        if let Some(program) = std::env::var_os("CONSUL_BIN") {
            return Some(PathBuf::from(program)).filter(|program| program.is_file());
        }
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|directory| directory.join("consul"))
            .find(|program| program.is_file())
    }

    /// Starts a server on free ports of loopback and waits until it leads.
    ///
    /// # Errors
    /// If it does not lead within half a minute.
    pub async fn start(program: &Path) -> Outcome<Self> {
        // A free port may be taken by somebody else before Consul binds it, so more than one try.
        let mut failure = None;
        for _ in 0..3 {
            match Self::attempt(program).await {
                Ok(consul) => return Ok(consul),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| "Consul does not start".into()))
    }

    async fn attempt(program: &Path) -> Outcome<Self> {
        let data = Scratch::new("consul")?;
        let ports = free_ports()?;
        let [http, ..]: [SocketAddr; 5] = ports;
        let node = format!("bench-{}-{}", std::process::id(), http.port());
        std::fs::write(
            data.path().join("bench.json"),
            r#"{"limits":{"http_max_conns_per_client":4096},"performance":{"raft_multiplier":1},
               "disable_update_check":true,"skip_leave_on_interrupt":true}"#,
        )?;
        let mut consul = Self {
            process: spawn(program, &data, &node, ports)?,
            data,
            program: program.to_owned(),
            node,
            ports,
        };
        consul.wait_until_it_leads().await?;
        Ok(consul)
    }

    /// Kills it as a crash does, and starts it again on its ports with what it has on disk. Returns
    /// as soon as it listens.
    ///
    /// # Errors
    /// If it does not listen within half a minute.
    pub async fn crash_and_restart(&mut self) -> Outcome<()> {
        self.process.kill().await?;
        self.process = spawn(&self.program, &self.data, &self.node, self.ports)?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(self.socket_address()).await.is_err() {
            if Instant::now() > deadline {
                return Err("Consul does not listen after 30 s".into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn wait_until_it_leads(&mut self) -> Outcome<()> {
        let client = reqwest::Client::new();
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.process.try_wait()? {
                let log = std::fs::read_to_string(self.data.path().join("log")).unwrap_or_default();
                let reason = log.lines().last().unwrap_or_default();
                return Err(format!("Consul ended at once ({status}): {reason}").into());
            }
            // The node's name tells this server from a stranger that took the port first.
            let nodes = client
                .get(format!("{}/v1/catalog/nodes", self.address()))
                .send()
                .await;
            if let Ok(answer) = nodes
                && let Ok(text) = answer.text().await
                && text.contains(&self.node)
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err("Consul has no leader after 30 s".into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Its HTTP address, as `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("http://{}", self.socket_address())
    }

    /// Its HTTP address.
    #[must_use]
    pub fn socket_address(&self) -> SocketAddr {
        let [http, ..] = self.ports;
        http
    }

    /// Kills it, waits for its end and removes its data.
    ///
    /// # Errors
    /// If the system does not let us.
    pub async fn stop(mut self) -> Outcome<()> {
        self.process.kill().await?;
        drop(self.data);
        Ok(())
    }
}

fn spawn(
    program: &Path,
    data: &Scratch,
    node: &str,
    [http, dns, server, lan, wan]: [SocketAddr; 5],
) -> Outcome<Child> {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(data.path().join("log"))?;
    let child = Command::new(program)
        .args(["agent", "-server", "-bootstrap-expect=1"])
        .args([
            "-bind=127.0.0.1",
            "-client=127.0.0.1",
            "-log-level=err",
            "-grpc-port=-1",
        ])
        .arg(format!("-data-dir={}", data.path().join("data").display()))
        .arg(format!(
            "-config-file={}",
            data.path().join("bench.json").display()
        ))
        .arg(format!("-node={node}"))
        .arg(format!("-http-port={}", http.port()))
        .arg(format!("-dns-port={}", dns.port()))
        .arg(format!("-server-port={}", server.port()))
        .arg(format!("-serf-lan-port={}", lan.port()))
        .arg(format!("-serf-wan-port={}", wan.port()))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn();
    child.map_err(|error| format!("{} cannot be started: {error}", program.display()).into())
}

fn free_ports<const N: usize>() -> Outcome<[SocketAddr; N]> {
    // All of them are held until the last is known, so that they differ.
    let held = std::array::from_fn::<_, N, _>(|_| TcpListener::bind("127.0.0.1:0"));
    let mut ports = [SocketAddr::from(([127, 0, 0, 1], 0)); N];
    for (port, listener) in ports.iter_mut().zip(held) {
        *port = listener?.local_addr()?;
    }
    Ok(ports)
}
