//! Which token a request bears.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::ident::Token;

/// Where tokens come from.
#[derive(Clone, Default)]
pub(super) enum TokenSource {
    /// Requests bear none: the agent's default token applies.
    #[default]
    None,
    /// Always the same.
    Fixed(Token),
    /// A file, read again when it changes.
    File(Arc<TokenFile>),
}

impl TokenSource {
    pub(super) fn current(&self) -> Option<Token> {
        match self {
            Self::None => None,
            Self::Fixed(token) => Some(token.clone()),
            Self::File(file) => Some(file.current()),
        }
    }

    /// Whether two sources always give the same token.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, Self::None) => true,
            (Self::Fixed(a), Self::Fixed(b)) => a == b,
            (Self::File(a), Self::File(b)) => Arc::ptr_eq(a, b),
            (Self::None | Self::Fixed(_) | Self::File(_), _) => false,
        }
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Fixed(token) => token.fmt(f),
            Self::File(file) => write!(f, "file {}", file.path.display()),
        }
    }
}

/// How often the file is looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A token in a file that something else rotates.
pub(super) struct TokenFile {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    token: Token,
    stamp: Option<Stamp>,
    looked_at: Instant,
    told: bool,
}

/// What changes when a file is written or replaced.
#[derive(Clone, Copy, Eq, PartialEq)]
struct Stamp {
    modified: Option<SystemTime>,
    len: u64,
}

impl TokenFile {
    /// Reads the file for the first time: now, its absence is an error.
    ///
    /// `name` is where the path came from.
    pub(super) fn open(path: PathBuf, name: &str) -> Result<Self> {
        let stamp = stamp(&path);
        let token = read(&path, name)?;
        Ok(Self {
            path,
            state: Mutex::new(State {
                token,
                stamp,
                looked_at: Instant::now(),
                told: false,
            }),
        })
    }

    /// The file's token; the last good one while the file is missing or unusable.
    fn current(&self) -> Token {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now.duration_since(state.looked_at) < LOOK_EVERY {
            return state.token.clone();
        }
        state.looked_at = now;
        let stamp = stamp(&self.path);
        if stamp.is_some() && stamp == state.stamp {
            return state.token.clone();
        }
        match read(&self.path, "token file") {
            Ok(token) => {
                if token != state.token {
                    tracing::info!(path = %self.path.display(), "token file changed");
                }
                state.token = token;
                state.stamp = stamp;
                state.told = false;
            }
            Err(err) => {
                if !state.told {
                    tracing::warn!(path = %self.path.display(), error = %err.chain(), "token file unusable, the last token stays");
                }
                state.told = true;
            }
        }
        state.token.clone()
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some(Stamp {
        modified: meta.modified().ok(),
        len: meta.len(),
    })
}

fn read(path: &Path, name: &str) -> Result<Token> {
    let wrong = |reason: &str| {
        Error::new(ErrorKind::Config).context(format!("{name} {}: {reason}", path.display()))
    };
    let text = fs::read_to_string(path).map_err(|err| wrong("cannot be read").caused_by(err))?;
    let secret = text.trim();
    Token::check(secret).map_err(wrong)?;
    Token::new(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_gives_the_new_token_and_a_missing_one_keeps_the_last() {
        let path = std::env::temp_dir().join(format!("lictor-token-{}", std::process::id()));
        fs::write(&path, "first\n").unwrap();
        let file = TokenFile::open(path.clone(), "token file").unwrap();
        assert_eq!(file.current().expose(), "first");

        fs::write(&path, "second-one\n").unwrap();
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(file.current().expose(), "second-one");

        fs::remove_file(&path).unwrap();
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(file.current().expose(), "second-one");

        fs::write(&path, "third").unwrap();
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(file.current().expose(), "third");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_missing_file_is_an_error_at_first() {
        let Err(err) = TokenFile::open("/does/not/exist".into(), "token file") else {
            panic!("opened");
        };
        assert_eq!(err.kind(), ErrorKind::Config);
        assert!(err.to_string().contains("/does/not/exist"));
    }
}
