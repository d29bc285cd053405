//! Endpoint sets as tower's stream of changes.
