//! Answers load balancers that ask a Service's `healthCheckNodePort`: a listener at each of the node's addresses that has node ports, for as
//! long as the Service is there. One that cannot be had is told of and tried again, and is nobody else's trouble.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Arc,
};

use shunt_common::net::Ip4;
use tokio::{
    net::TcpListener,
    sync::{Mutex, watch},
    task::JoinHandle,
    time::sleep,
};

use super::{
    CHECK, RETRY,
    pulse::Pulse,
    state::{Facts, State},
};
use crate::{
    compile::health::HealthCheck,
    ending::{Ending, Teller, ending},
    http::{self, health_check},
    model::ObjectName,
    problem::Problem,
};

/// What load balancers are told, and where they ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HealthChecks {
    addresses: BTreeSet<Ip4>,
    by_port: BTreeMap<u16, HealthCheck>,
}

impl HealthChecks {
    /// The ports that have an answer.
    pub(super) fn ports(&self) -> impl Iterator<Item = u16> {
        self.by_port.keys().copied()
    }

    /// Takes over what has `changed` of what is desired. Whether it is asked elsewhere now, or after somebody else: that the number of
    /// endpoints is another one wakes nobody.
    pub(super) fn follow(
        &mut self,
        addresses: &BTreeSet<Ip4>,
        desired: &BTreeMap<u16, HealthCheck>,
        changed: &BTreeSet<u16>,
    ) -> bool {
        let mut moved = self.addresses != *addresses;
        if moved {
            self.addresses.clone_from(addresses);
        }
        for port in changed {
            let before = match desired.get(port) {
                Some(check) => self.by_port.insert(*port, check.clone()),
                None => self.by_port.remove(port),
            };
            moved |= before.map(|check| check.service) != desired.get(port).map(|check| check.service.clone());
        }
        moved
    }

    fn places(&self) -> BTreeMap<SocketAddrV4, ObjectName> {
        let places = self.by_port.iter().flat_map(|(port, check)| {
            self.addresses.iter().map(|address| (SocketAddrV4::new(Ipv4Addr::from(*address), *port), check.service.clone()))
        });
        places.collect()
    }
}

/// What is answered, as of the moment that it is asked.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    pub(super) checks: watch::Receiver<HealthChecks>,
    pub(super) facts: watch::Receiver<Facts>,
    pub(super) pulse: Arc<Pulse>,
}

impl Answers {
    fn at(&self, port: u16) -> http::Answer {
        let is_healthy = self.pulse.check().is_ok() && self.facts.borrow().serves();
        health_check::answer(self.checks.borrow().by_port.get(&port), is_healthy)
    }
}

/// A listener and its connections.
#[derive(Debug)]
struct Door {
    teller: Teller,
    task: JoinHandle<()>,
}

/// Every listener there is.
#[derive(Debug, Default)]
struct Doors(BTreeMap<SocketAddrV4, Door>);

impl Doors {
    /// Closes those that are not wanted and opens those that are; those that cannot be opened.
    async fn follow(&mut self, wanted: &BTreeMap<SocketAddrV4, ObjectName>, answers: &Answers) -> Vec<Problem> {
        for (_, door) in self.0.extract_if(.., |place, _| !wanted.contains_key(place)) {
            door.teller.tell();
            // Connections come to their end by themselves; the place is free at once, for whoever may want it next.
            door.task.abort();
            let _ = door.task.await;
        }
        let mut problems = Vec::new();
        for (&place, service) in wanted {
            if self.0.contains_key(&place) {
                continue;
            }
            match TcpListener::bind(SocketAddr::V4(place)).await {
                Ok(listener) => {
                    let (teller, ending) = ending();
                    let answers = answers.clone();
                    let answer = move |_| std::future::ready(answers.at(place.port()));
                    let task = tokio::spawn(http::serve(listener, answer, http::Limits::default(), ending));
                    self.0.insert(place, Door { teller, task });
                }
                Err(error) => problems.push(cannot_listen(place, service, &error)),
            }
        }
        problems
    }

    /// Ends all with the answers under way.
    async fn close(self) {
        self.0.values().for_each(|door| door.teller.tell());
        for door in self.0.into_values() {
            // It bounds its own end.
            let _ = door.task.await;
        }
    }
}

fn cannot_listen(place: SocketAddrV4, service: &ObjectName, error: &std::io::Error) -> Problem {
    let message = format!(
        "{place} cannot be listened on ({error}): to a load balancer that asks there, this node has no endpoint of the Service; stop who \
         has the port, or make the Service anew with another one"
    );
    Problem {
        object: Some(format!("Service {service}")),
        field: Some("spec.healthCheckNodePort".to_owned()),
        message,
        ..Problem::default()
    }
}

/// Serves until told to end.
pub(super) async fn serve(mut answers: Answers, state: Arc<Mutex<State>>, mut ending: Ending) {
    let mut doors = Doors::default();
    let mut retry = RETRY;
    loop {
        let wanted = answers.checks.borrow_and_update().places();
        let problems = doors.follow(&wanted, &answers).await;
        let is_whole = problems.is_empty();
        if is_whole {
            retry = RETRY;
        }
        state.lock().await.note_mute_health_checks(problems);
        tokio::select! {
            changed = answers.checks.changed() => if changed.is_err() { break },
            () = sleep(retry), if !is_whole => retry = (retry * 2).min(CHECK),
            () = ending.told() => break,
        }
    }
    doors.close().await;
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener as Squatter;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;

    fn check(name: &str, local_ready: u32) -> HealthCheck {
        HealthCheck { service: ObjectName::new("shop", name), local_ready, only_terminating: false }
    }

    fn set<T: Ord>(items: impl IntoIterator<Item = T>) -> BTreeSet<T> {
        items.into_iter().collect()
    }

    #[test]
    fn only_ports_and_names_that_come_or_go_wake_the_listeners() {
        let here = set([Ip4::new(127, 0, 0, 1)]);
        let mut checks = HealthChecks::default();
        assert!(!checks.follow(&BTreeSet::new(), &BTreeMap::new(), &set([1])), "nothing came");
        let mut desired = BTreeMap::from([(30_000, check("web", 1)), (30_001, check("api", 0))]);
        assert!(checks.follow(&here, &desired, &set([30_000, 30_001])));
        assert!(!checks.follow(&here, &desired, &BTreeSet::new()));
        desired.insert(30_000, check("web", 2));
        assert!(!checks.follow(&here, &desired, &set([30_000])), "a number alone");
        assert_eq!(checks.by_port, desired, "but it is known");
        desired.insert(30_000, check("other", 2));
        assert!(checks.follow(&here, &desired, &set([30_000])));
        assert!(checks.follow(&set([Ip4::new(127, 0, 0, 2)]), &desired, &BTreeSet::new()));
        desired.remove(&30_001);
        assert!(checks.follow(&set([Ip4::new(127, 0, 0, 2)]), &desired, &set([30_001])));
        let place: SocketAddrV4 = "127.0.0.2:30000".parse().unwrap();
        assert_eq!(checks.places(), [(place, ObjectName::new("shop", "other"))].into());
    }

    async fn status(place: SocketAddrV4) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(place).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: n1\r\nConnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer.split_once("\r\n").map(|(line, _)| line.to_owned()).unwrap_or_default())
    }

    #[tokio::test]
    async fn a_port_that_another_has_is_tried_again_and_disturbs_none() {
        let squatter = Squatter::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(taken) = squatter.local_addr().unwrap() else { panic!("IPv4") };
        let free = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2), taken.port());
        let service = ObjectName::new("shop", "web");
        let mut checks = HealthChecks::default();
        let desired = [(taken.port(), check("web", 1))].into();
        checks.follow(&set([taken, free].map(|place| Ip4::from(*place.ip()))), &desired, &set([taken.port()]));
        let wanted = checks.places();
        let (_checks, checks) = watch::channel(checks);
        let (facts, serving) = watch::channel(Facts::default());
        let answers = Answers { checks, facts: serving, pulse: Arc::new(Pulse::new()) };
        let mut doors = Doors::default();

        let problems = doors.follow(&wanted, &answers).await;
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        assert_eq!(problem.object, Some(format!("Service {service}")));
        assert!(problem.message.starts_with(&format!("{taken} cannot be listened on")), "{problem}");
        assert_eq!(status(free).await.unwrap(), "HTTP/1.1 503 Service Unavailable", "the dataplane is not up");
        facts.send_modify(|facts| {
            let (ip, mac) = (Ipv4Addr::LOCALHOST, shunt_common::net::Mac::ZERO);
            facts.tunnel_end = Some(crate::announce::node::TunnelEnd { ip, mac, vni: 1 });
        });
        assert_eq!(status(free).await.unwrap(), "HTTP/1.1 200 OK");
        facts.send_modify(|facts| drop(facts.reasons.insert(super::super::health::Subject::Sync, "it fails".to_owned())));
        assert_eq!(status(free).await.unwrap(), "HTTP/1.1 503 Service Unavailable");

        drop(squatter);
        assert_eq!(doors.follow(&wanted, &answers).await, []);
        status(taken).await.unwrap();
        // A connection that stays open keeps nobody from the place.
        let _idle = TcpStream::connect(taken).await.unwrap();
        assert_eq!(doors.follow(&BTreeMap::new(), &answers).await, []);
        assert!(status(taken).await.is_err() && status(free).await.is_err());
        assert_eq!(doors.follow(&wanted, &answers).await, []);
        status(taken).await.unwrap();
        doors.close().await;
        assert!(status(taken).await.is_err() && status(free).await.is_err());
    }
}
