//! Somebody else under the same ID, on the same agent.

use tokio::time::Instant;

use super::{CALM, Command, Happening, Keeper, PATIENCE, in_turn};
use crate::error::{Error, ErrorKind};
use crate::registration::mark::{self, Answer, Boot};
use crate::registration::work::{self, Looked};

impl Keeper {
    /// Whether another process has registered this ID since it was last looked at: what it has is
    /// not ours to take away.
    pub(super) fn is_somebody_elses(&self) -> impl Future<Output = bool> + Send + use<> {
        let look = work::look(self.client.clone(), self.desired.id.clone(), None);
        let look = in_turn(self.member.crowd(), look);
        let ours = self.desired.boot;
        async move {
            let Ok(Ok(Some(service))) = tokio::time::timeout(PATIENCE, look).await else {
                return false;
            };
            let theirs = Boot::of(&service);
            theirs.is_some() && theirs != ours
        }
    }

    /// The agent has another content than ours under this ID.
    pub(super) fn overwritten(&mut self, now: Instant, theirs: Option<Boot>) {
        // One that carries our mark was written by somebody who had read it.
        let theirs = theirs.filter(|theirs| Some(*theirs) != self.desired.boot);
        let answered = theirs.is_some() && self.answered == theirs;
        if self.calm_at.is_none() || self.rival != theirs {
            self.rival = theirs;
            let theirs = theirs.map(|theirs| theirs.to_string().into());
            self.log.write(Happening::Conflict(theirs));
        }
        let policy = self.terms.on_conflict;
        match mark::answer(policy, self.desired.boot, theirs, answered) {
            Answer::TakeBack => self.contested(now, theirs.is_some()),
            Answer::Once => {
                // Now both know: it sees that somebody lives who is older.
                self.answered = theirs;
                self.register_at = Some(now);
                self.calm_at = Some(now + CALM);
                tracing::warn!(service = %self.desired.id, "a younger process has registered this ID on the agent");
            }
            Answer::LetGo => self.let_go(now),
            Answer::Fail => self.failed = Some(self.conflict()),
        }
    }

    fn conflict(&self) -> Error {
        Error::new(ErrorKind::Conflict).context(format!(
            "service {:?}: somebody else has registered this ID on the agent",
            self.desired.id.as_str()
        ))
    }

    /// Leaves the ID to whoever has it now.
    fn let_go(&mut self, now: Instant) {
        tracing::warn!(service = %self.desired.id, "this ID is left to whoever has registered it on the agent");
        self.log.write(Happening::Yielded);
        self.yielded = true;
        self.lost_at.get_or_insert(now);
        self.register_at = None;
        self.calm_at = None;
        self.strange = None;
        self.trouble = super::Trouble::default();
        self.beating.clear();
        self.badges.taken(self.desired.worn.version);
        let updates = std::mem::take(&mut self.waiting.updates);
        let says = std::mem::take(&mut self.waiting.says);
        let maintenance = std::mem::take(&mut self.waiting.maintenance);
        let replies = updates.into_iter().chain(says).map(|(_, reply)| reply);
        for reply in replies.chain(maintenance.into_iter().map(|(_, reply)| reply)) {
            reply.send(Err(self.conflict())).ok();
        }
    }

    /// What is asked for while the ID is somebody else's: it is kept for when it is free again.
    pub(super) fn command_in_vain(&mut self, command: Command) {
        let reply = match command {
            Command::Say(status, output, reply) => {
                self.desired.say(status, output);
                reply
            }
            Command::Update(reply) => {
                let definition = self.definition.lock().clone();
                self.desired.change(definition);
                reply
            }
            Command::Turn(turn, reply) => {
                self.desired.gate.turn(turn);
                reply
            }
            Command::Maintain(reason, reply) => {
                self.desired.maintenance = reason;
                reply
            }
        };
        reply.send(Err(self.conflict())).ok();
    }

    /// What has become of somebody else's service.
    pub(super) fn seen_theirs(&mut self, now: Instant, looked: &Looked) {
        let is_theirs = looked.service.as_ref().is_some_and(|service| {
            let theirs = Boot::of(service);
            theirs.is_none() || theirs != self.desired.boot
        });
        if is_theirs && !looked.has_run_out {
            return;
        }
        tracing::info!(service = %self.desired.id, "this ID is free again, and is taken back");
        self.log.write(Happening::TakenBack);
        self.yielded = false;
        self.answered = None;
        // It is another life than the one that let go: who had the ID since then came before it.
        self.desired.boot = None;
        self.missing = true;
        let gone = format!(
            "service {:?}: taken back, not yet registered",
            self.desired.id.as_str()
        );
        self.trouble.register = Some(Error::new(ErrorKind::UnknownService).context(gone));
        self.register_at = Some(now);
    }
}
