//! The nftables mode (`pkg/proxy/nftables/proxier.go`), as far as ClusterIPs go.

use std::fmt::Write as _;

use super::{CLUSTER, ServicePort};

/// All of the table.
pub(super) fn document(ports: &[ServicePort]) -> String {
    let mut elements = Vec::new();
    let mut chains = String::new();
    for port in ports.iter().filter(|port| port.endpoints.any) {
        let ServicePort { protocol, cluster_ip, port: number, .. } = port;
        let service = port.chain("service");
        elements.push(format!("{cluster_ip} . {protocol} . {number} : goto {service}"));
        let endpoints = &port.endpoints.cluster;
        let name = |endpoint| port.endpoint_chain(endpoint).to_lowercase();
        let choices: Vec<_> =
            endpoints.iter().enumerate().map(|(index, endpoint)| format!("{index} : goto {}", name(*endpoint))).collect();
        for endpoint in endpoints {
            // A String takes whatever is written to it.
            let _ = writeln!(
                chains,
                "chain {} {{\n ip saddr {} jump mark-for-masquerade\n meta l4proto {protocol} dnat to {endpoint}\n}}",
                name(*endpoint),
                endpoint.ip()
            );
        }
        let _ = writeln!(
            chains,
            "chain {service} {{\n ip saddr != {CLUSTER} jump mark-for-masquerade\n numgen random mod {} vmap {{ {} }}\n}}",
            endpoints.len(),
            choices.join(", ")
        );
    }
    format!(
        "table ip kube-proxy {{\n chain mark-for-masquerade {{\n meta mark set meta mark or 0x4000\n}}\n\
         chain masquerading {{\n meta mark and 0x4000 == 0 return\n meta mark set meta mark xor 0x4000\n masquerade fully-random\n}}\n\
         {chains}\n\
         map service-ips {{\n type ipv4_addr . inet_proto . inet_service : verdict\n elements = {{ {} }}\n}}\n\
         chain services {{\n ip daddr . meta l4proto . th dport vmap @service-ips\n}}\n\
         chain nat-prerouting {{\n type nat hook prerouting priority dstnat; policy accept;\n jump services\n}}\n\
         chain nat-output {{\n type nat hook output priority -100; policy accept;\n jump services\n}}\n\
         chain nat-postrouting {{\n type nat hook postrouting priority srcnat; policy accept;\n jump masquerading\n}}\n}}\n",
        elements.join(", ")
    )
}
