//! Settings in the key-value store, followed live and read as a type.
//!
//! ```no_run
//! # async fn example(client: lictor::Client) -> lictor::Result<()> {
//! #[derive(Debug, Default, serde::Deserialize, serde::Serialize)]
//! struct Limits {
//!     requests: u32,
//!     peers: Vec<String>,
//! }
//!
//! let limits = client
//!     .config::<Limits>()
//!     .defaults(&Limits::default())
//!     .key("all/limits")   // a document, in JSON
//!     .tree("web/limits")  // a folder: `web/limits/requests`, `web/limits/peers/0`, …
//!     .validate(|limits| match limits.requests {
//!         0 => Err("`requests` is 0, which lets nobody in"),
//!         _ => Ok(()),
//!     })
//!     .open()
//!     .await?;
//!
//! // On the way of every request: no lock, no wait, no copy.
//! let now = limits.get();
//! println!("{} requests", now.requests);
//! # Ok(())
//! # }
//! ```
//!
//! # Layers
//!
//! What is named later lies on top. Maps are put together name by name; a value or a list replaces
//! what lies below it. A layer whose key does not exist has nothing to say.
//!
//! Each layer is watched by itself. Where several of them change at once, be it in one transaction,
//! readers may see the change of one for a moment without that of the other; what has to change
//! together belongs into one document, or one folder.
//!
//! - [`defaults`](Settings::defaults) come from the program.
//! - [`key`](Settings::key) is one document: JSON, or what a [codec](Settings::codec) reads.
//! - [`tree`](Settings::tree) is all keys below a folder, nested by `/`. Each value is read as what
//!   the type wants in its place: `8080` is a number for a `u16` and a text for a `String`; where a
//!   list or a map is wanted it is JSON, and a folder with the keys `0`, `1`, `2` is a list, too. With
//!   a gap between them it is refused where a list is wanted, and the gap is told: to shorten such a
//!   list, delete from its end, or write all of it in one transaction. Where a map is wanted, any
//!   names will do. Texts and names stand there as they are, without quotes: write them by
//!   [`Kv::put`](crate::api::kv::Kv::put), not as JSON by [`put_as`](crate::api::kv::Kv::put_as). An
//!   empty key that ends with `/`, as Consul's own pages make them, is a folder and no more.
//!
//! # What is promised
//!
//! - **Nothing bad gets in.** A value that cannot be read, or that the validation refuses, changes
//!   nothing: the last good one stays in force, and [`State::Rejected`] tells why, by the path in
//!   the type and the key it came by, or the keys and folders where it should stand. Good and bad are judged over all layers at once.
//! - **Nothing is lost by accident.** When the last of all keys is deleted, the last good value
//!   stays, and [`State::Removed`] tells it, unless [`Removal::Defaults`] is wished for.
//! - **An outage changes nothing.** [`State::Stale`] tells it. [Kept](Settings::keep_in) settings
//!   survive a start without Consul.
//! - **Readers never wait.** [`Config::get`] is an atomic load.
//!
//! A change of several keys that must be seen together belongs into one key, or into one
//! [transaction](crate::api::txn).
//!
//! To change a value, whatever others do to it meanwhile, there is
//! [`Kv::update`](crate::api::kv::Kv::update).

mod keeper;
mod read;
mod settings;
mod state;
mod tree;
mod update;

pub use settings::{Removal, Settings};
pub use state::{Config, State};
pub use tree::Tree;
pub use update::{ATTEMPTS, Change, Update, Updated};
