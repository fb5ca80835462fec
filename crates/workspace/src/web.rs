//! What port 8080 answers.
//!
//! | route | who | what |
//! |---|---|---|
//! | `GET /healthz` | anyone | `{"ok":true,"screen":…,"browser":…}` and nothing else |
//! | `GET /` | session or bearer | the page; with `?ticket=`, the page and a session |
//! | `GET /app.js`, … | session or bearer | the page's own files |
//! | `GET /ws/screen` | session or bearer | WebSocket: RFB, byte for byte |
//! | `GET /v1/sandbox` | session or bearer | the wall, what was measured, the desktop's state |
//! | `POST /v1/tickets` | bearer | a one-time ticket for a browser |
//!
//! [`guard`] stands before all of them, and before what does not exist. Errors are JSON, `{"error":{"message","hint"}}`, but for
//! the page's, which people see.

mod assets;
mod door;
pub mod listen;
mod relay;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use axum::extract::{DefaultBodyLimit, Request, State as Shared};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde_json::json;
use tokio::sync::{Semaphore, watch};

use crate::access::{Access, Credential, origin};
use crate::desktop::{Stage, State};
use crate::facts::{Facts, Told};

/// Everything the routes share.
#[derive(Debug)]
pub struct Computer {
    pub access: Access,
    told: Told,
    desktop: watch::Receiver<State>,
    screen_socket: PathBuf,
    viewers: Arc<Semaphore>,
}

impl Computer {
    /// More people than this do not watch one screen.
    const VIEWERS: usize = 16;

    pub fn new(
        access: Access,
        told: Told,
        desktop: watch::Receiver<State>,
        screen_socket: PathBuf,
    ) -> Arc<Computer> {
        Arc::new(Computer {
            access,
            told,
            desktop,
            screen_socket,
            viewers: Arc::new(Semaphore::new(Computer::VIEWERS)),
        })
    }
}

/// No request here has a body worth more.
const BODY: usize = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(10);

/// Own files only, no inline script or style; `data:` images are what the RFB client makes of the remote cursor.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub fn router(computer: Arc<Computer>) -> Router {
    Router::new()
        .route("/", get(door::page))
        .route("/healthz", get(healthz))
        .route("/ws/screen", get(relay::screen))
        .route("/v1/sandbox", get(sandbox))
        .route("/v1/tickets", post(tickets))
        .route("/{file}", get(assets::file))
        .fallback(async || refusal(StatusCode::NOT_FOUND, "there is nothing under this path", None))
        .method_not_allowed_fallback(async || {
            refusal(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path does not take that method",
                None,
            )
        })
        .layer(DefaultBodyLimit::max(BODY))
        .layer(from_fn_with_state(Arc::clone(&computer), guard))
        .with_state(computer)
}

/// Lets a request through or answers it: first `Host`, then credentials, then origin. Adds the headers that every answer has.
async fn guard(Shared(computer): Shared<Arc<Computer>>, mut request: Request, next: Next) -> Response {
    let mut answer = match judge(&computer, &request) {
        Ok(credential) => {
            request.extensions_mut().insert(credential);
            tokio::time::timeout(PATIENCE, next.run(request))
                .await
                .unwrap_or_else(|_| refusal(StatusCode::GATEWAY_TIMEOUT, "this took too long", None))
        }
        Err(refused) => refused.into_response(),
    };
    let headers = answer.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
        (
            header::HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static(CONTENT_POLICY));
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    answer
}

/// What a request showed, for the routes: `None` only where anyone may ask.
type Shown = Option<Credential>;

fn judge(computer: &Computer, request: &Request) -> Result<Shown, Refusal> {
    let headers = request.headers();
    // HTTP/1.1 has exactly one `Host`; an absolute request target would override it, so it is not taken.
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts
        .next()
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    if hosts.next().is_some() || request.uri().authority().is_some() || !computer.access.hosts.allow(host) {
        return Err(Refusal {
            status: StatusCode::MISDIRECTED_REQUEST,
            message: "this computer is not known under that name",
            hint: Some("ask for `localhost` or `127.0.0.1`, or name the host in `LUNA_ALLOWED_HOSTS`"),
        });
    }
    let (path, method) = (request.uri().path(), request.method());
    if path == "/healthz" {
        return Ok(None);
    }
    let Some(credential) = computer.access.credential(headers) else {
        // The page's own door turns people away in their language, and takes tickets.
        if path == "/" && matches!(*method, Method::GET | Method::HEAD) {
            return Ok(None);
        }
        return Err(Refusal {
            status: StatusCode::UNAUTHORIZED,
            message: "this needs the token or a session",
            hint: Some("send `Authorization: Bearer TOKEN`, or open the page by `luna open`"),
        });
    };
    let arriving = path == "/" && *method == Method::GET && !headers.contains_key(header::UPGRADE);
    if !arriving && !origin::own(method, headers, host, credential) {
        return Err(Refusal {
            status: StatusCode::FORBIDDEN,
            message: "this was asked for by another site",
            hint: None,
        });
    }
    Ok(Some(credential))
}

/// Why a request is not done, for programs: `{"error":{"message","hint"}}`.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    message: &'static str,
    hint: Option<&'static str>,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = Json(json!({"error": {"message": self.message, "hint": self.hint}}));
        let mut answer = (self.status, body).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        answer
    }
}

fn refusal(status: StatusCode, message: &'static str, hint: Option<&'static str>) -> Response {
    Refusal {
        status,
        message,
        hint,
    }
    .into_response()
}

async fn healthz(Shared(computer): Shared<Arc<Computer>>) -> Json<serde_json::Value> {
    let state = computer.desktop.borrow();
    Json(json!({
        "ok": true,
        "screen": state.screen == Stage::Ready,
        "browser": state.browser == Stage::Ready,
    }))
}

async fn sandbox(Shared(computer): Shared<Arc<Computer>>) -> Response {
    let told = computer.told.clone();
    let facts = tokio::task::spawn_blocking(move || Facts::gather(told)).await;
    match facts {
        Ok(facts) => {
            let desktop = computer.desktop.borrow().clone();
            let mut answer = json!(facts);
            answer["desktop"] = json!(desktop);
            Json(answer).into_response()
        }
        Err(_) => refusal(
            StatusCode::INTERNAL_SERVER_ERROR,
            "cannot measure this computer",
            None,
        ),
    }
}

async fn tickets(Shared(computer): Shared<Arc<Computer>>, Extension(shown): Extension<Shown>) -> Response {
    // A page cannot make more of itself: only who holds the token lets others in.
    if shown != Some(Credential::Bearer) {
        return refusal(
            StatusCode::FORBIDDEN,
            "only the token makes tickets",
            Some("send `Authorization: Bearer TOKEN`"),
        );
    }
    let ticket = computer.access.issue_ticket(Access::TICKET);
    let answer = json!({"ticket": ticket, "expires_in_seconds": Access::TICKET.as_secs()});
    (StatusCode::CREATED, Json(answer)).into_response()
}
