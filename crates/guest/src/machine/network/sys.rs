//! Packet sockets and the settings of network cards, by ioctl (netdevice(7), packet(7), route in `linux/route.h`).

#![allow(unsafe_code)]

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, socket};

const LINK_BROADCAST: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];

fn check(result: i64) -> Result<i64, Errno> {
    if result < 0 {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    } else {
        Ok(result)
    }
}

/// Sends `request` about a card, and gives back what the kernel made of it.
fn control(number: libc::Ioctl, request: &mut libc::ifreq) -> Result<(), Errno> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: every number used here takes a pointer to an `ifreq`, which `request` is and stays for the call.
    check(i64::from(unsafe {
        libc::ioctl(socket.as_raw_fd(), number, &raw mut *request)
    }))
    .map(drop)
}

fn about(card: &str) -> Result<libc::ifreq, Errno> {
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays a zero.
    if card.len() >= request.ifr_name.len() {
        return Err(Errno::NAMETOOLONG);
    }
    for (to, byte) in request.ifr_name.iter_mut().zip(card.bytes()) {
        *to = byte as libc::c_char;
    }
    Ok(request)
}

pub(super) fn turn_on(card: &str) -> Result<(), Errno> {
    let mut request = about(card)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    control(libc::SIOCSIFFLAGS as libc::Ioctl, &mut request)
}

fn address(of: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, byte) in data[2..6].iter_mut().zip(of.octets()) {
        *to = byte as libc::c_char;
    }
    libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data: data,
    }
}

/// Gives the card this address in place of any other.
pub(super) fn set_address(card: &str, own: Ipv4Addr, mask: Ipv4Addr) -> Result<(), Errno> {
    let mut request = about(card)?;
    request.ifr_ifru.ifru_addr = address(own);
    control(libc::SIOCSIFADDR as libc::Ioctl, &mut request)?;
    request.ifr_ifru.ifru_netmask = address(mask);
    control(libc::SIOCSIFNETMASK as libc::Ioctl, &mut request)
}

/// Takes the card's address and with it its routes.
pub(super) fn forget(card: &str) -> Result<(), Errno> {
    let mut request = about(card)?;
    request.ifr_ifru.ifru_addr = address(Ipv4Addr::UNSPECIFIED);
    control(libc::SIOCSIFADDR as libc::Ioctl, &mut request)
}

/// Everything that is not near goes to `router`.
pub(super) fn add_default_route(card: &str, router: Ipv4Addr) -> Result<(), Errno> {
    let mut name = about(card)?.ifr_name;
    // SAFETY: all-zero is a valid `rtentry`.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = address(router);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    route.rt_dev = name.as_mut_ptr();
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: SIOCADDRT reads an `rtentry` and the NUL-terminated name it points to; both live through the call.
    let result = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCADDRT as libc::Ioctl,
            &raw const route,
        )
    };
    check(i64::from(result)).map(drop)
}

/// The card's place among all, and how the kernel names it in a packet's address.
fn link(card: &str) -> Result<libc::sockaddr_ll, Errno> {
    let index =
        rustix::net::netdevice::name_to_index(socket(AddressFamily::INET, SocketType::DGRAM, None)?, card)?;
    // SAFETY: all-zero is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_IP as u16).to_be();
    address.sll_ifindex = index as i32;
    Ok(address)
}

/// A socket that hears and says IPv4 packets on one card, which need not have an address.
pub(super) fn packets(card: &str) -> Result<OwnedFd, Errno> {
    let address = link(card)?;
    let protocol = rustix::net::Protocol::from_raw(
        std::num::NonZeroU32::new(u32::from((libc::ETH_P_IP as u16).to_be())).expect("it is 8 or 2048"),
    );
    let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, Some(protocol))?;
    // SAFETY: the pointer and the length are those of one `sockaddr_ll`.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    check(i64::from(result))?;
    Ok(socket)
}

/// Sends an IPv4 packet to every machine on the card's wire.
pub(super) fn broadcast(socket: &OwnedFd, card: &str, packet: &[u8]) -> Result<(), Errno> {
    let mut address = link(card)?;
    address.sll_halen = 6;
    address.sll_addr = LINK_BROADCAST;
    // SAFETY: each pointer goes with its length, and both live through the call.
    let result = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    check(result as i64).map(drop)
}
