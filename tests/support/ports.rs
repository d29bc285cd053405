//! Ports for programs that must be told one.
//!
//! They lie below the range from which the system takes the ports of outgoing connections, so
//! that no connection of another test can take one between its choice and its use.

use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 10_000;
const COUNT: u32 = 20_000;

static NEXT: AtomicU32 = AtomicU32::new(u32::MAX);

/// A port of the loopback interface that is free for TCP and for UDP.
///
/// No port is given out twice in one process before all others were. Another process may still
/// take it, so whoever starts a program on it tries again with another when that fails.
///
/// # Panics
///
/// When none of 20,000 ports is free.
#[must_use]
pub fn free_port() -> u16 {
    if NEXT.load(Ordering::Relaxed) == u32::MAX {
        // Where a process begins is random, so that two processes rarely meet.
        let seed = RandomState::new().hash_one(std::process::id());
        let start = u32::try_from(seed % u64::from(COUNT)).expect("less than COUNT");
        NEXT.compare_exchange(u32::MAX, start, Ordering::Relaxed, Ordering::Relaxed)
            .ok();
    }
    for _ in 0..COUNT {
        let at = NEXT
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| {
                Some((at + 1) % COUNT)
            })
            .expect("the closure always answers");
        let port = u16::try_from(FIRST + at).expect("below 30,000");
        let here = (Ipv4Addr::LOCALHOST, port);
        if TcpListener::bind(here).is_ok() && UdpSocket::bind(here).is_ok() {
            return port;
        }
    }
    panic!("no port between {FIRST} and {} is free", FIRST + COUNT);
}

/// Several ports as by [`free_port`], all different.
#[must_use]
pub fn free_ports<const N: usize>() -> [u16; N] {
    std::array::from_fn(|_| free_port())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ports_of_one_process_differ() {
        let ports = free_ports::<50>();
        assert_eq!(ports.iter().collect::<HashSet<_>>().len(), 50);
    }

    #[test]
    fn a_port_that_is_taken_is_not_given_out() {
        let taken = free_port();
        let next = taken + 1;
        let _tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, next));
        let _udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, next));
        assert_ne!(free_port(), next);
    }
}
