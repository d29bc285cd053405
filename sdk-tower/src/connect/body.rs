//! The one type of request body that connections carry.

use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

use crate::error::BoxError;

/// A request body of any type, so that one connection serves requests of different types.
///
/// A body without content, which most requests have, costs no allocation and can be sent again.
pub(crate) enum Outgoing {
    Empty,
    Streaming(Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>),
}

impl Outgoing {
    pub(crate) fn new<B>(body: B) -> Self
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        if body.is_end_stream() {
            Self::Empty
        } else {
            Self::Streaming(Box::pin(Erased(body)))
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Streaming(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Streaming(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Streaming(body) => body.size_hint(),
        }
    }
}

/// Tells the failure of a request's body from that of its connection; reads like its cause.
#[derive(Debug)]
pub(super) struct BodyFailed(BoxError);

impl fmt::Display for BodyFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for BodyFailed {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

/// A body with its data as [`Bytes`] (which costs nothing if they are) and its error boxed.
#[pin_project]
struct Erased<B>(#[pin] B);

impl<B> Body for Erased<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.project().0.poll_frame(cx).map(|frame| match frame {
            Some(Ok(frame)) => Some(Ok(
                frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))
            )),
            Some(Err(error)) => Some(Err(BodyFailed(error.into()).into())),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use http_body_util::{BodyExt, Empty, Full};

    use super::*;

    #[test]
    fn a_body_without_content_is_not_boxed() {
        assert!(Outgoing::new(Empty::<Bytes>::new()).is_empty());
        assert!(Outgoing::new(Full::new(Bytes::new())).is_empty());
        assert!(Outgoing::new(String::new()).is_empty());
        assert!(!Outgoing::new("x".to_owned()).is_empty());
    }

    #[tokio::test]
    async fn data_of_any_buffer_type_arrive_whole() {
        let body = Full::new(VecDeque::from(b"hello".to_vec()));
        let outgoing = Outgoing::new(body);
        assert_eq!(outgoing.size_hint().exact(), Some(5));
        assert_eq!(outgoing.collect().await.unwrap().to_bytes(), "hello");
    }
}
