//! Under which names the page may be asked, and by which pages.
//!
//! A hostile site can point a name of its own at 127.0.0.1 (DNS rebinding) or send requests across origins, and the browser
//! adds the cookie: so `Host` must be a name that only loopback has, or one that was allowed, and what changes something or opens
//! a WebSocket must come from the page itself.

use axum::http::{HeaderMap, Method, header};

use super::Credential;

/// Names besides loopback's own.
#[derive(Clone, Debug, Default)]
pub struct Hosts(Vec<String>);

impl Hosts {
    /// From a list of names by comma.
    pub fn with(list: &str) -> Hosts {
        Hosts(
            list.split(',')
                .map(|name| name.trim().trim_end_matches('.').to_ascii_lowercase())
                .filter(|name| !name.is_empty())
                .collect(),
        )
    }

    /// Whether a `Host` header's value, with or without a port, names this computer.
    pub fn allow(&self, host: &str) -> bool {
        let Some(name) = name_of(host) else {
            return false;
        };
        let name = name.to_ascii_lowercase();
        matches!(name.as_str(), "localhost" | "127.0.0.1" | "[::1]")
            || name
                .strip_suffix(".localhost")
                .is_some_and(|label| !label.is_empty())
            || self.0.contains(&name)
    }
}

/// The host without its port; `None` where the port is none.
fn name_of(host: &str) -> Option<&str> {
    let end = match host.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => host.find(':').unwrap_or(host.len()),
    };
    let (name, port) = host.split_at(end);
    let fine = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|digits| digits.parse::<u16>().is_ok());
    fine.then_some(name)
}

/// Whether a request, let in by `credential`, was made by this computer's own page or by a program.
///
/// Browsers say where a request comes from by `Sec-Fetch-Site`, and by `Origin` on every WebSocket and every unsafe method.
/// Another port of the same host is another origin, though cookies and `SameSite` do not tell them apart.
pub fn own(method: &Method, headers: &HeaderMap, host: &str, credential: Credential) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if matches!(text("sec-fetch-site"), Some("cross-site" | "same-site")) {
        return false;
    }
    match headers.get(header::ORIGIN) {
        Some(origin) => origin.to_str().is_ok_and(|origin| {
            origin
                .strip_prefix("http://")
                .or_else(|| origin.strip_prefix("https://"))
                .is_some_and(|authority| authority.eq_ignore_ascii_case(host))
        }),
        None => {
            credential == Credential::Bearer || (method.is_safe() && !headers.contains_key(header::UPGRADE))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopbacks_names_and_allowed_ones_are_answered() {
        let hosts = Hosts::with("luna.example, Other.Example.");
        for good in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:1",
            "[::1]:8080",
            "[::1]",
            "a.b.localhost:80",
            "luna.example:8080",
            "other.example",
        ] {
            assert!(hosts.allow(good), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1:80:80",
            "localhost:x",
            "localhost:99999",
            ".localhost",
            "[::1",
            "[::1]x",
            "[::2]:8080",
            "127.0.0.2",
            "0.0.0.0:8080",
            "user@localhost",
            "evil.example#.localhost:1:",
        ] {
            assert!(!hosts.allow(bad), "{bad}");
        }
    }

    #[test]
    fn a_browser_must_come_from_the_page_itself() {
        use Credential::{Bearer, Session};
        let judged = |method: Method, pairs: &[(&'static str, &str)], credential| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().unwrap());
            }
            own(&method, &headers, "127.0.0.1:8080", credential)
        };
        let page = ("origin", "http://127.0.0.1:8080");
        let socket = ("upgrade", "websocket");
        assert!(judged(Method::GET, &[], Session));
        assert!(judged(Method::POST, &[], Bearer));
        assert!(judged(Method::GET, &[socket], Bearer));
        assert!(judged(Method::POST, &[page], Session));
        assert!(judged(Method::GET, &[page, socket], Session));
        assert!(judged(
            Method::POST,
            &[("origin", "https://127.0.0.1:8080")],
            Session
        ));
        assert!(judged(Method::GET, &[("sec-fetch-site", "same-origin")], Session));

        assert!(!judged(Method::POST, &[], Session));
        assert!(!judged(Method::GET, &[socket], Session));
        for origin in [
            "http://127.0.0.1:9090",
            "http://127.0.0.1",
            "ftp://127.0.0.1:8080",
            "null",
            "",
        ] {
            assert!(!judged(Method::POST, &[("origin", origin)], Session), "{origin}");
            assert!(!judged(Method::GET, &[("origin", origin)], Bearer), "{origin}");
        }
        assert!(!judged(Method::GET, &[("sec-fetch-site", "same-site")], Session));
        assert!(!judged(
            Method::GET,
            &[("sec-fetch-site", "cross-site"), page],
            Session
        ));
    }

    proptest::proptest! {
        #[test]
        fn any_host_is_safe_to_judge(host: String) {
            let _ = Hosts::default().allow(&host);
        }
    }
}
