//! Instances of a service for the examples: they register themselves, serve, and leave or die.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lictor::Client;
use lictor::api::agent::{CheckDefinition, ServiceDefinition};
use lictor::registration::Registration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::{Error, Result};

/// An instance that serves each connection as it is told.
pub struct Backend {
    /// Where it listens.
    pub addr: SocketAddr,
    registration: Registration,
    tasks: JoinSet<()>,
}

impl Backend {
    /// Listens, serves, and registers then: nobody is sent where nobody listens.
    ///
    /// # Errors
    ///
    /// If there is no port, or the registration fails.
    pub async fn start<S, F>(client: &Client, service: &str, name: &str, serve: S) -> Result<Self>
    where
        S: Fn(TcpStream) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                // Answers are written as a whole: waiting for more only adds latency.
                let _ = stream.set_nodelay(true);
                connections.spawn(serve(stream));
                while connections.try_join_next().is_some() {}
            }
        });
        let definition = ServiceDefinition::new(service)
            .id(format!("{service}-{name}"))
            .listener(addr)
            .check(CheckDefinition::alive_only(Duration::from_secs(15)));
        Ok(Self {
            addr,
            registration: client.register(definition).await?,
            tasks,
        })
    }

    /// An instance that answers every HTTP request with its name.
    ///
    /// # Errors
    ///
    /// Those of [`start`](Self::start).
    pub async fn http(client: &Client, service: &str, name: &str) -> Result<Self> {
        Self::switched(client, service, name, Duration::ZERO, Arc::default()).await
    }

    /// The same, but that an answer takes its time, and is a 500 while a switch is on.
    ///
    /// # Errors
    ///
    /// Those of [`start`](Self::start).
    pub async fn switched(
        client: &Client,
        service: &str,
        name: &str,
        takes: Duration,
        fails: Arc<AtomicBool>,
    ) -> Result<Self> {
        let said: Arc<str> = name.into();
        let serve = move |stream| {
            let (said, fails) = (Arc::clone(&said), Arc::clone(&fails));
            async move {
                let answer = service_fn(|_: Request<Incoming>| {
                    let said = Bytes::from(said.to_string());
                    let mut answer = Response::new(Full::new(said));
                    if fails.load(Ordering::Relaxed) {
                        *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                    }
                    async move {
                        if !takes.is_zero() {
                            tokio::time::sleep(takes).await;
                        }
                        Ok::<_, Infallible>(answer)
                    }
                });
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                // A client that closes is no failure of ours.
                let _ = connection.await;
            }
        };
        Self::start(client, service, name, serve).await
    }

    /// Closes all its sockets at once, as a crash would. Consul goes on to list it as passing.
    ///
    /// It returns a moment later: a call that crosses with the crash may be lost, for nobody knows
    /// whether it had arrived, and that is not what the examples are about.
    pub async fn die(&mut self) {
        self.tasks.shutdown().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    /// Takes it out of Consul; it serves on until it is dropped.
    ///
    /// # Errors
    ///
    /// If Consul cannot be told.
    pub async fn deregister(self) -> Result<JoinSet<()>> {
        self.registration.close().await?;
        Ok(self.tasks)
    }
}

/// Three instances that answer every HTTP request with their names.
///
/// # Errors
///
/// Those of [`Backend::start`].
pub async fn three(client: &Client, service: &str) -> Result<Vec<Backend>> {
    let mut backends = Vec::new();
    for name in ["one", "two", "three"] {
        backends.push(Backend::http(client, service, name).await?);
    }
    Ok(backends)
}

/// The name that an instance has answered with.
///
/// # Errors
///
/// If the answer breaks off.
pub async fn name_in<B>(answer: Response<B>) -> Result<String>
where
    B: Body<Error: Into<Error>>,
{
    let body = answer.into_body().collect().await.map_err(Into::into)?;
    Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
}

/// Takes all of them out of Consul.
///
/// # Errors
///
/// If Consul cannot be told.
pub async fn close(backends: Vec<Backend>) -> Result<()> {
    for backend in backends {
        drop(backend.deregister().await?);
    }
    Ok(())
}
