//! Thousands of random schedules of what can go wrong, against the rules of leases and locks.
//!
//! Contenders follow the same rules as the library ([`Lease`](crate::proto::lease::Lease),
//! [`Contest`](crate::proto::contest::Contest), [line](crate::proto::line)) on clocks of their own,
//! over a network that loses, delays and cuts, against servers that change their leader and are told
//! to end sessions, and agents that restart, forget, and let the checks of sessions fail. After each
//! event, at most one of them may believe that it holds. A seed replays its schedule:
//! `LICTOR_SIMULATION_SEED=17 cargo test -p lictor --lib simulation`.

mod contender;
mod servers;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use tokio::time::Instant;

use self::contender::Contender;
use self::servers::{Answer, Ask, Micros, SECOND, Servers};
use crate::proto::lease::Terms;

/// A rule that is broken on purpose, to see that it is missed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Sabotage {
    None,
    /// Belief counts from the answer and not from the sending.
    AnchorAtAnswer,
    /// The key is taken whatever happened to it since it was seen free.
    NoGuard,
    /// The holder goes on believing until its unlock is answered.
    ReleaseLate,
}

/// A small generator (splitmix64): a schedule is nothing but its seed.
#[derive(Debug)]
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// One of so many places.
    fn pick(&mut self, places: usize) -> usize {
        let place = self.below(u64::try_from(places).unwrap());
        usize::try_from(place).unwrap()
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn draw(&mut self) -> f64 {
        (self.below(1 << 20) as f64) / f64::from(1 << 20)
    }
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Event {
    Run(usize, u64),
    Arrive(usize, u64, usize),
    Commit(usize, u64, usize, u64),
    Hear(usize, u64, usize),
    Expire,
    Fault,
    /// The path of one that has become slow goes silent, and its session is ended.
    Silence(usize),
}

/// What the network does to one contender, until when.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    cut_until: Micros,
    lossy_until: Micros,
    slow_until: Micros,
}

struct World {
    rng: Rng,
    now: Micros,
    /// Faults stop then, and until the end everybody must get a turn.
    calm: Micros,
    end: Micros,
    queue: BinaryHeap<Reverse<(Micros, u64, Event)>>,
    order: u64,
    /// When sessions are looked at for the next time.
    expire_at: Micros,
    servers: Servers,
    contenders: Vec<Contender>,
    turns: Vec<u64>,
    weather: Vec<Weather>,
    asks: Vec<Ask>,
    answers: Vec<Answer>,
    newest_token: u64,
    tokens_of: Vec<u64>,
    /// The newest token that a fenced write was taken with.
    newest_write: u64,
    /// A fenced write that was taken though a newer holder's had been.
    stale_write: Option<u64>,
}

/// For how long things go wrong, and how long it is calm then. Leases that are bound to a check
/// live three to ten times as fast, and get half of the first; turns take as long as ever.
const FAULTS: Micros = 240 * SECOND;
const CALM: Micros = 120 * SECOND;

/// What a schedule came to.
type Verdict = Result<u32, String>;

fn simulate(seed: u64, sabotage: Sabotage) -> Verdict {
    let mut rng = Rng(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x6c69_6374_6f72);
    // The last two are the profiles `fast` and `aggressive`.
    let terms = match rng.below(8) {
        0..3 => (10, 10, None),
        3 | 4 => (10, 3, None),
        5 => (3, 3, None),
        6 => (10, 3, Some(3)),
        _ => (10, 1, Some(1)),
    };
    let terms = Terms {
        ttl: Duration::from_secs(terms.0),
        lock_delay: Duration::from_secs(terms.1),
        check: terms.2.map(Duration::from_secs),
        belief: None,
        expiry_only: false,
    };
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap();
    let base = Instant::now();
    let count = 2 + rng.pick(3);
    // In a third of all schedules everybody waits in line, in another only some do.
    let fair = match rng.below(3) {
        0 => 0,
        1 => 50,
        _ => 100,
    };
    let check = terms.check.map_or(0, micros);
    // The clocks of agents differ by one per cent at most, either way.
    let check_ttls: Vec<Micros> = (0..count)
        .map(|_| check * (990_000 + rng.below(20_001)) / 1_000_000)
        .collect();
    let servers = Servers::new(micros(terms.ttl), micros(terms.lock_delay), &check_ttls);
    let share = if terms.check.is_some() { 2 } else { 1 };
    let calm = FAULTS / share;
    let end = calm + CALM;
    let contenders = (0..count)
        .map(|number| {
            let fair = rng.chance(fair);
            Contender::new(number, base, terms, calm, sabotage, fair, &mut rng)
        })
        .collect();
    let mut world = World {
        rng,
        now: 0,
        calm,
        end,
        queue: BinaryHeap::new(),
        order: 0,
        expire_at: Micros::MAX,
        servers,
        contenders,
        turns: vec![0; count],
        weather: vec![Weather::default(); count],
        asks: Vec::new(),
        answers: Vec::new(),
        newest_token: 0,
        tokens_of: vec![0; count],
        newest_write: 0,
        stale_write: None,
    };
    world.run()
}

impl World {
    fn run(&mut self) -> Verdict {
        for number in 0..self.contenders.len() {
            self.wake(number, 0);
        }
        self.push(5 * SECOND, Event::Fault);
        let mut held_when_calm: Option<Vec<u32>> = None;
        while let Some(Reverse((at, _, event))) = self.queue.pop() {
            if at > self.end {
                break;
            }
            self.now = at;
            self.servers.expire(at);
            if at >= self.calm && held_when_calm.is_none() {
                held_when_calm = Some(self.held());
            }
            self.happen(event);
            self.judge()?;
        }
        let before = held_when_calm.unwrap_or_else(|| vec![0; self.contenders.len()]);
        let held = self.held();
        for (number, (before, after)) in before.iter().zip(&held).enumerate() {
            if after <= before {
                return Err(format!(
                    "contender {number} got no turn in the {} calm seconds",
                    (self.end - self.calm) / SECOND
                ));
            }
        }
        Ok(held.iter().sum())
    }

    fn held(&self) -> Vec<u32> {
        self.contenders.iter().map(|one| one.terms_held).collect()
    }

    fn push(&mut self, at: Micros, event: Event) {
        self.order += 1;
        self.queue.push(Reverse((at, self.order, event)));
    }

    /// Has a contender run then, and not at what was planned before.
    fn wake(&mut self, number: usize, at: Micros) {
        self.turns[number] += 1;
        let turn = self.turns[number];
        self.push(at, Event::Run(number, turn));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Run(number, turn) => {
                if self.turns[number] == turn {
                    self.go(number);
                }
            }
            Event::Arrive(number, id, ask) => self.arrive(number, id, ask),
            Event::Commit(number, id, ask, epoch) => self.commit(number, id, ask, epoch),
            Event::Hear(number, id, answer) => {
                let paused = self.contenders[number].paused_until;
                if paused > self.now {
                    self.push(paused, Event::Hear(number, id, answer));
                    return;
                }
                let answer = self.answers[answer].clone();
                let now = self.now;
                self.contenders[number].hear(id, &answer, now, &mut self.rng);
                self.go(number);
            }
            Event::Expire => self.expire_at = Micros::MAX,
            Event::Fault => self.fault(),
            Event::Silence(number) => {
                self.weather[number].cut_until = self.now + 15 * SECOND;
                if let Some(session) = self.contenders[number].session() {
                    self.servers.invalidate(session, self.now);
                }
            }
        }
        // A check that an agent forgot has failed long ago.
        let next_end = self.servers.next_end().map(|end| end.max(self.now));
        if let Some(end) = next_end.filter(|end| *end < self.expire_at) {
            self.expire_at = end;
            self.push(end, Event::Expire);
        }
    }

    fn go(&mut self, number: usize) {
        let paused = self.contenders[number].paused_until;
        if paused > self.now {
            self.wake(number, paused);
            return;
        }
        let next = self.contenders[number].run(self.now, &mut self.rng);
        for (id, ask) in std::mem::take(&mut self.contenders[number].out) {
            self.asks.push(ask);
            let ask = self.asks.len() - 1;
            if let Some(delay) = self.travel(number) {
                self.push(self.now + delay, Event::Arrive(number, id, ask));
            }
        }
        self.wake(number, next);
    }

    /// How long a packet takes; `None` if it does not arrive.
    fn travel(&mut self, number: usize) -> Option<Micros> {
        let weather = self.weather[number];
        if weather.cut_until > self.now || (weather.lossy_until > self.now && self.rng.chance(40)) {
            return None;
        }
        let quick = 200 + self.rng.below(5_000);
        if weather.slow_until > self.now && self.rng.chance(60) {
            return Some(quick + self.rng.below(5 * SECOND));
        }
        Some(quick)
    }

    fn arrive(&mut self, number: usize, id: u64, ask: usize) {
        let (now, asked) = (self.now, self.asks[ask].clone());
        match self.servers.at_once(&asked, number, now, &mut self.rng) {
            Some(answer) => self.answer(number, id, answer),
            None => {
                let slow = self.rng.chance(3);
                let delay = 1_000 + self.rng.below(if slow { 2 * SECOND } else { 20_000 });
                let epoch = self.servers.epoch;
                self.push(now + delay, Event::Commit(number, id, ask, epoch));
            }
        }
    }

    fn commit(&mut self, number: usize, id: u64, ask: usize, epoch: u64) {
        // The leader that had it is gone: it may be in the log all the same, but nobody tells.
        let orphan = self.servers.epoch != epoch;
        if orphan && self.rng.chance(50) {
            return;
        }
        let (now, asked) = (self.now, self.asks[ask].clone());
        let answer = self.servers.commit(&asked, number, now, &mut self.rng);
        if let (Ask::Fenced { token, .. }, Answer::Done(true)) = (&asked, &answer) {
            // Consul looks at the session: one that holds again is let in with what it sent when it
            // held before. Only a session for each hold tells holds apart.
            if *token < self.newest_write && !self.contenders[number].shares {
                self.stale_write = Some(*token);
            }
            self.newest_write = self.newest_write.max(*token);
        }
        if !orphan {
            self.answer(number, id, answer);
        }
    }

    fn answer(&mut self, number: usize, id: u64, answer: Answer) {
        self.answers.push(answer);
        let answer = self.answers.len() - 1;
        if let Some(delay) = self.travel(number) {
            self.push(self.now + delay, Event::Hear(number, id, answer));
        }
    }

    fn fault(&mut self) {
        let now = self.now;
        if now >= self.calm {
            return;
        }
        let number = self.rng.pick(self.contenders.len());
        // Most of what happens to a holder is interesting.
        let holding = (0..self.contenders.len()).find(|one| self.contenders[*one].believes(now));
        let number = holding.filter(|_| self.rng.chance(60)).unwrap_or(number);
        let long = |rng: &mut Rng| SECOND / 10 + rng.below(25 * SECOND);
        match self.rng.below(11) {
            0 => self.weather[number].cut_until = now + long(&mut self.rng),
            1 => self.weather[number].lossy_until = now + long(&mut self.rng),
            2 | 3 => self.weather[number].slow_until = now + long(&mut self.rng),
            4 => self.contenders[number].paused_until = now + long(&mut self.rng),
            5 => {
                let without = self.rng.below(6 * SECOND);
                self.servers.change_leader(now, without);
            }
            6 => self.servers.leave(number, now),
            8 => self.servers.wipe(number),
            9 => {
                let down = self.rng.below(5 * SECOND);
                self.servers.restart(number, now + down);
            }
            7 => {
                // The last proof is on its way, or its answer is, when the session ends.
                self.weather[number].slow_until = now + 4 * SECOND;
                let later = now + self.rng.below(4 * SECOND);
                self.push(later, Event::Silence(number));
            }
            _ => {
                if let Some(id) = self.servers.any_session(&mut self.rng) {
                    self.servers.invalidate(id, now);
                }
            }
        }
        let next = now + self.rng.below(12 * SECOND);
        self.push(next, Event::Fault);
    }

    /// At most one believes; tokens rise; no fenced write of a former holder is taken after a newer
    /// one's, if each hold has a session of its own.
    fn judge(&mut self) -> Result<(), String> {
        let now = self.now;
        let believers = self.contenders.iter().filter(|one| one.believes(now));
        let believers: Vec<usize> = believers.map(|one| one.number).collect();
        if believers.len() > 1 {
            return Err(format!(
                "contenders {believers:?} believe at {:.6} s, the servers say {:?}",
                now as f64 / SECOND as f64,
                self.servers.holder()
            ));
        }
        if let Some(token) = self.stale_write {
            return Err(format!(
                "a fenced write with token {token} after {}",
                self.newest_write
            ));
        }
        for number in 0..self.contenders.len() {
            let one = &mut self.contenders[number];
            if let Some(token) = one.began.take() {
                if token < self.newest_token {
                    return Err(format!("token {token} after {}", self.newest_token));
                }
                if token == self.newest_token && self.tokens_of[number] != token {
                    return Err(format!("token {token} twice"));
                }
                self.newest_token = token;
                self.tokens_of[number] = token;
            }
        }
        Ok(())
    }
}

/// How many schedules each half goes through, 10,000 in all: two, for two processors.
const SCHEDULES: u64 = 5_000;

/// Goes through schedules of its own, or through the one that it is told.
#[expect(
    clippy::print_stdout,
    reason = "a schedule that is not told cannot be replayed"
)]
fn nobody_is_wronged() {
    let seeds = match std::env::var("LICTOR_SIMULATION_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("a seed is a number");
            seed..seed + 1
        }
        Err(_) => {
            let first = rand::random::<u64>() >> 1;
            first..first + SCHEDULES
        }
    };
    println!(
        "seeds {seeds:?}, at most {} simulated seconds each",
        (FAULTS + CALM) / SECOND
    );
    let mut held = 0;
    for seed in seeds.clone() {
        match simulate(seed, Sabotage::None) {
            Ok(terms) => held += u64::from(terms),
            Err(what) => panic!("LICTOR_SIMULATION_SEED={seed}: {what}"),
        }
    }
    println!("{held} times somebody held");
    assert!(held > 10 * (seeds.end - seeds.start));
}

#[test]
fn no_schedule_makes_two_believe_or_keeps_one_waiting() {
    nobody_is_wronged();
}

#[test]
fn no_other_schedule_makes_two_believe_or_keeps_one_waiting() {
    nobody_is_wronged();
}

/// How many schedules a broken rule may survive.
const MOST: u64 = 4_000;

#[expect(
    clippy::print_stdout,
    reason = "what catches a broken rule is worth knowing"
)]
fn is_caught(sabotage: Sabotage) {
    let caught = (0..MOST).find_map(|seed| {
        let verdict = simulate(seed, sabotage);
        verdict.err().map(|what| (seed, what))
    });
    let (seed, what) = caught.expect("the simulation must find a broken rule");
    println!("{sabotage:?}: caught by schedule {seed}: {what}");
    assert!(what.contains("believe"), "{what}");
}

#[test]
fn belief_that_counts_from_the_answer_is_caught() {
    is_caught(Sabotage::AnchorAtAnswer);
}

#[test]
fn a_key_taken_without_a_guard_is_caught() {
    is_caught(Sabotage::NoGuard);
}

#[test]
fn belief_that_outlives_the_unlock_is_caught() {
    is_caught(Sabotage::ReleaseLate);
}
