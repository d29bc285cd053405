//! How a lease is kept, in numbers.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::proto::lease::{self, Terms};

/// How long a lease lasts without Consul, and what keeping it costs.
///
/// | profile | TTL | lock-delay | bound check | believed in for | after a crash, others wait | requests per second |
/// |---|---|---|---|---|---|---|
/// | [`balanced`](Self::balanced), the default | 10 s | 9.5 s | none | 9.2 s | 26 to 29.6 s | 0.6 |
/// | [`fast`](Self::fast) | 10 s | 2.755 s | 2.9 s | 2.6 s | 4.7 to 5.8 s | 2.5 |
/// | [`aggressive`](Self::aggressive) | 10 s | 0.95 s | 1 s | 0.83 s | 1.6 to 2 s | 7.3 |
///
/// *Believed in for* is how long a holder goes on after the last good answer of Consul, counted from
/// when that was asked for. The session is proven every third of it or sooner, so an outage of less
/// than two thirds is ridden out wherever it falls: about 6 s in `balanced`, 1.7 s in `fast` and half
/// a second in `aggressive`; a longer one only if it begins right after a proof. *After a
/// crash* is how long until somebody else can hold what a process held that died without a word;
/// a clean release is handed over at once in every profile. It is shortest for a process that dies
/// right before it would have proven its session again, and includes a tenth of a second for the
/// servers to notice and for the next one to lock. The requests are per lease, not per lock: a lease
/// that many locks share costs the same.
///
/// In the default profile, Consul itself ends a session of which it hears nothing after twice the
/// TTL, and holds its keys back for the lock-delay. The other two bind the session to a TTL check
/// that lictor registers for it, which is not doubled. The check belongs to a service of its own,
/// `lictor-lease`, so that no other service of the node fails with it; a process that dies leaves
/// it critical in the catalog for one to two minutes.
///
/// A cluster that has no leader for longer than a lease is believed in costs the lease. Elections
/// take seconds: `fast` and `aggressive` do not ride them all out.
#[derive(Clone, Debug, Eq, PartialEq)]
#[must_use = "a profile does nothing until a lease is made with it"]
pub struct Profile {
    ttl: Duration,
    lock_delay: Option<Duration>,
    check: Option<Duration>,
    belief: Option<Duration>,
    expiry_only: bool,
    ttl_min: Duration,
}

/// Consul's default `session_ttl_min`.
const TTL_MIN: Duration = Duration::from_secs(10);
/// The longest TTL that Consul takes.
const TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Consul cuts longer ones down to this when it applies them.
const LOCK_DELAY_MAX: Duration = Duration::from_secs(60);
/// Below this, a lease cannot be renewed in time on any network.
const BELIEF_MIN: Duration = Duration::from_millis(250);

impl Default for Profile {
    fn default() -> Self {
        Self::balanced()
    }
}

impl Profile {
    /// Rides out what happens in a healthy cluster, elections of its servers included.
    ///
    /// The TTL is the shortest that Consul takes by default.
    pub const fn balanced() -> Self {
        Self {
            ttl: TTL_MIN,
            lock_delay: None,
            check: None,
            belief: None,
            expiry_only: false,
            ttl_min: TTL_MIN,
        }
    }

    /// Fails over within 6 s of a crash, and does not outlast every election of the servers.
    pub const fn fast() -> Self {
        let mut fast = Self::balanced();
        fast.check = Some(Duration::from_millis(2900));
        fast
    }

    /// Fails over within 2 s of a crash; a hiccup of a second costs the lease.
    ///
    /// For work that is cheap to hand over, on a network that is quiet.
    pub const fn aggressive() -> Self {
        let mut aggressive = Self::balanced();
        aggressive.check = Some(Duration::from_secs(1));
        aggressive
    }

    /// The session's TTL, 10 s to 24 h. Default: 10 s, Consul's `session_ttl_min`.
    ///
    /// Sent in whole milliseconds. Consul ends a session of which it hears nothing after twice this.
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// The shortest TTL that the servers take (`session_ttl_min` of their configuration). Default:
    /// 10 s.
    ///
    /// Only for servers that are set up otherwise; it allows a shorter [`ttl`](Self::ttl).
    pub const fn servers_ttl_min(mut self, min: Duration) -> Self {
        self.ttl_min = min;
        self
    }

    /// How long Consul holds back the keys of a session that ended without a release, 0 to 60 s.
    ///
    /// It must not be shorter than the belief after the last proof, unless that is
    /// [limited](Self::belief) or the profile is [`expiry_only`](Self::expiry_only). Default: 95 % of
    /// the TTL, or of the bound check's; the belief is as much shorter.
    pub const fn lock_delay(mut self, lock_delay: Duration) -> Self {
        self.lock_delay = Some(lock_delay);
        self
    }

    /// Binds the session to a TTL check of this TTL, 1 s to an hour, that lictor registers and
    /// updates. Default: none.
    ///
    /// Consul ends the session when the check is not updated in time: sooner than by its own TTL.
    pub const fn check_ttl(mut self, ttl: Duration) -> Self {
        self.check = Some(ttl);
        self
    }

    /// Longest belief after the last proof. Default: as long as the other numbers allow.
    pub const fn belief(mut self, belief: Duration) -> Self {
        self.belief = Some(belief);
        self
    }

    /// Holds only by time, whatever the lock-delay.
    ///
    /// Safe against crashes and cut networks, as ever. Not against a session that ends before its
    /// time: when its agent leaves the cluster, or an operator destroys it, somebody else may hold
    /// before this process knows. Fence what must not suffer from that.
    pub const fn expiry_only(mut self) -> Self {
        self.expiry_only = true;
        self
    }

    /// How long a holder goes on after the last good answer of Consul.
    ///
    /// The shortest of TTL, check's TTL and lock-delay, less 2 % for clocks that differ and 100 ms
    /// for tasks that run late.
    #[must_use]
    pub fn believed_for(&self) -> Duration {
        self.terms().belief()
    }

    /// After how long without a word the servers may end the session.
    fn by_time(&self) -> Duration {
        self.check.map_or(self.ttl, |check| check.min(self.ttl))
    }

    /// The lock-delay where nobody has said another.
    ///
    /// Shorter than what ends the session by time: others wait for the sum of both, and what the
    /// servers and the next holder need beside them is to fit into the time that is promised.
    fn own_lock_delay(&self) -> Duration {
        self.by_time() * 95 / 100
    }

    pub(super) fn terms(&self) -> Terms {
        Terms {
            ttl: self.ttl,
            lock_delay: self
                .lock_delay
                .unwrap_or_else(|| self.own_lock_delay().min(LOCK_DELAY_MAX)),
            check: self.check,
            belief: self.belief,
            expiry_only: self.expiry_only,
        }
    }

    /// Looks over the numbers before anything is sent.
    pub(super) fn checked(&self) -> Result<Terms> {
        let wrong = |what: String| Err(Error::invalid(format!("lease profile: {what}")));
        let ttl = self.ttl;
        let lock_delay = self.terms().lock_delay;
        if ttl < self.ttl_min || ttl > TTL_MAX {
            return wrong(format!(
                "TTL {ttl:?}: Consul takes {:?} to 24 h (`servers_ttl_min` is for servers with \
                 another `session_ttl_min`)",
                self.ttl_min
            ));
        }
        if lock_delay > LOCK_DELAY_MAX {
            return wrong(format!(
                "lock-delay {lock_delay:?}: Consul keeps at most 60 s and cuts the rest off silently"
            ));
        }
        if let Some(check) = self.check
            && (check < Duration::from_secs(1) || check > Duration::from_secs(3600))
        {
            return wrong(format!("check TTL {check:?}: 1 s to 1 h"));
        }
        let by_time = self.by_time();
        if !self.expiry_only {
            // A belief that somebody limits may last as long as the lock-delay allows; without a
            // word, it is not shortened silently.
            let own = self.own_lock_delay();
            let wanted = match (self.belief, self.lock_delay) {
                (Some(belief), _) => belief,
                (None, None) => lease::believable(own),
                (None, Some(_)) => lease::believable(by_time),
            };
            let allowed = lease::believable(lock_delay);
            if allowed < wanted {
                let longer = match by_time > LOCK_DELAY_MAX {
                    true => String::new(),
                    false => format!("make it {by_time:?}, "),
                };
                let limited = match allowed < BELIEF_MIN {
                    true => String::new(),
                    false => format!("limit the `belief` to {allowed:?}, "),
                };
                return wrong(format!(
                    "lock-delay {lock_delay:?}: is shorter than the holder would go on believing \
                     ({wanted:?} after the last proof), so that somebody else could hold too: \
                     {longer}{limited}or say `expiry_only` if fencing covers a session that ends \
                     before its time"
                ));
            }
        }
        let terms = self.terms();
        if terms.belief() < BELIEF_MIN {
            return wrong(format!(
                "belief of {:?} after the last proof: too short to renew, make it {BELIEF_MIN:?} \
                 or more",
                terms.belief()
            ));
        }
        Ok(terms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn refusal(profile: &Profile) -> String {
        profile.checked().unwrap_err().to_string()
    }

    #[test]
    fn the_three_profiles_are_believed_in_as_long_as_their_table_says() {
        for (profile, belief) in [
            (Profile::balanced(), 9_210),
            (Profile::fast(), 2_600),
            (Profile::aggressive(), 831),
        ] {
            profile.checked().unwrap();
            let told = profile.believed_for().as_secs_f64() * 1000.0;
            assert_eq!(told.round(), f64::from(belief));
        }
    }

    /// What ends the session at the servers, and the lock-delay after it.
    #[test]
    fn others_wait_no_longer_than_is_promised_with_room_for_what_the_servers_need() {
        let room = Duration::from_millis(45);
        for (profile, promised) in [
            (Profile::balanced(), secs(30)),
            (Profile::fast(), secs(6)),
            (Profile::aggressive(), secs(2)),
        ] {
            let terms = profile.checked().unwrap();
            // Consul doubles a TTL, and not that of a check.
            let ends = terms.check.unwrap_or(2 * terms.ttl);
            assert!(ends + terms.lock_delay + room <= promised, "{profile:?}");
        }
    }

    #[test]
    fn a_ttl_above_the_longest_lock_delay_needs_a_word_about_the_belief() {
        let long = Profile::balanced().ttl(secs(120));
        let text = refusal(&long);
        assert!(text.contains("60s") && !text.contains("make it"), "{text}");
        long.clone().belief(secs(50)).checked().unwrap();
        long.expiry_only().checked().unwrap();
        Profile::balanced().ttl(secs(60)).checked().unwrap();
    }

    #[test]
    fn what_consul_does_not_take_is_refused() {
        let balanced = Profile::balanced;
        assert!(refusal(&balanced().ttl(secs(9))).contains("10s to 24 h"));
        assert!(refusal(&balanced().ttl(secs(100_000))).contains("24 h"));
        assert!(refusal(&balanced().lock_delay(secs(61))).contains("60 s"));
        assert!(refusal(&balanced().check_ttl(Duration::from_millis(10))).contains("1 s to 1 h"));
        let lowered = balanced().ttl(secs(2)).lock_delay(secs(2));
        lowered.servers_ttl_min(secs(1)).checked().unwrap();
    }

    #[test]
    fn a_lock_delay_below_the_belief_is_refused_unless_it_is_said() {
        let short = Profile::balanced().lock_delay(secs(5));
        let text = refusal(&short);
        assert!(
            text.contains("expiry_only") && text.contains("9.7s"),
            "{text}"
        );
        let said = short.clone().belief(secs(4));
        said.checked().unwrap();
        assert_eq!(said.believed_for(), secs(4));
        let fenced = short.lock_delay(Duration::ZERO).expiry_only();
        fenced.checked().unwrap();
        assert_eq!(fenced.believed_for(), Duration::from_millis(9_700));
    }

    #[test]
    fn a_belief_too_short_to_be_renewed_is_refused() {
        let text = refusal(&Profile::balanced().belief(Duration::from_millis(20)));
        assert!(text.contains("too short"), "{text}");
    }
}
