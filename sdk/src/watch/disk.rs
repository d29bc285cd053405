//! A view of a watch that outlives the process: the last content stands in a file.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::body::Decoded;
use super::careful::tell;
use super::engine::State;
use super::kinds::Watched;
use super::reader::Watch;
use super::snapshot::{Content, Outage, Status};
use crate::api::Meta;
use crate::error::{Error, ErrorKind, Result};
use crate::task::{StopSignal, blocking};

impl<T: Watched> Watch<T> {
    /// A view whose last content stands in a file, so that a start survives an outage of Consul.
    ///
    /// Until Consul's first answer, the content of the file is there as
    /// [`Source::Disk`](super::Source::Disk), with the status [`Status::Stale`], whose outage began
    /// when it was last known to be true. A file that is damaged, that is of another query, or whose
    /// content was last confirmed longer ago than `oldest` is not taken, and a warning in the log
    /// says why; without a file nothing is said. Anything Consul answers takes its place.
    ///
    /// Each new content is written, at most one a second, and while nothing changes that it is still
    /// true is, every quarter of `oldest`. A file is written beside its place, with a checksum, and
    /// moved there: at no moment a broken one stands there. Only its owner may read it. Errors of
    /// writing are logged and change nothing else.
    ///
    /// Give each query a file of its own. The folder must exist.
    ///
    /// The query on the wire stays the shared one. Starts a task, which ends with the last reader of
    /// this view.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(client: lictor::Client) -> lictor::Result<()> {
    /// use std::time::Duration;
    ///
    /// let web = client.health().service("web").passing().watch()?;
    /// let web = web.keep_in("/var/lib/app/web.watch", Duration::from_secs(24 * 3600))?;
    /// println!("{} instances, maybe", web.ready().await?.len());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] if the path names no file, or nothing would be young enough;
    /// [`ErrorKind::NoRuntime`] outside of a Tokio runtime.
    pub fn keep_in(self, file: impl Into<PathBuf>, oldest: Duration) -> Result<Self> {
        let (file, about, selects) = (file.into(), self.about(), self.selects());
        if file.file_name().is_none() || file.is_dir() {
            return Err(Error::invalid(format!(
                "keep_in {:?}: must be the path of a file",
                file.display()
            )));
        }
        if oldest.is_zero() {
            return Err(Error::invalid(
                "keep_in: contents that are zero old at the most are none; give a longer time",
            ));
        }
        let place = Place {
            file: Arc::from(file),
            about,
            oldest,
        };
        self.seen_with_stop(move |from, to, stop| kept(from, to, stop, place, selects))
    }
}

/// Where a content is kept, and what it is of.
#[derive(Clone)]
struct Place {
    file: Arc<Path>,
    about: Arc<str>,
    oldest: Duration,
}

/// Two writes are as far apart, at least.
const PAUSE: Duration = Duration::from_secs(1);

async fn kept<T: Watched>(
    mut from: watch::Receiver<State<T>>,
    to: watch::Sender<State<T>>,
    mut stop: StopSignal,
    place: Place,
    selects: Option<fn(&T) -> bool>,
) {
    let reading = place.clone();
    let saved = blocking(move || reading.read(wall_clock())).await;
    let mut early = match saved {
        Some(Ok(saved)) => restored(saved, selects, &place),
        Some(Err(Refused::Absent)) | None => None,
        Some(Err(why)) => {
            tracing::warn!(file = %place.file.display(), %why, "the kept content is not taken");
            None
        }
    };
    let again = (place.oldest / 4).max(PAUSE);
    // What was written last, and when.
    let mut written: Option<(Arc<Content<T>>, Instant)> = None;
    loop {
        let mut state = from.borrow_and_update().clone();
        let fresh = state.content.as_ref().map(Arc::clone);
        match (&fresh, &early) {
            (Some(_), _) => early = None,
            (None, Some((content, since))) => {
                let error = state.status.error().cloned();
                state.content = Some(Arc::clone(content));
                state.confirmed_at = *since;
                state.status = Status::Stale(Outage {
                    since: *since,
                    error: error.unwrap_or_else(not_answered),
                });
            }
            (None, None) => {}
        }
        let is_live = state.status.is_live();
        tell(&to, state);
        // When the file has to be written next.
        let due = match (&fresh, &written) {
            (Some(fresh), Some((last, at))) if Arc::ptr_eq(fresh, last) => {
                is_live.then(|| *at + again)
            }
            (Some(_), Some((_, at))) => Some(*at + PAUSE),
            (Some(_), None) => Some(Instant::now()),
            (None, _) => None,
        };
        if let (Some(fresh), Some(due)) = (&fresh, due)
            && due <= Instant::now()
        {
            place.save(fresh).await;
            written = Some((Arc::clone(fresh), Instant::now()));
            continue;
        }
        tokio::select! {
            biased;
            _ = stop.recv() => {
                // What is not written yet would be missing at the next start.
                if let (Some(fresh), Some(_)) = (&fresh, due) {
                    place.save(fresh).await;
                }
                return;
            }
            changed = from.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            } => {}
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how old a file is must be known after a restart, too"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

fn not_answered() -> Error {
    Error::new(ErrorKind::Connect).context("Consul has not answered yet")
}

/// What the file says, as a content, and since when nobody has confirmed it.
fn restored<T: Watched>(
    saved: Saved,
    selects: Option<fn(&T) -> bool>,
    place: &Place,
) -> Option<(Arc<Content<T>>, Instant)> {
    let mut decoded = Decoded::new();
    if let Err(err) = decoded.update(saved.body.clone()) {
        let file = place.file.display();
        tracing::warn!(%file, error = %err, "the kept content cannot be read");
        return None;
    }
    let items = decoded.items().iter();
    let items = items.filter(|item| selects.is_none_or(|selects| selects(item)));
    let now = Instant::now();
    let since = now.checked_sub(saved.age).unwrap_or(now);
    tracing::warn!(file = %place.file.display(), age = ?saved.age, "a kept content is told until Consul answers");
    let content = Content {
        items: items.map(Arc::clone).collect(),
        meta: Meta::default(),
        // No content of Consul's has it.
        version: u64::MAX,
        received_at: since,
        body: saved.body,
        is_kept: true,
    };
    Some((Arc::new(content), since))
}

impl Place {
    fn read(&self, now: SystemTime) -> Result<Saved, Refused> {
        let bytes = match fs::read(&self.file) {
            Ok(bytes) => bytes,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Err(Refused::Absent),
            Err(err) => return Err(Refused::Unreadable(err)),
        };
        read(&bytes.into(), &self.about, now, self.oldest)
    }

    async fn save<T: Watched>(&self, content: &Content<T>) {
        let (place, body) = (self.clone(), content.body.clone());
        let saved = blocking(move || place.write(&body)).await;
        if let Some(Err(err)) = saved {
            let file = self.file.display();
            tracing::warn!(%file, error = %err, "the content cannot be kept");
        }
    }

    fn write(&self, body: &[u8]) -> io::Result<()> {
        // Two views may be about to write the same file.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = self.file.file_name().unwrap_or_default();
        let mut beside = name.to_owned();
        beside.push(format!(".{}-{count}.tmp", std::process::id()));
        let beside = self.file.with_file_name(beside);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let write = || {
            let mut file = options.open(&beside)?;
            file.write_all(&head(body, &self.about, wall_clock()))?;
            file.write_all(body)?;
            file.sync_all()?;
            fs::rename(&beside, &self.file)
        };
        let outcome = write();
        if outcome.is_err() {
            fs::remove_file(&beside).ok();
        }
        outcome
    }
}

/// What a good file holds.
#[derive(Debug, Eq, PartialEq)]
struct Saved {
    body: Bytes,
    age: Duration,
}

/// Why a file is not taken.
#[derive(Debug)]
enum Refused {
    Absent,
    Unreadable(io::Error),
    Damaged,
    Other(String),
    TooOld(Duration),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("there is none"),
            Self::Unreadable(err) => write!(f, "it cannot be opened: {err}"),
            Self::Damaged => f.write_str("it is damaged: its checksum or its length is wrong"),
            Self::Other(about) => write!(f, "it is of another query: {about}"),
            Self::TooOld(age) => write!(f, "it is too old: confirmed {age:?} ago"),
        }
    }
}

const MAGIC: &str = "lictor-watch-1";

/// The first line of a file: what it is, its checksum, when it was true, and what it is of.
fn head(body: &[u8], about: &str, now: SystemTime) -> Vec<u8> {
    let at = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    // A query has no spaces and no line ends: they are escaped in it.
    let told = format!("{} {} {about}", at.as_millis(), body.len());
    let sum = checksum(&[told.as_bytes(), body]);
    format!("{MAGIC} {sum:08x} {told}\n").into_bytes()
}

fn read(file: &Bytes, about: &str, now: SystemTime, oldest: Duration) -> Result<Saved, Refused> {
    let parsed = || {
        let end = file.iter().position(|byte| *byte == b'\n')?;
        let line = std::str::from_utf8(file.get(..end)?).ok()?;
        let (sum, told) = line
            .strip_prefix(MAGIC)?
            .strip_prefix(' ')?
            .split_once(' ')?;
        let sum = u32::from_str_radix(sum, 16).ok()?;
        let body = file.slice(end + 1..);
        let mut words = told.splitn(3, ' ');
        let at: u64 = words.next()?.parse().ok()?;
        let length: usize = words.next()?.parse().ok()?;
        let of = words.next()?.to_owned();
        let whole = length == body.len() && sum == checksum(&[told.as_bytes(), &body]);
        whole.then_some((at, of, body))
    };
    let (at, of, body) = parsed().ok_or(Refused::Damaged)?;
    if of != about {
        return Err(Refused::Other(of));
    }
    let at = UNIX_EPOCH + Duration::from_millis(at);
    // A clock that was set back makes it no older.
    let age = now.duration_since(at).unwrap_or_default();
    if age > oldest {
        return Err(Refused::TooOld(age));
    }
    Ok(Saved { body, age })
}

/// CRC-32 (ISO-HDLC, as in zip): it finds what a crash or a full disk does to a file. It is no
/// protection against somebody who changes it.
fn checksum(parts: &[&[u8]]) -> u32 {
    let mut sum = u32::MAX;
    for byte in parts.iter().copied().flatten() {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            let low = sum & 1;
            sum >>= 1;
            if low == 1 {
                sum ^= 0xedb8_8320;
            }
        }
    }
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn whole(at: SystemTime) -> Vec<u8> {
        let body = br#"[{"Key":"a"}]"#;
        let mut file = head(body, "/v1/kv/a", at);
        file.extend_from_slice(body);
        file
    }

    #[test]
    fn the_checksum_is_the_one_of_zip() {
        assert_eq!(checksum(&[b"1234", b"56789"]), 0xcbf4_3926);
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let at = UNIX_EPOCH + DAY;
        let saved = read(&whole(at).into(), "/v1/kv/a", at + DAY / 2, DAY).unwrap();
        assert_eq!(saved.body, r#"[{"Key":"a"}]"#);
        assert_eq!(saved.age, DAY / 2);
    }

    #[test]
    fn a_file_that_was_cut_or_changed_anywhere_is_refused() {
        let at = UNIX_EPOCH + DAY;
        let good = whole(at);
        for end in 0..good.len() {
            let cut = Bytes::copy_from_slice(&good[..end]);
            let read = read(&cut, "/v1/kv/a", at, DAY);
            assert!(
                matches!(read, Err(Refused::Damaged)),
                "cut at {end}: {read:?}"
            );
        }
        for place in 0..good.len() {
            for bit in 0..8 {
                let mut changed = good.clone();
                changed[place] ^= 1 << bit;
                let read = read(&changed.into(), "/v1/kv/a", at, DAY);
                // A hexadecimal digit in capitals is the same digit.
                let same = good[place].is_ascii_lowercase() && bit == 5;
                assert!(read.is_err() || same, "changed at {place}: {read:?}");
            }
        }
        let longer = [good.as_slice(), b" "].concat();
        assert!(read(&longer.into(), "/v1/kv/a", at, DAY).is_err());
    }

    #[test]
    fn a_file_of_another_query_or_of_long_ago_is_refused() {
        let at = UNIX_EPOCH + DAY;
        let other = read(&whole(at).into(), "/v1/kv/b", at, DAY);
        assert!(matches!(other, Err(Refused::Other(of)) if of == "/v1/kv/a"));
        let old = read(&whole(at).into(), "/v1/kv/a", at + DAY * 2, DAY);
        assert!(matches!(old, Err(Refused::TooOld(age)) if age == DAY * 2));
        let early = read(&whole(at).into(), "/v1/kv/a", UNIX_EPOCH, DAY).unwrap();
        assert_eq!(early.age, Duration::ZERO);
    }
}
