//! Packets that no ordinary socket would send: fragments in any order, foreign sources, other EtherTypes.

use std::{io, net::Ipv4Addr, os::fd::AsRawFd};

use anyhow::{Context, Result};
use etherparse::{Ipv4Header, PacketBuilder};
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrLike};

use crate::netns::Netns;

/// A UDP datagram in IPv4, checksums right.
#[must_use]
pub fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv4(from.0.octets(), to.0.octets(), 64).udp(from.1, to.1);
    let mut packet = Vec::with_capacity(builder.size(payload.len()));
    // Writing to a vector cannot fail; a payload over 64 KB is a mistake of the caller.
    builder.write(&mut packet, payload).unwrap_or_else(|error| panic!("no such packet: {error}"));
    packet
}

/// Cuts an IPv4 packet without options into fragments whose payload is at most `size` bytes, a multiple of 8.
#[must_use]
pub fn fragments(packet: &[u8], size: usize, id: u16) -> Vec<Vec<u8>> {
    let header = Ipv4Header::from_slice(packet).map(|(header, _)| header);
    let header = header.unwrap_or_else(|error| panic!("not an IPv4 packet: {error}"));
    let payload = &packet[header.header_len()..];
    let count = payload.len().div_ceil(size);
    payload
        .chunks(size)
        .enumerate()
        .map(|(index, part)| {
            let mut header = header.clone();
            header.identification = id;
            header.dont_fragment = false;
            header.more_fragments = index + 1 < count;
            let offset = u16::try_from(index * size / 8).unwrap_or(u16::MAX);
            header.fragment_offset = offset.try_into().unwrap_or_else(|error| panic!("no such offset: {error}"));
            header.total_len = u16::try_from(header.header_len() + part.len()).unwrap_or(u16::MAX);
            header.header_checksum = header.calc_header_checksum();
            let mut fragment = header.to_bytes().to_vec();
            fragment.extend_from_slice(part);
            fragment
        })
        .collect()
}

/// Sends whole IPv4 packets from inside a namespace, routed by their destination.
///
/// # Errors
/// No raw socket, or no route.
pub fn send_ipv4(netns: &Netns, packets: &[Vec<u8>]) -> Result<()> {
    let socket = netns.inside(|| -> io::Result<_> {
        Ok(socket::socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?)
    })?;
    for packet in packets {
        let [a, b, c, d] = packet.get(16..20).and_then(|bytes| bytes.try_into().ok()).context("not an IPv4 packet")?;
        let to = SockaddrIn::new(a, b, c, d, 0);
        socket::sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty()).context("cannot send a raw packet")?;
    }
    Ok(())
}

/// Sends a whole Ethernet frame on an interface of a namespace.
///
/// # Errors
/// No such interface, or it is down.
pub fn send_frame(netns: &Netns, interface: &str, frame: &[u8]) -> Result<()> {
    let index = netns.ifindex(interface)?;
    let socket = netns.inside(|| -> io::Result<_> {
        Ok(socket::socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?)
    })?;
    // SAFETY: all zeroes is a valid value of this plain C structure.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index.cast_signed();
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer is to a whole `sockaddr_ll` of the stated length.
    let address = unsafe { socket::LinkAddr::from_raw((&raw const address).cast(), Some(len)) };
    let address = address.context("not a link address")?;
    socket::sendto(socket.as_raw_fd(), frame, &address, MsgFlags::empty()).context("cannot send a frame")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_cover_the_packet() {
        let payload: Vec<u8> = (0..2000u32).map(|n| n as u8).collect();
        let packet = udp((Ipv4Addr::new(10, 0, 0, 1), 1000), (Ipv4Addr::new(10, 0, 0, 2), 2000), &payload);
        let parts = fragments(&packet, 1200, 7);
        assert_eq!(parts.len(), 2);
        let rejoined: Vec<u8> = parts.iter().flat_map(|part| part[20..].to_vec()).collect();
        assert_eq!(rejoined, packet[20..]);
        let (second, _) = Ipv4Header::from_slice(&parts[1]).expect("a header");
        assert!(!second.more_fragments && second.fragment_offset.value() == 150 && second.identification == 7);
    }
}
