//! DHCPv4's packets, as far as a client needs them (RFC 2131, options RFC 2132).
//!
//! ```text
//! IPv4 (20 bytes) | UDP (8) | op, htype, hlen, hops | xid | secs, flags | ciaddr, yiaddr, siaddr, giaddr | chaddr (16)
//!                           | sname (64), file (128) | 63 82 53 63 | options: code, length, bytes … 255
//! ```
//! Answers are hostile: nothing of them is used but what is checked here, and no more than a packet is read.

use std::net::Ipv4Addr;
use std::time::Duration;

const CLIENT: u16 = 68;
const SERVER: u16 = 67;
const COOKIE: [u8; 4] = [0x63, 0x82, 0x53, 0x63];
/// Everything before the options, the cookie included.
const FIXED: usize = 240;
/// Servers that are asked for names; more are of no use to a resolver (resolv.conf(5)).
const NAMES: usize = 3;
/// Relays of old drop what is shorter (RFC 951).
const LEAST: usize = 300;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Discover,
    /// With a server: its offer is taken. Without: an address that was had is wanted again.
    Request {
        address: Ipv4Addr,
        server: Option<Ipv4Addr>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Offer(Lease),
    Acknowledged(Lease),
    Refused,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    pub(super) mask: Ipv4Addr,
    pub(super) router: Option<Ipv4Addr>,
    pub(super) names: Vec<Ipv4Addr>,
    pub(super) domain: Option<String>,
    pub(super) server: Ipv4Addr,
    pub(super) lasts: Duration,
}

/// The whole packet of a question, from nobody to everybody.
pub(super) fn packet(question: &Question, number: u32, card: [u8; 6], hostname: &str) -> Vec<u8> {
    let message = message(question, number, card, hostname);
    let mut segment = Vec::with_capacity(8 + message.len());
    for field in [CLIENT, SERVER, (8 + message.len()) as u16, 0] {
        segment.extend(field.to_be_bytes());
    }
    segment.extend(message);
    let (from, to) = (Ipv4Addr::UNSPECIFIED.octets(), Ipv4Addr::BROADCAST.octets());
    let mut pseudo = [from, to].concat();
    pseudo.extend([0, 17]);
    pseudo.extend((segment.len() as u16).to_be_bytes());
    pseudo.extend(&segment);
    // Zero would say that there is none (RFC 768).
    let sum = match checksum(&pseudo) {
        0 => u16::MAX,
        sum => sum,
    };
    segment[6..8].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x45, 0];
    packet.extend((20 + segment.len() as u16).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(from);
    packet.extend(to);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(segment);
    packet
}

fn message(question: &Question, number: u32, card: [u8; 6], hostname: &str) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0];
    message.extend(number.to_be_bytes());
    // Please answer to everybody: this client hears nothing else before it has an address.
    message.extend([0, 0, 0x80, 0]);
    message.resize(28, 0);
    message.extend(card);
    message.resize(FIXED - COOKIE.len(), 0);
    message.extend(COOKIE);
    let mut option = |code: u8, bytes: &[u8]| {
        message.push(code);
        message.push(bytes.len() as u8);
        message.extend(bytes);
    };
    match question {
        Question::Discover => option(53, &[1]),
        Question::Request { address, server } => {
            option(53, &[3]);
            option(50, &address.octets());
            if let Some(server) = server {
                option(54, &server.octets());
            }
        }
    }
    let name = &hostname.as_bytes()[..hostname.len().min(63)];
    if !name.is_empty() {
        option(12, name);
    }
    // Mask, router, names, domain, lease.
    option(55, &[1, 3, 6, 15, 51]);
    message.push(255);
    message.resize(message.len().max(LEAST), 0);
    message
}

/// What a packet says to the question of that number; `None` where it is none of its answers.
pub(super) fn answer(packet: &[u8], number: u32, card: [u8; 6]) -> Option<Answer> {
    let message = payload(packet)?;
    let fixed = message.get(..FIXED)?;
    let ours = fixed[0] == 2
        && fixed[1] == 1
        && fixed[2] == 6
        && fixed[4..8] == number.to_be_bytes()
        && fixed[28..34] == card
        && fixed[FIXED - 4..] == COOKIE;
    if !ours {
        return None;
    }
    let options = &message[FIXED..];
    match *option(options, 53)? {
        [2] => lease(fixed, options).map(Answer::Offer),
        [5] => lease(fixed, options).map(Answer::Acknowledged),
        [6] => Some(Answer::Refused),
        _ => None,
    }
}

/// Any bytes as an answer: no more than a lease comes of it, and no panic. For fuzzing.
pub fn absorb(packet: &[u8]) {
    let number = packet.get(32..36).map_or(0, |bytes| {
        u32::from_be_bytes(bytes.try_into().expect("four bytes were taken"))
    });
    let card = packet
        .get(56..62)
        .map_or([0; 6], |bytes| bytes.try_into().expect("six bytes were taken"));
    let _ = answer(packet, number, card);
}

/// What an unfragmented UDP packet to a client carries. Its checksum is not looked at: a virtual wire leaves it out.
fn payload(packet: &[u8]) -> Option<&[u8]> {
    let number = |bytes: &[u8], at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let first = *packet.first()?;
    let header = usize::from(first & 15) * 4;
    let total = usize::from(number(packet, 2)?);
    let fragment = number(packet, 6)? & 0x3fff;
    if first >> 4 != 4 || header < 20 || fragment != 0 || *packet.get(9)? != 17 {
        return None;
    }
    let segment = packet.get(header..total)?;
    if number(segment, 2)? != CLIENT {
        return None;
    }
    segment.get(8..usize::from(number(segment, 4)?))
}

/// The bytes of the first option of that code.
fn option(mut options: &[u8], wanted: u8) -> Option<&[u8]> {
    loop {
        match *options {
            [0, ref rest @ ..] => options = rest,
            [255, ..] | [] | [_] => return None,
            [code, length, ref rest @ ..] => {
                let bytes = rest.get(..usize::from(length))?;
                if code == wanted {
                    return Some(bytes);
                }
                options = &rest[usize::from(length)..];
            }
        }
    }
}

fn lease(fixed: &[u8], options: &[u8]) -> Option<Lease> {
    let first = |code| addresses(option(options, code)?).next();
    let address = addresses(&fixed[16..20]).next()?;
    if !is_host(address) {
        return None;
    }
    let lasts = match option(options, 51) {
        Some(bytes) => u32::from_be_bytes(bytes.try_into().ok()?),
        None => u32::MAX,
    };
    let domain = option(options, 15)
        .map(|bytes| bytes.strip_suffix(&[0]).unwrap_or(bytes))
        .filter(|bytes| is_domain(bytes));
    Some(Lease {
        address,
        mask: first(1)
            .filter(|mask| is_mask(*mask))
            .unwrap_or_else(|| usual_mask(address)),
        router: first(3).filter(|router| is_host(*router)),
        names: option(options, 6)
            .into_iter()
            .flat_map(addresses)
            .filter(|server| is_host(*server))
            .take(NAMES)
            .collect(),
        domain: domain.map(|bytes| String::from_utf8_lossy(bytes).into_owned()),
        server: first(54)?,
        lasts: Duration::from_secs(lasts.into()),
    })
}

fn addresses(bytes: &[u8]) -> impl Iterator<Item = Ipv4Addr> + '_ {
    bytes
        .chunks_exact(4)
        .map(|four| Ipv4Addr::new(four[0], four[1], four[2], four[3]))
}

fn is_host(address: Ipv4Addr) -> bool {
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || address.is_broadcast())
}

fn is_mask(mask: Ipv4Addr) -> bool {
    let bits = u32::from(mask);
    bits != 0 && bits.leading_ones() + bits.trailing_zeros() == 32
}

/// That of the address' class (RFC 791), where the server says none.
fn usual_mask(address: Ipv4Addr) -> Ipv4Addr {
    match address.octets()[0] {
        0..=127 => Ipv4Addr::new(255, 0, 0, 0),
        128..=191 => Ipv4Addr::new(255, 255, 0, 0),
        _ => Ipv4Addr::new(255, 255, 255, 0),
    }
}

/// It becomes a line of a file.
fn is_domain(bytes: &[u8]) -> bool {
    (1..=253).contains(&bytes.len())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CARD: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

    /// A server's packet made of a client's: the layout is the same but for the direction.
    fn reply(kind: u8, options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut packet = packet(&Question::Discover, 7, CARD, "");
        packet[20..24].copy_from_slice(&[0, 67, 0, 68]);
        packet[28] = 2;
        packet[28 + 16..28 + 20].copy_from_slice(&[10, 0, 2, 15]);
        packet.truncate(28 + FIXED);
        packet.extend([53, 1, kind]);
        for (code, bytes) in options {
            packet.extend([0, *code, bytes.len() as u8]);
            packet.extend(*bytes);
        }
        packet.push(255);
        let length = packet.len() as u16;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[24..26].copy_from_slice(&(length - 20).to_be_bytes());
        packet
    }

    const USUAL: [(u8, &[u8]); 6] = [
        (1, &[255, 255, 255, 0]),
        (3, &[10, 0, 2, 2]),
        (6, &[10, 0, 2, 3, 127, 0, 0, 1, 10, 0, 2, 4]),
        (15, b"example.org"),
        (51, &[0, 1, 0x51, 0x80]),
        (54, &[10, 0, 2, 2]),
    ];

    #[test]
    fn a_lease_is_what_the_server_says_of_it() {
        let expected = Lease {
            address: Ipv4Addr::new(10, 0, 2, 15),
            mask: Ipv4Addr::new(255, 255, 255, 0),
            router: Some(Ipv4Addr::new(10, 0, 2, 2)),
            names: vec![Ipv4Addr::new(10, 0, 2, 3), Ipv4Addr::new(10, 0, 2, 4)],
            domain: Some("example.org".to_owned()),
            server: Ipv4Addr::new(10, 0, 2, 2),
            lasts: Duration::from_secs(86400),
        };
        let table = [
            (2, Some(Answer::Offer(expected.clone()))),
            (5, Some(Answer::Acknowledged(expected))),
            (6, Some(Answer::Refused)),
            (1, None),
        ];
        for (kind, answered) in table {
            assert_eq!(answer(&reply(kind, &USUAL), 7, CARD), answered, "{kind}");
        }
    }

    #[test]
    fn what_is_odd_is_left_out_and_what_is_needed_is_demanded() {
        let with = |code: u8, bytes: &'static [u8]| {
            let mut options = USUAL.to_vec();
            options.retain(|(known, _)| *known != code);
            options.push((code, bytes));
            match answer(&reply(5, &options), 7, CARD) {
                Some(Answer::Acknowledged(lease)) => Some(lease),
                _ => None,
            }
        };
        assert_eq!(
            with(1, &[255, 0, 255, 0]).unwrap().mask,
            Ipv4Addr::new(255, 0, 0, 0)
        );
        assert_eq!(with(3, &[0, 0, 0, 0]).unwrap().router, None);
        assert_eq!(with(15, b"a\nnameserver 1.2.3.4").unwrap().domain, None);
        assert_eq!(with(54, &[1]), None);
        assert_eq!(with(51, &[1, 2]), None);
    }

    #[test]
    fn only_answers_to_this_question_on_this_card_count() {
        let good = reply(2, &USUAL);
        assert!(answer(&good, 7, CARD).is_some());
        assert!(answer(&good, 8, CARD).is_none());
        assert!(answer(&good, 7, [0; 6]).is_none());
        for at in [0, 6, 9, 23, 28, 28 + FIXED - 1] {
            let mut bent = good.clone();
            bent[at] ^= 0x21;
            assert!(answer(&bent, 7, CARD).is_none(), "{at}");
        }
        for length in 0..good.len() {
            assert!(answer(&good[..length], 7, CARD).is_none(), "{length}");
        }
    }

    #[test]
    fn a_question_is_a_whole_packet() {
        let packet = packet(&Question::Discover, 7, CARD, "agent");
        assert_eq!(
            usize::from(u16::from_be_bytes([packet[2], packet[3]])),
            packet.len()
        );
        assert_eq!(checksum(&packet[..20]), 0);
        let mut pseudo = packet[12..20].to_vec();
        pseudo.extend([0, 17]);
        pseudo.extend((packet.len() as u16 - 20).to_be_bytes());
        pseudo.extend(&packet[20..]);
        assert_eq!(checksum(&pseudo), 0);
        assert_eq!(option(&packet[28 + FIXED..], 12), Some(&b"agent"[..]));
        let again = Question::Request {
            address: Ipv4Addr::new(10, 0, 2, 15),
            server: None,
        };
        let message = message(&again, 7, CARD, "");
        assert_eq!(option(&message[FIXED..], 50), Some(&[10, 0, 2, 15][..]));
        assert_eq!(option(&message[FIXED..], 54), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), kind in 0u8..8) {
            absorb(&bytes);
            let mut packet = reply(kind, &USUAL);
            for (at, byte) in bytes.iter().enumerate() {
                let place = (at * 7) % packet.len();
                packet[place] ^= byte & 1;
            }
            absorb(&packet);
        }
    }
}
