//! A DNS server of somebody else's: NSD, as Debian packages it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::consul::new_folder;
use crate::ports::free_port;
use crate::process::{self, Process};
use crate::wait::poll;

/// Longer than it takes on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running NSD of this test process, which it never outlives.
///
/// It serves zones on one port of the loopback interface, as the user who runs the tests.
#[derive(Debug)]
pub struct Nsd {
    binary: PathBuf,
    dir: PathBuf,
    port: u16,
    zones: Vec<String>,
    process: Option<Process>,
}

impl Nsd {
    /// Starts one that serves these zones: each a name and its records in the form of a zone file,
    /// without the SOA. One without records has no file, as if it could not be loaded.
    ///
    /// # Panics
    ///
    /// When it does not start; the message holds its log.
    pub async fn start(binary: PathBuf, zones: &[(&str, Option<&str>)]) -> Self {
        let mut nsd = Self {
            binary,
            dir: new_folder(),
            port: 0,
            zones: zones.iter().map(|(name, _)| (*name).to_owned()).collect(),
            process: None,
        };
        for (name, records) in zones {
            if let Some(records) = records {
                nsd.write(name, records);
            }
        }
        // Somebody else may take the port between its choice and its use.
        for _ in 0..5 {
            nsd.port = free_port();
            if nsd.launch().await {
                return nsd;
            }
        }
        panic!("NSD does not start:\n{}", process::log(&nsd.dir));
    }

    /// Where it answers, over UDP and TCP.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Replaces the records of a zone and has it loaded, which takes a moment.
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub fn set(&self, zone: &str, records: &str) {
        self.write(zone, records);
        let process = self.process.as_ref().expect("a running NSD");
        process.signal("HUP");
    }

    /// Kills it, as a crash would.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts it again on its old port.
    ///
    /// # Panics
    ///
    /// When it does not start; the message holds its log.
    pub async fn restart(&mut self) {
        let started = poll(PATIENCE, async || self.launch().await.then_some(()));
        if started.await.is_none() {
            panic!("NSD does not start again:\n{}", process::log(&self.dir));
        }
    }

    fn write(&self, zone: &str, records: &str) {
        // Nothing in here asks for the serial to grow: there is no other server.
        let text = format!(
            "$ORIGIN {zone}.\n$TTL 1\n@ IN SOA ns hostmaster 1 7200 1800 86400 1\n\
             @ IN NS ns\nns IN A 127.0.0.1\n{records}\n"
        );
        // In one step, for it may be reading the old one.
        let written = self.dir.join("new");
        fs::write(&written, text).expect("a writable folder");
        fs::rename(written, self.dir.join(zone)).expect("a writable folder");
    }

    /// Starts it; `false` if it ends at once, as it does when its port is taken.
    async fn launch(&mut self) -> bool {
        let dir = self.dir.display();
        let port = self.port;
        let mut config = format!(
            "server:\n ip-address: 127.0.0.1@{port}\n port: {port}\n username: \"\"\n chroot: \"\"\n \
             zonesdir: \"{dir}\"\n database: \"\"\n pidfile: \"{dir}/pid\"\n xfrdfile: \"\"\n \
             zonelistfile: \"{dir}/list\"\n xfrdir: \"{dir}\"\n server-count: 1\n \
             rrl-ratelimit: 0\nremote-control:\n control-enable: no\n"
        );
        for zone in &self.zones {
            config.push_str(&format!(
                "zone:\n name: \"{zone}\"\n zonefile: \"{zone}\"\n"
            ));
        }
        let file = self.dir.join("nsd.conf");
        fs::write(&file, config).expect("a writable folder");
        let mut command = Command::new(&self.binary);
        command.arg("-d").arg("-c").arg(file);
        let mut process = Process::start(&self.dir, &mut command).expect("a shell");
        let addr = self.addr();
        let up = poll(PATIENCE, async || {
            if process.has_ended() {
                return Some(false);
            }
            let connected = TcpStream::connect(addr).await.is_ok();
            connected.then_some(true)
        });
        let is_up = up.await.unwrap_or_default();
        if is_up {
            self.process = Some(process);
        }
        is_up
    }
}

impl Drop for Nsd {
    fn drop(&mut self) {
        self.kill();
        fs::remove_dir_all(&self.dir).ok();
    }
}

/// The NSD that the tests use: `NSD_BIN`, else the first `nsd` on `PATH` or where Debian puts it.
///
/// # Errors
///
/// When there is none; the text says what to do.
pub fn binary() -> Result<PathBuf, String> {
    if let Some(named) = std::env::var_os("NSD_BIN").filter(|named| !named.is_empty()) {
        let named = PathBuf::from(named);
        return match named.is_file() {
            true => Ok(named),
            false => Err(format!("NSD_BIN is {}: no such file", named.display())),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|folder| folder.join("nsd"))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| "no NSD: install the package `nsd`, or set NSD_BIN".to_owned())
}
