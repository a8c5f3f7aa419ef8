//! How long a silent flow is kept, by what was seen of it.

use crate::{conntrack::seen, net::proto};

/// A TCP connection that was never answered (nf_conntrack's SYN_SENT keeps 120 s; clients give up or retry well before 60).
pub const SYN_SENT: u32 = 60;
/// An established TCP connection: kube-proxy's `tcpEstablishedTimeout`.
pub const ESTABLISHED: u32 = 24 * 3600;
/// One side has closed: kube-proxy's `tcpCloseWaitTimeout`.
pub const CLOSE_WAIT: u32 = 3600;
/// Both sides have closed, or one has reset.
pub const CLOSED: u32 = 10;
/// UDP.
pub const UDP: u32 = 60;
/// ICMP echo.
pub const ICMP: u32 = 5;
/// Protocols whose states we don't follow (SCTP).
pub const OTHER: u32 = 600;

/// Seconds of silence after which a flow is forgotten, from what was seen each way ([`seen`] bits, unshifted).
#[must_use]
#[inline(always)]
pub const fn of(protocol: u8, with: u8, against: u8) -> u32 {
    match protocol {
        proto::TCP => {
            if is_closed(with, against) {
                CLOSED
            } else if (with | against) & seen::FIN != 0 {
                CLOSE_WAIT
            } else if against & seen::ANY == 0 || with & seen::ANY == 0 {
                SYN_SENT
            } else {
                ESTABLISHED
            }
        }
        proto::UDP => UDP,
        proto::ICMP => ICMP,
        _ => OTHER,
    }
}

/// Whether a TCP connection is over: reset, or closed by both sides.
#[must_use]
#[inline(always)]
pub const fn is_closed(with: u8, against: u8) -> bool {
    (with | against) & seen::RST != 0 || with & against & seen::FIN != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_timeouts_follow_the_connection() {
        for (with, against, expected) in [
            (seen::ANY, 0, SYN_SENT),
            (seen::ANY, seen::ANY, ESTABLISHED),
            (seen::ANY | seen::FIN, seen::ANY, CLOSE_WAIT),
            (seen::ANY, seen::ANY | seen::FIN, CLOSE_WAIT),
            (seen::ANY | seen::FIN, seen::ANY | seen::FIN, CLOSED),
            (seen::ANY | seen::RST, seen::ANY, CLOSED),
            (seen::ANY, seen::ANY | seen::RST, CLOSED),
        ] {
            assert_eq!(of(proto::TCP, with, against), expected, "{with:#b} {against:#b}");
        }
        assert_eq!(of(proto::UDP, seen::ANY, 0), UDP);
        assert_eq!(of(proto::ICMP, seen::ANY, seen::ANY), ICMP);
    }
}
