//! The libraries that are measured beside ours, where they are at hand.

use crate::contest::Contender;

/// The crate rs-consul as shipped.
pub const RS_CONSUL: &str = "rs-consul";

/// The crate consulrs.
pub const CONSULRS: &str = "consulrs";

/// The reference client `github.com/hashicorp/consul/api`, in a program of its own.
pub const GO: &str = "go";

/// Those of the named peers that are at hand; `go` says whether the Go program is.
pub fn at_hand<'a>(
    go: bool,
    names: &'a [&'static str],
) -> impl Iterator<Item = Contender> + use<'a> {
    names
        .iter()
        .filter(move |name| {
            if **name == GO {
                go
            } else {
                cfg!(feature = "peers")
            }
        })
        .map(|name| Contender::peer(name))
}
