//! The one secret, and the MACs made with it (HMAC-SHA-256), which also make every comparison constant in time.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// A MAC under the token.
pub type Tag = [u8; 32];

/// The bearer token. `Debug` does not show it.
pub struct Token(Vec<u8>);

impl Token {
    /// Below this a token could be guessed.
    const MIN: usize = 16;
    const MAX: usize = 4096;

    /// Visible ASCII, so that it can travel in a header.
    pub fn parse(text: &str) -> Result<Token, String> {
        if !(Token::MIN..=Token::MAX).contains(&text.len()) {
            return Err(format!(
                "it has {} bytes; {} to {} are accepted",
                text.len(),
                Token::MIN,
                Token::MAX
            ));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("it holds something else than visible ASCII".to_owned());
        }
        Ok(Token(text.as_bytes().to_vec()))
    }

    /// 256 random bits in hexadecimal.
    pub fn generate() -> Token {
        Token(hex(&random::<32>()).into_bytes())
    }

    /// Whether `presented` is the token, in a time that tells nothing.
    pub fn is(&self, presented: &str) -> bool {
        let own = String::from_utf8_lossy(&self.0);
        self.verifies("bearer", presented, &self.tag("bearer", &own))
    }

    /// The MAC of a value for one purpose; tags of different purposes never match.
    pub fn tag(&self, purpose: &str, value: &str) -> Tag {
        self.mac(purpose, value).finalize().into_bytes().into()
    }

    pub fn verifies(&self, purpose: &str, value: &str, tag: &Tag) -> bool {
        self.mac(purpose, value).verify_slice(tag).is_ok()
    }

    fn mac(&self, purpose: &str, value: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(purpose.as_bytes());
        mac.update(&[0]);
        mac.update(value.as_bytes());
        mac
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// Bytes from the kernel's generator; blocks only before it is seeded.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("cannot get random bytes, and there is no secret without: {error}"),
        }
    }
    bytes
}

pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

/// The opposite of [`hex`] for exactly `N` bytes.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_is_the_token() {
        let token = Token::parse("0123456789abcdef").unwrap();
        assert!(token.is("0123456789abcdef"));
        for wrong in ["", "0123456789abcde", "0123456789abcdef0", "0123456789abcdeF"] {
            assert!(!token.is(wrong));
        }
        assert!(!format!("{token:?}").contains("0123"));
    }

    #[test]
    fn a_weak_or_unspeakable_token_is_refused() {
        assert!(Token::parse("0123456789abcde").is_err());
        assert!(Token::parse("0123456789 abcdef").is_err());
        assert!(Token::parse("0123456789abcdéf").is_err());
    }

    #[test]
    fn tags_of_one_purpose_do_not_serve_another() {
        let token = Token::generate();
        let tag = token.tag("ticket", "x");
        assert!(token.verifies("ticket", "x", &tag));
        assert!(!token.verifies("session", "x", &tag));
        assert!(!Token::generate().verifies("ticket", "x", &tag));
    }

    proptest::proptest! {
        #[test]
        fn hexadecimal_round_trips(bytes: [u8; 16]) {
            proptest::prop_assert_eq!(unhex::<16>(&hex(&bytes)), Some(bytes));
        }

        #[test]
        fn any_text_is_safe_to_unhex(text: String) {
            let _ = unhex::<16>(&text);
        }
    }
}
