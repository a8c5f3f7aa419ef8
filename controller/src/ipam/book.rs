//! Who has which address, and who gets the next: pure, without disk and clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::{IpamError, ports};
use crate::{
    attachment::{AttachmentKey, Pod, pod_mac},
    socket::protocol::PodAdd,
};

/// For how long a released address is nobody's: flows to its last owner die out, and caches forget it.
pub const COOL_DOWN: Duration = Duration::from_secs(60);

/// The address book. Equal books are equal files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    pods: BTreeMap<AttachmentKey, Pod>,
    /// The address given last: the search goes on behind it, so that addresses are reused as late as can be.
    last: Option<Ipv4Addr>,
    /// When addresses were released, since 1970, as long as that matters.
    released: BTreeMap<Ipv4Addr, Duration>,
}

/// The addresses of a range that pods may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usable {
    range: Ipv4Net,
    /// Host order.
    first: u32,
    last: u32,
}

impl Usable {
    fn of(range: Ipv4Net) -> Result<Self, IpamError> {
        if range.prefix_len() > 30 {
            return Err(IpamError::RangeTooSmall(range));
        }
        // Behind the network's own address and the first, which other software takes for a gateway; before the broadcast address.
        Ok(Self { range, first: range.network().to_bits() + 2, last: range.broadcast().to_bits() - 1 })
    }

    fn count(self) -> u32 {
        self.last - self.first + 1
    }

    /// All, from the one behind `last` round to `last` itself.
    fn after(self, last: Option<Ipv4Addr>) -> impl Iterator<Item = Ipv4Addr> {
        let start = last.map_or(self.first, |last| last.to_bits().saturating_add(1));
        let start = if (self.first..=self.last).contains(&start) { start } else { self.first };
        (start..=self.last).chain(self.first..start).map(Ipv4Addr::from_bits)
    }
}

/// How a range's addresses for pods stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Held by attachments.
    pub used: usize,
    /// Released too lately to be given again.
    pub cooling: usize,
    /// The rest.
    pub free: usize,
}

impl Book {
    /// How the addresses of `range` stand; `None` if none of them can be given. `now` is since 1970.
    #[must_use]
    pub fn tally(&self, range: Option<Ipv4Net>, now: Duration) -> Option<Tally> {
        let usable = self.usable(range).ok()?;
        let used = self.pods.values().filter(|pod| usable.range.contains(&pod.address)).count();
        let cools = |at: Duration| now.saturating_sub(at) < COOL_DOWN;
        let released = self.released.iter().filter(|(address, at)| usable.range.contains(*address) && cools(**at));
        let cooling = released.count();
        Some(Tally { used, cooling, free: (usable.count() as usize).saturating_sub(used + cooling) })
    }

    /// All attachments.
    #[must_use]
    pub fn pods(&self) -> &BTreeMap<AttachmentKey, Pod> {
        &self.pods
    }

    /// The addresses that may be given now that the Node's range is `range`.
    ///
    /// # Errors
    /// There is no range, or it is too small.
    pub fn usable(&self, range: Option<Ipv4Net>) -> Result<Usable, IpamError> {
        Usable::of(range.ok_or(IpamError::NoRange)?.trunc())
    }

    /// See [`Ipam::left_outside`](super::Ipam::left_outside).
    #[must_use]
    pub fn left_outside(&self, range: Ipv4Net) -> Option<String> {
        let mut outside = self.pods.values().filter(|pod| !range.contains(&pod.address));
        let example = outside.next()?;
        Some(format!(
            "is now {range}, but {} pod(s) of this node hold addresses outside of it ({} has {}): this node still reaches them, other \
             nodes do not; delete them, so that they get addresses of {range}",
            1 + outside.count(),
            example.title(),
            example.address
        ))
    }

    /// See [`Ipam::allocate`](super::Ipam::allocate); `now` is since 1970.
    ///
    /// # Errors
    /// There is no address to give, or another pod has a port that is asked for.
    pub fn allocate(
        &mut self,
        request: &PodAdd,
        range: Option<Ipv4Net>,
        taken: impl Fn(Ipv4Addr) -> bool,
        now: Duration,
    ) -> Result<Pod, IpamError> {
        ports::check(&self.pods, request)?;
        if let Some(pod) = self.pods.get_mut(&request.attachment) {
            pod.network.clone_from(&request.network);
            pod.netns.clone_from(&request.netns);
            pod.pod.clone_from(&request.pod);
            pod.port_mappings.clone_from(&request.port_mappings);
            let pod = pod.clone();
            ports::take_over(&mut self.pods, &pod);
            return Ok(pod);
        }
        let usable = self.usable(range)?;
        self.forget_cooled(now);
        let held: BTreeSet<Ipv4Addr> = self.pods.values().map(|pod| pod.address).collect();
        let free = usable
            .after(self.last)
            .find(|address| !held.contains(address) && !self.released.contains_key(address) && !taken(*address));
        let Some(address) = free else {
            return Err(self.none_free(usable, now));
        };
        let pod = Pod {
            attachment: request.attachment.clone(),
            network: request.network.clone(),
            pod: request.pod.clone(),
            address,
            mac: pod_mac(address),
            host_interface: request.attachment.host_interface(),
            netns: request.netns.clone(),
            port_mappings: request.port_mappings.clone(),
        };
        self.last = Some(address);
        self.pods.insert(request.attachment.clone(), pod.clone());
        ports::take_over(&mut self.pods, &pod);
        Ok(pod)
    }

    /// See [`Ipam::adopt`](super::Ipam::adopt).
    ///
    /// # Errors
    /// The address is another attachment's.
    pub fn adopt(&mut self, pod: Pod) -> Result<(), IpamError> {
        if let Some(holder) =
            self.pods.values().find(|other| other.address == pod.address && other.attachment != pod.attachment)
        {
            let (wanted, holder) = (pod.attachment.clone(), holder.attachment.clone());
            return Err(IpamError::Held { address: pod.address, wanted, holder });
        }
        self.released.remove(&pod.address);
        self.pods.entry(pod.attachment.clone()).or_insert(pod);
        Ok(())
    }

    /// See [`Ipam::release`](super::Ipam::release); `now` is since 1970.
    pub fn release(&mut self, key: &AttachmentKey, now: Duration) -> Option<Pod> {
        let pod = self.pods.remove(key)?;
        self.released.insert(pod.address, now);
        Some(pod)
    }

    fn forget_cooled(&mut self, now: Duration) {
        self.released.retain(|_, at| {
            // Released in the future: the clock went back. The wait starts over rather than last until then.
            *at = (*at).min(now);
            now - *at < COOL_DOWN
        });
    }

    fn none_free(&self, usable: Usable, now: Duration) -> IpamError {
        let in_range = self.released.iter().filter(|(address, _)| usable.range.contains(*address));
        let (cooling, first) = in_range
            .fold((0, None), |(count, first), (_, at)| (count + 1, Some(first.map_or(*at, |first: Duration| first.min(*at)))));
        match first {
            None => IpamError::Full { range: usable.range, usable: usable.count() },
            Some(first) => {
                let wait = (first + COOL_DOWN).saturating_sub(now);
                IpamError::Cooling { range: usable.range, cooling, wait }
            }
        }
    }

    /// The text of the file.
    ///
    /// # Errors
    /// A path is no UTF-8.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let released = self.released.iter();
        let written = Written {
            version: VERSION,
            last: self.last,
            pods: self.pods.values().cloned().collect(),
            released: released
                .map(|(&address, at)| Released { address, unix_ms: u64::try_from(at.as_millis()).unwrap_or(u64::MAX) })
                .collect(),
        };
        let mut text = serde_json::to_vec_pretty(&written)?;
        text.push(b'\n');
        Ok(text)
    }

    /// The reverse of [`Book::to_json`].
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn from_json(text: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        if text.is_empty() {
            return Err("it is empty".to_owned());
        }
        let damaged = |error: serde_json::Error| match error.is_eof() {
            true => format!("it is cut off ({error})"),
            false => format!("it is damaged ({error})"),
        };
        let Version { version } = serde_json::from_slice(text).map_err(damaged)?;
        if version != VERSION {
            return Err(format!("it has version {version}, this program knows {VERSION}; it was written by another release"));
        }
        let written: Written = serde_json::from_slice(text).map_err(damaged)?;
        let mut book = Self { last: written.last, ..Self::default() };
        let mut owners = BTreeMap::new();
        for pod in written.pods {
            pod.attachment.validate().map_err(|error| error.to_string())?;
            if let Some(other) = owners.insert(pod.address, pod.attachment.clone()) {
                return Err(format!("{} has two owners, {other} and {}", pod.address, pod.attachment));
            }
            if let Some(other) = book.pods.insert(pod.attachment.clone(), pod) {
                return Err(format!("{} is there twice", other.attachment));
            }
        }
        for Released { address, unix_ms } in written.released {
            book.released.insert(address, Duration::from_millis(unix_ms));
        }
        Ok(book)
    }
}

/// Raised when the file's layout changes its meaning.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    version: u32,
    last: Option<Ipv4Addr>,
    pods: Vec<Pod>,
    released: Vec<Released>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Released {
    address: Ipv4Addr,
    unix_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachment::PodIdentity;
    use proptest::prelude::*;

    fn request(id: &str) -> PodAdd {
        PodAdd {
            attachment: AttachmentKey::new(id, "eth0").unwrap(),
            network: "shunt".to_owned(),
            netns: format!("/run/netns/{id}").into(),
            pod: PodIdentity { namespace: "default".to_owned(), name: id.to_owned(), uid: String::new() },
            port_mappings: vec![],
        }
    }

    fn net(text: &str) -> Option<Ipv4Net> {
        Some(text.parse().unwrap())
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(1_700_000_000 + seconds)
    }

    fn give(book: &mut Book, id: &str, range: &str, seconds: u64) -> Result<Ipv4Addr, IpamError> {
        book.allocate(&request(id), net(range), |_| false, at(seconds)).map(|pod| pod.address)
    }

    fn address(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn network_gateway_and_broadcast_are_kept_free() {
        let mut book = Book::default();
        let given: Vec<_> = (0..5).map(|i| give(&mut book, &format!("p{i}"), "10.1.0.0/29", 0).unwrap()).collect();
        assert_eq!(given, (2..7).map(|d| Ipv4Addr::new(10, 1, 0, d)).collect::<Vec<_>>());
        let error = give(&mut book, "p5", "10.1.0.0/29", 0).unwrap_err();
        assert!(matches!(error, IpamError::Full { usable: 5, .. }), "{error}");
        assert!(error.to_string().contains("10.1.0.0/29 is full"), "{error}");
    }

    #[test]
    fn addresses_are_tallied() {
        let mut book = Book::default();
        assert_eq!(book.tally(net("10.1.0.0/29"), at(0)), Some(Tally { used: 0, cooling: 0, free: 5 }));
        for id in ["a", "b", "c"] {
            give(&mut book, id, "10.1.0.0/29", 0).unwrap();
        }
        book.release(&request("b").attachment, at(10)).unwrap();
        assert_eq!(book.tally(net("10.1.0.0/29"), at(10)), Some(Tally { used: 2, cooling: 1, free: 2 }));
        assert_eq!(book.tally(net("10.1.0.0/29"), at(10) + COOL_DOWN), Some(Tally { used: 2, cooling: 0, free: 3 }));
        assert_eq!(book.tally(None, at(10)), None);
        let other = Some(Tally { used: 0, cooling: 0, free: 5 });
        assert_eq!(book.tally(net("10.2.0.0/29"), at(10)), other, "these pods are of another range");
    }

    #[test]
    fn the_same_attachment_keeps_its_address() {
        let mut book = Book::default();
        let first = give(&mut book, "p", "10.1.0.0/24", 0).unwrap();
        assert_eq!(give(&mut book, "p", "10.1.0.0/24", 1).unwrap(), first);
        let second = PodAdd { attachment: AttachmentKey::new("p", "eth1").unwrap(), ..request("p") };
        let other = book.allocate(&second, net("10.1.0.0/24"), |_| false, at(1)).unwrap();
        assert_ne!(other.address, first, "another interface of the pod is another attachment");
        let moved = PodAdd { netns: "/run/netns/elsewhere".into(), ..request("p") };
        let pod = book.allocate(&moved, None, |_| false, at(1)).unwrap();
        assert_eq!((pod.address, pod.netns), (first, "/run/netns/elsewhere".into()), "needs no range either");
    }

    #[test]
    fn addresses_are_reused_as_late_as_can_be() {
        let mut book = Book::default();
        assert_eq!(give(&mut book, "a", "10.1.0.0/29", 0).unwrap(), address("10.1.0.2"));
        book.release(&request("a").attachment, at(0)).unwrap();
        assert!(book.release(&request("a").attachment, at(0)).is_none(), "released once");
        for (id, last) in [("b", 3), ("c", 4), ("d", 5), ("e", 6)] {
            assert_eq!(give(&mut book, id, "10.1.0.0/29", 1).unwrap(), Ipv4Addr::new(10, 1, 0, last));
        }
        let error = give(&mut book, "f", "10.1.0.0/29", 20).unwrap_err();
        assert!(matches!(error, IpamError::Cooling { cooling: 1, wait, .. } if wait == Duration::from_secs(40)), "{error}");
        assert!(error.to_string().contains("try again in 41 s"), "{error}");
        assert_eq!(give(&mut book, "f", "10.1.0.0/29", 60).unwrap(), address("10.1.0.2"));
    }

    #[test]
    fn a_clock_that_goes_back_delays_by_one_cool_down_at_most() {
        let mut book = Book::default();
        give(&mut book, "a", "10.1.0.0/30", 1_000_000).unwrap();
        book.release(&request("a").attachment, at(1_000_000)).unwrap();
        let error = give(&mut book, "b", "10.1.0.0/30", 0).unwrap_err();
        assert!(matches!(error, IpamError::Cooling { wait, .. } if wait == COOL_DOWN), "{error}");
        assert!(give(&mut book, "b", "10.1.0.0/30", 59).is_err());
        assert_eq!(give(&mut book, "b", "10.1.0.0/30", 60).unwrap(), address("10.1.0.2"));
    }

    #[test]
    fn ranges_that_cannot_be_used_are_refused() {
        let mut book = Book::default();
        let missing = book.allocate(&request("a"), None, |_| false, at(0)).unwrap_err().to_string();
        assert!(missing.contains("no IPv4 podCIDR"), "{missing}");
        for small in ["10.1.0.0/31", "10.1.0.0/32"] {
            let error = give(&mut book, "a", small, 0).unwrap_err().to_string();
            assert!(error.contains(&format!("podCIDR {small} is too small")), "{error}");
        }
        give(&mut book, "a", "10.1.0.0/24", 0).unwrap();
        let edge = give(&mut Book::default(), "c", "255.255.255.252/30", 0).unwrap();
        assert_eq!(edge, address("255.255.255.254"));
    }

    #[test]
    fn a_range_that_changes_is_for_new_pods_and_old_ones_keep_their_address() {
        let mut book = Book::default();
        assert_eq!(give(&mut book, "a", "10.1.0.0/24", 0).unwrap(), address("10.1.0.2"));
        assert_eq!(book.left_outside("10.1.0.0/24".parse().unwrap()), None);
        assert_eq!(give(&mut book, "b", "10.2.0.0/24", 0).unwrap(), address("10.2.0.2"));
        assert_eq!(give(&mut book, "a", "10.2.0.0/24", 0).unwrap(), address("10.1.0.2"));
        let left = book.left_outside("10.2.0.0/24".parse().unwrap()).unwrap();
        assert!(left.contains("default/a has 10.1.0.2") && left.contains("now 10.2.0.0/24, but 1 pod(s)"), "{left}");
        book.release(&request("a").attachment, at(0)).unwrap();
        assert_eq!(book.left_outside("10.2.0.0/24".parse().unwrap()), None, "nobody is left in the old range");
    }

    #[test]
    fn what_others_use_is_passed_over() {
        let mut book = Book::default();
        let taken = |address: Ipv4Addr| address.octets()[3] < 5;
        let pod = book.allocate(&request("a"), net("10.1.0.0/29"), taken, at(0)).unwrap();
        assert_eq!(pod.address, address("10.1.0.5"));
    }

    #[test]
    fn a_book_is_refused_unless_it_is_whole() {
        let mut book = Book::default();
        for id in ["a", "b", "c"] {
            give(&mut book, id, "10.1.0.0/24", 0).unwrap();
        }
        book.release(&request("c").attachment, at(5)).unwrap();
        let text = book.to_json().unwrap();
        assert_eq!(Book::from_json(&text).unwrap(), book);
        for length in 0..text.len() - 2 {
            Book::from_json(&text[..length]).expect_err("cut off");
        }
        let text = String::from_utf8(text).unwrap();
        for (from, to, expected) in [
            ("\"version\": 1", "\"version\": 2", "version 2"),
            ("10.1.0.3", "10.1.0.2", "10.1.0.2 has two owners, a eth0 and b eth0"),
            ("\"containerId\": \"b\"", "\"containerId\": \"a\"", "a eth0 is there twice"),
            ("\"containerId\": \"b\"", "\"containerId\": \"../b\"", "container id"),
            ("\"last\"", "\"lost\"", "unknown field `lost`"),
            ("72:70:0a:01:00:03", "72:70", "not an Ethernet address"),
        ] {
            let error = Book::from_json(text.replacen(from, to, 1).as_bytes()).expect_err(to);
            assert!(error.contains(expected), "{from} -> {to}: {error}");
        }
    }

    #[derive(Clone, Debug)]
    enum Event {
        Add(u8),
        Delete(u8),
        Wait(u64),
        ClockBack(u64),
        Restart,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            6 => (0u8..20).prop_map(Event::Add),
            4 => (0u8..20).prop_map(Event::Delete),
            2 => (0u64..90).prop_map(Event::Wait),
            1 => (0u64..1_000_000).prop_map(Event::ClockBack),
            1 => Just(Event::Restart),
        ]
    }

    proptest! {
        #[test]
        fn no_address_has_two_owners_nor_a_new_one_at_once(events in proptest::collection::vec(event(), 0..200)) {
            let mut book = Book::default();
            let mut held = BTreeMap::new();
            // By a clock that never jumps: what the rule is about.
            let (mut true_time, mut wall) = (0u64, 2_000_000u64);
            let mut freed: BTreeMap<Ipv4Addr, u64> = BTreeMap::new();
            for event in events {
                match event {
                    Event::Add(id) => {
                        let id = id.to_string();
                        if let Ok(given) = give(&mut book, &id, "10.1.0.0/28", wall) {
                            let before = held.insert(id.clone(), given);
                            prop_assert!(before.is_none_or(|before| before == given), "an attachment keeps its address");
                            if before.is_none() {
                                let others = held.iter().filter(|(other, address)| **other != id && **address == given);
                                prop_assert_eq!(others.count(), 0, "given twice");
                                let rested = freed.remove(&given).is_none_or(|at| true_time - at >= 60);
                                prop_assert!(rested, "reused at once");
                            }
                        }
                    }
                    Event::Delete(id) => {
                        let id = id.to_string();
                        let released = book.release(&request(&id).attachment, at(wall));
                        prop_assert_eq!(released.map(|pod| pod.address), held.remove(&id).inspect(|address| {
                            freed.insert(*address, true_time);
                        }));
                    }
                    Event::Wait(seconds) => {
                        true_time += seconds;
                        wall += seconds;
                    }
                    Event::ClockBack(seconds) => wall = wall.saturating_sub(seconds),
                    Event::Restart => book = Book::from_json(&book.to_json().unwrap()).unwrap(),
                }
            }
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = Book::from_json(&bytes);
        }
    }
}
