//! Values of the key-value store as types of the caller's.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::endpoint::Answered;
use super::kv::{Get, Kv, Pair, Put};
use super::{Endpoint, Read, Write};
use crate::codec::{BoxError, Decode, Encode, Json};
use crate::error::{Error, ErrorKind, Result};
use crate::ident::shortened;

impl Kv {
    /// One key's value, read from JSON; `None` if the key does not exist.
    ///
    /// A value that is something else fails with [`ErrorKind::Value`], which names the key and says
    /// what is wrong; it may quote from the value.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(client: lictor::Client) -> lictor::Result<()> {
    /// #[derive(serde::Deserialize, serde::Serialize)]
    /// struct Limits {
    ///     requests: u32,
    /// }
    ///
    /// client.kv().put_as("app/limits", &Limits { requests: 100 }).await?;
    /// if let Some(limits) = client.kv().get_as::<Limits>("app/limits").await?.value() {
    ///     println!("{} requests, since index {}", limits.requests, limits.pair().modify_index());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn get_as<T>(&self, key: impl Into<Arc<str>>) -> Read<GetAs<T>>
    where
        T: DeserializeOwned + Send + 'static,
    {
        self.get_with(key, Json)
    }

    /// The same in another format.
    pub fn get_with<T, C>(&self, key: impl Into<Arc<str>>, codec: C) -> Read<GetAs<T>>
    where
        T: Send + 'static,
        C: Decode<T>,
    {
        self.get(key).endpoint(|get| GetAs {
            get,
            codec: Arc::new(codec),
        })
    }

    /// Writes a value as JSON; the answer says whether it was written.
    ///
    /// A value that JSON cannot express is refused when the call is awaited.
    pub fn put_as<T>(&self, key: impl Into<Arc<str>>, value: &T) -> Write<Put>
    where
        T: Serialize + ?Sized,
    {
        self.put_with(key, value, Json)
    }

    /// The same in another format.
    #[expect(clippy::needless_pass_by_value, reason = "a codec is mostly a name")]
    pub fn put_with<T, C>(&self, key: impl Into<Arc<str>>, value: &T, codec: C) -> Write<Put>
    where
        T: ?Sized,
        C: Encode<T>,
    {
        let key = key.into();
        match codec.encode(value) {
            Ok(bytes) => self.put(key, bytes),
            Err(err) => {
                let wrong = unwritable(&key, &err);
                self.put(key, "").refuse(wrong)
            }
        }
    }
}

/// A value cannot be written in its format.
pub(crate) fn unwritable(key: &str, err: &BoxError) -> Error {
    let what = format!(
        "key {:?}: the value cannot be written: {err}",
        shortened(key)
    );
    Error::invalid(what)
}

/// A value cannot be read in its format.
pub(crate) fn unreadable(key: &str, err: &BoxError) -> Error {
    let what = format!(
        "key {:?}: the value is not what is expected: {err}",
        shortened(key)
    );
    Error::new(ErrorKind::Value).context(what)
}

/// One key's value as a type: [`Kv::get_as`].
pub struct GetAs<T> {
    get: Get,
    codec: Arc<dyn Decode<T>>,
}

impl<T: Send + 'static> Endpoint for GetAs<T> {
    type Output = Option<Typed<T>>;

    fn interpret(&self, answer: Answered) -> Result<Self::Output> {
        let Some(pair) = self.get.interpret(answer)? else {
            return Ok(None);
        };
        match self.codec.decode(&pair.value_bytes()) {
            Ok(value) => Ok(Some(Typed { value, pair })),
            Err(err) => Err(unreadable(pair.key(), &err)),
        }
    }
}

impl<T> Clone for GetAs<T> {
    fn clone(&self) -> Self {
        Self {
            get: self.get.clone(),
            codec: Arc::clone(&self.codec),
        }
    }
}

impl<T> fmt::Debug for GetAs<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = PhantomData::<T>;
        f.debug_tuple("GetAs").field(&name).finish()
    }
}

/// A value with the key it was read from.
///
/// Dereferences to the value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Typed<T> {
    value: T,
    pair: Pair,
}

impl<T> Typed<T> {
    /// The value.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// The value, owned.
    pub fn into_value(self) -> T {
        self.value
    }

    /// The key as it was read, with its indexes, its flags and the session that holds it.
    pub fn pair(&self) -> &Pair {
        &self.pair
    }
}

impl<T> Deref for Typed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}
