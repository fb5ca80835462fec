//! Sessions: what a browser keeps instead of the token. A cookie's value is `EXPIRY.NONCE.MAC`: seconds since 1970, 16
//! random bytes and the MAC of both, in hexadecimal. Nothing is stored, so a restart of the service ends no session.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::token::{Token, hex, random, unhex};

#[derive(Debug)]
pub(super) struct Sessions {
    cookie: String,
}

impl Sessions {
    const LIFE: Duration = Duration::from_secs(12 * 3600);

    /// The cookie's name carries a trace of the token: browsers share cookies between the ports of a host, and two computers
    /// on one host must not overwrite each other's.
    pub(super) fn of(token: &Token) -> Sessions {
        let trace = token.tag("cookie name", "");
        Sessions {
            cookie: format!("luna_{}", hex(&trace[..4])),
        }
    }

    pub(super) fn cookie(&self) -> &str {
        &self.cookie
    }

    pub(super) fn set_cookie(&self, token: &Token, now: SystemTime) -> String {
        let body = format!("{}.{}", seconds(now + Sessions::LIFE), hex(&random::<16>()));
        let mac = hex(&token.tag("session", &body));
        format!(
            "{}={body}.{mac}; Path=/; Max-Age={}; HttpOnly; SameSite=Strict",
            self.cookie,
            Sessions::LIFE.as_secs()
        )
    }

    #[allow(clippy::unused_self)]
    pub(super) fn valid(&self, token: &Token, value: &str, now: SystemTime) -> bool {
        let Some((body, mac)) = value.rsplit_once('.') else {
            return false;
        };
        let genuine = unhex::<32>(mac).is_some_and(|mac| token.verifies("session", body, &mac));
        let expiry = body
            .split_once('.')
            .and_then(|(expiry, _)| expiry.parse::<u64>().ok());
        genuine && expiry.is_some_and(|expiry| expiry > seconds(now))
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(set_cookie: &str) -> &str {
        let pair = set_cookie.split(';').next().unwrap();
        pair.split_once('=').unwrap().1
    }

    #[test]
    fn a_session_lasts_its_life_and_no_longer() {
        let (token, now) = (Token::generate(), SystemTime::now());
        let sessions = Sessions::of(&token);
        let cookie = sessions.set_cookie(&token, now);
        assert!(cookie.contains("; HttpOnly; SameSite=Strict"));
        assert!(sessions.valid(&token, value(&cookie), now));
        assert!(!sessions.valid(&token, value(&cookie), now + Sessions::LIFE));
    }

    #[test]
    fn a_forged_or_foreign_session_is_no_session() {
        let (token, now) = (Token::generate(), SystemTime::now());
        let sessions = Sessions::of(&token);
        let cookie = sessions.set_cookie(&token, now);
        let (body, mac) = value(&cookie).rsplit_once('.').unwrap();
        let (expiry, nonce) = body.split_once('.').unwrap();
        for forged in [
            String::new(),
            ".".into(),
            body.to_owned(),
            format!("{body}.{}", "0".repeat(64)),
            format!("9{expiry}.{nonce}.{mac}"),
            format!("{body}.{}", &mac[2..]),
        ] {
            assert!(!sessions.valid(&token, &forged, now), "{forged}");
        }
        let other = Token::generate();
        assert!(!sessions.valid(&other, value(&cookie), now));
        assert_ne!(Sessions::of(&other).cookie(), sessions.cookie());
    }
}
