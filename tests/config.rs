//! How a client reaches its agent and who it says it is: TLS, unix sockets, path prefixes, tokens.

use std::error::Error as _;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lictor::transport::Tls;
use lictor::{Client, Error, ErrorKind};
use support::certs::{Authority, Identity};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto::ring};

const SOON: Duration = Duration::from_secs(20);

/// A folder that goes with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        use std::hash::{BuildHasher, RandomState};
        let name = format!("lictor-config-{:016x}", RandomState::new().hash_one(0));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// A server that answers every request with a leader, and remembers the heads of the requests and
/// the names that callers asked for in TLS.
struct Server {
    address: String,
    seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    heads: Mutex<Vec<String>>,
    names: Mutex<Vec<Option<String>>>,
}

/// Where callers come from.
enum Door {
    Tcp(TcpListener),
    Tls(TcpListener, TlsAcceptor),
    Unix(UnixListener),
}

impl Server {
    /// HTTP over TLS; `callers` is who vouches for them, if they must show themselves.
    async fn tls(identity: &Identity, callers: Option<&Authority>) -> Self {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match callers {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                let root = CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap();
                roots.add(root).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
        let config = builder.with_single_cert(vec![certificate], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap());
        Self::run(address, Door::Tls(listener, acceptor))
    }

    /// Plain HTTP over TCP.
    async fn plain() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        Self::run(address, Door::Tcp(listener))
    }

    /// Plain HTTP over a unix socket.
    fn unix(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let address = format!("unix://{}", path.display());
        Self::run(address, Door::Unix(listener))
    }

    fn run(address: String, door: Door) -> Self {
        let seen = Arc::new(Seen::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(door, Arc::clone(&seen)));
        Self {
            address,
            seen,
            _tasks: tasks,
        }
    }

    /// What was asked so far: request line and headers.
    fn heads(&self) -> Vec<String> {
        self.seen.heads.lock().unwrap().clone()
    }

    /// The names that callers asked for in TLS.
    fn names(&self) -> Vec<Option<String>> {
        self.seen.names.lock().unwrap().clone()
    }

    /// A client of it.
    fn client(&self, tls: Tls) -> Client {
        let client = Client::builder().address(self.address.as_str()).tls(tls);
        client.build().unwrap()
    }
}

async fn accept(door: Door, seen: Arc<Seen>) {
    // They end with this task.
    let mut connections = JoinSet::new();
    loop {
        let seen = Arc::clone(&seen);
        match &door {
            Door::Tcp(listener) => {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(async move { serve(stream, &seen).await.unwrap_or_default() });
            }
            Door::Unix(listener) => {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(async move { serve(stream, &seen).await.unwrap_or_default() });
            }
            Door::Tls(listener, acceptor) => {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    // Callers that refuse the certificate are what some tests are about.
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let name = stream.get_ref().1.server_name().map(str::to_owned);
                        seen.names.lock().unwrap().push(name);
                        serve(stream, &seen).await.unwrap_or_default();
                    }
                });
            }
        }
    }
}

/// Answers requests without bodies until the caller leaves.
async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, seen: &Seen) -> io::Result<()> {
    let mut taken = Vec::new();
    loop {
        if stream.read_buf(&mut taken).await? == 0 {
            return Ok(());
        }
        if !taken.ends_with(b"\r\n\r\n") {
            continue;
        }
        let head = String::from_utf8_lossy(&taken).to_lowercase();
        seen.heads.lock().unwrap().push(head);
        taken.clear();
        let body = r#""127.0.0.1:8300""#;
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
    }
}

/// Whether a client gets through.
async fn reaches(client: &Client) -> bool {
    let asked = client.status().leader();
    match tokio::time::timeout(SOON, asked.send())
        .await
        .expect("an answer in time")
    {
        Ok(leader) => leader.as_deref() == Some("127.0.0.1:8300"),
        Err(_) => false,
    }
}

/// The error with which a client fails to get through, with its causes.
async fn refusal(client: &Client) -> (ErrorKind, String) {
    let asked = client.status().leader();
    let err = tokio::time::timeout(SOON, asked.send())
        .await
        .expect("an answer in time");
    told(&err.unwrap_err())
}

fn told(err: &Error) -> (ErrorKind, String) {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text += &format!(": {err}");
        cause = err.source();
    }
    (err.kind(), text)
}

fn not_built(address: &str, tls: Tls) -> String {
    let client = Client::builder().address(address).tls(tls);
    let (kind, text) = told(&client.build().unwrap_err());
    assert_eq!(kind, ErrorKind::Config, "{text}");
    text
}

#[tokio::test]
async fn a_root_is_trusted_from_a_file_a_folder_and_memory() {
    let (folder, authority) = (Folder::new(), Authority::new("own"));
    let other = Authority::new("other");
    let server = Server::tls(&authority.issue(&["127.0.0.1"]), None).await;
    let file = folder.file("ca.pem", authority.pem());
    // More than one root may stand in a file, and other files beside it.
    let both = folder.file("both.pem", &format!("{}\n{}", other.pem(), authority.pem()));
    for tls in [
        Tls::new().ca_file(&file),
        Tls::new().ca_file(&both),
        Tls::new().ca_dir(&folder.0),
        Tls::new().ca_pem(authority.pem()),
    ] {
        assert!(reaches(&server.client(tls.clone())).await, "{tls:?}");
    }
}

#[tokio::test]
async fn a_certificate_of_somebody_else_is_refused() {
    let authority = Authority::new("own");
    let server = Server::tls(&authority.issue(&["127.0.0.1"]), None).await;
    let other = Authority::new("other");
    for tls in [Tls::new().ca_pem(other.pem()), Tls::new()] {
        let (kind, text) = refusal(&server.client(tls)).await;
        assert_eq!(kind, ErrorKind::Connect, "{text}");
        assert!(text.to_lowercase().contains("certificate"), "{text}");
    }
    assert!(server.heads().is_empty(), "nothing was sent");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused_unless_that_name_is_expected() {
    let authority = Authority::new("own");
    let server = Server::tls(&authority.issue(&["consul.internal"]), None).await;
    let trusting = || Tls::new().ca_pem(authority.pem());
    let (kind, text) = refusal(&server.client(trusting())).await;
    assert_eq!(kind, ErrorKind::Connect, "{text}");
    assert!(text.to_lowercase().contains("certificate"), "{text}");
    assert!(server.heads().is_empty(), "nothing was sent");

    assert!(reaches(&server.client(trusting().server_name("consul.internal"))).await);
    // The reference client takes a name with a port, too.
    assert!(reaches(&server.client(trusting().server_name("consul.internal:8501"))).await);
    let wrong = server.client(trusting().server_name("other.internal"));
    assert_eq!(refusal(&wrong).await.0, ErrorKind::Connect);
    let asked_for = Some("consul.internal".to_owned());
    assert_eq!(server.names(), [asked_for.clone(), asked_for]);
}

#[tokio::test]
async fn any_certificate_is_taken_only_where_that_is_asked_for_by_name() {
    let stranger = Authority::new("stranger").issue(&["elsewhere.example"]);
    let server = Server::tls(&stranger, None).await;
    assert!(!reaches(&server.client(Tls::new())).await);
    assert!(reaches(&server.client(Tls::new().danger_skip_verification())).await);
}

#[tokio::test]
async fn a_client_shows_its_certificate_where_the_agent_wants_one() {
    let (folder, authority) = (Folder::new(), Authority::new("own"));
    let server = Server::tls(&authority.issue(&["127.0.0.1"]), Some(&authority)).await;
    let trusting = || Tls::new().ca_pem(authority.pem());
    let (kind, text) = refusal(&server.client(trusting())).await;
    assert!(
        matches!(kind, ErrorKind::Connect | ErrorKind::Transport),
        "{text}"
    );

    let own = authority.issue(&["client"]);
    let shown = trusting().client_certificate_pem(own.certificate.as_str(), own.key.as_str());
    assert!(reaches(&server.client(shown)).await);
    let files = own.write(&folder.0, "client");
    let shown = trusting().client_certificate_files(&files.certificate, &files.key);
    assert!(reaches(&server.client(shown)).await);

    let stranger = Authority::new("stranger").issue(&["client"]);
    let shown =
        trusting().client_certificate_pem(stranger.certificate.as_str(), stranger.key.as_str());
    let (kind, text) = refusal(&server.client(shown)).await;
    assert!(
        matches!(kind, ErrorKind::Connect | ErrorKind::Transport),
        "{text}"
    );
    assert_eq!(server.heads().len(), 2);
}

#[tokio::test]
async fn tls_settings_that_cannot_work_are_told_when_the_client_is_built() {
    let (folder, authority) = (Folder::new(), Authority::new("own"));
    let address = "https://127.0.0.1:1";
    let missing = folder.0.join("missing.pem");
    let text = not_built(address, Tls::new().ca_file(&missing));
    assert!(text.contains("missing.pem"), "{text}");
    let text = not_built(address, Tls::new().ca_dir(&missing));
    assert!(text.contains("missing.pem"), "{text}");
    let garbage = folder.file("garbage.pem", "not a certificate");
    let text = not_built(address, Tls::new().ca_file(&garbage));
    assert!(text.contains("garbage.pem"), "{text}");
    not_built(address, Tls::new().ca_pem("garbage"));

    let (one, two) = (authority.issue(&["one"]), authority.issue(&["two"]));
    let pem = |certificate: &str, key: &str| {
        Tls::new().client_certificate_pem(certificate.to_owned(), key.to_owned())
    };
    for tls in [
        pem(&one.certificate, &two.key),
        pem("garbage", &one.key),
        pem(&one.certificate, "garbage"),
        pem(&one.certificate, &one.certificate),
        Tls::new().client_certificate_files(&missing, &missing),
        Tls::new().server_name("not a host name"),
    ] {
        let text = not_built(address, tls);
        // A private key is a secret.
        assert!(!text.contains("PRIVATE"), "{text}");
    }
    let shown = format!("{:?}", pem(&one.certificate, &one.key));
    assert!(!shown.contains("PRIVATE"), "{shown}");
}

#[tokio::test]
async fn the_wrong_scheme_fails_in_bounded_time() {
    let authority = Authority::new("own");
    let tls = Server::tls(&authority.issue(&["127.0.0.1"]), None).await;
    let plain = Server::plain().await;
    let as_plain = tls.address.replace("https://", "http://");
    let client = Client::builder().address(as_plain).build().unwrap();
    assert_eq!(refusal(&client).await.0, ErrorKind::Transport);

    let as_tls = plain.address.replace("http://", "https://");
    let client = Client::builder()
        .address(as_tls)
        .timeout(Duration::from_secs(1));
    let (kind, text) = refusal(&client.build().unwrap()).await;
    assert!(
        matches!(kind, ErrorKind::Connect | ErrorKind::Timeout),
        "{text}"
    );
    assert!(plain.heads().is_empty());
}

#[tokio::test]
async fn a_unix_socket_is_an_address() {
    let folder = Folder::new();
    let server = Server::unix(&folder.0.join("consul.sock"));
    let client = Client::builder()
        .address(server.address.as_str())
        .build()
        .unwrap();
    assert!(reaches(&client).await);
    assert!(reaches(&client).await);
    let head = &server.heads()[0];
    assert!(
        head.starts_with("get /v1/status/leader http/1.1\r\n"),
        "{head}"
    );
    assert!(head.contains("\r\nhost: localhost\r\n"), "{head}");

    let nobody = format!("unix://{}", folder.0.join("none.sock").display());
    let client = Client::builder().address(nobody).build().unwrap();
    let (kind, text) = refusal(&client).await;
    assert_eq!(kind, ErrorKind::Connect, "{text}");
}

#[tokio::test]
async fn a_path_behind_the_host_is_a_prefix_of_all_requests() {
    let server = Server::plain().await;
    for (prefix, path) in [
        ("", "/v1/"),
        ("/", "/v1/"),
        ("/gate", "/gate/v1/"),
        ("/gate/two/", "/gate/two/v1/"),
    ] {
        let address = format!("{}{prefix}", server.address);
        let client = Client::builder().address(address).build().unwrap();
        assert!(reaches(&client).await);
        let head = server.heads().pop().unwrap();
        assert!(
            head.starts_with(&format!("get {path}status/leader ")),
            "{head}"
        );
    }
}

#[tokio::test]
async fn basic_authentication_goes_beside_the_token() {
    let server = Server::plain().await;
    let client = Client::builder()
        .address(server.address.as_str())
        .basic_auth("aladdin", "open:sesame")
        .token("my-token")
        .build()
        .unwrap();
    assert!(reaches(&client).await);
    let head = server.heads().pop().unwrap();
    // The header's value is in lower case here.
    let encoded = "YWxhZGRpbjpvcGVuOnNlc2FtZQ==".to_lowercase();
    assert!(
        head.contains(&format!("authorization: basic {encoded}\r\n")),
        "{head}"
    );
    assert!(head.contains("x-consul-token: my-token\r\n"), "{head}");
    assert!(reaches(&client.without_token()).await);
    let head = server.heads().pop().unwrap();
    assert!(
        !head.contains("x-consul-token") && head.contains("authorization:"),
        "{head}"
    );
    let wrong = Client::builder()
        .basic_auth("a:b", "c")
        .build()
        .unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Config);
}

#[tokio::test]
async fn namespace_partition_and_datacenter_are_sent_only_if_they_are_set() {
    let server = Server::plain().await;
    let builder = || Client::builder().address(server.address.as_str());
    for (builder, query) in [
        (builder(), ""),
        (builder().namespace("team-a"), "?ns=team-a"),
        (builder().partition("part"), "?partition=part"),
        (builder().datacenter("dc9"), "?dc=dc9"),
        (
            builder().namespace("a&b").partition("p").datacenter("d"),
            "?dc=d&ns=a%26b&partition=p",
        ),
    ] {
        assert!(reaches(&builder.build().unwrap()).await);
        let head = server.heads().pop().unwrap();
        assert!(
            head.starts_with(&format!("get /v1/status/leader{query} ")),
            "{head}"
        );
    }
}

#[tokio::test]
async fn a_token_file_is_read_again_when_it_changes() {
    let (folder, server) = (Folder::new(), Server::plain().await);
    let file = folder.file("token", "  one\n");
    let client = Client::builder()
        .address(server.address.as_str())
        .token_file(&file);
    let client = client.build().unwrap();
    let bears = async |token: &str| {
        assert!(reaches(&client).await);
        let head = server.heads().pop().unwrap();
        head.contains(&format!("x-consul-token: {token}\r\n"))
    };
    assert!(bears("one").await);
    folder.file("token", "two");
    support::eventually(SOON, async || bears("two").await).await;
    // Replaced, as secrets that are mounted into containers are.
    let new = folder.file("token.new", "three");
    std::fs::rename(new, &file).unwrap();
    support::eventually(SOON, async || bears("three").await).await;
    // The last good one stays while there is none.
    folder.file("token", "");
    assert!(bears("three").await);
    std::fs::remove_file(&file).unwrap();
    assert!(bears("three").await);

    let missing = Client::builder().token_file(&file).build().unwrap_err();
    let (kind, text) = told(&missing);
    assert_eq!(kind, ErrorKind::Config, "{text}");
    assert!(text.contains("token"), "{text}");
}

#[tokio::test]
async fn addresses_that_cannot_be_are_told_when_the_client_is_built() {
    for address in [
        "",
        "ftp://127.0.0.1",
        "http://",
        "http://127.0.0.1:99999",
        "http://user:pass-of-mine@127.0.0.1",
        "http://a b",
        "unix://",
        "http://127.0.0.1:8500?a=b",
    ] {
        let err = Client::builder().address(address).build().unwrap_err();
        let (kind, text) = told(&err);
        assert_eq!(kind, ErrorKind::Config, "{address}: {text}");
        assert!(!text.contains("pass-of-mine"), "{text}");
    }
}

mod consul {
    use lictor::ErrorKind;
    use lictor::transport::Tls;
    use serde_json::json;
    use support::consul::{Agent, Verify};

    use super::{Client, Folder, SOON, refusal};

    #[tokio::test]
    async fn consul_is_reached_over_mutual_tls_and_only_so() {
        let agent = Agent::options().tls(Verify::Callers).start().await;
        let trusting = || Tls::new().ca_file(agent.ca_file());
        let client = |tls| Client::builder().address(agent.https_url()).tls(tls);
        let own = agent.client_identity();
        let shown = trusting().client_certificate_files(&own.certificate, &own.key);
        let known = client(shown).build().unwrap();
        assert!(known.kv().put("tls", "works").await.unwrap());
        assert!(known.status().leader().await.unwrap().is_some());

        let unknown = client(trusting()).build().unwrap();
        let (kind, text) = refusal(&unknown).await;
        assert!(
            matches!(kind, ErrorKind::Connect | ErrorKind::Transport),
            "{text}"
        );
        let untrusting = client(Tls::new()).build().unwrap();
        let (kind, text) = refusal(&untrusting).await;
        assert_eq!(kind, ErrorKind::Connect, "{text}");
    }

    #[tokio::test]
    async fn consul_is_reached_over_a_unix_socket() {
        let folder = Folder::new();
        let socket = format!("unix://{}", folder.0.join("consul.sock").display());
        let http = format!("127.0.0.1 {socket}");
        let agent = Agent::options().config("addresses", json!({ "http": http }));
        let agent = agent.start().await;
        let client = Client::builder().address(socket).build().unwrap();
        assert!(client.kv().put("unix", "works").await.unwrap());
        assert_eq!(
            client
                .kv()
                .get("unix")
                .await
                .unwrap()
                .into_value()
                .unwrap()
                .value(),
            b"works"
        );
        drop(agent);
        let (kind, text) = refusal(&client).await;
        assert!(
            matches!(kind, ErrorKind::Connect | ErrorKind::Transport),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_rotated_token_is_used_without_a_new_client() {
        let agent = Agent::options().acl().start().await;
        let rules = r#"key_prefix "" { policy = "write" }"#;
        let old = agent.create_token("old", rules).await;
        let new = agent.create_token("new", rules).await;
        let folder = Folder::new();
        let file = folder.file("token", &old.secret);
        let client = Client::builder().address(agent.http_url()).token_file(file);
        let client = client.build().unwrap();
        assert!(client.kv().put("a", "1").await.unwrap());
        folder.file("token", &new.secret);
        agent.revoke_token(&old).await;
        support::eventually(SOON, async || client.kv().put("a", "2").await.is_ok()).await;
    }

    #[tokio::test]
    async fn the_community_edition_refuses_a_namespace_and_takes_its_absence() {
        let agent = Agent::shared().await;
        let builder = || Client::builder().address(agent.http_url());
        assert!(builder().build().unwrap().kv().get("a").await.is_ok());
        let named = builder().namespace("team").build().unwrap();
        let err = named.kv().get("a").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Refused, "{err}");
    }
}
