//! The bpf(2) calls that aya 0.14 does not offer: batches over maps, what a link is attached to, netfilter programs and links.
//!
//! Every `unsafe` of this room that talks to the kernel is here. Nothing here knows what a map holds.

use std::{
    ffi::CString,
    io, mem,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr,
};

use aya::Pod;
use aya_obj::generated::{
    bpf_attach_type::BPF_NETFILTER,
    bpf_cmd::{self, *},
    bpf_link_type::{BPF_LINK_TYPE_CGROUP, BPF_LINK_TYPE_NETFILTER, BPF_LINK_TYPE_TCX, BPF_LINK_TYPE_XDP},
    bpf_prog_type::BPF_PROG_TYPE_NETFILTER,
};

/// How an update treats what is there (include/uapi/linux/bpf.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// Create or replace.
    Any = 0,
    /// Only if the key is absent.
    Absent = 1,
}

/// Calls bpf(2) with one of the kernel's attribute layouts.
fn bpf<A>(command: bpf_cmd, attr: &mut A) -> io::Result<i64> {
    // SAFETY: `attr` is one of the `repr(C)` layouts below, whose pointers its caller keeps alive for the call;
    // the kernel reads and writes at most `size_of::<A>()` bytes of it and zero-extends what it knows more.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, ptr::from_mut(attr), mem::size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl ElementAttr {
    fn new<K: Pod>(map: BorrowedFd<'_>, key: &K, value: u64, flags: u64) -> Self {
        Self { map_fd: map.as_raw_fd() as u32, pad: 0, key: ptr::from_ref(key) as u64, value, flags }
    }
}

/// The value under a key, if there is one.
///
/// # Errors
/// What the kernel answers, except ENOENT.
pub fn lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = mem::MaybeUninit::<V>::zeroed();
    match bpf(BPF_MAP_LOOKUP_ELEM, &mut ElementAttr::new(map, key, value.as_mut_ptr() as u64, 0)) {
        // SAFETY: zeroed above, and any bit pattern is a value of a `Pod` type.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes one entry.
///
/// # Errors
/// What the kernel answers: E2BIG from a full hash, ENOSPC from a full trie, EEXIST if it had to be absent.
pub fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V, how: Update) -> io::Result<()> {
    bpf(BPF_MAP_UPDATE_ELEM, &mut ElementAttr::new(map, key, ptr::from_ref(value) as u64, how as u64)).map(drop)
}

/// Removes one entry; whether it was there.
///
/// # Errors
/// What the kernel answers, except ENOENT.
pub fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    match bpf(BPF_MAP_DELETE_ELEM, &mut ElementAttr::new(map, key, 0, 0)) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Writes many entries in order, creating or replacing.
///
/// # Errors
/// How many were written before one failed, and its error as of [`update`].
pub fn update_batch<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> Result<(), (usize, io::Error)> {
    let total = keys.len().min(values.len());
    let mut done = 0;
    while done < total {
        let count = (total - done).min(u32::MAX as usize) as u32;
        let mut attr = BatchAttr {
            in_batch: 0,
            out_batch: 0,
            keys: keys[done..].as_ptr() as u64,
            values: values[done..].as_ptr() as u64,
            count,
            map_fd: map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        match bpf(BPF_MAP_UPDATE_BATCH, &mut attr) {
            Ok(_) => done += attr.count as usize,
            // The kernel leaves the count alone when it refuses the call itself.
            Err(error) => return Err((done + if attr.count < count { attr.count as usize } else { 0 }, error)),
        }
    }
    Ok(())
}

/// Room for the position of a batch in any map: a bucket number of a hash, a key of others.
const CURSOR: usize = 64;

/// More entries than one bucket of a hash ever holds.
const MAX_BATCH: usize = 1 << 22;

/// Where a walk over a map stands.
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    position: [u8; CURSOR],
    started: bool,
}

impl Default for Cursor {
    fn default() -> Self {
        Self { position: [0; CURSOR], started: false }
    }
}

impl Cursor {
    /// Behind an entry of an array, where its index is the key.
    #[must_use]
    pub fn behind(index: u32) -> Self {
        let mut cursor = Self { started: true, ..Self::default() };
        cursor.position[..4].copy_from_slice(&index.to_ne_bytes());
        cursor
    }
}

/// A walk over a map in batches.
pub struct Batches<'a, K, V> {
    map: BorrowedFd<'a>,
    cursor: Cursor,
    finished: bool,
    size: usize,
    keys: Vec<K>,
    values: Vec<V>,
}

impl<'a, K: Pod, V: Pod> Batches<'a, K, V> {
    /// From where `cursor` stands, about `size` entries a time.
    #[must_use]
    pub fn new(map: BorrowedFd<'a>, cursor: Cursor, size: usize) -> Self {
        const { assert!(mem::size_of::<K>() <= CURSOR) };
        Self { map, cursor, finished: false, size, keys: Vec::new(), values: Vec::new() }
    }

    /// Where the walk stands: behind the entries of the last batch.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The next entries; `None` at the end.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn advance(&mut self) -> io::Result<Option<(&[K], &[V])>> {
        while !self.finished {
            self.keys.clear();
            self.values.clear();
            self.keys.reserve(self.size);
            self.values.reserve(self.size);
            let cursor = self.cursor.position.as_mut_ptr() as u64;
            let mut attr = BatchAttr {
                in_batch: if self.cursor.started { cursor } else { 0 },
                out_batch: cursor,
                keys: self.keys.as_mut_ptr() as u64,
                values: self.values.as_mut_ptr() as u64,
                count: self.size as u32,
                map_fd: self.map.as_raw_fd() as u32,
                elem_flags: 0,
                flags: 0,
            };
            match bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOENT) => self.finished = true,
                    // One bucket of a hash holds more than there is room for.
                    Some(libc::ENOSPC) if self.size < MAX_BATCH => {
                        self.size *= 2;
                        continue;
                    }
                    // A key vanished under the walk, which goes on from what it has.
                    Some(libc::EINTR | libc::EAGAIN) => {}
                    _ => return Err(error),
                },
            }
            let count = (attr.count as usize).min(self.size);
            self.cursor.started |= count > 0;
            // SAFETY: room for `size` was reserved, the kernel has written the first `count`, and the types are plain.
            unsafe {
                self.keys.set_len(count);
                self.values.set_len(count);
            }
            if count > 0 {
                return Ok(Some((&self.keys, &self.values)));
            }
        }
        Ok(None)
    }
}

/// What a link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// An interface; 0 once it is gone.
    Interface(u32),
    /// A cgroup, by its number; 0 once it is gone.
    Cgroup(u64),
    /// A netfilter hook.
    Netfilter,
    /// Something that is not ours.
    Other,
}

/// The head of `struct bpf_link_info` and the union's first words: the interface for TCX and XDP links, the number of a cgroup's.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    target: u64,
    rest: [u32; 14],
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    info_len: u32,
    info: u64,
}

/// What a link is attached to.
///
/// # Errors
/// What the kernel answers; the descriptor is no link.
pub fn link_target(link: BorrowedFd<'_>) -> io::Result<Target> {
    let mut info = LinkInfo::default();
    let mut attr = InfoAttr {
        fd: link.as_raw_fd() as u32,
        info_len: mem::size_of::<LinkInfo>() as u32,
        info: ptr::from_mut(&mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    let [a, b, c, d, ..] = info.target.to_ne_bytes();
    Ok(match info.kind {
        kind if kind == BPF_LINK_TYPE_TCX as u32 || kind == BPF_LINK_TYPE_XDP as u32 => {
            Target::Interface(u32::from_ne_bytes([a, b, c, d]))
        }
        kind if kind == BPF_LINK_TYPE_CGROUP as u32 => Target::Cgroup(info.target),
        kind if kind == BPF_LINK_TYPE_NETFILTER as u32 => Target::Netfilter,
        _ => Target::Other,
    })
}

#[repr(C)]
struct DetachAttr {
    link_fd: u32,
}

/// Detaches what a link holds, at once; the link itself goes with its last pin and descriptor.
///
/// # Errors
/// What the kernel answers; EOPNOTSUPP for kinds of links that cannot.
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &mut DetachAttr { link_fd: link.as_raw_fd() as u32 }).map(drop)
}

#[repr(C)]
struct UpdateAttr {
    link_fd: u32,
    program_fd: u32,
    flags: u32,
    old_program_fd: u32,
}

/// Replaces a link's program in one step.
///
/// # Errors
/// What the kernel answers; the program is of another kind, or what it was attached to is gone.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr =
        UpdateAttr { link_fd: link.as_raw_fd() as u32, program_fd: program.as_raw_fd() as u32, flags: 0, old_program_fd: 0 };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

#[repr(C)]
struct ObjectAttr {
    pathname: u64,
    fd: u32,
    file_flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Opens what is pinned at a path.
///
/// # Errors
/// ENOENT, or EACCES and EINVAL where the path is on no BPF filesystem.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let fd = bpf(BPF_OBJ_GET, &mut ObjectAttr { pathname: path.as_ptr() as u64, fd: 0, file_flags: 0 })?;
    // SAFETY: the call has just returned this descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Pins a map, program or link.
///
/// # Errors
/// EEXIST, or EPERM where the path is on no BPF filesystem.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    bpf(BPF_OBJ_PIN, &mut ObjectAttr { pathname: path.as_ptr() as u64, fd: object.as_raw_fd() as u32, file_flags: 0 }).map(drop)
}

#[repr(C)]
struct ProgramAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// Loads a netfilter program that accepts every packet.
///
/// # Errors
/// EINVAL from a kernel before 6.4 or without CONFIG_NETFILTER_BPF_LINK.
pub fn load_accept_all() -> io::Result<OwnedFd> {
    /// `r0 = NF_ACCEPT; exit`, as the instruction set encodes it (Documentation/bpf/standardization/instruction-set.rst).
    const PROGRAM: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
    let license = c"Dual MIT/GPL";
    let mut attr = ProgramAttr {
        prog_type: BPF_PROG_TYPE_NETFILTER as u32,
        insn_cnt: PROGRAM.len() as u32,
        insns: PROGRAM.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: *b"shunt_defrag\0\0\0\0",
        prog_ifindex: 0,
        expected_attach_type: BPF_NETFILTER as u32,
    };
    let fd = bpf(BPF_PROG_LOAD, &mut attr)?;
    // SAFETY: the call has just returned this descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[repr(C)]
struct NetfilterLinkAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    family: u32,
    hook: u32,
    priority: i32,
    netfilter_flags: u32,
}

/// Links a netfilter program to IPv4's pre-routing hook of this network namespace, with reassembly before it.
///
/// # Errors
/// EBUSY if a BPF program has this priority already; EINVAL, EPERM or EOPNOTSUPP from a kernel that cannot.
pub fn link_pre_routing_defrag(program: BorrowedFd<'_>, priority: i32) -> io::Result<OwnedFd> {
    /// include/uapi/linux/bpf.h.
    const BPF_F_NETFILTER_IP_DEFRAG: u32 = 1;
    let mut attr = NetfilterLinkAttr {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: 0,
        attach_type: BPF_NETFILTER as u32,
        flags: 0,
        family: libc::NFPROTO_IPV4 as u32,
        hook: libc::NF_INET_PRE_ROUTING as u32,
        priority,
        netfilter_flags: BPF_F_NETFILTER_IP_DEFRAG,
    };
    let fd = bpf(BPF_LINK_CREATE, &mut attr)?;
    // SAFETY: the call has just returned this descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
