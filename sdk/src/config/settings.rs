//! What is followed, and how it is read.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;

use super::keeper::{self, Layer, Rules};
use super::state::Config;
use super::tree::{Node, Tree};
use crate::api::kv::Pair;
use crate::client::Client;
use crate::codec::{BoxError, Decode, Json};
use crate::error::{Error, ErrorKind, Result};
use crate::ident::{Key, shortened};
use crate::watch::Watch;

impl Client {
    /// Settings in the key-value store, to be followed and read as a `T`.
    pub fn config<T>(&self) -> Settings<T>
    where
        T: DeserializeOwned + Send + Sync + 'static,
    {
        Settings {
            client: self.clone(),
            layers: Vec::new(),
            codec: Arc::new(Json),
            validate: None,
            removal: Removal::Keep,
            fallback: None,
            views: Views::default(),
            wrong: None,
            of: PhantomData,
        }
    }
}

/// What happens when the last of all keys is deleted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Removal {
    /// The last good value stays in force, and [`State::Removed`](super::State::Removed) tells it.
    #[default]
    Keep,
    /// What the defaults say comes into force, as if there never had been a key.
    Defaults,
}

/// Where settings come from, before they are followed.
///
/// Made by [`Client::config`]; see the [module](super) for what layers are.
#[must_use = "nothing is followed before `open`"]
pub struct Settings<T> {
    client: Client,
    layers: Vec<Source>,
    codec: Arc<dyn Decode<Tree>>,
    validate: Option<Arc<Validate<T>>>,
    removal: Removal,
    fallback: Option<T>,
    views: Views,
    wrong: Option<Error>,
    of: PhantomData<fn() -> T>,
}

pub(super) type Validate<T> = dyn Fn(&T) -> Result<(), BoxError> + Send + Sync;

/// How each layer is looked at.
#[derive(Debug, Default)]
struct Views {
    /// For how long nothing must come, and how long that is waited for.
    settle: Option<(Duration, Duration)>,
    /// The folder, and how old what is there may be.
    kept: Option<(PathBuf, Duration)>,
}

impl Views {
    fn of(&self, number: usize, watch: Watch<Pair>) -> Result<Watch<Pair>> {
        let watch = match self.settle {
            Some((quiet, most)) => watch.settle(quiet, most)?,
            None => watch,
        };
        match &self.kept {
            Some((folder, oldest)) => {
                watch.keep_in(folder.join(format!("layer-{number}.watch")), *oldest)
            }
            None => Ok(watch),
        }
    }
}

enum Source {
    Defaults(Node),
    Key(Key),
    Tree(String),
}

impl<T> Settings<T>
where
    T: DeserializeOwned + Send + Sync + 'static,
{
    /// Adds a layer that is one key with a document. Default: none.
    pub fn key(mut self, key: impl Into<Arc<str>>) -> Self {
        match Key::new(key) {
            Ok(key) => self.layers.push(Source::Key(key)),
            Err(err) => drop(self.wrong.get_or_insert(err)),
        }
        self
    }

    /// Adds a layer that is all keys below a folder; a `/` at its end may be left out. Default:
    /// none.
    pub fn tree(mut self, folder: impl AsRef<str>) -> Self {
        let folder = folder.as_ref().trim_end_matches('/');
        match Key::new(folder) {
            Ok(key) => self.layers.push(Source::Tree(format!("{key}/"))),
            Err(err) => {
                let what = format!("folder {:?}", shortened(folder));
                self.wrong.get_or_insert_with(|| err.at(&what));
            }
        }
        self
    }

    /// Adds a layer of values that the program brings; mostly the lowest. Default: none.
    pub fn defaults(mut self, defaults: &(impl Serialize + ?Sized)) -> Self {
        // By way of JSON, so that they look like what is read.
        let written = serde_json::to_vec(defaults);
        let tree = written.and_then(|json| serde_json::from_slice::<Tree>(&json));
        match tree {
            Ok(Tree(node)) => self.layers.push(Source::Defaults(node)),
            Err(err) => {
                let wrong = Error::invalid("defaults: cannot be written as JSON").caused_by(err);
                self.wrong.get_or_insert(wrong);
            }
        }
        self
    }

    /// The format of the documents of [keys](Self::key). Default: [`Json`].
    ///
    /// A format of serde's that describes itself will do; see [`Tree`].
    pub fn codec(mut self, codec: impl Decode<Tree>) -> Self {
        self.codec = Arc::new(codec);
        self
    }

    /// Says which values are good; a refused one changes nothing. Default: all that can be read.
    ///
    /// It is called in the background, once for each value, and should not take long. A panic
    /// counts as a refusal.
    pub fn validate<E: Into<BoxError>>(
        mut self,
        validate: impl Fn(&T) -> Result<(), E> + Send + Sync + 'static,
    ) -> Self {
        self.validate = Some(Arc::new(move |value: &T| {
            validate(value).map_err(Into::into)
        }));
        self
    }

    /// What happens when the last of all keys is deleted. Default: [`Removal::Keep`].
    pub fn removal(mut self, removal: Removal) -> Self {
        self.removal = removal;
        self
    }

    /// A value to begin with, so that [`open`](Self::open) waits for nobody and refuses nothing
    /// that it finds. Default: none.
    pub fn fallback(mut self, value: T) -> Self {
        self.fallback = Some(value);
        self
    }

    /// Waits out bursts: after a change nothing is read until nothing has come for `quiet`, but for
    /// `most` at the longest. Default: each change is read at once.
    ///
    /// For a folder whose keys are written one after the other. Each layer waits by itself, see
    /// [`Watch::settle`].
    pub fn settle(mut self, quiet: Duration, most: Duration) -> Self {
        self.views.settle = Some((quiet, most));
        self
    }

    /// Keeps what the layers say in files of this folder, so that a start survives an outage of
    /// Consul. Default: nothing is kept.
    ///
    /// [`open`](Self::open) begins with what the files say as soon as Consul cannot be asked, if that
    /// is not older than `oldest`, and tells [`State::Stale`](super::State::Stale) until it can. The
    /// folder must exist, and be for these settings alone: its files have the numbers of the layers.
    /// See [`Watch::keep_in`] for how they are written and which are refused. Values lie in them as
    /// they are in Consul; only their owner may read them.
    pub fn keep_in(mut self, folder: impl Into<PathBuf>, oldest: Duration) -> Self {
        self.views.kept = Some((folder.into(), oldest));
        self
    }

    /// Follows the settings, and waits for the first good value, unless there is a
    /// [fallback](Self::fallback).
    ///
    /// Starts a task, and for each layer one whose query nobody else follows yet and one for each of
    /// [`settle`](Self::settle) and [`keep_in`](Self::keep_in); they end when the last copy of the
    /// [`Config`] is dropped.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Invalid`]: a setting was refused, or there is no layer.
    /// - [`ErrorKind::Value`]: what is there cannot be read, or the validation refuses it; the text
    ///   says which key or folder, and why.
    /// - [`ErrorKind::NotFound`]: there is no key, and the defaults alone are no `T`.
    /// - What Consul answers if it refuses a query for a reason that will not pass by itself. A
    ///   failure that may pass is waited out: put a time-out around this where a start must not wait.
    /// - [`ErrorKind::NoRuntime`] outside of a Tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind.
    pub async fn open(self) -> Result<Config<T>> {
        if let Some(err) = self.wrong {
            return Err(err);
        }
        let runtime = Handle::try_current().map_err(|_| {
            Error::new(ErrorKind::NoRuntime).context("settings are followed by a task")
        })?;
        let kv = self.client.kv();
        let mut layers = Vec::with_capacity(self.layers.len());
        for (number, source) in self.layers.into_iter().enumerate() {
            layers.push(match source {
                Source::Defaults(node) => Layer::Defaults(node),
                Source::Key(key) => {
                    let watch = self.views.of(number, kv.get(&*key).watch()?)?;
                    Layer::Key(key, watch)
                }
                Source::Tree(prefix) => {
                    let watch = self.views.of(number, kv.list(&prefix).watch()?)?;
                    Layer::Tree(prefix, watch)
                }
            });
        }
        if !layers.iter().any(Layer::is_watched) {
            return Err(Error::invalid(
                "settings without a key: name one by `key` or `tree`",
            ));
        }
        let rules = Rules {
            place: keeper::place(&layers),
            codec: self.codec,
            validate: self.validate,
            removal: self.removal,
        };
        match self.fallback {
            Some(value) => Ok(Config::start(&runtime, &Arc::new(value), layers, rules)),
            None => {
                let first = keeper::first(&mut layers, &rules).await?;
                Ok(Config::start(&runtime, &first, layers, rules))
            }
        }
    }
}

impl<T> fmt::Debug for Settings<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers: Vec<&str> = self
            .layers
            .iter()
            .map(|layer| match layer {
                Source::Defaults(_) => "defaults",
                Source::Key(key) => key,
                Source::Tree(prefix) => prefix,
            })
            .collect();
        f.debug_struct("Settings")
            .field("layers", &layers)
            .field("removal", &self.removal)
            .finish_non_exhaustive()
    }
}
