//! The reference Go client as a peer, where Go is on the machine.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::Outcome;
use crate::worker::this_program;

/// Builds the program in `benches/go` into the target directory and returns its path.
///
/// # Errors
/// If there is no Go, or the build fails (it needs the module proxy once).
pub async fn build() -> Outcome<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("go");
    let program = this_program()?.with_file_name("lictor-benches-go");
    let built = Command::new("go")
        .args(["build", "-trimpath", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(source)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|_| "Go is not on this machine")?;
    if built.status.success() {
        return Ok(program);
    }
    let complaint = String::from_utf8_lossy(&built.stderr);
    let line = complaint.lines().next().unwrap_or("go build failed");
    Err(format!("the Go program cannot be built: {line}").into())
}
