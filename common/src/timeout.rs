//! How long a silent flow is kept, by what was seen of it. Time is in ticks of 2^30 ns, 7 % longer than a second: a program
//! gets them from its clock without a division.

use crate::{conntrack::seen, net::proto};

/// The tick of a CLOCK_MONOTONIC time in nanoseconds.
#[must_use]
#[inline(always)]
pub const fn tick(nanoseconds: u64) -> u32 {
    (nanoseconds >> 30) as u32
}

/// A TCP connection that was never answered (nf_conntrack's SYN_SENT keeps 120 s; clients give up or retry well before 60).
pub const SYN_SENT: u32 = 60;
/// An established TCP connection: kube-proxy's `tcpEstablishedTimeout`.
pub const ESTABLISHED: u32 = 24 * 3600;
/// One side has closed, or a reset came that was not to be believed: kube-proxy's `tcpCloseWaitTimeout`.
pub const CLOSE_WAIT: u32 = 3600;
/// Both sides have closed, or one has reset.
pub const CLOSED: u32 = 10;
/// UDP.
pub const UDP: u32 = 60;
/// ICMP echo.
pub const ICMP: u32 = 5;
/// Protocols whose states we don't follow (SCTP).
pub const OTHER: u32 = 600;
/// A TCP connection of which only the opener is seen, after its FIN, or a RST that nothing tells from a stray one: what is still said back and
/// forth keeps it.
pub const ONE_WAY_CLOSING: u32 = 120;
/// UDP of which only the opener is seen, whose answers may be more than its questions: as nf_conntrack keeps a stream.
pub const ONE_WAY_UDP: u32 = 120;

/// Ticks of silence after which a flow is forgotten, from what was seen under either of its entries ([`seen`] bits).
#[must_use]
#[inline(always)]
pub const fn of(protocol: u8, one: u8, other: u8) -> u32 {
    match protocol {
        proto::TCP => {
            if is_closed(one, other) {
                CLOSED
            } else if (one | other) & (seen::FIN | seen::STRAY_RST) != 0 {
                CLOSE_WAIT
            } else if one & seen::ANY == 0 || other & seen::ANY == 0 {
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

/// The same of a flow whose answers go another way, from what was seen of its opener alone. That it acknowledges shows that it was answered.
#[must_use]
#[inline(always)]
pub const fn of_one_way(protocol: u8, opener: u8) -> u32 {
    match protocol {
        proto::TCP => {
            if opener & (seen::RST | seen::ACK) == seen::RST {
                CLOSED
            } else if opener & (seen::FIN | seen::RST) != 0 {
                ONE_WAY_CLOSING
            } else if opener & seen::ACK == 0 {
                SYN_SENT
            } else {
                ESTABLISHED
            }
        }
        proto::UDP => ONE_WAY_UDP,
        other => of(other, opener, 0),
    }
}

/// Whether a TCP connection is over: reset, or closed by both sides.
#[must_use]
#[inline(always)]
pub const fn is_closed(one: u8, other: u8) -> bool {
    (one | other) & seen::RST != 0 || one & other & seen::FIN != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_timeouts_follow_the_connection() {
        for (one, other, expected) in [
            (seen::ANY, 0, SYN_SENT),
            (seen::ANY, seen::ANY, ESTABLISHED),
            (seen::ANY | seen::FIN, seen::ANY, CLOSE_WAIT),
            (seen::ANY, seen::ANY | seen::FIN, CLOSE_WAIT),
            (seen::ANY | seen::FIN, seen::ANY | seen::FIN, CLOSED),
            (seen::ANY | seen::RST, seen::ANY, CLOSED),
            (seen::ANY, seen::ANY | seen::RST, CLOSED),
            (seen::ANY | seen::STRAY_RST, seen::ANY, CLOSE_WAIT),
            (seen::ANY | seen::RST, seen::ANY | seen::STRAY_RST, CLOSED),
        ] {
            assert_eq!(of(proto::TCP, one, other), expected, "{one:#b} {other:#b}");
        }
        assert_eq!(of(proto::UDP, seen::ANY, 0), UDP);
        assert_eq!(of(proto::ICMP, seen::ANY, seen::ANY), ICMP);
    }

    #[test]
    fn of_a_flow_that_is_seen_one_way_the_opener_tells() {
        for (opener, expected) in [
            (seen::ANY, SYN_SENT),
            (seen::ANY | seen::ACK, ESTABLISHED),
            (seen::ANY | seen::ACK | seen::FIN, ONE_WAY_CLOSING),
            (seen::ANY | seen::ACK | seen::RST, ONE_WAY_CLOSING),
            (seen::ANY | seen::RST, CLOSED),
        ] {
            assert_eq!(of_one_way(proto::TCP, opener), expected, "{opener:#b}");
        }
        assert_eq!(of_one_way(proto::UDP, seen::ANY), ONE_WAY_UDP);
        assert_eq!(of_one_way(proto::SCTP, seen::ANY), OTHER);
    }
}
