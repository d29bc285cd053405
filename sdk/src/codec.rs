//! How values of the key-value store are read and written: JSON, bare bytes, or a format of yours.
//!
//! What takes a codec ([`Kv::get_with`](crate::api::kv::Kv::get_with),
//! [`Kv::put_with`](crate::api::kv::Kv::put_with), [`Update::codec`](crate::config::Update::codec),
//! [`Settings::codec`](crate::config::Settings::codec)) has a variant for JSON without one.
//!
//! # Examples
//!
//! A format is two functions. This one is Rust's own for numbers and addresses:
//!
//! ```
//! use std::fmt::Display;
//! use std::str::{FromStr, from_utf8};
//!
//! use bytes::Bytes;
//! use lictor::codec::{BoxError, Decode, Encode};
//!
//! struct Text;
//!
//! impl<T: FromStr<Err: Into<BoxError>>> Decode<T> for Text {
//!     fn decode(&self, value: &Bytes) -> Result<T, BoxError> {
//!         from_utf8(value)?.trim().parse().map_err(Into::into)
//!     }
//! }
//!
//! impl<T: Display> Encode<T> for Text {
//!     fn encode(&self, value: &T) -> Result<Bytes, BoxError> {
//!         Ok(value.to_string().into())
//!     }
//! }
//!
//! # async fn example(client: lictor::Client) -> lictor::Result<()> {
//! client.kv().put_with("app/limit", &512, Text).await?;
//! let limit = client.kv().get_with::<u32, _>("app/limit", Text).await?;
//! # Ok(())
//! # }
//! ```

use std::error::Error as StdError;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a codec refuses a value, in its own words.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Reads a value.
///
/// The error's text is told to whoever asked, beside the key: let it say what is wrong and where.
pub trait Decode<T>: Send + Sync + 'static {
    /// The value that these bytes stand for.
    ///
    /// # Errors
    ///
    /// If they stand for none.
    fn decode(&self, value: &Bytes) -> Result<T, BoxError>;
}

/// Writes a value.
pub trait Encode<T: ?Sized>: Send + Sync + 'static {
    /// The bytes that stand for this value.
    ///
    /// # Errors
    ///
    /// If the format has none for it.
    fn encode(&self, value: &T) -> Result<Bytes, BoxError>;
}

/// JSON, by serde: what is used where nothing else is said.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Json;

impl<T: DeserializeOwned> Decode<T> for Json {
    fn decode(&self, value: &Bytes) -> Result<T, BoxError> {
        serde_json::from_slice(value).map_err(|err| {
            // What is not even JSON is another mistake than JSON of another shape.
            if err.is_syntax() || err.is_eof() {
                format!("it is no JSON: {err}").into()
            } else {
                err.into()
            }
        })
    }
}

impl<T: Serialize + ?Sized> Encode<T> for Json {
    fn encode(&self, value: &T) -> Result<Bytes, BoxError> {
        Ok(serde_json::to_vec(value)?.into())
    }
}

/// The bytes as they are: [`Bytes`], `Vec<u8>`, and `String` and `Arc<str>` where they are UTF-8.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Plain;

impl Decode<Bytes> for Plain {
    fn decode(&self, value: &Bytes) -> Result<Bytes, BoxError> {
        Ok(value.clone())
    }
}

impl Decode<Vec<u8>> for Plain {
    fn decode(&self, value: &Bytes) -> Result<Vec<u8>, BoxError> {
        Ok(value.to_vec())
    }
}

impl Decode<String> for Plain {
    fn decode(&self, value: &Bytes) -> Result<String, BoxError> {
        Ok(std::str::from_utf8(value)?.to_owned())
    }
}

impl Decode<Arc<str>> for Plain {
    fn decode(&self, value: &Bytes) -> Result<Arc<str>, BoxError> {
        Ok(std::str::from_utf8(value)?.into())
    }
}

impl<T: AsRef<[u8]> + ?Sized> Encode<T> for Plain {
    fn encode(&self, value: &T) -> Result<Bytes, BoxError> {
        Ok(Bytes::copy_from_slice(value.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_reads_what_it_has_written() {
        let bytes = Json.encode(&[1, 2]).unwrap();
        assert_eq!(bytes, "[1,2]");
        let read: Vec<u8> = Json.decode(&bytes).unwrap();
        assert_eq!(read, [1, 2]);
        for (text, is_json) in [("one", false), ("[1", false), ("\"one\"", true)] {
            let read: Result<Vec<u8>, _> = Json.decode(&Bytes::from_static(text.as_bytes()));
            let told = read.unwrap_err().to_string();
            assert_eq!(told.starts_with("it is no JSON: "), !is_json, "{told}");
        }
    }

    #[test]
    fn plain_text_must_be_utf_8_and_plain_bytes_need_not() {
        let bytes = Bytes::from_static(&[0xff, 0x00]);
        let text: Result<String, _> = Plain.decode(&bytes);
        assert!(text.is_err());
        let read: Vec<u8> = Plain.decode(&bytes).unwrap();
        assert_eq!(read, [0xff, 0x00]);
        assert_eq!(Plain.encode("as it is").unwrap(), "as it is");
    }
}
