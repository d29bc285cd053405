//! The checks that the agent runs itself: over TCP and HTTP.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use super::core::Core;
use super::state::local::{Run, Way};
use super::state::model::{CRITICAL, PASSING, Status, WARNING};
use crate::task::StopSignal;

/// Runs all checks that there are, until the agent ends.
pub(super) async fn run(core: Arc<Core>, mut signal: StopSignal) {
    let mut changes = core.subscribe();
    let mut running: BTreeMap<String, (Run, AbortHandle)> = BTreeMap::new();
    // They end with it.
    let mut rounds = JoinSet::new();
    loop {
        let wanted: BTreeMap<String, Run> = {
            let locked = core.lock();
            changes.mark_unchanged();
            let checks = locked.state.local.checks();
            let runs = checks.filter_map(|local| {
                let run = local.run.clone()?;
                Some((local.check.id.clone(), run))
            });
            runs.collect()
        };
        running.retain(|id, (run, task)| {
            let stays = wanted.get(id) == Some(run);
            if !stays {
                task.abort();
            }
            stays
        });
        for (id, run) in wanted {
            running.entry(id).or_insert_with_key(|id| {
                let task = rounds.spawn(rounds_of(Arc::clone(&core), id.clone(), run.clone()));
                (run, task)
            });
        }
        tokio::select! {
            biased;
            _ = signal.recv() => return,
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            Some(_) = rounds.join_next() => {}
        }
    }
}

/// One check, again and again.
async fn rounds_of(core: Arc<Core>, id: String, run: Run) {
    // Consul begins anywhere within the interval, so that checks do not run side by side.
    let first = core.lock().state.random_part(run.interval);
    sleep(first).await;
    loop {
        core.faults.thawed().await;
        let (status, output) = look(&run).await;
        // What has ended meanwhile is not told of.
        core.lock()
            .state
            .checked(&id, &run, status, &output, Instant::now());
        sleep(run.interval).await;
    }
}

async fn look(run: &Run) -> (Status, String) {
    match &run.way {
        Way::Tcp(address) => match within(run.timeout, TcpStream::connect(address)).await {
            Ok(_) => (PASSING.into(), format!("TCP connect {address}: Success")),
            Err(err) => (CRITICAL.into(), dialled(address, &err)),
        },
        Way::Http { url, method } => {
            let Some((address, path)) = parts(url) else {
                let text = format!("The embedded agent does not check {url}");
                return (CRITICAL.into(), text);
            };
            match within(run.timeout, asked(&address, &path, method)).await {
                Ok((code, reason, body)) => {
                    let status = match code {
                        200..300 => PASSING,
                        429 => WARNING,
                        _ => CRITICAL,
                    };
                    let output = format!("HTTP {method} {url}: {code} {reason} Output: {body}");
                    (status.into(), output)
                }
                Err(err) => {
                    // Go writes a method with a capital letter alone.
                    let mut name = method.to_lowercase();
                    if let Some(first) = name.get_mut(..1) {
                        first.make_ascii_uppercase();
                    }
                    let text = format!("{name} \"{url}\": {}", dialled(&address, &err));
                    (CRITICAL.into(), text)
                }
            }
        }
    }
}

async fn within<T>(time: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(time, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn dialled(address: &str, err: &io::Error) -> String {
    let what = match err.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
        _ => err.to_string(),
    };
    format!("dial tcp {address}: {what}")
}

/// Address and path of a URL without TLS.
fn parts(url: &str) -> Option<(String, String)> {
    let url: http::Uri = url.parse().ok()?;
    if url.scheme_str() != Some("http") {
        return None;
    }
    let host = url.host()?;
    let port = url.port_u16().unwrap_or(80);
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    Some((format!("{host}:{port}"), path.to_owned()))
}

/// As much of an answer as Consul keeps.
const MOST: u64 = 4096;

async fn asked(address: &str, path: &str, method: &str) -> io::Result<(u16, String, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: Consul Health Check\r\n\
         Accept: text/plain, text/*, */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let odd = || io::Error::new(io::ErrorKind::InvalidData, "malformed HTTP response");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(odd)?;
    let line = head.lines().next().unwrap_or_default();
    let mut words = line.splitn(3, ' ').skip(1);
    let code = words.next().and_then(|code| code.parse().ok());
    let reason = words.next().unwrap_or_default().to_owned();
    Ok((code.ok_or_else(odd)?, reason, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        let taken = |url| parts(url);
        let whole = |address: &str, path: &str| Some((address.to_owned(), path.to_owned()));
        assert_eq!(taken("http://a:81/b?c"), whole("a:81", "/b?c"));
        assert_eq!(taken("http://a"), whole("a:80", "/"));
        assert_eq!(taken("https://a"), None);
        assert_eq!(taken("nonsense"), None);
    }
}
