//! Elections: one of many does the work.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::time::Instant;

use super::leadership::{self, Leadership, Term, within};
use super::lease::Lease;
use super::lock::LockGuard;
use super::profile::Profile;
use super::role::{Next, Outcome, Role, Roles};
use super::state::Lost;
use super::ticket::Folder;
use super::yielding;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::ident::{Key, SessionId};
use crate::proto::backoff::Backoff;
use crate::registration::{Badges, Registration};
use crate::states::States;

impl Client {
    /// An election: of all that campaign for a key, one leads.
    ///
    /// Nothing is sent before [`Election::run`] or one of its neighbours.
    pub fn election(&self, key: impl Into<Arc<str>>) -> Election {
        Election {
            client: self.clone(),
            key: key.into(),
            value: Ok(Bytes::from_static(b"null")),
            lease: Source::Own(Profile::default()),
            step_down_within: STEP_DOWN_WITHIN,
            roles: Roles::new(),
            line: None,
            yields_after: None,
            badges: Vec::new(),
            busy: Arc::new(AtomicBool::new(false)),
        }
    }
}

/// One candidate of an election.
///
/// It is a [`Lock`](super::Lock) on the key, with a value that tells who leads, and work that runs
/// only while it leads; see the [module](super) for what a leader may rely on. Whoever only wants to
/// know who leads [observes](Self::observe).
///
/// Clones are the same candidate, which leads or campaigns once at a time.
///
/// # Tasks and drop
///
/// It starts no task before it campaigns. A campaign has the task of its lease; a leadership
/// has one more, which hands over, and those that [`Term::spawn`] starts. [`run`](Self::run) itself
/// and the work run in the task that awaits it. Dropping the future of `run`, wherever it is, ends
/// the belief and drops the work at once; what the term has spawned is ended, the lock released and
/// the session ended in the background, in this order, as long as the runtime lives.
///
/// # Examples
///
/// ```no_run
/// # async fn example(
/// #     client: lictor::Client,
/// #     stop: impl Future<Output = ()> + Send,
/// # ) -> lictor::Result<()> {
/// use lictor::coordination::Next;
///
/// let election = client.election("jobs/mailer/leader").candidate("host-1:8080");
/// // `stop` is any future: a signal, the end of a channel.
/// let outcome = election
///     .run(stop, async move |term| {
///         loop {
///             tokio::select! {
///                 () = term.stopping() => return Next::Stop,
///                 () = send_mail(term.token()) => {}
///             }
///         }
///     })
///     .await?;
/// println!("{outcome:?}");
/// # async fn send_mail(_: lictor::coordination::FencingToken) {}
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nobody campaigns before `run` or `campaign`"]
pub struct Election {
    pub(super) client: Client,
    pub(super) key: Arc<str>,
    value: Result<Bytes>,
    lease: Source,
    step_down_within: Duration,
    roles: Roles,
    /// The preference with which it waits in line, if it does.
    line: Option<u8>,
    /// For how long somebody preferred must have waited before it makes way, if it does.
    yields_after: Option<Duration>,
    /// Which registrations wear which tags while it leads.
    badges: Vec<(Badges, Arc<str>)>,
    /// Whether a candidacy is there.
    busy: Arc<AtomicBool>,
}

/// Where the session comes from.
#[derive(Clone, Debug)]
enum Source {
    /// A lease of its own for each campaign.
    Own(Profile),
    Shared(Lease),
}

/// How long the work has to end by default.
const STEP_DOWN_WITHIN: Duration = Duration::from_secs(10);

/// How long somebody who steps down lets others go first.
const OTHERS_FIRST: Duration = Duration::from_secs(5);

/// A term that lasts so long has done some work.
const SHORT: Duration = Duration::from_secs(1);

impl Election {
    /// How its lease is kept, if it has one of its own. Default: [`Profile::balanced`].
    ///
    /// It takes the place of a [shared one](Self::lease).
    pub fn profile(mut self, profile: Profile) -> Self {
        self.lease = Source::Own(profile);
        self
    }

    /// The lease that it leads by. Default: one of its own for each campaign, which ends with it.
    pub fn lease(mut self, lease: &Lease) -> Self {
        self.lease = Source::Shared(lease.clone());
        self
    }

    /// What observers are to see while this candidate leads, as JSON. Default: `null`.
    ///
    /// It stands in the key from the moment at which the candidate leads, until the next one does;
    /// [`Term::publish`] changes it. A value that cannot be written as JSON is refused where the
    /// candidate campaigns.
    pub fn candidate(mut self, value: impl Serialize) -> Self {
        self.value = leadership::json(&value);
        self
    }

    /// Waits in line: whoever has campaigned for longest leads next. Default: whoever is fastest.
    ///
    /// With a hundred candidates a hand-over then costs two writes, and nobody is passed for ever;
    /// see [`Lock::fair`](super::Lock::fair) for how it works and what it does not do. A candidate
    /// with more than two others ahead of it follows its place in line and not the leader: its
    /// [role](Self::roles) tells who leads up to 15 s late. [Observers](Self::observe) are told at
    /// once.
    pub fn fair(mut self) -> Self {
        self.line.get_or_insert_default();
        self
    }

    /// Is chosen rather than candidates with less preference. Default: 0.
    ///
    /// It makes the candidate [fair](Self::fair): of those in line when nobody leads, the one with
    /// the highest preference leads next, and among equals the one that came first. Candidates that
    /// are not fair know nothing of it. It says who goes next, and nothing about who leads now: see
    /// [`yields_to_preferred`](Self::yields_to_preferred).
    pub fn preference(mut self, preference: u8) -> Self {
        self.line = Some(preference);
        self
    }

    /// Steps down, while [running](Self::run), for a candidate with a higher
    /// [preference](Self::preference) that has waited for so long. Default: never.
    ///
    /// It does so in the order in which it steps down when it is told to stop, and then stands in
    /// line again. Three rules keep leaders from following each other without end:
    ///
    /// - It makes way for a higher preference only, never for an equal one: a hand-over of this kind
    ///   always goes up.
    /// - The same ticket of the same candidate must have stood in line for the whole time, as this
    ///   leader saw it, without a gap: neither one that comes and goes nor one that has just come
    ///   counts, and no leader makes way sooner than that after it began to lead.
    /// - What cannot be seen, because Consul does not answer, is a gap.
    ///
    /// So a preferred candidate that crashes each time that it leads interrupts the others once in
    /// such a time, and not more often: choose it longer than the preferred candidate needs to prove
    /// itself. A preferred candidate that waits but does not take its turn within a second loses its
    /// place, and the next in line leads.
    ///
    /// One who holds a leadership by hand, from [`campaign`](Self::campaign), is not told.
    pub fn yields_to_preferred(mut self, after: Duration) -> Self {
        self.line.get_or_insert_default();
        self.yields_after = Some(after);
        self
    }

    /// Has a registration carry this tag while the candidate leads. Default: none does.
    ///
    /// So the leader is found like any service: as the instances of `mailer` with the tag `leader`
    /// in the catalog, and as `leader.mailer.service.consul` by DNS. It can be called for several
    /// registrations. The registration is the caller's, and stays so: the tag is kept apart from its
    /// [definition](Registration::definition), whose tags can be changed at any time, and which
    /// keeps a tag of this name if it has one of its own.
    ///
    /// The tag is put on once the candidate leads, and taken off first of all when it steps down:
    /// when its work is told to end, and before the lock is released, which waits for the agent to
    /// take that for up to a second. When the leadership is lost, it is taken off without a wait for
    /// anything.
    ///
    /// **It is a hint.** Nothing is safe by it. The agent tells the servers in its own time, DNS
    /// answers and watches may be old, and for a moment two instances can carry the tag, or none.
    /// While the agent cannot be reached the tag stays as it is, and is set right as soon as the
    /// agent answers; one of a process that died stays until the registration goes, so let others
    /// ask for instances that pass. Whoever must not be wrong compares
    /// [tokens](super::Held::token).
    ///
    /// An empty tag is refused where the candidate campaigns. Other tags are not looked at: for DNS
    /// take letters, digits and `-`. A registration whose definition lets others change its tags may
    /// lose this one to them.
    pub fn advertise(mut self, registration: &Registration, tag: impl Into<Arc<str>>) -> Self {
        self.badges
            .push((registration.badges().clone(), tag.into()));
        self
    }

    /// How long the work may go on once [`run`](Self::run) is told to stop, or
    /// [makes way](Self::yields_to_preferred). Default: 10 s.
    ///
    /// Then it is dropped. The lease is kept meanwhile; if it is lost, the work is dropped at that
    /// moment.
    pub fn step_down_within(mut self, time: Duration) -> Self {
        self.step_down_within = time;
        self
    }

    /// What this candidate is, now and whenever that changes, as a stream. It ends when the
    /// election and all of its clones are dropped.
    pub fn roles(&self) -> States<Role> {
        self.roles.follow()
    }

    /// Campaigns, and does the work whenever it leads, until `stop` resolves or the work says so.
    ///
    /// The work is a future that exists only while this candidate leads. It runs in the task that
    /// awaits this, raced against the loss of the leadership: at that moment it is dropped, before
    /// anybody else can lead, and is never polled again. What it [spawns](Term::spawn) ends with
    /// it. Then the candidate campaigns again. When the work ends by itself, its answer decides
    /// what comes [`Next`].
    ///
    /// A leader that is told to stop steps down in this order: its [tag](Self::advertise) is
    /// taken off; [`Term::stopping`] tells the work; the work may go on for
    /// [`step_down_within`](Self::step_down_within), whatever it answers;
    /// then it is dropped; what it spawned is ended and waited for; the lock is released, so that
    /// the next one can lead at once; the session is ended, unless it is [shared](Self::lease).
    ///
    /// The future can be spawned if those of `stop` and of the work can. Then write the work as
    /// `async move |term| …`, with clones of what it needs.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Invalid`] for a key, a value or a profile that cannot work.
    /// - [`ErrorKind::NoRuntime`] outside of a Tokio runtime.
    /// - [`ErrorKind::PermissionDenied`] for a token that may not write the session or the key.
    /// - [`ErrorKind::Conflict`] for a key that belongs to a semaphore, or if this candidate
    ///   campaigns or leads already.
    /// - When Consul could not be told of the last hand-over within 10 s. Nothing is believed any
    ///   more in any case, and the session ends by its TTL.
    /// - Whatever else Consul refuses a campaign with. What may pass is waited out, not told.
    ///   An answer that is not Consul's, such as a proxy's page with status 200 or 404, may not.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future, wherever it is, leaves no work running, no lock taken and no session
    /// alive: see [the type](Self#tasks-and-drop).
    pub fn run<S, F>(&self, stop: S, work: F) -> impl Future<Output = Result<Outcome>> + use<S, F>
    where
        S: Future<Output = ()> + Send,
        F: AsyncFnMut(Term) -> Next,
    {
        run(self.clone(), stop, work)
    }

    /// Campaigns until this candidate leads, for those who want to hold the leadership themselves.
    ///
    /// It waits by a blocking query, and through outages of Consul.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run), except for those of a hand-over.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future, wherever it is, leaves no lock taken and no session alive: what was on
    /// its way is given up in the background.
    pub async fn campaign(&self) -> Result<Leadership> {
        let candidacy = self.enter()?;
        let lease = self.leased()?;
        let guard = self.win(&lease).await?;
        self.lead(guard, lease, Some(candidacy))
    }

    /// One at a time: roles would be told of two at once otherwise.
    fn enter(&self) -> Result<Candidacy> {
        if self.busy.swap(true, Ordering::AcqRel) {
            return Err(Error::new(ErrorKind::Conflict).context(format!(
                "election {}: this candidate campaigns or leads already: make another `election` \
                 of the client for another candidate",
                self.key
            )));
        }
        Ok(Candidacy {
            roles: self.roles.clone(),
            busy: Arc::clone(&self.busy),
        })
    }

    fn leased(&self) -> Result<Lease> {
        if self.badges.iter().any(|(_, tag)| tag.is_empty()) {
            let empty = "election: the tag that a leader's registration carries must not be empty";
            return Err(Error::invalid(empty));
        }
        match &self.lease {
            Source::Shared(lease) => Ok(lease.clone()),
            Source::Own(profile) => {
                let lease = self.client.lease().profile(profile.clone());
                lease.name(Arc::clone(&self.key)).build()
            }
        }
    }

    async fn win(&self, lease: &Lease) -> Result<LockGuard> {
        let lock = self.client.lock(Arc::clone(&self.key)).lease(lease);
        let mut lock = lock.value(self.value.clone()?).telling(&self.roles);
        if let Some(preference) = self.line {
            lock = lock.preferred(preference);
        }
        self.roles.candidate();
        lock.acquire().await
    }

    fn lead(
        &self,
        guard: LockGuard,
        lease: Lease,
        candidacy: Option<Candidacy>,
    ) -> Result<Leadership> {
        let owned = matches!(self.lease, Source::Own(_));
        let roles = self.roles.clone();
        Leadership::new(guard, lease, owned, roles, candidacy, &self.badges)
    }

    /// Resolves when this candidate, which leads, is to make way for another.
    async fn outranked(&self) {
        let (Some(after), Ok(key)) = (self.yields_after, Key::new(Arc::clone(&self.key))) else {
            return std::future::pending().await;
        };
        let own = self.line.unwrap_or_default();
        yielding::preferred(&self.client, &Folder::of(&key), own, after).await;
    }

    /// Waits until somebody else leads, but not for long.
    async fn others_first(&self, former: &SessionId) {
        let led = async {
            let mut watch = self.client.kv().get(Arc::clone(&self.key)).watch()?;
            loop {
                let snapshot = watch.changed().await?;
                let mut holders = snapshot.iter().filter_map(|pair| pair.session());
                if holders.any(|session| session != former) {
                    return Ok::<(), Error>(());
                }
            }
        };
        tokio::time::timeout(OTHERS_FIRST, led).await.ok();
    }
}

/// The right to campaign; it goes back when it is dropped.
#[derive(Debug)]
pub(super) struct Candidacy {
    roles: Roles,
    busy: Arc<AtomicBool>,
}

impl Drop for Candidacy {
    fn drop(&mut self) {
        self.roles.idle();
        self.busy.store(false, Ordering::Release);
    }
}

/// How the work of one term ended.
enum Ended {
    Answered(Next),
    Lost(Lost),
    Stopped(Outcome),
    /// It makes way for somebody who is preferred.
    Yielded,
}

/// Why a leader steps down though its work goes on.
enum Told {
    Stop,
    Yield,
}

async fn run<S, F>(election: Election, stop: S, mut work: F) -> Result<Outcome>
where
    S: Future<Output = ()> + Send,
    F: AsyncFnMut(Term) -> Next,
{
    // Locals are dropped from the last to the first: the candidacy goes back when all is over.
    let _candidacy = election.enter()?;
    let mut stop = pin!(stop);
    let mut pauses = Pauses::new();
    loop {
        let lease = election.leased()?;
        let won = tokio::select! {
            biased;
            () = &mut stop => None,
            won = election.win(&lease) => Some(won?),
        };
        let Some(guard) = won else {
            if matches!(election.lease, Source::Own(_)) {
                // Nothing is held by it: what fails here, Consul ends by the TTL.
                lease.close().await.ok();
            }
            return Ok(Outcome::NotLeading);
        };
        let began = Instant::now();
        let leadership = election.lead(guard, lease, None)?;
        let former = leadership.session().clone();
        let ended = term(&election, &leadership, stop.as_mut(), &mut work).await;
        let resigned = leadership.resign().await;
        match ended {
            Ended::Stopped(outcome) => return resigned.map(|_| outcome),
            Ended::Answered(Next::Stop) => return resigned.map(|_| Outcome::Finished),
            // One that could not be told to Consul is over all the same.
            Ended::Answered(Next::Rejoin) => {}
            // Its place in line is not to be lost, and who it makes way for paces itself.
            Ended::Yielded => {
                tracing::info!(key = %election.key, "made way for a preferred candidate");
                continue;
            }
            Ended::Lost(lost) => {
                tracing::warn!(key = %election.key, reason = %lost, "leadership lost");
            }
            Ended::Answered(Next::StepDown) => tokio::select! {
                biased;
                () = &mut stop => return Ok(Outcome::NotLeading),
                () = election.others_first(&former) => {}
            },
        }
        let pause = pauses.after(began.elapsed(), rand::random());
        if pause.is_zero() {
            continue;
        }
        tokio::select! {
            biased;
            () = &mut stop => return Ok(Outcome::NotLeading),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// What keeps a candidate whose terms are short from campaigning without end.
///
/// Each campaign costs a session, a lock and the end of both: work that says at once that it wants
/// to rejoin, and two candidates that step down for each other, would keep Consul busy with nothing
/// else.
struct Pauses(Backoff);

impl Pauses {
    const fn new() -> Self {
        Self(Backoff::new(Duration::from_millis(100), OTHERS_FIRST))
    }

    /// How long the next campaign waits, `since` the last term began.
    fn after(&mut self, since: Duration, draw: f64) -> Duration {
        if since >= SHORT {
            self.0.reset();
            return Duration::ZERO;
        }
        self.0.next(draw).saturating_sub(since)
    }
}

/// The work of one term. When this returns, its future is gone.
async fn term<S, F>(
    election: &Election,
    leadership: &Leadership,
    mut stop: Pin<&mut S>,
    work: &mut F,
) -> Ended
where
    S: Future<Output = ()> + Send,
    F: AsyncFnMut(Term) -> Next,
{
    let mut work = pin!(work(leadership.term()));
    let answer = tokio::select! {
        biased;
        () = &mut stop => Err(Told::Stop),
        answer = within(leadership, work.as_mut()) => Ok(answer),
        () = election.outranked() => Err(Told::Yield),
    };
    let told = match answer {
        Ok(Ok(next)) => return Ended::Answered(next),
        Ok(Err(lost)) => return Ended::Lost(lost),
        Err(told) => told,
    };
    leadership.tell_stopping();
    let last = within(leadership, work.as_mut());
    let last = tokio::time::timeout(election.step_down_within, last).await;
    let stopped = match told {
        Told::Stop => true,
        Told::Yield => is_ready(stop).await,
    };
    match last {
        Ok(Ok(Next::Stop)) if !stopped => Ended::Answered(Next::Stop),
        Ok(Err(lost)) if !stopped => Ended::Lost(lost),
        _ if !stopped => Ended::Yielded,
        Ok(Ok(_)) => Ended::Stopped(Outcome::SteppedDown),
        Ok(Err(lost)) => Ended::Stopped(Outcome::Lost(lost)),
        Err(_) => Ended::Stopped(Outcome::Interrupted),
    }
}

/// Whether it has come to pass by now.
async fn is_ready(event: Pin<&mut impl Future<Output = ()>>) -> bool {
    tokio::select! {
        biased;
        () = event => true,
        () = std::future::ready(()) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_terms_one_after_the_other_are_followed_by_pauses() {
        const fn ms(ms: u64) -> Duration {
            Duration::from_millis(ms)
        }
        let mut pauses = Pauses::new();
        let mut after = |since: u64| pauses.after(ms(since), 1.0);
        assert_eq!([0, 0, 50].map(&mut after), [100, 200, 350].map(ms));
        // What a term and its hand-over took is not waited once more.
        assert_eq!(after(999), Duration::ZERO);
        assert_eq!([0; 4].map(&mut after), [1600, 3200, 5000, 5000].map(ms));
        assert_eq!(after(1000), Duration::ZERO);
        assert_eq!(after(0), ms(100));
    }
}
