//! What a pick with its accounting allocates: nothing. The only test of its program, because the
//! allocator counts for all threads.

use std::convert::Infallible;
use std::error::Error;
use std::future::{Ready, poll_fn, ready};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::Empty;
use lictor_benches::usage::{Allocations, CountingAllocator, counting_allocator};
use lictor_tower::channel::{Channel, HashKey, Policy};
use lictor_tower::endpoint::Endpoint;
use lictor_tower::layer::Builder;
use lictor_tower::source;
use tower_service::Service;

#[global_allocator]
static ALLOCATOR: CountingAllocator = counting_allocator();

#[derive(Clone)]
struct Echo;

impl Service<u32> for Echo {
    type Response = u32;
    type Error = Infallible;
    type Future = Ready<Result<u32, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, question: u32) -> Self::Future {
        ready(Ok(question))
    }
}

fn endpoints(count: u32) -> Result<Vec<Endpoint>, Box<dyn Error>> {
    let targets = (0..count).map(|at| format!("127.{}.{}.1:80", at / 250, at % 250));
    targets
        .map(|target| Ok(Endpoint::new(target.parse()?)))
        .collect()
}

/// Of so many rounds one is without an allocation: the test's own program may have some of its own
/// now and then, while a pick that allocated would do so in each.
const ROUNDS: u32 = 10;

#[tokio::test]
async fn a_pick_with_its_accounting_allocates_nothing() -> Result<(), Box<dyn Error>> {
    const REQUESTS: u32 = 1_000;
    for count in [1, 10, 10_000] {
        for policy in [
            Policy::PeakEwma,
            Policy::PendingRequests,
            Policy::RoundRobin,
        ] {
            let source = source::fixed(endpoints(count)?);
            let mut balanced = Builder::new(source).policy(policy).build(|_| Echo)?;
            balanced.wait_ready().await?;
            let mut least = u64::MAX;
            for _ in 0..ROUNDS {
                let before = Allocations::read();
                for question in 0..REQUESTS {
                    poll_fn(|cx| Service::<u32>::poll_ready(&mut balanced, cx)).await?;
                    assert_eq!(balanced.call(question).await?, question);
                }
                let made = Allocations::read().since(before).count;
                least = least.min(made);
            }
            assert_eq!(
                least, 0,
                "{policy:?} over {count}: allocations in each round"
            );
        }

        let mut channel = Channel::from_source(source::fixed(endpoints(count)?))
            .policy(Policy::RingHash)
            .hash_by(|parts| Some(HashKey::new(parts.uri.path())))
            .host("web")
            .build()?;
        channel.wait_ready().await?;
        let mut ask = || {
            let mut request = Request::new(Empty::<Bytes>::new());
            *request.uri_mut() = Uri::from_static("/hello");
            // It picks when it is called, and sends nothing before it is polled.
            drop(channel.call(request));
        };
        // With the first request the name of the host becomes one that is shared.
        ask();
        let mut least = u64::MAX;
        for _ in 0..ROUNDS {
            let before = Allocations::read();
            (0..REQUESTS).for_each(|_| ask());
            let made = Allocations::read().since(before).count;
            least = least.min(made);
        }
        assert_eq!(least, 0, "by a key over {count}: allocations in each round");
    }
    Ok(())
}
