//! This node's devices, programs and maps: made, adopted from an earlier agent, looked after. Knows pods only as interfaces.

mod survey;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Instant,
};

use ipnet::Ipv4Net;
use shunt_common::{config::NodeConfig, maps, net::Ip4};

use self::survey::Survey;
use super::{connect::Connect, own_node::OwnNode, wires::Wires, xdp::Xdp};
use crate::{
    config::AgentOptions,
    install::{Record, settings::SettingsError},
    kernel::{
        bpf::BpfKernel,
        connect, defrag,
        links::{LinksError, TUNNEL},
        maps::Maps,
        netdev,
        netlink::Netlink,
        pins::{Adoption, MapPins, PinDir, PinError},
        programs::{Capacities, Hook, OBJECT, Programs, ProgramsError},
        routes::Via,
        sys::Target,
        sysctl::SysctlError,
        table::{Table, TableError},
    },
    problem::with_causes,
};

/// The same in every network namespace (`LOOPBACK_IFINDEX` in include/net/flow.h).
const LOOPBACK_IFINDEX: u32 = 1;
const LOOPBACK: &str = "lo";

/// Why the dataplane is not up.
#[derive(Debug, thiserror::Error)]
pub(super) enum DataplaneError {
    #[error("cannot open a netlink socket")]
    Netlink(#[source] std::io::Error),
    #[error(transparent)]
    Links(#[from] LinksError),
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Pins(#[from] PinError),
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    #[error(transparent)]
    Table(#[from] TableError),
}

/// What [`Dataplane::check`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// All as it was set up.
    AsItWas,
    /// A device, an address or a link has changed: set it up anew.
    Changed,
}

/// A dataplane over maps that an earlier agent may have left.
#[derive(Debug)]
pub(super) struct Dataplane {
    dir: PinDir,
    pins: MapPins,
    capacities: Capacities,
    programs: Programs,
    /// What is done at XDP.
    pub(super) xdp: Xdp,
    /// What was to be done there, before it was tried.
    xdp_wanted: Xdp,
    /// Where connections to Services are given their backends.
    pub(super) connect: Connect,
    /// Interpreter of steps.
    pub(super) kernel: BpfKernel,
    /// What the programs know of the node.
    pub(super) config: NodeConfig,
    /// The interface towards other nodes.
    pub(super) underlay: String,
    /// The other interfaces by which clients of Services and answers to pods may come.
    pub(super) wires: Wires,
    /// Addresses of this node's interfaces.
    pub(super) addresses: BTreeSet<Ip4>,
    /// The bridge that gives pods' datagrams room for the tunnel's headers, where the kernel has one.
    pub(super) pods_bridge: Option<u32>,
    /// What an operator should know.
    pub(super) notes: Vec<String>,
}

/// Entries of each map that is not of its default size.
fn capacities(options: &AgentOptions) -> Capacities {
    // A flow has two entries.
    [(maps::CONNTRACK.name, options.config.conntrack_max.saturating_mul(2))].into()
}

impl Dataplane {
    /// Devices, maps and loaded programs. Nothing that packets meet changes yet.
    pub(super) fn prepare(options: &AgentOptions, own: &OwnNode, record: &Record) -> Result<Self, DataplaneError> {
        let mut netlink = Netlink::open().map_err(DataplaneError::Netlink)?;
        let survey = Survey::make(&mut netlink, options, own, record)?;
        let dir = PinDir::new(&options.pin_dir);
        dir.create()?;
        let capacities = capacities(options);
        let pins = Programs::plan(OBJECT, &dir, &capacities)?;
        let programs = Programs::load(OBJECT, &pins, &dir, &survey.config, &capacities)?;
        let mut notes = survey.notes;
        notes.extend(programs.slower().map(|reason| with_causes(reason)));
        let xdp_wanted = survey.xdp.clone();
        let xdp = if programs.slower().is_some() { survey.xdp.without_sight() } else { survey.xdp };
        let via = Via { tunnel: survey.config.tunnel_ifindex, node_ip: own.ip };
        let kernel = BpfKernel::new(Maps::open(|spec| pins.path(spec))?, netlink, via);
        let mut dataplane = Self {
            dir,
            pins,
            capacities,
            programs,
            xdp,
            xdp_wanted,
            connect: Connect::of(options),
            kernel,
            config: survey.config,
            underlay: survey.underlay.name,
            wires: Wires::new(options.config.devices.clone(), survey.wires),
            addresses: survey.addresses,
            pods_bridge: survey.pods_bridge,
            notes,
        };
        dataplane.tell_programs_of_xdp()?;
        dataplane.carry_flows_over();
        Ok(dataplane)
    }

    /// Loads programs anew that were told of another XDP than there is: those at TC do nothing for one that sends no packets. Whether it did.
    fn tell_programs_of_xdp(&mut self) -> Result<bool, DataplaneError> {
        let is_so = self.config.xdp_forwards == self.xdp.leave();
        if !is_so {
            self.config.xdp_forwards = self.xdp.leave();
            self.programs = Programs::load(OBJECT, &self.pins, &self.dir, &self.config, &self.capacities)?;
        }
        Ok(!is_so)
    }

    /// Puts the program for the host's own packets in force before all others: before routes lead them there.
    pub(super) fn attach_host(&mut self) -> Result<(), DataplaneError> {
        self.programs.attach(Hook::FromHost, TUNNEL, self.config.tunnel_ifindex)?;
        Ok(())
    }

    /// Puts the programs in force on the node's hooks and on those of the pods given, lets new maps take their places, and removes
    /// links that nothing needs any more. Only once the maps hold what they should.
    pub(super) fn take_over(&mut self, pods: &BTreeMap<String, u32>) -> Result<(), DataplaneError> {
        let start = Instant::now();
        let mut wanted = self.attach_all(pods)?;
        if self.tell_programs_of_xdp()? {
            wanted = self.attach_all(pods)?;
        }
        if self.connect.put_in_force(&mut self.programs, &self.kernel.maps().connected) {
            wanted.extend(connect::link_names(&self.dir));
        }
        tracing::info!(links = wanted.len(), took = ?start.elapsed(), "programs are in force");
        wanted.insert(defrag::PIN.to_owned());
        if let Err(error) = defrag::ensure(&self.dir) {
            self.notes.push(with_causes(&error));
        }
        self.carry_flows_over();
        self.pins.settle()?;
        for name in self.dir.link_names()? {
            if !wanted.contains(&name) {
                self.dir.remove_link(&name)?;
            }
        }
        Ok(())
    }

    /// Attaches what belongs to devices, or replaces what is attached there. The names of the links.
    fn attach_all(&mut self, pods: &BTreeMap<String, u32>) -> Result<BTreeSet<String>, DataplaneError> {
        let mut wanted = BTreeSet::new();
        let underlay = (self.underlay.clone(), self.config.underlay_ifindex);
        let tunnel = (TUNNEL.to_owned(), self.config.tunnel_ifindex);
        let loopback = (LOOPBACK.to_owned(), LOOPBACK_IFINDEX);
        // What translates answers comes before what has them asked for.
        let hooks = [
            (Hook::FromHost, &tunnel),
            (Hook::ToWire, &underlay),
            (Hook::FromWire, &underlay),
            (Hook::FromLoopback, &loopback),
        ];
        for (hook, (name, index)) in hooks {
            self.programs.attach(hook, name, *index)?;
            wanted.insert(PinDir::link_name(hook.program(), name));
        }
        wanted.extend(self.wires.attach(&mut self.programs));
        for (name, index) in pods {
            self.attach_pod(name, *index)?;
            wanted.extend([Hook::FromPod, Hook::ToPod].map(|hook| PinDir::link_name(hook.program(), name)));
        }
        if self.xdp.is_wanted() {
            match self.attach_xdp(&underlay.0, underlay.1) {
                Ok(()) => {
                    wanted.insert(PinDir::link_name(Hook::FromWireXdp.program(), &underlay.0));
                }
                Err(error) => {
                    let reason = with_causes(&error);
                    tracing::warn!("tunnel packets are popped by TC, not XDP: {reason}");
                    self.xdp = Xdp::Unavailable(reason);
                }
            }
        }
        Ok(wanted)
    }

    /// Attaches the program at XDP, in the driver. Older versions took the kernel's substitute for a driver's XDP, too, in which a link stays for
    /// good, and beside which the driver takes none: such a link of ours goes. Without it TC does all the work.
    fn attach_xdp(&mut self, interface: &str, ifindex: u32) -> Result<(), DataplaneError> {
        let name = PinDir::link_name(Hook::FromWireXdp.program(), interface);
        let is_ours = self.dir.link_target(&name)? == Some(Target::Interface(ifindex));
        if is_ours && netdev::runs_generic_xdp(self.kernel.netlink(), ifindex)? {
            tracing::info!(interface, "an older version's program leaves the kernel's substitute for the driver's XDP");
            self.dir.remove_link(&name)?;
        }
        self.programs.attach(Hook::FromWireXdp, interface, ifindex)?;
        Ok(())
    }

    /// Whether this is the underlay's or another wire's name.
    pub(super) fn is_wire(&self, name: &str) -> bool {
        name == self.underlay || self.wires.has(name)
    }

    /// Copies flows into a table that is being built in place of one of another size. What doesn't fit is forgotten and begins anew.
    fn carry_flows_over(&self) {
        if self.pins.adoption(&maps::CONNTRACK) != (Adoption::Replace { same_layout: true }) {
            return;
        }
        let copied = Table::open(&maps::CONNTRACK, &self.dir.map(&maps::CONNTRACK))
            .and_then(|old| old.copy_missing_to(&self.kernel.maps().conntrack));
        match copied {
            Ok(entries) => tracing::info!(entries, "tracked flows were carried over to a table of another size"),
            Err(error) => tracing::warn!("not all tracked flows were carried over: {}", with_causes(&error)),
        }
    }

    /// Attaches the programs of a pod's host side.
    pub(super) fn attach_pod(&mut self, interface: &str, ifindex: u32) -> Result<(), DataplaneError> {
        // What goes to the pod first: it has to be ready for answers when the pod can speak.
        self.programs.attach(Hook::ToPod, interface, ifindex)?;
        self.programs.attach(Hook::FromPod, interface, ifindex)?;
        Ok(())
    }

    /// Whether the programs of a pod's host side are attached to this very interface.
    pub(super) fn is_pod_attached(&self, interface: &str, ifindex: u32) -> Result<bool, DataplaneError> {
        self.are_attached(&[(Hook::ToPod, interface, ifindex), (Hook::FromPod, interface, ifindex)])
    }

    fn are_attached(&self, hooks: &[(Hook, &str, u32)]) -> Result<bool, DataplaneError> {
        for (hook, interface, ifindex) in hooks {
            if self.dir.link_target(&PinDir::link_name(hook.program(), interface))? != Some(Target::Interface(*ifindex)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Mends what can be mended in place of the node's devices and settings, and says whether the rest is as it was set up.
    pub(super) fn check(&mut self, options: &AgentOptions, own: &OwnNode, record: &Record) -> Result<Found, DataplaneError> {
        let survey = Survey::make(self.kernel.netlink(), options, own, record)?;
        if survey.underlay.name == self.underlay {
            self.wires.follow(survey.wires, &mut self.programs, &self.dir)?;
        }
        let mut hooks =
            vec![(Hook::FromHost, TUNNEL, self.config.tunnel_ifindex), (Hook::FromLoopback, LOOPBACK, LOOPBACK_IFINDEX)];
        let underlay = (self.underlay.as_str(), self.config.underlay_ifindex);
        for (name, index) in self.wires.served().chain([underlay]) {
            hooks.extend([(Hook::ToWire, name, index), (Hook::FromWire, name, index)]);
        }
        if self.xdp.is_wanted() {
            hooks.push((Hook::FromWireXdp, underlay.0, underlay.1));
        }
        let is_same = survey.xdp == self.xdp_wanted
            && NodeConfig { xdp_forwards: self.config.xdp_forwards, ..survey.config } == self.config
            && survey.addresses == self.addresses
            && survey.pods_bridge == self.pods_bridge
            && self.are_attached(&hooks)?
            && self.connect.stands(&self.dir)?;
        Ok(if is_same { Found::AsItWas } else { Found::Changed })
    }

    /// The subnet of the underlay that the node's address is of.
    pub(super) fn subnet(&self) -> Ipv4Net {
        let ip = Ipv4Addr::from(self.config.node_ip);
        Ipv4Net::with_netmask(ip, self.config.underlay_mask.into()).map_or_else(|_| ip.into(), |net| net.trunc())
    }
}

/// Removes the pinned links of a pod's host side, whether or not a dataplane is up.
pub(super) fn forget_pod(dir: &PinDir, interface: &str) -> Result<(), PinError> {
    for hook in [Hook::FromPod, Hook::ToPod] {
        dir.remove_link(&PinDir::link_name(hook.program(), interface))?;
    }
    Ok(())
}
