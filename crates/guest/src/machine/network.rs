//! The network of a machine without a host: the first card that a DHCP server answers on, for as long as the machine runs.
//!
//! A child of the first process does it, so that a lease is renewed whatever else goes on.

mod dhcp;
mod sys;

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

pub use dhcp::absorb;
use dhcp::{Answer, Lease, Question};

/// Where the names of the lease are kept, as `resolv.conf` has them.
pub(super) const RESOLVER: &str = "/resolv.conf";

const CARDS: &str = "/sys/class/net";
/// The first wait for an answer; each of [`TRIES`] waits twice as long (RFC 2131, 4.1).
const ANSWER: Duration = Duration::from_secs(1);
const TRIES: u32 = 4;
/// Between two rounds in which nobody answered.
const QUIET: Duration = Duration::from_secs(5);
/// A lease is not renewed more often, whatever the server says.
const SHORTEST: Duration = Duration::from_secs(30);

/// Starts the child and waits, at most so long, until there is an address. `resolver` is the number of the sandbox's file
/// that follows the lease.
pub(super) fn start(hostname: &str, resolver: Option<usize>, patience: Duration) {
    let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let Ok((ready, report)) = pipe else { return };
    match super::sys::fork() {
        Ok(None) => {
            drop(ready);
            keep(hostname, resolver, report)
        }
        // Its descriptor is not needed: the child ends with the machine.
        Ok(Some(_)) => drop(report),
        Err(_) => return,
    }
    await_readable(&ready, patience);
}

struct Card {
    name: String,
    address: [u8; 6],
}

/// The child's life.
fn keep(hostname: &str, resolver: Option<usize>, report: OwnedFd) -> ! {
    let mut report = Some(report);
    loop {
        let found = cards().into_iter().find_map(|card| {
            let lease = obtain(&card, hostname)?;
            Some((card, lease))
        });
        let Some((card, lease)) = found else {
            std::thread::sleep(QUIET);
            continue;
        };
        let mut current = lease;
        while apply(&card, &current, resolver).is_ok() {
            // Closed: whoever waits goes on.
            report = None;
            let Some(next) = renew(&card, hostname, &current) else {
                break;
            };
            current = next;
        }
        let _ = sys::forget(&card.name);
        drop(report.take());
    }
}

/// Ethernet cards that are plugged in, in the order of their names; all of them are turned on by this.
fn cards() -> Vec<Card> {
    let mut names: Vec<String> = fs::read_dir(CARDS)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().join("device").exists())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    for name in &names {
        let _ = sys::turn_on(name);
    }
    let since = Instant::now();
    // A link takes its time to come up.
    while !names.iter().any(|name| has_carrier(name)) && since.elapsed() < QUIET {
        std::thread::sleep(Duration::from_millis(10));
    }
    names
        .into_iter()
        .filter(|name| has_carrier(name))
        .filter_map(|name| {
            let text = fs::read_to_string(Path::new(CARDS).join(&name).join("address")).ok()?;
            let address = hardware_address(text.trim())?;
            Some(Card { name, address })
        })
        .collect()
}

fn has_carrier(name: &str) -> bool {
    fs::read_to_string(Path::new(CARDS).join(name).join("carrier")).is_ok_and(|text| text.trim() == "1")
}

fn hardware_address(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok())
        .collect::<Option<_>>()?;
    bytes.try_into().ok()
}

/// Asks for any address, then for the one that was offered.
fn obtain(card: &Card, hostname: &str) -> Option<Lease> {
    let Some(Answer::Offer(offer)) = ask(card, hostname, &Question::Discover) else {
        return None;
    };
    let question = Question::Request {
        address: offer.address,
        server: Some(offer.server),
    };
    match ask(card, hostname, &question)? {
        Answer::Acknowledged(lease) => Some(lease),
        _ => None,
    }
}

/// Sleeps until half of the lease is over, then asks for the same until it has ended; `None` where it is lost. The
/// question goes to everybody, as after a restart (RFC 2131, 3.2), so that any server may answer.
fn renew(card: &Card, hostname: &str, lease: &Lease) -> Option<Lease> {
    let since = Instant::now();
    // Nobody else may have it: there is nothing to ask again.
    if lease.lasts == Duration::from_secs(u32::MAX.into()) {
        loop {
            std::thread::sleep(Duration::from_secs(86_400));
        }
    }
    std::thread::sleep((lease.lasts / 2).max(SHORTEST));
    let question = Question::Request {
        address: lease.address,
        server: None,
    };
    loop {
        match ask(card, hostname, &question) {
            Some(Answer::Acknowledged(lease)) => return Some(lease),
            Some(Answer::Refused) => return None,
            _ if since.elapsed() > lease.lasts => return None,
            _ => std::thread::sleep(SHORTEST),
        }
    }
}

/// Sends one question until it is answered; other packets are passed over.
fn ask(card: &Card, hostname: &str, question: &Question) -> Option<Answer> {
    let socket = sys::packets(&card.name).ok()?;
    let mut number = [0; 4];
    rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty()).ok()?;
    let number = u32::from_ne_bytes(number);
    let packet = dhcp::packet(question, number, card.address, hostname);
    let mut wait = ANSWER;
    for _ in 0..TRIES {
        sys::broadcast(&socket, &card.name, &packet).ok()?;
        let until = Instant::now() + wait;
        while await_readable(&socket, until.saturating_duration_since(Instant::now())) {
            let mut bytes = [0; 2048];
            let count = rustix::io::read(&socket, &mut bytes).unwrap_or(0);
            let answer = dhcp::answer(&bytes[..count], number, card.address);
            match (question, answer) {
                (Question::Discover, Some(answer @ Answer::Offer(_)))
                | (Question::Request { .. }, Some(answer @ (Answer::Acknowledged(_) | Answer::Refused))) => {
                    return Some(answer);
                }
                _ => {}
            }
        }
        wait *= 2;
    }
    None
}

fn apply(card: &Card, lease: &Lease, resolver: Option<usize>) -> Result<(), Errno> {
    sys::set_address(&card.name, lease.address, lease.mask)?;
    if let Some(router) = lease.router {
        match sys::add_default_route(&card.name, router) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    let content = resolv(&lease.names, lease.domain.as_deref());
    let _ = fs::write(RESOLVER, &content);
    if let Some(number) = resolver {
        // The same file that lies over the image's own, where a program runs already.
        let _ = fs::write(format!("/files/{number}"), &content);
    }
    Ok(())
}

fn resolv(names: &[Ipv4Addr], domain: Option<&str>) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    if let Some(domain) = domain {
        let _ = writeln!(text, "search {domain}");
    }
    for address in names {
        let _ = writeln!(text, "nameserver {address}");
    }
    text
}

/// Whether there was something to read, or an end, in time.
fn await_readable(descriptor: &OwnedFd, patience: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: patience.as_secs() as i64,
        tv_nsec: patience.subsec_nanos().into(),
    };
    let mut set = [PollFd::new(descriptor, PollFlags::IN)];
    rustix::event::poll(&mut set, Some(&timeout)).is_ok_and(|count| count > 0)
}
