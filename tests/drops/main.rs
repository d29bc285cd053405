//! Every public future of the crate, dropped at every await point: nothing is left behind.
//!
//! A case makes one future, in some situation. It is polled 0, 1, 2, … times, until it is done, and
//! dropped: between two polls, with news that it has not seen, outside of its runtime, with it, and
//! after it. What it began must end soon, in the background: no lock is kept, no place, no session,
//! no service, no query and no task, and nothing panics. Everything runs on the embedded agent under
//! a paused clock, so that each of some ten thousand runs takes a millisecond.
//!
//! `tests/tidy.rs` compares the names of the cases with the futures of the crate.

mod calls;
mod elections;
mod fenced;
mod leases;
mod lifecycles;
mod locks;
mod registrations;
mod semaphores;
mod settings;
mod stage;
mod watches;
