//! Rules as flannel (pkg/trafficmngr/iptables) and kube-proxy (pkg/proxy/iptables, pkg/proxy/nftables) write them.

use std::{fmt::Write as _, net::SocketAddrV4};

use anyhow::{Result, bail};

use crate::{command, netns::Netns};

/// One port of a Service that kube-proxy serves.
#[derive(Clone, Debug)]
pub struct Proxied {
    /// What its chains are named by.
    pub name: String,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Virtual IP and port.
    pub vip: SocketAddrV4,
    /// Where it leads.
    pub endpoints: Vec<SocketAddrV4>,
}

/// Pods of the whole cluster.
const CLUSTER: &str = "10.244.0.0/16";

/// flannel's masquerading and forwarding.
pub(crate) fn masquerade(netns: &Netns, own: &str) -> Result<()> {
    let comment = "-m comment --comment \"flanneld masq\"";
    let rules = format!(
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
    restore(netns, "iptables-restore", &rules)
}

/// kube-proxy's iptables mode, with a chain of kubelet's beside it.
pub(crate) fn iptables(netns: &Netns, services: &[Proxied], program: &str) -> Result<()> {
    let mut nat = String::from(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
         :KUBE-PROXY-CANARY - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n",
    );
    let mut rules = String::from(
        "-I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -I OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -I POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n",
    );
    for service in services {
        let Proxied { name, protocol, vip, endpoints } = service;
        let to = format!("-d {}/32 -p {protocol} -m {protocol} --dport {}", vip.ip(), vip.port());
        let _ = writeln!(nat, ":KUBE-SVC-{name} - [0:0]");
        let _ = writeln!(rules, "-A KUBE-SERVICES {to} -m comment --comment \"default/{name} cluster IP\" -j KUBE-SVC-{name}");
        let _ = writeln!(rules, "-A KUBE-SVC-{name} ! -s {CLUSTER} {to} -j KUBE-MARK-MASQ");
        for (index, endpoint) in endpoints.iter().enumerate() {
            let left = endpoints.len() - index;
            let chance = if left > 1 {
                format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64)
            } else {
                String::new()
            };
            let _ = writeln!(nat, ":KUBE-SEP-{name}{index} - [0:0]");
            let _ = writeln!(rules, "-A KUBE-SVC-{name} {chance}-j KUBE-SEP-{name}{index}");
            let _ = writeln!(rules, "-A KUBE-SEP-{name}{index} -s {}/32 -j KUBE-MARK-MASQ", endpoint.ip());
            let _ = writeln!(
                rules,
                "-A KUBE-SEP-{name}{index} -p {protocol} -m comment --comment default/{name} -m {protocol} -j DNAT --to-destination {endpoint}"
            );
        }
    }
    let filter = "*filter\n:KUBE-FORWARD - [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-FIREWALL - [0:0]\n\
        -I FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
        -I FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
        -I OUTPUT -j KUBE-FIREWALL\n\
        -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
        -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
        -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
        -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\nCOMMIT\n";
    restore(netns, program, &format!("{nat}{rules}COMMIT\n{filter}"))
}

fn restore(netns: &Netns, program: &str, rules: &str) -> Result<()> {
    let output = command::run_with_input(netns.command(program).args(["--noflush", "-w"]), rules.as_bytes())?;
    if !output.status.success() {
        bail!("{program} refused: {}\n{rules}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// kube-proxy's nftables mode.
pub(crate) fn nftables(netns: &Netns, services: &[Proxied]) -> Result<()> {
    let mut elements = Vec::new();
    let mut chains = String::new();
    for Proxied { name, protocol, vip, endpoints } in services {
        elements.push(format!("{} . {protocol} . {} : goto service-{name}", vip.ip(), vip.port()));
        let choices: Vec<_> = (0..endpoints.len()).map(|index| format!("{index} : goto endpoint-{name}-{index}")).collect();
        for (index, endpoint) in endpoints.iter().enumerate() {
            let _ = writeln!(
                chains,
                "chain endpoint-{name}-{index} {{\n ip saddr {} jump mark-for-masquerade\n meta l4proto {protocol} dnat to {endpoint}\n}}",
                endpoint.ip()
            );
        }
        let _ = writeln!(
            chains,
            "chain service-{name} {{\n ip saddr != {CLUSTER} jump mark-for-masquerade\n numgen random mod {} vmap {{ {} }}\n}}",
            endpoints.len(),
            choices.join(", ")
        );
    }
    let rules = format!(
        "table ip kube-proxy {{\n chain mark-for-masquerade {{\n meta mark set meta mark or 0x4000\n}}\n\
         chain masquerading {{\n meta mark and 0x4000 == 0 return\n meta mark set meta mark xor 0x4000\n masquerade fully-random\n}}\n\
         {chains}\n\
         map service-ips {{\n type ipv4_addr . inet_proto . inet_service : verdict\n elements = {{ {} }}\n}}\n\
         chain services {{\n ip daddr . meta l4proto . th dport vmap @service-ips\n}}\n\
         chain nat-prerouting {{\n type nat hook prerouting priority dstnat; policy accept;\n jump services\n}}\n\
         chain nat-output {{\n type nat hook output priority -100; policy accept;\n jump services\n}}\n\
         chain nat-postrouting {{\n type nat hook postrouting priority srcnat; policy accept;\n jump masquerading\n}}\n}}\n",
        elements.join(", ")
    );
    let output = command::run_with_input(netns.command("nft").args(["-f", "-"]), rules.as_bytes())?;
    if !output.status.success() {
        bail!("nft refused: {}\n{rules}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
