//! The fields that a filter expression may name, for each kind of item.

/// What a selector stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Field {
    Text,
    Integer,
    Boolean,
    Texts,
    /// Texts by key.
    Pairs,
    Struct(&'static [(&'static str, Self)]),
    /// Structs by key.
    Structs(&'static [(&'static str, Self)]),
    /// A list of structs: one that matches is enough.
    List(&'static [(&'static str, Self)]),
}

/// The fields of one kind of item by name.
pub(super) type Fields = &'static [(&'static str, Field)];

const WEIGHTS: Fields = &[("Passing", Field::Integer), ("Warning", Field::Integer)];
const ADDRESS: Fields = &[("Address", Field::Text), ("Port", Field::Integer)];
const CONNECT: Fields = &[("Native", Field::Boolean)];
const PROXY: Fields = &[
    ("DestinationServiceName", Field::Text),
    ("DestinationServiceID", Field::Text),
    ("LocalServiceAddress", Field::Text),
    ("LocalServicePort", Field::Integer),
];

pub(super) const NODE: Fields = &[
    ("ID", Field::Text),
    ("Node", Field::Text),
    ("Address", Field::Text),
    ("Datacenter", Field::Text),
    ("TaggedAddresses", Field::Pairs),
    ("Meta", Field::Pairs),
];

pub(super) const SERVICE: Fields = &[
    ("Kind", Field::Text),
    ("ID", Field::Text),
    ("Service", Field::Text),
    ("Tags", Field::Texts),
    ("Address", Field::Text),
    ("TaggedAddresses", Field::Structs(ADDRESS)),
    ("Meta", Field::Pairs),
    ("Port", Field::Integer),
    ("Weights", Field::Struct(WEIGHTS)),
    ("EnableTagOverride", Field::Boolean),
    ("Proxy", Field::Struct(PROXY)),
    ("Connect", Field::Struct(CONNECT)),
];

pub(super) const CHECK: Fields = &[
    ("Node", Field::Text),
    ("CheckID", Field::Text),
    ("Name", Field::Text),
    ("Status", Field::Text),
    ("Notes", Field::Text),
    ("Output", Field::Text),
    ("ServiceID", Field::Text),
    ("ServiceName", Field::Text),
    ("ServiceTags", Field::Texts),
    ("Type", Field::Text),
];

pub(super) const HEALTH: Fields = &[
    ("Node", Field::Struct(NODE)),
    ("Service", Field::Struct(SERVICE)),
    ("Checks", Field::List(CHECK)),
];

pub(super) const SERVICE_NODE: Fields = &[
    ("ID", Field::Text),
    ("Node", Field::Text),
    ("Address", Field::Text),
    ("Datacenter", Field::Text),
    ("TaggedAddresses", Field::Pairs),
    ("NodeMeta", Field::Pairs),
    ("ServiceKind", Field::Text),
    ("ServiceID", Field::Text),
    ("ServiceName", Field::Text),
    ("ServiceTags", Field::Texts),
    ("ServiceAddress", Field::Text),
    ("ServiceTaggedAddresses", Field::Structs(ADDRESS)),
    ("ServiceWeights", Field::Struct(WEIGHTS)),
    ("ServiceMeta", Field::Pairs),
    ("ServicePort", Field::Integer),
    ("ServiceEnableTagOverride", Field::Boolean),
    ("ServiceProxy", Field::Struct(PROXY)),
    ("ServiceConnect", Field::Struct(CONNECT)),
];
