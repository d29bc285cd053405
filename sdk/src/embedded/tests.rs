use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::Agent;

async fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    for _ in 0..500 {
        if holds() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

async fn ask(addr: SocketAddr, request: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

const LEADER: &str = "GET /v1/status/leader HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
const PARKED: &str = "GET /v1/kv/k?index=9999 HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn it_speaks_http_on_a_free_port() {
    let agent = Agent::start().await.unwrap();
    assert_eq!(agent.http_url(), format!("http://{}", agent.http_addr()));
    let mut answer = String::new();
    let mut stream = ask(agent.http_addr(), LEADER).await.unwrap();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\"127.0.0.1:8300\""), "{answer}");
    agent.stop().await;
}

#[tokio::test]
async fn a_closed_socket_ends_its_blocking_query_at_once() {
    let agent = Agent::start().await.unwrap();
    let stream = ask(agent.http_addr(), PARKED).await.unwrap();
    assert!(eventually(|| agent.requests().open_queries() == 1).await);
    drop(stream);
    assert!(eventually(|| agent.requests().open_queries() == 0).await);
}

#[tokio::test]
async fn stopping_closes_the_sockets_and_the_connections() {
    let agent = Agent::start().await.unwrap();
    let (http, dns) = (agent.http_addr(), agent.dns_addr());
    let mut parked = ask(http, PARKED).await.unwrap();
    assert!(eventually(|| agent.requests().open_queries() == 1).await);
    let other = agent.clone();
    agent.stop().await;
    assert_eq!(other.requests().open_queries(), 0);
    assert_eq!(parked.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert!(TcpStream::connect(http).await.is_err());
    assert!(TcpStream::connect(dns).await.is_err());
    assert!(UdpSocket::bind(dns).await.is_ok());
}

#[tokio::test]
async fn dropping_the_last_clone_closes_the_sockets() {
    let agent = Agent::start().await.unwrap();
    let http = agent.http_addr();
    let other = agent.clone();
    drop(agent);
    assert!(TcpStream::connect(http).await.is_ok());
    drop(other);
    for _ in 0..500 {
        if TcpStream::connect(http).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the port is still open");
}

/// `consul.` SOA, with the identifier 7.
const QUESTION: &[u8] = b"\0\x07\0\0\0\x01\0\0\0\0\0\0\x06consul\0\0\x06\0\x01";

#[tokio::test]
async fn it_speaks_dns_on_one_port_for_both_transports() {
    let agent = Agent::start().await.unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    udp.send_to(QUESTION, agent.dns_addr()).await.unwrap();
    let mut packet = [0; 512];
    let length = udp.recv(&mut packet).await.unwrap();
    assert_eq!(packet[..2], [0, 7]);

    let mut tcp = TcpStream::connect(agent.dns_addr()).await.unwrap();
    for _ in 0..2 {
        tcp.write_u16(u16::try_from(QUESTION.len()).unwrap())
            .await
            .unwrap();
        tcp.write_all(QUESTION).await.unwrap();
        let told = usize::from(tcp.read_u16().await.unwrap());
        let mut answer = vec![0; told];
        tcp.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, packet[..length]);
    }
}

#[test]
fn starting_outside_a_runtime_is_an_error() {
    let mut start = std::pin::pin!(Agent::start());
    let waker = std::task::Waker::noop();
    let mut context = std::task::Context::from_waker(waker);
    let polled = start.as_mut().poll(&mut context);
    assert!(matches!(polled, std::task::Poll::Ready(Err(_))));
}

#[tokio::test]
async fn an_agent_that_left_closes_connections_and_is_back_at_its_port() {
    let agent = Agent::start().await.unwrap();
    agent.leave();
    let mut answer = String::new();
    let mut stream = ask(agent.http_addr(), LEADER).await.unwrap();
    let read = stream.read_to_string(&mut answer).await.unwrap_or(0);
    assert_eq!((read, answer.as_str()), (0, ""));
    let mut tcp = TcpStream::connect(agent.dns_addr()).await.unwrap();
    tcp.write_u16(u16::try_from(QUESTION.len()).unwrap())
        .await
        .unwrap();
    tcp.write_all(QUESTION).await.unwrap();
    assert_eq!(tcp.read(&mut [0; 1]).await.unwrap_or(0), 0);

    agent.rejoin();
    let mut stream = ask(agent.http_addr(), LEADER).await.unwrap();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}
