//! The eBPF programs: loading them over the pinned maps, attaching them, replacing them where they are attached.
//!
//! Programs of others on the same hooks are untouched: links stand beside theirs.

use std::{collections::BTreeMap, io};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, LinkError, PinnedLink},
        tc::TcAttachOptions,
    },
};
use aya_obj::{Object, ParseError};
use shunt_common::{
    config::NodeConfig,
    event::program,
    maps::{ALL, MapSpec},
};

use super::{
    pins::{MapPins, PinDir, PinError, Shape},
    skb::{SkbAccess, SkbError},
    sys::Target,
    table::TableError,
};

/// The object file, built from `dataplane-ebpf/`.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SHUNT_EMBEDDED_OBJECT"));

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Ingress of a pod's host-side veth.
    FromPod,
    /// Egress of a pod's host-side veth.
    ToPod,
    /// Ingress of the underlay.
    FromWire,
    /// Egress of the tunnel device.
    FromHost,
    /// Egress of the loopback device.
    FromLoopback,
    /// Egress of the underlay.
    ToWire,
    /// XDP of the underlay.
    FromWireXdp,
}

impl Hook {
    /// All hooks.
    pub const ALL: [Self; 7] =
        [Self::FromPod, Self::ToPod, Self::FromWire, Self::FromHost, Self::FromLoopback, Self::ToWire, Self::FromWireXdp];

    /// The program's name in the object file.
    #[must_use]
    pub const fn program(self) -> &'static str {
        program::name(match self {
            Self::FromPod => program::FROM_POD,
            Self::ToPod => program::TO_POD,
            Self::FromWire => program::FROM_WIRE,
            Self::FromHost => program::FROM_HOST,
            Self::FromLoopback => program::FROM_LOOPBACK,
            Self::ToWire => program::TO_WIRE,
            Self::FromWireXdp => program::FROM_WIRE_XDP,
        })
    }

    const fn direction(self) -> TcAttachType {
        match self {
            Self::FromPod | Self::FromWire | Self::FromWireXdp => TcAttachType::Ingress,
            Self::ToPod | Self::FromHost | Self::FromLoopback | Self::ToWire => TcAttachType::Egress,
        }
    }
}

/// Why programs cannot be loaded or attached.
#[derive(Debug, thiserror::Error)]
pub enum ProgramsError {
    /// The object file is damaged.
    #[error("the eBPF object cannot be read: run `cargo xtask build`")]
    Object(#[source] Box<ParseError>),
    /// The loader or the verifier refuses.
    #[error("the eBPF programs cannot be loaded into this kernel")]
    Load(#[source] Box<EbpfError>),
    /// A program is missing.
    #[error("the eBPF object has no program {program}: it was built from other sources; run `cargo xtask build`")]
    NoSuchProgram {
        /// Its name.
        program: &'static str,
    },
    /// The verifier or an attach call refuses.
    #[error("cannot {action} program {program}{}", on(interface))]
    Program {
        /// What was tried.
        action: &'static str,
        /// Its name.
        program: &'static str,
        /// Where; empty while loading.
        interface: String,
        /// Why not.
        #[source]
        source: Box<ProgramError>,
    },
    /// A link cannot be opened or pinned.
    #[error("cannot {action} the link of program {program}{}", on(interface))]
    Link {
        /// What was tried.
        action: &'static str,
        /// Its name.
        program: &'static str,
        /// Where.
        interface: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The pin directory refuses.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A map cannot be emptied.
    #[error(transparent)]
    Table(#[from] TableError),
}

fn on(interface: &str) -> String {
    if interface.is_empty() { String::new() } else { format!(" on {interface}") }
}

/// Entries per map where they differ from [`MapSpec::capacity`], by the map's name.
pub type Capacities = BTreeMap<&'static str, u32>;

/// The capacity of a map.
#[must_use]
pub fn capacity(spec: &MapSpec, capacities: &Capacities) -> u32 {
    capacities.get(spec.name).copied().unwrap_or(spec.capacity)
}

/// What an attachment did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// A new link.
    New,
    /// The link was there; its program was replaced in one step.
    Replaced,
}

/// Why programs mend transport checksums through helpers.
#[derive(Debug, thiserror::Error)]
pub enum Slower {
    /// The kernel doesn't say what they need to know.
    #[error("programs mend checksums the slower way")]
    Unknown(#[from] SkbError),
    /// It refuses them when they use it.
    #[error("programs mend checksums the slower way")]
    Refused(#[source] Box<ProgramsError>),
}

impl From<ProgramsError> for Slower {
    fn from(error: ProgramsError) -> Self {
        Self::Refused(Box::new(error))
    }
}

/// Makes the maps of an object, adjusted by `adjust`, and verifies every program.
///
/// # Errors
/// The kernel refuses; the error says which program.
pub fn load<'a>(
    object: &[u8],
    node: &'a NodeConfig,
    skb: &'a SkbAccess,
    adjust: impl FnOnce(&mut EbpfLoader<'a>),
) -> Result<Ebpf, ProgramsError> {
    let mut loader = EbpfLoader::new();
    loader.override_global("NODE", node, true).override_global("SKB", skb.layout(), true).override_global(
        "SOCK",
        skb.sock(),
        true,
    );
    adjust(&mut loader);
    let mut ebpf = loader.load(&skb.patch(object)).map_err(|error| ProgramsError::Load(Box::new(error)))?;
    for hook in Hook::ALL {
        let name = hook.program();
        let program = ebpf.program_mut(name).ok_or(ProgramsError::NoSuchProgram { program: name })?;
        let loaded = match hook {
            Hook::FromWireXdp => <&mut Xdp>::try_from(program).and_then(Xdp::load),
            _ => <&mut SchedClassifier>::try_from(program).and_then(SchedClassifier::load),
        };
        loaded.map_err(program_error("load", name, ""))?;
    }
    Ok(ebpf)
}

/// Loaded programs, ready to be attached.
#[derive(Debug)]
pub struct Programs {
    pub(super) ebpf: Ebpf,
    pub(super) dir: PinDir,
    slower: Option<Slower>,
}

impl Programs {
    /// Decides which pinned maps the programs of `object` can use on.
    ///
    /// # Errors
    /// The object or the pins cannot be read.
    pub fn plan(object: &[u8], dir: &PinDir, capacities: &Capacities) -> Result<MapPins, ProgramsError> {
        let object = Object::parse(object).map_err(|error| ProgramsError::Object(Box::new(error)))?;
        Ok(dir.plan(|spec| {
            object.maps.get(spec.name).map(|map| Shape {
                kind: map.map_type(),
                key: map.key_size(),
                value: map.value_size(),
                capacity: capacity(spec, capacities),
                flags: map.map_flags(),
            })
        })?)
    }

    /// Loads and verifies every program over the maps that `pins` names, creating those that are missing. Attaches nothing.
    ///
    /// # Errors
    /// The kernel refuses; the error says which program.
    pub fn load(
        object: &[u8],
        pins: &MapPins,
        dir: &PinDir,
        node: &NodeConfig,
        capacities: &Capacities,
    ) -> Result<Self, ProgramsError> {
        let pinned = |skb: &SkbAccess| {
            load(object, node, skb, |loader| {
                for spec in ALL {
                    loader.map_pin_path(spec.name, pins.path(spec)).map_max_entries(spec.name, capacity(spec, capacities));
                }
            })
        };
        // What the kernel says of itself may still be more than it lets us do.
        let fast = SkbAccess::of_this_kernel().map_err(Slower::from).and_then(|skb| pinned(&skb).map_err(Slower::from));
        let (ebpf, slower) = match fast {
            Ok(ebpf) => (ebpf, None),
            Err(reason) => (pinned(&SkbAccess::NONE)?, Some(reason)),
        };
        Ok(Self { ebpf, dir: dir.clone(), slower })
    }

    /// Why programs mend checksums the slower way, if they do.
    #[must_use]
    pub fn slower(&self) -> Option<&Slower> {
        self.slower.as_ref()
    }

    /// Attaches the program of a hook to an interface, or, where it is attached already, replaces the running program in one step.
    /// The link is pinned and outlives this process.
    ///
    /// # Errors
    /// The kernel refuses, or the link cannot be pinned.
    pub fn attach(&mut self, hook: Hook, interface: &str, ifindex: u32) -> Result<Attached, ProgramsError> {
        let name = hook.program();
        let path = self.dir.link(name, interface);
        let existing = match PinnedLink::from_pin(&path) {
            Ok(link) => Some(link),
            Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(link_error("open", name, interface)(error)),
        };
        if let Some(link) = existing {
            // An interface of this name may have come and gone since; only a link to the present one is worth keeping.
            let pin = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if self.dir.link_target(pin)? == Some(Target::Interface(ifindex)) {
                self.replace(hook, interface, FdLink::from(link))?;
                return Ok(Attached::Replaced);
            }
            self.dir.remove_link(pin)?;
        }
        let link = self.attach_new(hook, interface)?;
        link.pin(&path).map_err(link_error("pin", name, interface))?;
        Ok(Attached::New)
    }

    fn attach_new(&mut self, hook: Hook, interface: &str) -> Result<FdLink, ProgramsError> {
        let name = hook.program();
        let failed = program_error("attach", name, interface);
        match hook {
            Hook::FromWireXdp => {
                let program = self.xdp(name)?;
                // In the driver or not at all: what the kernel does in its place comes after the skb is made, and costs more than TC.
                let id = program.attach(interface, XdpMode::Driver).map_err(&failed)?;
                let link = program.take_link(id).map_err(&failed)?;
                FdLink::try_from(link).map_err(link_error("pin", name, interface))
            }
            _ => {
                let program = self.classifier(name)?;
                let options = TcAttachOptions::TcxOrder(LinkOrder::default());
                let id = program.attach_with_options(interface, hook.direction(), options).map_err(&failed)?;
                let link = program.take_link(id).map_err(&failed)?;
                FdLink::try_from(link).map_err(link_error("pin", name, interface))
            }
        }
    }

    fn replace(&mut self, hook: Hook, interface: &str, link: FdLink) -> Result<(), ProgramsError> {
        let name = hook.program();
        let failed = program_error("replace", name, interface);
        match hook {
            Hook::FromWireXdp => {
                let link = link.try_into().map_err(link_error("use", name, interface))?;
                let program = self.xdp(name)?;
                let id = program.attach_to_link(link).map_err(&failed)?;
                program.take_link(id).map(drop).map_err(&failed)
            }
            _ => {
                let link = link.try_into().map_err(link_error("use", name, interface))?;
                let program = self.classifier(name)?;
                let id = program.attach_to_link(link).map_err(&failed)?;
                program.take_link(id).map(drop).map_err(&failed)
            }
        }
    }

    fn classifier(&mut self, name: &'static str) -> Result<&mut SchedClassifier, ProgramsError> {
        let program = self.ebpf.program_mut(name).ok_or(ProgramsError::NoSuchProgram { program: name })?;
        program.try_into().map_err(program_error("use", name, ""))
    }

    fn xdp(&mut self, name: &'static str) -> Result<&mut Xdp, ProgramsError> {
        let program = self.ebpf.program_mut(name).ok_or(ProgramsError::NoSuchProgram { program: name })?;
        program.try_into().map_err(program_error("use", name, ""))
    }
}

pub(super) fn program_error(
    action: &'static str,
    program: &'static str,
    interface: &str,
) -> impl Fn(ProgramError) -> ProgramsError + use<> {
    let interface = interface.to_owned();
    move |source| ProgramsError::Program { action, program, interface: interface.clone(), source: Box::new(source) }
}

pub(super) fn link_error<E: std::error::Error + Send + Sync + 'static>(
    action: &'static str,
    program: &'static str,
    interface: &str,
) -> impl FnOnce(E) -> ProgramsError + use<E> {
    let interface = interface.to_owned();
    move |source| ProgramsError::Link { action, program, interface, source: Box::new(source) }
}
