//! Consul durations: Go duration strings and `Duration`.
