//! What can go wrong on the way to an endpoint.
