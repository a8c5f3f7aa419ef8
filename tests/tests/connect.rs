//! Connect-time translation as the kernel does it: whose sockets, what they see, and what outlives an agent.
//!
//! ```text
//!   outside -- router --+-- n1 -- pods a, b
//!                       +-- n2 -- pod c
//! ```

use std::{
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpStream},
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn};
use serde_json::json;
use shunt::{
    kernel::{connect::Connected, pins::PinDir, table::Table},
    socket::protocol::ConnectStatus,
};
use shunt_common::{
    connect::Frontend,
    maps,
    net::{Ip4, Port as NetPort, V4},
    verdict::Counter,
};
use shunt_lab::{
    cluster::Port,
    lab::{Lab, eventually},
    netns::Netns,
    node::Node,
    pod::Pod,
    service::{PORT, SOON, Service, TARGET, refused, serve_pod, tcp_answer, udp_answer},
    topology::{OUTSIDE, PAIR, ROUTER_OUTSIDE},
    traffic::echo::TcpClient,
    translation::Translation,
};

/// How many connections of a node were given a backend by `connect()`, and how many flows by a packet, while something is done.
fn translated(node: &Node, work: impl FnOnce() -> Result<()>) -> Result<(u64, u64)> {
    let count = || anyhow::Ok((node.counter(Counter::ServiceConnect)?, node.counter(Counter::ServiceNewFlow)?));
    let before = count()?;
    work()?;
    let after = count()?;
    Ok((after.0 - before.0, after.1 - before.1))
}

/// What a node's map remembers of sockets.
fn connected(node: &Node) -> Result<Connected> {
    Ok(Table::open(&maps::CONNECTED, &PinDir::new(node.pin_dir()).map(&maps::CONNECTED))?)
}

/// Nobody has a socket open any more that it remembers. A child that another test makes has all of this process's until it runs its own program.
fn forgotten(connected: &Connected) -> Result<()> {
    eventually(SOON, || {
        let held = connected.entries()?;
        ensure!(held.is_empty(), "{held:?} after the last has closed it");
        Ok(())
    })
}

/// How it remembers an address.
fn frontend(of: SocketAddrV4) -> Frontend<V4> {
    Frontend { addr: Ip4::from(*of.ip()), port: NetPort::from_host(of.port()), reserved: 0 }
}

/// The number of a socket that no other has.
fn cookie(socket: &impl AsFd) -> Result<u64> {
    let (mut cookie, mut len) = (0u64, size_of::<u64>() as libc::socklen_t);
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: a live descriptor, and room of the stated length.
    let got = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_COOKIE, (&raw mut cookie).cast(), &raw mut len) };
    ensure!(got == 0, "{}", std::io::Error::last_os_error());
    Ok(cookie)
}

/// The address that the other end of a TCP connection to a server of ours sees.
fn greeting(mut stream: TcpStream) -> Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while byte[0] != b'\n' {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8(line)?.trim_end().to_owned())
}

#[test]
fn a_socket_speaks_with_the_backend_and_believes_in_the_service() -> Result<()> {
    let lab = Lab::build_with(&PAIR, Translation::Connect)?;
    let (a, c) = (lab.pod("n1", "a")?, lab.pod("n2", "c")?);
    let _server = serve_pod(&c)?;
    let service = Service::create(&lab, "web", 10, &[&c])?;
    let n1 = lab.node("n1");
    let mapped = SocketAddrV6::new(service.vip.ip().to_ipv6_mapped(), PORT, 0, 0);
    for (client, address) in [(&a.netns, a.address), (&n1.netns, n1.address())] {
        for to in [SocketAddr::V4(service.vip), SocketAddr::V6(mapped)] {
            let counts = translated(n1, || {
                let stream = client.inside(|| TcpStream::connect(to)).with_context(|| format!("{} to {to}", client.name()))?;
                let named = stream.peer_addr()?;
                ensure!(named == to, "getpeername() says {named}, connected to {to}");
                let own = SocketAddrV4::new(address, stream.local_addr()?.port());
                let said = greeting(stream)?;
                ensure!(said == format!("c {own}"), "{} to {to}: {said}", client.name());
                Ok(())
            })?;
            ensure!(counts == (1, 0), "{} to {to}: {counts:?}", client.name());
        }
    }
    // No packet of them was translated.
    let is_translated = |row: &shunt::kernel::read::FlowRow| row.1.backend != 0;
    ensure!(!n1.kernel()?.conntrack()?.iter().any(is_translated), "a flow to a Service is tracked");
    Ok(())
}

#[test]
fn a_socket_that_is_connected_elsewhere_afterwards_names_that() -> Result<()> {
    let lab = Lab::build_with(&PAIR, Translation::Connect)?;
    let (a, b) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?);
    let _server = serve_pod(&b)?;
    let service = Service::create(&lab, "web", 10, &[&b])?;
    let direct = SocketAddrV4::new(b.address, TARGET);
    let stream = a.netns.inside(|| TcpStream::connect(service.vip))?;
    ensure!(stream.peer_addr()? == SocketAddr::V4(service.vip));
    // connect(2): an address of no family dissolves the association.
    let nobody = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    // SAFETY: a live descriptor, and an address of the stated length.
    let dissolved = unsafe { libc::connect(stream.as_raw_fd(), &raw const nobody, size_of_val(&nobody) as libc::socklen_t) };
    ensure!(dissolved == 0, "{}", std::io::Error::last_os_error());
    nix::sys::socket::connect(stream.as_raw_fd(), &nix::sys::socket::SockaddrIn::from(direct))?;
    ensure!(stream.peer_addr()? == SocketAddr::V4(direct), "it names {}", stream.peer_addr()?);
    ensure!(connected(lab.node("n1"))?.entries()?.is_empty(), "what it was connected to before is remembered");
    Ok(())
}

#[test]
fn a_service_is_remembered_for_a_socket_until_nobody_has_it_open() -> Result<()> {
    let lab = Lab::build_with(&PAIR, Translation::Connect)?;
    let (a, b) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?);
    let _server = serve_pod(&b)?;
    let web = Service::create(&lab, "web", 10, &[&b])?;
    // Nobody listens there.
    let mute = Service::create(&lab, "mute", 11, &[&a])?;
    let connected = connected(lab.node("n1"))?;

    // Through descriptors that were duplicated, in this process and others. The server's end, which is of this node too, is never in it.
    let stream = a.netns.inside(|| TcpStream::connect(web.vip))?;
    let entry = (cookie(&stream)?, frontend(web.vip));
    ensure!(connected.entries()? == [entry], "{:?}", connected.entries()?);
    let other = stream.try_clone()?;
    drop(stream);
    ensure!(connected.entries()? == [entry] && other.peer_addr()? == SocketAddr::V4(web.vip));
    let mut child = Command::new("sleep").arg("60").stdin(OwnedFd::from(other)).spawn()?;
    let with_the_child = connected.entries();
    child.kill()?;
    child.wait()?;
    ensure!(with_the_child? == [entry], "another process has it open");
    forgotten(&connected)?;

    // One whose connection fails, and that tries again.
    let socket =
        a.netns.inside(|| nix::sys::socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None))?;
    let connect = |to: SocketAddrV4| nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrIn::from(to));
    for _ in 0..2 {
        ensure!(connect(mute.vip) == Err(nix::Error::ECONNREFUSED), "{} has nobody that listens", mute.vip);
        ensure!(connected.entries()? == [(cookie(&socket)?, frontend(mute.vip))], "{:?}", connected.entries()?);
    }
    connect(web.vip)?;
    ensure!(connected.entries()? == [(cookie(&socket)?, frontend(web.vip))], "{:?}", connected.entries()?);
    let stream = TcpStream::from(socket);
    ensure!(stream.peer_addr()? == SocketAddr::V4(web.vip), "it names {}", stream.peer_addr()?);
    drop(stream);
    forgotten(&connected)
}

#[test]
fn who_finds_no_room_is_served_packet_by_packet() -> Result<()> {
    let lab = Lab::build_with(&PAIR, Translation::Connect)?;
    let n1 = lab.node("n1");
    let ports = json!([{ "hostPort": 8081, "containerPort": TARGET, "protocol": "tcp" }]);
    let (a, b) = (lab.pod("n1", "a")?, Pod::add_with(n1, "b", json!({ "runtimeConfig": { "portMappings": ports } }))?);
    let _server = serve_pod(&b)?;
    let service = Service::create(&lab, "web", 10, &[&b])?;
    let connected = connected(n1)?;
    let served = || {
        translated(n1, || {
            let stream = a.netns.inside(|| TcpStream::connect(service.vip))?;
            ensure!(stream.peer_addr()? == SocketAddr::V4(service.vip), "it names {}", stream.peer_addr()?);
            ensure!(greeting(stream)?.starts_with("b "));
            Ok(())
        })
    };
    // Of sockets that there will never be: the kernel counts from 1.
    let others: Vec<u64> = (0..u64::from(connected.capacity())).map(|number| u64::MAX - number).collect();
    let values = vec![frontend(service.vip); others.len()];
    connected.put_all(&others, &values, |index| format!("entry {index}")).map_err(|(_, error)| error)?;
    ensure!(served()? == (0, 1), "without room");
    // Which packets don't reach, and a name is not worth.
    let at_loopback = n1.netns.inside(|| TcpStream::connect((Ipv4Addr::LOCALHOST, 8081)))?;
    ensure!(at_loopback.peer_addr()? == SocketAddr::from((b.address, TARGET)), "it names {}", at_loopback.peer_addr()?);
    ensure!(greeting(at_loopback)?.starts_with("b "));
    ensure!(connected.delete(&others[0])?);
    // Its room is free again as soon as it is closed.
    for _ in 0..2 {
        ensure!(served()? == (1, 0), "with room for one");
    }
    Ok(())
}

#[test]
fn sockets_of_other_namespaces_are_left_alone() -> Result<()> {
    let lab = Lab::build_with(&PAIR, Translation::Connect)?;
    let surroundings = lab.surroundings.as_ref().context("a router")?;
    let n1 = lab.node("n1");
    surroundings.router.ip(&format!("route add 10.96.0.0/24 via {}", n1.address()))?;
    surroundings.outside.ip(&format!("route add 10.96.0.0/24 via {ROUTER_OUTSIDE}"))?;
    let b = lab.pod("n1", "b")?;
    let _server = serve_pod(&b)?;
    let service = Service::create(&lab, "web", 10, &[&b])?;

    // In the same cgroup as all, but neither a pod nor a node: what it sends is translated where it comes in.
    let counts = translated(n1, || {
        let answer = tcp_answer(lab.outside(), service.vip)?;
        ensure!(*answer.peer.ip() == n1.address() && OUTSIDE != n1.address(), "{answer:?}");
        Ok(())
    })?;
    ensure!(counts == (0, 1), "{counts:?}");
    // A node's own sockets are no other node's.
    ensure!(translated(n1, || tcp_answer(&lab.node("n2").netns, service.vip).map(drop))? == (0, 0));
    // A pod that is gone leaves nothing behind.
    let pods = |node: &Node| match node.status()?.connect {
        Some(ConnectStatus::Active { pods, .. }) => Ok(pods),
        other => anyhow::bail!("{other:?}"),
    };
    ensure!(pods(n1)? == 1 && pods(lab.node("n2"))? == 0);
    lab.pod("n1", "a")?.delete(n1)?;
    ensure!(pods(n1)? == 1);
    Ok(())
}

#[test]
fn a_socket_that_chose_its_own_port_is_served_packet_by_packet() -> Result<()> {
    let lab = Lab::build_with(&PAIR, Translation::Connect)?;
    let (a, b) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?);
    let _server = serve_pod(&b)?;
    let service = Service::create(&lab, "web", 10, &[&b])?;
    let n1 = lab.node("n1");
    let counts = translated(n1, || TcpClient::connect_from(&a.netns, 40_000, service.vip)?.exchange(b"mine"))?;
    ensure!(counts == (0, 1), "{counts:?}");
    ensure!(translated(n1, || udp_answer(&a.netns, service.vip).map(drop))? == (0, 1), "UDP is served packet by packet");
    Ok(())
}

#[test]
fn a_process_of_the_node_reaches_its_own_node_port() -> Result<()> {
    const NODE_PORT: u16 = 30_080;
    let lab = Lab::build_with(&PAIR, Translation::Connect)?;
    let c = lab.pod("n2", "c")?;
    let _server = serve_pod(&c)?;
    let service = Service::create(&lab, "web", 10, &[&c])?;
    lab.cluster.put_node_port("web", *service.vip.ip(), &[Port::tcp(PORT, TARGET)], NODE_PORT)?;
    let n1 = lab.node("n1");
    let to = SocketAddrV4::new(n1.address(), NODE_PORT);
    let answer = eventually(SOON, || tcp_answer(&n1.netns, to))?;
    ensure!(answer.server == "c" && *answer.peer.ip() == n1.address(), "{answer:?}");
    // Never at the loopback's.
    let at_loopback = SocketAddrV4::new(Ipv4Addr::LOCALHOST, NODE_PORT);
    ensure!(tcp_answer(&n1.netns, at_loopback).is_err(), "{at_loopback} was answered");
    Ok(())
}

#[test]
fn it_outlives_the_agent_and_ends_when_it_is_switched_off() -> Result<()> {
    let mut lab = Lab::build_with(&PAIR, Translation::Connect)?;
    let (a, b) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?);
    let _server = serve_pod(&b)?;
    let service = Service::create(&lab, "web", 10, &[&b])?;
    let empty = Service::create(&lab, "empty", 11, &[])?;
    let served = |lab: &Lab, client: &Netns| translated(lab.node("n1"), || tcp_answer(client, service.vip).map(drop));
    let host = Netns::open(lab.node("n1").netns.name())?;

    lab.node_mut("n1").kill_agent()?;
    let mut under_way = TcpClient::connect(&a.netns, service.vip)?;
    let open = a.netns.inside(|| TcpStream::connect(service.vip))?;
    let remembered = |lab: &Lab| -> Result<usize> { Ok(connected(lab.node("n1"))?.entries()?.len()) };
    for client in [&a.netns, &host] {
        ensure!(served(&lab, client)? == (1, 0), "{} without an agent", client.name());
    }
    ensure!(remembered(&lab)? == 2, "those that are open, and no others");
    lab.node_mut("n1").start_agent()?;
    lab.node("n1").wait_ready()?;
    for client in [&a.netns, &host] {
        ensure!(served(&lab, client)? == (1, 0), "{} after a restart", client.name());
        refused(client, empty.vip)?;
    }
    ensure!(remembered(&lab)? == 2 && open.peer_addr()? == SocketAddr::V4(service.vip), "after a restart");
    let links = |lab: &Lab| -> Result<Vec<String>> {
        let mut names = PinDir::new(lab.node("n1").pin_dir()).link_names()?;
        names.retain(|name| name.ends_with("_cgroup"));
        Ok(names)
    };
    let all = ["connect4", "connect6", "getpeername4", "getpeername6", "sock_release"].map(|name| format!("{name}_cgroup"));
    ensure!(links(&lab)? == all, "{:?}", links(&lab)?);
    let closed_meanwhile = a.netns.inside(|| TcpStream::connect(service.vip))?;

    lab.switch_translation("n1", Translation::Packet)?;
    ensure!(links(&lab)?.is_empty() && lab.node("n1").status()?.connect == Some(ConnectStatus::Off));
    drop(closed_meanwhile);
    for client in [&a.netns, &host] {
        ensure!(served(&lab, client)? == (0, 1), "{} with it switched off", client.name());
    }
    under_way.exchange(b"still there?")?;

    lab.switch_translation("n1", Translation::Connect)?;
    for client in [&a.netns, &host] {
        ensure!(served(&lab, client)? == (1, 0), "{} with it switched on again", client.name());
    }
    under_way.exchange(b"still there?")?;
    // Which of the sockets of before are still open nobody knows.
    ensure!(remembered(&lab)? == 0, "{:?}", connected(lab.node("n1"))?.entries()?);
    ensure!(open.peer_addr()? == SocketAddr::V4(SocketAddrV4::new(b.address, TARGET)), "it names {}", open.peer_addr()?);

    // What somebody took away comes back with a look at everything, which a restart is.
    std::fs::remove_file(lab.node("n1").pin_dir().join("links/connect4_cgroup"))?;
    lab.node_mut("n1").kill_agent()?;
    lab.node_mut("n1").start_agent()?;
    lab.node("n1").wait_ready()?;
    ensure!(served(&lab, &a.netns)? == (1, 0));

    lab.node_mut("n1").stop_agent()?;
    lab.node("n1").cleanup()?;
    ensure!(!lab.node("n1").pin_dir().exists(), "pins are left");
    Ok(())
}

#[test]
fn where_there_is_no_cgroup_packets_are_translated_and_status_says_why() -> Result<()> {
    let mut lab = Lab::build_with(&PAIR, Translation::Connect)?;
    let (a, b) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?);
    let _server = serve_pod(&b)?;
    let service = Service::create(&lab, "web", 10, &[&b])?;
    lab.node_mut("n1").stop_agent()?;
    let whole = lab.node("n1").agent_command(None)?;
    let mut args: Vec<_> = whole.get_args().map(ToOwned::to_owned).collect();
    let at = args.iter().position(|arg| arg == "--cgroup").context("the agent is told of a cgroup")? + 1;
    args[at] = "/proc".into();
    let mut command: Command = lab.node("n1").netns.command(whole.get_program());
    command.args(args);
    lab.node_mut("n1").start_as(command)?;
    lab.node("n1").wait_ready()?;
    match lab.node("n1").status()?.connect {
        Some(ConnectStatus::Unavailable(reason)) => ensure!(reason.contains("/proc is not a cgroup v2"), "{reason}"),
        other => anyhow::bail!("{other:?}"),
    }
    let counts = translated(lab.node("n1"), || tcp_answer(&a.netns, service.vip).map(drop))?;
    ensure!(counts == (0, 1), "{counts:?}");
    Ok(())
}
