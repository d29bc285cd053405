//! Network coordinates, from which round-trip times are estimated: `/v1/coordinate`.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;

use super::endpoint::{Answered, answers_with_list};
use super::{Endpoint, Read};
use crate::client::Client;
use crate::error::Result;
use crate::ident::{Datacenter, NodeName};
use crate::proto::json::{self, Text};
use crate::proto::query::Target;

impl Client {
    /// Network coordinates.
    #[must_use]
    pub fn coordinate(&self) -> Coordinates {
        Coordinates {
            client: self.clone(),
        }
    }
}

/// Calls about network coordinates.
///
/// Agents measure how long their gossip takes and place themselves in a space where distances are
/// round-trip times. Coordinates of a datacenter only mean something beside others of the same; of
/// servers there are some for the network of all datacenters, too.
///
/// To have the instances of a service sorted, [`Read::near`] is enough.
#[derive(Clone, Debug)]
pub struct Coordinates {
    client: Client,
}

impl Coordinates {
    /// The servers of all datacenters, in the space of the network between them.
    #[doc(alias = "GET /v1/coordinate/datacenters")]
    pub fn datacenters(&self) -> Read<Datacenters> {
        let target = Target::new("/v1/coordinate/datacenters");
        Read::new(&self.client, target, Datacenters(()))
    }

    /// All nodes of a datacenter that have a place.
    #[doc(alias = "GET /v1/coordinate/nodes")]
    pub fn nodes(&self) -> Read<Nodes> {
        let target = Target::new("/v1/coordinate/nodes");
        Read::new(&self.client, target, Nodes(()))
    }

    /// One node, in each of its segments; empty if it is unknown, or has no place yet.
    #[doc(alias = "GET /v1/coordinate/node/:node")]
    pub fn node(&self, node: impl Into<Arc<str>>) -> Read<Node> {
        let node = NodeName::new(node);
        Read::named(&self.client, "/v1/coordinate/node/", node, Node(()))
    }
}

/// A place in the space of round-trip times (Vivaldi's).
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "PascalCase")]
pub struct Coordinate {
    #[serde(rename = "Vec", deserialize_with = "json::list")]
    vector: Box<[f64]>,
    #[serde(default)]
    error: f64,
    #[serde(default)]
    adjustment: f64,
    #[serde(default)]
    height: f64,
}

impl Coordinate {
    /// The estimated round-trip time to another place of the same space.
    ///
    /// `None` if the two cannot be compared: they have other numbers of dimensions, or numbers that
    /// are none.
    #[must_use]
    pub fn distance_to(&self, other: &Self) -> Option<Duration> {
        if self.vector.len() != other.vector.len() {
            return None;
        }
        let pairs = self.vector.iter().zip(&other.vector);
        let square: f64 = pairs.map(|(one, other)| (one - other).powi(2)).sum();
        let raw = square.sqrt() + self.height + other.height;
        // Serf: "the adjustment … may be negative", and then only counts while the whole is not.
        let adjusted = raw + self.adjustment + other.adjustment;
        let seconds = if adjusted > 0.0 { adjusted } else { raw };
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// The numbers of its dimensions, in seconds.
    #[must_use]
    pub fn vector(&self) -> &[f64] {
        &self.vector
    }

    /// How sure it is: from 0, which is sure, to 1.5, where nothing was measured yet.
    #[must_use]
    pub fn error(&self) -> f64 {
        self.error
    }

    /// What measured round-trip times differ from distances, in seconds.
    #[must_use]
    pub fn adjustment(&self) -> f64 {
        self.adjustment
    }

    /// What the way to the core of the network adds to each distance, in seconds.
    #[must_use]
    pub fn height(&self) -> f64 {
        self.height
    }
}

/// A node and its place.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "PascalCase")]
pub struct NodeCoordinate {
    node: NodeName,
    #[serde(default)]
    segment: Text,
    coord: Coordinate,
}

impl NodeCoordinate {
    /// The node.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// The network segment (Consul Enterprise); empty for the default one.
    #[must_use]
    pub fn segment(&self) -> &str {
        self.segment.as_str()
    }

    /// Its place.
    #[must_use]
    pub fn coordinate(&self) -> &Coordinate {
        &self.coord
    }
}

/// The servers of a datacenter and their places.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "PascalCase")]
pub struct DatacenterCoordinates {
    datacenter: Datacenter,
    #[serde(default, rename = "AreaID")]
    area: Text,
    #[serde(default, rename = "Coordinates", deserialize_with = "json::list")]
    servers: Box<[NodeCoordinate]>,
}

impl DatacenterCoordinates {
    /// The datacenter.
    #[must_use]
    pub fn datacenter(&self) -> &Datacenter {
        &self.datacenter
    }

    /// The network that the places are of; `wan` unless there are several (Consul Enterprise).
    #[must_use]
    pub fn area(&self) -> &str {
        self.area.as_str()
    }

    /// Its servers.
    #[must_use]
    pub fn servers(&self) -> &[NodeCoordinate] {
        &self.servers
    }

    /// The estimated round-trip time between two datacenters: the median over pairs of servers.
    ///
    /// `None` if none of them can be compared.
    #[must_use]
    pub fn distance_to(&self, other: &Self) -> Option<Duration> {
        let mut distances: Vec<Duration> = self
            .servers
            .iter()
            .flat_map(|one| {
                let all = other.servers.iter();
                all.filter_map(|other| one.coord.distance_to(&other.coord))
            })
            .collect();
        distances.sort_unstable();
        distances.get(distances.len() / 2).copied()
    }
}

/// The servers of all datacenters: [`Coordinates::datacenters`].
#[derive(Clone, Debug)]
pub struct Datacenters(());

answers_with_list!(Datacenters => DatacenterCoordinates);

/// The nodes of a datacenter: [`Coordinates::nodes`].
#[derive(Clone, Debug)]
pub struct Nodes(());

answers_with_list!(Nodes => NodeCoordinate);

/// One node: [`Coordinates::node`].
#[derive(Clone, Debug)]
pub struct Node(());

impl Endpoint for Node {
    type Output = Vec<NodeCoordinate>;

    fn interpret(&self, answer: Answered) -> Result<Self::Output> {
        // A node without a place is answered with 404, without an index and without a text.
        if answer.0.status == StatusCode::NOT_FOUND && answer.0.body.is_empty() {
            return Ok(Vec::new());
        }
        answer.good()?.json()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(vector: &[f64], height: f64, adjustment: f64) -> Coordinate {
        Coordinate {
            vector: vector.into(),
            error: 0.1,
            adjustment,
            height,
        }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_distance_is_the_way_between_and_both_heights() {
        let one = at(&[0.0, 0.0], 0.001, 0.0);
        let other = at(&[0.003, 0.004], 0.002, 0.0);
        let way = one.distance_to(&other).unwrap();
        assert_eq!(way.as_micros(), 8000);
        assert_eq!(other.distance_to(&one).unwrap(), way);
    }

    #[test]
    fn an_adjustment_counts_unless_it_makes_the_distance_negative() {
        let one = at(&[0.0], 0.0, -0.002);
        let other = at(&[0.010], 0.0, 0.0);
        assert_eq!(one.distance_to(&other).unwrap(), ms(8));
        let close = at(&[0.001], 0.0, 0.0);
        assert_eq!(one.distance_to(&close).unwrap(), ms(1));
    }

    #[test]
    fn places_that_cannot_be_compared_have_no_distance() {
        let one = at(&[0.0], 0.0, 0.0);
        assert_eq!(one.distance_to(&at(&[0.0, 0.0], 0.0, 0.0)), None);
        assert_eq!(one.distance_to(&at(&[f64::NAN], 0.0, 0.0)), None);
        assert_eq!(one.distance_to(&at(&[f64::INFINITY], 0.0, 0.0)), None);
        assert_eq!(one.distance_to(&at(&[1e300], 0.0, 0.0)), None);
    }

    #[test]
    fn datacenters_are_as_far_apart_as_the_median_of_their_servers() {
        let datacenter = |name: &str, places: &[f64]| {
            let servers = places.iter().map(
                |place| serde_json::json!({"Node": "n", "Coord": {"Vec": [place], "Height": 0.0}}),
            );
            let servers: Vec<_> = servers.collect();
            let json = serde_json::json!({"Datacenter": name, "Coordinates": servers});
            serde_json::from_value::<DatacenterCoordinates>(json).unwrap()
        };
        let here = datacenter("dc1", &[0.0]);
        let there = datacenter("dc2", &[0.010, 0.020, 0.900]);
        assert_eq!(here.distance_to(&there).unwrap(), ms(20));
        assert_eq!(here.distance_to(&datacenter("dc3", &[])), None);
    }
}
