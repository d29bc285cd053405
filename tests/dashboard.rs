//! The page of the example `dashboard`, in a real browser that shows no window.
//!
//! Chromium is driven by its own driver, which speaks JSON over HTTP. Where the two are not
//! installed the test is left out and says so. The pictures that it takes are in the build's
//! folder, under `tmp/`.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use support::{eventually, eventually_some, http, left_out};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// A machine that does much else at the same time is slow at starting a browser.
const LONG: Duration = Duration::from_secs(60);

/// A program that runs until this is dropped.
struct Running {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(program: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        // It is to bring an agent of its own.
        command.args(args).env_remove("CONSUL_HTTP_ADDR");
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().expect("it starts");
        let out = child.stdout.take().expect("it has an output");
        Self {
            _child: child,
            lines: BufReader::new(out).lines(),
        }
    }

    /// What follows these words in the first line that has them.
    async fn says(&mut self, words: &str) -> String {
        let reading = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if let Some((_, rest)) = line.split_once(words) {
                    return rest.trim_end_matches('.').to_owned();
                }
            }
            panic!("it ended before it said {words:?}");
        };
        tokio::time::timeout(LONG, reading).await.expect("in time")
    }
}

/// A page in a browser, which is closed when this is dropped, also by a test that fails.
struct Browser {
    /// Where the driver listens.
    driver: SocketAddr,
    session: String,
    _driver: Running,
}

impl Browser {
    async fn open(driver: &Path, chromium: &Path, page: &str) -> Self {
        let mut driver = Running::start(driver, &["--port=0"]);
        let port = driver.says("was started successfully on port ").await;
        let root = format!("http://127.0.0.1:{port}/session");
        let mut arguments = vec!["--headless=new", "--disable-gpu", "--disable-dev-shm-usage"];
        // Chromium refuses its sandbox to root, and a container mostly has nobody else.
        arguments.push("--no-sandbox");
        let chrome = json!({ "binary": chromium, "args": arguments });
        let wanted =
            json!({ "goog:chromeOptions": chrome, "goog:loggingPrefs": { "browser": "ALL" } });
        let asked = json!({ "capabilities": { "alwaysMatch": wanted } }).to_string();
        let answer = tokio::time::timeout(LONG, async {
            loop {
                // The first start of a browser may take longer than one answer.
                match http::request("POST", &root, &[], asked.clone()).await {
                    Ok(answer) => return answer,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        });
        let answer = answer.await.expect("a browser starts").json();
        let id = answer["value"]["sessionId"].as_str();
        let id = id.unwrap_or_else(|| panic!("no session: {answer}"));
        let port: u16 = port.parse().expect("a port");
        let browser = Self {
            driver: (Ipv4Addr::LOCALHOST, port).into(),
            session: format!("{root}/{id}"),
            _driver: driver,
        };
        browser.ask("url", json!({ "url": page })).await;
        browser
    }

    async fn ask(&self, what: &str, with: Value) -> Value {
        let url = format!("{}/{what}", self.session);
        let answer = http::request("POST", &url, &[], with.to_string()).await;
        let answer = answer.expect("the driver answers");
        assert!(answer.is_success(), "{what}: {}", answer.text());
        answer.json()["value"].take()
    }

    /// What a script returns.
    async fn read(&self, script: &str) -> Value {
        self.ask("execute/sync", json!({ "script": script, "args": [] }))
            .await
    }

    /// Sets the size of the page, with scroll bars that take no room: a window cannot be made so
    /// narrow as a phone.
    async fn resize(&self, width: u32, height: u32) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": true });
        let command = json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": size });
        self.ask("goog/cdp/execute", command).await;
    }

    /// Presses a button as a user does.
    async fn press(&self, button: &str) {
        let selector = format!("button[data-do={button}]");
        let asked = json!({ "using": "css selector", "value": selector });
        let found = self.ask("element", asked).await;
        let id = found
            .as_object()
            .and_then(|found| found.values().next())
            .unwrap();
        let id = id.as_str().unwrap();
        self.ask(&format!("element/{id}/click"), json!({})).await;
    }

    /// Takes a picture of the whole page.
    async fn picture(&self, name: &str) -> PathBuf {
        let asked =
            json!({ "cmd": "Page.captureScreenshot", "params": { "captureBeyondViewport": true } });
        let taken = self.ask("goog/cdp/execute", asked).await;
        let data = taken["data"].as_str().expect("a picture");
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&path, base64(data)).unwrap();
        path
    }

    /// What went wrong on the page, by its own word.
    async fn complaints(&self) -> Vec<Value> {
        let log = self.ask("se/log", json!({ "type": "browser" })).await;
        let lines = log.as_array().cloned().unwrap_or_default();
        lines
            .into_iter()
            .filter(|line| line["level"] == "SEVERE")
            .collect()
    }
}

/// Only the driver knows its browser, which would outlive it.
impl Drop for Browser {
    fn drop(&mut self) {
        let end = || -> io::Result<()> {
            let wait = Duration::from_secs(5);
            let mut stream = TcpStream::connect_timeout(&self.driver, wait)?;
            stream.set_read_timeout(Some(wait))?;
            let (_, path) = self.session.split_once("/session").unwrap_or_default();
            write!(
                stream,
                "DELETE /session{path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
                self.driver
            )?;
            // The answer comes when the browser has ended.
            stream.read(&mut [0; 512]).map(drop)
        };
        end().ok();
    }
}

/// Decodes what the driver encodes.
fn base64(text: &str) -> Vec<u8> {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => u32::from(letter - b'A'),
        b'a'..=b'z' => u32::from(letter - b'a') + 26,
        b'0'..=b'9' => u32::from(letter - b'0') + 52,
        b'+' => 62,
        _ => 63,
    };
    let text = text.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    for four in text.chunks(4) {
        let bits = four
            .iter()
            .fold(0, |bits, letter| (bits << 6) | value(*letter));
        let bits = bits << (6 * (4 - four.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..four.len()]);
    }
    bytes
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut places = std::env::split_paths(&path).map(|folder| folder.join(name));
    places.find(|place| place.is_file())
}

/// The example, which `cargo test` builds where it builds this test.
fn example() -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let built = test.parent().and_then(Path::parent).expect("a folder");
    let example = built.join("examples/dashboard");
    assert!(
        example.is_file(),
        "no {}: run `cargo build -p lictor-examples --example dashboard`",
        example.display()
    );
    example
}

/// The rows of the page as `target state`, and who leads.
const ROWS: &str = "return [...document.querySelectorAll('tr[data-target]')]\
                    .map((row) => [row.dataset.target, row.dataset.state, row.querySelector('.pill').textContent])";
const LEADER: &str = "return document.getElementById('leader').textContent";
const EVENTS: &str = "return document.getElementById('events').textContent";

async fn rows(browser: &Browser) -> Vec<(String, String)> {
    let rows = browser.read(ROWS).await;
    let rows = rows.as_array().cloned().unwrap_or_default();
    rows.iter()
        .map(|row| {
            let text = |at: usize| row[at].as_str().unwrap_or_default().to_owned();
            assert_eq!(
                text(1),
                text(2).replace(' ', "_"),
                "what is seen is what is meant"
            );
            (text(0), text(1))
        })
        .collect()
}

#[tokio::test]
async fn the_page_shows_an_ejection_a_departure_and_a_new_leader_without_being_loaded_again() {
    let (Some(chromium), Some(driver)) = (on_path("chromium"), on_path("chromedriver")) else {
        left_out("browser", "no chromium and chromedriver on PATH");
        return;
    };
    let mut page = Running::start(&example(), &["--serve", "127.0.0.1:0"]);
    let url = page.says("dashboard on ").await;
    let browser = Browser::open(&driver, &chromium, &url).await;
    browser.resize(1280, 900).await;
    browser.read("window.loadedOnce = true").await;

    eventually(LONG, async || {
        let rows = rows(&browser).await;
        rows.len() == 5 && rows.iter().all(|(_, state)| state == "ready")
    })
    .await;
    eventually(LONG, async || browser.read(LEADER).await == "anna").await;
    assert_eq!(
        browser
            .read("return document.querySelectorAll('section[data-service]').length")
            .await,
        2
    );

    browser.press("fail").await;
    let ejected = eventually_some(LONG, async || {
        let rows = rows(&browser).await;
        let mut out = rows.into_iter().filter(|(_, state)| state == "ejected");
        out.next().map(|(target, _)| target)
    })
    .await;
    let told = format!("{ejected} is ejected: failures in a row");
    eventually(LONG, async || {
        let events = browser.read(EVENTS).await;
        events.as_str().is_some_and(|events| events.contains(&told))
    })
    .await;
    let wide = browser.picture("dashboard-1280.png").await;
    browser.resize(420, 900).await;
    for (what, script) in [
        (
            "nothing stands out on the side",
            "return document.documentElement.scrollWidth <= 420",
        ),
        (
            "the endpoint is readable",
            "const box = document.querySelector('td.target').getBoundingClientRect();\
                                      return box.left >= 0 && box.right <= 420",
        ),
    ] {
        assert_eq!(browser.read(script).await, true, "{what}");
    }
    let narrow = browser.picture("dashboard-420.png").await;
    browser.resize(1280, 900).await;
    let dark = json!({ "features": [{ "name": "prefers-color-scheme", "value": "dark" }] });
    let command = json!({ "cmd": "Emulation.setEmulatedMedia", "params": dark });
    browser.ask("goog/cdp/execute", command).await;
    let background = "return getComputedStyle(document.body).backgroundColor";
    assert_eq!(browser.read(background).await, "rgb(16, 19, 24)");
    let dark = browser.picture("dashboard-dark.png").await;
    for picture in [wide, narrow, dark] {
        let bytes = std::fs::read(picture).unwrap();
        assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 10_000);
    }

    browser.press("heal").await;
    eventually(LONG, async || {
        let rows = rows(&browser).await;
        rows.contains(&(ejected.clone(), "ready".to_owned()))
    })
    .await;

    browser.press("leave").await;
    eventually(LONG, async || rows(&browser).await.len() == 4).await;
    browser.press("join").await;
    eventually(LONG, async || rows(&browser).await.len() == 5).await;

    browser.press("resign").await;
    eventually(LONG, async || browser.read(LEADER).await == "bert").await;

    assert_eq!(browser.read("return window.loadedOnce").await, true);
    assert_eq!(browser.complaints().await, Vec::<Value>::new());
}

#[test]
fn pictures_are_decoded() {
    for (text, bytes) in [
        ("", &b""[..]),
        ("TQ==", b"M"),
        ("TWE=", b"Ma"),
        ("TWFu+/8A", b"Man\xfb\xff\x00"),
    ] {
        assert_eq!(base64(text), bytes);
    }
}
