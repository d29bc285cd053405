//! Picking an endpoint.
