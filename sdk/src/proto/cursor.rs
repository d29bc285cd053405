//! The index rules of blocking queries.
//!
//! Consul's documentation ("Blocking queries, implementation details") and what was measured on
//! the real program. An index is only a hint: every rule here exists because somewhere a client
//! that trusted it went on waiting while the data had changed.

use std::time::Duration;

/// Where a watch stands.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Cursor {
    index: Option<u64>,
    /// The index of what was last believed, whether or not it is sent.
    believed: u64,
}

/// What an answer's index says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    /// The content may have changed: look at it.
    Look,
    /// The content is older than what is known, or that was lost: the leader is to say which.
    Doubt,
    /// The wait ran out: the content is confirmed and need not be looked at.
    Unchanged,
    /// The index cannot be trusted: read again at once without one.
    Reread,
}

impl Cursor {
    /// The index to send, if any: the first request goes without.
    pub(crate) fn index(self) -> Option<u64> {
        self.index
    }

    /// Takes in a good answer that had `index`, `elapsed` after a request that asked to `wait`.
    pub(crate) fn advance(
        &mut self,
        index: Option<u64>,
        elapsed: Duration,
        wait: Duration,
    ) -> Step {
        // "Sanity check index is greater than zero": a zero would turn the next query into one
        // that never blocks. Without any index there is nothing to wait from.
        let Some(index) = index.map(|index| index.max(1)) else {
            self.index = None;
            return Step::Look;
        };
        let Some(before) = self.index.replace(index) else {
            // A server that has just been elected serves reads before it has read its log back:
            // an empty list of what all are still registered for (measured on 1.8.7).
            if index < self.believed {
                self.index = None;
                return Step::Doubt;
            }
            self.believed = index;
            return Step::Look;
        };
        if index < before {
            // "Reset the index if it goes backwards". A query with an index larger than the
            // server's blocks for the whole wait even though data changes (measured).
            self.index = None;
            return Step::Reread;
        }
        self.believed = index;
        if index > before {
            return Step::Look;
        }
        // The same index, and well before the wait was over: the server replaced its state store
        // (snapshot restore) and answered with the old content (measured). Its index may now be
        // lower than ours.
        if elapsed < wait.mul_f64(0.9) {
            self.index = None;
            return Step::Reread;
        }
        Step::Unchanged
    }

    /// Takes in the index of an answer that is beyond doubt.
    pub(crate) fn believe(&mut self, index: Option<u64>) {
        self.index = index.map(|index| index.max(1));
        self.believed = self.index.unwrap_or_default();
    }

    /// Forgets the index: the next request reads the content as it is.
    pub(crate) fn reset(&mut self) {
        self.index = None;
    }
}

/// How long a blocking query may take before it is given up.
///
/// The server adds up to a sixteenth of the wait ("a small random amount of additional wait time
/// … up to wait/16"), and while it has no leader it holds a request for `rpc_hold_timeout`, 7 s,
/// before it answers: 10 s of margin cover that and the way.
pub(crate) fn deadline(wait: Duration) -> Duration {
    wait + wait / 16 + Duration::from_secs(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(60);
    const SOON: Duration = Duration::from_secs(1);

    fn at(index: u64) -> Cursor {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.advance(Some(index), SOON, WAIT), Step::Look);
        cursor
    }

    #[test]
    fn the_first_answer_is_looked_at() {
        assert_eq!(at(7).index(), Some(7));
    }

    #[test]
    fn a_larger_index_is_looked_at_and_sent_next() {
        let mut cursor = at(7);
        assert_eq!(cursor.advance(Some(9), SOON, WAIT), Step::Look);
        assert_eq!(cursor.index(), Some(9));
    }

    #[test]
    fn an_index_that_went_backwards_is_dropped_and_the_content_read_again() {
        let mut cursor = at(7);
        assert_eq!(cursor.advance(Some(6), SOON, WAIT), Step::Reread);
        assert_eq!(cursor.index(), None);
        assert_eq!(cursor.advance(Some(7), SOON, WAIT), Step::Look);
    }

    #[test]
    fn content_that_is_older_than_what_was_believed_is_in_doubt_until_it_is_confirmed() {
        let mut cursor = at(7);
        cursor.reset();
        for _ in 0..3 {
            assert_eq!(cursor.advance(Some(5), SOON, WAIT), Step::Doubt);
            assert_eq!(cursor.index(), None);
        }
        cursor.believe(Some(6));
        assert_eq!(cursor.index(), Some(6));
        cursor.reset();
        assert_eq!(cursor.advance(Some(6), SOON, WAIT), Step::Look);
    }

    #[test]
    fn content_that_is_as_old_as_what_was_believed_is_not_in_doubt() {
        let mut cursor = at(7);
        assert_eq!(cursor.advance(Some(8), SOON, WAIT), Step::Look);
        assert_eq!(cursor.advance(Some(8), WAIT, WAIT), Step::Unchanged);
        cursor.reset();
        assert_eq!(cursor.advance(Some(8), SOON, WAIT), Step::Look);
    }

    #[test]
    fn the_same_index_after_the_whole_wait_confirms_the_content() {
        let mut cursor = at(7);
        assert_eq!(cursor.advance(Some(7), WAIT, WAIT), Step::Unchanged);
        assert_eq!(cursor.index(), Some(7));
    }

    #[test]
    fn the_same_index_too_early_means_that_the_state_was_replaced() {
        let mut cursor = at(510);
        assert_eq!(cursor.advance(Some(510), SOON, WAIT), Step::Reread);
        // The restored server is at a lower index, which the leader is to confirm.
        assert_eq!(cursor.advance(Some(480), SOON, WAIT), Step::Doubt);
        cursor.believe(Some(480));
        assert_eq!(cursor.index(), Some(480));
    }

    #[test]
    fn a_zero_index_counts_as_one_so_that_the_next_query_blocks() {
        assert_eq!(at(0).index(), Some(1));
    }

    #[test]
    fn an_answer_without_index_is_looked_at_and_nothing_is_waited_from() {
        let mut cursor = at(7);
        assert_eq!(cursor.advance(None, SOON, WAIT), Step::Look);
        assert_eq!(cursor.index(), None);
    }

    #[test]
    fn the_deadline_covers_the_servers_jitter_and_a_leaderless_hold() {
        assert_eq!(
            deadline(Duration::from_secs(160)),
            Duration::from_secs(160 + 10 + 10)
        );
    }
}
