//! A socket whose process is at a system call about its peer: whose it is, and every read and write of the call's address. And one at its end.

use core::{marker::PhantomData, ptr};

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_skc_to_tcp_sock},
    programs::{SockAddrContext, SockContext},
};
use shunt_common::net::{Ip4, Port};

use crate::maps::sock_layout;

/// ::ffff:0:0/96, the first three words of an IPv4 address in an IPv6 one, as loaded (RFC 4291, 2.5.5.2).
const MAPPED: [u32; 3] = [0, 0, 0xffffu32.to_be()];

/// Reads a field of the context or of its socket: one load of the field's own size, as the verifier wants it.
macro_rules! field {
    ($pointer:expr, $($field:tt)+) => {{
        // SAFETY: the kernel passes a valid context, and a socket in it; the verifier checks the offset.
        unsafe { ptr::read_volatile(&raw const (*$pointer).$($field)+) }
    }};
}

/// Writes a field of the context.
macro_rules! set_field {
    ($value:expr => $pointer:expr, $($field:tt)+) => {{
        // SAFETY: as above; only these programs' hooks see the context.
        unsafe { ptr::write_volatile(&raw mut (*$pointer).$($field)+, $value) }
    }};
}

/// Where a call has its IPv4 address. A type, not a value: the verifier wants to know the field.
pub(crate) trait Form {
    /// The address, as loaded, if it is one of IPv4.
    fn address(call: *mut bpf_sock_addr) -> Option<u32>;

    /// Puts another in its place.
    fn set_address(call: *mut bpf_sock_addr, be: u32);
}

/// In a `sockaddr_in`.
pub(crate) struct Inet;

/// In a `sockaddr_in6`, if it is one of IPv4 in that form.
pub(crate) struct Mapped;

impl Form for Inet {
    #[inline(always)]
    fn address(call: *mut bpf_sock_addr) -> Option<u32> {
        Some(field!(call, user_ip4))
    }

    #[inline(always)]
    fn set_address(call: *mut bpf_sock_addr, be: u32) {
        set_field!(be => call, user_ip4);
    }
}

impl Form for Mapped {
    #[inline(always)]
    fn address(call: *mut bpf_sock_addr) -> Option<u32> {
        let prefix = [field!(call, user_ip6[0]), field!(call, user_ip6[1]), field!(call, user_ip6[2])];
        if prefix == MAPPED { Some(field!(call, user_ip6[3])) } else { None }
    }

    #[inline(always)]
    fn set_address(call: *mut bpf_sock_addr, be: u32) {
        set_field!(be => call, user_ip6[3]);
    }
}

/// A socket.
pub(crate) struct Socket<A: Form> {
    context: SockAddrContext,
    form: PhantomData<A>,
}

impl<A: Form> Socket<A> {
    /// The socket of a program's context.
    #[inline(always)]
    pub(crate) fn new(context: SockAddrContext) -> Self {
        Self { context, form: PhantomData }
    }

    /// IP protocol number.
    #[inline(always)]
    pub(crate) fn proto(&self) -> u32 {
        field!(self.call(), protocol)
    }

    /// The cookie of its network namespace (SO_NETNS_COOKIE).
    #[inline(always)]
    pub(crate) fn netns(&self) -> u64 {
        // SAFETY: a valid context, as the helper wants it.
        unsafe { bpf_get_netns_cookie(self.call().cast()) }
    }

    /// Its cookie (SO_COOKIE).
    #[inline(always)]
    pub(crate) fn cookie(&self) -> u64 {
        // SAFETY: a valid context, as the helper wants it.
        unsafe { bpf_get_socket_cookie(self.call().cast()) }
    }

    /// Whether a TCP socket is known to be the kernel's own (a network file system's, say) and no process's.
    #[inline(always)]
    pub(crate) fn is_kernels(&self) -> bool {
        let layout = sock_layout();
        if layout.kern_sock_mask == 0 {
            return false;
        }
        // SAFETY: the socket of the context, as the helper wants it.
        let sock = unsafe { bpf_skc_to_tcp_sock(self.raw().cast()) }.cast::<u8>();
        if sock.is_null() {
            return false;
        }
        // SAFETY: `struct tcp_sock` begins with `struct sock`, and this is within it by the kernel's own description; the verifier checks it again.
        let byte = unsafe { sock.add(layout.kern_sock_byte as usize).read() };
        u32::from(byte) & layout.kern_sock_mask != 0
    }

    /// Whether its owner chose its address or port before.
    #[inline(always)]
    pub(crate) fn is_bound(&self) -> bool {
        let socket = self.raw();
        field!(socket, src_port) != 0 || field!(socket, src_ip4) != 0
    }

    /// The peer that the call is about, if that is an IPv4 address.
    #[inline(always)]
    pub(crate) fn peer(&self) -> Option<(Ip4, Port)> {
        let call = self.call();
        let be = A::address(call)?;
        Some((Ip4 { be }, Port { be: field!(call, user_port) as u16 }))
    }

    /// Puts another IPv4 peer in the place of such a one.
    #[inline(always)]
    pub(crate) fn set_peer(&self, addr: Ip4, port: Port) {
        let call = self.call();
        A::set_address(call, addr.be);
        set_field!(u32::from(port.be) => call, user_port);
    }

    #[inline(always)]
    fn call(&self) -> *mut bpf_sock_addr {
        self.context.sock_addr
    }

    #[inline(always)]
    fn raw(&self) -> *mut bpf_sock {
        field!(self.call(), __bindgen_anon_1.sk)
    }
}

/// A socket that nobody has open any more.
pub(crate) struct Closed {
    context: SockContext,
}

impl Closed {
    /// The socket of a program's context.
    #[inline(always)]
    pub(crate) fn new(context: SockContext) -> Self {
        Self { context }
    }

    /// IP protocol number.
    #[inline(always)]
    pub(crate) fn proto(&self) -> u32 {
        field!(self.context.sock, protocol)
    }

    /// Its cookie (SO_COOKIE).
    #[inline(always)]
    pub(crate) fn cookie(&self) -> u64 {
        // SAFETY: a valid context, as the helper wants it.
        unsafe { bpf_get_socket_cookie(self.context.sock.cast()) }
    }
}
