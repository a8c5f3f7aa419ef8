//! The word for what a tracked flow is doing.

use shunt_common::{conntrack::seen, net::proto, timeout};

/// By what was seen of packets under the flow's two entries; the words are those of `conntrack -L`, as far as they fit. Of a flow whose
/// answers go another way (`one_way`) the opener's tell.
pub(super) fn of(protocol: u8, one_way: bool, original: u8, reply: u8) -> &'static str {
    let answered = if one_way { original & seen::ACK != 0 } else { reply & seen::ANY != 0 };
    match protocol {
        proto::TCP if timeout::is_closed(original, reply) => "closed",
        proto::TCP if (original | reply) & seen::FIN != 0 => "closing",
        proto::TCP if answered => "established",
        proto::TCP => "syn-sent",
        _ if one_way => "one-way",
        _ if answered => "answered",
        _ => "unanswered",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_follow_the_timeouts() {
        for (one_way, original, reply, word) in [
            (false, seen::ANY, 0, "syn-sent"),
            (false, seen::ANY, seen::ANY, "established"),
            (false, seen::ANY | seen::FIN, seen::ANY, "closing"),
            (false, seen::ANY | seen::FIN, seen::ANY | seen::FIN, "closed"),
            (false, seen::ANY, seen::ANY | seen::RST, "closed"),
            (true, seen::ANY, 0, "syn-sent"),
            (true, seen::ANY | seen::ACK, 0, "established"),
            (true, seen::ANY | seen::ACK | seen::FIN, 0, "closing"),
        ] {
            assert_eq!(of(proto::TCP, one_way, original, reply), word);
        }
        assert_eq!(of(proto::UDP, false, seen::ANY, 0), "unanswered");
        assert_eq!(of(proto::UDP, true, seen::ANY, 0), "one-way");
        assert_eq!(of(proto::ICMP, false, seen::ANY, seen::ANY), "answered");
    }
}
