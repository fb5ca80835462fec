//! The whole service but for the desktop, over real sockets: doors, headers, bounds and the screen relay.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};

use workspace::access::origin::Hosts;
use workspace::access::{Access, token::Token};
use workspace::desktop::{Stage, State};
use workspace::facts::{Told, Wall};
use workspace::web::{Computer, listen, router};

const TOKEN: &str = "a-token-for-tests-only";

struct Server {
    address: SocketAddr,
    computer: Arc<Computer>,
    state: watch::Sender<State>,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

struct Answer {
    status: u16,
    headers: HashMap<String, String>,
    body: String,
}

async fn server() -> Server {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("screen");
    let (state, desktop) = watch::channel(State::default());
    let told = Told {
        wall: Some(Wall::Container),
        name: Some("test".into()),
        ..Told::default()
    };
    let access = Access::new(Token::parse(TOKEN).unwrap(), Hosts::with("luna.example"));
    let computer = Computer::new(access, told, desktop, socket.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(listen::serve(vec![listener], router(Arc::clone(&computer))));
    Server {
        address,
        computer,
        state,
        socket,
        _directory: directory,
    }
}

impl Server {
    /// One request with exactly these headers, and `Host: localhost` where they have none.
    async fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "host") {
            request.push_str("host: localhost\r\n");
        }
        for &(name, value) in headers {
            request.extend([name, ": ", value, "\r\n"]);
        }
        request.push_str("\r\n");
        self.say(request.as_bytes()).await
    }

    async fn say(&self, bytes: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let text = String::from_utf8_lossy(&answer);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
        let mut lines = head.lines();
        Answer {
            status: lines
                .next()
                .and_then(|line| line.split(' ').nth(1))
                .map_or(0, |code| code.parse().unwrap()),
            headers: lines
                .filter_map(|line| line.split_once(": "))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect(),
            body: body.to_owned(),
        }
    }

    async fn bearer(&self, method: &str, target: &str) -> Answer {
        self.ask(method, target, &[("authorization", &format!("Bearer {TOKEN}"))])
            .await
    }

    async fn ticket(&self) -> String {
        let answer = self.bearer("POST", "/v1/tickets").await;
        assert_eq!(answer.status, 201);
        let answer: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(answer["expires_in_seconds"], 60);
        answer["ticket"].as_str().unwrap().to_owned()
    }

    /// A cookie as a browser would send it.
    async fn session(&self) -> String {
        let answer = self
            .ask("GET", &format!("/?ticket={}", self.ticket().await), &[])
            .await;
        assert_eq!(answer.status, 200);
        answer.headers["set-cookie"].split(';').next().unwrap().to_owned()
    }

    async fn screen(&self, headers: &[(&'static str, &str)]) -> Result<Page, u16> {
        let mut request = format!("ws://{}/ws/screen", self.address)
            .into_client_request()
            .unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(self.address).await.unwrap();
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((page, _)) => Ok(page),
            Err(tungstenite::Error::Http(answer)) => Err(answer.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }
}

type Page = tokio_tungstenite::WebSocketStream<TcpStream>;

/// A screen that says hello and then repeats what it hears.
fn echo_screen(socket: &Path) -> tokio::task::JoinHandle<()> {
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"RFB 003.008\n").await.unwrap();
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    })
}

async fn bytes(
    page: &mut (impl futures_util::Stream<Item = Result<Message, tungstenite::Error>> + Unpin),
    count: usize,
) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < count {
        if let Message::Binary(part) = page.next().await.unwrap().unwrap() {
            got.extend_from_slice(&part);
        }
    }
    got
}

#[tokio::test]
async fn health_is_open_and_says_nothing_more() {
    let server = server().await;
    let answer = server.ask("GET", "/healthz", &[]).await;
    assert_eq!(answer.status, 200);
    let health: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(
        health,
        serde_json::json!({"ok": true, "screen": false, "browser": false})
    );
    server.state.send_modify(|state| state.screen = Stage::Ready);
    assert!(
        server
            .ask("GET", "/healthz", &[])
            .await
            .body
            .contains(r#""screen":true"#)
    );
}

#[tokio::test]
async fn everything_else_wants_a_credential() {
    let server = server().await;
    let wrong = [
        vec![],
        vec![("authorization", "Bearer wrong-token-wrong-token")],
        vec![("authorization", TOKEN)],
        vec![("authorization", "Basic YS10b2tlbg==")],
        vec![("cookie", "luna_00000000=1.2.3")],
        // Loopback is where the sandbox's own programs are.
        vec![("x-forwarded-for", "127.0.0.1"), ("x-real-ip", "127.0.0.1")],
    ];
    for headers in wrong {
        for (method, target) in [
            ("GET", "/"),
            ("HEAD", "/"),
            ("GET", "/?ticket="),
            ("GET", "/?ticket=000000000000000000000000000000000000000000000000"),
            ("POST", "/"),
            ("GET", "/app.js"),
            ("GET", "/app.css"),
            ("GET", "/novnc.js"),
            ("GET", "/icon.svg"),
            ("GET", "/ws/screen"),
            ("GET", "/v1/sandbox"),
            ("POST", "/v1/tickets"),
            ("GET", "/v1/tickets"),
            ("GET", "/nothing"),
            ("GET", "/a/b/c"),
            ("OPTIONS", "/v1/sandbox"),
            ("GET", "/healthz/"),
            ("GET", "//healthz"),
        ] {
            let answer = server.ask(method, target, &headers).await;
            assert_eq!(answer.status, 401, "{method} {target} {headers:?}");
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
            assert!(!answer.headers.contains_key("set-cookie"));
        }
    }
    assert_eq!(server.screen(&[]).await.unwrap_err(), 401);
}

#[tokio::test]
async fn a_ticket_opens_the_page_once() {
    let server = server().await;
    let ticket = server.ticket().await;
    let target = format!("/?ticket={ticket}");
    assert_eq!(server.ask("HEAD", &target, &[]).await.status, 401);
    let answer = server.ask("GET", &target, &[]).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("<title>Luna</title>"));
    let cookie = &answer.headers["set-cookie"];
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict") && cookie.starts_with("luna_"));
    let cookie = cookie.split(';').next().unwrap();

    let again = server.ask("GET", &target, &[]).await;
    assert_eq!(again.status, 401);
    assert!(again.body.contains("has been used") && again.body.contains("luna open test"));
    let known = server.ask("GET", &target, &[("cookie", cookie)]).await;
    assert_eq!((known.status, known.headers["location"].as_str()), (303, "/"));
    assert_eq!(server.ask("GET", "/", &[("cookie", cookie)]).await.status, 200);
    assert_eq!(
        server
            .ask("GET", "/", &[("cookie", &format!("a=b; {cookie}; c=d"))])
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn an_expired_ticket_opens_nothing() {
    let server = server().await;
    let ticket = server.computer.access.issue_ticket(Duration::ZERO);
    assert_eq!(
        server.ask("GET", &format!("/?ticket={ticket}"), &[]).await.status,
        401
    );
}

#[tokio::test]
async fn a_session_sees_but_lets_nobody_in() {
    let server = server().await;
    let cookie = server.session().await;
    let own = ("origin", "http://localhost");
    assert_eq!(
        server
            .ask("GET", "/v1/sandbox", &[("cookie", &cookie)])
            .await
            .status,
        200
    );
    assert_eq!(
        server
            .ask("POST", "/v1/tickets", &[("cookie", &cookie), own])
            .await
            .status,
        403
    );
}

#[tokio::test]
async fn foreign_names_are_not_answered() {
    let server = server().await;
    let bearer = format!("Bearer {TOKEN}");
    for host in [
        "evil.example",
        "localhost.evil.example",
        "169.254.1.1:8080",
        "",
        "localhost:80:80",
    ] {
        for target in ["/healthz", "/", "/v1/sandbox"] {
            let answer = server
                .ask("GET", target, &[("host", host), ("authorization", &bearer)])
                .await;
            assert_eq!(answer.status, 421, "{host} {target}");
        }
    }
    for host in [
        "localhost:9",
        "127.0.0.1:9",
        "[::1]:9",
        "a.localhost",
        "luna.example",
    ] {
        assert_eq!(
            server.ask("GET", "/healthz", &[("host", host)]).await.status,
            200,
            "{host}"
        );
    }
    let twice =
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\nconnection: close\r\n\r\n";
    assert_eq!(server.say(twice).await.status, 421);
    let absolute =
        b"GET http://evil.example/healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    assert_eq!(server.say(absolute).await.status, 421);
    assert_eq!(server.say(b"GET /healthz HTTP/1.0\r\n\r\n").await.status, 421);
}

#[tokio::test]
async fn other_sites_get_nothing_out_of_a_session() {
    let server = server().await;
    let cookie = server.session().await;
    for foreign in [
        vec![("origin", "http://evil.example")],
        vec![("origin", "http://localhost:1")],
        vec![("origin", "null")],
        vec![("sec-fetch-site", "cross-site")],
        vec![("sec-fetch-site", "same-site")],
    ] {
        let mut headers = vec![("cookie", cookie.as_str())];
        headers.extend(foreign);
        let answer = server.ask("GET", "/v1/sandbox", &headers).await;
        assert_eq!(answer.status, 403, "{headers:?}");
        assert!(!answer.headers.contains_key("access-control-allow-origin"));
    }
    // Coming from elsewhere to the page itself is what a link does.
    let arriving = [("cookie", cookie.as_str()), ("sec-fetch-site", "cross-site")];
    assert_eq!(server.ask("GET", "/", &arriving).await.status, 200);
}

#[tokio::test]
async fn every_answer_carries_the_guards() {
    let server = server().await;
    for target in ["/healthz", "/", "/v1/sandbox", "/nothing"] {
        for answer in [
            server.ask("GET", target, &[]).await,
            server.bearer("GET", target).await,
        ] {
            let policy = &answer.headers["content-security-policy"];
            assert!(
                policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
                "{policy}"
            );
            assert!(!policy.contains("unsafe"), "{policy}");
            assert_eq!(answer.headers["x-frame-options"], "DENY");
            assert_eq!(answer.headers["x-content-type-options"], "nosniff");
            assert_eq!(answer.headers["referrer-policy"], "no-referrer");
        }
    }
}

#[tokio::test]
async fn nothing_secret_is_in_what_a_session_reads() {
    let server = server().await;
    let answer = server.bearer("GET", "/v1/sandbox").await;
    assert!(!answer.body.contains(TOKEN));
    let facts: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(
        (&facts["wall"], &facts["name"]),
        (&"container".into(), &"test".into())
    );
    assert_eq!(facts["desktop"]["screen"]["stage"], "starting");
    assert!(facts["kernel"]["release"].is_string() && facts["isolation"]["seccomp_filters"].is_u64());
}

#[tokio::test]
async fn unchanged_files_are_not_sent_again() {
    let server = server().await;
    let bearer = format!("Bearer {TOKEN}");
    let first = server
        .ask("GET", "/novnc.js", &[("authorization", &bearer)])
        .await;
    assert_eq!(
        (first.status, first.headers["content-type"].as_str()),
        (200, "text/javascript; charset=utf-8")
    );
    let tag = &first.headers["etag"];
    let second = server
        .ask(
            "GET",
            "/novnc.js",
            &[("authorization", &bearer), ("if-none-match", tag)],
        )
        .await;
    assert_eq!((second.status, second.body.len()), (304, 0));
}

#[tokio::test]
async fn the_screen_is_relayed_byte_for_byte() {
    let server = server().await;
    let cookie = server.session().await;
    let origin = format!("http://{}", server.address);
    let headers = [
        ("cookie", cookie.as_str()),
        ("origin", origin.as_str()),
        ("sec-websocket-protocol", "binary"),
    ];
    assert_eq!(
        server.screen(&headers).await.unwrap_err(),
        503,
        "before there is a screen"
    );
    let screen = echo_screen(&server.socket);
    server.state.send_modify(|state| state.screen = Stage::Ready);

    let mut page = server.screen(&headers).await.unwrap();
    assert_eq!(bytes(&mut page, 12).await, b"RFB 003.008\n");
    let sent: Vec<u8> = (0..700_000_u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    let (mut to, mut from) = page.split();
    let message = Message::Binary(sent.clone().into());
    let (outcome, got) = tokio::join!(to.send(message), bytes(&mut from, sent.len()));
    outcome.unwrap();
    assert!(got == sent);

    // Over the bound for one message: this page is dropped, the next one is served.
    let message = Message::Binary(vec![0; 3 << 20].into());
    let (_, ()) = tokio::join!(to.send(message), async {
        while let Some(Ok(_)) = from.next().await {}
    });
    let mut other = server.screen(&headers).await.unwrap();
    assert_eq!(bytes(&mut other, 12).await, b"RFB 003.008\n");
    screen.abort();
}

#[tokio::test]
async fn the_screen_opens_only_to_its_own_page_or_the_token() {
    let server = server().await;
    let _screen = echo_screen(&server.socket);
    server.state.send_modify(|state| state.screen = Stage::Ready);
    let cookie = server.session().await;
    for origin in ["http://evil.example", "http://127.0.0.1:1", "null"] {
        let outcome = server.screen(&[("cookie", &cookie), ("origin", origin)]).await;
        assert_eq!(outcome.unwrap_err(), 403, "{origin}");
    }
    assert_eq!(server.screen(&[("cookie", &cookie)]).await.unwrap_err(), 403);
    assert!(
        server
            .screen(&[("authorization", &format!("Bearer {TOKEN}"))])
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_screen_has_a_bounded_number_of_viewers() {
    let server = server().await;
    let _screen = echo_screen(&server.socket);
    server.state.send_modify(|state| state.screen = Stage::Ready);
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("authorization", bearer.as_str())];
    let mut pages = Vec::new();
    for _ in 0..16 {
        pages.push(server.screen(&headers).await.unwrap());
    }
    assert_eq!(server.screen(&headers).await.unwrap_err(), 503);
    drop(pages);
    // The seats come free when the relays notice, a moment later.
    let freed = async {
        while server.screen(&headers).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), freed)
        .await
        .unwrap();
}

#[tokio::test]
async fn an_oversized_head_is_refused() {
    let server = server().await;
    let answer = server
        .ask("GET", "/healthz", &[("x-long", &"x".repeat(100_000))])
        .await;
    assert!(matches!(answer.status, 431 | 0), "{}", answer.status);
    assert_eq!(server.ask("GET", "/healthz", &[]).await.status, 200);
}
