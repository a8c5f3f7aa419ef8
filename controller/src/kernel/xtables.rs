//! Rules of legacy iptables: whether there are any of a kind. They are not changed: the kernel takes a legacy table only as a whole, and
//! forgets what another program wrote meanwhile.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES` (include/uapi/linux/netfilter_ipv4/ip_tables.h).
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
/// `XT_TABLE_MAXNAMELEN`.
const NAME: usize = 32;
/// Bytes of `struct ipt_getinfo` and where it says how many bytes the entries have.
const INFO: usize = NAME + 13 * 4;
const INFO_SIZE: usize = NAME + 12 * 4;
/// Where entries begin in `struct ipt_get_entries`, and where it says how many bytes they have.
const ENTRIES: usize = 40;
const ENTRIES_SIZE: usize = NAME;

/// Names of the IPv4 tables that have a text in one of their rules or chains' names.
///
/// # Errors
/// A table that is there cannot be read.
pub fn tables_with(needle: &str) -> io::Result<Vec<String>> {
    let names = match fs::read_to_string("/proc/thread-self/net/ip_tables_names") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        names => names?,
    };
    if names.trim().is_empty() {
        return Ok(Vec::new());
    }
    // Any IPv4 socket is asked the same way; a raw one, which iptables takes, needs CAP_NET_RAW besides.
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut found = Vec::new();
    for name in names.lines() {
        if entries(&socket, name)?.windows(needle.len()).any(|window| window == needle.as_bytes()) {
            found.push(name.to_owned());
        }
    }
    Ok(found)
}

fn entries(socket: &OwnedFd, table: &str) -> io::Result<Vec<u8>> {
    let named = |length: usize| {
        let mut buffer = vec![0u8; length];
        let bytes = &table.as_bytes()[..table.len().min(NAME - 1)];
        buffer[..bytes.len()].copy_from_slice(bytes);
        buffer
    };
    let mut info = named(INFO);
    ask(socket, GET_INFO, &mut info)?;
    let mut word = [0; 4];
    word.copy_from_slice(&info[INFO_SIZE..INFO_SIZE + 4]);
    let mut answer = named(ENTRIES + u32::from_ne_bytes(word) as usize);
    answer[ENTRIES_SIZE..ENTRIES_SIZE + 4].copy_from_slice(&word);
    ask(socket, GET_ENTRIES, &mut answer)?;
    Ok(answer.split_off(ENTRIES))
}

fn ask(socket: &OwnedFd, option: i32, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = buffer.len() as libc::socklen_t;
    // SAFETY: the kernel reads and writes at most `length` bytes of the buffer, which is that long.
    let outcome =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, option, buffer.as_mut_ptr().cast(), &raw mut length) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
