//! Labs that outlive the command that built them, and programs loaded on the machine itself.

use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddrV4},
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    demo::{self, Stage},
    lab::{self, Lab, PREFIX},
    netns::{self, Netns},
    terminal::Terminal,
    topology::{Fabric, Kind, NodeSpec, Topology, Wire},
    traffic::echo::Server,
};

/// `shunt-lab up`: builds the demo's lab and leaves it.
///
/// # Errors
/// It could not be built.
pub fn up() -> Result<ExitCode> {
    let terminal = Terminal::default();
    terminal.section("A lab to play with");
    let mut stage = Stage::build(&terminal)?;
    stage.keep()?;
    demo::say_how_to_use(&terminal, &stage);
    Ok(ExitCode::SUCCESS)
}

/// `shunt-lab down`: removes one kept lab, or all.
///
/// # Errors
/// There is none of that id.
pub fn down(id: Option<&str>) -> Result<ExitCode> {
    let kept: Vec<_> = lab::standing().into_iter().filter(|(_, kept)| *kept).map(|(id, _)| id).collect();
    let chosen: Vec<_> = kept.iter().filter(|name| id.is_none_or(|id| id == *name)).collect();
    if let (Some(id), true) = (id, chosen.is_empty()) {
        bail!("no kept lab {id}; there are: {}", kept.join(" "));
    }
    for id in chosen {
        lab::remove(id);
        println!("removed {id}");
    }
    Ok(ExitCode::SUCCESS)
}

/// `shunt-lab list`.
///
/// # Errors
/// The output cannot be written.
pub fn list() -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    for (id, kept) in lab::standing() {
        writeln!(out, "{id}  {}", if kept { "kept" } else { "in use" })?;
        for name in netns::names_with(&format!("{PREFIX}{id}-")) {
            writeln!(out, "      {}", name.trim_start_matches(&format!("{PREFIX}{id}-")))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `shunt-lab exec`: runs a command in a namespace of the newest kept lab, or of the lab that `ID:PLACE` names.
///
/// # Errors
/// There is no such lab or namespace, or the command cannot be started.
pub fn exec(place: &str, command: &[String]) -> Result<ExitCode> {
    let (id, place) = match place.split_once(':') {
        Some((id, place)) => (id.to_owned(), place),
        None => {
            let kept = lab::standing().into_iter().rfind(|(_, kept)| *kept);
            (kept.context("no lab is kept: `cargo xtask lab up` builds one")?.0, place)
        }
    };
    let name = format!("{PREFIX}{id}-{place}");
    let Ok(netns) = Netns::open(&name) else {
        let prefix = format!("{PREFIX}{id}-");
        let names: Vec<_> = netns::names_with(&prefix).iter().map(|name| name.trim_start_matches(&prefix).to_owned()).collect();
        bail!("no {place} in lab {id}; there are: {}", names.join(" "));
    };
    let (program, args) = command.split_first().context("no command")?;
    let status = netns.command(program).args(args).status().with_context(|| format!("cannot start {program}"))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// `shunt-lab load`: one node in a lab of its own, or an agent on an interface of the machine; until Ctrl-C.
///
/// # Errors
/// The programs could not be loaded or attached.
pub fn load(underlay: Option<&str>) -> Result<ExitCode> {
    const ALONE: Topology =
        Topology { nodes: &[NodeSpec { name: "n1", kind: Kind::Shunt }], fabric: Fabric::Switch, wire: Wire::Finished };
    let terminal = Terminal::default();
    terminal.section("Load");
    let mut lab = Lab::wired(&ALONE)?;
    if let Some(interface) = underlay {
        let address = address_of(interface)?;
        lab.cluster.put_node("n1", address, lab.node("n1").pod_range(), None)?;
        lab.node_mut("n1").move_to_machine(interface)?;
        terminal.text(&format!("on {interface} ({address}) of this machine, pins in {}", lab.node("n1").pin_dir().display()));
    } else {
        terminal.text(&format!("in a namespace of its own, pins in {}", lab.node("n1").pin_dir().display()));
    }
    let node = lab.node_mut("n1");
    node.start_agent()?;
    node.wait_ready()?;
    let status = node.shunt(&["status"])?;
    terminal.text(&String::from_utf8_lossy(&status.stdout));
    terminal.text("loaded and attached; Ctrl-C detaches and removes everything");
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

/// `shunt-lab serve`: answers in the namespace it was started in.
///
/// # Errors
/// The address cannot be bound.
pub fn serve(name: &str, address: SocketAddrV4) -> Result<ExitCode> {
    let here = Netns::of_this_process()?;
    let _servers = (Server::tcp(&here, address, name)?, Server::udp(&here, address, name)?);
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

fn address_of(interface: &str) -> Result<Ipv4Addr> {
    let addresses = nix::ifaddrs::getifaddrs()?;
    let mut found = addresses.filter(|entry| entry.interface_name == interface);
    found
        .find_map(|entry| entry.address?.as_sockaddr_in().map(|address| address.ip()))
        .with_context(|| format!("{interface} has no IPv4 address, or there is no such interface"))
}
