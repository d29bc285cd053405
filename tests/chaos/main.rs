//! What the balancer promises, on real processes under open-loop load on a real Consul.
//!
//! Each module is named after the goal that it proves. Requests leave at their time whether earlier
//! ones are answered or not, as those of many callers do. Counts are exact; what depends on how
//! busy the machine is (a latency) is compared with the same run's own calm part, with room.
//!
//! `LICTOR_LONG=1` (or `tests/run --long`) runs them at 1,500 requests a second, for a minute and
//! more.

mod load;
mod rolling;
mod stage;

mod consul {
    mod all_down;
    mod containers;
    mod g1;
    mod g2;
    mod g3;
    mod g4;
    mod g6;
    mod partition;
    mod rolling;
    mod storm;
}
