//! Where endpoint sets come from.
