//! How a program looks into a packet's `struct sk_buff`: where the running kernel keeps what no context field shows, and the call that leads
//! there, which the loader puts into the object file. And where a socket's `struct sock` has what none shows.
//!
//! The call is the kfunc `bpf_cast_to_kern_ctx` (Linux 6.2), which the verifier turns into a move; it is named by its number in the kernel's
//! BTF, so that no object file can hold it. Without it programs mend transport checksums through helpers: slower, otherwise the same.

use std::path::Path;

use btf_rs::{Btf, BtfType, Type};
use shunt_common::config::{SkbLayout, SockLayout};

/// The BTF of the running kernel.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The call.
const CAST: &str = "bpf_cast_to_kern_ctx";

/// Anonymous structs and unions within each other, more than the kernel has.
const MAX_DEPTH: u32 = 8;

/// Why a program cannot look there.
#[derive(Debug, thiserror::Error)]
pub enum SkbError {
    /// No BTF, or none that can be read.
    #[error("the kernel's description of its types, {VMLINUX}, cannot be read (it needs CONFIG_DEBUG_INFO_BTF)")]
    Unreadable(#[source] btf_rs::Error),
    /// The kernel lacks something, or has it in another shape.
    #[error("this kernel has no {what}")]
    Missing {
        /// What.
        what: &'static str,
    },
}

/// What there is to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkbAccess {
    /// The call's number in the kernel's BTF.
    cast: Option<u32>,
    layout: SkbLayout,
    sock: SockLayout,
}

impl SkbAccess {
    /// None: programs use helpers.
    pub const NONE: Self = Self { cast: None, layout: SkbLayout::UNKNOWN, sock: SockLayout::UNKNOWN };

    /// Of the running kernel.
    ///
    /// # Errors
    /// It doesn't say, or cannot.
    pub fn of_this_kernel() -> Result<Self, SkbError> {
        Self::described_by(&Btf::from_file(Path::new(VMLINUX)).map_err(SkbError::Unreadable)?)
    }

    fn described_by(btf: &Btf) -> Result<Self, SkbError> {
        let types = |name: &str| -> Result<Vec<(u32, Type)>, SkbError> {
            let ids = btf.resolve_ids_by_name(name).unwrap_or_default();
            ids.into_iter().map(|id| Ok((id, btf.resolve_type_by_id(id).map_err(SkbError::Unreadable)?))).collect()
        };
        let cast = types(CAST)?.into_iter().find_map(|(id, kind)| matches!(kind, Type::Func(_)).then_some(id));
        let cast = cast.ok_or(SkbError::Missing { what: "bpf_cast_to_kern_ctx (it comes with Linux 6.2)" })?;
        let bits = |name: &str, member: &str| -> Result<Option<(u32, u32)>, SkbError> {
            Ok(types(name)?.into_iter().find_map(|(_, kind)| match kind {
                Type::Struct(whole) => bits_of(btf, &whole, member, 0, MAX_DEPTH),
                _ => None,
            }))
        };
        let layout = bits("sk_buff", "ip_summed")?.and_then(layout);
        let layout = layout.ok_or(SkbError::Missing { what: "sk_buff.ip_summed of two bits" })?;
        let sock = bits("sock", "sk_kern_sock")?.and_then(sock_layout).unwrap_or(SockLayout::UNKNOWN);
        Ok(Self { cast: Some(cast), layout, sock })
    }

    /// The constants for programs.
    #[must_use]
    pub fn layout(&self) -> &SkbLayout {
        &self.layout
    }

    /// Those about sockets.
    #[must_use]
    pub fn sock(&self) -> &SockLayout {
        &self.sock
    }

    /// The object file with the call in place of what stands for it. Without one the place is never reached, but holds an instruction that
    /// every kernel knows.
    #[must_use]
    pub fn patch(&self, object: &[u8]) -> Vec<u8> {
        let instruction = match self.cast {
            // struct bpf_insn: a call, source register BPF_PSEUDO_KFUNC_CALL.
            Some(id) => instruction(0x85, 0x20, id),
            // r0 = 0.
            None => instruction(0xb7, 0, 0),
        };
        let mut patched = object.to_vec();
        // Code stands on multiples of eight in the file, as sections of it do.
        for word in patched.as_chunks_mut::<8>().0 {
            if *word == instruction_in_object() {
                *word = instruction;
            }
        }
        patched
    }
}

/// What the compiler made of a call of [`SkbLayout::CAST`].
const fn instruction_in_object() -> [u8; 8] {
    instruction(0x85, 0, SkbLayout::CAST)
}

const fn instruction(opcode: u8, registers: u8, number: u32) -> [u8; 8] {
    let [a, b, c, d] = number.to_le_bytes();
    [opcode, registers, 0, 0, a, b, c, d]
}

/// First bit and length of a member, which may stand in anonymous structs and unions, as bits of the whole.
fn bits_of(btf: &Btf, within: &btf_rs::Struct, member: &str, base: u32, depth: u32) -> Option<(u32, u32)> {
    within.members.iter().find_map(|candidate| {
        let at = base + candidate.bit_offset();
        let name = btf.resolve_name(candidate).unwrap_or_default();
        if name == member {
            return Some((at, candidate.bitfield_size()?));
        }
        if !name.is_empty() || depth == 0 {
            return None;
        }
        match btf.resolve_type_by_id(candidate.get_type_id()?).ok()? {
            Type::Struct(inner) | Type::Union(inner) => bits_of(btf, &inner, member, at, depth - 1),
            _ => None,
        }
    })
}

/// Two bits of one byte, as programs read them.
fn layout((at, len): (u32, u32)) -> Option<SkbLayout> {
    let (ip_summed_byte, ip_summed_shift) = (at / 8, at % 8);
    (len == 2 && ip_summed_shift <= 6).then_some(SkbLayout { known: 1, ip_summed_byte, ip_summed_shift })
}

/// A bit, as programs read it.
fn sock_layout((at, len): (u32, u32)) -> Option<SockLayout> {
    (len == 1).then_some(SockLayout { kern_sock_byte: at / 8, kern_sock_mask: 1 << (at % 8) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_bits_of_one_byte_can_be_read() {
        assert_eq!(layout((1025, 2)), Some(SkbLayout { known: 1, ip_summed_byte: 128, ip_summed_shift: 1 }));
        assert_eq!(layout((1030, 2)), Some(SkbLayout { known: 1, ip_summed_byte: 128, ip_summed_shift: 6 }));
        assert_eq!(layout((1031, 2)), None, "across two bytes");
        assert_eq!(layout((1024, 0)), None, "no bit field");
    }

    #[test]
    fn every_place_gets_the_call_and_nothing_else_changes() {
        let place = instruction_in_object();
        let other = *b"cast----";
        let object = [place, other, place].concat();
        let access = SkbAccess { cast: Some(0x1_0203), ..SkbAccess::NONE };
        assert_eq!(access.patch(&object), [[0x85, 0x20, 0, 0, 3, 2, 1, 0], other, [0x85, 0x20, 0, 0, 3, 2, 1, 0]].concat());
        assert_eq!(SkbAccess::NONE.patch(&object), [[0xb7, 0, 0, 0, 0, 0, 0, 0], other, [0xb7, 0, 0, 0, 0, 0, 0, 0]].concat());
    }

    /// A BTF file (Documentation/bpf/btf.rst) of these types, each in words.
    fn btf(types: &[&[u32]]) -> Btf {
        let strings = b"\0bpf_cast_to_kern_ctx\0sk_buff\0ip_summed\0sock\0sk_kern_sock\0";
        let types: Vec<u8> = types.concat().iter().flat_map(|word| word.to_le_bytes()).collect();
        let header = [0x0001_eb9f, 24, 0, types.len() as u32, types.len() as u32, strings.len() as u32];
        let header = header.iter().flat_map(|word| word.to_le_bytes());
        Btf::from_bytes(&header.chain(types).chain(*strings).collect::<Vec<u8>>()).unwrap()
    }

    const CAST_NAME: u32 = 1;
    const SK_BUFF_NAME: u32 = 22;
    const IP_SUMMED_NAME: u32 = 30;
    const SOCK_NAME: u32 = 40;
    const KERN_SOCK_NAME: u32 = 45;
    const PROTOTYPE: &[u32] = &[0, 13 << 24, 0];
    const FUNCTION: &[u32] = &[CAST_NAME, 12 << 24, 1];
    const BYTE: &[u32] = &[0, 1 << 24, 1, 8];
    /// An anonymous struct with a bit field of two bits, the fifth its first.
    const BITS: &[u32] = &[0, 1 << 31 | 4 << 24 | 1, 1, IP_SUMMED_NAME, 3, 2 << 24 | 5];
    /// It follows 128 bytes.
    const SK_BUFF: &[u32] = &[SK_BUFF_NAME, 4 << 24 | 1, 129, 0, 4, 1024];
    /// Of its members the second bit of byte 500.
    const SOCK: &[u32] = &[SOCK_NAME, 1 << 31 | 4 << 24 | 1, 501, KERN_SOCK_NAME, 3, 1 << 24 | 4001];

    #[test]
    fn what_a_kernel_says_of_itself_is_found_in_anonymous_structs_too() {
        let access = SkbAccess::described_by(&btf(&[PROTOTYPE, FUNCTION, BYTE, BITS, SK_BUFF])).unwrap();
        let layout = SkbLayout { known: 1, ip_summed_byte: 128, ip_summed_shift: 5 };
        assert_eq!(access, SkbAccess { cast: Some(2), layout, sock: SockLayout::UNKNOWN });
        let access = SkbAccess::described_by(&btf(&[PROTOTYPE, FUNCTION, BYTE, BITS, SK_BUFF, SOCK])).unwrap();
        let sock = SockLayout { kern_sock_byte: 500, kern_sock_mask: 2 };
        assert_eq!(access, SkbAccess { cast: Some(2), layout, sock });
    }

    #[test]
    fn the_running_kernel_tells_its_own_sockets_from_those_of_processes() {
        let access = SkbAccess::of_this_kernel().unwrap();
        assert_eq!(access.sock().kern_sock_mask.count_ones(), 1, "{access:?}");
    }

    #[test]
    fn what_a_kernel_lacks_is_named() {
        let missing = |types: &[&[u32]]| SkbAccess::described_by(&btf(types)).unwrap_err().to_string();
        assert_eq!(missing(&[]), "this kernel has no bpf_cast_to_kern_ctx (it comes with Linux 6.2)");
        assert_eq!(missing(&[PROTOTYPE, FUNCTION]), "this kernel has no sk_buff.ip_summed of two bits");
        let whole_byte = &[SK_BUFF_NAME, 4 << 24 | 1, 129, IP_SUMMED_NAME, 3, 1024];
        assert_eq!(missing(&[PROTOTYPE, FUNCTION, BYTE, whole_byte]), "this kernel has no sk_buff.ip_summed of two bits");
    }
}
