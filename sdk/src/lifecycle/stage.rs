//! The stages of a shutdown, and what each came to.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A stage of a shutdown. They follow one on the other in this order.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Stage {
    /// The services say that they are not to be found, and the catalog shows it.
    Unroutable,
    /// They serve on for those who have not seen it yet.
    LameDuck,
    /// No new work is taken, and what is under way is finished.
    Drain,
    /// Elections, locks and places of semaphores are given up.
    StepDown,
    /// The services are deregistered.
    Deregister,
    /// Sessions and watches end.
    End,
}

impl Stage {
    pub(super) const ALL: [Self; 6] = [
        Self::Unroutable,
        Self::LameDuck,
        Self::Drain,
        Self::StepDown,
        Self::Deregister,
        Self::End,
    ];

    /// How long it may take if nobody says otherwise.
    ///
    /// Together 9.5 s: `docker stop` kills after 10 s, and Kubernetes after 30 s.
    pub(super) fn deadline(self) -> Duration {
        match self {
            Self::Unroutable => Duration::from_secs(2),
            Self::LameDuck | Self::StepDown | Self::Deregister => Duration::from_secs(1),
            Self::Drain => Duration::from_secs(4),
            Self::End => Duration::from_millis(500),
        }
    }

    /// Its place in [`ALL`](Self::ALL), counted from 1.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Unroutable => 1,
            Self::LameDuck => 2,
            Self::Drain => 3,
            Self::StepDown => 4,
            Self::Deregister => 5,
            Self::End => 6,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unroutable => "not routable",
            Self::LameDuck => "lame duck",
            Self::Drain => "drain",
            Self::StepDown => "step down",
            Self::Deregister => "deregister",
            Self::End => "end",
        })
    }
}

/// What a stage came to.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum StageOutcome {
    /// All that belongs to it was done, or there was nothing to do.
    Done,
    /// It was left out, for this reason.
    Skipped(Arc<str>),
    /// It was not done by its deadline, and the next one began.
    ///
    /// A deregistration or a release goes on in the background while the runtime lives.
    TimedOut(Arc<str>),
    /// Somebody asked a second time, and would not wait for it any longer.
    CutShort,
    /// It failed; the next one began.
    Failed(Arc<str>),
}

impl fmt::Display for StageOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Skipped(why) => write!(f, "left out: {why}"),
            Self::TimedOut(what) => write!(f, "not done in time: {what}"),
            Self::CutShort => f.write_str("cut short"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// One line of a [`Report`].
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct StageReport {
    /// Which stage.
    pub stage: Stage,
    /// How long it took.
    pub took: Duration,
    /// What it came to.
    pub outcome: StageOutcome,
}

impl fmt::Display for StageReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            stage,
            took,
            outcome,
        } = self;
        write!(f, "{stage:<12} {:>7.3} s  {outcome}", took.as_secs_f64())
    }
}

/// Why a process was shut down.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Cause {
    /// A signal asked for it: its name.
    Signal(&'static str),
    /// [`Shutdown::begin`](super::Shutdown::begin) was called.
    Asked,
    /// The work ended by itself.
    WorkEnded,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(name) => write!(f, "signal {name}"),
            Self::Asked => f.write_str("asked for"),
            Self::WorkEnded => f.write_str("the work ended by itself"),
        }
    }
}

/// What a shutdown came to: a line for each stage, in their order.
///
/// It displays as lines: the cause, then for each stage its name, the time that it took, and what it
/// came to.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
#[must_use]
pub struct Report {
    /// Why.
    pub cause: Cause,
    /// What each stage came to.
    pub stages: Vec<StageReport>,
}

impl Report {
    /// Whether all was done, or had to be left out.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let clean = |line: &StageReport| {
            matches!(line.outcome, StageOutcome::Done | StageOutcome::Skipped(_))
        };
        self.stages.iter().all(clean)
    }

    /// What this stage came to.
    #[must_use]
    pub fn stage(&self, stage: Stage) -> Option<&StageReport> {
        self.stages.iter().find(|line| line.stage == stage)
    }

    /// How long all of it took.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.stages.iter().map(|line| line.took).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shut down: {}", self.cause)?;
        for line in &self.stages {
            write!(f, "\n{line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_line_for_each_stage() {
        let line = |stage, ms, outcome| StageReport {
            stage,
            took: Duration::from_millis(ms),
            outcome,
        };
        let mut report = Report {
            cause: Cause::Signal("SIGTERM"),
            stages: vec![
                line(Stage::Unroutable, 12, StageOutcome::Done),
                line(Stage::LameDuck, 1_000, StageOutcome::Skipped("none".into())),
            ],
        };
        assert!(report.is_clean());
        let drain = line(Stage::Drain, 4_000, StageOutcome::TimedOut("work".into()));
        report.stages.push(drain);
        assert!(!report.is_clean());
        assert_eq!(report.took(), Duration::from_millis(5_012));
        assert_eq!(
            report.to_string(),
            "shut down: signal SIGTERM\n\
             not routable   0.012 s  done\n\
             lame duck      1.000 s  left out: none\n\
             drain          4.000 s  not done in time: work"
        );
    }

    #[test]
    fn all_stages_by_default_fit_into_what_docker_waits() {
        let all: Duration = Stage::ALL.iter().map(|stage| stage.deadline()).sum();
        assert!(all < Duration::from_secs(10), "{all:?}");
        let numbers: Vec<u8> = Stage::ALL.iter().map(|stage| stage.number()).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
    }
}
