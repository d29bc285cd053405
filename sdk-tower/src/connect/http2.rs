//! One HTTP/2 connection, shared by all requests to an endpoint.

use http::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio_util::sync::ReusableBoxFuture;

use crate::task::Runtime;

use super::body::Outgoing;
use super::fence::{Fence, Fenced};
use super::frames::Frames;
use super::lease::Call;
use super::room::{self, CloseOnDrop, Room, Ticket};
use super::stream::Stream;

/// How long nothing is heard before the endpoint is asked by a ping whether it is there.
///
/// A path that dies without a word (a pulled cable, a firewall that forgets) is told by nothing
/// else: what is written is only lost.
const PING_AFTER: Duration = Duration::from_secs(10);
/// How long the answer to a ping may take before the connection is given up.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The pool's handle of a connection. It closes when this and all streams are gone.
pub(super) struct Connection {
    sender: http2::SendRequest<Outgoing>,
    fence: Fence,
    room: Arc<Room>,
    used: bool,
    /// Responses that have come, and what tells this connection from others.
    answers: Arc<AtomicU64>,
    ended: Arc<OnceLock<Arc<hyper::Error>>>,
    /// The pool's age when the connection was last asked for.
    pub(super) aged: u32,
    /// The pool's age at which it takes no new request.
    pub(super) ends: Option<u32>,
}

/// One request's part of a connection.
pub(crate) struct Http2 {
    sender: http2::SendRequest<Outgoing>,
    fence: Fence,
    call: Call,
    ticket: Ticket,
    /// What waits for a place.
    queued: Option<Queued>,
    reused: bool,
    answers: Arc<AtomicU64>,
    /// What has ended the connection, if it was an error.
    ended: Arc<OnceLock<Arc<hyper::Error>>>,
    /// The responses that had come when this request was sent.
    before: u64,
}

/// A request that the connection has no room for yet, and whether it has in the end.
type Queued = ReusableBoxFuture<'static, (bool, Request<Outgoing>)>;

impl Connection {
    /// Makes a connection of a socket and starts the tasks that drive it, which end with it.
    pub(super) async fn start(stream: Stream, runtime: &Runtime) -> hyper::Result<Self> {
        let room = Arc::<Room>::default();
        let stream = stream.followed_by(Frames::new(Arc::clone(&room)));
        let (sender, connection) = http2::Builder::new(runtime.clone())
            .timer(TokioTimer::new())
            .initial_max_send_streams(room::AT_FIRST)
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_TIMEOUT)
            // Else the first request after a pause would find out.
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await?;
        let ended = Arc::<OnceLock<_>>::default();
        let tell = Arc::clone(&ended);
        let fence = Fence::default();
        let mut connection = Fenced::new(connection, fence.clone());
        let closing = CloseOnDrop(Arc::clone(&room));
        runtime.drive(async move {
            // It is told before the connection is dropped, by which its streams hear of the end.
            if let Err(error) = (&mut connection).await {
                tracing::debug!(%error, "connection ended");
                tell.set(Arc::new(error)).ok();
            }
            drop(closing);
        });
        Ok(Self {
            sender,
            fence,
            room,
            used: false,
            answers: Arc::default(),
            ended,
            aged: 0,
            ends: None,
        })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed() || self.room.is_closed()
    }

    /// It lies idle from now on: whoever takes it finds one that stood before.
    pub(super) fn rest(&mut self) {
        self.used = true;
    }

    pub(super) fn stream(&mut self) -> Http2 {
        Http2 {
            sender: self.sender.clone(),
            fence: self.fence.clone(),
            call: ReusableBoxFuture::new(pending()),
            ticket: Ticket::new(&self.room),
            queued: None,
            reused: std::mem::replace(&mut self.used, true),
            answers: Arc::clone(&self.answers),
            ended: Arc::clone(&self.ended),
            before: 0,
        }
    }

    /// Whether the stream is one of this connection, which has answered nobody since it was sent.
    pub(super) fn is_silent_since(&self, stream: &Http2) -> bool {
        Arc::ptr_eq(&self.answers, &stream.answers)
            && self.answers.load(Ordering::Relaxed) == stream.before
    }
}

impl Http2 {
    pub(super) fn is_reused(&self) -> bool {
        self.reused
    }

    pub(super) fn stood_before(&mut self) {
        self.reused = true;
    }

    /// Sends a request as soon as there is room for it.
    pub(super) fn send(&mut self, request: Request<Outgoing>) {
        self.before = self.answers.load(Ordering::Relaxed);
        if self.ticket.enter() {
            return self.hand_over(request);
        }
        let entering = self.ticket.entering();
        let queued = async move { (entering.await, request) };
        self.queued = Some(ReusableBoxFuture::new(queued));
    }

    fn hand_over(&mut self, request: Request<Outgoing>) {
        let sender = &mut self.sender;
        let sent = self.fence.send(|| sender.try_send_request(request));
        self.call.set(sent);
    }

    /// Whether the request was handed over to the connection.
    pub(super) fn is_sent(&self) -> bool {
        self.ticket.is_inside()
    }

    /// Waits until the request is handed over; gives it back if the connection takes no more.
    pub(super) fn poll_queued(&mut self, cx: &mut Context<'_>) -> Poll<Option<Request<Outgoing>>> {
        let Some(queued) = &mut self.queued else {
            return Poll::Ready(None);
        };
        let (has_entered, request) = ready!(queued.poll(cx));
        self.queued = None;
        if !has_entered {
            return Poll::Ready(Some(request));
        }
        self.ticket.entered();
        self.hand_over(request);
        Poll::Ready(None)
    }

    pub(super) fn ended(&self) -> Option<Arc<hyper::Error>> {
        self.ended.get().cloned()
    }

    pub(super) fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn call(&mut self) -> &mut Call {
        &mut self.call
    }
}
