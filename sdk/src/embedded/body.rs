//! The body of an answer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

/// The body of an embedded agent's answer.
///
/// It is there as a whole, except when [`Fault::truncate`](super::Fault::truncate) cut it: then it
/// fails with [`io::ErrorKind::UnexpectedEof`] in its middle.
#[derive(Debug, Default)]
pub struct Body {
    data: Option<Bytes>,
    size: u64,
    end: End,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum End {
    #[default]
    Complete,
    Cut,
}

impl Body {
    pub(super) fn whole(data: Bytes) -> Self {
        Self {
            size: data.len() as u64,
            data: (!data.is_empty()).then_some(data),
            end: End::Complete,
        }
    }

    /// A body that promises all of `data` and breaks off half-way.
    pub(super) fn cut(mut data: Bytes) -> Self {
        let size = data.len() as u64;
        data.truncate(data.len() / 2);
        Self {
            data: Some(data),
            size,
            end: End::Cut,
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(data) = self.data.take() {
            self.size = self.size.saturating_sub(data.len() as u64);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match self.end {
            End::Complete => Poll::Ready(None),
            End::Cut => {
                self.end = End::Complete;
                Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.end == End::Complete
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.size)
    }
}
