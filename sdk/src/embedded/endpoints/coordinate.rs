//! Network coordinates.

use http::StatusCode;
use serde::Serialize;

use super::Call;
use super::decode::Fields;
use super::query::Options;
use super::read::{Headers, Narrow, Read, What};
use super::reply::{self, Refusal, Reply};
use crate::embedded::core::Core;
use crate::embedded::state::coordinates::Place;

/// Consul's coordinates have so many dimensions.
const DIMENSIONS: usize = 8;

impl Call {
    pub(super) fn coordinate_datacenters(&self) -> Reply {
        let view = |core: &Core| {
            let locked = core.lock();
            let state = &locked.state;
            Datacenter {
                datacenter: state.identity.datacenter.clone(),
                area: "wan",
                coordinates: vec![NodePlace {
                    node: state.identity.node.clone(),
                    segment: "",
                    coord: state.wan.clone(),
                }],
            }
        };
        let mut all = vec![view(&self.core)];
        let peers = self.core.links().into_keys();
        all.extend(peers.filter_map(|peer| Some(view(&*self.core.linked(&peer)?))));
        all.sort_by(|one, other| one.datacenter.cmp(&other.datacenter));
        reply::json(&all, self.layout())
    }

    pub(super) async fn coordinate_nodes(&self) -> Result<Reply, Refusal> {
        self.places(What::Places).await
    }

    pub(super) async fn coordinate_node(&self) -> Result<Reply, Refusal> {
        let node = self.rest.clone();
        if self
            .core
            .lock()
            .state
            .replica
            .coordinates
            .get(&node)
            .is_none()
        {
            return Ok(reply::empty(StatusCode::NOT_FOUND));
        }
        self.places(What::Place { node }).await
    }

    async fn places(&self, what: What) -> Result<Reply, Refusal> {
        let options = Options::parse(&self.params, &self.headers)?;
        let read = Read {
            what,
            narrow: Narrow::default(),
            filter: None,
            near: String::new(),
            layout: options.layout,
            headers: Headers::Session,
            cacheable: false,
        };
        self.read(&read, &options).await
    }

    /// Consul gathers updates for a few seconds; here they count at once.
    pub(super) async fn coordinate_update(&self) -> Result<Reply, Refusal> {
        let mut fields = Fields::parse_as("CoordinateUpdateRequest", &self.body)?;
        let node = fields.string(&["Node"])?;
        fields.string(&["Segment"])?;
        fields.string(&["Datacenter"])?;
        let coord = fields.take(&["Coord"]).unwrap_or_default();
        let number = |name: &str| coord.get(name).and_then(serde_json::Value::as_f64);
        let vec = coord.get("Vec").and_then(serde_json::Value::as_array);
        let vec: Vec<f64> = vec
            .into_iter()
            .flatten()
            .filter_map(|it| it.as_f64())
            .collect();
        if vec.len() != DIMENSIONS {
            return Err(Refusal::internal("incompatible coordinate"));
        }
        let place = Place {
            vec,
            error: number("Error").unwrap_or_default(),
            adjustment: number("Adjustment").unwrap_or_default(),
            height: number("Height").unwrap_or_default(),
        };
        self.check_datacenter(self.params.value("dc"))?;
        self.await_leader().await?;
        let mut locked = self.core.lock();
        let index = locked.state.next_index();
        // One of a node that nobody knows is dropped.
        if locked.state.replica.catalog.node(&node).is_some() {
            locked.state.replica.coordinates.put(index, &node, place);
        }
        Ok(reply::empty(StatusCode::OK))
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NodePlace {
    pub(super) node: String,
    pub(super) segment: &'static str,
    pub(super) coord: Place,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Datacenter {
    datacenter: String,
    #[serde(rename = "AreaID")]
    area: &'static str,
    coordinates: Vec<NodePlace>,
}
