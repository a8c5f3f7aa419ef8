//! The nftables mode (`pkg/proxy/nftables/proxier.go`).

use std::{
    fmt::{self, Write as _},
    net::{Ipv4Addr, SocketAddrV4},
};

use super::{CLUSTER, SERVICES, ServicePort};

/// Marks what is to be masqueraded.
const MARK: &str = "0x4000";
/// How many clients a set of session affinity holds.
const AFFINE: u32 = 65_535;
/// What an element of a map is looked up by: an address, a protocol and a port, or the latter two.
const AT_ADDRESS: &str = "ipv4_addr . inet_proto . inet_service";
const AT_NODE: &str = "inet_proto . inet_service";
/// Refuses what it is sent.
const REJECT: &str = "goto reject-chain";

/// Chains that the kernel calls, and what they call. Filtering looks at what a client wrote: before its destination is translated, or where
/// nobody serves it and it stays untranslated.
const BASE: &str = "\
chain filter-prerouting-pre-dnat {
 type filter hook prerouting priority dstnat - 10; policy accept;
 ct state new jump firewall-check
}
chain filter-output-pre-dnat {
 type filter hook output priority -110; policy accept;
 ct state new jump firewall-check
}
chain filter-input {
 type filter hook input priority filter; policy accept;
 ct state new jump nodeport-endpoints-check
 ct state new jump service-endpoints-check
}
chain filter-forward {
 type filter hook forward priority filter; policy accept;
 ct state new jump service-endpoints-check
 ct state new jump cluster-ips-check
}
chain filter-output {
 type filter hook output priority filter; policy accept;
 ct state new jump service-endpoints-check
 ct state new jump cluster-ips-check
}
chain nat-prerouting {
 type nat hook prerouting priority dstnat; policy accept;
 jump services
}
chain nat-output {
 type nat hook output priority -100; policy accept;
 jump services
}
chain nat-postrouting {
 type nat hook postrouting priority srcnat; policy accept;
 jump masquerading
}
chain nodeport-endpoints-check {
 ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
}
chain service-endpoints-check {
 ip daddr . meta l4proto . th dport vmap @no-endpoint-services
}
chain firewall-check {
 ip daddr . meta l4proto . th dport vmap @firewall-ips
}
chain reject-chain {
 reject
}
";

/// The elements of all sets and maps, and the chains of Services.
#[derive(Default)]
struct Document {
    cluster_ips: Vec<String>,
    hairpins: Vec<String>,
    service_ips: Vec<String>,
    node_ports: Vec<String>,
    firewalls: Vec<String>,
    unserved_ips: Vec<String>,
    unserved_node_ports: Vec<String>,
    affinity: String,
    chains: String,
    /// Of these chains.
    names: Vec<String>,
}

/// All of the table, in place of what there is of it.
pub(super) fn document(node_ip: Ipv4Addr, ports: &[ServicePort]) -> String {
    let mut document = Document::default();
    for port in ports {
        document.frontends(port);
        document.service(port, node_ip);
    }
    document.cluster_ips.dedup();
    let Document {
        cluster_ips,
        hairpins,
        service_ips,
        node_ports,
        firewalls,
        unserved_ips,
        unserved_node_ports,
        affinity,
        chains,
        ..
    } = document;
    let sets = [
        ("set cluster-ips", "ipv4_addr", cluster_ips),
        ("set nodeport-ips", "ipv4_addr", vec![node_ip.to_string()]),
        ("set hairpin-connections", "ipv4_addr . ipv4_addr . inet_proto . inet_service", hairpins),
    ];
    let maps = [
        ("map service-ips", AT_ADDRESS, service_ips),
        ("map service-nodeports", AT_NODE, node_ports),
        ("map firewall-ips", AT_ADDRESS, firewalls),
        ("map no-endpoint-services", AT_ADDRESS, unserved_ips),
        ("map no-endpoint-nodeports", AT_NODE, unserved_node_ports),
    ];
    let sets = sets.into_iter().map(|(name, key, elements)| named(name, key, &elements));
    let maps = maps.into_iter().map(|(name, key, elements)| named(name, &format!("{key} : verdict"), &elements));
    let named: String = sets.chain(maps).collect();
    format!(
        "table ip kube-proxy\ndelete table ip kube-proxy\n\
         table ip kube-proxy {{\n\
         {named}{affinity}{BASE}\
         chain services {{\n \
         ip daddr @cluster-ips ip saddr != {CLUSTER} meta mark set meta mark or {MARK}\n \
         ip daddr . meta l4proto . th dport vmap @service-ips\n \
         ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports\n}}\n\
         chain masquerading {{\n \
         meta mark and {MARK} != 0 meta mark set meta mark xor {MARK} masquerade fully-random\n \
         ct status dnat ip saddr . ip daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random\n}}\n\
         chain cluster-ips-check {{\n ip daddr @cluster-ips reject\n ip daddr {SERVICES} drop\n}}\n\
         {chains}}}\n"
    )
}

/// What replaces the chains of some ports in the table that is there: one transaction. Their frontends and affinity stay as they are.
pub(super) fn change(node_ip: Ipv4Addr, ports: &[&ServicePort]) -> String {
    let mut document = Document::default();
    ports.iter().for_each(|port| document.service(port, node_ip));
    let Document { names, chains, .. } = document;
    let emptied = names.iter().fold(String::new(), |text, name| {
        text + &format!("add chain ip kube-proxy {name}\nflush chain ip kube-proxy {name}\n")
    });
    format!("{emptied}table ip kube-proxy {{\n{chains}}}\n")
}

/// A set or a map, which may be empty.
fn named(name: &str, key: &str, elements: &[String]) -> String {
    let elements = if elements.is_empty() { String::new() } else { format!(" elements = {{ {} }}\n", elements.join(",\n ")) };
    format!("{name} {{\n type {key}\n{elements}}}\n")
}

impl Document {
    /// What leads packets for a port to its chains.
    fn frontends(&mut self, port: &ServicePort) {
        let ServicePort { protocol, port: number, .. } = port;
        let at = |ip: Ipv4Addr| format!("{ip} . {protocol} . {number}");
        self.cluster_ips.push(port.cluster_ip.to_string());
        match unserved(port, port.internal_local) {
            None => self.service_ips.push(format!("{} : goto {}", at(port.cluster_ip), port.policy_chain(port.internal_local))),
            Some(verdict) => self.unserved_ips.push(format!("{} : {verdict}", at(port.cluster_ip))),
        }
        let external = format!("goto {}", port.nft_chain("external"));
        let unserved = unserved(port, port.external_local);
        for ip in port.external_ips.iter().chain(&port.load_balancer_ips) {
            if port.endpoints.any {
                self.service_ips.push(format!("{} : {external}", at(*ip)));
            }
            if let Some(verdict) = unserved {
                self.unserved_ips.push(format!("{} : {verdict}", at(*ip)));
            }
        }
        if !port.source_ranges.is_empty() {
            let firewall = port.nft_chain("firewall");
            self.firewalls.extend(port.load_balancer_ips.iter().map(|ip| format!("{} : goto {firewall}", at(*ip))));
        }
        if let Some(node_port) = port.node_port {
            let at = format!("{protocol} . {node_port}");
            if port.endpoints.any {
                self.node_ports.push(format!("{at} : {external}"));
            }
            if let Some(verdict) = unserved {
                self.unserved_node_ports.push(format!("{at} : {verdict}"));
            }
        }
    }

    /// The chains that lead from a port's frontends to its endpoints.
    fn service(&mut self, port: &ServicePort, node_ip: Ipv4Addr) {
        if port.endpoints.any && port.is_exposed() {
            self.external(port);
        }
        if !port.source_ranges.is_empty() && !port.load_balancer_ips.is_empty() {
            let mut sources: Vec<_> = port.source_ranges.iter().map(ToString::to_string).collect();
            // A node that may ask, may do so from that address too, for it may have it itself.
            if port.source_ranges.iter().any(|range| range.contains(&node_ip)) {
                sources.extend(port.load_balancer_ips.iter().map(ToString::to_string));
            }
            self.chain(&port.nft_chain("firewall"), format_args!(" ip saddr != {{ {} }} drop\n", sources.join(", ")));
        }
        for (is_local, endpoints) in [(false, &port.endpoints.cluster), (true, &port.endpoints.local)] {
            if !endpoints.is_empty() {
                self.choice(port, &port.policy_chain(is_local), endpoints);
            }
        }
        for endpoint in port.endpoints.all() {
            if port.endpoints.here.contains(&endpoint) {
                let (ip, number) = (endpoint.ip(), endpoint.port());
                self.hairpins.push(format!("{ip} . {ip} . {} . {number}", port.protocol));
            }
            if let Some(seconds) = port.affinity_secs {
                self.affine_endpoint(port, endpoint, seconds);
            }
        }
    }

    /// What comes from outside. Under the policy Local, pods and the node itself are served as if the policy were Cluster.
    fn external(&mut self, port: &ServicePort) {
        let cluster = port.policy_chain(false);
        let mut rules = if port.external_local {
            format!(
                " ip saddr {CLUSTER} goto {cluster}\n fib saddr type local meta mark set meta mark or {MARK}\n \
                 fib saddr type local goto {cluster}\n"
            )
        } else {
            format!(" meta mark set meta mark or {MARK}\n")
        };
        if unserved(port, port.external_local).is_none() {
            // A String takes whatever is written to it.
            let _ = writeln!(rules, " goto {}", port.policy_chain(port.external_local));
        }
        self.chain(&port.nft_chain("external"), format_args!("{rules}"));
    }

    /// A chain that chooses among endpoints; with session affinity by chains of theirs, in which a client is remembered.
    fn choice(&mut self, port: &ServicePort, chain: &str, endpoints: &[SocketAddrV4]) {
        let count = endpoints.len();
        let numbered = |what: &dyn Fn(SocketAddrV4) -> String| {
            let choices: Vec<_> = (0..).zip(endpoints).map(|(index, at)| format!("{index} : {}", what(*at))).collect();
            choices.join(", ")
        };
        if port.affinity_secs.is_none() {
            let choices = numbered(&|at| format!("{} . {}", at.ip(), at.port()));
            let protocol = port.protocol;
            self.chain(
                chain,
                format_args!(" meta l4proto {protocol} dnat ip to numgen random mod {count} map {{ {choices} }}\n"),
            );
            return;
        }
        let known: String = endpoints
            .iter()
            .map(|at| {
                format!(" ip saddr @{} goto {}\n", port.nft_endpoint("affinity", *at), port.nft_endpoint("endpoint", *at))
            })
            .collect();
        let choices = numbered(&|at| format!("goto {}", port.nft_endpoint("endpoint", at)));
        self.chain(chain, format_args!("{known} numgen random mod {count} vmap {{ {choices} }}\n"));
    }

    fn affine_endpoint(&mut self, port: &ServicePort, endpoint: SocketAddrV4, seconds: u32) {
        let (set, protocol) = (port.nft_endpoint("affinity", endpoint), port.protocol);
        let _ = writeln!(
            self.affinity,
            "set {set} {{\n type ipv4_addr\n size {AFFINE}\n flags dynamic,timeout\n timeout {seconds}s\n}}"
        );
        self.chain(
            &port.nft_endpoint("endpoint", endpoint),
            format_args!(" update @{set} {{ ip saddr }}\n meta l4proto {protocol} dnat to {endpoint}\n"),
        );
    }

    fn chain(&mut self, name: &str, rules: fmt::Arguments<'_>) {
        let _ = write!(self.chains, "chain {name} {{\n{rules}}}\n");
        self.names.push(name.to_owned());
    }
}

/// What becomes of packets for a port that nobody serves under one of its policies.
fn unserved(port: &ServicePort, is_local: bool) -> Option<&'static str> {
    port.nobody(is_local).map(|nobody| match nobody {
        super::port::Nobody::AtAll => REJECT,
        super::port::Nobody::Here => "drop",
    })
}
