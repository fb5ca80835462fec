//! Who may use the computer: a bearer token for programs, a one-time ticket that becomes a session cookie for people.
//!
//! ```text
//! LUNA_TOKEN ── Authorization: Bearer ─────────────────────────────▶ in
//!     └─ POST /v1/tickets ─▶ ticket (60 s, once) ─ GET /?ticket= ─▶ session cookie (12 h) ─▶ in
//! ```
//!
//! The peer's address proves nothing: the runtime's relay and the programs in the sandbox both come from loopback. The secret
//! is the token; sessions are MACs under it, so they outlive a restart of the service and end when the token changes. Nothing
//! secret is stored, printed (but the first ticket where no token was given) or handed to a child: children start with a
//! clean environment, and `main` makes the service unreadable to them.

pub mod origin;
mod session;
mod ticket;
pub mod token;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::http::{HeaderMap, header};

use origin::Hosts;
use session::Sessions;
use ticket::Tickets;
use token::Token;

/// Decides over every request. See the module.
#[derive(Debug)]
pub struct Access {
    token: Token,
    tickets: Mutex<Tickets>,
    sessions: Sessions,
    pub hosts: Hosts,
}

/// What a request showed to be let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A program that holds the token.
    Bearer,
    /// A browser with a session; what it sends may be another site's idea, so its origin is checked.
    Session,
}

impl Access {
    /// How long a ticket is good for.
    pub const TICKET: Duration = Duration::from_secs(60);
    /// The same for the one that is logged when nobody gave a token: a person has to find it first.
    pub const FIRST_TICKET: Duration = Duration::from_secs(600);

    pub fn new(token: Token, hosts: Hosts) -> Access {
        Access {
            sessions: Sessions::of(&token),
            token,
            tickets: Mutex::default(),
            hosts,
        }
    }

    /// The strongest valid credential among the headers.
    pub fn credential(&self, headers: &HeaderMap) -> Option<Credential> {
        let bearer = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .is_some_and(|(_, presented)| self.token.is(presented.trim()));
        if bearer {
            return Some(Credential::Bearer);
        }
        headers
            .get_all(header::COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .any(|(name, value)| {
                name == self.sessions.cookie() && self.sessions.valid(&self.token, value, SystemTime::now())
            })
            .then_some(Credential::Session)
    }

    pub fn issue_ticket(&self, life: Duration) -> String {
        self.tickets().issue(&self.token, Instant::now(), life)
    }

    /// A `Set-Cookie` value in exchange for a ticket, which is void from here on.
    pub fn redeem(&self, ticket: &str) -> Option<String> {
        self.tickets()
            .redeem(&self.token, ticket, Instant::now())
            .then(|| self.sessions.set_cookie(&self.token, SystemTime::now()))
    }

    fn tickets(&self) -> std::sync::MutexGuard<'_, Tickets> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
