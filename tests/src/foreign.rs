//! Programs of somebody else on a node's interface: each drops frames of one length, so that it can be seen to run, and leaves the rest.

use std::{
    ffi::CString,
    io, mem,
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr,
};

use anyhow::{Context, Result};
use aya::maps::MapData;

use crate::netns::Netns;

/// The data of a ping whose frame has a length.
#[must_use]
pub const fn ping_data(length: u16) -> u32 {
    length as u32 - 14 - 20 - 8
}

/// A hook of the kernel; numbers are those of include/uapi/linux/bpf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// TC ingress by a TCX link.
    Tcx,
    /// XDP by a link, in the driver where that can.
    Xdp,
    /// XDP by a link, in the kernel's substitute for a driver's.
    XdpGeneric,
}

/// An attached program. Dropping it detaches it.
#[derive(Debug)]
pub struct Foreign {
    link: OwnedFd,
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_LINK_CREATE: libc::c_long = 28;

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    rest: [u64; 3],
}

#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    program: u32,
    ifindex: u32,
    hook: u32,
    flags: u32,
    rest: [u64; 2],
}

#[repr(C)]
struct PinAttr {
    path: u64,
    link: u32,
    flags: u32,
}

impl Foreign {
    /// Attaches one to an interface of a namespace; it drops frames of `length` bytes with the Ethernet header.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach(netns: &Netns, interface: &str, hook: Hook, length: u16) -> Result<Self> {
        let (kind, at, code) = match hook {
            // BPF_PROG_TYPE_SCHED_CLS, BPF_TCX_INGRESS; r2 = skb->len; TCX_DROP or TCX_NEXT.
            Hook::Tcx => (3, 46, [&[insn(0x61, 2, 1, 0, 0)][..], &verdicts(length, 2, -1)].concat()),
            // BPF_PROG_TYPE_XDP, BPF_XDP; r2 = data_end - data; XDP_DROP or XDP_PASS.
            Hook::Xdp | Hook::XdpGeneric => (
                6,
                37,
                [&[insn(0x61, 2, 1, 4, 0), insn(0x61, 3, 1, 0, 0), insn(0x1f, 2, 3, 0, 0)][..], &verdicts(length, 1, 2)]
                    .concat(),
            ),
        };
        let mut load = LoadAttr {
            kind,
            instructions: code.len() as u32,
            code: code.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            ..LoadAttr::default()
        };
        let program = bpf(BPF_PROG_LOAD, &mut load).context("cannot load a program")?;
        let ifindex = netns.ifindex(interface)?;
        // XDP_FLAGS_SKB_MODE of include/uapi/linux/if_link.h.
        let flags = if hook == Hook::XdpGeneric { 2 } else { 0 };
        let program = program.as_raw_fd().cast_unsigned();
        let mut attr = LinkAttr { program, ifindex, hook: at, flags, ..LinkAttr::default() };
        let link = netns.inside(move || bpf(BPF_LINK_CREATE, &mut attr)).context("cannot attach a program")?;
        Ok(Self { link })
    }

    /// Leaves it attached for as long as its link is pinned at a path.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn pin(self, path: &Path) -> Result<()> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        let mut attr = PinAttr { path: name.as_ptr() as u64, link: self.link.as_raw_fd().cast_unsigned(), flags: 0 };
        run(BPF_OBJ_PIN, &mut attr).with_context(|| format!("cannot pin a link at {}", path.display())).map(drop)
    }
}

/// `if r2 == length { return drop } return pass`.
fn verdicts(length: u16, drop: i32, pass: i32) -> [u64; 5] {
    let ret = insn(0x95, 0, 0, 0, 0);
    [insn(0x55, 2, 0, 2, i32::from(length)), insn(0xb7, 0, 0, 0, drop), ret, insn(0xb7, 0, 0, 0, pass), ret]
}

/// One instruction as `struct bpf_insn` lays it out.
fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
    let [o0, o1] = off.to_le_bytes();
    let [i0, i1, i2, i3] = imm.to_le_bytes();
    u64::from_ne_bytes([code, dst | src << 4, o0, o1, i0, i1, i2, i3])
}

/// Makes the kernel refuse every write to a pinned map from user space, for good (`BPF_MAP_FREEZE`): as if it had no room, or a policy forbade it.
///
/// # Errors
/// There is no such map.
pub fn freeze(map: &Path) -> Result<()> {
    const MAP_FREEZE: libc::c_long = 22;
    let data = MapData::from_pin(map).with_context(|| format!("cannot open {}", map.display()))?;
    let mut attr = data.fd().as_fd().as_raw_fd();
    run(MAP_FREEZE, &mut attr).with_context(|| format!("cannot freeze {}", map.display())).map(drop)
}

/// A command that answers with a descriptor.
fn bpf<A>(command: libc::c_long, attr: &mut A) -> io::Result<OwnedFd> {
    let fd = run(command, attr)?;
    // SAFETY: the kernel has just made it for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn run<A>(command: libc::c_long, attr: &mut A) -> io::Result<i32> {
    // SAFETY: `attr` is one of the layouts above, whose pointers the caller keeps alive.
    let outcome = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attr), mem::size_of::<A>()) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome as i32) }
}
