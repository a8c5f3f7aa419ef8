//! The few bpf(2) commands that a measurement needs: which program a pinned link runs, and running one on a packet.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};

const PROG_LOAD: libc::c_long = 5;
const OBJ_GET: libc::c_long = 7;
const PROG_TEST_RUN: libc::c_long = 10;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const TYPE_SCHED_CLS: u32 = 3;

/// `union bpf_attr` of include/uapi/linux/bpf.h, as far as the commands above use it: 64-bit words, zero behind.
type Attributes = [u64; 20];

/// Two 32-bit fields as they lie in a word.
fn pair(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// # Safety
/// Pointers among the attributes must be valid for what the command does with them.
unsafe fn bpf(command: libc::c_long, attributes: &mut Attributes) -> io::Result<i32> {
    // SAFETY: the attributes are valid for their stated size; the rest is the caller's promise.
    let outcome = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of::<Attributes>()) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome as i32) }
}

fn owned(descriptor: i32) -> OwnedFd {
    // SAFETY: the kernel has just made it for us alone.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// The id of the program that a pinned link runs now.
pub(crate) fn program_of_link(pin: &Path) -> Result<u32> {
    let path = std::ffi::CString::new(pin.as_os_str().as_encoded_bytes())?;
    let mut attributes = [0; 20];
    attributes[0] = path.as_ptr() as u64;
    // SAFETY: the path lives until after the call.
    let link = owned(unsafe { bpf(OBJ_GET, &mut attributes) }.with_context(|| format!("cannot open {}", pin.display()))?);

    // struct bpf_link_info begins with type, id, prog_id.
    let mut info = [0u32; 32];
    let mut attributes = [0; 20];
    attributes[0] = pair(link.as_raw_fd().cast_unsigned(), size_of_val(&info) as u32);
    attributes[1] = info.as_mut_ptr() as u64;
    // SAFETY: `info` is writable for the stated length.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attributes) }.context("cannot read a link")?;
    Ok(info[2])
}

/// A loaded program.
pub(crate) struct Program(OwnedFd);

impl Program {
    /// By its id.
    pub(crate) fn by_id(id: u32) -> Result<Self> {
        let mut attributes = [0; 20];
        attributes[0] = pair(id, 0);
        // SAFETY: no pointers.
        Ok(Self(owned(unsafe { bpf(PROG_GET_FD_BY_ID, &mut attributes) }.context("cannot open a program")?)))
    }

    /// A TC program that returns `TC_ACT_OK` and does nothing.
    pub(crate) fn empty() -> Result<Self> {
        // mov r0, 0; exit
        let instructions: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 0, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
        let mut attributes = [0; 20];
        attributes[0] = pair(TYPE_SCHED_CLS, instructions.len() as u32);
        attributes[1] = instructions.as_ptr() as u64;
        attributes[2] = c"GPL".as_ptr() as u64;
        // SAFETY: the instructions and the licence live until after the call.
        Ok(Self(owned(unsafe { bpf(PROG_LOAD, &mut attributes) }.context("cannot load an empty program")?)))
    }

    /// Runs it once on a frame as if it came in by an interface of the calling thread's namespace; what it took.
    pub(crate) fn run(&self, frame: &[u8], ifindex: u32) -> Result<Duration> {
        // struct __sk_buff: ifindex is the eleventh word.
        let mut context = [0u32; 48];
        context[10] = ifindex;
        let mut out = [0u8; 2048];
        let mut attributes: Attributes = [0; 20];
        attributes[0] = pair(self.0.as_raw_fd().cast_unsigned(), 0);
        attributes[1] = pair(frame.len() as u32, out.len() as u32);
        attributes[2] = frame.as_ptr() as u64;
        attributes[3] = out.as_mut_ptr() as u64;
        attributes[4] = pair(1, 0);
        attributes[5] = pair(size_of_val(&context) as u32, 0);
        attributes[6] = context.as_ptr() as u64;
        // SAFETY: both buffers and the context are valid for the stated lengths.
        unsafe { bpf(PROG_TEST_RUN, &mut attributes) }.context("the test run failed")?;
        let [.., a, b, c, d] = attributes[4].to_ne_bytes();
        Ok(Duration::from_nanos(u64::from(u32::from_ne_bytes([a, b, c, d]))))
    }
}
