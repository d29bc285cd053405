//! Opening a TCP connection to a target.

use std::io;

use tokio::net::TcpStream;

use crate::endpoint::{Host, Target};

/// Connects; the addresses of a name are tried in turn. The caller sets the limit.
pub(crate) async fn dial(target: &Target) -> io::Result<TcpStream> {
    let stream = match target.host() {
        Host::Ip(ip) => TcpStream::connect((*ip, target.port())).await?,
        Host::Name(name) => TcpStream::connect((&**name, target.port())).await?,
    };
    // Requests and responses are written as a whole: waiting for more only adds latency.
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_name_is_resolved_and_all_its_addresses_are_tried() {
        // "localhost" may be ::1 first; the listener is on IPv4 only.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = Target::new(Host::Name("localhost".into()), port).unwrap();
        let stream = dial(&target).await.unwrap();
        assert!(stream.nodelay().unwrap());
    }

    #[tokio::test]
    async fn a_refused_connection_is_an_error_with_its_cause() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::try_from(listener.local_addr().unwrap()).unwrap();
        drop(listener);
        let error = dial(&target).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
