//! Nodes with an interface more than the underlay: a network of its own, that knows nothing of the underlay.
//!
//! ```text
//!   outside -- router --+-- n1 ==eth1== storage
//!                       |    '- pods a, b
//!                       +-- n2 -- pod c
//! ```

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Result, ensure};
use shunt::kernel::read::ServiceRow;
use shunt_common::verdict::Counter;
use shunt_lab::{
    cluster::{Endpoint, Port},
    foreign::{Foreign, Hook},
    lab::{Lab, eventually},
    netns::Netns,
    service::{SOON, TARGET, refused, serve, serve_pod, tcp_answer, udp_answer},
    topology::{OUTSIDE, PAIR},
    traffic::{
        echo::{TcpClient, ask_tcp, ask_udp},
        packet::{send_frame, udp},
        ping::ping,
    },
    underlay::UPLINK,
};

/// Of n1 there.
const FIRST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// Of n1 there too, and not the first that the kernel would choose.
const SECOND: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const STORAGE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// Behind the storage host.
const BEYOND: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 200);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 30);
const NODE_PORT: u16 = 30_300;
const PORTS: [Port; 2] = [Port::tcp(80, TARGET), Port::udp(80, TARGET)];
/// No frame of the lab is as long as that.
const NO_LENGTH: u16 = 9000;
/// Sooner after a look at everything than the agent looks again by itself.
const WHEN_TOLD: Duration = Duration::from_secs(20);
/// Longer than the agent takes to look at everything by itself.
const BY_ITSELF: Duration = Duration::from_secs(60);

fn at(address: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address, port)
}

/// Plugs a cable from n1 into a network of its own.
fn plug(lab: &Lab) -> Result<Netns> {
    let n1 = lab.node("n1");
    let storage = n1.netns.create_beside(&format!("{}-storage", lab.name()))?;
    n1.netns.ip(&format!("link add eth1 type veth peer name eth0 netns {}", storage.name()))?;
    n1.netns.ip("link set eth1 up")?;
    storage.ip("link set eth0 up")?;
    for (netns, address, interface) in [(&n1.netns, FIRST, "eth1"), (&n1.netns, SECOND, "eth1"), (&storage, STORAGE, "eth0")] {
        netns.ip(&format!("addr add {address}/24 dev {interface}"))?;
    }
    storage.ip(&format!("addr add {BEYOND}/32 dev lo"))?;
    n1.netns.ip(&format!("route add {BEYOND} via {STORAGE}"))?;
    Ok(storage)
}

/// n1 serves its wire when this returns.
fn plugged(lab: &Lab) -> Result<Netns> {
    let storage = plug(lab)?;
    eventually(SOON, || is_served(lab, true))?;
    Ok(storage)
}

fn is_served(lab: &Lab, wanted: bool) -> Result<()> {
    let output = lab.node("n1").shunt(&["status"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("Wires:     eth1 besides the underlay") == wanted, "n1 says:\n{text}");
    ensure!(output.status.success(), "n1 is not healthy:\n{text}");
    for hook in ["from_wire_eth1", "to_wire_eth1"] {
        ensure!(text.contains(hook) == wanted, "{hook}: n1 says:\n{text}");
    }
    Ok(())
}

/// Gives the Service one backend; in force when this returns at all of n1's frontends, TCP and UDP at the virtual IP and at so many addresses.
fn lead_to(lab: &Lab, backend: Ipv4Addr, node: &str, addresses: usize) -> Result<()> {
    lab.cluster.put_endpoints("web", &PORTS, &[Endpoint::ready(backend, node)])?;
    eventually(SOON, || {
        let rows = lab.node("n1").kernel()?.services()?;
        // An empty frontend leads nowhere yet.
        let leads =
            |row: &ServiceRow| !row.outside.is_empty() && row.outside.iter().all(|row| row.backend.addr == backend.into());
        let led = rows.iter().filter(|row| leads(row)).count();
        ensure!(led == 2 * (1 + addresses), "{led} frontends of n1 lead to {backend}");
        Ok(())
    })
}

#[test]
fn pods_reach_a_network_behind_another_interface_with_the_nodes_address_there() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (a, b) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?);
    let storage = plugged(&lab)?;
    for server in [STORAGE, BEYOND] {
        let _servers = serve(&storage, server, "storage")?;
        for pod in [&a, &b] {
            for answer in [tcp_answer(&pod.netns, at(server, TARGET))?, udp_answer(&pod.netns, at(server, TARGET))?] {
                ensure!(*answer.peer.ip() == FIRST, "{server} sees {}", answer.peer);
            }
            ensure!(ping(&pod.netns, server, 3, 0.05, 56)?.received == 3);
            ask_tcp(&pod.netns, at(server, TARGET), &vec![9; 4 << 20])?;
            ask_udp(&pod.netns, at(server, TARGET), &vec![3; 4000])?;
        }
        // Nobody is there: the storage host's refusal finds the pod.
        refused(&a.netns, at(server, TARGET + 1))?;
    }
    // Both with one port of their own.
    let _servers = serve(&storage, STORAGE, "storage")?;
    let mut one = TcpClient::connect_from(&a.netns, 40_000, at(STORAGE, TARGET))?;
    let mut other = TcpClient::connect_from(&b.netns, 40_000, at(STORAGE, TARGET))?;
    ensure!(one.peer != other.peer, "both are seen as {}", one.peer);
    one.exchange(b"from a")?;
    other.exchange(b"from b")
}

#[test]
fn clients_that_come_by_another_interface_are_served_by_whatever_backend() -> Result<()> {
    let mut lab = Lab::wired(&PAIR)?;
    fs::write(lab.node("n1").config_file(), "nodePortAddresses: [192.0.2.0/24, 198.51.100.0/24]\n")?;
    lab.start_agents()?;
    let (a, c) = (lab.pod("n1", "a")?, lab.pod("n2", "c")?);
    let _pods = (serve_pod(&a)?, serve_pod(&c)?);
    let n1 = lab.node("n1");
    let _process = serve(&n1.netns, n1.address(), "n1")?;
    let storage = plugged(&lab)?;
    storage.ip(&format!("route add {VIP} via {FIRST}"))?;
    lab.cluster.put_node_port("web", VIP, &PORTS, NODE_PORT)?;
    for (backend, node, name) in [(a.address, "n1", "a"), (c.address, "n2", "c"), (n1.address(), "n1", "n1")] {
        lead_to(&lab, backend, node, 3)?;
        for asked in [at(FIRST, NODE_PORT), at(SECOND, NODE_PORT), at(VIP, 80)] {
            for answer in [tcp_answer(&storage, asked)?, udp_answer(&storage, asked)?] {
                ensure!(answer.server == name, "{asked} is answered by {}, not {name}", answer.server);
            }
            ask_tcp(&storage, asked, &vec![7; 2 << 20])?;
        }
    }
    Ok(())
}

#[test]
fn an_endpoint_behind_another_interface_is_asked_with_the_nodes_address_there() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (a, c) = (lab.pod("n1", "a")?, lab.pod("n2", "c")?);
    let n1 = lab.node("n1");
    let storage = plugged(&lab)?;
    lab.cluster.put_node_port("web", VIP, &PORTS, NODE_PORT)?;
    let (virtual_ip, node_port) = (at(VIP, 80), at(n1.address(), NODE_PORT));
    for server in [STORAGE, BEYOND] {
        let _servers = serve(&storage, server, "storage")?;
        lead_to(&lab, server, "", 1)?;
        let asking = [
            (&a.netns, virtual_ip),
            (&a.netns, node_port),
            (&n1.netns, virtual_ip),
            (&n1.netns, node_port),
            (lab.outside(), node_port),
            (&c.netns, node_port),
        ];
        for (client, asked) in asking {
            for answer in [tcp_answer(client, asked)?, udp_answer(client, asked)?] {
                ensure!(*answer.peer.ip() == FIRST, "{server} is asked for {} by {}", client.name(), answer.peer);
            }
            ask_tcp(client, asked, &vec![7; 2 << 20])?;
        }
    }
    Ok(())
}

/// The address that n2 would answer as is one that a network of its own need not take back, nor does n2 know a way there.
#[test]
fn backends_elsewhere_answer_by_themselves_only_clients_of_the_underlay() -> Result<()> {
    let mut lab = Lab::wired(&PAIR)?;
    for node in &lab.nodes {
        fs::write(node.config_file(), "nodePort: dsr\n")?;
        lab.cluster.annotate_node(&node.name, &node.vtep_mac(), true)?;
    }
    lab.start_agents()?;
    let c = lab.pod("n2", "c")?;
    let _server = serve_pod(&c)?;
    let n1 = lab.node("n1");
    let storage = plugged(&lab)?;
    storage.ip(&format!("route add {} via {FIRST}", n1.address()))?;
    lab.cluster.put_node_port("web", VIP, &PORTS, NODE_PORT)?;
    lead_to(&lab, c.address, "n2", 1)?;
    let asked = at(n1.address(), NODE_PORT);
    let sees = |client: &Netns, whom: Ipv4Addr| {
        for answer in [tcp_answer(client, asked)?, udp_answer(client, asked)?] {
            ensure!((answer.server.as_str(), *answer.peer.ip()) == ("c", whom), "{} answers {}", answer.server, answer.peer);
        }
        ask_tcp(client, asked, &vec![7; 2 << 20]).map(drop)
    };
    sees(&storage, n1.address())?;
    sees(lab.outside(), OUTSIDE)
}

#[test]
fn destinations_that_see_pods_need_an_interface_that_forwards() -> Result<()> {
    let mut lab = Lab::wired(&PAIR)?;
    fs::write(lab.node("n1").config_file(), "nonMasqueradeCIDRs: [198.51.100.0/24]\n")?;
    lab.start_agents()?;
    let a = lab.pod("n1", "a")?;
    let storage = plugged(&lab)?;
    let n1 = lab.node("n1");
    let (base, len) = n1.pod_range();
    storage.ip(&format!("route add {base}/{len} via {FIRST}"))?;
    let _servers = (serve(&storage, STORAGE, "storage")?, serve(&storage, BEYOND, "beyond")?);
    let notes = || Ok::<_, anyhow::Error>(n1.status()?.notes.join("\n"));
    // As systemd-networkd's `IPv4Forwarding=no` has it.
    n1.netns.sysctl("ipv4/conf/eth1/forwarding", "0")?;
    ensure!(notes()?.contains("set net/ipv4/conf/eth1/forwarding to 1"), "n1 notes {}", notes()?);
    ensure!(tcp_answer(&a.netns, at(STORAGE, TARGET)).is_err(), "the note is not true");
    // Nothing else that comes by it needs that.
    tcp_answer(&a.netns, at(BEYOND, TARGET))?;
    n1.netns.sysctl("ipv4/conf/eth1/forwarding", "1")?;
    ensure!(!notes()?.contains("forwarding"), "n1 notes {}", notes()?);
    let answer = tcp_answer(&a.netns, at(STORAGE, TARGET))?;
    ensure!(*answer.peer.ip() == a.address, "the storage host sees {}", answer.peer);

    // A Service may have an endpoint there. A process of the node has no address that answers to it find but the node's there.
    lab.cluster.put_node_port("web", VIP, &PORTS, NODE_PORT)?;
    lead_to(&lab, STORAGE, "", 1)?;
    for (client, source) in [(&n1.netns, FIRST), (&a.netns, a.address)] {
        let answer = eventually(SOON, || udp_answer(client, at(VIP, 80)))?;
        ensure!(*answer.peer.ip() == source, "the storage host sees {} of {}", answer.peer, client.name());
    }
    Ok(())
}

/// A hook takes 63 programs (`bpf_mprog_max` in include/linux/bpf_mprog.h).
#[test]
fn an_interface_that_takes_no_programs_is_told_of_and_served_once_it_does() -> Result<()> {
    let mut lab = Lab::wired(&PAIR)?;
    let storage = plug(&lab)?;
    let crowd = (0..63).map(|_| Foreign::attach(&lab.node("n1").netns, "eth1", Hook::Tcx, NO_LENGTH));
    let crowd: Vec<Foreign> = crowd.collect::<Result<_>>()?;
    lab.start_agents()?;
    let a = lab.pod("n1", "a")?;
    let _servers = serve(&storage, STORAGE, "storage")?;
    let said = lab.node("n1").status()?;
    ensure!(said.wires.is_empty(), "served are {:?}", said.wires);
    let told =
        |note: &String| note.contains("come by eth1, and pods get no answers by it: cannot attach program from_wire on eth1");
    ensure!(said.notes.iter().any(told), "n1 notes {:?}", said.notes);
    ensure!(tcp_answer(&a.netns, at(STORAGE, TARGET)).is_err(), "an answer without a program");
    drop(crowd);
    eventually(BY_ITSELF, || is_served(&lab, true))?;
    tcp_answer(&a.netns, at(STORAGE, TARGET)).map(drop)
}

#[test]
fn an_interface_may_come_and_go_and_is_served_while_it_is_there() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let a = lab.pod("n1", "a")?;
    is_served(&lab, false)?;
    let storage = plugged(&lab)?;
    let _servers = serve(&storage, STORAGE, "storage")?;
    tcp_answer(&a.netns, at(STORAGE, TARGET))?;
    let n1 = &lab.node("n1").netns;
    n1.ip("link set eth1 down")?;
    eventually(SOON, || is_served(&lab, false))?;
    // It has had its addresses all the time: nothing but that it comes up tells of it, and the agent has looked a moment ago.
    n1.ip("link set eth1 up")?;
    eventually(WHEN_TOLD, || is_served(&lab, true))?;
    eventually(SOON, || tcp_answer(&a.netns, at(STORAGE, TARGET)))?;
    n1.ip("link del eth1")?;
    eventually(SOON, || is_served(&lab, false))
}

#[test]
fn interfaces_that_are_not_named_are_left_alone() -> Result<()> {
    let mut lab = Lab::wired(&PAIR)?;
    lab.start_agents()?;
    let (a, c) = (lab.pod("n1", "a")?, lab.pod("n2", "c")?);
    let storage = plugged(&lab)?;
    let _servers = (serve(&storage, STORAGE, "storage")?, serve_pod(&c)?);
    tcp_answer(&a.netns, at(STORAGE, TARGET))?;
    let configured = |lab: &mut Lab, devices: &str| {
        fs::write(lab.node("n1").config_file(), format!("devices: {devices}\n"))?;
        lab.node_mut("n1").stop_agent()?;
        lab.node_mut("n1").start_agent()?;
        lab.node("n1").wait_ready()
    };
    configured(&mut lab, "[eth0, 'storage*']")?;
    is_served(&lab, false)?;
    let status = String::from_utf8(lab.node("n1").shunt(&["status"])?.stdout)?;
    ensure!(status.contains("Wires:     none besides the underlay; without eth1, as configured"), "n1 says:\n{status}");
    ensure!(tcp_answer(&a.netns, at(STORAGE, TARGET)).is_err(), "a program is left on eth1");
    // The underlay belongs without being named.
    tcp_answer(&a.netns, at(c.address, TARGET))?;
    ensure!(ping(&a.netns, OUTSIDE, 3, 0.05, 56)?.received == 3);
    configured(&mut lab, "['eth?']")?;
    is_served(&lab, true)?;
    tcp_answer(&a.netns, at(STORAGE, TARGET)).map(drop)
}

#[test]
fn an_agent_that_starts_finds_its_wires_and_a_cleanup_leaves_none_of_its_programs_there() -> Result<()> {
    let mut lab = Lab::build(&PAIR)?;
    let a = lab.pod("n1", "a")?;
    let storage = plugged(&lab)?;
    let _servers = serve(&storage, STORAGE, "storage")?;
    let mut client = TcpClient::connect(&a.netns, at(STORAGE, TARGET))?;
    lab.node_mut("n1").kill_agent()?;
    client.exchange(b"without an agent")?;
    lab.node_mut("n1").start_agent()?;
    lab.node("n1").wait_ready()?;
    is_served(&lab, true)?;
    client.exchange(b"with another agent")?;
    lab.node_mut("n1").stop_agent()?;
    lab.node("n1").cleanup()?;
    // Nobody holds the links of an agent that is gone but their pins.
    ensure!(!lab.node("n1").pin_dir().exists(), "pins are left");
    Ok(())
}

/// The kernel here may have no VLAN devices: what is shown is that the underlay's programs leave to one what is its own.
#[test]
fn what_had_a_vlans_tag_is_not_the_underlays() -> Result<()> {
    const TAG: [u8; 4] = [0x81, 0, 0, 5];
    let lab = Lab::build(&PAIR)?;
    let a = lab.pod("n1", "a")?;
    let n1 = lab.node("n1");
    lab.cluster.put_node_port("web", VIP, &PORTS, NODE_PORT)?;
    lead_to(&lab, a.address, "n1", 1)?;
    let ends = [n1.netns.mac(UPLINK)?.bytes, [2, 0, 0, 0, 0, 9]].concat();
    let packet = |port| udp((Ipv4Addr::new(192, 0, 2, 200), port), (n1.address(), NODE_PORT), b"whose?");
    let opened = || n1.counter(Counter::ServiceNewFlow);
    let before = opened()?;
    send_frame(lab.fabric(), "to-n1", &[&ends[..], &TAG, &[8, 0], &packet(1234)].concat())?;
    // In order: when this one is there, so was the other.
    send_frame(lab.fabric(), "to-n1", &[&ends[..], &[8, 0], &packet(1235)].concat())?;
    eventually(SOON, || {
        ensure!(opened()? > before, "the datagram without a tag opens no flow");
        Ok(())
    })?;
    ensure!(opened()? == before + 1, "the tagged one opened a flow");
    Ok(())
}
