//! The page's door: a session goes in, a ticket becomes a session, everybody else learns how to get one.

use std::sync::Arc;

use axum::extract::{Extension, State as Shared};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Redirect, Response};

use super::{Computer, Shown, assets};
use crate::access::token::{hex, random};

/// `GET /`, with or without `?ticket=`.
///
/// A ticket is answered by the page itself, which then takes it out of the address bar (`app.js`), and not by a redirect: after a
/// click in another site's page (a chat, a web terminal) a browser would follow the redirect without the `SameSite=Strict`
/// cookie it has just been given, and a program that keeps no cookies would too.
pub(super) async fn page(
    Shared(computer): Shared<Arc<Computer>>,
    Extension(shown): Extension<Shown>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let ticket = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .find_map(|pair| pair.strip_prefix("ticket="));
    let known = shown.is_some();
    match ticket {
        None if known => assets::index(&headers),
        None => closed(&computer, "This computer is locked."),
        // HEAD comes from link previews and must not use the ticket up.
        Some(_) if method == Method::HEAD => closed(&computer, "This link opens a computer, once."),
        Some(ticket) => match computer.access.redeem(ticket) {
            // In a browser that already has a session, a used link, as from its history, is as good as none.
            _ if known => Redirect::to("/").into_response(),
            None => closed(&computer, "This link has been used, or it is too old."),
            Some(cookie) => {
                let mut answer = assets::index(&HeaderMap::new());
                let cookie = HeaderValue::from_str(&cookie).expect("a session is hexadecimal");
                answer.headers_mut().insert(header::SET_COOKIE, cookie);
                answer
            }
        },
    }
}

fn closed(computer: &Computer, why: &str) -> Response {
    let nonce = hex(&random::<16>());
    let name = computer
        .told
        .name
        .as_deref()
        .filter(|name| plain(name))
        .unwrap_or("NAME");
    let page = include_str!("../../assets/closed.html")
        .replace("{nonce}", &nonce)
        .replace("{why}", why)
        .replace("{name}", name);
    let mut answer = (StatusCode::UNAUTHORIZED, Html(page)).into_response();
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = answer.headers_mut();
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_str(&policy).expect("the nonce is hexadecimal"),
    );
    headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    answer
}

/// A sandbox's name as Luna allows it, so that it can stand in HTML and in a command as it is.
fn plain(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}
