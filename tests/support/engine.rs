//! A Docker engine of the test's own, as Debian's package `docker.io` has it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::timeout;

use crate::consul::new_folder;
use crate::process::{self, Process};
use crate::wait::poll;

/// The only image: nothing is in it.
const IMAGE: &str = "lictor-empty";

/// How long the engine takes to start at the most, and one command of its client.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where Debian puts what an engine consists of; `/usr/sbin` is not on the path of everybody.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A running engine, whose containers have the network of this machine.
///
/// It makes no bridge and no rules for packets, and keeps what it has in a folder of its own. Its
/// containers see this machine's libraries, so that a program that was built here runs in them.
/// Dropping it removes its containers and ends it.
#[derive(Debug)]
pub struct Engine {
    dir: PathBuf,
    process: Option<Process>,
}

impl Engine {
    /// Starts one.
    ///
    /// # Errors
    ///
    /// Why there cannot be one here: it needs the package, root's rights, and a kernel that lets
    /// it make namespaces.
    pub async fn start() -> Result<Self, String> {
        let find = |name: &str| {
            let mut places = PATH.split(':').map(|folder| Path::new(folder).join(name));
            places.find(|path| path.exists())
        };
        for needed in ["dockerd", "docker", "containerd", "runc"] {
            find(needed).ok_or_else(|| format!("there is no {needed} (Debian: docker.io)"))?;
        }
        let dir = new_folder();
        let socket = socket(&dir);
        let place = |name: &str| dir.join(name).display().to_string();
        let mut command = Command::new("/usr/bin/env");
        command
            .args([&format!("PATH={PATH}"), "dockerd"])
            .args(["--data-root", &place("data"), "--exec-root", &place("run")])
            .args(["--pidfile", &place("pid"), "--host", &socket])
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
            .args(["--storage-driver=vfs", "--log-level=warn"]);
        let process = Process::start(&dir, &mut command).map_err(|error| error.to_string())?;
        let mut engine = Self {
            dir,
            process: Some(process),
        };
        engine.is_up().await?;
        let empty = engine.dir.join("empty.tar");
        // The end of an archive is two blocks of zeros.
        fs::write(&empty, [0; 1024]).map_err(|error| error.to_string())?;
        let empty = empty.display().to_string();
        engine.docker(&["import", &empty, IMAGE]).await?;
        engine.run("first", &[], &["/usr/bin/env"], &[]).await?;
        engine.docker(&["wait", "first"]).await?;
        Ok(engine)
    }

    async fn is_up(&mut self) -> Result<(), String> {
        let up = poll(PATIENCE, async || {
            let ended = self.process.as_mut().is_none_or(Process::has_ended);
            if ended || self.docker(&["version"]).await.is_ok() {
                return Some(!ended);
            }
            None
        });
        if up.await == Some(true) {
            return Ok(());
        }
        let log = process::log(&self.dir);
        let last = log.lines().last().unwrap_or("it says nothing");
        Err(format!("dockerd does not run here: {last}"))
    }

    /// Starts a container of this name that runs a program of this machine, with these variables.
    ///
    /// # Errors
    ///
    /// What the client says.
    pub async fn run(
        &self,
        name: &str,
        variables: &[(&str, &str)],
        program: &[&str],
        folders: &[&str],
    ) -> Result<(), String> {
        let mut arguments = vec!["run", "--detach", "--name", name, "--network", "host"];
        let libraries = ["/usr", "/lib", "/lib64"];
        let libraries = libraries.iter().filter(|folder| Path::new(folder).exists());
        let volumes = libraries
            .chain(folders)
            .map(|one| format!("{one}:{one}:ro"));
        let volumes: Vec<String> = volumes.collect();
        arguments.extend(volumes.iter().flat_map(|volume| ["--volume", volume]));
        let variables = variables
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let variables: Vec<String> = variables.collect();
        arguments.extend(variables.iter().flat_map(|one| ["--env", one]));
        arguments.push(IMAGE);
        arguments.extend(program);
        self.docker(&arguments).await.map(drop)
    }

    /// Runs a command of the client, and gives what it printed.
    ///
    /// # Errors
    ///
    /// What it said if it failed, or that it took too long.
    pub async fn docker(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = tokio::process::Command::from(self.client(arguments));
        let output = timeout(PATIENCE, command.kill_on_drop(true).output());
        let output = output
            .await
            .map_err(|_| format!("docker {arguments:?} hangs"))?;
        let output = output.map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(format!("docker {arguments:?}: {}", text(&output.stderr)))
        }
    }

    fn client(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("/usr/bin/env");
        command
            .args([
                &format!("PATH={PATH}"),
                "docker",
                "--host",
                &socket(&self.dir),
            ])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }
}

/// A path of a socket has to be short, which that of a temporary folder is.
fn socket(dir: &Path) -> String {
    format!("unix://{}", dir.join("socket").display())
}

impl Drop for Engine {
    fn drop(&mut self) {
        // A container outlives its engine.
        let all = self.client(&["ps", "--all", "--quiet"]).output();
        let all = all.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let all = all.unwrap_or_default();
        let mut remove = vec!["rm", "--force"];
        remove.extend(all.split_whitespace());
        if remove.len() > 2 {
            self.client(&remove).output().ok();
        }
        if let Some(process) = self.process.take() {
            process.end();
        }
        fs::remove_dir_all(&self.dir).ok();
    }
}
