//! The few bpf(2) commands that a measurement needs: which program a pinned link runs, and running one on a packet.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, Result};

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const OBJ_GET: libc::c_long = 7;
const PROG_TEST_RUN: libc::c_long = 10;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const TYPE_SCHED_CLS: u32 = 3;
const TYPE_XDP: u32 = 6;
const XDP_PASS: i32 = 2;
const TYPE_PROG_ARRAY: u32 = 3;

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

/// Bits of a packet that chance chooses.
pub(crate) struct Variation {
    /// Where its four bytes begin.
    pub(crate) at: usize,
    /// Which bits of them. Those at the same place of two variations are the same.
    pub(crate) bits: [u8; 4],
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

    /// One that was loaded otherwise.
    pub(crate) fn of(program: BorrowedFd<'_>) -> Result<Self> {
        Ok(Self(program.try_clone_to_owned().context("cannot hold a program")?))
    }

    /// A TC program that returns `TC_ACT_OK` and does nothing.
    pub(crate) fn empty() -> Result<Self> {
        Self::load(TYPE_SCHED_CLS, &[instruction(MOV_NUMBER, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)])
    }

    /// An XDP program that passes everything.
    pub(crate) fn empty_xdp() -> Result<Self> {
        Self::load(TYPE_XDP, &[instruction(MOV_NUMBER, 0, 0, 0, XDP_PASS), instruction(EXIT, 0, 0, 0, 0)])
    }

    /// A TC program that makes a TCP packet `frame` again where a translation of it differs, then goes on to a program of an array. Bits of a
    /// [`Variation`] are other ones in each run.
    pub(crate) fn restoring(frame: &[u8], variations: &[Variation], programs: &ProgramArray, index: u32) -> Result<Self> {
        let word = |at: usize| frame.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
        let tcp = 14 + 4 * usize::from(frame.get(14).context("the frame is too short")? & 0xf);
        let mut changes = Vec::new();
        // TTL, protocol and checksum; both addresses; both ports; the TCP checksum with the window in front of it.
        for at in [22, 26, 30, tcp, tcp + 14] {
            changes.push(instruction(STORE_WORD, 2, 0, at as i16, word(at).context("the frame is too short")?));
        }
        for Variation { at, bits } in variations {
            let bits = i32::from_ne_bytes(*bits);
            changes.extend([
                instruction(MOV, 4, 7, 0, 0),
                instruction(AND_NUMBER, 4, 0, 0, bits),
                instruction(OR_NUMBER, 4, 0, 0, word(*at).context("the frame is too short")? & !bits),
                instruction(STORE_REGISTER, 2, 4, *at as i16, 0),
            ]);
        }
        let mut code = vec![instruction(MOV, 6, 1, 0, 0)];
        if !variations.is_empty() {
            code.extend([instruction(CALL, 0, 0, 0, RANDOM), instruction(MOV, 7, 0, 0, 0)]);
        }
        let skipped = changes.len() + 5;
        code.extend([
            // struct __sk_buff: data and data_end.
            instruction(LOAD_WORD, 2, 6, 76, 0),
            instruction(LOAD_WORD, 3, 6, 80, 0),
            instruction(MOV, 4, 2, 0, 0),
            instruction(ADD_NUMBER, 4, 0, 0, (tcp + 20) as i32),
            instruction(JUMP_IF_GREATER, 4, 3, skipped as i16, 0),
        ]);
        code.extend(changes);
        code.extend([
            instruction(MOV, 1, 6, 0, 0),
            instruction(LOAD_MAP, 2, PSEUDO_MAP_FD, 0, programs.0.as_raw_fd()),
            0,
            instruction(MOV_NUMBER, 3, 0, 0, index.cast_signed()),
            instruction(CALL, 0, 0, 0, TAIL_CALL),
            instruction(MOV_NUMBER, 0, 0, 0, 0),
            instruction(EXIT, 0, 0, 0, 0),
        ]);
        Self::load(TYPE_SCHED_CLS, &code)
    }

    fn load(kind: u32, code: &[u64]) -> Result<Self> {
        let mut attributes = [0; 20];
        attributes[0] = pair(kind, code.len() as u32);
        attributes[1] = code.as_ptr() as u64;
        attributes[2] = c"GPL".as_ptr() as u64;
        // SAFETY: the instructions and the licence live until after the call.
        Ok(Self(owned(unsafe { bpf(PROG_LOAD, &mut attributes) }.context("cannot load a program")?)))
    }

    /// Runs a TC program many times on one packet, as if it came in by an interface of the calling thread's namespace; nanoseconds for one run.
    pub(crate) fn run(&self, frame: &[u8], ifindex: u32, repeat: u32) -> Result<u32> {
        // struct __sk_buff: ifindex is the eleventh word.
        let mut context = [0u32; 48];
        context[10] = ifindex;
        self.run_with(frame, &context, repeat)
    }

    /// Runs an XDP program likewise, as if the packet came in by the loopback device.
    pub(crate) fn run_xdp(&self, frame: &[u8], repeat: u32) -> Result<u32> {
        self.run_with(frame, &[], repeat)
    }

    fn run_with(&self, frame: &[u8], context: &[u32], repeat: u32) -> Result<u32> {
        let mut out = [0u8; 2048];
        let mut attributes: Attributes = [0; 20];
        attributes[0] = pair(self.0.as_raw_fd().cast_unsigned(), 0);
        attributes[1] = pair(frame.len() as u32, out.len() as u32);
        attributes[2] = frame.as_ptr() as u64;
        attributes[3] = out.as_mut_ptr() as u64;
        attributes[4] = pair(repeat, 0);
        attributes[5] = pair(size_of_val(context) as u32, 0);
        attributes[6] = if context.is_empty() { 0 } else { context.as_ptr() as u64 };
        // SAFETY: both buffers and the context are valid for the stated lengths.
        unsafe { bpf(PROG_TEST_RUN, &mut attributes) }.context("the test run failed")?;
        let [.., a, b, c, d] = attributes[4].to_ne_bytes();
        Ok(u32::from_ne_bytes([a, b, c, d]))
    }
}

/// Programs to go on to (`BPF_MAP_TYPE_PROG_ARRAY`). The kernel empties it when its descriptor is closed: keep it while any that goes on by it runs.
pub(crate) struct ProgramArray(OwnedFd);

impl ProgramArray {
    /// Of these programs.
    pub(crate) fn of(programs: &[&Program]) -> Result<Self> {
        let mut attributes = [0; 20];
        attributes[0] = pair(TYPE_PROG_ARRAY, 4);
        attributes[1] = pair(4, programs.len() as u32);
        // SAFETY: no pointers.
        let map = owned(unsafe { bpf(MAP_CREATE, &mut attributes) }.context("cannot make a program array")?);
        for (index, program) in (0u32..).zip(programs) {
            let value = program.0.as_raw_fd();
            let mut attributes = [0; 20];
            attributes[0] = pair(map.as_raw_fd().cast_unsigned(), 0);
            attributes[1] = &raw const index as u64;
            attributes[2] = &raw const value as u64;
            // SAFETY: key and value live until after the call and have the sizes that the map was made with.
            unsafe { bpf(MAP_UPDATE_ELEM, &mut attributes) }.context("cannot put a program into an array")?;
        }
        Ok(Self(map))
    }
}

// Opcodes and numbers of include/uapi/linux/bpf.h.
const LOAD_WORD: u8 = 0x61;
const STORE_WORD: u8 = 0x62;
const LOAD_MAP: u8 = 0x18;
const PSEUDO_MAP_FD: u8 = 1;
const STORE_REGISTER: u8 = 0x63;
const ADD_NUMBER: u8 = 0x07;
const AND_NUMBER: u8 = 0x54;
const OR_NUMBER: u8 = 0x44;
const MOV: u8 = 0xbf;
const MOV_NUMBER: u8 = 0xb7;
const JUMP_IF_GREATER: u8 = 0x2d;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const RANDOM: i32 = 7;
const TAIL_CALL: i32 = 12;

/// `struct bpf_insn`.
fn instruction(opcode: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
    let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
    let ([a, b], [c, d, e, f]) = (offset.to_ne_bytes(), number.to_ne_bytes());
    u64::from_ne_bytes([opcode, registers, a, b, c, d, e, f])
}
