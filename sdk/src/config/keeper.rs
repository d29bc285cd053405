//! The task that keeps settings up to date.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::read::read;
use super::settings::{Removal, Validate};
use super::state::State;
use super::tree::{Node, Tree};
use crate::api::kv::Pair;
use crate::api::unreadable;
use crate::codec::{BoxError, Decode};
use crate::error::{Error, ErrorKind, Result};
use crate::ident::{Key, shortened};
use crate::task::StopSignal;
use crate::watch::{Watch, any_changed};

/// One layer of settings.
pub(super) enum Layer {
    Defaults(Node),
    Key(Key, Watch<Pair>),
    /// A prefix that ends with `/`.
    Tree(String, Watch<Pair>),
}

impl Layer {
    fn watch(&self) -> Option<&Watch<Pair>> {
        match self {
            Self::Defaults(_) => None,
            Self::Key(_, watch) | Self::Tree(_, watch) => Some(watch),
        }
    }

    fn watch_mut(&mut self) -> Option<&mut Watch<Pair>> {
        match self {
            Self::Defaults(_) => None,
            Self::Key(_, watch) | Self::Tree(_, watch) => Some(watch),
        }
    }

    pub(super) fn is_watched(&self) -> bool {
        self.watch().is_some()
    }
}

/// Where settings come from, for errors about all of them.
pub(super) fn place(layers: &[Layer]) -> String {
    let names = layers.iter().filter_map(|layer| match layer {
        Layer::Defaults(_) => None,
        Layer::Key(key, _) => Some(format!("key {:?}", shortened(key))),
        Layer::Tree(prefix, _) => Some(format!("folder {:?}", shortened(prefix))),
    });
    names.collect::<Vec<_>>().join(" and ")
}

/// How settings are read and judged.
pub(super) struct Rules<T> {
    /// Where they come from.
    pub(super) place: String,
    pub(super) codec: Arc<dyn Decode<Tree>>,
    pub(super) validate: Option<Arc<Validate<T>>>,
    pub(super) removal: Removal,
}

/// All layers at one moment.
#[derive(PartialEq)]
struct Found {
    /// What they are together, or which is wrong.
    node: Node,
    /// Whether any key is there.
    is_there: bool,
}

/// What the layers say now; `None` while one of them is not known yet.
fn found<T>(layers: &[Layer], rules: &Rules<T>) -> Option<Result<Found>> {
    let mut snapshots = Vec::with_capacity(layers.len());
    for layer in layers {
        snapshots.push(match layer.watch() {
            Some(watch) => Some(watch.latest()?),
            None => None,
        });
    }
    let mut node = Node::empty();
    let mut is_there = false;
    for (layer, snapshot) in layers.iter().zip(&snapshots) {
        let pairs = snapshot.as_deref().unwrap_or_default();
        is_there |= !pairs.is_empty();
        let upper = match layer {
            Layer::Defaults(defaults) => defaults.clone(),
            Layer::Key(..) => match pairs.first() {
                Some(pair) => match document(pair, rules) {
                    Ok(node) => node,
                    Err(err) => return Some(Err(err)),
                },
                None => continue,
            },
            Layer::Tree(prefix, _) => {
                match Node::of_pairs(prefix, pairs.iter().map(|pair| &**pair)) {
                    Ok(node) => node,
                    Err(err) => return Some(Err(unfit(&err))),
                }
            }
        };
        node = node.overlaid_by(upper);
    }
    Some(Ok(Found { node, is_there }))
}

fn document<T>(pair: &Pair, rules: &Rules<T>) -> Result<Node> {
    let bytes = pair.value_bytes();
    let decoded = guarded("the codec", || rules.codec.decode(&bytes));
    let Tree(mut node) = decoded.map_err(|err| unreadable(pair.key(), &err))?;
    node.came_by(&Arc::from(pair.key().as_str()));
    Ok(node)
}

/// The value that the layers are together.
fn judged<T: DeserializeOwned>(found: Found, rules: &Rules<T>) -> Result<Arc<T>> {
    let Found { node, is_there } = found;
    let place = &rules.place;
    let reading = || -> Result<T, BoxError> {
        match is_there {
            true => read(node).map_err(|wrong| wrong.within(place).into()),
            false => Ok(read(node)?),
        }
    };
    let value = guarded("reading them", reading).map_err(|err| match is_there {
        true => unfit(&err),
        false => Error::new(ErrorKind::NotFound)
            .context(format!("{place}: nothing is there, and without it: {err}")),
    })?;
    if let Some(validate) = &rules.validate {
        guarded("the validation", || validate(&value)).map_err(|err| {
            let what = format!("the settings of {place} are refused: {err}");
            Error::new(ErrorKind::Value).context(what)
        })?;
    }
    Ok(Arc::new(value))
}

fn unfit(err: &BoxError) -> Error {
    let what = format!("the settings cannot be read: {err}");
    Error::new(ErrorKind::Value).context(what)
}

/// What the caller's code says; a panic in it must not end the task.
fn guarded<R>(what: &str, code: impl FnOnce() -> Result<R, BoxError>) -> Result<R, BoxError> {
    match catch_unwind(AssertUnwindSafe(code)) {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("{what} panicked").into()),
    }
}

/// Waits for the first good value.
pub(super) async fn first<T: DeserializeOwned>(
    layers: &mut [Layer],
    rules: &Rules<T>,
) -> Result<Arc<T>> {
    loop {
        if let Some(found) = found(layers, rules) {
            return judged(found?, rules);
        }
        let refused = layers.iter().filter_map(Layer::watch).find_map(|watch| {
            let status = watch.status();
            let refused = status.error().filter(|err| !err.is_transient());
            refused.filter(|_| watch.latest().is_none()).cloned()
        });
        if let Some(err) = refused {
            return Err(err);
        }
        changed(layers).await?;
    }
}

/// Waits for news of any layer.
async fn changed(layers: &mut [Layer]) -> Result<()> {
    any_changed(layers.iter_mut().filter_map(Layer::watch_mut)).await
}

pub(super) struct Keeper<T> {
    layers: Vec<Layer>,
    rules: Rules<T>,
    now: Arc<ArcSwap<T>>,
    state: watch::Sender<State<T>>,
    /// What was judged last, so that it is judged once.
    last: Option<Result<Found>>,
    /// What became of it.
    outcome: Outcome,
    was_there: bool,
}

#[derive(Clone)]
enum Outcome {
    Unknown,
    InForce,
    Rejected(Error),
    Removed,
}

impl<T: DeserializeOwned + Send + Sync + 'static> Keeper<T> {
    pub(super) fn new(
        layers: Vec<Layer>,
        rules: Rules<T>,
        now: Arc<ArcSwap<T>>,
        state: watch::Sender<State<T>>,
    ) -> Self {
        Self {
            layers,
            rules,
            now,
            state,
            last: None,
            outcome: Outcome::Unknown,
            was_there: false,
        }
    }

    pub(super) async fn run(mut self, mut stop: StopSignal) {
        tokio::select! {
            biased;
            _ = stop.recv() => {}
            () = self.follow() => {}
        }
    }

    async fn follow(&mut self) {
        loop {
            self.look();
            if changed(&mut self.layers).await.is_err() {
                return;
            }
        }
    }

    /// Takes in what the layers say, and tells what is new of it.
    pub(super) fn look(&mut self) {
        if let Some(found) = found(&self.layers, &self.rules) {
            self.take_in(found);
        }
        let state = self.present();
        self.state.send_if_modified(|told| {
            let is_news = !is_same(told, &state);
            if is_news {
                *told = state;
            }
            is_news
        });
    }

    fn take_in(&mut self, found: Result<Found>) {
        let is_known = match (&self.last, &found) {
            (Some(Ok(last)), Ok(found)) => last == found,
            (Some(Err(last)), Err(found)) => last.to_string() == found.to_string(),
            _ => false,
        };
        if is_known {
            return;
        }
        self.last = Some(match &found {
            Ok(found) => Ok(Found {
                node: found.node.clone(),
                is_there: found.is_there,
            }),
            Err(err) => Err(err.clone()),
        });
        let is_there = found.as_ref().map_or(true, |found| found.is_there);
        let was_there = std::mem::replace(&mut self.was_there, is_there);
        // Once removed, they stay so until there is a key again.
        let is_removed = !is_there && (was_there || matches!(self.outcome, Outcome::Removed));
        if is_removed && self.rules.removal == Removal::Keep {
            tracing::warn!("the settings were removed, the last good value stays");
            self.outcome = Outcome::Removed;
            return;
        }
        self.outcome = match found.and_then(|found| judged(found, &self.rules)) {
            Ok(value) => {
                self.now.store(value);
                Outcome::InForce
            }
            Err(error) => {
                tracing::warn!(error = %error.chain(), "the settings are not good, the last good value stays");
                Outcome::Rejected(error)
            }
        };
    }

    fn present(&self) -> State<T> {
        let value = self.now.load_full();
        let mut watches = self.layers.iter().filter_map(Layer::watch);
        let stale = watches.find_map(|watch| {
            let status = watch.status();
            (!status.is_live()).then(|| status.error().cloned())
        });
        match (&self.outcome, stale) {
            (Outcome::Rejected(error), _) => State::Rejected {
                value,
                error: error.clone(),
            },
            (Outcome::Removed, _) => State::Removed(value),
            (Outcome::InForce, None) => State::Current(value),
            (Outcome::InForce | Outcome::Unknown, stale) => State::Stale {
                value,
                error: stale.flatten().unwrap_or_else(|| {
                    Error::new(ErrorKind::Connect).context("Consul has not answered yet")
                }),
            },
        }
    }
}

/// Whether two states say the same; that an outage goes on is no news.
fn is_same<T>(one: &State<T>, other: &State<T>) -> bool {
    let same = match (one, other) {
        (State::Current(_), State::Current(_)) | (State::Removed(_), State::Removed(_)) => true,
        (State::Stale { error: one, .. }, State::Stale { error: other, .. }) => {
            one.kind() == other.kind()
        }
        (State::Rejected { error: one, .. }, State::Rejected { error: other, .. }) => {
            one.to_string() == other.to_string()
        }
        _ => false,
    };
    same && Arc::ptr_eq(one.value(), other.value())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::codec::Json;

    #[derive(Debug, Deserialize)]
    struct Limits {
        requests: u32,
    }

    fn of(json: &str, is_there: bool) -> Result<Arc<Limits>> {
        let rules = Rules {
            place: r#"key "all" and folder "web/""#.to_owned(),
            codec: Arc::new(Json),
            validate: Some(Arc::new(|limits: &Limits| match limits.requests {
                0 => Err("`requests` is 0: must be at least 1".into()),
                13 => panic!("what a validation must not do"),
                _ => Ok(()),
            })),
            removal: Removal::Keep,
        };
        let Tree(node) = serde_json::from_str(json).unwrap();
        judged(Found { node, is_there }, &rules)
    }

    #[test]
    fn a_bad_value_is_told_as_such_with_where_it_stands() {
        assert_eq!(of(r#"{"requests": 1}"#, true).unwrap().requests, 1);
        for (json, told) in [
            (
                r#"{"requests": 0}"#,
                r#"bad value: the settings of key "all" and folder "web/" are refused: `requests` is 0: must be at least 1"#,
            ),
            (
                r#"{"requests": 13}"#,
                r#"bad value: the settings of key "all" and folder "web/" are refused: the validation panicked"#,
            ),
            (
                "{}",
                r#"bad value: the settings cannot be read: key "all" and folder "web/": missing field `requests`"#,
            ),
            (
                r#"{"requests": "many"}"#,
                r#"bad value: the settings cannot be read: `requests` of key "all" and folder "web/": invalid type: string "many", expected u32"#,
            ),
        ] {
            let err = of(json, true).unwrap_err();
            assert_eq!(err.to_string(), told);
            assert_eq!(err.kind(), ErrorKind::Value);
            assert!(!err.is_transient());
        }
        let none = of("{}", false).unwrap_err();
        assert_eq!(
            none.to_string(),
            r#"not found: key "all" and folder "web/": nothing is there, and without it: missing field `requests`"#
        );
    }
}
