//! A job that must run once in a whole cluster: three processes campaign for it, one does it.
//!
//! The one that runs is killed without a goodbye, and another takes over when its lease is over;
//! that one is asked to stop, and the third takes over at once. In the end a report says how long
//! both took, and that no two ever ran at once.
//!
//! ```text
//! cargo run -p lictor-examples --example failover_job
//! cargo run -p lictor-examples --example failover_job -- --consul http://127.0.0.1:8500 --json
//! ```
//!
//! Without `--consul` or `CONSUL_HTTP_ADDR` it brings an agent of its own, in this process. The
//! three candidates are this program, started again with other arguments.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use lictor::Client;
use lictor::coordination::{FencingToken, Next, Profile, Role, Term};
use lictor_examples::place::{Options, Place};
use lictor_examples::{Findings, Result, example, status};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// The first argument of a process that campaigns.
const CANDIDATE: &str = "--candidate";

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [role, name, address, key, mark] if role == CANDIDATE => {
            let outcome = campaign(name, address, key, mark).await;
            status("failover_job", outcome.map(|()| true))
        }
        _ => example("failover_job", args.into_iter(), direct).await,
    }
}

// --- A candidate ---------------------------------------------------------------------------------

/// Campaigns until the parent closes the standard input, and tells it what happens, line by line.
async fn campaign(name: &str, address: &str, key: &str, mark: &str) -> Result<()> {
    let client = lictor::client::Builder::from_env()?
        .address(address)
        .build()?;
    let election = client
        .election(key)
        .profile(Profile::fast())
        .candidate(name);
    let mut roles = election.roles();
    let telling = async {
        while let Some(role) = roles.next().await {
            if let Role::Follower { leader } = role {
                println!("follows {leader}");
            }
        }
    };
    let running = election.run(asked_to_stop(), async |term| job(&term, mark).await);
    tokio::select! {
        outcome = running => outcome?,
        () = telling => return Err("the election is gone".into()),
    };
    Ok(())
}

/// The job. While it runs there is a file, which it must not find there when it starts.
async fn job(term: &Term, mark: &str) -> Next {
    let Ok(_running) = Running::start(term, mark) else {
        println!("overlap {}", term.token());
        return Next::Stop;
    };
    // What the job does has its place here, raced against the wish that it ends. It checks the
    // term before, and hands its token to, whatever it writes to.
    term.stopping().await;
    Next::Stop
}

/// Tells when the job starts, and when it stops in whatever way.
struct Running<'a> {
    token: FencingToken,
    mark: &'a str,
}

impl<'a> Running<'a> {
    fn start(term: &Term, mark: &'a str) -> std::io::Result<Self> {
        File::create_new(mark)?;
        let token = term.token();
        println!("start {token} {}", term.session());
        Ok(Self { token, mark })
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        std::fs::remove_file(self.mark).ok();
        println!("stop {}", self.token);
    }
}

/// Resolves when the parent closes the standard input, or is gone.
async fn asked_to_stop() {
    let (stop, stopped) = oneshot::channel();
    // A read of the standard input cannot be given up, so it is not one of the runtime's threads
    // that waits for it.
    std::thread::spawn(move || {
        std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()).ok();
        stop.send(()).ok();
    });
    stopped.await.ok();
}

// --- The director --------------------------------------------------------------------------------

/// Starts three candidates, and makes two of them leave; whether all was well.
async fn direct(options: &Options) -> Result<Report> {
    let place = Place::find(options).await?;
    let mut stage = Stage::set(&place.client()?)?;

    // One of three runs, and the others know it.
    let first = stage.until_one_runs(None).await?;

    // It dies. Nobody tells Consul: its lease has to run out.
    let killed = Instant::now();
    stage.kill(first)?;
    let second = stage.until_one_runs(Some(first)).await?;
    let crash = stage.last_start()? - killed;

    // The next one is asked to stop, and hands over.
    let asked = Instant::now();
    drop(stage.candidate(second)?.child.stdin.take());
    let third = stage.until_one_runs(Some(second)).await?;
    let hand_over = stage.last_start()? - asked;
    stage.until_ended(second).await?;

    drop(stage.candidate(third)?.child.stdin.take());
    stage.until_ended(third).await?;
    let report = Report {
        agent: place.describe().to_owned(),
        crash,
        hand_over,
        tokens: stage.terms.iter().map(|term| term.token).collect(),
        overlaps: stage.overlaps,
    };
    Ok(report)
}

/// The candidates, and what they have told.
struct Stage {
    candidates: Vec<Candidate>,
    told: mpsc::UnboundedReceiver<(usize, Instant, Option<String>)>,
    terms: Vec<Seen>,
    overlaps: usize,
    // Removed when the candidates are gone.
    mark: Mark,
}

/// The file that is there while the job runs.
struct Mark(PathBuf);

impl Mark {
    fn remove(&self) {
        std::fs::remove_file(&self.0).ok();
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.remove();
    }
}

struct Candidate {
    child: Child,
    /// The session that leads, as this one sees it.
    follows: Option<String>,
    ended: bool,
}

/// A term that was told of.
struct Seen {
    candidate: usize,
    token: u64,
    session: String,
    started: Instant,
}

impl Drop for Candidate {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Stage {
    fn set(client: &Client) -> Result<Self> {
        let program = std::env::current_exe()?;
        // Names of its own, so that a second run on the same Consul is not in the way.
        let name = format!("failover-job-{}", std::process::id());
        let key = format!("lictor/examples/{name}");
        let mark = Mark(std::env::temp_dir().join(name));
        mark.remove();
        let (tell, told) = mpsc::unbounded_channel();
        let mut candidates = Vec::new();
        for (number, name) in ["one", "two", "three"].into_iter().enumerate() {
            let mut child = Command::new(&program)
                .args([CANDIDATE, name])
                .arg(client.address())
                .arg(&key)
                .arg(&mark.0)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let output = child.stdout.take().ok_or("no standard output")?;
            let tell = tell.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    tell.send((number, Instant::now(), Some(line))).ok();
                }
                tell.send((number, Instant::now(), None)).ok();
            });
            candidates.push(Candidate {
                child,
                follows: None,
                ended: false,
            });
        }
        Ok(Self {
            candidates,
            told,
            terms: Vec::new(),
            overlaps: 0,
            mark,
        })
    }

    fn candidate(&mut self, number: usize) -> Result<&mut Candidate> {
        let candidate = self.candidates.get_mut(number);
        candidate.ok_or_else(|| "no such candidate".into())
    }

    fn last_start(&self) -> Result<Instant> {
        let last = self.terms.last().ok_or("nobody ran")?;
        Ok(last.started)
    }

    /// Ends one as `kill -9` does; the mark that it leaves behind is no job that runs.
    fn kill(&mut self, number: usize) -> Result<()> {
        let child = &mut self.candidate(number)?.child;
        child.kill()?;
        child.wait()?;
        self.mark.remove();
        Ok(())
    }

    /// Waits until another than the former runs and all who live know it; returns who it is.
    async fn until_one_runs(&mut self, former: Option<usize>) -> Result<usize> {
        self.until("another one runs", |stage| {
            let last = stage.terms.last()?;
            let known = stage.candidates.iter().enumerate().all(|(number, other)| {
                let asked = other.child.stdin.is_none();
                number == last.candidate
                    || Some(number) == former
                    || other.ended
                    || asked
                    || other.follows.as_deref() == Some(&last.session)
            });
            (Some(last.candidate) != former && known).then_some(last.candidate)
        })
        .await
    }

    async fn until_ended(&mut self, number: usize) -> Result<()> {
        self.until("it has ended", |stage| {
            let candidate = stage.candidates.get(number)?;
            candidate.ended.then_some(())
        })
        .await?;
        let status = self.candidate(number)?.child.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("a candidate failed: {status}").into())
        }
    }

    /// Listens until something is so; half a minute is enough for anything here.
    async fn until<T>(&mut self, what: &str, is_so: impl Fn(&Self) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(found) = is_so(self) {
                return Ok(found);
            }
            match tokio::time::timeout_at(deadline, self.told.recv()).await {
                Ok(Some((number, at, line))) => self.heard(number, at, line.as_deref())?,
                Ok(None) => return Err(format!("all candidates ended before {what}").into()),
                Err(_) => return Err(format!("waited 30 s in vain until {what}").into()),
            }
        }
    }

    fn heard(&mut self, number: usize, at: Instant, line: Option<&str>) -> Result<()> {
        let words: Vec<&str> = line.iter().flat_map(|line| line.split(' ')).collect();
        match words.as_slice() {
            [] => self.candidate(number)?.ended = true,
            ["follows", session] => {
                self.candidate(number)?.follows = Some((*session).to_owned());
            }
            ["start", token, session] => self.terms.push(Seen {
                candidate: number,
                token: token.parse()?,
                session: (*session).to_owned(),
                started: at,
            }),
            ["stop", _] => {}
            ["overlap", _] => self.overlaps += 1,
            _ => return Err(format!("a candidate told nonsense: {words:?}").into()),
        }
        Ok(())
    }
}

/// What came out.
struct Report {
    agent: String,
    crash: Duration,
    hand_over: Duration,
    tokens: Vec<u64>,
    overlaps: usize,
}

impl Findings for Report {
    fn is_good(&self) -> bool {
        self.overlaps == 0 && self.tokens.is_sorted_by(|former, next| former < next)
    }

    fn json(&self) -> String {
        serde_json::json!({
            "agent": self.agent,
            "crash_ms": self.crash.as_millis(),
            "hand_over_ms": self.hand_over.as_millis(),
            "tokens": self.tokens,
            "overlaps": self.overlaps,
        })
        .to_string()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "agent            {}", self.agent)?;
        writeln!(f, "after a crash    {:.3} s", self.crash.as_secs_f64())?;
        writeln!(f, "after a goodbye  {:.3} s", self.hand_over.as_secs_f64())?;
        writeln!(f, "fencing tokens   {:?}", self.tokens)?;
        match self.overlaps {
            0 => writeln!(f, "two at once      never"),
            some => writeln!(f, "two at once      {some} times: this must not be"),
        }
    }
}
