//! `to_pod`: what the host's stack sends to a pod.

use shunt_common::net::proto;

use crate::{
    harness::{Dataplane, NODE_IP, OTHER_POD, POD, REMOTE_POD, VIP, Verdict::Pass},
    packet::{ACK, SYN, echo, error, raw, tcp, udp},
};

const PROGRAM: &str = "to_pod";

#[test]
fn a_host_process_that_is_a_backend_answers_as_the_virtual_ip() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 443, proto::TCP, &[(NODE_IP, 6443)]);
    dataplane.run("from_pod", &tcp(POD, 40_000, VIP, 443, SYN).bytes());
    let answer = tcp(NODE_IP, 6443, POD, 40_000, SYN | ACK);
    let expected = answer.clone().from(VIP).sport(443).bytes();
    dataplane.run(PROGRAM, &answer.bytes()).is(Pass, &expected, &[]);
    // A closed port there is a closed port of the virtual IP.
    let complaint = error(NODE_IP, POD, 3, 3, &tcp(POD, 40_000, NODE_IP, 6443, SYN));
    let expected = error(VIP, POD, 3, 3, &tcp(POD, 40_000, VIP, 443, SYN)).bytes();
    dataplane.run(PROGRAM, &complaint.bytes()).is(Pass, &expected, &[]);
}

#[test]
fn a_reassembled_answer_is_translated_fragment_by_fragment() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 53, proto::UDP, &[(REMOTE_POD, 5353)]);
    dataplane.run("from_pod", &udp(POD, 40_000, VIP, 53).bytes());
    let first = udp(REMOTE_POD, 5353, POD, 40_000).fragment(0x2000);
    dataplane.run(PROGRAM, &first.bytes()).is(Pass, &first.clone().from(VIP).sport(53).bytes(), &[]);
    let later = raw(REMOTE_POD, POD, 17, vec![7; 32]).fragment(2);
    dataplane.run(PROGRAM, &later.bytes()).is(Pass, &later.from(VIP).bytes(), &[]);
}

#[test]
fn what_is_not_translated_passes_untouched() {
    let mut dataplane = Dataplane::new();
    let mut ipv6 = udp(NODE_IP, 1, POD, 2).payload(vec![0; 40]).bytes();
    ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
    for packet in [
        tcp(NODE_IP, 40_000, POD, 80, SYN).bytes(),
        tcp(OTHER_POD, 1, POD, 2, ACK).bytes(),
        echo(NODE_IP, POD, 8, 1).bytes(),
        raw(REMOTE_POD, POD, 17, vec![7; 32]).fragment(2).bytes(),
        ipv6,
        vec![0; 60],
    ] {
        dataplane.run(PROGRAM, &packet).is(Pass, &packet, &[]);
    }
}
