//! Tells the agent when something about the devices it depends on may have changed under it.

use std::io;

use futures::StreamExt as _;
use rtnetlink::{
    MulticastGroup, new_multicast_connection,
    packet_core::NetlinkPayload,
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
        link::{LinkAttribute, LinkMessage},
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
        /// Whether it went.
        gone: bool,
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
        RouteNetlinkMessage::NewLink(link) => Some(Change::Device { name: name_of(link)?, gone: false }),
        RouteNetlinkMessage::DelLink(link) => Some(Change::Device { name: name_of(link)?, gone: true }),
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) if !is_host_end(address) => {
            Some(Change::Address)
        }
        _ => None,
    }
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
    /// Whether the node's own devices may be concerned, given which names are its wires'; pods' host sides come and go with the pods.
    #[must_use]
    pub fn concerns_node(&self, is_wire: impl Fn(&str) -> bool) -> bool {
        match self {
            Self::Device { name, .. } => name == TUNNEL || name == BRIDGE || is_wire(name),
            Self::Address => true,
        }
    }
}
