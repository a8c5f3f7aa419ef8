//! Session affinity: which backend a client of a Service had last, in the map `AFFINITY`.

use crate::net::Family;

abi! {
    /// Value of `AFFINITY`, keyed by [`ServiceClient`](crate::service::ServiceClient): all ports of a Service share it.
    pub struct Affinity<F> {
        /// The backend's address.
        pub backend: F::Addr,
        /// The [`moment`] of the client's latest connection.
        pub last_seen: u32,
    }
}

/// A CLOCK_MONOTONIC time in nanoseconds, in units of 2^24 ns: 17 ms.
#[must_use]
#[inline(always)]
pub const fn moment(nanoseconds: u64) -> u32 {
    (nanoseconds >> 24) as u32
}

impl<F: Family> Affinity<F> {
    /// Whether a client keeps its backend for another connection, `seconds` being the Service's timeout.
    #[must_use]
    #[inline(always)]
    pub const fn holds(&self, now: u32, seconds: u32) -> bool {
        crate::conntrack::age(now, self.last_seen) < moment(seconds as u64 * 1_000_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Ip4, V4};

    #[test]
    fn a_client_keeps_its_backend_for_as_long_as_the_service_says() {
        const SECOND: u64 = 1_000_000_000;
        for (seconds, past, holds) in
            [(1, SECOND / 2, true), (1, SECOND, false), (10_800, 10_799 * SECOND, true), (86_400, 86_401 * SECOND, false)]
        {
            // From before the clock wraps to after it.
            let start = u64::from(u32::MAX) << 24;
            let kept = Affinity::<V4> { backend: Ip4::new(10, 244, 1, 2), last_seen: moment(start) };
            assert_eq!(kept.holds(moment(start + past), seconds), holds, "{seconds} s, {past} ns later");
        }
    }
}
