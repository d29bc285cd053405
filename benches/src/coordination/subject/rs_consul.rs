//! The crate rs-consul as shipped: its default configuration, and its own lock.
//!
//! It makes a session for every try, renews none, and does not wait: who waits does so by its
//! `watch_lock` and tries again. Dropping the lock releases it by a request that blocks the thread;
//! the session stays.

use std::time::Duration;

use rs_consul::types::{LockRequest, LockWatchRequest};
use rs_consul::{Config, Consul, ConsulError, Lock};

use super::Subject;
use crate::Outcome;

/// How long it waits at a time: so long it takes when it has missed a release, which it does if that
/// falls between a try and the reading of the index to wait from.
const MISSED: Duration = Duration::from_secs(5);

/// See the module. Its locks borrow the client, which lives as long as the process does.
pub(in crate::coordination) struct RsConsul(&'static Consul);

impl Subject for RsConsul {
    type Guard = Lock<'static>;

    async fn connect(address: &str) -> Outcome<Self> {
        let config = Config {
            address: address.to_owned(),
            ..Config::default()
        };
        Ok(Self(Box::leak(Box::new(Consul::new(config)))))
    }

    fn another(&self) -> Self {
        Self(self.0)
    }

    async fn lock(&mut self, key: &str) -> Outcome<Lock<'static>> {
        loop {
            let request = LockRequest::builder().key(key).build();
            match self.0.get_lock(request, b"held").await {
                Ok(lock) => return Ok(lock),
                Err(ConsulError::LockAcquisitionFailure(index)) => {
                    let request = LockWatchRequest::builder()
                        .key(key)
                        .index(index)
                        .wait(MISSED)
                        .build();
                    self.0.watch_lock(request).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn unlock(&mut self, guard: Lock<'static>) -> Outcome<()> {
        tokio::task::block_in_place(|| drop(guard));
        Ok(())
    }
}
