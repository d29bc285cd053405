//! What errors say of a service, beyond what its endpoint sets tell.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lictor::Client;

use crate::error::{Error, ErrorKind, Result};
use crate::source::{HealthSource, trouble};

/// The name of a service, and who knows why nothing is heard of it.
#[derive(Default)]
pub(crate) struct About {
    service: Option<String>,
    /// Tells why the source has not answered.
    trouble: Option<Box<dyn Fn() -> Option<Arc<str>> + Send + Sync>>,
}

/// Which instances are meant: those of a service, perhaps of one tag or in another datacenter.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) service: String,
    pub(crate) tag: Option<String>,
    pub(crate) datacenter: Option<String>,
}

impl From<String> for Wanted {
    fn from(service: String) -> Self {
        Self {
            service,
            tag: None,
            datacenter: None,
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tag) = &self.tag {
            write!(f, "{tag}.")?;
        }
        f.write_str(&self.service)?;
        match &self.datacenter {
            Some(datacenter) => write!(f, " in {datacenter}"),
            None => Ok(()),
        }
    }
}

/// Follows the health of a service; the error is that of its name or of a missing runtime.
pub(crate) fn watched(client: &Client, wanted: &Wanted) -> (Result<HealthSource>, About) {
    let mut about = About {
        service: Some(wanted.to_string()),
        trouble: None,
    };
    let mut asked = client.health().service(wanted.service.as_str());
    if let Some(tag) = &wanted.tag {
        asked = asked.tag(tag);
    }
    if let Some(datacenter) = &wanted.datacenter {
        asked = asked.datacenter(datacenter.as_str());
    }
    let source = asked.watch().map(|watch| {
        let followed = watch.clone();
        about.trouble = Some(Box::new(move || trouble(&followed)));
        HealthSource::new(watch)
    });
    (source.map_err(refused), about)
}

fn refused(err: lictor::Error) -> Error {
    let kind = match err.kind() {
        lictor::ErrorKind::NoRuntime => ErrorKind::NoRuntime,
        _ => ErrorKind::Invalid,
    };
    Error::new(kind)
        .context("the service cannot be watched")
        .because(err)
}

impl About {
    /// The same under another name.
    pub(crate) fn named(self, service: String) -> Self {
        Self {
            service: Some(service),
            ..self
        }
    }

    /// The source has not answered for so long.
    pub(crate) fn never_resolved(&self, limit: Duration) -> Error {
        let error = Error::new(ErrorKind::NeverResolved)
            .about(self.service.as_deref())
            .context(format!("no answer within {limit:?}"));
        match self.trouble.as_ref().and_then(|trouble| trouble()) {
            Some(reason) => error.because(&*reason),
            None => error,
        }
    }

    /// The name of the service.
    pub(crate) fn service(&self) -> Option<&str> {
        self.service.as_deref()
    }

    /// The source says that there is nobody.
    pub(crate) fn no_endpoints(&self) -> Error {
        Error::new(ErrorKind::NoEndpoints).about(self.service.as_deref())
    }
}
