//! A request body that can be sent again: it is kept, up to a limit, as it goes out.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::{Body, Frame, SizeHint};

use crate::connect::Outgoing;
use crate::error::BoxError;

/// The body of a request, as far as it can be sent again.
pub(super) enum Spare {
    Empty,
    Kept(Replay),
    /// It is longer than what is kept, or nobody may ask for it again.
    Gone,
}

impl Spare {
    /// Takes the body of a request into keeping, up to so many bytes, if it may be `needed`.
    pub(super) fn of(request: &mut Request<Outgoing>, needed: bool, limit: usize) -> Self {
        if request.body().is_empty() {
            return Self::Empty;
        }
        if !needed {
            return Self::Gone;
        }
        let body = std::mem::replace(request.body_mut(), Outgoing::Empty);
        match Replay::new(body, limit) {
            Ok((replay, first)) => {
                *request.body_mut() = first;
                Self::Kept(replay)
            }
            Err(body) => {
                *request.body_mut() = body;
                Self::Gone
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    /// Whether a copy of the request is worth its while.
    pub(super) fn is_there(&self) -> bool {
        !matches!(self, Self::Gone)
    }

    /// Whether it was let go, or will never be there again.
    pub(super) fn is_lost(&self) -> bool {
        match self {
            Self::Empty => false,
            Self::Kept(replay) => replay.is_lost(),
            Self::Gone => true,
        }
    }

    /// Whether several attempts can send it at one time: only one can ask for more of it.
    pub(super) fn is_whole(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Kept(replay) => replay.is_whole(),
            Self::Gone => false,
        }
    }

    /// Writes the body into the copy of a request; none if it was let go.
    pub(super) fn refill(&self, mut copy: Request<Outgoing>) -> Option<Request<Outgoing>> {
        match self {
            Self::Empty => {}
            Self::Kept(replay) => *copy.body_mut() = replay.again()?,
            Self::Gone => return None,
        }
        Some(copy)
    }
}

/// The keeper of a body, from which copies are made for each attempt.
///
/// Dropping it says that there will be no other: what goes out from then on is not kept.
pub(super) struct Replay(Arc<Mutex<Kept>>);

/// Guarded by a lock that two threads ask for only while one attempt is being replaced by the
/// next.
struct Kept {
    /// What was not asked for yet.
    rest: Option<Outgoing>,
    data: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    size: usize,
    limit: usize,
    /// It is longer than the limit, or has failed: there is nothing to send again.
    lost: bool,
    /// Nobody will ask for it again.
    unneeded: bool,
    /// The number of the last copy. It alone may ask for what comes next: the task of a
    /// connection may hold on to an older copy for a while, and the two would wake each other.
    newest: u32,
    hint: SizeHint,
}

/// The body as one attempt sends it.
struct Copy {
    kept: Arc<Mutex<Kept>>,
    number: u32,
    next: usize,
    passed: u64,
    ended: bool,
}

/// Another attempt has taken over the rest of the body.
#[derive(Debug)]
struct TakenOver;

impl Replay {
    /// Keeps this body, and gives the first copy of it.
    ///
    /// One that is known to be longer than the limit is given back as it is.
    pub(super) fn new(body: Outgoing, limit: usize) -> Result<(Self, Outgoing), Outgoing> {
        let hint = body.size_hint();
        if hint.lower() > u64::try_from(limit).unwrap_or(u64::MAX) {
            return Err(body);
        }
        let replay = Self(Arc::new(Mutex::new(Kept {
            rest: Some(body),
            data: VecDeque::new(),
            trailers: None,
            size: 0,
            limit,
            lost: false,
            unneeded: false,
            newest: 0,
            hint,
        })));
        let first = replay.copy(0);
        Ok((replay, first))
    }

    /// A copy for another attempt, which continues the body where the last one stopped to ask.
    ///
    /// None if the body is longer than what is kept.
    pub(super) fn again(&self) -> Option<Outgoing> {
        let number = {
            let mut kept = lock(&self.0);
            if kept.lost {
                return None;
            }
            kept.newest = kept.newest.wrapping_add(1);
            kept.newest
        };
        Some(self.copy(number))
    }

    pub(super) fn is_lost(&self) -> bool {
        lock(&self.0).lost
    }

    /// Whether nothing of it is outstanding: several attempts can send it at one time.
    pub(super) fn is_whole(&self) -> bool {
        let kept = lock(&self.0);
        !kept.lost && kept.rest.is_none()
    }

    fn copy(&self, number: u32) -> Outgoing {
        Outgoing::new(Copy {
            kept: Arc::clone(&self.0),
            number,
            next: 0,
            passed: 0,
            ended: false,
        })
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        lock(&self.0).unneeded = true;
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    // A foreign body may panic while it is asked: then it is never asked again.
    kept.lock().unwrap_or_else(|poisoned| {
        let mut kept = PoisonError::into_inner(poisoned);
        kept.lost = true;
        kept
    })
}

impl Kept {
    /// Asks the body itself for what comes next, and keeps it.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(rest) = &mut self.rest else {
            return Poll::Ready(None);
        };
        let polled = std::task::ready!(Pin::new(&mut *rest).poll_frame(cx));
        let mut is_over = rest.is_end_stream();
        match &polled {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.keep(data);
                } else if let Some(trailers) = frame.trailers_ref() {
                    // Nothing comes after trailers.
                    is_over = true;
                    self.trailers = Some(trailers.clone());
                }
            }
            Some(Err(_)) => self.lose(),
            None => {}
        }
        if is_over || !matches!(polled, Some(Ok(_))) {
            self.rest = None;
        }
        Poll::Ready(polled)
    }

    fn keep(&mut self, data: &Bytes) {
        self.size = self.size.saturating_add(data.len());
        if self.size > self.limit {
            self.lose();
        }
        if !self.lost {
            self.data.push_back(data.clone());
        }
    }

    fn lose(&mut self) {
        self.lost = true;
        self.data = VecDeque::new();
    }
}

impl Body for Copy {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let copy = self.get_mut();
        if copy.ended {
            return Poll::Ready(None);
        }
        let mut kept = lock(&copy.kept);
        if let Some(data) = kept.data.get(copy.next) {
            copy.next += 1;
            copy.passed += u64::try_from(data.len()).unwrap_or(0);
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        if kept.rest.is_none() && !kept.lost {
            copy.ended = true;
            let trailers = kept.trailers.clone();
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        if copy.number != kept.newest {
            return Poll::Ready(Some(Err(TakenOver.into())));
        }
        if kept.unneeded && !kept.lost {
            // A stream of a day's length is answered early, and goes on.
            kept.lose();
            copy.next = 0;
        }
        let polled = std::task::ready!(kept.poll(cx));
        match &polled {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    copy.next = kept.data.len();
                    copy.passed += u64::try_from(data.len()).unwrap_or(0);
                } else {
                    copy.ended = true;
                }
            }
            Some(Err(_)) | None => copy.ended = true,
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        if self.ended {
            return true;
        }
        let kept = lock(&self.kept);
        kept.rest.is_none() && kept.trailers.is_none() && self.next >= kept.data.len()
    }

    fn size_hint(&self) -> SizeHint {
        let kept = lock(&self.kept);
        match kept.hint.exact() {
            Some(all) => SizeHint::with_exact(all.saturating_sub(self.passed)),
            None => SizeHint::new(),
        }
    }
}

impl fmt::Display for TakenOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another attempt sends the rest of the body")
    }
}

impl std::error::Error for TakenOver {}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt, Full, StreamBody};
    use tokio::sync::mpsc;

    use super::*;

    fn kept(body: &'static str, limit: usize) -> (Replay, Outgoing) {
        let body = Outgoing::new(Full::new(Bytes::from_static(body.as_bytes())));
        Replay::new(body, limit).ok().unwrap()
    }

    async fn read(body: Outgoing) -> Result<Bytes, BoxError> {
        Ok(body.collect().await?.to_bytes())
    }

    /// A body whose frames come when they are told to.
    struct Fed(mpsc::UnboundedReceiver<Frame<Bytes>>);

    impl Body for Fed {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.poll_recv(cx).map(|frame| frame.map(Ok))
        }
    }

    fn fed(limit: usize) -> (mpsc::UnboundedSender<Frame<Bytes>>, Replay, Outgoing) {
        let (feed, frames) = mpsc::unbounded_channel();
        let (replay, first) = Replay::new(Outgoing::new(Fed(frames)), limit).ok().unwrap();
        (feed, replay, first)
    }

    fn data(data: &'static str) -> Frame<Bytes> {
        Frame::data(Bytes::from_static(data.as_bytes()))
    }

    #[tokio::test]
    async fn a_kept_body_is_sent_as_often_as_need_be() {
        let (replay, first) = kept("hello", 5);
        assert_eq!(first.size_hint().exact(), Some(5));
        assert!(!replay.is_whole());
        assert_eq!(read(first).await.unwrap(), "hello");
        assert!(replay.is_whole());
        // Two at a time, as when one is hedged.
        let (one, other) = (replay.again().unwrap(), replay.again().unwrap());
        assert_eq!(one.size_hint().exact(), Some(5));
        assert_eq!(read(other).await.unwrap(), "hello");
        assert_eq!(read(one).await.unwrap(), "hello");
    }

    #[tokio::test]
    async fn a_body_of_known_length_ends_with_its_last_byte() {
        let (_replay, mut first) = kept("hello", 5);
        assert!(!first.is_end_stream());
        first.frame().await.unwrap().unwrap();
        assert!(first.is_end_stream());
    }

    #[tokio::test]
    async fn a_body_known_to_be_too_long_is_given_back() {
        let body = Outgoing::new(Full::new(Bytes::from_static(b"hello")));
        let back = Replay::new(body, 4).err().unwrap();
        assert_eq!(read(back).await.unwrap(), "hello");
    }

    #[tokio::test]
    async fn a_body_that_turns_out_too_long_is_sent_once() {
        let (feed, replay, mut first) = fed(8);
        feed.send(data("12345")).unwrap();
        first.frame().await.unwrap().unwrap();
        assert!(!replay.is_lost());
        feed.send(data("6789")).unwrap();
        feed.send(data("0")).unwrap();
        drop(feed);
        assert_eq!(read(first).await.unwrap(), "67890");
        assert!(replay.is_lost() && replay.again().is_none());
    }

    #[tokio::test]
    async fn the_next_attempt_goes_on_where_the_last_one_stopped() {
        let (feed, replay, mut first) = fed(100);
        feed.send(data("one ")).unwrap();
        first.frame().await.unwrap().unwrap();
        let next = replay.again().unwrap();
        // The old one asks no more, and so takes nothing away.
        let error = first.frame().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("another attempt"), "{error}");
        feed.send(data("two")).unwrap();
        drop(feed);
        assert_eq!(read(next).await.unwrap(), "one two");
    }

    #[tokio::test]
    async fn nothing_is_kept_when_there_will_be_no_other_attempt() {
        let (feed, replay, mut first) = fed(100);
        feed.send(data("one ")).unwrap();
        first.frame().await.unwrap().unwrap();
        let kept = Arc::clone(&replay.0);
        assert_eq!(lock(&kept).data.len(), 1);
        drop(replay);
        feed.send(data("two ")).unwrap();
        assert_eq!(
            first.frame().await.unwrap().unwrap().into_data().unwrap(),
            "two "
        );
        assert!(lock(&kept).data.is_empty());
        feed.send(data("three")).unwrap();
        drop(feed);
        assert_eq!(read(first).await.unwrap(), "three");
        assert!(lock(&kept).data.is_empty());
    }

    #[tokio::test]
    async fn trailers_are_kept_too() {
        let (feed, replay, first) = fed(100);
        feed.send(data("x")).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("sum", http::HeaderValue::from_static("1"));
        feed.send(Frame::trailers(trailers)).unwrap();
        for body in [Some(first), replay.again(), replay.again()] {
            // Of copies only the newest may ask; the first is dropped unread.
            drop(body);
        }
        let body = replay.again().unwrap().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["sum"], "1");
        let body = replay.again().unwrap().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["sum"], "1");
        assert_eq!(body.to_bytes(), "x");
    }

    #[tokio::test]
    async fn a_body_that_fails_is_not_sent_again() {
        let stream = futures_stream([Ok(data("x")), Err(std::io::Error::other("disk"))]);
        let body = Outgoing::new(StreamBody::new(stream));
        let (replay, first) = Replay::new(body, 100).ok().unwrap();
        assert_eq!(read(first).await.unwrap_err().to_string(), "disk");
        assert!(replay.is_lost() && replay.again().is_none());
    }

    fn futures_stream<T>(
        items: [T; 2],
    ) -> impl futures_core::Stream<Item = T> + Send + Unpin + 'static
    where
        T: Send + Unpin + 'static,
    {
        struct Items<T>(std::array::IntoIter<T, 2>);
        impl<T: Unpin> futures_core::Stream for Items<T> {
            type Item = T;
            fn poll_next(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<T>> {
                Poll::Ready(self.0.next())
            }
        }
        Items(items.into_iter())
    }
}
