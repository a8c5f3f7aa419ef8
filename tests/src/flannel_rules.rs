//! Rules as flannel (pkg/trafficmngr/iptables) and kubelet (pkg/kubelet/kubelet_network_linux.go) write them.

use anyhow::Result;

use crate::{
    kube_proxy::{CLUSTER, RESTORE, restore},
    netns::Netns,
};

/// flannel's masquerading and forwarding; `own` is the node's pod range.
pub(crate) fn write(netns: &Netns, own: &str) -> Result<()> {
    let comment = "-m comment --comment \"flanneld masq\"";
    let flannel = format!(
        "*nat\n:FLANNEL-POSTRTG - [0:0]\n\
         -A POSTROUTING {comment} -j FLANNEL-POSTRTG\n\
         -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {comment} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {own} -d {CLUSTER} {comment} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {CLUSTER} -d {own} {comment} -j RETURN\n\
         -A FLANNEL-POSTRTG ! -s {CLUSTER} -d {own} {comment} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {CLUSTER} ! -d 224.0.0.0/4 {comment} -j MASQUERADE --random-fully\n\
         -A FLANNEL-POSTRTG ! -s {CLUSTER} -d {CLUSTER} {comment} -j MASQUERADE --random-fully\n\
         COMMIT\n*filter\n:FLANNEL-FWD - [0:0]\n\
         -A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n\
         -A FLANNEL-FWD -s {CLUSTER} -j ACCEPT\n\
         -A FLANNEL-FWD -d {CLUSTER} -j ACCEPT\nCOMMIT\n"
    );
    restore(netns, RESTORE, &flannel)
}

/// kubelet's chains, in the tables that a program writes.
pub(crate) fn kubelet(netns: &Netns, program: &str) -> Result<()> {
    let kubelet = "*nat\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n*filter\n:KUBE-FIREWALL - [0:0]\n\
        -I INPUT -j KUBE-FIREWALL\n\
        -I OUTPUT -j KUBE-FIREWALL\n\
        -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" \
        -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\nCOMMIT\n";
    restore(netns, program, kubelet)
}
