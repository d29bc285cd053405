//! Instances of a service as processes of their own, which can be killed, frozen and told to fail.
//!
//! The program is `tests/bin/backend.rs`; only tests of this package know where it lies, so they
//! say so: `env!("CARGO_BIN_EXE_backend")`.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tokio::time::Instant;

use crate::consul::new_folder;
use crate::http;
use crate::ports::free_ports;
use crate::process::{self, Process};
use crate::wait::eventually;

const PATIENCE: Duration = Duration::from_secs(30);

/// One instance: a process that serves HTTP/1.1, registered under its ID.
///
/// It starts no task. Dropping it kills the process, waits for its end, and removes its folder; it
/// does not outlive the test process.
#[derive(Debug)]
pub struct Instance {
    program: &'static str,
    consul: String,
    service: String,
    id: String,
    port: u16,
    control: u16,
    dir: PathBuf,
    process: Option<Process>,
}

/// What an instance has counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Counts {
    /// Requests that it has begun to answer.
    pub requests: u64,
    /// Those of them that it is answering now.
    pub in_flight: u64,
    /// Connections that are open.
    pub open: u64,
    /// Connections that it has taken.
    pub accepted: u64,
}

impl Instance {
    /// Starts `program`, and waits until it is registered at the agent of this URL.
    ///
    /// # Panics
    ///
    /// When it does not start; the message holds what it said.
    pub async fn start(program: &'static str, consul: &str, service: &str, id: &str) -> Self {
        let mut instance = Self {
            program,
            consul: consul.to_owned(),
            service: service.to_owned(),
            id: id.to_owned(),
            port: 0,
            control: 0,
            dir: new_folder(),
            process: None,
        };
        for _ in 0..5 {
            [instance.port, instance.control] = free_ports();
            if instance.try_run().await {
                return instance;
            }
        }
        panic!("{id} does not start:\n{}", process::log(&instance.dir));
    }

    /// Starts it again on its old port, if it has ended, and waits until it is registered.
    ///
    /// # Panics
    ///
    /// When it does not start; the message holds what it said.
    pub async fn start_again(&mut self) {
        // The control port may be lost to somebody; the other one is what matters.
        for _ in 0..20 {
            [self.control] = free_ports();
            if self.try_run().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!(
            "{} does not come back:\n{}",
            self.id,
            process::log(&self.dir)
        );
    }

    async fn try_run(&mut self) -> bool {
        let mut command = Command::new(self.program);
        command
            .args([&self.consul, &self.service, &self.id])
            .args([self.port.to_string(), self.control.to_string()]);
        let mut process = Process::start(&self.dir, &mut command)
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", self.program));
        let url = self.order_url("stats");
        let end = Instant::now() + PATIENCE;
        let runs = loop {
            if process.has_ended() || Instant::now() > end {
                break false;
            }
            if http::get(&url).await.is_ok() {
                break true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        self.process = Some(process);
        if !runs {
            self.kill();
        }
        runs
    }

    /// Where it serves.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Its ID, which its answers begin with.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    fn order_url(&self, order: &str) -> String {
        format!("http://127.0.0.1:{}/{order}", self.control)
    }

    async fn order(&self, order: &str) -> String {
        let answer = http::get(&self.order_url(order)).await;
        let answer = answer.unwrap_or_else(|error| panic!("{} {order}: {error}", self.id));
        assert!(answer.is_success(), "{order}: {}", answer.text());
        answer.text()
    }

    /// What it has counted since it started.
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub async fn counts(&self) -> Counts {
        let told = self.order("stats").await;
        let numbers: Vec<u64> = told.split(' ').filter_map(|n| n.parse().ok()).collect();
        let [requests, in_flight, open, accepted] = numbers[..] else {
            panic!("{told}");
        };
        Counts {
            requests,
            in_flight,
            open,
            accepted,
        }
    }

    /// Answers with this status from now on.
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub async fn status(&self, status: u16) {
        self.order(&format!("status/{status}")).await;
    }

    /// Takes so long for each answer from now on.
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub async fn delay(&self, delay: Duration) {
        self.order(&format!("delay/{}", delay.as_millis())).await;
    }

    /// Deregisters it; it serves on.
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub async fn deregister(&self) {
        self.order("leave").await;
    }

    /// Makes it close its connections before it says goodbye when it is terminated.
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub async fn be_abrupt(&self) {
        self.order("abrupt").await;
    }

    /// Makes it leave in good order (`SIGTERM`), and waits for its end.
    ///
    /// # Panics
    ///
    /// When it does not run, or does not end.
    pub async fn terminate(&mut self) {
        let mut process = self.process.take().expect("a running instance");
        process.signal("TERM");
        eventually(PATIENCE, async || process.has_ended()).await;
    }

    /// Everything that it has printed so far, in all of its lives.
    #[must_use]
    pub fn log(&self) -> String {
        process::log(&self.dir)
    }

    /// Kills it without a warning (`SIGKILL`) and waits for its end.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// Stops it in its tracks (`SIGSTOP`): connections stay open and nothing answers.
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub fn freeze(&self) {
        let process = self.process.as_ref().expect("a running instance");
        process.signal("STOP");
        process.until_stopped();
    }

    /// Lets it go on after [`freeze`](Self::freeze).
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub fn thaw(&self) {
        let process = self.process.as_ref().expect("a running instance");
        process.signal("CONT");
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.kill();
        fs::remove_dir_all(&self.dir).ok();
    }
}
