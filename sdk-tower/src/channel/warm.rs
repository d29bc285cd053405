//! Connections that are opened before there are requests.

use std::sync::{Arc, Weak};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::balance::{Candidate, Clock};
use crate::task::{Runtime, StopSignal, Worker};

use super::upstream::Upstream;

/// How many endpoints are connected to at one time: enough to be soon done with hundreds, and few
/// enough that nobody who watches for floods takes it for one.
const AT_ONCE: usize = 32;

/// Where endpoints that join ask for their connections.
#[derive(Clone, Debug)]
pub(super) struct Warming(mpsc::UnboundedSender<(Weak<Candidate<Upstream>>, Clock)>);

impl Warming {
    /// Starts the task that opens so many connections to each, and ends with the worker.
    pub(super) fn start(runtime: &Runtime, each: usize) -> (Self, Worker) {
        let (ask, asked) = mpsc::unbounded_channel();
        let worker = Worker::spawn(runtime, move |stop| run(asked, each, stop));
        (Self(ask), worker)
    }

    pub(super) fn ask(&self, member: &Arc<Candidate<Upstream>>, clock: Clock) {
        // Who does not listen has ended with the channel.
        self.0.send((Arc::downgrade(member), clock)).ok();
    }
}

async fn run(
    mut asked: mpsc::UnboundedReceiver<(Weak<Candidate<Upstream>>, Clock)>,
    each: usize,
    mut stop: StopSignal,
) {
    let mut warming = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.recv() => return,
            Some(_) = warming.join_next() => {}
            Some((member, clock)) = asked.recv(), if warming.len() < AT_ONCE => {
                warming.spawn(warm(member, each, clock));
            }
        }
    }
}

/// Opens the connections of one endpoint, one after the other.
async fn warm(member: Weak<Candidate<Upstream>>, each: usize, clock: Clock) {
    loop {
        // Not held while a connection is opened: the endpoint may leave.
        let opening = match member.upgrade() {
            Some(member) => member.backend().pool().warm(each),
            None => None,
        };
        let Some(opening) = opening else { return };
        match (opening.await, member.upgrade()) {
            (Ok(Ok(())), _) => {}
            (Ok(Err(refused)), Some(member)) => {
                tracing::debug!(target = %member.target(), error = %refused, "warming up failed");
                member.refused(clock.now());
                return;
            }
            // It has left.
            (Ok(Err(_)) | Err(_), _) => return,
        }
    }
}
