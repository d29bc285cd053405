//! The connections of a channel, against real servers: TLS, what is spoken on it, and how they end.

mod alerts;
mod alpn;
mod draining;
mod handshakes;
mod names;
mod server;
