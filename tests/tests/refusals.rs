//! What must not get through, and is counted.
//!
//! ```text
//!   router --+-- n1 -- pods a, b
//!            +-- n2 -- pod c
//!            +-- x3, a host that is no node
//! ```

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use shunt_common::verdict::{Counter, DropReason};
use shunt_lab::{
    capture::Capture,
    lab::{Lab, eventually},
    netns::Netns,
    node::Node,
    pod::Pod,
    service::SOON,
    topology::{OUTSIDE, PAIR, VNI, VXLAN_PORT, WITH_STRANGER},
    traffic::packet::{send_frame, send_ipv4, udp},
};

const PORT: u16 = 9000;

/// A drop counter rises by at least `by`.
fn counted<T>(node: &Node, reason: DropReason, by: u64, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = node.drops(reason)?;
    let outcome = work()?;
    eventually(SOON, || {
        let after = node.drops(reason)?;
        ensure!(after >= before + by, "{} was {before}, is {after}", reason.name());
        Ok(())
    })?;
    Ok(outcome)
}

/// A socket that must stay silent.
fn ear(netns: &Netns, address: Ipv4Addr) -> Result<UdpSocket> {
    let socket = netns.inside(|| UdpSocket::bind((address, PORT)))?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    Ok(socket)
}

fn hears_nothing(socket: &UdpSocket) -> Result<()> {
    let heard = socket.recv_from(&mut [0; 100]);
    ensure!(heard.is_err(), "something got through: {heard:?}");
    Ok(())
}

#[test]
fn a_pod_cannot_send_from_an_address_that_is_not_its_own() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (a, b, c) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?, lab.pod("n2", "c")?);
    let n1 = lab.node("n1");
    for (target, pod) in [(ear(&b.netns, b.address)?, &b), (ear(&c.netns, c.address)?, &c)] {
        for source in [b.address, c.address, n1.address(), Ipv4Addr::new(8, 8, 8, 8)] {
            let forged = udp((source, 1234), (pod.address, PORT), b"forged");
            counted(n1, DropReason::SourceSpoofed, 1, || send_ipv4(&a.netns, &[forged]))?;
        }
        hears_nothing(&target)?;
        let honest = udp((a.address, 1234), (pod.address, PORT), b"honest");
        send_ipv4(&a.netns, &[honest])?;
        ensure!(target.recv_from(&mut [0; 100])?.0 == 6, "what is honest passes");
    }
    Ok(())
}

/// The payload of a tunnel packet that holds a datagram.
fn tunnelled(vni: u32, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0];
    payload.extend_from_slice(&(vni << 8).to_be_bytes());
    let builder =
        PacketBuilder::ethernet2([2; 6], [0x72, 0x73, 192, 0, 2, 11]).ipv4(from.octets(), to.octets(), 64).udp(1234, PORT);
    let mut inner = Vec::new();
    builder.write(&mut inner, b"tunnelled").unwrap_or_else(|error| panic!("no such packet: {error}"));
    payload.extend_from_slice(&inner);
    payload
}

fn sends(from: &Netns, to: Ipv4Addr, payload: &[u8]) -> Result<()> {
    let socket = from.inside(|| UdpSocket::bind("0.0.0.0:0"))?;
    socket.send_to(payload, (to, VXLAN_PORT)).context("cannot send a tunnel packet")?;
    Ok(())
}

#[test]
fn tunnel_packets_from_a_stranger_or_of_another_network_are_dropped() -> Result<()> {
    let lab = Lab::build(&WITH_STRANGER)?;
    let (a, c) = (lab.pod("n1", "a")?, lab.pod("n2", "c")?);
    let (n1, n2, stranger) = (lab.node("n1"), lab.node("n2"), &lab.bare[0]);
    let target = ear(&a.netns, a.address)?;
    let good = tunnelled(VNI, c.address, a.address);

    counted(n1, DropReason::TunnelPeerUnknown, 1, || sends(stranger, n1.address(), &good))?;
    counted(n1, DropReason::TunnelVniUnknown, 1, || sends(&n2.netns, n1.address(), &tunnelled(77, c.address, a.address)))?;
    counted(n1, DropReason::TunnelMalformed, 2, || {
        sends(&n2.netns, n1.address(), &good[..20])?;
        sends(&n2.netns, n1.address(), &good[..40])
    })?;
    hears_nothing(&target)?;
    sends(&n2.netns, n1.address(), &good)?;
    ensure!(target.recv_from(&mut [0; 100])?.0 == 9, "the same from a node passes");
    Ok(())
}

fn frame(pod: &Pod, ether_type: u16, payload: &[u8]) -> Result<Vec<u8>> {
    let mut frame = vec![0xee; 6];
    frame.extend_from_slice(&pod.netns.mac("eth0")?.bytes);
    frame.extend_from_slice(&ether_type.to_be_bytes());
    frame.extend_from_slice(payload);
    Ok(frame)
}

#[test]
fn ipv6_and_unknown_protocols_from_a_pod_are_dropped() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let a = lab.pod("n1", "a")?;
    let n1 = lab.node("n1");
    let mut ipv6 = vec![0x60, 0, 0, 0, 0, 0, 59, 64];
    ipv6.extend_from_slice(&[0xfd; 32]);
    let ipv6 = frame(&a, 0x86dd, &ipv6)?;
    counted(n1, DropReason::Ipv6Unsupported, 3, || (0..3).try_for_each(|_| send_frame(&a.netns, "eth0", &ipv6)))?;
    let other = frame(&a, 0x88b5, &[0; 46])?;
    counted(n1, DropReason::ProtocolUnsupported, 3, || (0..3).try_for_each(|_| send_frame(&a.netns, "eth0", &other)))?;
    Ok(())
}

#[test]
fn a_pod_has_no_way_into_vlans() -> Result<()> {
    const VLAN_5: [u8; 4] = [0, 5, 8, 0];
    let lab = Lab::build(&PAIR)?;
    let a = lab.pod("n1", "a")?;
    let n1 = lab.node("n1");
    let packet = udp((a.address, 1234), (OUTSIDE, PORT), b"into another network");
    let tagged = frame(&a, 0x8100, &[&VLAN_5, &packet[..]].concat())?;
    let capture = Capture::start(lab.fabric(), "to-n1", &format!("udp port {PORT} or (vlan and udp port {PORT})"), lab.dir())?;
    counted(n1, DropReason::ProtocolUnsupported, 3, || (0..3).try_for_each(|_| send_frame(&a.netns, "eth0", &tagged)))?;
    let before = n1.counter(Counter::ToOutside)?;
    send_frame(&a.netns, "eth0", &frame(&a, 0x0800, &packet)?)?;
    eventually(SOON, || {
        ensure!(n1.counter(Counter::ToOutside)? > before, "the same without a tag does not leave");
        Ok(())
    })?;
    let seen = capture.finish()?;
    ensure!(seen.frames == 1, "{} frames left the node, of which one has no tag", seen.frames);
    Ok(())
}

#[test]
fn truncated_and_contradictory_packets_are_dropped() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (a, b) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?);
    let n1 = lab.node("n1");
    let good = udp((a.address, 1234), (b.address, PORT), b"whole");
    let mut wrong_version = good.clone();
    wrong_version[0] = 0x55;
    let mut short_header = good.clone();
    short_header[0] = 0x44;
    for packet in [&good[..10], &good[..19], &wrong_version, &short_header] {
        let packet = frame(&a, 0x0800, packet)?;
        counted(n1, DropReason::Malformed, 1, || send_frame(&a.netns, "eth0", &packet))?;
    }
    Ok(())
}

#[test]
fn multicast_and_addresses_that_are_nobodys_are_dropped() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let a = lab.pod("n1", "a")?;
    let n1 = lab.node("n1");
    let group = udp((a.address, 5353), (Ipv4Addr::new(224, 0, 0, 251), 5353), b"who is there?");
    counted(n1, DropReason::Multicast, 1, || send_frame(&a.netns, "eth0", &frame(&a, 0x0800, &group)?))?;
    let nobody = Ipv4Addr::new(10, 244, 1, 250);
    counted(n1, DropReason::NoSuchPod, 1, || {
        let answer = shunt_lab::service::udp_answer(&a.netns, std::net::SocketAddrV4::new(nobody, PORT));
        ensure!(answer.is_err(), "{answer:?}");
        Ok(())
    })
}
