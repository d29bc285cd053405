//! Tags that a registration wears beside those of its definition, for as long as somebody says so.

use std::sync::Arc;

use tokio::sync::watch;

/// Where such tags are put on, and taken off.
///
/// They are kept apart from the definition: a caller that sets its own tags does not lose these, nor
/// do these leave anything behind there. It works from anywhere, at once and without I/O; the
/// registration's task tells the agent, and goes on until the agent has taken it.
#[derive(Clone, Debug)]
pub(crate) struct Badges(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    worn: watch::Sender<Worn>,
    /// The newest version that the agent has taken.
    taken: watch::Sender<u64>,
}

/// All tags that are worn.
#[derive(Clone, Debug, Default)]
pub(super) struct Worn {
    /// Counts the changes.
    pub(super) version: u64,
    /// One that is put on twice is there twice.
    pub(super) tags: Vec<Arc<str>>,
}

impl Badges {
    pub(super) fn new() -> Self {
        Self(Arc::new(Shared {
            worn: watch::channel(Worn::default()).0,
            taken: watch::channel(0).0,
        }))
    }

    /// Puts a tag on, until the badge is taken off or dropped.
    pub(crate) fn wear(&self, tag: &Arc<str>) -> Badge {
        self.0.worn.send_modify(|worn| {
            worn.version += 1;
            worn.tags.push(Arc::clone(tag));
        });
        Badge {
            badges: self.clone(),
            tag: Arc::clone(tag),
            off: None,
        }
    }

    pub(super) fn follow(&self) -> watch::Receiver<Worn> {
        self.0.worn.subscribe()
    }

    /// The agent has taken this version.
    pub(super) fn taken(&self, version: u64) {
        self.0.taken.send_replace(version);
    }

    /// Nobody tells the agent anything any more.
    pub(super) fn over(&self) {
        self.taken(u64::MAX);
    }
}

/// A tag that is worn.
#[derive(Debug)]
pub(crate) struct Badge {
    badges: Badges,
    tag: Arc<str>,
    /// The version that is without it, once it is taken off.
    off: Option<u64>,
}

impl Badge {
    /// Takes it off, once.
    pub(crate) fn take_off(&mut self) {
        if self.off.is_some() {
            return;
        }
        self.badges.0.worn.send_modify(|worn| {
            worn.version += 1;
            if let Some(place) = worn.tags.iter().position(|tag| *tag == self.tag) {
                worn.tags.remove(place);
            }
            self.off = Some(worn.version);
        });
    }

    /// Resolves when the agent has taken it that the tag is off, or nobody tells it any more.
    ///
    /// The future owns what it needs.
    pub(crate) fn gone(&self) -> impl Future<Output = ()> + Send + use<> {
        let (badges, off) = (self.badges.clone(), self.off);
        async move {
            let mut taken = badges.0.taken.subscribe();
            if let Some(off) = off {
                // The sender stands in `badges`.
                taken.wait_for(|taken| *taken >= off).await.ok();
            }
        }
    }
}

impl Drop for Badge {
    fn drop(&mut self) {
        self.take_off();
    }
}
