//! The service on port 8080 inside Luna's image: it runs the desktop, shows it on a page, and says which wall it
//! stands behind.
//!
//! ```text
//! main ── settings ──▶ desktop   Xvnc, window manager, Chromium: started, watched, restarted, stopped
//!                  └─▶ web       page, screen relay, facts          behind access (token, ticket, session, origin)
//! ```
//!
//! It knows nothing of the host: what it is told comes as `LUNA_*` variables ([`settings`]), what it finds out it
//! measures ([`facts`]). It runs as the desktop's own user, so it makes itself unreadable to that user's other processes
//! before it touches a secret (see [`access`]).

pub mod access;
pub mod desktop;
pub mod facts;
pub mod health;
pub mod journal;
pub mod settings;
pub mod web;
