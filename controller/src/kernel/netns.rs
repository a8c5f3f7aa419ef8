//! Cookies of network namespaces: what tells the programs at system calls whose socket it is.
//!
//! A cookie is never given twice while the kernel runs (net/core/net_namespace.c).

use std::{fs::File, io, net::UdpSocket, os::fd::AsRawFd as _, path::Path, ptr, thread};

use nix::sched::{CloneFlags, setns};

/// The cookie of the calling thread's network namespace.
///
/// # Errors
/// What the kernel answers.
pub fn own_cookie() -> io::Result<u64> {
    // Any socket will do; this one needs no privilege and no address that is there.
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut cookie = 0_u64;
    let mut len = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: both pointers are of live variables, the latter with the former's length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            ptr::from_mut(&mut cookie).cast(),
            &raw mut len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// The cookie of the network namespace at a path.
///
/// # Errors
/// Nothing is there, or the caller may not enter it: that needs CAP_SYS_ADMIN.
pub fn cookie_at(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    // On a thread of its own, so that no other ever stands in the wrong namespace.
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, || {
            setns(&file, CloneFlags::CLONE_NEWNET)?;
            own_cookie()
        })?;
        worker.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_one_cookie() {
        let cookie = own_cookie().unwrap();
        assert_ne!(cookie, 0);
        assert_eq!(own_cookie().unwrap(), cookie);
        assert_eq!(thread::spawn(own_cookie).join().unwrap().unwrap(), cookie);
    }

    #[test]
    fn what_is_no_namespace_has_none() {
        assert_eq!(cookie_at(Path::new("/nowhere")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(cookie_at(Path::new("/etc/hostname")).is_err());
    }
}
