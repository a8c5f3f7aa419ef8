//! Whose a port of the node is: one pod's at each address and protocol.

use std::collections::BTreeMap;

use super::IpamError;
use crate::{
    attachment::{AttachmentKey, Pod, PodIdentity, PortMapping},
    socket::protocol::PodAdd,
};

/// Whether the ports that are asked for are nobody else's.
///
/// # Errors
/// One is.
pub(super) fn check(pods: &BTreeMap<AttachmentKey, Pod>, request: &PodAdd) -> Result<(), IpamError> {
    let is_own = |pod: &Pod| pod.attachment == request.attachment || is_former(pod, &request.attachment, &request.pod);
    for pod in pods.values().filter(|pod| !is_own(pod)) {
        let clash = |wanted: &PortMapping| Some((*wanted, *pod.port_mappings.iter().find(|held| held.overlaps(wanted))?));
        if let Some((wanted, held)) = request.port_mappings.iter().find_map(clash) {
            return Err(IpamError::PortTaken { wanted, held, holder: format!("pod {}", pod.title()) });
        }
    }
    Ok(())
}

/// Where a sandbox died and was made anew before the runtime said that it is gone, the ports are the new one's.
pub(super) fn take_over(pods: &mut BTreeMap<AttachmentKey, Pod>, pod: &Pod) {
    for former in pods.values_mut().filter(|other| is_former(other, &pod.attachment, &pod.pod)) {
        former.port_mappings.retain(|held| !pod.port_mappings.iter().any(|mapping| mapping.overlaps(held)));
    }
}

/// Whether a record is of another sandbox of the pod whose attachment this is.
fn is_former(record: &Pod, attachment: &AttachmentKey, pod: &PodIdentity) -> bool {
    record.attachment.container_id != attachment.container_id && record.pod.is_same_pod(pod)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{ipam::book::Book, model::Protocol};

    fn request(id: &str) -> PodAdd {
        PodAdd {
            attachment: AttachmentKey::new(id, "eth0").unwrap(),
            network: "shunt".to_owned(),
            netns: "/run/netns/x".into(),
            pod: PodIdentity::default(),
            port_mappings: vec![],
        }
    }

    /// `HOST_PORT->CONTAINER_PORT` with an address in front of it or none.
    fn mapping(host_ip: Option<&str>, host_port: u16, protocol: Protocol, container_port: u16) -> PortMapping {
        PortMapping {
            host_port: host_port.try_into().unwrap(),
            protocol,
            host_ip: host_ip.map(|text| text.parse().unwrap()),
            container_port: container_port.try_into().unwrap(),
        }
    }

    fn give_ports(book: &mut Book, id: &str, pod: &str, port_mappings: Vec<PortMapping>) -> Result<Pod, IpamError> {
        let identity = PodIdentity { namespace: "default".to_owned(), name: pod.to_owned(), uid: String::new() };
        let request = PodAdd { pod: identity, port_mappings, ..request(id) };
        book.allocate(&request, Some("10.1.0.0/24".parse().unwrap()), |_| false, Duration::ZERO)
    }

    #[test]
    fn a_port_of_the_node_is_one_pods_by_protocol_and_address() {
        use Protocol::{Tcp, Udp};
        let mut book = Book::default();
        let first = vec![mapping(None, 80, Tcp, 8080), mapping(Some("192.0.2.1"), 53, Udp, 53)];
        assert_eq!(give_ports(&mut book, "a", "a", first.clone()).unwrap().port_mappings, first);
        for free in [
            mapping(None, 81, Tcp, 8080),
            mapping(None, 80, Udp, 8080),
            mapping(Some("192.0.2.2"), 53, Udp, 53),
            mapping(Some("127.0.0.1"), 53, Udp, 53),
        ] {
            let id = format!("b{free}").replace(|c: char| !c.is_ascii_alphanumeric(), "_");
            give_ports(&mut book, &id, &id, vec![free]).unwrap();
        }
        let before = book.clone();
        for (taken, held) in [
            (mapping(None, 80, Tcp, 9090), "80->8080/TCP"),
            (mapping(Some("192.0.2.9"), 80, Tcp, 8080), "80->8080/TCP"),
            (mapping(Some("192.0.2.1"), 53, Udp, 53), "192.0.2.1:53->53/UDP"),
        ] {
            let error = give_ports(&mut book, "c", "c", vec![mapping(None, 7, Tcp, 7), taken]).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(&format!("the hostPort {taken} cannot be given: {held} is pod default/a's")), "{text}");
            assert_eq!(book, before, "nothing else was given either");
        }
        // An ADD that is repeated may say otherwise, and a pod that is gone holds nothing.
        assert_eq!(give_ports(&mut book, "a", "a", vec![]).unwrap().port_mappings, []);
        give_ports(&mut book, "c", "c", first.clone()).unwrap();
        book.release(&request("c").attachment, Duration::ZERO).unwrap();
        give_ports(&mut book, "d", "d", first).unwrap();
    }

    #[test]
    fn a_new_sandbox_of_a_pod_takes_its_ports_over() {
        let mut book = Book::default();
        let (kept, moved) = (mapping(None, 81, Protocol::Tcp, 81), mapping(None, 80, Protocol::Tcp, 80));
        give_ports(&mut book, "old", "web", vec![moved, kept]).unwrap();
        give_ports(&mut book, "new", "web", vec![moved]).unwrap();
        let of = |id: &str| book.pods()[&request(id).attachment].port_mappings.clone();
        assert_eq!((of("old"), of("new")), (vec![kept], vec![moved]));
        // Another interface of one sandbox is no other sandbox.
        let second = AttachmentKey::new("new", "eth1").unwrap();
        let request = PodAdd { attachment: second, port_mappings: vec![moved], ..request("web") };
        let error = book.allocate(&request, Some("10.1.0.0/24".parse().unwrap()), |_| false, Duration::ZERO).unwrap_err();
        assert!(matches!(error, IpamError::PortTaken { .. }), "{error}");
    }

    #[test]
    fn records_of_before_there_were_ports_are_read() {
        let mut book = Book::default();
        give_ports(&mut book, "a", "a", vec![]).unwrap();
        let text = book.to_json().unwrap();
        assert!(!String::from_utf8_lossy(&text).contains("portMappings"), "they look as they did");
        assert_eq!(Book::from_json(&text).unwrap(), book);
        give_ports(&mut book, "b", "b", vec![mapping(Some("127.0.0.1"), 53, Protocol::Sctp, 53)]).unwrap();
        assert_eq!(Book::from_json(&book.to_json().unwrap()).unwrap(), book);
    }
}
