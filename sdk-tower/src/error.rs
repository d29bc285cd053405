//! What can go wrong on the way to an endpoint.

use std::borrow::Cow;
use std::fmt;

/// What went wrong, for code that must choose.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument that cannot work: a caller's mistake, not worth a retry.
    Invalid,
    /// There is no Tokio runtime where one is needed.
    NoRuntime,
}

/// The error of this crate.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: Cow<'static, str>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind) -> Self {
        Self {
            kind,
            context: Cow::Borrowed(""),
        }
    }

    pub(crate) fn context(mut self, context: impl Into<Cow<'static, str>>) -> Self {
        self.context = context.into();
        self
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            ErrorKind::Invalid => f.write_str("invalid argument")?,
            ErrorKind::NoRuntime => f.write_str("no Tokio runtime")?,
        }
        if !self.context.is_empty() {
            write!(f, ": {}", self.context)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
