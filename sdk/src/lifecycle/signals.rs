//! What the operating system asks of a process.

use tokio::runtime::Handle;

use crate::error::{Error, ErrorKind, Result};

/// The signals that end a process: `SIGTERM` and Ctrl-C.
#[cfg(unix)]
#[derive(Debug)]
pub(super) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    /// From now on they do not end the process by themselves; with the runtime they come through.
    pub(super) fn listen() -> Result<(Self, Handle)> {
        use tokio::signal::unix::{SignalKind, signal};

        let runtime = runtime()?;
        let listen = |kind| signal(kind).map_err(refused);
        let signals = Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        };
        Ok((signals, runtime))
    }

    /// Waits for the next one.
    ///
    /// Cancel safe: none is lost, but several of one kind may be one.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            Some(()) = self.terminate.recv() => "SIGTERM",
            Some(()) = self.interrupt.recv() => "SIGINT",
            else => std::future::pending().await,
        }
    }
}

/// The signal that ends a process here: Ctrl-C.
#[cfg(not(unix))]
#[derive(Debug)]
pub(super) struct Signals;

#[cfg(not(unix))]
impl Signals {
    pub(super) fn listen() -> Result<(Self, Handle)> {
        Ok((Self, runtime()?))
    }

    pub(super) async fn next(&mut self) -> &'static str {
        match tokio::signal::ctrl_c().await {
            Ok(()) => "Ctrl-C",
            Err(_) => std::future::pending().await,
        }
    }
}

fn runtime() -> Result<Handle> {
    Handle::try_current().map_err(|_| {
        Error::new(ErrorKind::NoRuntime)
            .context("signals come through the runtime: call this within one")
    })
}

#[cfg(unix)]
fn refused(err: std::io::Error) -> Error {
    Error::new(ErrorKind::Config)
        .context("signals: the system does not let them be handled")
        .caused_by(err)
}
