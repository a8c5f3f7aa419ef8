//! Whose sockets are given a backend when they are connected: the map `CLIENTS`. It alone remembers a pod's cookie, which the kernel gives anew
//! with every boot, as it does the map.

use std::net::Ipv4Addr;

use shunt_common::{
    connect::{Client, kind},
    net::{Ip4, V4},
};

use crate::{
    attachment::Pod,
    kernel::{
        netns,
        table::{Table, TableError},
    },
};

type Clients = Table<u64, Client<V4>>;

/// Enters this node's own processes, and lets those go that are no pods of it any more. A pod that is not known by its cookie is looked for
/// by its path, which takes a privilege that the agent may not have.
pub(super) fn restore<'a>(clients: &Clients, node_ip: Ipv4Addr, pods: impl Iterator<Item = &'a Pod>) -> Result<(), TableError> {
    let mut unknown: Vec<&Pod> = pods.collect();
    let own = netns::own_cookie().ok();
    for (cookie, client) in clients.entries()? {
        let pod = unknown.iter().position(|pod| client.kind == kind::POD && Ip4::from(pod.address) == client.addr);
        match pod {
            Some(pod) => drop(unknown.swap_remove(pod)),
            None if Some(cookie) == own => {}
            None => drop(clients.delete(&cookie)?),
        }
    }
    if let Some(cookie) = own {
        let host = Client { kind: kind::HOST, addr: node_ip.into() };
        clients.put(&cookie, &host, || "this node".to_owned())?;
    }
    unknown.into_iter().try_for_each(|pod| enter(clients, pod, None))
}

/// Enters a pod; a cookie that was not told is looked for by the pod's path. Without one its connections are translated packet by packet.
pub(super) fn enter(clients: &Clients, pod: &Pod, cookie: Option<u64>) -> Result<(), TableError> {
    let known = || netns::cookie_at(&pod.netns).ok().filter(|cookie| netns::own_cookie().ok() != Some(*cookie));
    let Some(cookie) = cookie.or_else(known) else { return Ok(()) };
    forget(clients, pod)?;
    let client = Client { kind: kind::POD, addr: pod.address.into() };
    match clients.put(&cookie, &client, || format!("pod {}", pod.attachment)) {
        Err(error @ TableError::Full { .. }) => {
            tracing::warn!(%error, "the pod's connections to Services are translated packet by packet");
            Ok(())
        }
        outcome => outcome,
    }
}

/// Lets a pod go.
pub(super) fn forget(clients: &Clients, pod: &Pod) -> Result<(), TableError> {
    let is_its = |client: &Client<V4>| client.kind == kind::POD && client.addr == Ip4::from(pod.address);
    for (cookie, _) in clients.entries()?.into_iter().filter(|(_, client)| is_its(client)) {
        clients.delete(&cookie)?;
    }
    Ok(())
}

/// How many pods are in it.
pub(super) fn pods(clients: &Clients) -> Result<u64, TableError> {
    Ok(clients.entries()?.iter().filter(|(_, client)| client.kind == kind::POD).count() as u64)
}
