//! What an older version has left: a link of ours in the kernel's substitute for a driver's XDP.

use std::fs;

use anyhow::{Result, ensure};
use shunt::{kernel::pins::PinDir, socket::protocol::XdpStatus};
use shunt_common::{conntrack::seen, event::program, verdict::Counter};
use shunt_lab::{
    foreign::{Foreign, Hook},
    lab::Lab,
    node::Node,
    service::{serve_pod, udp_answer},
    topology::Wire,
    traffic::echo::TcpClient,
    underlay::UPLINK,
};

use crate::{NO_LENGTH, Ready, frontends, lab, lead_to};

/// How the underlay's XDP program runs, as `ip` shows it.
fn shown(node: &Node) -> Result<String> {
    node.netns.ip(&format!("link show {UPLINK}"))
}

/// Puts a program into the substitute under the name of ours while n1's agent is away, does something to the lab, and starts an agent again.
fn upgrade(lab: &mut Lab, change: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    lab.node_mut("n1").kill_agent()?;
    let n1 = lab.node("n1");
    let pin = PinDir::new(n1.pin_dir()).link(program::name(program::FROM_WIRE_XDP), UPLINK);
    fs::remove_file(&pin)?;
    Foreign::attach(&n1.netns, UPLINK, Hook::XdpGeneric, NO_LENGTH)?.pin(&pin)?;
    ensure!(shown(n1)?.contains("xdpgeneric"), "{}", shown(n1)?);
    change(lab)?;
    lab.node_mut("n1").start_agent()?;
    lab.node("n1").wait_ready()
}

#[test]
fn a_link_in_the_kernels_substitute_makes_way_for_the_driver() -> Result<()> {
    let (mut lab, _ready) = lab("xdp", Ready::Programs, Wire::Finished)?;
    let c = lab.pod("n2", "c")?;
    let _servers = serve_pod(&c)?;
    lead_to(&lab, c.address, "n2")?;
    let (_, to) = frontends(&lab)[0];
    let mut connection = TcpClient::connect(lab.outside(), to)?;
    upgrade(&mut lab, |_| Ok(()))?;
    let n1 = lab.node("n1");
    let link = shown(n1)?;
    ensure!(!link.contains("xdpgeneric") && link.contains(" xdp"), "{link}");
    ensure!(n1.status()?.xdp == Some(XdpStatus::Forwards));
    let before = n1.counter(Counter::XdpForwarded)?;
    connection.exchange(&[7; 300_000])?;
    ensure!(n1.counter(Counter::XdpForwarded)? > before + 100);
    Ok(())
}

#[test]
fn where_the_driver_takes_no_program_it_goes_too_and_nothing_waits_for_xdp() -> Result<()> {
    let (mut lab, _ready) = lab("xdp", Ready::Not, Wire::Finished)?;
    let c = lab.pod("n2", "c")?;
    let _servers = serve_pod(&c)?;
    lead_to(&lab, c.address, "n2")?;
    upgrade(&mut lab, |lab| {
        // A veth's driver has no room for larger frames, nor is the other end ready for what it sends before it has GRO.
        let around = lab.surroundings.as_ref().expect("a switch");
        around.set_mtu([("n1", &lab.node("n1").netns)].into_iter(), 9000)?;
        lab.fabric().run("ethtool", "-K to-n1 gro on").map(drop)
    })?;
    let n1 = lab.node("n1");
    let link = shown(n1)?;
    ensure!(!link.contains("xdp"), "{link}");
    let xdp = n1.status()?.xdp;
    ensure!(matches!(&xdp, Some(XdpStatus::Unavailable(reason)) if reason.contains("attach")), "{xdp:?}");
    let (_, to) = frontends(&lab)[0];
    for _ in 0..4 {
        udp_answer(lab.outside(), to)?;
    }
    let mut connection = TcpClient::connect(lab.outside(), to)?;
    connection.exchange(&[7; 100_000])?;
    // Only XDP asks for that.
    let flows = n1.kernel()?.conntrack()?;
    ensure!(!flows.is_empty() && flows.iter().all(|(_, entry)| entry.seen & seen::WHOLE == 0), "{flows:?}");
    Ok(())
}
