//! The words for what becomes of requests and attempts: values of fields and labels.

use crate::error::ErrorKind;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ending {
    Answered,
    Failed,
    GivenUp,
    Error(ErrorKind),
}

/// What becomes of an attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fate {
    Answered,
    Failed,
    Refused,
    Unsent,
    Lost,
    Late,
    Outrun,
    Left,
    GivenUp,
}

impl Ending {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::GivenUp => "given_up",
            Self::Error(kind) => match kind {
                ErrorKind::Invalid => "invalid",
                ErrorKind::InvalidRequest => "invalid_request",
                ErrorKind::NoRuntime => "no_runtime",
                ErrorKind::NeverResolved => "never_resolved",
                ErrorKind::NoEndpoints => "no_endpoints",
                ErrorKind::Connect => "connect",
                ErrorKind::Request => "request",
                ErrorKind::Body => "body",
                ErrorKind::Service => "service",
                ErrorKind::Timeout => "timeout",
                ErrorKind::Overloaded => "overloaded",
            },
        }
    }

    /// A number for each name.
    #[cfg(feature = "metrics")]
    pub(super) fn index(self) -> usize {
        match self {
            Self::Answered => 0,
            Self::Failed => 1,
            Self::GivenUp => 2,
            Self::Error(kind) => 3 + kind as usize,
        }
    }

    pub(super) fn is_shed(self) -> bool {
        self == Self::Error(ErrorKind::Overloaded)
    }
}

impl Fate {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Unsent => "unsent",
            Self::Lost => "lost",
            Self::Late => "late",
            Self::Outrun => "outrun",
            Self::Left => "left",
            Self::GivenUp => "given_up",
        }
    }
}
