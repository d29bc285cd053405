//! Measuring in a process of its own, so that CPU time and peak memory are one contender's alone.
//!
//! A bench program starts *itself* again with a hidden first argument (its mode) and a job as JSON.
//! A worker answers with a [`Sample`] as one JSON line on its standard output.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::Outcome;
use crate::contest::Sample;

/// A child process that talks in lines; it is killed when this is dropped.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    /// Starts `program` with these arguments; its standard error is ours.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn start(
        program: &Path,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Outcome<Self> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{} cannot be started: {error}", program.display()))?;
        let input = child.stdin.take();
        let output = child
            .stdout
            .take()
            .ok_or("a child without standard output")?;
        Ok(Self {
            child,
            input,
            output: BufReader::new(output).lines(),
        })
    }

    /// Starts `program` in a hidden mode with a job.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn with_job(program: &Path, mode: &str, job: &impl Serialize) -> Outcome<Self> {
        Self::start(program, [mode, &serde_json::to_string(job)?])
    }

    /// The next line it prints.
    ///
    /// # Errors
    /// If it ended instead.
    pub async fn line(&mut self) -> Outcome<String> {
        match self.output.next_line().await? {
            Some(line) => Ok(line),
            None => Err(format!("the worker ended early ({})", self.child.wait().await?).into()),
        }
    }

    /// Writes a line to its standard input.
    ///
    /// # Errors
    /// If it does not read any more.
    pub async fn tell(&mut self, line: &str) -> Outcome<()> {
        let input = self.input.as_mut().ok_or("the worker's input is closed")?;
        input.write_all(line.as_bytes()).await?;
        Ok(input.write_all(b"\n").await?)
    }

    /// Kills it as a crash does (`SIGKILL`), and waits until it is gone.
    ///
    /// # Errors
    /// If it is gone already.
    pub async fn kill(mut self) -> Outcome<()> {
        Ok(self.child.kill().await?)
    }

    /// Closes its standard input and waits until it ends.
    ///
    /// # Errors
    /// If waiting fails.
    pub async fn end(mut self) -> Outcome<ExitStatus> {
        drop(self.input.take());
        Ok(self.child.wait().await?)
    }
}

/// Runs one job in a process of its own and returns what it measured.
///
/// # Errors
/// If the worker fails; what it said is on standard error.
pub async fn measure(program: &Path, mode: &str, job: &impl Serialize) -> Outcome<Sample> {
    let mut worker = Worker::with_job(program, mode, job)?;
    let sample = serde_json::from_str(&worker.line().await?)?;
    let status = worker.end().await?;
    if !status.success() {
        return Err(format!("the worker ended with {status}").into());
    }
    Ok(sample)
}

/// Is a worker: does the job that was given as JSON, and prints what it measured, if it has not
/// talked in lines of its own.
///
/// # Errors
/// If the job is none, or fails.
pub async fn run<J, F>(job: Option<String>, measure: impl FnOnce(J) -> F) -> Outcome<()>
where
    J: DeserializeOwned,
    F: Future<Output = Outcome<Option<Sample>>> + Send + 'static,
{
    let job = serde_json::from_str(&job.ok_or("no job")?)?;
    // The runtime's own thread is left alone: tasks run on the workers, as in a server.
    let sample = JoinSet::from_iter([measure(job)])
        .join_next()
        .await
        .ok_or("no measurement")???;
    if let Some(sample) = sample {
        println!("{}", serde_json::to_string(&sample)?);
    }
    Ok(())
}

/// How a program of these ends; what has failed is said on standard error.
#[must_use]
pub fn ended(done: &Outcome<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

/// Ends when the person or the system wants the program to end, so that what it started ends too.
pub async fn asked_to_end() {
    let Ok(mut terminated) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminated.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// Ends when standard input does: a worker that serves ends with its parent, however that dies.
pub async fn input_ended() {
    let (ended, seen) = oneshot::channel();
    // A thread of its own: a blocking task of the runtime would hold up the end of the program.
    std::thread::spawn(move || {
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).ok();
        ended.send(()).ok();
    });
    seen.await.ok();
}

/// The lines of standard input, until it ends.
#[must_use]
pub fn input() -> mpsc::UnboundedReceiver<String> {
    let (tell, lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// This very program.
///
/// # Errors
/// If the system does not tell its path.
pub fn this_program() -> Outcome<PathBuf> {
    Ok(std::env::current_exe()?)
}

/// A program of this package that stands beside this one; it is built if it is not there, or if
/// it is older.
///
/// `cargo run --bin NAME` builds that program only, and a program that counts allocations cannot
/// also be the one that measures time.
///
/// # Errors
/// If it is not there and cannot be built.
pub async fn sibling(name: &str, features: &[&str]) -> Outcome<PathBuf> {
    let this = this_program()?;
    let path = this.with_file_name(name);
    let linked = |program: &Path| std::fs::metadata(program)?.modified();
    // A build of both links them within minutes, in any order.
    if let (Ok(theirs), Ok(ours)) = (linked(&path), linked(&this))
        && theirs + Duration::from_secs(300) >= ours
    {
        return Ok(path);
    }
    eprintln!("cargo looks whether {name} is up to date; if it is not, building takes a while");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args([
        "build",
        "--quiet",
        "-p",
        env!("CARGO_PKG_NAME"),
        "--bin",
        name,
    ]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    if !features.is_empty() {
        command.args(["--features", &features.join(",")]);
    }
    let built = command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .is_ok_and(|built| built.status.success());
    if built || path.exists() {
        return Ok(path);
    }
    Err(
        format!("{name} is not built and cannot be: run `cargo build -p lictor-benches --bins`")
            .into(),
    )
}
