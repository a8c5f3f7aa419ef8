//! Services and their backends: the maps `SERVICES`, `SLOTS` and `BACKENDS`.
//!
//! A Service names a run of slots, a slot names a backend by id. An endpoint change writes new backends, then a new run of
//! slots, and last the Service that names the run, so that a packet never meets a half-written set.

use crate::net::Port;

/// How a Service treats its clients ([`Service::flags`]).
pub mod flags {
    /// Without a usable backend, drop silently instead of refusing: a policy is Local and the endpoints are elsewhere.
    pub const DROP_WHEN_EMPTY: u32 = 1;
}

/// What a backend is good for ([`Backend::state`]).
pub mod state {
    /// Free slot of the array.
    pub const FREE: u16 = 0;
    /// Takes new connections.
    pub const ACTIVE: u16 = 1;
    /// Keeps its connections and gets no new ones.
    pub const DRAINING: u16 = 2;
}

abi! {
    /// Key of `SERVICES`: one frontend.
    pub struct ServiceKey<F> {
        /// The virtual IP.
        pub addr: F::Addr,
        /// The Service's port.
        pub port: Port,
        /// IP protocol number.
        pub proto: u8,
        /// Zero.
        pub reserved: u8,
    }

    /// Value of `BACKENDS`, an array indexed by backend id; id 0 is never used.
    pub struct Backend<F> {
        /// Where the connection really goes.
        pub addr: F::Addr,
        /// The target port.
        pub port: Port,
        /// One of [`state`].
        pub state: u16,
        /// Counts the tenants of this id, so that a flow of an earlier one is recognised.
        pub generation: u32,
    }
}

abi! {
    /// Value of `SERVICES`.
    pub struct Service {
        /// First slot of the run.
        pub base: u32,
        /// Length of the run; 0 refuses.
        pub count: u32,
        /// Bits of [`flags`].
        pub flags: u32,
    }
}
