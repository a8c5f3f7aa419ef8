//! The lab itself, with nodes of the plain kernel: what it proves about us elsewhere rests on it being right. And the demo on it.
//!
//! ```text
//!   pod a 10.244.1.10 -- f1 ===vxlan=== f2 -- pod b 10.244.2.10
//! ```

use std::{
    net::SocketAddrV4,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use shunt_lab::{
    capture::Capture,
    lab::{self, Lab},
    netns,
    topology::{OUTSIDE, PLAIN_PAIR},
    traffic::{
        echo::{Server, ask_tcp, ask_udp},
        flood::Flood,
        ping::ping,
    },
};

#[test]
fn plain_nodes_exchange_everything_and_the_capture_verifies_it() -> Result<()> {
    let lab = Lab::build(&PLAIN_PAIR)?;
    let a = lab.plain[0].pod("a", 10)?;
    let b = lab.plain[1].pod("b", 10)?;
    let capture = Capture::start(lab.fabric(), "to-f1", "ip", lab.dir())?;

    ensure!(ping(&a.netns, b.address, 3, 0.1, 56)?.received == 3);
    ensure!(ping(&a.netns, b.address, 2, 0.1, 1400)?.received == 2);
    let to = SocketAddrV4::new(b.address, 8080);
    let _servers = (Server::tcp(&b.netns, to, "b")?, Server::udp(&b.netns, to, "b")?);
    let answer = ask_tcp(&a.netns, to, &vec![7; 1 << 20])?;
    ensure!(answer.server == "b" && *answer.peer.ip() == a.address, "{answer:?}");
    let answer = ask_udp(&a.netns, to, b"question")?;
    ensure!(*answer.peer.ip() == a.address, "{answer:?}");

    let seen = capture.finish()?;
    seen.all_right()?;
    ensure!(seen.tunnelled > 700 && seen.tcp > 700 && seen.icmp == 10 && seen.udp >= 2, "{seen:?}");
    ensure!(seen.longest == 1500, "a wire carries no more than its MTU: {}", seen.longest);
    Ok(())
}

#[test]
fn the_outside_sees_node_addresses_only() -> Result<()> {
    let lab = Lab::build(&PLAIN_PAIR)?;
    let a = lab.plain[0].pod("a", 10)?;
    let to = SocketAddrV4::new(OUTSIDE, 80);
    let _server = Server::tcp(lab.outside(), to, "outside")?;
    ensure!(*ask_tcp(&a.netns, to, b"hello")?.peer.ip() == lab.plain[0].address());
    Ok(())
}

#[test]
fn a_flood_counts_what_is_lost() -> Result<()> {
    let lab = Lab::build(&PLAIN_PAIR)?;
    let (a, b) = (lab.plain[0].pod("a", 10)?, lab.plain[1].pod("b", 10)?);
    let to = SocketAddrV4::new(b.address, 8080);
    let _server = Server::udp(&b.netns, to, "b")?;
    ask_udp(&a.netns, to, b"warm")?;

    let flood = Flood::start(&a.netns, to, Duration::from_millis(1))?;
    std::thread::sleep(Duration::from_millis(300));
    let whole = flood.stop()?;
    ensure!(whole.lost() == 0 && whole.sent > 100, "{whole:?}");

    let flood = Flood::start(&a.netns, to, Duration::from_millis(1))?;
    std::thread::sleep(Duration::from_millis(100));
    lab.plain[1].netns.ip("link set flannel.1 down")?;
    std::thread::sleep(Duration::from_millis(100));
    let holed = flood.stop()?;
    ensure!(holed.lost() > 20, "{holed:?}");
    Ok(())
}

#[test]
fn two_labs_stand_side_by_side_and_leave_nothing() -> Result<()> {
    let one = Lab::build(&PLAIN_PAIR)?;
    let other = Lab::build(&PLAIN_PAIR)?;
    ensure!(one.id() != other.id());
    let (a, b) = (other.plain[0].pod("a", 10)?, other.plain[1].pod("b", 10)?);
    let name = one.name();
    ensure!(!netns::names_with(&format!("{name}-")).is_empty());
    drop(one);
    ensure!(netns::names_with(&format!("{name}-")).is_empty(), "namespaces of a lab that is gone");
    ensure!(!Path::new("/sys/fs/bpf").join(&name).exists() && !lab::standing().iter().any(|(id, _)| name.ends_with(id)));
    ensure!(ping(&a.netns, b.address, 2, 0.1, 56)?.received == 2, "the other lab is not touched");
    Ok(())
}

#[test]
fn a_sweep_spares_labs_whose_owner_lives() -> Result<()> {
    let lab = Lab::build(&PLAIN_PAIR)?;
    lab::sweep();
    ensure!(lab.dir().exists() && !netns::names_with(&format!("{}-", lab.name())).is_empty());
    Ok(())
}

#[test]
fn what_a_killed_owner_left_is_swept_up() -> Result<()> {
    let mut owner = Command::new(env!("CARGO_BIN_EXE_shunt-lab")).arg("demo").stdout(Stdio::null()).spawn()?;
    let owned = || lab::standing().into_iter().map(|(id, _)| id).find(|id| lab::owner(id) == Some(owner.id()));
    let id = lab::eventually(Duration::from_secs(20), || {
        let id = owned().context("no lab yet")?;
        // Far enough that there are processes and pins too.
        ensure!(Path::new("/sys/fs/bpf").join(format!("shl-{id}/n2/links")).exists(), "no links yet");
        Ok(id)
    })?;
    owner.kill()?;
    owner.wait()?;
    lab::sweep();
    // Whoever builds a lab at the same time sweeps too, and may have come first.
    lab::eventually(Duration::from_secs(20), || {
        ensure!(netns::names_with(&format!("shl-{id}-")).is_empty(), "namespaces are left");
        ensure!(!Path::new("/sys/fs/bpf").join(format!("shl-{id}")).exists(), "pins are left");
        ensure!(!lab::standing().iter().any(|(standing, _)| *standing == id), "files are left");
        Ok(())
    })
}

#[test]
fn the_demo_passes_its_own_checks() -> Result<()> {
    let output = Command::new(env!("CARGO_BIN_EXE_shunt-lab")).arg("demo").stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && text.contains("All checks passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
