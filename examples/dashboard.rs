//! A page that shows, live, how the endpoints of services fare and who leads.
//!
//! Two services with three and two instances are called all the time, and two candidates campaign.
//! A page of axum's shows all of it, over server-sent events made of [`Channel::snapshot`] and of
//! an election's observer. Run without arguments, the example opens its own page, lets an instance
//! fail, another leave and the leader resign, and waits until the page has told each. With
//! `--serve` it stays up, and the page has buttons for the same.
//!
//! ```text
//! cargo run -p lictor-examples --example dashboard
//! cargo run -p lictor-examples --example dashboard -- --serve 127.0.0.1:8080
//! cargo run -p lictor-examples --example dashboard -- --consul http://127.0.0.1:8500
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Html;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::{get, post};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use lictor::Client;
use lictor::coordination::{LeaderView, Leadership, Profile};
use lictor_examples::backend::Backend;
use lictor_examples::place::{Options, Place};
use lictor_examples::{Findings, Result, example};
use lictor_tower::channel::{Channel, EndpointState, Policy, Snapshot};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};

/// How often the page is told how things stand.
const EVERY: Duration = Duration::from_millis(250);

/// How long an instance of the first service takes to answer: so that there is load to be seen.
const TAKES: Duration = Duration::from_millis(20);

/// How many events the page shows.
const EVENTS: usize = 40;

#[tokio::main]
async fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let mut serve = None;
    if let Some(at) = args.iter().position(|arg| arg == "--serve") {
        if at + 1 == args.len() {
            eprintln!("--serve: the address is missing, as 127.0.0.1:8080");
            return ExitCode::from(2);
        }
        serve = Some(args.remove(at + 1));
        args.remove(at);
    }
    let run = async |options: &Options| run(options, serve.as_deref()).await;
    example("dashboard", args.into_iter(), run).await
}

async fn run(options: &Options, serve: Option<&str>) -> Result<Report> {
    let place = Place::find(options).await?;
    let stage = Arc::new(Stage::set(&place).await?);
    let listener = TcpListener::bind(serve.unwrap_or("127.0.0.1:0")).await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let mut tasks = JoinSet::new();
    let (tell, told) = watch::channel(Bytes::new());
    tasks.spawn(watch_all(Arc::clone(&stage), tell));
    for channel in &stage.channels {
        tasks.spawn(keep_calling(channel.clone()));
    }
    let page = Router::new()
        .route("/", get(async || Html(include_str!("dashboard.html"))))
        .route("/events", get(events))
        .route("/do/{what}", post(act))
        .with_state((Arc::clone(&stage), told));
    tasks.spawn(async move {
        let _ = axum::serve(listener, page).await;
    });
    let report = if serve.is_some() {
        println!("dashboard on {url}");
        let _ = tokio::signal::ctrl_c().await;
        Report::new(&place)
    } else {
        direct(&place, &stage, &url).await?
    };
    tasks.shutdown().await;
    stage.strike().await?;
    Ok(report)
}

// --- The page ------------------------------------------------------------------------------------

type Shared = (Arc<Stage>, watch::Receiver<Bytes>);

/// How things stand, again and again.
async fn events(
    State((_, told)): State<Shared>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let told = WatchStream::new(told).filter(|state| !state.is_empty());
    let events = told.map(|state| Ok(Event::default().data(String::from_utf8_lossy(&state))));
    Sse::new(events).keep_alive(KeepAlive::default())
}

/// What the buttons do.
async fn act(State((stage, _)): State<Shared>, Path(what): Path<String>) -> (StatusCode, String) {
    let done = match what.as_str() {
        "fail" | "heal" => {
            stage.fail(what == "fail");
            Ok(())
        }
        "leave" => stage.leave().await,
        "join" => stage.join().await,
        "resign" => stage.resign().await,
        _ => return (StatusCode::NOT_FOUND, format!("{what}: nobody can do that")),
    };
    match done {
        Ok(()) => (StatusCode::OK, "done".to_owned()),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// What the page gets.
#[derive(Serialize)]
struct Told<'a> {
    agent: &'a str,
    up_ms: u128,
    leader: Value,
    services: &'a [Snapshot],
    events: &'a VecDeque<News>,
}

/// Something that has changed.
#[derive(Clone, Serialize)]
struct News {
    number: u64,
    up_ms: u128,
    kind: &'static str,
    about: String,
    text: String,
}

/// Looks at everything, and tells it.
async fn watch_all(stage: Arc<Stage>, tell: watch::Sender<Bytes>) {
    let began = Instant::now();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut log = Log::default();
    loop {
        ticks.tick().await;
        log.up_ms = began.elapsed().as_millis();
        let services: Vec<_> = stage.channels.iter().map(Channel::snapshot).collect();
        for service in &services {
            log.compare(service);
        }
        let leader = match stage.leader.current() {
            LeaderView::Leader(leader) => {
                json!({ "is": "leader", "name": leader.into_value().unwrap_or_default() })
            }
            LeaderView::Nobody => json!({ "is": "nobody" }),
            _ => json!({ "is": "unknown" }),
        };
        log.lead(&leader);
        let told = Told {
            agent: &stage.agent,
            up_ms: log.up_ms,
            leader,
            services: &services,
            events: &log.news,
        };
        match serde_json::to_vec(&told) {
            Ok(told) => drop(tell.send_replace(told.into())),
            Err(error) => eprintln!("dashboard: {error}"),
        }
    }
}

/// What was seen last, and what has changed since.
#[derive(Default)]
struct Log {
    up_ms: u128,
    seen: BTreeMap<String, BTreeMap<String, EndpointState>>,
    leader: String,
    news: VecDeque<News>,
    number: u64,
}

impl Log {
    fn note(&mut self, kind: &'static str, about: &str, text: String) {
        self.number += 1;
        self.news.push_front(News {
            number: self.number,
            up_ms: self.up_ms,
            kind,
            about: about.to_owned(),
            text,
        });
        self.news.truncate(EVENTS);
    }

    fn compare(&mut self, service: &Snapshot) {
        let name = service.service.clone().unwrap_or_default();
        let states = service.endpoints.iter();
        let now: BTreeMap<_, _> = states
            .map(|one| (one.target.to_string(), one.state))
            .collect();
        let before = self
            .seen
            .insert(name.clone(), now.clone())
            .unwrap_or_default();
        for (target, state) in &now {
            let old = before.get(target);
            // Times that run down are no news.
            if old.map(std::mem::discriminant) == Some(std::mem::discriminant(state)) {
                continue;
            }
            let (kind, text) = match (old, state) {
                (None, _) => ("joined", "has joined".to_owned()),
                (_, EndpointState::Ejected { reason, .. }) => {
                    ("ejected", format!("is ejected: {reason}"))
                }
                (_, EndpointState::Avoided { .. }) => ("avoided", "refuses connections".to_owned()),
                (_, EndpointState::Probing { .. }) => {
                    ("probing", "is tried by one request".to_owned())
                }
                (_, EndpointState::Returning { .. }) => {
                    ("returning", "is on the way back".to_owned())
                }
                (_, EndpointState::Spared { .. }) => {
                    ("spared", "is bad, but too many are out".to_owned())
                }
                (_, EndpointState::Draining) => {
                    ("draining", "leaves, with requests under way".to_owned())
                }
                (_, EndpointState::Ready) => ("ready", "is ready".to_owned()),
                _ => continue,
            };
            self.note(kind, &name, format!("{target} {text}"));
        }
        for target in before.keys().filter(|target| !now.contains_key(*target)) {
            self.note("left", &name, format!("{target} has left"));
        }
    }

    fn lead(&mut self, leader: &Value) {
        let now = match leader["name"].as_str() {
            Some(name) => format!("{name} leads"),
            None if leader["is"] == "nobody" => "nobody leads".to_owned(),
            None => "nobody knows who leads".to_owned(),
        };
        if now != self.leader {
            self.note("leader", "election", now.clone());
            self.leader = now;
        }
    }
}

// --- What there is to see ------------------------------------------------------------------------

/// Two services, somebody who calls them, and an election.
struct Stage {
    agent: String,
    client: Client,
    web: String,
    key: String,
    /// Whether the first instance fails.
    fails: Arc<AtomicBool>,
    channels: Vec<Channel>,
    backends: Mutex<Vec<Backend>>,
    /// Instances that were started so far: each has a name of its own.
    started: Mutex<usize>,
    leader: lictor::coordination::Observer<String>,
    /// The one that leads, and the name of the other.
    seat: Mutex<(Option<Leadership>, &'static str)>,
}

impl Stage {
    async fn set(place: &Place) -> Result<Self> {
        let client = place.client()?;
        // Names of their own, so that a second run on the same Consul is not in the way.
        let process = std::process::id();
        let (web, cache) = (format!("web-{process}"), format!("cache-{process}"));
        let key = format!("dashboard-{process}/leader");
        let fails = Arc::new(AtomicBool::new(false));
        let mut backends = Vec::new();
        for (name, fails) in [
            ("one", fails.clone()),
            ("two", Arc::default()),
            ("three", Arc::default()),
        ] {
            backends.push(Backend::switched(&client, &web, name, TAKES, fails).await?);
        }
        for name in ["left", "right"] {
            backends
                .push(Backend::switched(&client, &cache, name, TAKES / 4, Arc::default()).await?);
        }
        // By load alone: an instance that fails goes on getting requests until it is ejected, which
        // is to be seen here. The default would ask it so seldom that this takes a while.
        let channel = |service: &str| {
            let builder = Channel::builder(client.clone()).service(service);
            builder.policy(Policy::PendingRequests).build()
        };
        Ok(Self {
            agent: place.describe().to_owned(),
            channels: vec![channel(&web)?, channel(&cache)?],
            leader: client.election(key.as_str()).observe()?,
            seat: Mutex::new((Some(campaign(&client, &key, "anna").await?), "bert")),
            client,
            web,
            key,
            fails,
            started: Mutex::new(backends.len()),
            backends: Mutex::new(backends),
        })
    }

    fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::Relaxed);
    }

    /// The instance that came last leaves; the first three stay.
    async fn leave(&self) -> Result<()> {
        let mut backends = self.backends.lock().await;
        // The third is the last of the first service at the start.
        let last = if backends.len() > 5 {
            backends.len() - 1
        } else {
            2
        };
        if backends.len() < 5 {
            return Err("so few instances have to stay".into());
        }
        let leaving = backends.remove(last);
        drop(leaving.deregister().await?);
        Ok(())
    }

    /// One more instance of the first service.
    async fn join(&self) -> Result<()> {
        let mut started = self.started.lock().await;
        *started += 1;
        let name = format!("number-{started}");
        let backend = Backend::switched(&self.client, &self.web, &name, TAKES, Arc::default());
        let backend = backend.await?;
        self.backends.lock().await.push(backend);
        Ok(())
    }

    /// The leader steps down, and the other takes over.
    async fn resign(&self) -> Result<()> {
        let mut seat = self.seat.lock().await;
        if let Some(leadership) = seat.0.take() {
            leadership.resign().await?;
        }
        let next = seat.1;
        *seat = (
            Some(campaign(&self.client, &self.key, next).await?),
            other(next),
        );
        Ok(())
    }

    /// Takes everything out of Consul.
    async fn strike(&self) -> Result<()> {
        if let Some(leadership) = self.seat.lock().await.0.take() {
            leadership.resign().await?;
        }
        for backend in self.backends.lock().await.drain(..) {
            drop(backend.deregister().await?);
        }
        self.client.kv().delete(self.key.as_str()).await?;
        Ok(())
    }
}

fn other(name: &str) -> &'static str {
    if name == "anna" { "bert" } else { "anna" }
}

async fn campaign(client: &Client, key: &str, name: &'static str) -> Result<Leadership> {
    let election = client.election(key).profile(Profile::fast());
    Ok(election.candidate(name).campaign().await?)
}

/// Calls, a few at a time, and does not care what comes of it: the page tells.
async fn keep_calling(channel: Channel) {
    let mut callers = JoinSet::new();
    for _ in 0..6 {
        let channel = channel.clone();
        callers.spawn(async move {
            loop {
                let request = Request::new(Empty::<Bytes>::new());
                if let Ok(answer) = channel.request(request).await {
                    let _ = answer.into_body().collect().await;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
    callers.join_all().await;
}

// --- The director --------------------------------------------------------------------------------

/// Lets happen what the page is to show, and reads the page.
async fn direct(place: &Place, stage: &Stage, url: &str) -> Result<Report> {
    // Where lictor is built with its feature `tls`, reqwest wants to be told whose cryptography it
    // is to use, although nothing here is encrypted. An error says that somebody has told it before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut report = Report::new(place);
    let html = reqwest::get(url).await?.error_for_status()?.text().await?;
    report.page = html.len();
    let mut page = Page::open(&format!("{url}events")).await?;
    let ready = |told: &Value| states(told).iter().all(|state| state == "ready");
    let begun =
        |told: &Value| states(told).len() == 5 && ready(told) && told["leader"]["name"] == "anna";
    report.note(
        "all five are there, and anna leads",
        page.until(begun).await?,
    );
    stage.fail(true);
    let ejected = |told: &Value| states(told).iter().any(|state| state == "ejected");
    report.note("the one that fails is ejected", page.until(ejected).await?);
    stage.fail(false);
    report.note("it is ready again", page.until(ready).await?);
    stage.leave().await?;
    let left = |told: &Value| states(told).len() == 4;
    report.note("the one that leaves is gone", page.until(left).await?);
    stage.resign().await?;
    let led = |told: &Value| told["leader"]["name"] == "bert";
    report.note("bert leads", page.until(led).await?);
    Ok(report)
}

/// The states of all endpoints, of all services.
fn states(told: &Value) -> Vec<String> {
    let services = told["services"].as_array().into_iter().flatten();
    let endpoints =
        services.flat_map(|service| service["endpoints"].as_array().into_iter().flatten());
    endpoints
        .map(|endpoint| endpoint["state"]["is"].as_str().unwrap_or("").to_owned())
        .collect()
}

/// The stream that the page in a browser reads.
struct Page {
    response: reqwest::Response,
    unread: Vec<u8>,
}

impl Page {
    async fn open(url: &str) -> Result<Self> {
        let response = reqwest::get(url).await?.error_for_status()?;
        Ok(Self {
            response,
            unread: Vec::new(),
        })
    }

    /// Reads until the page shows something; how long that took.
    async fn until(&mut self, so: impl Fn(&Value) -> bool) -> Result<Duration> {
        let began = Instant::now();
        let reading = async {
            loop {
                let told = self.next().await?;
                if so(&told) {
                    return Ok(began.elapsed());
                }
            }
        };
        let read = tokio::time::timeout(Duration::from_secs(30), reading).await;
        read.map_err(|_| "waited 30 s in vain for the page")?
    }

    async fn next(&mut self) -> Result<Value> {
        loop {
            let end = self.unread.windows(2).position(|two| two == b"\n\n");
            if let Some(end) = end {
                let event: Vec<u8> = self.unread.drain(..end + 2).collect();
                // Comments keep the connection open, and say nothing.
                if let Some(data) = event.strip_prefix(b"data: ") {
                    return Ok(serde_json::from_slice(data)?);
                }
                continue;
            }
            let chunk = self.response.chunk().await?;
            self.unread.extend(chunk.ok_or("the page has ended")?);
        }
    }
}

/// What the page showed, and how long after it had happened.
struct Report {
    agent: String,
    page: usize,
    seen: Vec<(&'static str, Duration)>,
}

impl Report {
    fn new(place: &Place) -> Self {
        Self {
            agent: place.describe().to_owned(),
            page: 0,
            seen: Vec::new(),
        }
    }

    fn note(&mut self, what: &'static str, after: Duration) {
        self.seen.push((what, after));
    }
}

impl Findings for Report {
    fn json(&self) -> String {
        let seen = self.seen.iter().map(|(what, after)| {
            let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            json!({ "what": what, "after_ms": millis })
        });
        json!({ "agent": self.agent, "page_bytes": self.page, "seen": seen.collect::<Vec<_>>() })
            .to_string()
    }

    /// What is not seen is an error.
    fn is_good(&self) -> bool {
        true
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "agent   {}", self.agent)?;
        if self.seen.is_empty() {
            return Ok(());
        }
        writeln!(f, "page    {} bytes", self.page)?;
        for (what, after) in &self.seen {
            writeln!(f, "{what:<38}{:>6} ms", after.as_millis())?;
        }
        Ok(())
    }
}
