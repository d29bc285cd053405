//! What all endpoints have in common.

use crate::client::Raw;
use crate::error::Result;

/// What an endpoint's answer means.
///
/// Each of Consul's endpoints is a type; [`Read`](super::Read) and [`Write`](super::Write) are
/// generic over it. The trait cannot be implemented outside this crate.
pub trait Endpoint: Send + Sync + 'static {
    /// What a good answer holds.
    type Output: Send + 'static;

    /// Reads an answer of any status.
    #[doc(hidden)]
    fn interpret(&self, answer: Answered) -> Result<Self::Output>;
}

/// An answer as it came; it cannot be named outside this crate, which seals [`Endpoint`].
#[expect(unnameable_types, reason = "seals the trait")]
#[derive(Debug)]
pub struct Answered(pub(crate) Raw);

impl Answered {
    /// The answer itself if its status is a success.
    pub(crate) fn good(self) -> Result<Raw> {
        self.0.good()
    }
}
