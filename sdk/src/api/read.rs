//! Reads: what may be asked of every `GET` endpoint.

use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::time::Duration;

use http::HeaderValue;

use super::endpoint::{Answered, Gathering};
use super::{Answer, Endpoint};
use crate::client::{Call, Client};
use crate::error::{Error, Result};
use crate::ident::{Datacenter, Token};
use crate::proto::cursor;
use crate::proto::query::Target;
use crate::transport::Lane;

/// A call on its way: what awaiting a [`Read`] or a [`Write`](super::Write) polls.
pub type Sending<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

/// Which server may answer a read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Consistency {
    /// The leader, under its lease; for a moment after an election a deposed one, or a new one that
    /// has not read its log back and knows less than it will. Consul's default, unless the agent is
    /// configured with `discovery_max_stale`.
    #[default]
    Default,
    /// Any server, even without a leader; how stale is told by
    /// [`Meta::last_contact`](super::Meta::last_contact).
    Stale,
    /// The leader, after it has asked a quorum whether it still leads: linearizable, and slower.
    Consistent,
    /// The leader, even where the agent is configured with `discovery_max_stale`.
    Leader,
    /// Any server, unless it last heard from the leader longer ago than this; then the leader.
    MaxStale(Duration),
}

impl Consistency {
    /// Adds the parameter that asks for it.
    pub(super) fn ask(self, target: &mut Target) {
        match self {
            Self::Default => {}
            Self::Stale => target.flag("stale"),
            Self::Consistent => target.flag("consistent"),
            Self::Leader => target.flag("leader"),
            Self::MaxStale(bound) => {
                target.push("max_stale", &format!("{}ms", bound.as_millis()));
            }
        }
    }
}

/// How the agent's cache may answer (`?cached`).
///
/// The cache of some endpoints is refreshed in the background; Consul ignores the ages for those.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[must_use]
pub struct Cached {
    max_age: Option<Duration>,
    stale_if_error: Option<Duration>,
    must_revalidate: bool,
}

impl Cached {
    /// Whatever the cache holds.
    pub fn any_age() -> Self {
        Self::default()
    }

    /// Entries up to this age, in whole seconds. Default: any age.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }

    /// Entries up to this age, in whole seconds, if the servers cannot be asked. Default: none.
    pub fn stale_if_error(mut self, age: Duration) -> Self {
        self.stale_if_error = Some(age);
        self
    }

    /// No entry without asking the servers, whose answer then enters the cache.
    pub fn must_revalidate(mut self) -> Self {
        self.must_revalidate = true;
        self
    }

    /// The `Cache-Control` header; directives are split by commas, whatever the documentation says
    /// (the documented form with spaces is answered with 400, measured on 1.8.7).
    fn header(self) -> Option<HeaderValue> {
        let mut parts = Vec::new();
        if let Some(age) = self.max_age {
            parts.push(format!("max-age={}", age.as_secs()));
        }
        if let Some(age) = self.stale_if_error {
            parts.push(format!("stale-if-error={}", age.as_secs()));
        }
        if self.must_revalidate {
            parts.push("must-revalidate".to_owned());
        }
        HeaderValue::from_str(&parts.join(", "))
            .ok()
            .filter(|value| !value.is_empty())
    }
}

/// A read that has not been sent yet.
///
/// Set what is wanted, then await it, or [`send`](Self::send) it. Options that an endpoint does not
/// know are ignored by Consul.
#[must_use = "a read does nothing until it is awaited"]
#[derive(Clone)]
pub struct Read<E> {
    pub(crate) client: Client,
    pub(crate) call: Call,
    pub(crate) endpoint: E,
    consistency: Option<Consistency>,
    cached: Option<Cached>,
    block: Option<Block>,
    wrong: Option<Error>,
}

/// What a hand-made blocking query waits for.
#[derive(Clone, Debug)]
struct Block {
    since: Since,
    wait: Duration,
}

#[derive(Clone, Debug)]
enum Since {
    Index(u64),
    Hash(Box<str>),
}

impl<E> Read<E> {
    pub(crate) fn new(client: &Client, target: Target, endpoint: E) -> Self {
        Self {
            client: client.clone(),
            call: Call::get(target),
            endpoint,
            consistency: None,
            cached: None,
            block: None,
            wrong: None,
        }
    }

    /// The target of a name that a caller gave; a refused one is told when the call is awaited.
    pub(crate) fn named<N: AsRef<str>>(
        client: &Client,
        path: &'static str,
        name: Result<N>,
        endpoint: E,
    ) -> Self {
        match name {
            Ok(name) => Self::new(client, Target::of(path, name.as_ref()), endpoint),
            Err(err) => Self::new(client, Target::new(path), endpoint).refuse(err),
        }
    }

    /// The same call, whose answer another endpoint reads.
    pub(super) fn endpoint<F>(self, endpoint: impl FnOnce(E) -> F) -> Read<F> {
        Read {
            client: self.client,
            call: self.call,
            endpoint: endpoint(self.endpoint),
            consistency: self.consistency,
            cached: self.cached,
            block: self.block,
            wrong: self.wrong,
        }
    }

    /// Remembers the first thing that was wrong.
    pub(crate) fn refuse(mut self, err: Error) -> Self {
        self.wrong.get_or_insert(err);
        self
    }

    /// Adds a query parameter.
    pub(crate) fn parameter(mut self, name: &str, value: &str) -> Self {
        self.call.target.push(name, value);
        self
    }

    /// Adds a query parameter without a value.
    pub(crate) fn flag(mut self, name: &str) -> Self {
        self.call.target.flag(name);
        self
    }

    /// Which server may answer. Default: [`Consistency::Default`].
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = Some(consistency);
        self
    }

    /// Short for [`Consistency::Stale`].
    pub fn stale(self) -> Self {
        self.consistency(Consistency::Stale)
    }

    /// Short for [`Consistency::Consistent`].
    pub fn consistent(self) -> Self {
        self.consistency(Consistency::Consistent)
    }

    /// Lets the agent's cache answer. Default: it does not.
    pub fn cached(mut self, cached: Cached) -> Self {
        self.cached = Some(cached);
        self
    }

    /// The datacenter that answers. Default: the client's.
    pub fn datacenter(mut self, datacenter: impl TryInto<Datacenter, Error = Error>) -> Self {
        match datacenter.try_into() {
            Ok(datacenter) => {
                self.client = self.client.with_datacenter(datacenter);
                self
            }
            Err(err) => self.refuse(err),
        }
    }

    /// Only what this expression selects, in Consul's own filter language: `Service.Tags contains
    /// "v1"`. Default: all. A wrong one is answered with [`ErrorKind::Refused`](crate::ErrorKind::Refused).
    pub fn filter(self, expression: impl AsRef<str>) -> Self {
        self.parameter("filter", expression.as_ref())
    }

    /// Sorts by round-trip time from this node; `_agent` is the agent's own. Default: unsorted.
    ///
    /// An unknown node is ignored by Consul.
    pub fn near(self, node: impl AsRef<str>) -> Self {
        self.parameter("near", node.as_ref())
    }

    /// Only nodes with this metadata; call it again for more, all must fit. Default: all.
    pub fn node_meta(self, key: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        let pair = format!("{}:{}", key.as_ref(), value.as_ref());
        self.parameter("node-meta", &pair)
    }

    /// Asks with this token. Default: the client's.
    pub fn token(mut self, token: Token) -> Self {
        self.client = self.client.with_token(token);
        self
    }

    /// Ends the call after `timeout`. Default: the client's, 15 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.call.timeout = Some(timeout);
        self
    }

    /// Goes out beside all other calls, because lateness does harm.
    pub(crate) fn beat(mut self) -> Self {
        self.call.lane = Lane::Beat;
        self
    }

    /// Waits for a change since `index`, for at most `wait`: one blocking query, made by hand.
    ///
    /// Take the index from [`Meta::index`](super::Meta::index), and mind Consul's rules for it: drop it when it goes
    /// backwards, and when an answer comes early with the same one. A
    /// [`Watch`](crate::watch::Watch) keeps them all.
    ///
    /// Range of `wait`: 1 ms to 10 min; zero would mean Consul's 5 min and is refused. The call's
    /// deadline becomes `wait`, a sixteenth of it and 10 s.
    pub fn wait_for_change(mut self, index: u64, wait: Duration) -> Self {
        self.block = Some(Block {
            since: Since::Index(index),
            wait,
        });
        self
    }

    /// The same for the agent's own endpoints, which tell contents apart by a hash.
    pub(crate) fn block_on_hash(mut self, hash: &str, wait: Duration) -> Self {
        self.block = Some(Block {
            since: Since::Hash(hash.into()),
            wait,
        });
        self
    }

    /// Whether the caller said which server, or the cache, may answer.
    pub(crate) fn says_who_answers(&self) -> bool {
        self.consistency.is_some() || self.cached.is_some()
    }

    /// Whether the caller made it a blocking query by hand.
    pub(crate) fn blocks(&self) -> bool {
        self.block.is_some()
    }

    /// The request this read makes, without what makes it blocking.
    pub(crate) fn assemble(&self) -> Result<Call> {
        self.assemble_for(self.consistency.unwrap_or_default())
    }

    /// The same of another server.
    pub(crate) fn assemble_for(&self, consistency: Consistency) -> Result<Call> {
        if consistency == Consistency::Consistent && self.cached.is_some() {
            return Err(Error::invalid(
                "a consistent read cannot be answered from the cache; leave one of them out",
            ));
        }
        let mut call = self.assemble_uncached(consistency)?;
        if let Some(cached) = self.cached {
            call.target.flag("cached");
            call.cache_control = cached.header();
        }
        Ok(call)
    }

    /// The same of a server, whatever the agent's cache may answer.
    pub(crate) fn assemble_uncached(&self, consistency: Consistency) -> Result<Call> {
        if let Some(err) = &self.wrong {
            return Err(err.clone());
        }
        let mut call = self.call.clone();
        consistency.ask(&mut call.target);
        Ok(call)
    }
}

impl<E: Endpoint> Read<E> {
    /// Sends the read.
    ///
    /// # Errors
    ///
    /// An argument that was refused, a failure on the way, or what Consul answered instead.
    ///
    /// # Cancel safety
    ///
    /// A read changes nothing: dropping the future closes the connection it used, and nothing else
    /// is lost.
    pub async fn send(self) -> Result<Answer<E::Output>> {
        let mut call = self.assemble()?;
        if let Some(Block { since, wait }) = self.block {
            match since {
                Since::Index(index) => call.target.push_number("index", index),
                Since::Hash(hash) => call.target.push("hash", &hash),
            }
            wait_for(&mut call, wait)?;
        }
        let mut gathering = self.endpoint.gathering();
        let gather = gathering.as_mut().map(Gathering::as_gather);
        let raw = self.client.send_gathering(call, gather).await?;
        let meta = raw.meta();
        let value = match gathering.and_then(Gathering::finish) {
            Some(gathered) => gathered.map_err(|err| raw.unexpected(err))?,
            None => self.endpoint.interpret(Answered(raw))?,
        };
        Ok(Answer::new(value, meta))
    }
}

/// Makes a call wait on the server.
pub(crate) fn wait_for(call: &mut Call, wait: Duration) -> Result<()> {
    if wait.is_zero() || wait > LONGEST_WAIT {
        return Err(Error::invalid(format!(
            "wait {wait:?}: must be from 1 ms to 10 min, which is Consul's own limit"
        )));
    }
    // "wait=5" without a unit is refused, and less than a millisecond would round to zero, which
    // Consul takes for its default of 5 min.
    let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
    call.target.push("wait", &format!("{ms}ms"));
    call.lane = Lane::Poll;
    call.timeout = Some(cursor::deadline(wait));
    Ok(())
}

/// `max_query_time` of the servers, by default.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(600);

impl<E: Endpoint> IntoFuture for Read<E> {
    type Output = Result<Answer<E::Output>>;
    type IntoFuture = Sending<Answer<E::Output>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

impl<E> fmt::Debug for Read<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Read")
            .field("target", &self.call.target.as_str())
            .field("consistency", &self.consistency)
            .field("cached", &self.cached)
            .field("block", &self.block)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_directives_are_separated_by_commas() {
        let cached = Cached::any_age()
            .max_age(Duration::from_secs(5))
            .stale_if_error(Duration::from_secs(60))
            .must_revalidate();
        let header = cached.header().unwrap();
        assert_eq!(header, "max-age=5, stale-if-error=60, must-revalidate");
        assert_eq!(Cached::any_age().header(), None);
    }

    #[test]
    fn a_wait_is_sent_in_milliseconds_and_never_as_zero() {
        let sent = |wait| {
            let mut call = Call::get(Target::new("/v1/x"));
            wait_for(&mut call, wait).map(|()| call.target.as_str().to_owned())
        };
        assert_eq!(sent(Duration::from_secs(5)).unwrap(), "/v1/x?wait=5000ms");
        assert_eq!(sent(Duration::from_micros(1)).unwrap(), "/v1/x?wait=1ms");
        assert!(sent(Duration::ZERO).is_err());
        assert!(sent(Duration::from_secs(601)).is_err());
    }
}
