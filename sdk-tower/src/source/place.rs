//! Where a client is, and how far it is from there to an instance.

use lictor::Client;

/// A node and a datacenter; what is not named is nobody's.
///
/// For [`HealthSource::prefer_near`](super::HealthSource::prefer_near).
///
/// # Examples
///
/// ```
/// use lictor_tower::source::Place;
///
/// let here = Place::new().node("worker-7").datacenter("dc1");
/// # drop(here);
/// ```
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Place {
    node: Option<String>,
    datacenter: Option<String>,
}

impl Place {
    /// Nowhere: everything is equally far from it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Where the agent of this client is; one request.
    ///
    /// # Errors
    ///
    /// Those of the request: the agent cannot be reached, or the token may not read it
    /// (`agent:read`).
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    pub async fn of_agent(client: &Client) -> lictor::Result<Self> {
        let about = client.agent().about().await?;
        let config = about.config();
        Ok(Self::new()
            .node(config.node_name().as_str())
            .datacenter(config.datacenter().as_str()))
    }

    /// Sets the name of the node.
    #[must_use]
    pub fn node(mut self, name: impl Into<String>) -> Self {
        self.node = Some(name.into());
        self
    }

    /// Sets the name of the datacenter.
    #[must_use]
    pub fn datacenter(mut self, name: impl Into<String>) -> Self {
        self.datacenter = Some(name.into());
        self
    }
}

/// How far away the instances of a source are.
#[derive(Debug)]
pub(super) enum Nearness {
    Unasked,
    To(Place),
    /// So many of those that are told first are near.
    First(usize),
}

impl Nearness {
    /// The distance of the instance on this node, before which so many were told.
    pub(super) fn distance(&self, (node, datacenter): (&str, Option<&str>), before: usize) -> u16 {
        match self {
            Self::Unasked => 0,
            Self::First(count) => u16::from(before >= *count),
            Self::To(place) => {
                // A node's name is unique in its datacenter only.
                let here = place.datacenter.as_deref();
                let near = here.is_none() || datacenter.is_none() || here == datacenter;
                match place.node.as_deref() {
                    Some(name) if near && name == node => 0,
                    _ if near && here.is_some() => 1,
                    _ => 2,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distances(place: Place) -> [u16; 4] {
        let near = Nearness::To(place);
        [
            ("a", Some("dc1")),
            ("b", Some("dc1")),
            ("a", Some("dc2")),
            ("a", None),
        ]
        .map(|instance| near.distance(instance, 0))
    }

    #[test]
    fn the_own_node_is_nearest_then_the_datacenter_then_the_rest() {
        let here = Place::new().node("a").datacenter("dc1");
        // What names no datacenter is an old server's answer about its own.
        assert_eq!(distances(here), [0, 1, 2, 0]);
        assert_eq!(distances(Place::new().datacenter("dc1")), [1, 1, 2, 1]);
        assert_eq!(distances(Place::new().node("a")), [0, 2, 0, 0]);
        assert_eq!(distances(Place::new()), [2; 4]);
    }

    #[test]
    fn the_first_that_are_told_are_near() {
        let near = Nearness::First(2);
        let distances = [0, 1, 2, 9].map(|before| near.distance(("a", None), before));
        assert_eq!(distances, [0, 0, 1, 1]);
        assert_eq!(Nearness::First(0).distance(("a", None), 0), 1);
        assert_eq!(Nearness::Unasked.distance(("a", None), 7), 0);
    }
}
