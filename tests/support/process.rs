//! A child process that cannot outlive the test process, however that one ends.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

/// Holds the read end of a pipe whose write end only the test process has. End of file means
/// that the process is gone (or has dropped its [`Process`]): the child is killed and its folder
/// removed. When the child ends by itself, so does this script, and the folder stays.
const WATCHDOG: &str = r#"
dir=$1 log=$2
shift 2
exec 3<&0
"$@" </dev/null >>"$log" 2>&1 3<&- &
child=$!
echo "$child"
( while read -r _ <&3; do :; done; : >"$dir/abandoned"; kill -KILL "$child" ) >/dev/null 2>&1 &
watcher=$!
wait "$child"
status=$?
kill "$watcher" 2>/dev/null
if [ -e "$dir/abandoned" ]; then rm -rf "$dir"; fi
exit "$status"
"#;

#[derive(Debug)]
pub(crate) struct Process {
    watchdog: Child,
    lifeline: Option<ChildStdin>,
    pid: u32,
}

impl Process {
    /// Starts `command` with its output in `dir/process.log`.
    pub(crate) fn start(dir: &Path, command: &mut Command) -> io::Result<Self> {
        let mut watchdog = Command::new("/bin/sh");
        watchdog
            .args(["-c", WATCHDOG, "watchdog"])
            .arg(dir)
            .arg(log_file(dir))
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // The shell remarks on every child that a signal ends.
            .stderr(Stdio::null())
            // Away from the terminal: what interrupts the tests must not reach those who tidy up.
            .process_group(0);
        let mut watchdog = watchdog.spawn()?;
        let lifeline = watchdog.stdin.take();
        let mut line = String::new();
        if let Some(stdout) = watchdog.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let pid = line.trim().parse().map_err(io::Error::other)?;
        Ok(Self {
            watchdog,
            lifeline,
            pid,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has ended by itself or by a signal.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.watchdog.try_wait(), Ok(None))
    }

    /// Sends `TERM`, `KILL`, `STOP` or `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        // The shell's own `kill`, because a small machine may lack the program.
        let status = Command::new("/bin/sh")
            .args(["-c", "kill -s \"$1\" \"$2\"", "kill", name])
            .arg(self.pid.to_string())
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "process {} takes no {name}",
            self.pid
        );
    }

    /// Waits until all of its threads stand still: until then it may answer. Where there is no
    /// `/proc`, nobody can tell.
    #[expect(
        clippy::disallowed_methods,
        reason = "a few milliseconds, right after a shell that was waited for in the same way"
    )]
    pub(crate) fn until_stopped(&self) {
        let tasks = format!("/proc/{}/task", self.pid);
        let runs = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            // The state stands behind the name, which is in parentheses.
            let state = stat.rsplit(") ").next().unwrap_or_default();
            !state.is_empty() && !state.starts_with('T')
        };
        for _ in 0..5_000 {
            let tasks = fs::read_dir(&tasks).into_iter().flatten();
            if !tasks.flatten().any(runs) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("process {} does not stop", self.pid);
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn end(mut self) {
        if !self.has_ended() {
            self.signal("TERM");
            self.watchdog.wait().ok();
        }
    }

    /// Kills it and waits until it is gone; its folder stays.
    pub(crate) fn kill(mut self) {
        if !self.has_ended() {
            self.signal("KILL");
            self.watchdog.wait().ok();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.has_ended() {
            drop(self.lifeline.take());
            self.watchdog.wait().ok();
        }
    }
}

/// Everything it has written so far.
pub(crate) fn log(dir: &Path) -> String {
    fs::read_to_string(log_file(dir)).unwrap_or_default()
}

/// Puts a line into the log that tells one run from the next.
pub(crate) fn mark(dir: &Path, line: &str) -> io::Result<()> {
    let mut log: File = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log_file(dir))?;
    writeln!(log, "{line}")
}

fn log_file(dir: &Path) -> std::path::PathBuf {
    dir.join("process.log")
}
