//! Prepared queries as the servers keep them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::model::Pairs;
use super::session::SessionId;

/// A prepared query.
#[expect(clippy::struct_excessive_bools, reason = "these are Consul's own")]
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pub(crate) name: String,
    pub(crate) is_template: bool,
    pub(crate) remove_empty_tags: bool,
    pub(crate) service: String,
    pub(crate) nearest: i64,
    pub(crate) datacenters: Option<Vec<String>>,
    pub(crate) only_passing: bool,
    pub(crate) ignored_checks: Option<Vec<String>>,
    pub(crate) near: String,
    pub(crate) tags: Option<Vec<String>>,
    pub(crate) node_meta: Option<Pairs>,
    pub(crate) service_meta: Option<Pairs>,
    pub(crate) connect: bool,
    pub(crate) ttl: String,
    pub(crate) created: u64,
    pub(crate) modified: u64,
}

/// All of them, by their identifiers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queries {
    all: BTreeMap<SessionId, Arc<Query>>,
    index: u64,
}

impl Queries {
    pub(crate) fn index(&self) -> u64 {
        self.index
    }

    pub(crate) fn get(&self, id: SessionId) -> Option<&Arc<Query>> {
        self.all.get(&id)
    }

    pub(crate) fn list(&self) -> impl Iterator<Item = (SessionId, &Arc<Query>)> {
        self.all.iter().map(|(id, query)| (*id, query))
    }

    /// Who else has the name, if it is one.
    pub(crate) fn named_alike(&self, id: Option<SessionId>, query: &Query) -> bool {
        let others = self.all.iter().filter(|(other, _)| Some(**other) != id);
        let alike = |other: &Query| {
            other.name == query.name
                && other.is_template == query.is_template
                && (query.is_template || !query.name.is_empty())
        };
        others.map(|(_, other)| other).any(|other| alike(other))
    }

    pub(crate) fn put(&mut self, index: u64, id: SessionId, mut query: Query) {
        query.created = self.all.get(&id).map_or(index, |former| former.created);
        query.modified = index;
        self.all.insert(id, Arc::new(query));
        self.index = index;
    }

    pub(crate) fn remove(&mut self, index: u64, id: SessionId) {
        if self.all.remove(&id).is_some() {
            self.index = index;
        }
    }

    /// The query that a name leads to: its ID, its name, or the longest template that fits.
    pub(crate) fn resolve(&self, asked: &str) -> Option<(SessionId, Query)> {
        if let Ok(id) = SessionId::parse(asked)
            && let Some(query) = self.get(id)
        {
            return Some((id, Query::clone(query)));
        }
        let named = self
            .list()
            .find(|(_, query)| !query.is_template && !query.name.is_empty() && query.name == asked);
        if let Some((id, query)) = named {
            return Some((id, Query::clone(query)));
        }
        let fits = self
            .list()
            .filter(|(_, query)| query.is_template && asked.starts_with(&query.name));
        let (id, template) = fits.max_by_key(|(_, query)| query.name.len())?;
        let mut query = Query::clone(template);
        let suffix = asked.strip_prefix(&*query.name).unwrap_or_default();
        let filled = query
            .service
            .replace("${name.full}", asked)
            .replace("${name.prefix}", &query.name)
            .replace("${name.suffix}", suffix);
        query.service = filled;
        Some((id, query))
    }
}
