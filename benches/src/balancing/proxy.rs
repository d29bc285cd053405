//! A proxy for the time of a run: nginx or HAProxy, in the foreground, with a configuration and a
//! directory of its own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use crate::Outcome;
use crate::scratch::Scratch;

use super::PEAK_EWMA;
use super::caller::Caller;

pub(super) const NGINX: &str = "nginx";
pub(super) const HAPROXY: &str = "haproxy";

/// A running proxy before the backends; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) name: &'static str,
    pub(super) address: String,
    process: Child,
    directory: Scratch,
}

/// Runs the proxy until standard input ends, as it does with the program that holds it, however
/// that dies. nginx has workers, which would outlive a master that is killed.
const UNTIL_INPUT_ENDS: &str = r#""$@" & read -r _; kill -TERM $!; wait $!"#;

impl Proxy {
    /// Starts the proxy of this name and waits until it answers.
    pub(super) async fn start(name: &'static str, backends: &[String]) -> Outcome<Self> {
        let program = program(name).ok_or("it is not installed")?;
        let directory = Scratch::new(name)?;
        // A free port may be taken by somebody else before the proxy binds it; then it is left out.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let config = directory.path().join("config");
        let (text, arguments) = match name {
            NGINX => (
                nginx(&address, backends, directory.path()),
                ["-e", "stderr", "-c"],
            ),
            _ => (haproxy(&address, backends), ["-q", "-db", "-f"]),
        };
        std::fs::write(&config, text)?;
        let log = std::fs::File::create(directory.path().join("log"))?;
        let process = Command::new("sh")
            .args(["-c", UNTIL_INPUT_ENDS, "sh"])
            .arg(program)
            .args(arguments)
            .arg(&config)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let proxy = Self {
            name,
            address,
            process,
            directory,
        };
        proxy.answers().await?;
        Ok(proxy)
    }

    async fn answers(&self) -> Outcome<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let backends = [self.address.clone()];
            let mut caller = Caller::new(self.name, PEAK_EWMA, &backends).await?;
            let Err(reason) = caller.get().await else {
                return Ok(());
            };
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(self.directory.path().join("log"));
                let log = log.unwrap_or_default();
                let last = log.lines().last().unwrap_or_default();
                return Err(format!("it does not answer: {reason}; {last}").into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        // It has no requests any more, so it ends at once.
        self.process.wait().ok();
    }
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Where Debian puts servers, which is not on everybody's `PATH`.
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}

/// Round robin over kept connections, with a worker per core and nothing written for a request.
fn nginx(address: &str, backends: &[String], directory: &Path) -> String {
    let servers: String = backends
        .iter()
        .map(|backend| format!("server {backend}; "))
        .collect();
    let directory = directory.display();
    format!(
        "daemon off; worker_processes auto; pid {directory}/pid; error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  upstream backends {{ {servers} keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen {address};
    location / {{ proxy_pass http://backends; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}
  }}
}}
"
    )
}

/// The same with HAProxy's own means: a thread per core, connections shared by all requests.
fn haproxy(address: &str, backends: &[String]) -> String {
    let servers: String = (0..)
        .zip(backends)
        .map(|(number, backend)| format!("  server s{number} {backend}\n"))
        .collect();
    format!(
        "global
  maxconn 4096
defaults
  mode http
  timeout connect 1s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend front
  bind {address}
  default_backend backends
backend backends
  balance roundrobin
{servers}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_backend_is_named_in_both_configurations() {
        let backends = ["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()];
        let texts = [
            nginx("127.0.0.1:80", &backends, Path::new("/tmp/x")),
            haproxy("127.0.0.1:80", &backends),
        ];
        for text in texts {
            assert!(text.contains("127.0.0.1:80"), "{text}");
            assert!(backends.iter().all(|b| text.contains(b.as_str())), "{text}");
        }
    }
}
