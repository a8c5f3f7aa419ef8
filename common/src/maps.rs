//! Names, capacities and schema versions of every map, in one place.
//!
//! A pin is named `NAME_vVERSION`. Whoever changes the layout of a key or value, or what it means, raises the map's version: the
//! agent then builds the new map beside the old one, fills it, swaps the programs, and removes the old pin.

use crate::service::node_ports;

/// A map as both sides know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSpec {
    /// Name in the object file.
    pub name: &'static str,
    /// Schema version of key and value.
    pub version: u32,
    /// Entries it holds unless configured otherwise.
    pub capacity: u32,
}

macro_rules! maps {
    ($( $(#[$meta:meta])* $name:ident v $version:literal, $capacity:expr; )+) => {
        $( $(#[$meta])* pub const $name: MapSpec = MapSpec { name: stringify!($name), version: $version, capacity: $capacity }; )+
        /// Every map that is pinned.
        pub const ALL: &[MapSpec] = &[ $( $name ),+ ];
    };
}

maps! {
    /// Exact address -> [`Address`](crate::address::Address).
    ADDRESSES v 1, 131_072;
    /// Prefix -> [`Route`](crate::address::Route).
    ROUTES v 1, 16_384;
    /// Frontend -> [`Service`](crate::service::Service).
    SERVICES v 2, 131_072;
    /// Slot -> backend id.
    SLOTS v 1, 1_048_576;
    /// Backend id -> [`Backend`](crate::service::Backend).
    BACKENDS v 2, 524_288;
    /// [`node_port_bit`](crate::service::node_port_bit) -> whether some frontend at a node's address has the port.
    NODE_PORTS v 1, node_ports::WORDS * node_ports::PROTOCOLS;
    /// [`SourceRange`](crate::service::SourceRange) -> 1.
    SOURCE_RANGES v 1, 65_536;
    /// [`ServiceClient`](crate::service::ServiceClient) -> [`Affinity`](crate::affinity::Affinity).
    AFFINITY v 1, 65_536;
    /// Canonical tuple -> [`CtEntry`](crate::conntrack::CtEntry).
    CONNTRACK v 1, 524_288;
    /// Index 0: counts changes to `ADDRESSES` and `ROUTES` that make a remembered [`Hop`](crate::conntrack::Hop) stale.
    EPOCH v 1, 1;
    /// Hash of a tuple -> stamp of the latest change of `CONNTRACK` under one of that hash: what makes a [`Shortcut`](crate::shortcut::Shortcut) stale.
    CHANGES v 1, crate::shortcut::STAMPS;
    /// Cookie of a network namespace -> [`Client`](crate::connect::Client).
    CLIENTS v 1, 4_096;
    /// Cookie of a socket -> [`Frontend`](crate::connect::Frontend). 260 connections through Services at once for each of 250 pods; its buckets
    /// take 1 MiB, and are looked at for each TCP socket that is connected or closed. Connections beyond are served packet by packet.
    CONNECTED v 2, 65_536;
    /// Index 0: one of [`takeover`](crate::conntrack::takeover).
    TAKEOVER v 1, 1;
    /// Datagram -> [`Fragment`](crate::fragment::Fragment).
    FRAGMENTS v 2, 8_192;
    /// [`DropReason`](crate::verdict::DropReason) -> packets.
    DROPS v 1, 64;
    /// [`Counter`](crate::verdict::Counter) -> packets.
    COUNTERS v 1, 64;
    /// Index 0: how many listen to `EVENTS`.
    LISTENERS v 1, 1;
    /// Ring buffer of [`Event`](crate::event::Event), capacity in bytes.
    EVENTS v 1, 262_144;
}
