//! A device's XDP, as the kernel says: what it can do, one question to the family `netdev` of generic netlink
//! (Documentation/netlink/specs/netdev.yaml, Linux 6.3), whose attributes are as in `nfnetlink`, but integers in host order; and how a program runs.

use std::io;

use rtnetlink::{
    LinkUnspec,
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkXdp, XdpAttached},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC},
};

use super::{
    links::{LinksError, netlink_error},
    netlink::{Netlink, receive},
    nfnetlink::{Attributes, HEADER, find, for_each},
};

/// `NLM_F_REQUEST` (include/uapi/linux/netlink.h).
const REQUEST: u16 = 1;
/// Bytes of `struct genlmsghdr`.
const GENERIC: usize = 4;

/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_ID`, `CTRL_ATTR_FAMILY_NAME` (include/uapi/linux/genetlink.h).
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// `NETDEV_CMD_DEV_GET`, `NETDEV_A_DEV_IFINDEX`, `NETDEV_A_DEV_XDP_FEATURES`, `NETDEV_XDP_ACT_NDO_XMIT` (include/uapi/linux/netdev.h).
const DEV_GET: u8 = 1;
const IFINDEX: u16 = 1;
const XDP_FEATURES: u16 = 3;
const NDO_XMIT: u64 = 4;

/// Whether a device sends what an XDP program gives it. One end of a veth pair does while the other end is ready to take that: while it merges
/// packets (GRO) or has an XDP program of its own. Else such packets vanish.
///
/// # Errors
/// What the kernel answers: ENOENT before Linux 6.3, ENODEV.
pub fn sends_by_xdp(ifindex: u32) -> io::Result<bool> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let family = ask(&socket, CONTROL, GET_FAMILY, Attributes::default().text(FAMILY_NAME, "netdev"))?;
    let family = u16::from_ne_bytes(value(&family, FAMILY_ID)?);
    let device = ask(&socket, family, DEV_GET, Attributes::default().put(IFINDEX, &ifindex.to_ne_bytes()))?;
    Ok(u64::from_ne_bytes(value(&device, XDP_FEATURES)?) & NDO_XMIT != 0)
}

/// Whether a device has an XDP program that runs in the kernel's substitute for a driver's XDP (`xdpgeneric`).
///
/// # Errors
/// What the kernel answers, as ENODEV.
pub fn runs_generic_xdp(netlink: &mut Netlink, ifindex: u32) -> Result<bool, LinksError> {
    let question = RouteNetlinkMessage::GetLink(LinkUnspec::new_with_index(ifindex).build());
    let answer = netlink.get(question).map_err(netlink_error("look up interface", ifindex.to_string()))?;
    let RouteNetlinkMessage::NewLink(link) = answer else { return Ok(false) };
    let generic = LinkXdp::Attached(XdpAttached::SocketBuffer);
    Ok(link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Xdp(xdp) if xdp.contains(&generic))))
}

fn value<const N: usize>(attributes: &[u8], kind: u16) -> io::Result<[u8; N]> {
    find(attributes, kind).and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The attributes of the one message that answers.
fn ask(socket: &Socket, family: u16, command: u8, attributes: Attributes) -> io::Result<Vec<u8>> {
    let attributes = attributes.into_bytes();
    let length = (HEADER + GENERIC + attributes.len()) as u32;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend_from_slice(&family.to_ne_bytes());
    message.extend_from_slice(&REQUEST.to_ne_bytes());
    // Sequence number and sender, which a socket of one question at a time needs not, then command and version.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[command, 1, 0, 0]);
    message.extend_from_slice(&attributes);
    socket.send(&message, 0)?;
    let mut result = None;
    while result.is_none() {
        for_each(&receive(socket)?, |answer| {
            result = match answer.outcome() {
                Some(outcome) => Some(outcome.map(|()| Vec::new())),
                None => Some(Ok(answer.payload.get(GENERIC..).unwrap_or_default().to_vec())),
            };
        });
    }
    result.unwrap_or_else(|| Err(io::ErrorKind::InvalidData.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_has_no_xdp_of_its_own_and_a_missing_one_is_an_error() {
        assert!(!sends_by_xdp(1).unwrap());
        assert_eq!(sends_by_xdp(u32::MAX >> 1).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
