//! One view over several datacenters.

use std::fmt;
use std::time::Duration;

use super::kinds::{Watchable, Watched};
use super::reader::{Watch, any_changed};
use super::snapshot::{Snapshot, Status};
use crate::api::Read;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::ident::Datacenter;

impl<E: Watchable + Clone> Read<E> {
    /// A live view of what this read returns in each of these datacenters, in order of preference.
    ///
    /// Each has a query, an index and a status of its own: one that cannot be reached leaves the
    /// others alone, keeps its last content, and is told as stale. One that does not exist is told
    /// by the status of its region, as [`ErrorKind::UnknownDatacenter`](crate::ErrorKind::UnknownDatacenter); so is one that the own
    /// servers have not heard of yet, and it is asked again and again. For the order,
    /// see [`Failover`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(client: lictor::Client) -> lictor::Result<()> {
    /// use lictor::watch::Failover;
    ///
    /// // The own datacenter, the two nearest, and then `dc9`.
    /// let order = Failover::new().nearest(2).then("dc9").order(&client).await?;
    /// let mut web = client.health().service("web").passing().watch_across(order)?;
    /// loop {
    ///     for region in web.changed().await? {
    ///         println!("{region}");
    ///     }
    ///     if let Some(region) = web.preferred() {
    ///         println!("calls go to {}", region.datacenter());
    ///     }
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As those of [`Read::watch`], and [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if there is no datacenter.
    pub fn watch_across(
        self,
        datacenters: impl IntoIterator<Item = Datacenter>,
    ) -> Result<Across<E::Item>> {
        let mut regions: Vec<(Datacenter, Watch<E::Item>)> = Vec::new();
        for datacenter in datacenters {
            if !regions.iter().any(|(known, _)| *known == datacenter) {
                let watch = self.clone().datacenter(datacenter.as_str()).watch()?;
                regions.push((datacenter, watch));
            }
        }
        if regions.is_empty() {
            return Err(Error::invalid(
                "a view over no datacenter: name at least one",
            ));
        }
        Ok(Across { regions })
    }
}

/// A live view over several datacenters, in order of preference.
///
/// A copy is another reader of the same queries.
pub struct Across<T> {
    regions: Vec<(Datacenter, Watch<T>)>,
}

/// What is known of one datacenter.
#[derive(Clone, Debug)]
pub struct Region<T> {
    datacenter: Datacenter,
    snapshot: Option<Snapshot<T>>,
    status: Status,
}

impl<T> Region<T> {
    /// The datacenter.
    #[must_use]
    pub fn datacenter(&self) -> &Datacenter {
        &self.datacenter
    }

    /// What it holds, or held last; `None` before its first answer.
    #[must_use]
    pub fn snapshot(&self) -> Option<&Snapshot<T>> {
        self.snapshot.as_ref()
    }

    /// Whether that is up to date.
    #[must_use]
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// How many elements are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.snapshot.as_ref().map_or(0, |snapshot| snapshot.len())
    }

    /// Whether no element is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A line about it: name, elements, and what is wrong.
impl<T> fmt::Display for Region<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.datacenter)?;
        match &self.snapshot {
            Some(snapshot) => write!(f, "{} elements", snapshot.len())?,
            None => f.write_str("nothing known")?,
        }
        match &self.status {
            Status::Stale(outage) => write!(f, ", stale: {}", outage.error()),
            Status::Connecting { error: Some(error) } => write!(f, ": {error}"),
            _ => Ok(()),
        }
    }
}

impl<T: Watched> Across<T> {
    /// All regions as they are now, in order of preference.
    #[must_use]
    pub fn regions(&self) -> Vec<Region<T>> {
        let all = self.regions.iter();
        all.map(|(datacenter, watch)| Region {
            datacenter: datacenter.clone(),
            snapshot: watch.latest(),
            status: watch.status(),
        })
        .collect()
    }

    /// The first region that is up to date and has any element; if there is none, the first that
    /// had any when it was heard of last.
    #[must_use]
    pub fn preferred(&self) -> Option<Region<T>> {
        let mut regions = self.regions();
        regions.retain(|region| !region.is_empty());
        let fresh = |region: &Region<T>| !matches!(region.status, Status::Stale(_));
        let at = regions.iter().position(fresh).unwrap_or(0);
        (at < regions.len()).then(|| regions.swap_remove(at))
    }

    /// Waits until a region has another content or another status than this reader knows; the first
    /// time, until one is heard of.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed) if the runtime that ran the queries is gone.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: what this future would have returned, the next call returns.
    pub async fn changed(&mut self) -> Result<Vec<Region<T>>> {
        any_changed(self.regions.iter_mut().map(|(_, watch)| watch)).await?;
        Ok(self.regions())
    }

    /// The watches behind it, one for each datacenter, as sources for whoever calls instances.
    #[must_use]
    pub fn watches(&self) -> Vec<Watch<T>> {
        self.regions
            .iter()
            .map(|(_, watch)| watch.clone())
            .collect()
    }
}

impl<T> Clone for Across<T> {
    fn clone(&self) -> Self {
        Self {
            regions: self.regions.clone(),
        }
    }
}

impl<T> fmt::Debug for Across<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(
                self.regions
                    .iter()
                    .map(|(datacenter, watch)| (datacenter, watch)),
            )
            .finish()
    }
}

/// Which datacenters are turned to, and in which order: the own one, the nearest others by their
/// round-trip times, and then those that are named.
#[derive(Clone, Debug, Default)]
#[must_use = "an order is found by `order`"]
pub struct Failover {
    nearest: usize,
    named: Vec<Result<Datacenter>>,
}

impl Failover {
    /// The own datacenter alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds so many of the nearest others. Default: 0; [`usize::MAX`] for all.
    pub fn nearest(mut self, datacenters: usize) -> Self {
        self.nearest = datacenters;
        self
    }

    /// Adds one by its name, after the nearest; one that is in the order already keeps its place.
    pub fn then(mut self, datacenter: impl TryInto<Datacenter, Error = Error>) -> Self {
        self.named.push(datacenter.try_into());
        self
    }

    /// Asks the agent which datacenters there are, and how far.
    ///
    /// The own one is the client's, if it has one set, else the agent's. Times are estimated from
    /// network coordinates; datacenters without one come last of the nearest. Whether a named one
    /// exists is not looked at.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if a name was refused, and what the two reads fail with.
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    pub async fn order(self, client: &Client) -> Result<Vec<Datacenter>> {
        let named = self.named.into_iter().collect::<Result<Vec<_>>>()?;
        let own = match client.datacenter() {
            Some(own) => own.clone(),
            None => client.agent().about().await?.config().datacenter().clone(),
        };
        let mut others = Vec::new();
        if self.nearest > 0 {
            let all = client.coordinate().datacenters().await?.into_value();
            let here = all.iter().find(|one| *one.datacenter() == own);
            for other in &all {
                let distance = here.and_then(|here| here.distance_to(other));
                others.push((other.datacenter().clone(), distance));
            }
        }
        Ok(ordered(own, others, self.nearest, named))
    }
}

/// The own one, the nearest others, and the named ones, each once.
fn ordered(
    own: Datacenter,
    mut others: Vec<(Datacenter, Option<Duration>)>,
    nearest: usize,
    named: Vec<Datacenter>,
) -> Vec<Datacenter> {
    others.retain(|(other, _)| *other != own);
    // By name where the times are equal, so that all processes find the same order.
    others.sort_by(|(one, near), (other, far)| {
        let near = near.unwrap_or(Duration::MAX);
        near.cmp(&far.unwrap_or(Duration::MAX))
            .then_with(|| one.cmp(other))
    });
    let nearest = others.into_iter().map(|(other, _)| other).take(nearest);
    let mut order = vec![own];
    for datacenter in nearest.chain(named) {
        if !order.contains(&datacenter) {
            order.push(datacenter);
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_one_comes_first_then_the_nearest_then_the_named() {
        let dc = |name: &str| Datacenter::new(name).unwrap();
        let at = |name, ms: Option<u64>| (dc(name), ms.map(Duration::from_millis));
        let others = || {
            vec![
                at("lost", None),
                at("far", Some(90)),
                at("own", Some(0)),
                at("twin", Some(20)),
                at("near", Some(20)),
            ]
        };
        let order = |nearest, named: &[&str]| {
            let named = named.iter().map(|name| dc(name)).collect();
            let order = ordered(dc("own"), others(), nearest, named);
            let names: Vec<String> = order.into_iter().map(String::from).collect();
            names.join(" ")
        };
        assert_eq!(order(0, &[]), "own");
        assert_eq!(order(2, &["far", "near"]), "own near twin far");
        assert_eq!(
            order(usize::MAX, &["moon", "own"]),
            "own near twin far lost moon"
        );
        assert_eq!(order(0, &["far", "near", "far"]), "own far near");
    }
}
