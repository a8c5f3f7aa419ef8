//! Which of the node's source ports a translated flow asks for first.

use crate::{flow::Tuple, net::Family};

/// The place among `count` ports that a flow of this opener asks for first, the others being tried at random; 0 if `count` is 0.
///
/// The same for each flow that comes from one port of one client. A server that closes a connection remembers its ports for a minute
/// (TIME-WAIT), and ignores a SYN from there whose timestamp is older than the last one's (RFC 6191, section 2): clocks start anywhere
/// for each pair of address and port, so that only the same opener's is sure to be newer. One client's ports have places of their own:
/// the kernel gives out those of one parity before those of the other (`__inet_hash_connect` in net/ipv4/inet_hashtables.c).
#[must_use]
#[inline(always)]
pub fn first_place<F: Family>(opener: &Tuple<F>, count: u32) -> u32 {
    // Fibonacci hashing: clients with neighbouring addresses begin far from each other.
    let start = F::word(opener.src).wrapping_mul(0x9e37_79b9) >> 16;
    let place = start.wrapping_add(u32::from(opener.sport.to_host().rotate_right(1)));
    place.checked_rem(count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Ip4, Port, V4, proto};

    fn opener(client: Ip4, sport: u16) -> Tuple<V4> {
        Tuple {
            src: client,
            dst: Ip4::new(10, 96, 0, 1),
            sport: Port::from_host(sport),
            dport: Port::from_host(80),
            proto: proto::TCP,
        }
    }

    #[test]
    fn the_ephemeral_ports_of_one_parity_have_places_of_their_own() {
        for client in [Ip4::new(192, 0, 2, 1), Ip4::new(10, 244, 1, 7)] {
            for parity in [0, 1] {
                let mut taken = [false; 20_000];
                for sport in (32_768 + parity..61_000).step_by(2) {
                    let place = first_place(&opener(client, sport), 20_000) as usize;
                    assert!(!taken[place], "{client}:{sport} meets another");
                    taken[place] = true;
                }
            }
        }
    }

    #[test]
    fn clients_begin_apart_and_no_ports_are_no_fault() {
        let place = |last| first_place(&opener(Ip4::new(10, 244, 1, last), 40_000), 20_000);
        assert_eq!(place(5), place(5));
        assert_ne!(place(5), place(6));
        assert_eq!(first_place(&opener(Ip4::new(10, 0, 0, 1), 40_000), 0), 0);
    }
}
