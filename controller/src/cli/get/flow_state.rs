//! The word for what a tracked flow is doing.

use shunt_common::{conntrack::seen, net::proto, timeout};

/// By what was seen of packets under the flow's two entries; the words are those of `conntrack -L`, as far as they fit.
pub(super) fn of(protocol: u8, original: u8, reply: u8) -> &'static str {
    let answered = reply & seen::ANY != 0;
    match protocol {
        proto::TCP if timeout::is_closed(original, reply) => "closed",
        proto::TCP if (original | reply) & seen::FIN != 0 => "closing",
        proto::TCP if answered => "established",
        proto::TCP => "syn-sent",
        _ if answered => "answered",
        _ => "unanswered",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_follow_the_timeouts() {
        for (original, reply, word) in [
            (seen::ANY, 0, "syn-sent"),
            (seen::ANY, seen::ANY, "established"),
            (seen::ANY | seen::FIN, seen::ANY, "closing"),
            (seen::ANY | seen::FIN, seen::ANY | seen::FIN, "closed"),
            (seen::ANY, seen::ANY | seen::RST, "closed"),
        ] {
            assert_eq!(of(proto::TCP, original, reply), word);
        }
        assert_eq!(of(proto::UDP, seen::ANY, 0), "unanswered");
        assert_eq!(of(proto::ICMP, seen::ANY, seen::ANY), "answered");
    }
}
