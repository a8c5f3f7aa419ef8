//! A Node whose address changes, under load: what is lost is counted.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde_json::{Value, json};
use shunt_common::verdict::DropReason;
use shunt_lab::{
    netns::Netns,
    pod::Pod,
    service::{TARGET, serve, serve_pod},
    topology::OUTSIDE,
    traffic::{
        echo::{Server, TcpClient},
        flood::{Flood, Tally},
        steady::Steady,
    },
};

use super::*;

/// How long everything goes on after the change.
const AFTERWARDS: Duration = Duration::from_secs(1);
/// Ways on which no other node has a part.
const WITHIN: [&str; 4] = ["within the node", "to a Service within the node", "from the node", "to the outside"];

const FROM_NODE_ACROSS: &str = "from the node to the other's";

const EVERY: Duration = Duration::from_millis(1);

/// Beside the scene's: a second server on `n1`, and one outside.
struct Moving {
    scene: Scene,
    server: Arc<dyn Api>,
    d: Pod,
    _servers: Vec<[Server; 2]>,
}

/// What became of the datagrams of each way.
type Tallies = Vec<(&'static str, Tally)>;

/// Who asks whom all the time.
struct Load {
    floods: Vec<(&'static str, Flood)>,
    steady: Steady,
}

impl Moving {
    fn set() -> Result<Self> {
        let (scene, server) = scene()?;
        let d = scene.lab.pod("n1", "d")?;
        let servers = vec![serve_pod(&scene.a)?, serve_pod(&d)?, serve(scene.lab.outside(), OUTSIDE, "outside")?];
        Ok(Self { scene, server, d, _servers: servers })
    }

    fn ways(&self) -> [(&'static str, &Netns, SocketAddrV4); 7] {
        let Scene { lab, a, c, service, .. } = &self.scene;
        let at = |address: Ipv4Addr| SocketAddrV4::new(address, TARGET);
        let n1 = &lab.node("n1").netns;
        [
            ("within the node", &a.netns, at(self.d.address)),
            ("to a Service within the node", &a.netns, service.vip),
            ("from the node", n1, at(a.address)),
            ("to the outside", &a.netns, at(OUTSIDE)),
            ("to the other node", &a.netns, at(c.address)),
            ("from the other node", &c.netns, at(a.address)),
            (FROM_NODE_ACROSS, n1, at(c.address)),
        ]
    }

    fn load(&self) -> Result<Load> {
        let (mut floods, mut connections) = (Vec::new(), Vec::new());
        for (name, from, to) in self.ways() {
            floods.push((name, Flood::start(from, to, EVERY)?));
            // A connection of the node's own has its address, which other nodes take for an outside one as soon as it is not the Node's.
            if name != FROM_NODE_ACROSS {
                connections.push((name.to_owned(), TcpClient::connect(from, to)?));
            }
        }
        Ok(Load { floods, steady: Steady::start(connections, EVERY)? })
    }

    /// Changes `n1`'s Node, and leaves what agents have written there.
    fn change(&self, change: impl Fn(&mut Value)) -> Result<()> {
        let name = json!({ "kind": "Node", "metadata": { "name": "n1" } });
        let mut node = self.server.get(&name)?.context("no Node")?;
        change(&mut node);
        self.server.put(&node)
    }
}

impl Load {
    /// What was lost on each way, and the connections that were.
    fn end(self) -> Result<(Tallies, Vec<String>)> {
        let outcome = self.steady.stop()?;
        let tallies: Tallies = self.floods.into_iter().map(|(name, flood)| Ok((name, flood.stop()?))).collect::<Result<_>>()?;
        for (name, tally) in &tallies {
            println!("{name}: {} of {} lost, longest gap {:?}", tally.lost(), tally.sent, tally.longest_gap);
        }
        Ok((tallies, outcome.lost))
    }
}

/// Waits until a node has followed the change.
fn followed(node: &Node, what: impl Fn(&Node) -> Result<bool>) -> Result<()> {
    eventually(PATIENCE, || {
        ensure!(what(node)?, "{} has not followed", node.name);
        Ok(())
    })
}

#[test]
fn a_node_that_changes_its_address_loses_no_more_than_one_of_two_has_not_heard_of() -> Result<()> {
    let moving = Moving::set()?;
    let (n1, n2) = (moving.scene.lab.node("n1"), moving.scene.lab.node("n2"));
    let load = moving.load()?;
    let (old, new) = (n1.address(), Ipv4Addr::new(192, 0, 2, 111));
    n1.netns.ip(&format!("address add {new}/24 dev eth0"))?;
    moving.change(|node| node["status"]["addresses"] = json!([{ "type": "InternalIP", "address": new }]))?;
    followed(n1, |n1| Ok(n1.status()?.node_ip == Some(new)))?;
    // The annotation says so to the other node, which until then takes nothing from the new address. What n1 takes it takes at both.
    followed(n2, |n2| Ok(n2.kernel()?.addresses()?.iter().all(|(address, _)| *address != old.into())))?;
    thread::sleep(AFTERWARDS);
    let (tallies, lost) = load.end()?;
    ensure!(lost.is_empty(), "{lost:#?}");
    let unknown = n2.drops(DropReason::TunnelPeerUnknown)?;
    println!("{unknown} packets came to n2 from an address that it had not heard of yet");
    for (name, tally) in tallies {
        let excuse = if WITHIN.contains(&name) { 0 } else { unknown };
        ensure!(tally.lost() <= excuse, "{name}: {tally:?}, {unknown} dropped");
    }
    let misdirected = n1.drops(DropReason::TunnelMalformed)?;
    ensure!(misdirected == 0, "n1 dropped {misdirected} packets that came to the address that it did not go by");
    Ok(())
}
