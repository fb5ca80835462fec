//! One-time tickets: a way into a browser that may be seen in an address bar, because it is worthless after its first use.

use std::time::{Duration, Instant};

use super::token::{Tag, Token, hex, random};

/// Outstanding tickets, as MACs. The oldest gives way when there are too many.
#[derive(Debug, Default)]
pub(super) struct Tickets(Vec<(Tag, Instant)>);

impl Tickets {
    const MAX: usize = 32;

    pub(super) fn issue(&mut self, token: &Token, now: Instant, life: Duration) -> String {
        self.0.retain(|(_, expiry)| *expiry > now);
        if self.0.len() >= Tickets::MAX {
            self.0.remove(0);
        }
        let ticket = hex(&random::<24>());
        self.0.push((token.tag("ticket", &ticket), now + life));
        ticket
    }

    /// Whether this ticket was outstanding; it is not any more.
    pub(super) fn redeem(&mut self, token: &Token, ticket: &str, now: Instant) -> bool {
        self.0.retain(|(_, expiry)| *expiry > now);
        let found = self
            .0
            .iter()
            .position(|(tag, _)| token.verifies("ticket", ticket, tag));
        found.is_some_and(|index| {
            self.0.remove(index);
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(60);

    #[test]
    fn a_ticket_opens_once() {
        let (token, now) = (Token::generate(), Instant::now());
        let mut tickets = Tickets::default();
        let (first, second) = (tickets.issue(&token, now, LIFE), tickets.issue(&token, now, LIFE));
        assert_ne!(first, second);
        assert!(!tickets.redeem(&token, "", now));
        assert!(tickets.redeem(&token, &first, now));
        assert!(!tickets.redeem(&token, &first, now));
        assert!(tickets.redeem(&token, &second, now));
    }

    #[test]
    fn a_ticket_expires() {
        let (token, now) = (Token::generate(), Instant::now());
        let mut tickets = Tickets::default();
        let (early, late) = (tickets.issue(&token, now, LIFE), tickets.issue(&token, now, LIFE));
        assert!(tickets.redeem(
            &token,
            &early,
            now + LIFE.checked_sub(Duration::from_millis(1)).unwrap()
        ));
        assert!(!tickets.redeem(&token, &late, now + LIFE));
    }

    #[test]
    fn outstanding_tickets_are_bounded() {
        let (token, now) = (Token::generate(), Instant::now());
        let mut tickets = Tickets::default();
        let oldest = tickets.issue(&token, now, LIFE);
        let newest = (0..Tickets::MAX)
            .map(|_| tickets.issue(&token, now, LIFE))
            .last()
            .unwrap();
        assert_eq!(tickets.0.len(), Tickets::MAX);
        assert!(!tickets.redeem(&token, &oldest, now));
        assert!(tickets.redeem(&token, &newest, now));
    }
}
