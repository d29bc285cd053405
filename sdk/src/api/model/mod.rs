//! What several endpoint families answer with: nodes, services, checks, proxies.
//!
//! An answer may be about ten thousand instances, so what is rare stands behind a pointer, and what
//! repeats within an answer is shared.

/// Writes the accessors of private fields.
macro_rules! accessors {
    ($($(#[$doc:meta])* $kind:ident $name:ident $(: $type:ty)?;)*) => {
        $(accessors!(@ $kind $(#[$doc])* $name $(, $type)?);)*
    };
    // A text; empty where Consul has none.
    (@ text $(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> &str {
            self.$name.as_str()
        }
    };
    // A text that is absent where Consul has an empty one.
    (@ some_text $(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> Option<&str> {
            self.$name.non_empty()
        }
    };
    (@ copy $(#[$doc:meta])* $name:ident, $type:ty) => {
        $(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> $type {
            self.$name
        }
    };
    (@ reference $(#[$doc:meta])* $name:ident, $type:ty) => {
        $(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> &$type {
            &self.$name
        }
    };
    // A part that may be absent.
    (@ part $(#[$doc:meta])* $name:ident, $type:ty) => {
        $(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> Option<&$type> {
            self.$name.as_deref()
        }
    };
    // The same, not behind a pointer.
    (@ option $(#[$doc:meta])* $name:ident, $type:ty) => {
        $(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> Option<&$type> {
            self.$name.as_ref()
        }
    };
    (@ slice $(#[$doc:meta])* $name:ident, $type:ty) => {
        $(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> &[$type] {
            &self.$name
        }
    };
}

pub(super) use accessors;

mod catalog;
mod check;
mod node;
mod proxy;
mod service;

pub(crate) use catalog::{AllServiceTags, MaybeNodeServices};
pub use catalog::{CatalogService, NodeServices, ServiceTags};
pub use check::{Check, CheckDefinition, Status};
pub use node::{Locality, Node};
pub use proxy::{
    AccessLogs, EnvoyExtension, Expose, ExposedPath, Proxy, TransparentProxy, Upstream,
};
pub use service::{
    Connect, PeerMeta, ServiceAddress, ServiceAddresses, ServiceInstance, ServiceKind, Weights,
};
