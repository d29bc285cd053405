//! A value that is changed whatever others do to it meanwhile.

use std::fmt;
use std::future::{IntoFuture, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;

use crate::api::kv::Kv;
use crate::api::{Sending, unreadable, unwritable};
use crate::codec::{BoxError, Decode, Encode, Json};
use crate::error::{Error, ErrorKind, Result};
use crate::ident::{Key, shortened};
use crate::proto::backoff::Backoff;

impl Kv {
    /// Changes a value: reads it, has `change` make the next one, and writes that unless somebody
    /// else has written meanwhile; then all of it begins again.
    ///
    /// The closure is given the present value, `None` if the key does not exist, and gives the next
    /// one, where `None` deletes the key. It may also give a [`Change`], which can leave all as it
    /// is, or a [`Result`] of either. It may be called several times, and only what it gave last
    /// counts: let it do nothing else. Values are JSON unless a [codec](Update::codec) is set.
    ///
    /// The key keeps its flags and the session that holds it.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(client: lictor::Client) -> lictor::Result<()> {
    /// let kv = client.kv();
    /// kv.update("app/visits", |visits: Option<u64>| Some(visits.unwrap_or(0) + 1)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn update<T, R>(
        &self,
        key: impl Into<Arc<str>>,
        mut change: impl FnMut(Option<T>) -> R + Send + 'static,
    ) -> Update<T>
    where
        T: Send + 'static,
        R: Into<Change<T>>,
    {
        self.updating(key, move |present| {
            Box::pin(ready(change(present).into())) as Changing<T>
        })
    }

    /// The same with a closure that has to wait for something.
    ///
    /// The longer it takes, the likelier somebody else has written meanwhile.
    pub fn update_async<T, R, F>(
        &self,
        key: impl Into<Arc<str>>,
        mut change: impl FnMut(Option<T>) -> F + Send + 'static,
    ) -> Update<T>
    where
        T: Send + 'static,
        R: Into<Change<T>>,
        F: Future<Output = R> + Send + 'static,
    {
        self.updating(key, move |present| {
            let changing = change(present);
            Box::pin(async move { changing.await.into() }) as Changing<T>
        })
    }

    fn updating<T>(
        &self,
        key: impl Into<Arc<str>>,
        change: impl FnMut(Option<T>) -> Changing<T> + Send + 'static,
    ) -> Update<T> {
        Update {
            kv: self.clone(),
            key: key.into(),
            change: Box::new(change),
            codec: Json,
            attempts: ATTEMPTS,
        }
    }
}

/// How often an [`Update`] tries unless it is told otherwise: 32 times.
///
/// Each round of contenders lets one of them through, and the pauses spread the others: two dozen
/// that begin at the same moment all come through.
pub const ATTEMPTS: u32 = 32;

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_millis(500);

type Changing<T> = Pin<Box<dyn Future<Output = Change<T>> + Send>>;

/// What becomes of a value.
#[derive(Debug)]
#[non_exhaustive]
pub enum Change<T> {
    /// It becomes this.
    Put(T),
    /// The key is deleted; one that does not exist stays away.
    Delete,
    /// It stays as it is, and the update ends.
    Keep,
    /// It stays as it is, and the update fails with this.
    Fail(BoxError),
}

impl<T> From<Option<T>> for Change<T> {
    fn from(next: Option<T>) -> Self {
        next.map_or(Self::Delete, Self::Put)
    }
}

impl<T, C, E> From<Result<C, E>> for Change<T>
where
    C: Into<Self>,
    E: Into<BoxError>,
{
    fn from(outcome: Result<C, E>) -> Self {
        outcome.map_or_else(|err| Self::Fail(err.into()), Into::into)
    }
}

/// What an [`Update`] has come to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Updated<T> {
    /// This was written.
    Written(T),
    /// The key is gone.
    Deleted,
    /// All is as it was.
    Kept,
}

/// A change of a value that begins when it is awaited.
///
/// Made by [`Kv::update`] and [`Kv::update_async`].
#[must_use = "nothing is changed before it is awaited"]
pub struct Update<T, C = Json> {
    kv: Kv,
    key: Arc<str>,
    change: Box<dyn FnMut(Option<T>) -> Changing<T> + Send>,
    codec: C,
    attempts: u32,
}

impl<T, C> Update<T, C> {
    /// How often it tries to write before it gives up. Default: [`ATTEMPTS`]; range: at least 1.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// The format of the value. Default: [`Json`].
    pub fn codec<D>(self, codec: D) -> Update<T, D>
    where
        D: Decode<T> + Encode<T>,
    {
        Update {
            kv: self.kv,
            key: self.key,
            change: self.change,
            codec,
            attempts: self.attempts,
        }
    }
}

impl<T, C> Update<T, C>
where
    T: Send + 'static,
    C: Decode<T> + Encode<T>,
{
    /// Makes the change.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Conflict`]: others have written in each of its attempts.
    /// - [`ErrorKind::Value`]: what is there is not in the format; the text names the key. Nothing
    ///   was written.
    /// - [`ErrorKind::Invalid`]: the key or a setting was refused, the value cannot be written in
    ///   the format, or the closure called it off, which is then the
    ///   [source](std::error::Error::source).
    /// - What a read or a write fails with. Neither is repeated: after a lost answer, the change may
    ///   have been made, and a second one might count twice.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind. A write that is on its way when the future is dropped may take
    /// effect, whole or not at all; the closure is not called again.
    pub async fn send(self) -> Result<Updated<T>> {
        let Self {
            kv,
            key,
            mut change,
            codec,
            attempts,
        } = self;
        let key = Key::new(key)?;
        if attempts == 0 {
            return Err(Error::invalid("0 attempts: must be at least 1"));
        }
        let mut pauses = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
        for attempt in 0..attempts {
            if attempt > 0 {
                let draw = rand::rng().random();
                tokio::time::sleep(pauses.next(draw)).await;
            }
            let pair = kv.get(&*key).await?.into_value();
            let (index, flags) = pair
                .as_ref()
                .map_or((0, 0), |pair| (pair.modify_index(), pair.flags()));
            let present = match &pair {
                Some(pair) => codec.decode(&pair.value_bytes()).map(Some),
                None => Ok(None),
            };
            let present = present.map_err(|err| unreadable(&key, &err))?;
            match change(present).await {
                Change::Put(value) => {
                    let bytes = codec.encode(&value).map_err(|err| unwritable(&key, &err))?;
                    if kv.put(&*key, bytes).flags(flags).cas(index).await? {
                        return Ok(Updated::Written(value));
                    }
                }
                // Consul takes a deletion at index 0 for one at a wrong index.
                Change::Delete if index == 0 => return Ok(Updated::Deleted),
                Change::Delete => {
                    if kv.delete(&*key).cas(index).await? {
                        return Ok(Updated::Deleted);
                    }
                }
                Change::Keep => return Ok(Updated::Kept),
                Change::Fail(err) => {
                    let what = format!("key {:?}: the change was called off", shortened(&key));
                    return Err(Error::invalid(what).caused_by(err));
                }
            }
        }
        Err(Error::new(ErrorKind::Conflict).context(format!(
            "key {:?}: others have written in each of {attempts} attempts",
            shortened(&key)
        )))
    }
}

impl<T, C> IntoFuture for Update<T, C>
where
    T: Send + 'static,
    C: Decode<T> + Encode<T>,
{
    type Output = Result<Updated<T>>;
    type IntoFuture = Sending<Updated<T>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

impl<T, C: fmt::Debug> fmt::Debug for Update<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Update")
            .field("key", &self.key)
            .field("codec", &self.codec)
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}
