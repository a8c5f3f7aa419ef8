//! Tells the agent when something about the devices it depends on may have changed under it.

use std::io;

use futures::StreamExt as _;
use rtnetlink::{
    MulticastGroup, new_multicast_connection,
    packet_core::NetlinkPayload,
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
        link::{LinkAttribute, LinkFlags, LinkMessage},
    },
};
use tokio::sync::mpsc::Sender;

use super::{headroom::BRIDGE, links::TUNNEL, routes::HOST_END};

/// What happened, and so what has to be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A device appeared, changed or went.
    Device {
        /// Its name.
        name: String,
        /// Whether it has just been set up (`IFF_UP`), maybe with addresses that it has had for long.
        came_up: bool,
    },
    /// An address came or went.
    Address,
}

/// Reports changes until the receiver is dropped. Changes may be reported that don't matter, and several as one; the receiver looks
/// at what there is.
///
/// # Errors
/// The kernel refuses the subscription, or ends it.
pub async fn run(changes: Sender<Change>) -> io::Result<()> {
    // Not routes: ten thousand of our own on a start would flood this socket, and others' may change without end. Ours are looked at
    // now and then.
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr];
    let (connection, _handle, mut messages) = new_multicast_connection(&groups)?;
    let pump = tokio::spawn(connection);
    while let Some((message, _)) = messages.next().await {
        let NetlinkPayload::InnerMessage(message) = message.payload else { continue };
        if let Some(change) = change_of(&message)
            && changes.send(change).await.is_err()
        {
            break;
        }
    }
    pump.abort();
    Ok(())
}

fn change_of(message: &RouteNetlinkMessage) -> Option<Change> {
    match message {
        RouteNetlinkMessage::NewLink(link) => Some(Change::Device { name: name_of(link)?, came_up: has_come_up(link) }),
        RouteNetlinkMessage::DelLink(link) => Some(Change::Device { name: name_of(link)?, came_up: false }),
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) if !is_host_end(address) => {
            Some(Change::Address)
        }
        _ => None,
    }
}

/// The kernel says which flags a message is about: `ifi_change`, as `__dev_notify_flags` in net/core/dev.c fills it; of a device that is new, all.
fn has_come_up(message: &LinkMessage) -> bool {
    message.header.flags.contains(LinkFlags::Up) && message.header.change_mask.contains(LinkFlags::Up)
}

/// Those come and go with pods.
fn is_host_end(message: &AddressMessage) -> bool {
    message.attributes.contains(&AddressAttribute::Local(HOST_END.into()))
}

fn name_of(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

impl Change {
    /// Whether the node's own devices may be concerned, given which names are its wires' and which its pods': these come and go with the pods,
    /// and any other that comes up may be a wire.
    #[must_use]
    pub fn concerns_node(&self, is_wire: impl Fn(&str) -> bool, is_pods: impl Fn(&str) -> bool) -> bool {
        match self {
            Self::Device { name, came_up } => name == TUNNEL || name == BRIDGE || is_wire(name) || *came_up && !is_pods(name),
            Self::Address => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel says of a device with flags, some of which have just changed.
    fn told(name: &str, flags: LinkFlags, changed: LinkFlags) -> Change {
        let mut link = LinkMessage::default();
        link.header.flags = flags;
        link.header.change_mask = changed;
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        change_of(&RouteNetlinkMessage::NewLink(link)).unwrap()
    }

    #[test]
    fn a_device_that_nobody_knows_matters_when_it_comes_up() {
        let concerns = |change: &Change| change.concerns_node(|name| name == "eth0", |name| name == "pod");
        let (up, none) = (LinkFlags::Up, LinkFlags::empty());
        let cases = [
            ("eth1", up, up, true),
            // A new one, of which all is new.
            ("eth1", up, LinkFlags::all(), true),
            ("eth1", none, LinkFlags::all(), false),
            ("eth1", none, up, false),
            // Something else of it has changed.
            ("eth1", up, LinkFlags::Promisc, false),
            ("eth1", up, none, false),
            ("pod", up, up, false),
            ("pod", none, up, false),
            ("eth0", none, up, true),
            ("eth0", up, none, true),
            (TUNNEL, none, up, true),
            (BRIDGE, up, none, true),
        ];
        for (name, flags, changed, expected) in cases {
            let change = told(name, flags, changed);
            assert_eq!(concerns(&change), expected, "{name}: {flags:?}, changed {changed:?}");
        }
        assert!(concerns(&Change::Address));
    }
}
