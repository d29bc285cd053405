//! Raw TCP connections to a service that speaks a protocol of its own.
//!
//! Three servers greet whoever connects with a line. Connections are spread by how many are open. Then
//! one server greets with `loading`: the client says that this connection is of no use and gets one to
//! another server, and for a while none to that one. In the end one dies, and is passed over.
//!
//! ```text
//! cargo run -p lictor-examples --example raw_tcp
//! cargo run -p lictor-examples --example raw_tcp -- --consul http://127.0.0.1:8500
//! ```

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lictor_examples::backend::{self, Backend};
use lictor_examples::place::{Options, Place};
use lictor_examples::summary::{Calls, Summary};
use lictor_examples::{Result, example};
use lictor_tower::tcp::{Connection, Dialer};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

#[tokio::main]
async fn main() -> ExitCode {
    example("raw_tcp", std::env::args().skip(1), run).await
}

async fn run(options: &Options) -> Result<Summary> {
    let place = Place::find(options).await?;
    let client = place.client()?;
    // A name of its own, so that a second run on the same Consul is not in the way.
    let service = format!("tcp-{}", std::process::id());
    let loading = Arc::new(AtomicBool::new(false));
    let mut servers = Vec::new();
    for name in ["one", "two", "three"] {
        let loading = Arc::clone(&loading);
        let greet = move |mut stream: tokio::net::TcpStream| {
            let is_loading = name == "two" && loading.load(Ordering::Relaxed);
            async move {
                let greeting = if is_loading { "loading" } else { name };
                let _ = stream.write_all(format!("{greeting}\n").as_bytes()).await;
                // It stays open until the client has gone.
                let _ = stream.read(&mut [0]).await;
            }
        };
        servers.push(Backend::start(&client, &service, name, greet).await?);
    }
    let dialer = Dialer::new(&client, &service)?;

    // Thirty connections that are open at one time.
    let mut spread = Calls::default();
    let mut open = Vec::new();
    for _ in 0..30 {
        match connect(&dialer).await {
            Ok((name, connection)) => {
                spread.note(Ok(name));
                open.push(connection);
            }
            Err(error) => spread.note(Err(error)),
        }
    }
    drop(open);

    // A server that accepts connections and is of no use: only its greeting tells.
    loading.store(true, Ordering::Relaxed);
    let mut useful = Calls::default();
    for _ in 0..30 {
        useful.note(connect(&dialer).await.map(|(name, _)| name));
    }

    // And one that is dead, although Consul does not know yet.
    if let Some(server) = servers.first_mut() {
        server.die().await;
    }
    let mut alive = Calls::default();
    for _ in 0..30 {
        alive.note(connect(&dialer).await.map(|(name, _)| name));
    }

    backend::close(servers).await?;
    Ok(Summary {
        agent: place.describe().to_owned(),
        parts: vec![
            ("30 connections, all open at once", spread),
            ("30 connections, server two is loading", useful),
            ("30 connections, server one is dead as well", alive),
        ],
    })
}

/// A connection to a server that is of use, and the server's name.
async fn connect(dialer: &Dialer) -> Result<(String, BufReader<Connection>)> {
    let mut connection = BufReader::new(dialer.connect().await?);
    loop {
        let mut greeting = String::new();
        let heard = connection.read_line(&mut greeting).await;
        match greeting.trim_end() {
            name if heard.is_ok() && !name.is_empty() && name != "loading" => {
                return Ok((name.to_owned(), connection));
            }
            _ => connection = BufReader::new(connection.into_inner().next().await?),
        }
    }
}
