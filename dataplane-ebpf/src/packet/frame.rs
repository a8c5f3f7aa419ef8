//! A packet's bytes, whatever holds them: bounds-checked reads and writes.
//!
//! On alignment: an IP header stands 14 bytes into a frame, so that its words are misaligned, which an instruction of this machine
//! may be: the verifier allows it for packets where the CPU does (CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS) and rejects the program
//! elsewhere. Telling the compiler (`read_unaligned`) makes it take every word apart into bytes.

use core::ffi::c_void;

use shunt_common::{checksum::Mending, net::Mac, verdict::DropReason};

/// Length of an Ethernet header, and so the offset of the network header.
pub(crate) const ETH_LEN: u64 = 14;

/// All ones above the largest offset of a header field: Ethernet, IP with options, ICMP, a quoted IP header with options, TCP.
const MAX_OFFSET: u64 = 0xff;

/// The outcome of a change to a packet, which the kernel may refuse.
pub(crate) type Changed = Result<(), DropReason>;

/// A packet, with an Ethernet header in front. Offsets are from there.
pub(crate) trait Frame: Copy {
    /// The context as helpers take it.
    fn context(self) -> *mut c_void;

    /// Where its bytes begin, and where those end that can be read and written.
    fn bounds(self) -> (usize, usize);

    /// Length in bytes, Ethernet header included.
    fn len(self) -> u32;

    /// Payload bytes of each segment of a packet that is to be segmented, else 0.
    fn gso_size(self) -> u32;

    /// Mends the transport checksum at `offset`. A UDP checksum of zero stays zero.
    fn fix_l4(self, offset: u64, mending: &Mending, udp: bool) -> Changed;

    /// A pointer to `T` at `offset`, if it can be reached there.
    #[inline(always)]
    fn at<T>(self, offset: u64) -> Option<*mut T> {
        let (start, end) = self.bounds();
        // No header that we look at begins later; the mask tells the verifier so, which forgets what it knew of a value kept on the stack.
        let start = start + (offset & MAX_OFFSET) as usize;
        if start + size_of::<T>() > end { None } else { Some(start as *mut T) }
    }

    /// Reads `T` at `offset`. `T` is plain bytes or integers.
    #[inline(always)]
    fn read<T: Copy>(self, offset: u64) -> Option<T> {
        // SAFETY: within the packet as checked; any bytes are a `T`. See the module on alignment.
        self.at::<T>(offset).map(|pointer| unsafe { pointer.read() })
    }

    /// Writes `T` at `offset`.
    #[inline(always)]
    fn write<T: Copy>(self, offset: u64, value: T) -> Changed {
        let pointer = self.at::<T>(offset).ok_or(DropReason::Malformed)?;
        // SAFETY: within the packet as checked; what can be reached of a packet that is written is private.
        unsafe { pointer.write(value) };
        Ok(())
    }

    /// Replaces the `T` at `offset` by what `change` makes of it.
    #[inline(always)]
    fn change<T: Copy>(self, offset: u64, change: impl FnOnce(T) -> T) -> Changed {
        let pointer = self.at::<T>(offset).ok_or(DropReason::Malformed)?;
        // SAFETY: as for reading and writing.
        unsafe { pointer.write(change(pointer.read())) };
        Ok(())
    }

    /// Writes the destination MAC.
    #[inline(always)]
    fn set_dst_mac(self, mac: Mac) -> Changed {
        self.write::<u32>(0, mac.head())?;
        self.write::<u16>(4, mac.tail())
    }
}
