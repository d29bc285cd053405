//! Real Consul agents on free ports, with their faults as methods.
//!
//! An agent never outlives the test process, not even when that is killed. Its log is printed
//! when it does not start. What waits here polls with a deadline.
//!
//! [`Agent::shared`] is one agent for all tests of a binary, for tests that only talk to it;
//! whoever kills, freezes or wipes starts one of their own.

mod acl;
mod cluster;
mod options;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OnceCell;

pub use self::acl::Token;
pub use self::cluster::Cluster;
pub use self::options::{Options, Verify};

use self::options::{Mode, Ports, Tls};
use crate::certs::Authority;
use crate::http::{self, Answer};
use crate::ports::free_ports;
use crate::process::{self, Process};
use crate::wait::{eventually, poll};

/// Set by `tests/run --embedded-only`; no real agent may be started then.
pub const EMBEDDED_ONLY: &str = "LICTOR_TESTS_EMBEDDED_ONLY";

/// Longest wait for an agent to start, to leave or to find a leader.
const PATIENCE: Duration = Duration::from_secs(60);

/// Known to every ACL-enabled agent of the tests; it opens nothing else.
const MANAGEMENT_TOKEN: &str = "6b0ad1a4-3f3e-4a8c-9d0e-5a1c0de0feed";

/// A running Consul agent of this test process.
///
/// It starts no task. Dropping it kills the agent, waits for its end, and removes its folder.
#[derive(Debug)]
pub struct Agent {
    options: Options,
    binary: PathBuf,
    version: (u32, u32),
    ports: Ports,
    dir: PathBuf,
    tls: Option<Tls>,
    process: Option<Process>,
}

impl Agent {
    /// Starts a development server of one's own.
    ///
    /// # Panics
    ///
    /// When there is no Consul, or it does not start; the message holds its log.
    pub async fn start() -> Self {
        Self::options().start().await
    }

    /// The development server that all tests of this binary share; started by the first.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Agent> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    /// Another kind of agent than a development server.
    pub fn options() -> Options {
        Options::new()
    }

    /// Where its HTTP API is, as a URL without a slash at its end.
    #[must_use]
    pub fn http_url(&self) -> String {
        format!("http://{}", self.http_addr())
    }

    /// Where its HTTP API is.
    #[must_use]
    pub fn http_addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.http).into()
    }

    /// Where its DNS is, over UDP and TCP.
    #[must_use]
    pub fn dns_addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.dns).into()
    }

    /// Where its HTTPS API is; the certificate is good for `localhost` and `127.0.0.1`.
    ///
    /// # Panics
    ///
    /// When it was started without TLS.
    #[must_use]
    pub fn https_url(&self) -> String {
        assert!(self.tls.is_some(), "started without TLS");
        format!("https://127.0.0.1:{}", self.ports.https)
    }

    /// The certificate of the authority that vouches for [`https_url`](Self::https_url).
    ///
    /// # Panics
    ///
    /// When it was started without TLS.
    #[must_use]
    pub fn ca_file(&self) -> &Path {
        &self.tls_parts().ca_file
    }

    /// Certificate and key with which a caller may show itself.
    ///
    /// # Panics
    ///
    /// When it was started without TLS.
    #[must_use]
    pub fn client_identity(&self) -> &crate::certs::IdentityFiles {
        &self.tls_parts().client
    }

    /// The authority itself, for certificates of one's own.
    ///
    /// # Panics
    ///
    /// When it was started without TLS.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.tls_parts().authority
    }

    fn tls_parts(&self) -> &Tls {
        self.tls.as_ref().expect("started without TLS")
    }

    /// Its node name.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.options.node_name
    }

    /// Consul's version, major and minor.
    #[must_use]
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Everything it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        process::log(&self.dir)
    }

    /// One request to it, with the management token if it has one.
    ///
    /// # Errors
    ///
    /// When it does not answer within ten seconds.
    pub async fn api(&self, method: &str, path: &str, body: &str) -> io::Result<Answer> {
        let url = format!("{}{path}", self.http_url());
        http::request(method, &url, self.headers(), body.to_owned()).await
    }

    /// All that its servers have, to be [restored](Self::restore), as an operator takes it.
    ///
    /// # Panics
    ///
    /// When the agent refuses; the message holds its answer.
    pub async fn snapshot(&self) -> Bytes {
        let answer = self.api("GET", "/v1/snapshot", "").await;
        let answer = answer.expect("an agent that runs answers");
        assert!(answer.is_success(), "{}", answer.text());
        answer.body
    }

    /// Sets its servers back to a [snapshot](Self::snapshot), of these servers or of others.
    ///
    /// # Panics
    ///
    /// When the agent refuses; the message holds its answer.
    pub async fn restore(&self, snapshot: &Bytes) {
        let url = format!("{}/v1/snapshot", self.http_url());
        let answer = http::request("PUT", &url, self.headers(), snapshot.clone()).await;
        let answer = answer.expect("an agent that runs answers");
        assert!(answer.is_success(), "{}", answer.text());
    }

    fn headers(&self) -> &'static [(&'static str, &'static str)] {
        match self.options.acl {
            true => &[("x-consul-token", MANAGEMENT_TOKEN)],
            false => &[],
        }
    }

    fn gossip_addr(&self) -> String {
        format!("127.0.0.1:{}", self.ports.serf_lan)
    }

    /// Where servers of other datacenters find it.
    #[must_use]
    pub fn wan_addr(&self) -> String {
        format!("127.0.0.1:{}", self.ports.serf_wan)
    }

    /// Kills it without a warning (`SIGKILL`); its data stay.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// Kills it if it runs and starts it again, same ports and same data.
    ///
    /// A development server has no data to keep: for it this is
    /// [`wipe_and_restart`](Self::wipe_and_restart).
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub async fn restart_with_data(&mut self) {
        self.kill();
        self.run().await;
        self.ready().await;
    }

    /// Kills it if it runs, forgets all its data, and starts it again, same ports and same name.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub async fn wipe_and_restart(&mut self) {
        self.kill();
        self.forget_data();
        self.run().await;
        self.ready().await;
    }

    fn forget_data(&self) {
        match fs::remove_dir_all(self.dir.join("data")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                panic!("cannot wipe {}: {error}", self.dir.display())
            }
            _ => {}
        }
    }

    /// Kills it if it runs, forgets all its data, and starts it again, but joins nobody: the agent
    /// answers, knows no servers, and tells them nothing before [`join`](Self::join).
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub async fn wipe_and_restart_alone(&mut self) {
        self.kill();
        self.forget_data();
        let servers = self.options.extra.remove("retry_join");
        self.run().await;
        if let Some(servers) = servers {
            self.options.extra.insert("retry_join".to_owned(), servers);
        }
    }

    /// Joins the servers of `other`, and waits until they have taken it in.
    ///
    /// # Panics
    ///
    /// When they do not.
    pub async fn join(&self, other: &Self) {
        let path = format!("/v1/agent/join/{}", other.gossip_addr());
        let answer = self.api("PUT", &path, "").await;
        let answer = answer.expect("an agent that runs answers");
        assert!(answer.is_success(), "{}", answer.text());
        self.ready().await;
    }

    /// Stops it in its tracks (`SIGSTOP`): connections stay open and nothing answers.
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub fn freeze(&self) {
        self.running().signal("STOP");
        self.running().until_stopped();
    }

    /// Lets it go on after [`freeze`](Self::freeze).
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub fn thaw(&self) {
        self.running().signal("CONT");
    }

    /// Makes it leave the cluster in good order, and waits for its end.
    ///
    /// # Panics
    ///
    /// When it does not run, or does not end.
    pub async fn leave(&mut self) {
        // It may go before it has answered.
        self.api("PUT", "/v1/agent/leave", "").await.ok();
        let process = self.process.as_mut().expect("a running agent");
        eventually(PATIENCE, async || process.has_ended()).await;
        self.process = None;
    }

    /// The ID of its process.
    ///
    /// # Panics
    ///
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running().pid()
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("a running agent")
    }

    /// Starts the process, on other ports if somebody took one of the chosen.
    async fn launch(options: Options) -> Self {
        let binary = binary().unwrap_or_else(|why| panic!("{why}"));
        let version = version_of(&binary);
        let dir = new_folder();
        let tls = options.tls.map(|_| tls_in(&dir));
        let mut agent = Self {
            options,
            binary,
            version,
            ports: choose_ports(),
            dir,
            tls,
            process: None,
        };
        for _ in 0..5 {
            if agent.try_run().await {
                return agent;
            }
            agent.ports = choose_ports();
        }
        panic!("Consul finds no free port:\n{}", agent.log());
    }

    /// Starts the process again on its old ports, which the old process may hold a moment longer.
    async fn run(&mut self) {
        for _ in 0..50 {
            if self.try_run().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("Consul does not get its ports back:\n{}", self.log());
    }

    /// Starts the process; `false` if one of its ports is taken.
    async fn try_run(&mut self) -> bool {
        let before = self.log().len();
        self.spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", self.binary.display()));
        let url = format!("{}/v1/agent/self", self.http_url());
        let url = url.as_str();
        let process = self.process.as_mut().expect("just started");
        let answers = poll(PATIENCE, async || {
            if process.has_ended() {
                return Some(false);
            }
            // Any answer will do: without a token this is a refusal.
            http::get(url).await.is_ok().then_some(true)
        });
        let answers = answers.await;
        let log = self.log();
        let log = log.get(before..).unwrap_or_default();
        // Consul goes on without its DNS port, and another program may sit on its HTTP port.
        let clash = log.contains("address already in use") || log.contains("bind: address");
        if answers == Some(true) && !clash {
            return true;
        }
        self.kill();
        assert!(clash, "Consul does not start:\n{log}");
        false
    }

    fn spawn(&mut self) -> io::Result<()> {
        let file = self.options.file(
            self.ports,
            &self.dir,
            MANAGEMENT_TOKEN,
            self.version,
            self.tls.as_ref(),
        );
        let config = self.dir.join("agent.json");
        fs::write(&config, file.to_string())?;
        process::mark(&self.dir, "-- start --")?;
        let mut command = Command::new(&self.binary);
        command.arg("agent");
        if self.options.mode == Mode::Dev {
            command.arg("-dev");
        }
        command.arg("-config-file").arg(&config);
        self.process = Some(Process::start(&self.dir, &mut command)?);
        Ok(())
    }

    async fn started(self) -> Self {
        self.ready().await;
        self
    }

    /// Waits until there is a leader and the catalog shows this node alive and complete.
    ///
    /// The servers write a node that they hear of by gossip with its bare address. The agent itself
    /// writes the rest up to three seconds later, which changes the node's index and with it what
    /// every query for one of its services answers.
    async fn ready(&self) {
        let health = format!("/v1/health/node/{}", self.options.node_name);
        let node = format!("/v1/catalog/node/{}", self.options.node_name);
        let ready = poll(PATIENCE, async || {
            let leader = self.api("GET", "/v1/status/leader", "").await.ok()?;
            let nodes = self.api("GET", &health, "").await.ok()?;
            let alive = leader.text().contains(':')
                && nodes.is_success()
                && nodes.json().as_array().is_some_and(|checks| {
                    let own = |check: &serde_json::Value| {
                        check["CheckID"] == "serfHealth" && check["Status"] == "passing"
                    };
                    checks.iter().any(own)
                });
            if !alive {
                return None;
            }
            let node = self.api("GET", &node, "").await.ok()?;
            let complete = node.is_success() && node.json()["Node"]["TaggedAddresses"].is_object();
            complete.then_some(())
        });
        if ready.await.is_none() {
            panic!("Consul is not ready after {PATIENCE:?}:\n{}", self.log());
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
        fs::remove_dir_all(&self.dir).ok();
    }
}

/// The Consul that the tests use: `CONSUL_BIN`, else the first `consul` on `PATH`.
///
/// # Errors
///
/// When there is none, or the run is meant to do without; the text says what to do.
pub fn binary() -> Result<PathBuf, String> {
    if std::env::var_os(EMBEDDED_ONLY).is_some() {
        return Err(format!(
            "{EMBEDDED_ONLY} is set: this run does without a real Consul. A test that needs one \
             stands in a module named `consul`, so that such a run leaves it out"
        ));
    }
    if let Some(named) = std::env::var_os("CONSUL_BIN").filter(|named| !named.is_empty()) {
        let named = PathBuf::from(named);
        return if named.is_file() {
            Ok(named)
        } else {
            Err(format!("CONSUL_BIN is {}: no such file", named.display()))
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join("consul"))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| {
            "no Consul: start the tests with `tests/run`, put `consul` on PATH, or set CONSUL_BIN"
                .to_owned()
        })
}

/// Major and minor version from the first line of `consul version`, `Consul v1.8.7`.
fn version_of(binary: &Path) -> (u32, u32) {
    let output = match Command::new(binary).arg("version").output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => panic!("cannot run {}: {error}", binary.display()),
    };
    let version = output
        .split_once('v')
        .map(|(_, version)| version.split('.').map_while(|part| part.parse().ok()))
        .and_then(|mut parts| Some((parts.next()?, parts.next()?)));
    version.unwrap_or_else(|| panic!("{} is no Consul: {output}", binary.display()))
}

fn choose_ports() -> Ports {
    let [http, https, dns, server, serf_lan, serf_wan] = free_ports();
    Ports {
        http,
        https,
        dns,
        server,
        serf_lan,
        serf_wan,
    }
}

pub(crate) fn new_folder() -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("lictor-consul-{}-{count}", std::process::id());
    let dir = std::env::temp_dir().join(name);
    // A process of the same ID may have been killed in an unlucky moment.
    fs::remove_dir_all(&dir).ok();
    fs::create_dir_all(&dir).expect("a folder for temporary files");
    dir
}

fn tls_in(dir: &Path) -> Tls {
    let authority = Authority::new("lictor test authority");
    let server = authority.issue(&["localhost", "127.0.0.1", "server.dc1.consul"]);
    let client = authority.issue(&["client.dc1.consul"]);
    let ca_file = dir.join("ca.pem");
    fs::write(&ca_file, authority.pem()).expect("a writable folder");
    Tls {
        server: server.write(dir, "server"),
        client: client.write(dir, "client"),
        ca_file,
        authority,
    }
}
