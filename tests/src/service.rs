//! A Service with servers behind it, as most tests need one.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use shunt_common::net::proto;

use crate::{
    cluster::{Endpoint, Port},
    lab::{Lab, eventually},
    netns::Netns,
    node::Node,
    pod::Pod,
    traffic::echo::{Answer, Server, ask_tcp, ask_udp},
};

/// The port of every backend.
pub const TARGET: u16 = 8080;
/// The port of every Service.
pub const PORT: u16 = 80;
/// TCP and UDP, as every Service has them.
pub const PORTS: [Port; 2] = [Port::tcp(PORT, TARGET), Port::udp(PORT, TARGET)];
/// A change of the cluster's state is in force by then, on a busy machine and after a watch's back-off (30 s at most) too.
pub const SOON: Duration = Duration::from_secs(40);

/// A Service of the lab's cluster.
#[derive(Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its virtual IP and port.
    pub vip: SocketAddrV4,
}

/// TCP and UDP servers in a namespace on [`TARGET`], under a name.
///
/// # Errors
/// The port is taken.
pub fn serve(netns: &Netns, address: Ipv4Addr, name: &str) -> Result<[Server; 2]> {
    let at = SocketAddrV4::new(address, TARGET);
    Ok([Server::tcp(netns, at, name)?, Server::udp(netns, at, name)?])
}

/// [`serve`] in a pod, under its name.
///
/// # Errors
/// The port is taken.
pub fn serve_pod(pod: &Pod) -> Result<[Server; 2]> {
    serve(&pod.netns, pod.address, &pod.name)
}

impl Service {
    /// A Service on `10.96.0.INDEX` with these pods behind it; in force when this returns, on every node of ours.
    ///
    /// # Errors
    /// It doesn't come into force.
    pub fn create(lab: &Lab, name: &str, index: u8, pods: &[&Pod]) -> Result<Self> {
        let vip = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, index), PORT);
        lab.cluster.put_service(name, *vip.ip(), &PORTS)?;
        let service = Self { name: name.to_owned(), vip };
        service.set_pods(lab, pods)?;
        Ok(service)
    }

    /// Replaces its endpoints by these pods; in force when this returns.
    ///
    /// # Errors
    /// It doesn't come into force.
    pub fn set_pods(&self, lab: &Lab, pods: &[&Pod]) -> Result<()> {
        let endpoints: Vec<_> = pods.iter().map(|pod| Endpoint::ready(pod.address, &pod.node)).collect();
        self.set(lab, &PORTS, &endpoints)
    }

    /// Replaces its endpoints; in force when this returns.
    ///
    /// # Errors
    /// It doesn't come into force.
    pub fn set(&self, lab: &Lab, ports: &[Port], endpoints: &[Endpoint]) -> Result<()> {
        lab.cluster.put_endpoints(&self.name, ports, endpoints)?;
        let ready = endpoints.iter().any(|endpoint| endpoint.ready);
        let serving = || endpoints.iter().filter(|endpoint| endpoint.ready || !ready);
        for port in PORTS {
            let targets = ports.iter().filter(|target| target.protocol == port.protocol).map(|target| target.target);
            let wanted: BTreeSet<_> =
                targets.flat_map(|target| serving().map(move |endpoint| SocketAddrV4::new(endpoint.address, target))).collect();
            for node in &lab.nodes {
                eventually(SOON, || self.in_force(node, port.protocol, &wanted))?;
            }
        }
        Ok(())
    }

    /// Whether the kernel of a node holds exactly these backends for one of the ports, and a route for the node's own processes.
    fn in_force(&self, node: &Node, protocol: &str, wanted: &BTreeSet<SocketAddrV4>) -> Result<()> {
        let number = if protocol == "TCP" { proto::TCP } else { proto::UDP };
        let rows = node.kernel()?.services()?;
        let row = rows.iter().find(|row| {
            Ipv4Addr::from(row.key.addr) == *self.vip.ip() && row.key.port.to_host() == PORT && row.key.proto == number
        });
        let row = row.with_context(|| format!("{} {protocol} is not in the map of {}", self.vip, node.name))?;
        let backends = row.cluster.iter().map(|row| row.backend);
        let held = backends.map(|backend| SocketAddrV4::new(backend.addr.into(), backend.port.to_host())).collect();
        ensure!(*wanted == held, "{} {protocol} on {} leads to {held:?}, not to {wanted:?}", self.vip, node.name);
        ensure!(
            !node.netns.ip(&format!("route show {}", self.vip.ip()))?.is_empty(),
            "no route to {} on {}",
            self.vip,
            node.name
        );
        Ok(())
    }
}

/// The server that answers a TCP question.
///
/// # Errors
/// None does.
pub fn tcp_answer(from: &Netns, to: SocketAddrV4) -> Result<Answer> {
    ask_tcp(from, to, b"who are you?")
}

/// The server that answers a UDP question.
///
/// # Errors
/// None does.
pub fn udp_answer(from: &Netns, to: SocketAddrV4) -> Result<Answer> {
    ask_udp(from, to, b"who are you?")
}

/// Whether TCP and UDP to an address are refused at once, from a namespace.
///
/// # Errors
/// One is answered, or nobody says anything.
pub fn refused(from: &Netns, to: SocketAddrV4) -> Result<()> {
    match crate::traffic::echo::TcpClient::connect(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
        Err(error) => bail!("TCP to {to} from {}: {error}, not refused", from.name()),
        Ok(client) => bail!("TCP to {to} from {} was answered by {}", from.name(), client.server),
    }
    match udp_answer(from, to) {
        Ok(answer) => bail!("UDP to {to} from {} was answered by {}", from.name(), answer.server),
        Err(error) => {
            let refused = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
            let mut kinds = refused.map(std::io::Error::kind);
            ensure!(
                kinds.any(|kind| kind == std::io::ErrorKind::ConnectionRefused),
                "UDP to {to} from {}: {error:#}",
                from.name()
            );
        }
    }
    Ok(())
}
