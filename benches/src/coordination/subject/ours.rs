//! The client of this repository, as its documentation shows it.

use lictor::Client;
use lictor::coordination::{Lease, LockGuard, Released};

use super::Subject;
use crate::Outcome;

/// Locks on a lease that is kept.
pub(in crate::coordination) struct Ours {
    client: Client,
    lease: Lease,
}

impl Subject for Ours {
    type Guard = LockGuard;

    async fn connect(address: &str) -> Outcome<Self> {
        let client = Client::builder().address(address).build()?;
        let lease = client.lease().build()?;
        lease.session().await?;
        Ok(Self { client, lease })
    }

    fn another(&self) -> Self {
        Self {
            client: self.client.clone(),
            lease: self.lease.clone(),
        }
    }

    async fn lock(&mut self, key: &str) -> Outcome<LockGuard> {
        Ok(self.client.lock(key).lease(&self.lease).acquire().await?)
    }

    async fn unlock(&mut self, guard: LockGuard) -> Outcome<()> {
        released(guard).await
    }
}

/// Locks on a lease that is kept, and stands in line for them.
pub(in crate::coordination) struct OursFair(Ours);

impl Subject for OursFair {
    type Guard = LockGuard;

    async fn connect(address: &str) -> Outcome<Self> {
        Ok(Self(Ours::connect(address).await?))
    }

    fn another(&self) -> Self {
        Self(self.0.another())
    }

    async fn lock(&mut self, key: &str) -> Outcome<LockGuard> {
        let lock = self.0.client.lock(key).lease(&self.0.lease).fair();
        Ok(lock.acquire().await?)
    }

    async fn unlock(&mut self, guard: LockGuard) -> Outcome<()> {
        released(guard).await
    }
}

/// Locks with a lease of its own each time: what one gets without a word.
pub(in crate::coordination) struct OursAlone(Client);

impl Subject for OursAlone {
    type Guard = LockGuard;

    async fn connect(address: &str) -> Outcome<Self> {
        Ok(Self(Client::builder().address(address).build()?))
    }

    fn another(&self) -> Self {
        Self(self.0.clone())
    }

    async fn lock(&mut self, key: &str) -> Outcome<LockGuard> {
        Ok(self.0.lock(key).acquire().await?)
    }

    async fn unlock(&mut self, guard: LockGuard) -> Outcome<()> {
        released(guard).await
    }
}

async fn released(guard: LockGuard) -> Outcome<()> {
    match guard.release().await? {
        Released::Unlocked => Ok(()),
        other => Err(format!("not unlocked: {other:?}").into()),
    }
}
