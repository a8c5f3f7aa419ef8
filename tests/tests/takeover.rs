//! A node that runs flannel and kube-proxy becomes ours while its pods run, in a cluster where another node is ours and a third stays flannel's.
//!
//! ```text
//!   outside -- router --+-- n1 -- pods a, b    flannel and kube-proxy, then shunt
//!                       +-- n2 -- pod c        shunt
//!                       +-- f3 -- pod p        flannel
//! ```

use std::{net::SocketAddrV4, time::Duration};

use anyhow::{Context, Result, ensure};
use shunt_lab::{
    cluster::Endpoint,
    flannel::{FlannelNode, FlannelPod, NETWORK, rules},
    flannel_rules::Proxied,
    lab::{Lab, eventually},
    netns::Netns,
    plain::PlainPod,
    pod::{Call, Pod, answer},
    service::{PORT, PORTS, TARGET, serve, tcp_answer, udp_answer},
    topology::{MIXED, OUTSIDE},
    traffic::{
        echo::{Server, TcpClient, UdpClient},
        flood::Flood,
        steady::Steady,
    },
};

const VIP: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 96, 0, 10);

struct Scene {
    lab: Lab,
    flannel: FlannelNode,
    a: FlannelPod,
    b: FlannelPod,
    c: Pod,
    p: PlainPod,
    _servers: Vec<[Server; 2]>,
}

#[derive(Clone, Copy)]
enum Rules {
    Iptables,
    Nftables,
}

/// The cluster before: a Service with pods of all three nodes behind it.
fn scene(rules: Rules) -> Result<Scene> {
    let mut lab = Lab::wired(&MIXED)?;
    lab.node_mut("n2").start_agent()?;
    let flannel = FlannelNode::set_up(&lab, "n1")?;
    let n1 = lab.node("n1");
    let (a, b) = (flannel.pod(n1, "a", 10)?, flannel.pod(n1, "b", 11)?);
    lab.node("n2").wait_ready()?;
    let c = lab.pod("n2", "c")?;
    let p = lab.plain[0].pod("p", 10)?;
    let at = |address| SocketAddrV4::new(address, TARGET);
    let proxied = |name: &str, protocol| Proxied {
        name: name.to_owned(),
        protocol,
        vip: SocketAddrV4::new(VIP, PORT),
        endpoints: vec![at(b.address), at(c.address), at(p.address)],
    };
    let services = [proxied("WEBTCP", "tcp"), proxied("WEBUDP", "udp")];
    match rules {
        Rules::Iptables => flannel.proxy(n1, &services, "iptables-restore")?,
        Rules::Nftables => flannel.proxy_nftables(n1, &services)?,
    }
    lab.cluster.put_service("web", VIP, &PORTS)?;
    let endpoints = [Endpoint::ready(b.address, "n1"), Endpoint::ready(c.address, "n2"), Endpoint::ready(p.address, "f3")];
    lab.cluster.put_endpoints("web", &PORTS, &endpoints)?;
    let outside = lab.outside();
    let servers = vec![
        serve(&a.netns, a.address, "a")?,
        serve(&b.netns, b.address, "b")?,
        serve(&c.netns, c.address, "c")?,
        serve(&p.netns, p.address, "p")?,
        serve(&n1.netns, n1.address(), "n1")?,
        serve(outside, OUTSIDE, "outside")?,
    ];
    Ok(Scene { lab, flannel, a, b, c, p, _servers: servers })
}

impl Scene {
    /// Who asks whom, by name: pods, nodes and the outside in every direction that there is.
    fn ways(&self) -> Vec<(String, &Netns, SocketAddrV4)> {
        let n1 = &self.lab.node("n1").netns;
        let vip = SocketAddrV4::new(VIP, PORT);
        let at = |address| SocketAddrV4::new(address, TARGET);
        let (a, b, c, p) = (at(self.a.address), at(self.b.address), at(self.c.address), at(self.p.address));
        let node = at(self.lab.node("n1").address());
        let outside = at(OUTSIDE);
        [
            ("a to b", &self.a.netns, b),
            ("a to c", &self.a.netns, c),
            ("a to p", &self.a.netns, p),
            ("c to a", &self.c.netns, a),
            ("p to a", &self.p.netns, a),
            ("a to its node", &self.a.netns, node),
            ("p to the node", &self.p.netns, node),
            ("the node to a", n1, a),
            ("the node to p", n1, p),
            ("the node to c", n1, c),
            ("a to the Service", &self.a.netns, vip),
            ("b to the Service", &self.b.netns, vip),
            ("the node to the Service", n1, vip),
            ("a to the outside", &self.a.netns, outside),
        ]
        .into_iter()
        .map(|(name, netns, to)| (name.to_owned(), netns, to))
        .collect()
    }

    fn connections(&self, each: usize) -> Result<Vec<(String, TcpClient)>> {
        let mut open = Vec::new();
        for (name, from, to) in self.ways() {
            for _ in 0..each {
                let client = TcpClient::connect(from, to).with_context(|| name.clone())?;
                open.push((format!("{name} ({})", client.server), client));
            }
        }
        Ok(open)
    }

    fn everything_works(&self) -> Result<()> {
        for (name, from, to) in self.ways() {
            tcp_answer(from, to).with_context(|| format!("{name}, TCP"))?;
            udp_answer(from, to).with_context(|| format!("{name}, UDP"))?;
        }
        Ok(())
    }
}

/// UDP sockets that are connected to the Service, with the server that answers each.
fn udp_flows(from: &Netns, to: SocketAddrV4, count: usize) -> Result<Vec<(UdpClient, String)>> {
    let mut flows = Vec::new();
    for _ in 0..count {
        let client = UdpClient::bind(from, 0)?;
        client.connect(to)?;
        let server = client.ask(to, b"first")?.server;
        flows.push((client, server));
    }
    Ok(flows)
}

fn survives(rules: Rules) -> Result<()> {
    let mut scene = scene(rules)?;
    scene.everything_works().context("before")?;
    let connections = scene.connections(4)?;
    let vip = SocketAddrV4::new(VIP, PORT);
    let udp = udp_flows(&scene.a.netns, vip, 12)?;
    let every = Duration::from_millis(1);
    let floods: Vec<(String, Flood)> =
        scene.ways().into_iter().map(|(name, from, to)| Ok((name, Flood::start(from, to, every)?))).collect::<Result<_>>()?;
    let steady = Steady::start(connections, every);

    scene.lab.node_mut("n1").start_takeover()?;
    let n1 = scene.lab.node("n1");
    n1.wait_ready()?;

    let outcome = steady.stop()?;
    for (name, flood) in floods {
        let tally = flood.stop()?;
        println!("{name}: {tally:?}");
        ensure!(tally.lost() == 0, "{name}: {} of {} datagrams were lost", tally.lost(), tally.sent);
    }
    println!("{} exchanges, slowest {:?}", outcome.exchanges, outcome.slowest);
    ensure!(outcome.lost.is_empty(), "lost connections: {:#?}\n{}", outcome.lost, n1.log_tail());
    for (client, server) in &udp {
        let answer = client.ask(vip, b"second").with_context(|| format!("UDP to the Service, served by {server}"))?;
        ensure!(answer.server == *server, "{server} answered before, {} now", answer.server);
    }
    scene.everything_works().context("after")?;
    println!("{:#?}", n1.status()?.notes);
    Ok(())
}

#[test]
fn every_connection_survives_with_kube_proxy_in_iptables_mode() -> Result<()> {
    survives(Rules::Iptables)
}

#[test]
fn every_connection_survives_with_kube_proxy_in_nftables_mode() -> Result<()> {
    survives(Rules::Nftables)
}

/// What `shunt get conntrack` would be too long for: how many flows our table holds that the host's stack translates.
fn notes(scene: &Scene) -> Result<String> {
    Ok(scene.lab.node("n1").status()?.notes.join("\n"))
}

#[test]
fn a_node_is_put_back_as_it_was() -> Result<()> {
    let mut scene = scene(Rules::Iptables)?;
    let before = rules(&scene.lab.node("n1").netns)?;
    scene.lab.node_mut("n1").start_takeover()?;
    scene.lab.node("n1").wait_ready()?;
    let during = rules(&scene.lab.node("n1").netns)?;
    ensure!(!during.contains("KUBE-SERVICES") && !during.contains("FLANNEL-POSTRTG"), "rules are left:\n{during}");
    ensure!(during.contains("KUBE-KUBELET-CANARY"), "a chain of kubelet's went:\n{during}");
    // A pod of ours comes meanwhile; its address is none that host-local had given.
    let d = scene.lab.pod("n1", "d")?;
    ensure!(d.address != scene.a.address && d.address != scene.b.address, "{} was given twice", d.address);
    let _server = serve(&d.netns, d.address, "d")?;
    let at_d = SocketAddrV4::new(d.address, TARGET);
    tcp_answer(&scene.a.netns, at_d).context("an adopted pod asks one of ours")?;
    tcp_answer(&d.netns, SocketAddrV4::new(scene.a.address, TARGET)).context("the reverse")?;

    let steady = Steady::start(scene.connections(3)?, Duration::from_millis(1));
    scene.lab.node_mut("n1").stop_agent()?;
    let n1 = scene.lab.node("n1");
    let refused = n1.cleanup();
    ensure!(format!("{refused:?}").contains("shunt rollback"), "cleanup would leave pods without a network: {refused:?}");
    println!("{}", n1.rollback()?);
    let outcome = steady.stop()?;
    println!("{} exchanges, slowest {:?}", outcome.exchanges, outcome.slowest);
    ensure!(outcome.lost.is_empty(), "lost connections: {:#?}", outcome.lost);
    let after = rules(&n1.netns)?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    ensure!(n1.netns.ip("link show dev shunt0").is_err(), "shunt0 is left");
    let routes = n1.netns.ip("route show proto 83")?;
    ensure!(!routes.contains("dev shunt0 "), "{routes}");
    ensure!(scene.flannel.allocation(d.address).exists(), "host-local would give the address of a pod of ours again");
    scene.everything_works().context("after")?;
    tcp_answer(&scene.a.netns, at_d).context("a pod of ours is reached as before")?;
    tcp_answer(&d.netns, SocketAddrV4::new(VIP, PORT)).context("and reaches a Service")?;
    ensure!(n1.rollback().is_err(), "nothing is left to be rolled back");
    Ok(())
}

#[test]
fn an_agent_killed_at_any_moment_of_a_takeover_is_gone_on_with() -> Result<()> {
    let mut scene = scene(Rules::Iptables)?;
    let steady = Steady::start(scene.connections(2)?, Duration::from_millis(1));
    let record = scene.lab.node("n1").state_dir().join("takeover.json");
    let done = || std::fs::read_to_string(&record).is_ok_and(|text| text.contains("\"stage\":\"done\""));
    // Each try is killed a little later than the one before, until one was let to its end.
    let mut kills = 0;
    for milliseconds in (50u64..).step_by(150) {
        scene.lab.node_mut("n1").start_takeover()?;
        std::thread::sleep(Duration::from_millis(milliseconds));
        scene.lab.node_mut("n1").kill_agent()?;
        if done() {
            break;
        }
        kills += 1;
        // A node that is half taken over serves what there is and what comes.
        scene.everything_works().with_context(|| format!("killed after {milliseconds} ms"))?;
    }
    ensure!(kills > 1, "it was never killed under way");
    // Without the option, an agent goes on with what there is.
    scene.lab.node_mut("n1").start_agent()?;
    scene.lab.node("n1").wait_ready()?;
    scene.everything_works()?;
    let outcome = steady.stop()?;
    ensure!(outcome.lost.is_empty(), "lost connections: {:#?}", outcome.lost);
    ensure!(notes(&scene)?.contains("was taken over"), "{}", notes(&scene)?);
    Ok(())
}

#[test]
fn an_adopted_pod_is_deleted_by_our_plugin() -> Result<()> {
    let mut scene = scene(Rules::Iptables)?;
    scene.lab.node_mut("n1").start_takeover()?;
    let n1 = scene.lab.node("n1");
    n1.wait_ready()?;
    let path = scene.b.netns.path().display().to_string();
    let call = |command| Call {
        command,
        container: &scene.b.container,
        netns: &path,
        pod: "b",
        extra: serde_json::json!({ "name": NETWORK }),
    };
    answer(&call("DEL").on(n1)?)?;
    answer(&call("DEL").on(n1)?).context("a second time")?;
    ensure!(n1.netns.ip(&format!("link show dev {}", scene.b.veth)).is_err(), "its interface is left");
    ensure!(!scene.flannel.allocation(scene.b.address).exists(), "its allocation is left");
    ensure!(n1.kernel()?.addresses()?.iter().all(|(addr, _)| *addr != scene.b.address.into()), "its address is left");
    tcp_answer(&scene.a.netns, SocketAddrV4::new(scene.c.address, TARGET))?;
    Ok(())
}

#[test]
fn a_pod_that_comes_late_by_flannels_plugin_is_adopted() -> Result<()> {
    let mut scene = scene(Rules::Iptables)?;
    scene.lab.node_mut("n1").start_takeover()?;
    scene.lab.node("n1").wait_ready()?;
    let late = scene.flannel.pod(scene.lab.node("n1"), "late", 99)?;
    scene.lab.node_mut("n1").stop_agent()?;
    scene.lab.node_mut("n1").start_agent()?;
    scene.lab.node("n1").wait_ready()?;
    tcp_answer(&late.netns, SocketAddrV4::new(VIP, PORT))?;
    ensure!(scene.lab.node("n1").status()?.counts.pods == 3);
    Ok(())
}

/// The agent refuses, says why, and has touched nothing.
fn refuses(spoil: impl Fn(&Netns) -> Result<()>, expected: &str) -> Result<()> {
    let mut scene = scene(Rules::Iptables)?;
    spoil(&scene.lab.node("n1").netns)?;
    let before = rules(&scene.lab.node("n1").netns)?;
    scene.lab.node_mut("n1").start_takeover()?;
    let n1 = scene.lab.node("n1");
    eventually(Duration::from_secs(20), || {
        let reasons = n1.status()?.reasons.join("\n");
        ensure!(reasons.contains(expected), "it says: {reasons}");
        Ok(())
    })?;
    ensure!(rules(&n1.netns)? == before, "it has changed rules");
    ensure!(n1.netns.ip("link show dev shunt0").is_err(), "it has made a device");
    ensure!(!n1.state_dir().join("takeover.json").exists(), "it has written a record");
    scene.everything_works()
}

#[test]
fn what_cannot_be_taken_over_is_refused_before_anything_is_touched() -> Result<()> {
    refuses(|n1| n1.ip("link add kube-ipvs0 type bridge").map(drop), "ipvs")?;
    refuses(|n1| n1.ip("link add cali123 type bridge").map(drop), "cali123 is the device of another network")?;
    let stranger = |n1: &Netns| {
        n1.ip("link add vethstranger type veth peer name elsewhere")?;
        n1.ip("link set vethstranger master cni0 up").map(drop)
    };
    refuses(stranger, "nobody is found behind vethstranger")
}
