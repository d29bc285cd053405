//! Prepared queries as the servers keep them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::model::Pairs;
use super::session::SessionId;
use super::template::{self, Name, Wrong};

/// A prepared query.
#[expect(clippy::struct_excessive_bools, reason = "these are Consul's own")]
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pub(crate) name: String,
    /// The session with which it ends.
    pub(crate) session: Option<SessionId>,
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

impl Query {
    /// What a template stands for when it is asked by this name.
    pub(crate) fn filled(&self, asked: &str) -> Result<Self, Wrong> {
        let mut query = self.clone();
        let name = Name {
            full: asked,
            prefix: &self.name,
            // The name fits without regard to case, but is cut with it.
            suffix: asked.strip_prefix(&*self.name).unwrap_or(asked),
        };
        // All is read before any of it is filled in.
        let mut unfilled = None;
        for (at, text) in query.texts() {
            match template::fill(text, &at, name) {
                Ok(filled) => *text = filled,
                Err(wrong @ Wrong::Format { .. }) => return Err(wrong),
                Err(wrong) => {
                    unfilled.get_or_insert(wrong);
                }
            }
        }
        if let Some(wrong) = unfilled {
            return Err(wrong);
        }
        if query.remove_empty_tags {
            let tags = query.tags.into_iter().flatten();
            query.tags = Some(tags.filter(|tag| !tag.is_empty()).collect());
        }
        Ok(query)
    }

    /// All texts that a template may fill in, with Go's names for where they are.
    fn texts(&mut self) -> impl Iterator<Item = (String, &mut String)> {
        std::iter::once(("Service.Service".to_owned(), &mut self.service))
            .chain(list("Failover.Datacenters", self.datacenters.as_mut()))
            .chain(list("IgnoreCheckIDs", self.ignored_checks.as_mut()))
            .chain(std::iter::once(("Service.Near".to_owned(), &mut self.near)))
            .chain(list("Tags", self.tags.as_mut()))
            .chain(map("NodeMeta", self.node_meta.as_mut()))
            .chain(map("ServiceMeta", self.service_meta.as_mut()))
    }
}

fn list<'a>(
    name: &'static str,
    texts: Option<&'a mut Vec<String>>,
) -> impl Iterator<Item = (String, &'a mut String)> {
    let items = texts.into_iter().flatten().enumerate();
    items.map(move |(at, text)| (format!("Service.{name}[{at}]"), text))
}

fn map<'a>(
    name: &'static str,
    pairs: Option<&'a mut Pairs>,
) -> impl Iterator<Item = (String, &'a mut String)> {
    let items = pairs.into_iter().flatten();
    items.map(move |(key, text)| (format!("Service.{name}[{key}]"), text))
}

/// A template was asked for by its ID.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct OnlyByName;

impl fmt::Display for OnlyByName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("prepared query templates can only be resolved up by name, not by ID")
    }
}

fn fold(name: &str) -> String {
    name.to_lowercase()
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

    /// Why a query cannot be kept beside the others, in Consul's words.
    ///
    /// Names are alike without regard to case, and templates have none of their own.
    pub(crate) fn conflict(&self, id: SessionId, query: &Query) -> Option<String> {
        let name = &query.name;
        let others = self.all.iter().filter(|(other, _)| **other != id);
        let mut others = others.map(|(_, other)| other);
        if name.is_empty() {
            let taken =
                query.is_template && others.any(|other| other.is_template && other.name.is_empty());
            return taken.then(|| "a query template with an empty name already exists".to_owned());
        }
        if others.any(|other| fold(&other.name) == fold(name)) {
            return Some(format!("name '{name}' aliases an existing query name"));
        }
        let is_id = SessionId::parse(name).is_ok_and(|id| self.all.contains_key(&id));
        is_id.then(|| format!("name '{name}' aliases an existing query ID"))
    }

    /// Those that end with a session.
    pub(crate) fn of_session(&self, session: SessionId) -> Vec<SessionId> {
        let bound = self.list();
        bound
            .filter(|(_, query)| query.session == Some(session))
            .map(|(id, _)| id)
            .collect()
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
    ///
    /// # Errors
    ///
    /// When it is the ID of a template, which stands for no query.
    pub(crate) fn resolve(&self, asked: &str) -> Result<Option<(SessionId, Query)>, OnlyByName> {
        if let Ok(id) = SessionId::parse(asked)
            && let Some(query) = self.get(id)
        {
            return match query.is_template {
                true => Err(OnlyByName),
                false => Ok(Some((id, Query::clone(query)))),
            };
        }
        let folded = fold(asked);
        let named = self.list().find(|(_, query)| {
            !query.is_template && !query.name.is_empty() && fold(&query.name) == folded
        });
        if let Some((id, query)) = named {
            return Ok(Some((id, Query::clone(query))));
        }
        let fits = self
            .list()
            .filter(|(_, query)| query.is_template && folded.starts_with(&fold(&query.name)));
        let Some((id, template)) = fits.max_by_key(|(_, query)| query.name.len()) else {
            return Ok(None);
        };
        // What cannot be filled in was refused when it was kept.
        Ok(template.filled(asked).ok().map(|query| (id, query)))
    }
}
