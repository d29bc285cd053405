//! What a server of HTTP/2 says of its connection, read as it passes by.

use std::sync::Arc;

use super::room::Room;

const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
/// A flag of settings: they are ours, which the server acknowledges.
const ACK: u8 = 1;
const MAX_CONCURRENT_STREAMS: u16 = 3;

/// Follows the frames that a server sends, and tells the room of the connection what they change.
///
/// hyper knows how many streams a server allows and that it goes away, but does not say so to those
/// who are about to send. What is no HTTP/2 is for hyper to refuse: here it changes nothing that matters.
#[derive(Debug)]
pub(super) struct Frames {
    room: Arc<Room>,
    at: At,
    /// The server has not yet said what it allows.
    is_new: bool,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug)]
enum At {
    /// The head of a frame, of which so many bytes have come.
    Head(u8, u128),
    /// Settings, of which so many bytes are to come: an entry, of which so many have.
    Settings(u32, u8, u64),
    /// What is of no interest, of which so many bytes are to come.
    Rest(u32),
}

const START: At = At::Head(0, 0);
/// Bytes of a frame's head (RFC 9113, 4.1).
const HEAD: u8 = 9;
/// Bytes of an entry of settings (RFC 9113, 6.5.1).
const ENTRY: u8 = 6;

impl Frames {
    pub(super) fn new(room: Arc<Room>) -> Self {
        Self {
            room,
            at: START,
            is_new: true,
        }
    }

    /// Goes on with what has been read.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        loop {
            if let At::Rest(left) = self.at {
                let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                bytes = bytes.get(skipped..).unwrap_or_default();
                let left = left.saturating_sub(u32::try_from(skipped).unwrap_or(u32::MAX));
                self.at = if left == 0 { START } else { At::Rest(left) };
            }
            let Some((&byte, rest)) = bytes.split_first() else {
                return;
            };
            bytes = rest;
            self.at = match self.at {
                At::Head(have, head) => {
                    let head = head << 8 | u128::from(byte);
                    if have + 1 == HEAD {
                        self.begin(head)
                    } else {
                        At::Head(have + 1, head)
                    }
                }
                At::Settings(left, have, entry) => {
                    let entry = entry << 8 | u64::from(byte);
                    let (have, entry) = if have + 1 == ENTRY {
                        self.set(entry);
                        (0, 0)
                    } else {
                        (have + 1, entry)
                    };
                    match left.saturating_sub(1) {
                        0 => START,
                        left => At::Settings(left, have, entry),
                    }
                }
                // None is left of it, or nothing was read.
                At::Rest(left) => At::Rest(left),
            };
        }
    }

    /// Begins what comes after the head of a frame.
    fn begin(&mut self, head: u128) -> At {
        let [.., a, b, c, kind, flags, _, _, _, _] = head.to_be_bytes();
        let length = u32::from_be_bytes([0, a, b, c]);
        match kind {
            // A client that gets this "MUST NOT open additional streams" (RFC 9113, 6.8).
            GOAWAY => self.room.close(),
            SETTINGS if flags & ACK == 0 => {
                // Without a word the first settings allow any number, and later ones as many as before.
                if std::mem::take(&mut self.is_new) {
                    self.room.allow(usize::MAX);
                }
                if length > 0 {
                    return At::Settings(length, 0, 0);
                }
            }
            _ => {}
        }
        if length == 0 { START } else { At::Rest(length) }
    }

    fn set(&self, entry: u64) {
        let [_, _, key @ .., a, b, c, d] = entry.to_be_bytes();
        if u16::from_be_bytes(key) == MAX_CONCURRENT_STREAMS {
            let most = u32::from_be_bytes([a, b, c, d]);
            self.room.allow(usize::try_from(most).unwrap_or(usize::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::room::{AT_FIRST, Ticket};
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let [_, _, _, _, _, a, b, c] = payload.len().to_be_bytes();
        [&[a, b, c, kind, flags, 0, 0, 0, 0], payload].concat()
    }

    fn places(room: &Arc<Room>) -> usize {
        let mut inside = Vec::new();
        while inside.len() < 1_000 {
            let mut ticket = Ticket::new(room);
            if !ticket.enter() {
                break;
            }
            inside.push(ticket);
        }
        inside.len()
    }

    /// However it is cut into pieces.
    #[test]
    fn settings_and_the_end_are_found_among_other_frames() {
        let limit = |most: u8| [0, 4, 0, 1, 0, 0, 0, 3, 0, 0, 0, most, 0, 5, 0, 0, 64, 0];
        let said = [
            frame(SETTINGS, 0, &limit(2)),
            // What looks like settings in the data of a stream is data.
            frame(0, 1, &frame(SETTINGS, 0, &limit(9))),
            frame(SETTINGS, ACK, &[]),
            frame(6, 0, &[7; 8]),
            frame(SETTINGS, 0, &[0, 4, 0, 0, 0, 0]),
        ]
        .concat();
        let goaway = frame(GOAWAY, 0, &[0; 8]);
        for piece in 1..=said.len() {
            let room = Arc::default();
            let mut frames = Frames::new(Arc::clone(&room));
            assert_eq!(places(&room), AT_FIRST);
            for some in said.chunks(piece) {
                frames.pass(some);
            }
            assert_eq!((places(&room), room.is_closed()), (2, false), "{piece}");
            frames.pass(&frame(SETTINGS, 0, &limit(5)));
            assert_eq!(places(&room), 5);
            for some in goaway.chunks(piece) {
                frames.pass(some);
            }
            assert!(room.is_closed());
        }
    }

    #[test]
    fn a_server_that_names_no_limit_has_none() {
        let room = Arc::default();
        let mut frames = Frames::new(Arc::clone(&room));
        frames.pass(&frame(SETTINGS, 0, &[]));
        assert_eq!(places(&room), 1_000);
    }
}
