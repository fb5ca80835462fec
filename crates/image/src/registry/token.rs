//! Token authentication (distribution "Token Authentication Specification"): what a registry's challenge asks for, and
//! where credentials may go because of it.
//!
//! The realm is the registry's word, so it is held to the rule that holds for the registry: no credentials over plain
//! HTTP, but within this host or where the user allowed it.

use luna_core::{Error, Kind, Result};
use reqwest::Url;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use serde::Deserialize;

use super::connection::is_loopback;

/// How a registry wants to know who asks (RFC 9110, section 11.6.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    /// `service` is empty where none is named.
    Bearer {
        realm: String,
        service: String,
    },
}

/// The challenge of an answer; a token where there is a choice.
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let challenges = headers.get_all(WWW_AUTHENTICATE).into_iter();
    let mut found: Vec<Challenge> = challenges
        .filter_map(|value| parse(value.to_str().ok()?))
        .collect();
    let bearer = found
        .iter()
        .position(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    match bearer {
        Some(at) => Some(found.swap_remove(at)),
        None => found.pop(),
    }
}

fn parse(text: &str) -> Option<Challenge> {
    let (scheme, mut rest) = text.split_once(' ').unwrap_or((text, ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service) = (None, String::new());
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        let key = key.trim_matches([' ', ',']);
        if key.eq_ignore_ascii_case("realm") {
            realm = Some(value.to_owned());
        } else if key.eq_ignore_ascii_case("service") {
            value.clone_into(&mut service);
        }
        rest = after;
    }
    Some(Challenge::Bearer {
        realm: realm?,
        service,
    })
}

/// The address a token may be asked from. Plain HTTP stays within this host, and only a registry that is here itself
/// (`near`) may point there, unless the user allowed more.
pub(super) fn realm(text: &str, near: bool, insecure: bool) -> Result<Url> {
    let shown: String = text.chars().take(200).collect();
    let cannot = |kind| Error::new(kind, format!("cannot ask `{}` for a token", shown.escape_debug()));
    let url = Url::parse(text).map_err(|error| cannot(Kind::Corrupt).because(error))?;
    let plain = match url.scheme() {
        "https" => false,
        "http" => true,
        _ => return Err(cannot(Kind::Corrupt).because("it is no web address")),
    };
    if plain && !insecure && !(near && url.host_str().is_some_and(is_loopback)) {
        return Err(cannot(Kind::Refused)
            .because("the registry sends credentials there without encryption")
            .hint("have the registry name an `https:` realm; where the network can be trusted, `--insecure` allows it"));
    }
    Ok(url)
}

/// The token in an answer, under either of its two names.
pub(super) fn read(answer: &[u8]) -> Result<String> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let unreadable = || Error::new(Kind::Corrupt, "cannot read the registry's token");
    let answer: Answer = serde_json::from_slice(answer).map_err(|error| unreadable().because(error))?;
    answer
        .token
        .or(answer.access_token)
        .filter(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()))
        .ok_or_else(|| unreadable().because("there is none in its answer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer = |realm: &str, service: &str| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.to_owned(),
            })
        };
        for (text, read) in [
            (
                r#"Bearer realm="https://auth.example/token",service="registry.example",scope="a:b:pull,push""#,
                bearer("https://auth.example/token", "registry.example"),
            ),
            (
                r#"bearer scope="a:b:pull,push", realm="https://a.example/t?x=1,2", service=plain"#,
                bearer("https://a.example/t?x=1,2", "plain"),
            ),
            (r#"Bearer realm="https://a.example"#, None),
            ("Bearer service=\"x\"", None),
            ("Basic realm=\"x\"", Some(Challenge::Basic)),
            ("", None),
        ] {
            assert_eq!(parse(text), read, "{text}");
        }
    }

    #[test]
    fn credentials_stay_off_plain_http() {
        for (text, near, insecure, allowed) in [
            ("https://auth.example/token", false, false, true),
            ("http://auth.example/token", false, false, false),
            ("http://auth.example/token", true, false, false),
            ("http://auth.example/token", false, true, true),
            ("http://127.0.0.1:5001/token", true, false, true),
            ("http://[::1]:5001/token", true, false, true),
            ("http://127.0.0.1:5001/token", false, false, false),
            ("http://127.0.0.1@evil.example/", true, false, false),
            ("file:///etc/passwd", true, true, false),
            ("token", true, true, false),
        ] {
            assert_eq!(realm(text, near, insecure).is_ok(), allowed, "{text}");
        }
    }

    #[test]
    fn tokens_have_two_names_and_no_line_ends() {
        assert_eq!(read(br#"{"token":"a","access_token":"b"}"#).unwrap(), "a");
        assert_eq!(read(br#"{"access_token":"b","expires_in":60}"#).unwrap(), "b");
        for bad in ["{}", r#"{"token":""}"#, r#"{"token":"a\r\nb"}"#, "<html>"] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
