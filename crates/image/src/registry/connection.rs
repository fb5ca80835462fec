//! One registry, reached: scheme found out, identity settled, every answer bounded in size and in silence.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use luna_core::{Error, Kind, Result};
use reqwest::header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use reqwest::{RequestBuilder, Response, StatusCode, Url};

use super::credentials::{Config, Credentials};
use super::token::{self, Challenge};
use super::{Access, manifest};
use crate::{Digest, Reference};

const CONNECT: Duration = Duration::from_secs(10);
/// Longest error page or token answer worth reading.
const ERROR_LIMIT: usize = 64 << 10;

/// What a token is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Pull,
    Push,
}

/// What a request says about who sends it.
#[derive(Clone, Default)]
enum Identity {
    #[default]
    Nobody,
    Basic(Credentials),
    Bearer(String),
}

impl Identity {
    fn on(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Identity::Nobody => request,
            Identity::Basic(own) => request.basic_auth(&own.user, Some(&own.password)),
            Identity::Bearer(token) => request.bearer_auth(token),
        }
    }
}

pub(super) struct Connection {
    pub(super) runtime: tokio::runtime::Runtime,
    pub(super) http: reqwest::Client,
    /// `https://host:port/v2/repository`.
    pub(super) base: String,
    /// What a token has to allow.
    scope: String,
    identity: Mutex<Identity>,
    credentials: Option<Credentials>,
    registry: String,
    /// Whether the user allows plain HTTP beyond loopback.
    insecure: bool,
    stall: Duration,
}

/// The answer to a request for a blob from some byte on.
pub(super) struct BlobResponse {
    pub(super) response: Response,
    /// Where the body begins: what was asked for, or 0 where the registry has no ranges.
    pub(super) start: u64,
}

impl Connection {
    pub(super) fn open(reference: &Reference, access: &Access, purpose: Purpose) -> Result<Connection> {
        let connection = Connection::prepare(reference, access, purpose)?;
        connection.runtime.block_on(async {
            let answer = connection.send(connection.http.get(connection.root())).await?;
            match connection.challenge(&answer) {
                Some(challenge) => connection.identify(&challenge).await.map(drop),
                None => Ok(()),
            }
        })?;
        Ok(connection)
    }

    /// Asks the registry whether it takes the credentials, by its own challenge.
    pub(super) fn verify_login(reference: &Reference, access: &Access) -> Result<()> {
        let connection = Connection::prepare(reference, access, Purpose::Pull)?;
        let root = connection.root();
        connection.runtime.block_on(async {
            let first = connection.send(connection.http.get(&root)).await?;
            let answer = match (connection.challenge(&first), &connection.credentials) {
                (Some(Challenge::Bearer { realm, service }), own) => {
                    let account = own.as_ref().map_or("", |own| own.user.as_str());
                    let request = connection
                        .token_request(&realm, &service)?
                        .query(&[("account", account)]);
                    connection.send(request).await?
                }
                (Some(Challenge::Basic), Some(own)) => {
                    let request = Identity::Basic(own.clone()).on(connection.http.get(&root));
                    connection.send(request).await?
                }
                _ => first,
            };
            match answer.status().is_success() {
                true => Ok(()),
                false => Err(connection.refused(answer, "get the login from").await),
            }
        })
    }

    fn prepare(reference: &Reference, access: &Access, purpose: Purpose) -> Result<Connection> {
        install_cryptography();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::io("cannot wait for the network", error))?;
        let host = match reference.registry() {
            // Docker's hub answers under another name than it is written.
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let credentials = match &access.credentials {
            Some(given) => Some(given.clone()),
            None => Config::read()?.credentials(reference.registry())?,
        };
        let near = is_loopback(host);
        let client = |https_only: bool| {
            let builder = reqwest::Client::builder()
                .connect_timeout(CONNECT)
                .user_agent(concat!("luna/", env!("CARGO_PKG_VERSION")))
                .danger_accept_invalid_certs(access.insecure)
                .https_only(https_only);
            // A proxy's loopback is not ours, and would read what never had to leave this host.
            let builder = if near { builder.no_proxy() } else { builder };
            builder.build().map_err(|error| {
                Error::new(Kind::Internal, "cannot set up the network client").because(error)
            })
        };
        let mut http = client(!access.insecure)?;
        let may_be_plain = access.insecure || near;
        let scheme = match may_be_plain && !speaks_tls(&runtime, &http, host, access.stall) {
            true => "http",
            false => "https",
        };
        if scheme == "http" {
            http = client(false)?;
        }
        let repository = reference.repository();
        let actions = match purpose {
            Purpose::Pull => "pull",
            Purpose::Push => "pull,push",
        };
        Ok(Connection {
            runtime,
            http,
            base: format!("{scheme}://{host}/v2/{repository}"),
            scope: format!("repository:{repository}:{actions}"),
            identity: Mutex::default(),
            credentials,
            registry: reference.registry().to_owned(),
            insecure: access.insecure,
            stall: access.stall,
        })
    }

    /// `https://host:port/v2/`.
    fn root(&self) -> String {
        format!("{}/v2/", self.base.split("/v2/").next().unwrap_or_default())
    }

    /// What the registry wants to know first. A challenge from where a redirect led is not the registry's.
    fn challenge(&self, response: &Response) -> Option<Challenge> {
        match response.status() == StatusCode::UNAUTHORIZED && self.is_registry(response.url()) {
            true => token::challenge(response.headers()),
            false => None,
        }
    }

    /// Whether `url` is of this registry's very scheme, host and port.
    pub(super) fn is_registry(&self, url: &Url) -> bool {
        Url::parse(&self.base).is_ok_and(|base| base.origin() == url.origin())
    }

    /// Answers a challenge and remembers the answer for the requests that follow.
    async fn identify(&self, challenge: &Challenge) -> Result<Identity> {
        let identity = match (challenge, &self.credentials) {
            (Challenge::Basic, Some(own)) => Identity::Basic(own.clone()),
            (Challenge::Basic, None) => Identity::Nobody,
            (Challenge::Bearer { realm, service }, _) => {
                let request = self
                    .token_request(realm, service)?
                    .query(&[("scope", &self.scope)]);
                let response = self.send(request).await?;
                if !response.status().is_success() {
                    return Err(self.refused(response, "get a token from").await);
                }
                Identity::Bearer(token::read(&self.body(response, ERROR_LIMIT, "token").await?)?)
            }
        };
        self.identity
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(&identity);
        Ok(identity)
    }

    fn token_request(&self, realm: &str, service: &str) -> Result<RequestBuilder> {
        let near = Url::parse(&self.base).is_ok_and(|base| base.host_str().is_some_and(is_loopback));
        let request = self.http.get(token::realm(realm, near, self.insecure)?);
        let request = match service {
            "" => request,
            service => request.query(&[("service", service)]),
        };
        Ok(match &self.credentials {
            Some(own) => Identity::Basic(own.clone()).on(request),
            None => request,
        })
    }

    /// Sends what `request` makes with the identity so far; when the registry takes that no longer (tokens live for
    /// minutes), once more with a fresh one.
    pub(super) async fn ask(&self, request: impl Fn() -> RequestBuilder) -> Result<Response> {
        let identity = self.identity();
        let response = self.send(identity.on(request())).await?;
        match (self.challenge(&response), identity) {
            (None, _) | (Some(Challenge::Basic), Identity::Basic(_)) => Ok(response),
            (Some(challenge), _) => {
                let fresh = self.identify(&challenge).await?;
                self.send(fresh.on(request())).await
            }
        }
    }

    fn identity(&self) -> Identity {
        self.identity
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// A manifest or index by tag or digest, at most [`manifest::LIMIT`] bytes, with its media type.
    pub(super) fn manifest(&self, name: &str) -> Result<(Vec<u8>, Option<String>)> {
        let accept = [
            manifest::OCI_INDEX,
            manifest::OCI_MANIFEST,
            manifest::DOCKER_LIST,
            manifest::DOCKER_MANIFEST,
        ]
        .join(", ");
        self.runtime.block_on(async {
            let url = format!("{}/manifests/{name}", self.base);
            let response = self.ask(|| self.http.get(&url).header(ACCEPT, &accept)).await?;
            if !response.status().is_success() {
                return Err(self.refused(response, "get the manifest from").await);
            }
            let media_type = response
                .headers()
                .get(CONTENT_TYPE)
                .and_then(|value| value.to_str().ok())
                .and_then(|value| value.split(';').next())
                .map(|value| value.trim().to_owned());
            let bytes = self.body(response, manifest::LIMIT, "manifest").await?;
            Ok((bytes, media_type))
        })
    }

    /// A blob that fits in memory; the caller checks its digest.
    pub(super) fn small_blob(&self, digest: Digest) -> Result<Vec<u8>> {
        self.runtime.block_on(async {
            let answer = self.blob(digest, 0).await?;
            self.body(answer.response, manifest::LIMIT, "config").await
        })
    }

    /// Begins to fetch a blob from byte `start` on.
    pub(super) async fn blob(&self, digest: Digest, start: u64) -> Result<BlobResponse> {
        let response = self
            .ask(|| {
                let request = self.http.get(format!("{}/blobs/{digest}", self.base));
                match start {
                    0 => request,
                    start => request.header(RANGE, format!("bytes={start}-")),
                }
            })
            .await?;
        match response.status() {
            StatusCode::OK => Ok(BlobResponse { response, start: 0 }),
            StatusCode::PARTIAL_CONTENT => {
                let begins = response
                    .headers()
                    .get(CONTENT_RANGE)
                    .and_then(|value| value.to_str().ok())
                    .and_then(|value| value.strip_prefix("bytes "))
                    .and_then(|value| value.split('-').next())
                    .and_then(|value| value.parse::<u64>().ok());
                match begins == Some(start) {
                    true => Ok(BlobResponse { response, start }),
                    false => Err(Error::new(Kind::Corrupt, "cannot resume a download")
                        .because("the registry sent another part than was asked for")),
                }
            }
            _ => Err(self.refused(response, "get a layer from").await),
        }
    }

    /// The next piece of a body, `None` at its end.
    pub(super) async fn chunk(&self, response: &mut Response) -> Result<Option<bytes::Bytes>> {
        match tokio::time::timeout(self.stall, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(self.explain(error)),
            Err(_) => Err(self.stalled()),
        }
    }

    async fn body(&self, mut response: Response, limit: usize, what: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            if bytes.len() + chunk.len() > limit {
                return Err(
                    Error::new(Kind::Exhausted, format!("cannot accept the registry's {what}"))
                        .because(format!("it is larger than {limit} bytes")),
                );
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        match tokio::time::timeout(self.stall + CONNECT, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.explain(error)),
            Err(_) => Err(self.stalled()),
        }
    }

    /// Sends a long body: waits as long as `sent` grows, for the answer as long as for any other. The identity goes
    /// along only to the registry itself.
    pub(super) async fn send_body(
        &self,
        url: Url,
        request: RequestBuilder,
        sent: &AtomicU64,
    ) -> Result<Response> {
        let request = match self.is_registry(&url) {
            true => self.identity().on(request),
            false => request,
        };
        let mut sending = std::pin::pin!(request.send());
        loop {
            let before = sent.load(Ordering::Relaxed);
            match tokio::time::timeout(self.stall + CONNECT, &mut sending).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => return Err(self.explain(error)),
                Err(_) if sent.load(Ordering::Relaxed) > before => {}
                Err(_) => return Err(self.stalled()),
            }
        }
    }

    fn stalled(&self) -> Error {
        Error::new(
            Kind::TimedOut,
            format!("cannot wait longer for the registry `{}`", self.registry),
        )
        .because(format!("it sent nothing for {} s", self.stall.as_secs_f32()))
        .hint("try again: what has arrived is kept")
    }

    /// An answer that is not what was asked for; `deed` reads before "the registry".
    pub(super) async fn refused(&self, response: Response, deed: &str) -> Error {
        let status = response.status();
        let text = self
            .body(response, ERROR_LIMIT, "answer")
            .await
            .unwrap_or_default();
        self.explain_status(status.as_u16(), deed, &registry_message(&text))
    }

    fn explain_status(&self, status: u16, deed: &str, said: &str) -> Error {
        let registry = &self.registry;
        let (kind, hint) = match status {
            401 | 403 => (Kind::PermissionDenied, Some(format!("luna login {registry}"))),
            404 => (Kind::NotFound, Some("check the name and the tag".to_owned())),
            408 | 504 => (Kind::TimedOut, Some("try again".to_owned())),
            429 => (
                Kind::Unavailable,
                Some(format!("wait, or raise your limit with `luna login {registry}`")),
            ),
            500..=599 => (Kind::Unavailable, Some("try again later".to_owned())),
            _ => (Kind::Unavailable, None),
        };
        let said = if said.is_empty() {
            String::new()
        } else {
            format!(": {said}")
        };
        let error = Error::new(kind, format!("cannot {deed} the registry `{registry}`"))
            .because(format!("it answered {status}{said}"));
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }

    /// A request that got no answer or lost it on the way.
    fn explain(&self, error: reqwest::Error) -> Error {
        if error.is_timeout() && !error.is_connect() {
            return self.stalled();
        }
        let error = error.without_url();
        let mut why = error.to_string();
        let mut next = std::error::Error::source(&error);
        while let Some(source) = next {
            why = source.to_string();
            next = source.source();
        }
        let (message, hint) = match error.is_connect() {
            true => (
                "cannot reach the registry",
                format!(
                    "check the name and the network; a registry without TLS needs `--insecure`, a private certificate authority SSL_CERT_FILE ({})",
                    self.base.split("/v2/").next().unwrap_or_default()
                ),
            ),
            false => (
                "cannot read from the registry",
                "try again: what has arrived is kept".to_owned(),
            ),
        };
        Error::new(Kind::Unavailable, format!("{message} `{}`", self.registry))
            .because(why)
            .hint(hint)
    }
}

/// What a registry's error page says, on one line and short.
fn registry_message(text: &[u8]) -> String {
    let json: Option<serde_json::Value> = serde_json::from_slice(text).ok();
    let first = json.as_ref().and_then(|json| {
        let error = json.get("errors")?.get(0)?;
        let message = error.get("message").and_then(serde_json::Value::as_str);
        message.or_else(|| error.get("code")?.as_str())
    });
    let detail = json
        .as_ref()
        .and_then(|json| json.get("details").or_else(|| json.get("message"))?.as_str());
    let shown: String = first.or(detail).unwrap_or_default().chars().take(200).collect();
    shown.escape_debug().to_string()
}

/// A host that never leaves this machine, with or without a port.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether anything answers to TLS there; asked only where plain HTTP is allowed too.
fn speaks_tls(
    runtime: &tokio::runtime::Runtime,
    http: &reqwest::Client,
    host: &str,
    stall: Duration,
) -> bool {
    let patience = stall.min(Duration::from_secs(5));
    runtime.block_on(async {
        let ask = http.get(format!("https://{host}/v2/")).send();
        matches!(tokio::time::timeout(patience, ask).await, Ok(Ok(_)))
    })
}

/// rustls needs one provider of cryptography for the process.
fn install_cryptography() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error only says that the program around us chose one before.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn loopback_is_told_from_the_rest() {
        for near in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:5000",
        ] {
            assert!(is_loopback(near), "{near}");
        }
        for far in [
            "localhost.example.com",
            "10.0.0.1:5000",
            "[fe80::1]",
            "ghcr.io",
            "127.0.0.1.evil.io",
        ] {
            assert!(!is_loopback(far), "{far}");
        }
    }

    /// A registry of one answer for each pair of path and `Authorization`.
    fn serve(answer: impl Fn(&str, &str) -> (u16, String, String) + Send + 'static) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut first = [0];
                if stream.peek(&mut first).is_err() || first == [22] {
                    continue; // TLS
                }
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let first = lines.next().and_then(Result::ok).unwrap_or_default();
                let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
                let headers = lines.map_while(Result::ok).take_while(|line| !line.is_empty());
                let who = headers.filter_map(|line| {
                    let (name, value) = line.split_once(": ")?;
                    name.eq_ignore_ascii_case("authorization")
                        .then(|| value.to_owned())
                });
                let who = who.last().unwrap_or_default();
                let (status, headers, body) = answer(&path, &who);
                // A client that has read enough hangs up.
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} X\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        port
    }

    fn open(port: u16) -> Result<Connection> {
        let access = Access {
            stall: Duration::from_secs(10),
            credentials: Some(Credentials {
                user: "me".to_owned(),
                password: "secret".to_owned(),
            }),
            ..Access::default()
        };
        let reference = Reference::parse(&format!("127.0.0.1:{port}/test/image:1")).unwrap();
        Connection::open(&reference, &access, Purpose::Pull)
    }

    #[test]
    fn a_token_that_ran_out_is_renewed() {
        let tokens = Arc::new(AtomicU64::new(0));
        let given = Arc::clone(&tokens);
        let itself = Arc::new(AtomicU64::new(0));
        let realm = Arc::clone(&itself);
        let port = serve(move |path, who| {
            let realm = realm.load(Ordering::Relaxed);
            let challenge = format!(
                "WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{realm}/token\",service=\"here\"\r\n"
            );
            if path.starts_with("/token?") {
                assert!(who.starts_with("Basic ") && path.contains("scope=repository%3Atest%2Fimage%3Apull"));
                let number = given.fetch_add(1, Ordering::Relaxed) + 1;
                return (200, String::new(), format!(r#"{{"token":"t{number}"}}"#));
            }
            match who {
                "Bearer t1" if path.contains("/manifests/first") => (200, String::new(), "one".to_owned()),
                "Bearer t2" => (200, String::new(), "two".to_owned()),
                _ => (401, challenge, String::new()),
            }
        });
        itself.store(port.into(), Ordering::Relaxed);
        let connection = open(port).unwrap();
        assert_eq!(connection.manifest("first").unwrap().0, b"one");
        assert_eq!(connection.manifest("second").unwrap().0, b"two");
        assert_eq!(connection.manifest("third").unwrap().0, b"two");
        assert_eq!(tokens.load(Ordering::Relaxed), 2);
        connection.runtime.block_on(async {
            let refused = connection.ask(|| connection.http.get(connection.root())).await;
            assert_eq!(refused.unwrap().status(), StatusCode::OK);
        });
    }

    #[test]
    fn credentials_are_not_sent_where_everybody_reads_them() {
        let port = serve(|_, _| {
            let challenge = "WWW-Authenticate: Bearer realm=\"http://192.0.2.1/token\"\r\n";
            (401, challenge.to_owned(), String::new())
        });
        let Err(error) = open(port) else {
            panic!("asked for a token in the open");
        };
        assert_eq!(error.kind(), Kind::Refused, "{error:?}");
    }

    #[test]
    fn an_endless_token_ends() {
        let itself = Arc::new(AtomicU64::new(0));
        let realm = Arc::clone(&itself);
        let port = serve(move |path, _| {
            if path.starts_with("/token") {
                (200, String::new(), " ".repeat(ERROR_LIMIT * 4))
            } else {
                let realm = realm.load(Ordering::Relaxed);
                let challenge =
                    format!("WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{realm}/token\"\r\n");
                (401, challenge, String::new())
            }
        });
        itself.store(port.into(), Ordering::Relaxed);
        let Err(error) = open(port) else {
            panic!("read a token without an end");
        };
        assert_eq!(error.kind(), Kind::Exhausted, "{error:?}");
    }

    #[test]
    fn error_pages_become_one_line() {
        let text = br#"{"errors":[{"code":"DENIED","message":"no\nway"}]}"#;
        assert_eq!(registry_message(text), "no\\nway");
        assert_eq!(registry_message(b"<html>"), "");
    }
}
