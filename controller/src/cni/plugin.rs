//! The commands: what each asks of the agent and does in the pod.

use std::time::Duration;

use super::{
    environment::{Command, Environment},
    netns::{Netns, NetnsError},
    pod_link::{self, Expected, LinkError},
    protocol::{AddResult, CniError, NetworkConfig, SpecVersion, code, versions},
};
use crate::{
    attachment::AttachmentKey,
    kernel::netns::own_cookie,
    socket::{
        client::{Client, ClientError},
        protocol::{PodAdd, PodAdded, PodAttach, PodCheck, PodDelete, PodGc, RefusalReason},
    },
};

/// For one answer of the agent: below the runtime's own patience, so that its caller learns why.
const PATIENCE: Duration = Duration::from_secs(30);

/// Carries a command out; the text, if any, is for standard output.
pub(super) fn run(environment: &Environment, config: &[u8]) -> Result<Option<String>, CniError> {
    if environment.command == Command::Version {
        return Ok(Some(versions(SpecVersion::of(config))));
    }
    let config = match environment.command {
        Command::Del => NetworkConfig::parse_for_removal(config)?,
        _ => NetworkConfig::parse(config)?,
    };
    let since = match environment.command {
        Command::Check => SpecVersion::V0_4_0,
        Command::Gc | Command::Status => SpecVersion::V1_1_0,
        Command::Add | Command::Del | Command::Version => SpecVersion::V0_3_1,
    };
    if config.version < since {
        let msg = format!("this command exists since CNI {since}, and `cniVersion` is {}", config.version);
        return Err(CniError::new(code::VERSION, msg));
    }
    match environment.command {
        Command::Add => add(environment, &config).map(Some),
        Command::Del => del(environment, &config).map(|()| None),
        Command::Check => check(environment, &config).map(|()| None),
        Command::Gc => gc(&config).map(|()| None),
        Command::Status => status(&config).map(|()| None),
        Command::Version => Ok(None),
    }
}

fn add(environment: &Environment, config: &NetworkConfig) -> Result<String, CniError> {
    if config.prev_result.is_some() {
        let error = CniError::new(
            code::CONFIG,
            "`prevResult` is set: shunt makes the pod's interface, so it must be the chain's first",
        );
        return Err(error.with_details("put shunt first in `plugins`; others may follow it"));
    }
    let attachment = environment.attachment()?;
    let ifname = attachment.ifname.as_str();
    let path = environment.netns()?;
    let netns = Netns::open(path)?;
    let node = Netns::own()?;
    // Before anything is asked for: undoing a second ADD would take the first one's pod away.
    if netns.run(async |handle| pod_link::exists(&handle, ifname).await)?? {
        return Err(CniError::new(code::INTERFACE_EXISTS, format!("the pod already has an interface {ifname}")));
    }
    let mut client = connect(config)?;
    let added = client.pod_add(PodAdd {
        attachment: attachment.clone(),
        network: config.name.clone(),
        netns: path.clone(),
        pod: environment.pod.clone(),
        port_mappings: config.port_mappings.clone(),
    })?;
    if let Err(error) = build(&netns, &node, ifname, &added) {
        undo(config, attachment);
        return Err(error);
    }
    // Without it the pod is served all the same.
    let netns_cookie = netns.run(async |_| own_cookie()).ok().and_then(Result::ok);
    if let Err(error) = client.pod_attach(PodAttach { attachment: attachment.clone(), netns_cookie }) {
        if let Err(error) = remove(&netns, ifname) {
            eprintln!("shunt: after a failed attach: {error}");
        }
        undo(config, attachment);
        return Err(error.into());
    }
    let result = AddResult {
        host_interface: added.host_interface,
        host_mac: added.host_mac,
        ifname: ifname.to_owned(),
        pod_mac: added.pod_mac,
        sandbox: path.display().to_string(),
        mtu: added.mtu,
        address: added.address,
        gateway: added.gateway,
        dns: config.dns.clone(),
    };
    Ok(result.to_json(config.version))
}

fn build(netns: &Netns, node: &Netns, ifname: &str, added: &PodAdded) -> Result<(), CniError> {
    Ok(netns.run(async |handle| pod_link::create(&handle, ifname, added, node.file()).await)??)
}

fn remove(netns: &Netns, ifname: &str) -> Result<(), CniError> {
    Ok(netns.run(async |handle| pod_link::delete(&handle, ifname).await)??)
}

/// Gives back what the agent gave. If even that fails, the runtime's DEL or GC does it.
fn undo(config: &NetworkConfig, attachment: &AttachmentKey) {
    let undone = connect(config).and_then(|mut client| Ok(client.pod_delete(PodDelete { attachment: attachment.clone() })?));
    if let Err(error) = undone {
        eprintln!("shunt: after a failed ADD of {attachment}: {error}");
    }
}

/// The agent removes the pair from the host's end, so that the pod's namespace may be gone already. An agent that cannot be
/// reached is an error that asks for another try: else the address would be lost until a GC.
fn del(environment: &Environment, config: &NetworkConfig) -> Result<(), CniError> {
    let attachment = environment.attachment()?;
    match connect(config)?.pod_delete(PodDelete { attachment: attachment.clone() }) {
        Err(ClientError::Refused(refusal)) if refusal.reason == RefusalReason::Unknown => Ok(()),
        outcome => Ok(outcome?),
    }
}

fn check(environment: &Environment, config: &NetworkConfig) -> Result<(), CniError> {
    let Some(previous) = &config.prev_result else {
        return Err(CniError::new(code::CONFIG, "`prevResult` is missing: a CHECK is held against the result of the ADD"));
    };
    let attachment = environment.attachment()?;
    let ifname = attachment.ifname.as_str();
    let path = environment.netns()?;
    let sandbox = path.display().to_string();
    let mut interfaces = previous.interfaces.iter().enumerate();
    let Some((position, reported)) = interfaces.find(|(_, interface)| interface.name == ifname && interface.sandbox == sandbox)
    else {
        return Err(CniError::new(code::CONFIG, format!("`prevResult.interfaces` has no {ifname} with the sandbox {sandbox}")));
    };
    let address = previous.addresses.iter().find(|(_, interface)| *interface == Some(position));
    let Some((address, _)) = address else {
        return Err(CniError::new(
            code::CONFIG,
            format!("`prevResult.ips` has no IPv4 address for interface {position}, {ifname}"),
        ));
    };
    let wanted = connect(config)?.pod_check(PodCheck { attachment: attachment.clone(), address: address.addr() })?;
    let found = Netns::open(path)
        .and_then(|netns| netns.run(async |handle| pod_link::inspect(&handle, ifname).await))
        .map_err(|error| CniError::new(code::CHECK_FAILED, error.to_string()))??;
    let expected = Expected {
        ifname,
        wanted: &wanted,
        reported,
        default_route: previous.routes.iter().any(|destination| destination.prefix_len() == 0),
    };
    let differences = expected.differences(found.as_ref());
    if differences.is_empty() { Ok(()) } else { Err(CniError::new(code::CHECK_FAILED, differences.join("; "))) }
}

fn gc(config: &NetworkConfig) -> Result<(), CniError> {
    let Some(valid) = config.valid_attachments.clone() else {
        return Err(CniError::new(
            code::CONFIG,
            "`cni.dev/valid-attachments` is missing: without it every pod would be removed",
        ));
    };
    let done = connect(config)?.pod_gc(PodGc { network: config.name.clone(), valid })?;
    for attachment in done.removed {
        eprintln!("shunt: removed the stale attachment {attachment}");
    }
    Ok(())
}

fn status(config: &NetworkConfig) -> Result<(), CniError> {
    let ready = Client::connect(&config.agent_socket, PATIENCE).and_then(|mut client| client.ready());
    ready.map_err(|error| {
        let code = match &error {
            ClientError::Refused(refusal) if refusal.reason == RefusalReason::Failed => code::LIMITED_CONNECTIVITY,
            _ => code::NOT_AVAILABLE,
        };
        CniError::new(code, error.to_string())
    })
}

fn connect(config: &NetworkConfig) -> Result<Client, CniError> {
    Ok(Client::connect(&config.agent_socket, PATIENCE)?)
}

impl From<ClientError> for CniError {
    fn from(error: ClientError) -> Self {
        let code = match &error {
            ClientError::Refused(refusal) => match refusal.reason {
                RefusalReason::BadRequest => code::CONFIG,
                RefusalReason::NotReady | RefusalReason::TryAgain => code::TRY_AGAIN,
                RefusalReason::RangeFull => code::RANGE_FULL,
                RefusalReason::RangeUnusable => code::RANGE_UNUSABLE,
                RefusalReason::PortTaken => code::PORT_TAKEN,
                RefusalReason::Unknown => code::UNKNOWN_CONTAINER,
                RefusalReason::CheckFailed => code::CHECK_FAILED,
                RefusalReason::Failed => code::FAILED,
            },
            ClientError::Missing(_)
            | ClientError::Dead(_)
            | ClientError::Permission(_)
            | ClientError::Timeout { .. }
            | ClientError::Broken { .. } => code::TRY_AGAIN,
        };
        Self::new(code, error.to_string())
    }
}

impl From<NetnsError> for CniError {
    fn from(error: NetnsError) -> Self {
        let code = match &error {
            NetnsError::Missing(_) => code::UNKNOWN_CONTAINER,
            NetnsError::Own(_) | NetnsError::NotOne(_) => code::ENVIRONMENT,
            NetnsError::Io { .. } | NetnsError::Worker(_) => code::FAILED,
        };
        let text = match code {
            code::ENVIRONMENT => format!("the environment variable CNI_NETNS: {error}"),
            _ => error.to_string(),
        };
        Self::new(code, text)
    }
}

impl From<LinkError> for CniError {
    fn from(error: LinkError) -> Self {
        Self::new(code::FAILED, error.to_string())
    }
}
