//! The iptables mode (`pkg/proxy/iptables/proxier.go`).

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    net::{Ipv4Addr, SocketAddrV4},
};

use super::{CLUSTER, ServicePort, port::Nobody};

/// With more endpoints than this, kube-proxy leaves out comments at endpoints.
const LARGE: usize = 1000;
/// Marks what is to be masqueraded.
const MARK: &str = "0x4000";

/// Ways from the built-in chains into kube-proxy's, and the chain by which it sees that somebody has flushed the rules. Given once: each is
/// put in front of what there is, so that the last comes first.
pub(super) const JUMPS: &str = "\
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-I INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-I FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-I INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-I FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-I INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-I OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-I FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
COMMIT
*nat
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SERVICES - [0:0]
-I OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
COMMIT
*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
";

/// In the table `filter`.
impl Nobody {
    fn target(self) -> &'static str {
        match self {
            Self::AtAll => "REJECT",
            Self::Here => "DROP",
        }
    }

    fn comment(self) -> &'static str {
        match self {
            Self::AtAll => "has no endpoints",
            Self::Here => "has no local endpoints",
        }
    }
}

/// Lines of one table.
#[derive(Default)]
struct Table {
    chains: String,
    rules: String,
}

impl Table {
    fn chain(&mut self, name: &str) {
        // A String takes whatever is written to it.
        let _ = writeln!(self.chains, ":{name} - [0:0]");
    }

    fn rule(&mut self, chain: &str, rule: fmt::Arguments<'_>) {
        let _ = writeln!(self.rules, "-A {chain} {rule}");
    }
}

struct Document {
    nat: Table,
    filter: Table,
    with_comments: bool,
}

/// All rules, for a node of this address; chains of a port only where `is_written`.
pub(super) fn document(node_ip: Ipv4Addr, ports: &[ServicePort], is_written: impl Fn(&ServicePort) -> bool) -> String {
    let endpoints: usize = ports.iter().map(|port| port.endpoints.cluster.len().max(port.endpoints.local.len())).sum();
    let mut document = Document { nat: Table::default(), filter: Table::default(), with_comments: endpoints <= LARGE };
    document.begin();
    for port in ports {
        document.frontends(port);
        if is_written(port) {
            document.service(port, node_ip);
        }
    }
    document.end(node_ip);
    let Document { nat, filter, .. } = document;
    format!("*filter\n{}{}COMMIT\n*nat\n{}{}COMMIT\n", filter.chains, filter.rules, nat.chains, nat.rules)
}

/// The tables of two documents of `iptables-save`, rules of the second behind those of the first.
pub(super) fn merged(first: &str, second: &str) -> String {
    let mut tables: BTreeMap<&str, (BTreeMap<&str, &str>, String)> = BTreeMap::new();
    let mut table = "";
    for line in first.lines().chain(second.lines()).filter(|line| !line.starts_with('#') && *line != "COMMIT") {
        if line.starts_with('*') {
            table = line;
        }
        let (chains, rules) = tables.entry(table).or_default();
        match line.strip_prefix(':').and_then(|chain| chain.split_once(' ')) {
            Some((chain, policy)) => drop(chains.entry(chain).or_insert(policy)),
            None if line.starts_with('-') => *rules = std::mem::take(rules) + line + "\n",
            None => {}
        }
    }
    let table = |(name, (chains, rules)): (&&str, &(BTreeMap<&str, &str>, String))| {
        let chains: String = chains.iter().map(|(chain, policy)| format!(":{chain} {policy}\n")).collect();
        format!("{name}\n{chains}{rules}COMMIT\n")
    };
    tables.iter().map(table).collect()
}

impl Document {
    fn begin(&mut self) {
        for chain in ["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-FORWARD", "KUBE-NODEPORTS", "KUBE-PROXY-FIREWALL"] {
            self.filter.chain(chain);
        }
        for chain in ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"] {
            self.nat.chain(chain);
        }
        let chain = "KUBE-POSTROUTING";
        self.nat.rule(chain, format_args!("-m mark ! --mark {MARK}/{MARK} -j RETURN"));
        self.nat.rule(chain, format_args!("-j MARK --xor-mark {MARK}"));
        let comment = "kubernetes service traffic requiring SNAT";
        self.nat.rule(chain, format_args!("-m comment --comment \"{comment}\" -j MASQUERADE --random-fully"));
        self.nat.rule("KUBE-MARK-MASQ", format_args!("-j MARK --or-mark {MARK}"));
    }

    /// Node ports come last, and at the node's primary address alone (`nodePortAddresses: primary`).
    fn end(&mut self, node_ip: Ipv4Addr) {
        let comment = "kubernetes service nodeports; NOTE: this must be the last rule in this chain";
        self.nat.rule("KUBE-SERVICES", format_args!("-m comment --comment \"{comment}\" -d {node_ip}/32 -j KUBE-NODEPORTS"));
        let chain = "KUBE-FORWARD";
        self.filter.rule(chain, format_args!("-m conntrack --ctstate INVALID -j DROP"));
        let comment = "kubernetes forwarding rules";
        self.filter.rule(chain, format_args!("-m comment --comment \"{comment}\" -m mark --mark {MARK}/{MARK} -j ACCEPT"));
        let comment = "kubernetes forwarding conntrack rule";
        self.filter.rule(
            chain,
            format_args!("-m comment --comment \"{comment}\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        );
    }

    /// The rules that catch packets for a port.
    fn frontends(&mut self, port: &ServicePort) {
        let ServicePort { name, protocol, port: number, .. } = port;
        let at = |ip: Ipv4Addr| format!("-m {protocol} -p {protocol} -d {ip}/32 --dport {number}");
        let external = port.chain("KUBE-EXT");
        match port.nobody(port.internal_local) {
            None => {
                let (to, chain) = (at(port.cluster_ip), port.internal_chain());
                self.nat.rule("KUBE-SERVICES", format_args!("-m comment --comment \"{name} cluster IP\" {to} -j {chain}"));
            }
            Some(nobody) => self.unserved("KUBE-SERVICES", port, nobody, &at(port.cluster_ip)),
        }
        let nobody = port.nobody(port.external_local);
        let balanced = if port.is_limited() { port.chain("KUBE-FW") } else { external.clone() };
        let ways = [("external IP", &port.external_ips, &external), ("loadbalancer IP", &port.load_balancer_ips, &balanced)];
        for (what, ips, chain) in ways {
            for ip in ips {
                let to = at(*ip);
                if port.endpoints.any {
                    self.nat.rule("KUBE-SERVICES", format_args!("-m comment --comment \"{name} {what}\" {to} -j {chain}"));
                }
                if let Some(nobody) = nobody {
                    self.unserved("KUBE-EXTERNAL-SERVICES", port, nobody, &to);
                }
            }
        }
        if port.is_limited() {
            // What the Service's own chain let through has another destination by now.
            for ip in &port.load_balancer_ips {
                let (to, comment) = (at(*ip), format!("{name} traffic not accepted by {balanced}"));
                self.filter.rule("KUBE-PROXY-FIREWALL", format_args!("-m comment --comment \"{comment}\" {to} -j DROP"));
            }
        }
        if let Some(node_port) = port.node_port {
            let to = format!("-m {protocol} -p {protocol} --dport {node_port}");
            if port.endpoints.any {
                self.nat.rule("KUBE-NODEPORTS", format_args!("-m comment --comment {name} {to} -j {external}"));
            }
            if let Some(nobody) = nobody {
                self.unserved("KUBE-EXTERNAL-SERVICES", port, nobody, &format!("-m addrtype --dst-type LOCAL {to}"));
            }
        }
        if let Some(health) = port.health_check_port {
            self.filter.rule(
                "KUBE-NODEPORTS",
                format_args!("-m comment --comment \"{name} health check node port\" -m tcp -p tcp --dport {health} -j ACCEPT"),
            );
        }
    }

    fn unserved(&mut self, chain: &str, port: &ServicePort, nobody: Nobody, to: &str) {
        let (name, comment, target) = (&port.name, nobody.comment(), nobody.target());
        self.filter.rule(chain, format_args!("-m comment --comment \"{name} {comment}\" {to} -j {target}"));
    }

    /// The chains that lead from a port's frontends to its endpoints.
    fn service(&mut self, port: &ServicePort, node_ip: Ipv4Addr) {
        let ServicePort { name, protocol, cluster_ip, port: number, .. } = port;
        if port.nobody(port.internal_local).is_none() {
            let comment = format!("{name} cluster IP");
            self.nat.rule(
                &port.internal_chain(),
                format_args!(
                    "-m comment --comment \"{comment}\" -m {protocol} -p {protocol} -d {cluster_ip}/32 --dport {number} ! -s {CLUSTER} \
                     -j KUBE-MARK-MASQ"
                ),
            );
        }
        if port.endpoints.any && port.is_exposed() {
            self.external(port);
        }
        if port.is_limited() {
            self.firewall(port, node_ip);
        }
        for (prefix, endpoints) in [("KUBE-SVC", &port.endpoints.cluster), ("KUBE-SVL", &port.endpoints.local)] {
            if !endpoints.is_empty() {
                self.choice(port, &port.chain(prefix), endpoints);
            }
        }
        for endpoint in port.endpoints.all() {
            self.endpoint(port, endpoint);
        }
    }

    /// What comes from outside. Under the policy Local, pods and the node itself are served as if the policy were Cluster.
    fn external(&mut self, port: &ServicePort) {
        let (name, chain) = (&port.name, port.chain("KUBE-EXT"));
        self.nat.chain(&chain);
        if port.external_local {
            let cluster = port.chain("KUBE-SVC");
            let of_pods = format!("pod traffic for {name} external destinations");
            let masquerade = format!("masquerade LOCAL traffic for {name} external destinations");
            let route = format!("route LOCAL traffic for {name} external destinations");
            self.nat.rule(&chain, format_args!("-m comment --comment \"{of_pods}\" -s {CLUSTER} -j {cluster}"));
            self.nat.rule(
                &chain,
                format_args!("-m comment --comment \"{masquerade}\" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"),
            );
            self.nat.rule(&chain, format_args!("-m comment --comment \"{route}\" -m addrtype --src-type LOCAL -j {cluster}"));
        } else {
            let masquerade = format!("masquerade traffic for {name} external destinations");
            self.nat.rule(&chain, format_args!("-m comment --comment \"{masquerade}\" -j KUBE-MARK-MASQ"));
        }
        if port.nobody(port.external_local).is_none() {
            let policy = port.chain(if port.external_local { "KUBE-SVL" } else { "KUBE-SVC" });
            self.nat.rule(&chain, format_args!("-j {policy}"));
        }
    }

    /// Who may ask at a load balancer's address. A node that may, may do so from that address too, for it may have it itself.
    fn firewall(&mut self, port: &ServicePort, node_ip: Ipv4Addr) {
        let (name, chain, external) = (&port.name, port.chain("KUBE-FW"), port.chain("KUBE-EXT"));
        self.nat.chain(&chain);
        let comment = format!("{name} loadbalancer IP");
        for range in &port.source_ranges {
            self.nat.rule(&chain, format_args!("-m comment --comment \"{comment}\" -s {range} -j {external}"));
        }
        if port.source_ranges.iter().any(|range| range.contains(&node_ip)) {
            for ip in &port.load_balancer_ips {
                self.nat.rule(&chain, format_args!("-m comment --comment \"{comment}\" -s {ip}/32 -j {external}"));
            }
        }
        let comment = format!("other traffic to {name} will be dropped by KUBE-PROXY-FIREWALL");
        self.nat.rule(&chain, format_args!("-m comment --comment \"{comment}\""));
    }

    /// A chain that chooses among endpoints.
    fn choice(&mut self, port: &ServicePort, chain: &str, endpoints: &[SocketAddrV4]) {
        self.nat.chain(chain);
        if let Some(seconds) = port.affinity_secs {
            for endpoint in endpoints {
                let (comment, to) = (self.comment(port, Some(*endpoint)), port.endpoint_chain(*endpoint));
                self.nat
                    .rule(chain, format_args!("{comment}-m recent --name {to} --rcheck --seconds {seconds} --reap -j {to}"));
            }
        }
        for (index, endpoint) in endpoints.iter().enumerate() {
            let (comment, to) = (self.comment(port, Some(*endpoint)), port.endpoint_chain(*endpoint));
            match endpoints.len() - index {
                1 => self.nat.rule(chain, format_args!("{comment}-j {to}")),
                left => {
                    let chance = 1.0 / left as f64;
                    self.nat
                        .rule(chain, format_args!("{comment}-m statistic --mode random --probability {chance:.10} -j {to}"));
                }
            }
        }
    }

    /// The chain of one endpoint: its own packets are masqueraded, or it would answer itself directly.
    fn endpoint(&mut self, port: &ServicePort, endpoint: SocketAddrV4) {
        let (chain, protocol, comment) = (port.endpoint_chain(endpoint), port.protocol, self.comment(port, None));
        self.nat.chain(&chain);
        self.nat.rule(&chain, format_args!("{comment}-s {}/32 -j KUBE-MARK-MASQ", endpoint.ip()));
        let remember = match port.affinity_secs {
            Some(_) => format!("-m recent --name {chain} --set "),
            None => String::new(),
        };
        self.nat
            .rule(&chain, format_args!("{comment}{remember}-m {protocol} -p {protocol} -j DNAT --to-destination {endpoint}"));
    }

    /// With a space behind it, or nothing in a large cluster.
    fn comment(&self, port: &ServicePort, endpoint: Option<SocketAddrV4>) -> String {
        match endpoint {
            _ if !self.with_comments => String::new(),
            None => format!("-m comment --comment {} ", port.name),
            Some(endpoint) => format!("-m comment --comment \"{} -> {endpoint}\" ", port.name),
        }
    }
}

impl ServicePort {
    fn internal_chain(&self) -> String {
        self.chain(if self.internal_local { "KUBE-SVL" } else { "KUBE-SVC" })
    }

    /// Whether somebody has to be kept from a load balancer's address.
    fn is_limited(&self) -> bool {
        self.endpoints.any && !self.load_balancer_ips.is_empty() && !self.source_ranges.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_what_there_was_in_front() {
        let first = "# made by hand\n*nat\n:PREROUTING ACCEPT [1:2]\n:B - [0:0]\n-A PREROUTING -j B\nCOMMIT\n*mangle\n:INPUT ACCEPT [0:0]\nCOMMIT\n";
        let second = "*nat\n:B - [0:0]\n:A - [0:0]\n-A B -j A\nCOMMIT\n";
        let nat = "*nat\n:A - [0:0]\n:B - [0:0]\n:PREROUTING ACCEPT [1:2]\n-A PREROUTING -j B\n-A B -j A\nCOMMIT\n";
        assert_eq!(merged(first, second), format!("*mangle\n:INPUT ACCEPT [0:0]\nCOMMIT\n{nat}"));
    }
}
