//! One registry, reached: scheme found out, identity settled, every answer bounded in size and in silence.

use std::net::IpAddr;
use std::sync::Once;
use std::time::Duration;

use luna_core::{Error, Kind, Result};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference as OciReference, RegistryOperation};
use reqwest::header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, RANGE, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, Response, StatusCode};

use super::credentials::{Config, Credentials};
use super::{Access, manifest};
use crate::{Digest, Reference};

const CONNECT: Duration = Duration::from_secs(10);
/// Longest error page worth reading.
const ERROR_LIMIT: usize = 64 << 10;

/// What a token is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Pull,
    Push,
}

pub(super) struct Connection {
    pub(super) runtime: tokio::runtime::Runtime,
    pub(super) oci: oci_client::Client,
    pub(super) reference: OciReference,
    http: reqwest::Client,
    /// `https://host:port/v2/repository`.
    base: String,
    token: Option<String>,
    credentials: Option<Credentials>,
    registry: String,
    pub(super) stall: Duration,
}

/// The answer to a request for a blob from some byte on.
pub(super) struct BlobResponse {
    pub(super) response: Response,
    /// Where the body begins: what was asked for, or 0 where the registry has no ranges.
    pub(super) start: u64,
}

impl Connection {
    pub(super) fn open(reference: &Reference, access: &Access, purpose: Purpose) -> Result<Connection> {
        let mut connection = Connection::prepare(reference, access)?;
        let operation = match purpose {
            Purpose::Pull => RegistryOperation::Pull,
            Purpose::Push => RegistryOperation::Push,
        };
        let auth = match &connection.credentials {
            Some(own) => RegistryAuth::Basic(own.user.clone(), own.password.clone()),
            None => RegistryAuth::Anonymous,
        };
        let asked = connection.runtime.block_on(async {
            let ask = connection.oci.auth(&connection.reference, &auth, operation);
            tokio::time::timeout(connection.stall, ask).await
        });
        connection.token = match asked {
            Ok(Ok(token)) => token,
            Ok(Err(error)) => return Err(connection.explain_oci(error)),
            Err(_) => return Err(connection.stalled()),
        };
        Ok(connection)
    }

    /// Asks the registry whether it takes the credentials, by its own challenge.
    pub(super) fn verify_login(reference: &Reference, access: &Access) -> Result<()> {
        let connection = Connection::prepare(reference, access)?;
        let credentials = connection.credentials.clone().unwrap_or_else(|| Credentials {
            user: String::new(),
            password: String::new(),
        });
        let root = format!("{}/v2/", connection.base.split("/v2/").next().unwrap_or_default());
        connection.runtime.block_on(async {
            let basic = |url: &str| {
                connection
                    .http
                    .get(url)
                    .basic_auth(&credentials.user, Some(&credentials.password))
            };
            let first = connection.send(connection.http.get(&root)).await?;
            let challenge = first
                .headers()
                .get(WWW_AUTHENTICATE)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned();
            let answer = match (first.status(), bearer_realm(&challenge)) {
                (StatusCode::UNAUTHORIZED, Some((realm, service))) => {
                    let request =
                        basic(&realm).query(&[("service", service.as_str()), ("account", &credentials.user)]);
                    connection.send(request).await?
                }
                (StatusCode::UNAUTHORIZED, None) => connection.send(basic(&root)).await?,
                _ => first,
            };
            match answer.status().is_success() {
                true => Ok(()),
                false => Err(connection.refused(answer, "the login").await),
            }
        })
    }

    fn prepare(reference: &Reference, access: &Access) -> Result<Connection> {
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
        let unusable = |error: reqwest::Error| {
            Error::new(Kind::Internal, "cannot set up the network client").because(error)
        };
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .read_timeout(access.stall)
            .user_agent(concat!("luna/", env!("CARGO_PKG_VERSION")))
            .danger_accept_invalid_certs(access.insecure)
            .build()
            .map_err(unusable)?;
        let credentials = match &access.credentials {
            Some(given) => Some(given.clone()),
            None => Config::read()?.credentials(reference.registry())?,
        };
        let may_be_plain = access.insecure || is_loopback(host);
        let scheme = match may_be_plain && !speaks_tls(&runtime, &http, host, access.stall) {
            true => "http",
            false => "https",
        };
        let oci = oci_client::Client::try_from(ClientConfig {
            protocol: match scheme {
                "http" => ClientProtocol::HttpsExcept(vec![host.to_owned()]),
                _ => ClientProtocol::Https,
            },
            accept_invalid_certificates: access.insecure,
            use_monolithic_push: true,
            read_timeout: Some(access.stall),
            connect_timeout: Some(CONNECT),
            user_agent: concat!("luna/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        })
        .map_err(|error| Error::new(Kind::Internal, "cannot set up the network client").because(error))?;
        let repository = reference.repository();
        let tag = reference.tag().unwrap_or("latest");
        Ok(Connection {
            runtime,
            oci,
            reference: OciReference::with_tag(host.to_owned(), repository.to_owned(), tag.to_owned()),
            http,
            base: format!("{scheme}://{host}/v2/{repository}"),
            token: None,
            credentials,
            registry: reference.registry().to_owned(),
            stall: access.stall,
        })
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
            let response = self
                .send(self.authorized(self.http.get(url)).header(ACCEPT, accept))
                .await?;
            if !response.status().is_success() {
                return Err(self.refused(response, "the manifest").await);
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
        let mut request = self.authorized(self.http.get(format!("{}/blobs/{digest}", self.base)));
        if start > 0 {
            request = request.header(RANGE, format!("bytes={start}-"));
        }
        let response = self.send(request).await?;
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
            _ => Err(self.refused(response, "a layer").await),
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

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match (&self.token, &self.credentials) {
            (Some(token), _) => request.bearer_auth(token),
            (None, Some(own)) => request.basic_auth(&own.user, Some(&own.password)),
            (None, None) => request,
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

    /// An answer that is not what was asked for.
    async fn refused(&self, response: Response, what: &str) -> Error {
        let status = response.status();
        let text = self
            .body(response, ERROR_LIMIT, "answer")
            .await
            .unwrap_or_default();
        self.explain_status(status.as_u16(), what, &registry_message(&text))
    }

    fn explain_status(&self, status: u16, what: &str, said: &str) -> Error {
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
        let error = Error::new(kind, format!("cannot get {what} from the registry `{registry}`"))
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

    /// The same for what `oci-client` met.
    pub(super) fn explain_oci(&self, error: oci_client::errors::OciDistributionError) -> Error {
        use oci_client::errors::OciDistributionError as Oci;
        match error {
            Oci::RequestError(error) => self.explain(error),
            Oci::AuthenticationFailure(said) => {
                self.explain_status(401, "a token", &registry_message(said.as_bytes()))
            }
            Oci::UnauthorizedError { .. } => self.explain_status(401, "access", ""),
            Oci::ServerError { code, message, .. } => {
                self.explain_status(code, "an answer", &registry_message(message.as_bytes()))
            }
            Oci::IoError(error) => Error::io("cannot read from the store", error),
            other => Error::new(
                Kind::Unavailable,
                format!("cannot talk to the registry `{}`", self.registry),
            )
            .because(other),
        }
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

/// `Bearer realm="…",service="…"` from a challenge.
fn bearer_realm(challenge: &str) -> Option<(String, String)> {
    let (scheme, parameters) = challenge.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let parameter = |name: &str| {
        parameters.split(',').find_map(|part| {
            let (key, value) = part.trim().split_once('=')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim_matches('"').to_owned())
        })
    };
    Some((parameter("realm")?, parameter("service").unwrap_or_default()))
}

/// A host that never leaves this machine, with or without a port.
fn is_loopback(host: &str) -> bool {
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

    #[test]
    fn challenges_are_read() {
        let challenge = r#"Bearer realm="https://auth.example/token",service="registry.example",scope="x""#;
        let (realm, service) = bearer_realm(challenge).unwrap();
        assert_eq!(
            (realm.as_str(), service.as_str()),
            ("https://auth.example/token", "registry.example")
        );
        assert_eq!(bearer_realm("Basic realm=\"x\""), None);
        assert_eq!(bearer_realm(""), None);
    }

    #[test]
    fn error_pages_become_one_line() {
        let text = br#"{"errors":[{"code":"DENIED","message":"no\nway"}]}"#;
        assert_eq!(registry_message(text), "no\\nway");
        assert_eq!(registry_message(b"<html>"), "");
    }
}
