//! Next hops whose MAC programs write themselves: now and then a packet is left to the kernel, which else would never ask whether it is still theirs.
//!
//! ```text
//!   OUTSIDE -- router --+-- underlay, this node
//!                       +-- PEER_IP, with REMOTE_POD
//! ```

use std::time::{Duration, Instant};

use shunt_common::config::xdp_forwards;

use crate::{
    harness::{
        Dataplane, NODE_IP, OUTSIDE, Outcome, PEER_IP, POD,
        Verdict::{Pass, Redirect},
    },
    packet::{tunnel, udp},
    turn_back::{OWN, Opened, PEER, ROUTER, bare, dataplane, from_outside},
};

/// Repeats a packet until what was decided for its flow is decided anew, which takes a part of a second, and returns that outcome.
fn decided_anew(dataplane: &mut Dataplane, packet: &[u8]) -> Outcome {
    let start = Instant::now();
    loop {
        let outcome = dataplane.run_xdp(packet);
        if outcome.verdict == Pass {
            return outcome;
        }
        assert!(start.elapsed() < Duration::from_secs(2), "no packet is left to the kernel");
    }
}

/// Where a frame goes.
fn destination(outcome: &Outcome) -> [u8; 6] {
    outcome.packet[..6].try_into().expect("a frame")
}

#[test]
fn xdp_leaves_a_packet_to_the_kernel_until_that_has_one_for_the_next_hop() {
    let mut dataplane = dataplane();
    for Opened { question, answer, .. } in [Opened::udp(&mut dataplane), Opened::tcp(&mut dataplane, NODE_IP, 30_080)] {
        let (asked, answered) = (question.bytes(), tunnel(PEER_IP, &answer, 0).bytes());
        for (packet, to, at_tc, popped) in [
            (&asked, PEER, from_outside(&question), asked.clone()),
            (&answered, ROUTER, answered.clone(), crate::turn_back::popped(&answer, 0)),
        ] {
            dataplane.run("from_wire", &at_tc);
            assert_eq!(dataplane.run_xdp(packet).verdict, Redirect);
            dataplane.forget_neighbours();
            decided_anew(&mut dataplane, packet).is(Pass, &popped, &[]);
            dataplane.run_xdp(packet).is(Pass, &popped, &[]);
            assert_eq!(dataplane.run("from_wire", &at_tc).verdict, Redirect);
            let sent = dataplane.run_xdp(packet);
            assert_eq!((&sent.verdict, destination(&sent)), (&Redirect, to));
        }
    }
}

#[test]
fn another_next_hops_packet_is_not_enough() {
    let mut dataplane = dataplane();
    let Opened { question, answer, .. } = Opened::udp(&mut dataplane);
    let (question, answer) = (question.bytes(), tunnel(PEER_IP, &answer, 0).bytes());
    dataplane.run_xdp(&question);
    dataplane.forget_neighbours();
    decided_anew(&mut dataplane, &question);
    // The router's.
    dataplane.run("from_wire", &answer);
    assert_eq!(dataplane.run_xdp(&question).verdict, Pass);
}

#[test]
fn of_a_pods_packets_to_the_outside_one_goes_by_the_kernels_neighbour() {
    let mut dataplane = bare(xdp_forwards::NO);
    let packet = udp(POD, 40_000, OUTSIDE, 53);
    for _ in 0..2 {
        dataplane.forget_neighbours();
        let first = dataplane.run("from_pod", &packet.bytes());
        let leaves = packet.clone().from(NODE_IP).sport(first.snat_port()).aged();
        // The kernel writes its header afterwards.
        assert_eq!((&first.verdict, first.packet), (&Redirect, leaves.bytes()));
        for _ in 0..2 {
            dataplane.run("from_pod", &packet.bytes()).is(Redirect, &leaves.clone().macs(ROUTER, OWN).bytes(), &["to_outside"]);
        }
    }
}
