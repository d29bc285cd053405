use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Waker;

use super::super::fixed;
use super::*;
use crate::endpoint::Endpoint;

const SECOND: Duration = Duration::from_secs(1);

/// A source that has the status that it is told to have.
struct Told(Arc<Mutex<Script>>);

struct Script {
    set: Option<EndpointSet>,
    is_new: bool,
    status: Status,
    /// Whether a change of the status wakes the reader, too.
    wakes: bool,
    reader: Option<Waker>,
    polls: u32,
}

#[derive(Clone)]
struct Registry(Arc<Mutex<Script>>);

fn source() -> (Registry, Told) {
    let script = Arc::new(Mutex::new(Script {
        set: None,
        is_new: false,
        status: Status::Unknown,
        wakes: true,
        reader: None,
        polls: 0,
    }));
    (Registry(Arc::clone(&script)), Told(script))
}

impl Registry {
    fn with(&self, change: impl FnOnce(&mut Script)) {
        let mut script = self.0.lock().unwrap();
        change(&mut script);
        let wakes = script.wakes || script.is_new;
        let reader = script.reader.take_if(|_| wakes);
        drop(script);
        reader.inspect(Waker::wake_by_ref);
    }

    fn tell(&self, targets: &[&str]) {
        self.with(|script| {
            script.set = Some(set(targets));
            script.is_new = true;
            script.status = Status::Live;
        });
    }

    /// Cannot be asked any more.
    fn fail(&self) {
        let (age, reason) = (60 * SECOND, Arc::from("refused"));
        self.with(|script| {
            script.status = match script.set {
                Some(_) => Status::Stale { age, reason },
                None => Status::Failing { reason },
            };
        });
    }

    /// Can be asked again, and nothing has changed.
    fn mend(&self) {
        self.with(|script| script.status = Status::Live);
    }
}

impl Stream for Told {
    type Item = EndpointSet;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<EndpointSet>> {
        let mut script = self.0.lock().unwrap();
        script.polls += 1;
        if std::mem::take(&mut script.is_new) {
            return Poll::Ready(script.set.clone());
        }
        script.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Source for Told {
    fn status(&self) -> Status {
        self.0.lock().unwrap().status.clone()
    }
}

fn set(targets: &[&str]) -> EndpointSet {
    let endpoint = |target: &&str| Endpoint::new(target.parse().unwrap());
    targets.iter().map(endpoint).collect()
}

fn two() -> (Registry, Registry, Fallback) {
    let ((http, first), (dns, second)) = (source(), source());
    (http, dns, fallback(first).then(second))
}

async fn next(source: &mut Fallback) -> EndpointSet {
    poll_fn(|cx| Pin::new(&mut *source).poll_next(cx))
        .await
        .unwrap()
}

/// What is told within a time, and after how long.
async fn told(source: &mut Fallback, within: Duration) -> Option<(EndpointSet, Duration)> {
    let started = Instant::now();
    let set = tokio::time::timeout(within, next(source)).await.ok()?;
    Some((set, started.elapsed()))
}

const ONE: &[&str] = &["10.0.0.1:80"];
const BOTH: &[&str] = &["10.0.0.1:80", "10.0.0.2:80"];

#[tokio::test(start_paused = true)]
async fn the_second_source_is_silent_while_the_first_is_live() {
    let (http, dns, mut source) = two();
    http.tell(ONE);
    dns.tell(BOTH);
    assert_eq!(next(&mut source).await, set(ONE));
    dns.tell(&["10.0.0.9:80"]);
    assert_eq!(told(&mut source, 600 * SECOND).await, None);
    assert_eq!((source.in_use(), source.status()), (Some(0), Status::Live));
}

#[tokio::test(start_paused = true)]
async fn the_second_source_steps_in_after_the_time_given_and_the_first_comes_back() {
    for wakes in [true, false] {
        let (http, dns, source) = two();
        let mut source = source.after(3 * SECOND).back_after(20 * SECOND);
        http.with(|script| script.wakes = wakes);
        http.tell(ONE);
        dns.tell(BOTH);
        assert_eq!(next(&mut source).await, set(ONE));

        http.fail();
        let (second, time) = told(&mut source, 60 * SECOND).await.unwrap();
        assert_eq!(second, set(BOTH));
        let late = if wakes { SECOND / 100 } else { LOOK_EVERY };
        assert!(
            time >= 3 * SECOND && time <= 3 * SECOND + late + SECOND / 100,
            "{time:?}"
        );
        assert_eq!((source.in_use(), source.status()), (Some(1), Status::Live));

        // Who is in use is followed.
        dns.tell(&["10.0.0.9:80"]);
        assert_eq!(next(&mut source).await, set(&["10.0.0.9:80"]));

        http.mend();
        let (back, time) = told(&mut source, 60 * SECOND).await.unwrap();
        assert_eq!(back, set(ONE));
        assert!(
            time >= 20 * SECOND && time <= 20 * SECOND + late + SECOND / 100,
            "{time:?}"
        );
        assert_eq!(source.in_use(), Some(0));
    }
}

#[tokio::test(start_paused = true)]
async fn sources_that_know_the_same_take_turns_without_a_word() {
    let (http, dns, mut source) = two();
    http.tell(BOTH);
    dns.tell(BOTH);
    assert_eq!(next(&mut source).await, set(BOTH));
    http.fail();
    assert_eq!(told(&mut source, 60 * SECOND).await, None);
    assert_eq!(source.in_use(), Some(1));
    http.mend();
    assert_eq!(told(&mut source, 60 * SECOND).await, None);
    assert_eq!(source.in_use(), Some(0));
}

#[tokio::test(start_paused = true)]
async fn through_an_outage_of_all_the_last_set_stays_and_the_status_says_why() {
    let (http, dns, mut source) = two();
    http.tell(BOTH);
    dns.tell(ONE);
    assert_eq!(next(&mut source).await, set(BOTH));
    http.fail();
    dns.fail();
    assert_eq!(told(&mut source, 3_600 * SECOND).await, None);
    assert!(matches!(source.status(), Status::Stale { reason, .. } if &*reason == "refused"));
    // Whoever is back first is believed.
    dns.mend();
    assert_eq!(next(&mut source).await, set(ONE));
    dns.fail();
    http.mend();
    assert_eq!(next(&mut source).await, set(BOTH));
}

#[tokio::test(start_paused = true)]
async fn a_second_source_that_tells_nobody_does_not_empty_the_first() {
    let (http, dns, mut source) = two();
    http.tell(ONE);
    dns.tell(&[]);
    assert_eq!(next(&mut source).await, set(ONE));
    http.fail();
    assert_eq!(told(&mut source, 600 * SECOND).await, None);
    dns.tell(BOTH);
    assert_eq!(next(&mut source).await, set(BOTH));
    dns.tell(&[]);
    assert!(next(&mut source).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn at_the_start_the_first_source_is_waited_for_and_not_for_ever() {
    let (http, dns, mut source) = two();
    assert_eq!(source.status(), Status::Unknown);
    http.fail();
    dns.tell(&[]);
    assert_eq!(told(&mut source, 60 * SECOND).await, None);
    assert!(matches!(source.status(), Status::Failing { .. }));
    let (http, dns, mut source) = two();
    http.fail();
    dns.tell(ONE);
    let (first, time) = told(&mut source, 60 * SECOND).await.unwrap();
    assert_eq!((first, source.in_use()), (set(ONE), Some(1)));
    assert!(time >= SECOND && time < SECOND + SECOND / 10, "{time:?}");
    http.tell(BOTH);
    let (back, time) = told(&mut source, 60 * SECOND).await.unwrap();
    assert_eq!(back, set(BOTH));
    assert!(time >= 10 * SECOND, "{time:?}");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_comes_and_goes_is_not_followed_to_and_fro() {
    let (http, dns, mut source) = two();
    http.tell(ONE);
    dns.tell(BOTH);
    assert_eq!(next(&mut source).await, set(ONE));
    let flapping = async {
        for _ in 0..100 {
            http.fail();
            tokio::time::sleep(7 * SECOND).await;
            http.mend();
            tokio::time::sleep(3 * SECOND).await;
        }
    };
    let mut flapping = std::pin::pin!(flapping);
    let mut sets = Vec::new();
    loop {
        tokio::select! {
            () = flapping.as_mut() => break,
            set = next(&mut source) => sets.push(set),
        }
    }
    assert_eq!(sets, [set(BOTH)]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_source_is_looked_at_twice_a_second_and_no_more() {
    let (http, dns, mut source) = two();
    http.tell(ONE);
    dns.tell(ONE);
    next(&mut source).await;
    let before = http.0.lock().unwrap().polls;
    assert_eq!(told(&mut source, 100 * SECOND).await, None);
    let polls = http.0.lock().unwrap().polls - before;
    assert!((195..=205).contains(&polls), "{polls}");
}

#[tokio::test(start_paused = true)]
async fn one_source_alone_is_what_it_is() {
    let (http, only) = source();
    let mut source = fallback(only);
    http.tell(ONE);
    assert_eq!(next(&mut source).await, set(ONE));
    http.fail();
    assert_eq!(told(&mut source, 600 * SECOND).await, None);
    assert!(matches!(source.status(), Status::Stale { .. }));
    http.tell(&[]);
    assert!(next(&mut source).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_fixed_list_is_the_last_of_three() {
    let ((http, first), (dns, second)) = (source(), source());
    let by_hand = fixed(set(&["10.0.0.9:80"]).iter().map(|e| (**e).clone()));
    let mut source = fallback(first).then(second).then(by_hand);
    http.tell(BOTH);
    assert_eq!(next(&mut source).await, set(BOTH));
    dns.fail();
    http.fail();
    assert_eq!(next(&mut source).await, set(&["10.0.0.9:80"]));
    assert_eq!(source.in_use(), Some(2));
    dns.tell(ONE);
    assert_eq!(next(&mut source).await, set(ONE));
}

#[test]
fn times_outside_their_range_are_brought_into_it() {
    let (_, only) = source();
    let source = fallback(only)
        .after(Duration::ZERO)
        .back_after(Duration::MAX);
    assert_eq!(source.turns.pace.after, SHORTEST);
    assert_eq!(source.turns.pace.back_after, LONGEST);
}

#[test]
fn polled_outside_a_runtime_it_follows_the_first_and_does_not_panic() {
    let (http, _, mut source) = two();
    http.tell(ONE);
    let mut cx = Context::from_waker(Waker::noop());
    let told = Pin::new(&mut source).poll_next(&mut cx);
    assert_eq!(told, Poll::Ready(Some(set(ONE))));
    http.fail();
    assert!(Pin::new(&mut source).poll_next(&mut cx).is_pending());
}
