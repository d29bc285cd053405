//! The paved road.
