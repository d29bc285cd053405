//! Probes that are programs of their own, as Nagios and its kin run them.

use std::ffi::OsString;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::{Health, Probe, Run};
use crate::task;

/// What is read of an output before its first line has to have ended.
const READ: usize = 4_096;

impl Probe {
    /// A probe that runs a program, as Nagios runs its plug-ins.
    ///
    /// | it exits with | the finding |
    /// |---|---|
    /// | 0 | passing |
    /// | 1 | warning |
    /// | 2 | critical |
    /// | 3 (unknown) or anything else, a signal, or not at all within the deadline | critical, because nobody knows |
    ///
    /// The text is the first line of what it prints to its standard output, or where that is empty
    /// to its standard error, without the performance data behind `|`. The program is run without
    /// a shell, with this process's environment and without an input, and is killed at the
    /// [`deadline`](Probe::deadline); what it started itself is not. However much it prints, little
    /// is kept.
    pub fn plugin<A: Into<OsString>>(
        name: impl Into<Arc<str>>,
        program: impl Into<OsString>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        let program = program.into();
        let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
        let run: Run = Arc::new(move || {
            let mut command = Command::new(&program);
            command
                .args(&arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true);
            let shown = program.to_string_lossy().into_owned();
            Box::pin(async move {
                match ran(&mut command).await {
                    Ok((status, output)) => finding(status, &output),
                    Err(err) => Health::critical(format!("{shown}: cannot be run: {err}")),
                }
            })
        });
        Self::of(name.into(), run)
    }
}

/// Runs it to its end, and gives what it printed first.
async fn ran(command: &mut Command) -> std::io::Result<(ExitStatus, String)> {
    let mut child = task::child(command)?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (out, err, status) = tokio::join!(beginning(out), beginning(err), child.wait());
    let text = if out.trim().is_empty() { err } else { out };
    Ok((status?, text))
}

/// The beginning of what is printed; the rest is read, so that the program can end, and forgotten.
async fn beginning(printed: Option<impl AsyncRead + Unpin>) -> String {
    let mut kept = Vec::new();
    let mut block = [0; 1_024];
    let Some(mut printed) = printed else {
        return String::new();
    };
    while let Ok(read @ 1..) = printed.read(&mut block).await {
        let room = READ - kept.len();
        kept.extend(block.iter().take(read.min(room)));
    }
    String::from_utf8_lossy(&kept).into_owned()
}

fn finding(status: ExitStatus, printed: &str) -> Health {
    let line = printed.lines().find(|line| !line.trim().is_empty());
    // "The plugin output … | performance data" (Nagios Plugin API).
    let text = line.and_then(|line| line.split('|').next());
    let text = text.unwrap_or_default().trim().to_owned();
    match status.code() {
        Some(0) => Health::passing(text),
        Some(1) => Health::warning(text),
        Some(2) => Health::critical(text),
        Some(3) => Health::critical(format!("unknown: {text}")),
        _ => Health::critical(format!("{status}: {text}")),
    }
}
