//! Putting a node back: rules first, then the flows that we translated, then routes; programs go last. Each step can be done again.
//!
//! Pods that came while the node was ours keep their interfaces and routes, by which the host's stack reaches them, and get allocations of
//! host-local, which would otherwise give their addresses to others.

use std::{collections::BTreeMap, path::Path};

use shunt_common::{
    conntrack::{CtEntry, CtKey, kind, takeover, translates},
    flow::Tuple,
    net::{V4, proto},
};

use super::{
    TakeoverError,
    allocations::{self, Allocation},
    conf, netfilter,
    record::{Record, Stage},
    rules::Owner,
    survey,
};
use crate::{
    attachment::Pod,
    install::{self, settings::SettingsError},
    ipam,
    kernel::{
        cleanup, headroom,
        links::{self, LinksError, TUNNEL},
        maps::Maps,
        netlink::Netlink,
        nf_conntrack::{self, Handed, TCP_TIMEOUT, UDP_TIMEOUT},
        nf_tables::{self, Change, RuleSets},
        pins::PinDir,
        routes, sweeper, sysctl,
    },
};

/// What was put back, and what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Undone {
    /// Rules put back.
    pub rules: usize,
    /// Routes put back.
    pub routes: usize,
    /// Flows that the host's stack translates again.
    pub flows: usize,
    /// Flows that it refused.
    pub refused: usize,
    /// Pods of ours that stay, served by the host's stack.
    pub pods: usize,
    /// What an operator has to know.
    pub notes: Vec<String>,
}

/// Puts a node back whose agent has been stopped.
///
/// # Errors
/// It was not taken over, or a step failed: what it did stays, and doing it all again goes on from there.
pub fn run(pins: &PinDir, state_dir: &Path) -> Result<Undone, TakeoverError> {
    let mut record = Record::read(state_dir)?.ok_or_else(|| TakeoverError::NotTakenOver(Record::path(state_dir)))?;
    let mut undone = Undone::default();
    if record.is_of_earlier_boot() {
        undone.notes.push(
            "the node has booted since it was taken over: flanneld and kube-proxy set it up anew when they start".to_owned(),
        );
        Record::remove(state_dir)?;
        return Ok(undone);
    }
    record.stage = Stage::RollingBack;
    record.write(state_dir)?;
    let mut netlink = Netlink::open().map_err(netfilter("open a netlink socket"))?;
    let mut rule_sets = RuleSets::open().map_err(netfilter("open a netlink socket"))?;

    let pods = ipam::read_pods(state_dir)?;
    keep_allocations(&record, &pods, &mut undone)?;
    put_back_rules(&record, &mut rule_sets, &mut undone)?;
    let tunnel = match &record.tunnel {
        Some(name) => links::by_name(&mut netlink, name)?,
        None => None,
    };
    match &tunnel {
        Some(link) => {
            routes::give_back(&mut netlink, link.index, &record.routes)?;
            undone.routes = record.routes.len();
        }
        None => undone
            .notes
            .extend(record.tunnel.as_ref().map(|name| format!("{name} is gone: flanneld makes it anew when it starts"))),
    }
    hand_flows_over(pins, &mut undone)?;
    for name in pins.link_names()? {
        pins.remove_link(&name)?;
    }
    for name in pins.map_names()? {
        pins.remove_map(&name)?;
    }
    cleanup::remove_directories(pins).map_err(|(path, source)| TakeoverError::File { action: "remove", path, source })?;
    if let Some(link) = links::by_name(&mut netlink, TUNNEL)? {
        // Its routes to virtual IPs go with it.
        links::delete(&mut netlink, link.index, TUNNEL)?;
    }
    headroom::remove(&mut netlink)?;
    for configuration in &record.configurations {
        conf::put_back(configuration)?;
    }
    put_back_settings(&record, state_dir, &mut netlink, &pods, &mut undone)?;
    if nf_tables::holds_translation(&mut rule_sets).map_err(netfilter("read the rules of nf_tables"))? {
        rule_sets.apply(&[Change::ReleaseTranslation]).map_err(netfilter("remove our table of nf_tables"))?;
    }
    undone.notes.extend(what_is_missing(&record)?);
    ipam::remove(state_dir)?;
    Record::remove(state_dir)?;
    Ok(undone)
}

/// host-local has to know who has which address before it gives the next.
fn keep_allocations(record: &Record, pods: &[Pod], undone: &mut Undone) -> Result<(), TakeoverError> {
    for pod in pods.iter().filter(|pod| !pod.is_adopted()) {
        let allocation =
            Allocation { network: record.network.clone(), address: pod.address, attachment: pod.attachment.clone() };
        allocations::write(&record.cni_dir, &allocation)?;
        undone.pods += 1;
    }
    Ok(())
}

fn put_back_rules(record: &Record, rule_sets: &mut RuleSets, undone: &mut Undone) -> Result<(), TakeoverError> {
    let present = survey::rules()?;
    let changes: Vec<Change> = record.rules.iter().flat_map(|kept| kept.restore(&present)).collect();
    rule_sets.apply(&changes).map_err(netfilter("put the rules of kube-proxy and flannel back"))?;
    undone.rules = changes.iter().filter(|change| matches!(change, Change::AddRule(..) | Change::AddFirstRule(..))).count();
    Ok(())
}

/// The flows that we translate are translated by the host's stack from here on, in the same way. While programs are attached they don't meet it.
fn hand_flows_over(pins: &PinDir, undone: &mut Undone) -> Result<(), TakeoverError> {
    let maps = match Maps::open(|spec| pins.map(spec)) {
        Ok(maps) => maps,
        // An earlier try has come further than this.
        Err(crate::kernel::table::TableError::Missing { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // From here on whatever begins is the stack's.
    maps.takeover.put(&0, &takeover::GIVING_BACK, || "the sign of a takeover".to_owned())?;
    let now = sweeper::now().map_err(netfilter("read the clock"))?;
    let entries: BTreeMap<CtKey<V4>, CtEntry<V4>> = maps.conntrack.entries()?.into_iter().collect();
    let flows: Vec<Handed> = entries.iter().filter_map(|(key, entry)| handed(&entries, key, entry, now)).collect();
    undone.flows = nf_conntrack::hand_over(&flows).map_err(netfilter("give flows to the host's stack"))?;
    undone.refused = flows.len() - undone.flows;
    Ok(())
}

fn handed(all: &BTreeMap<CtKey<V4>, CtEntry<V4>>, key: &CtKey<V4>, entry: &CtEntry<V4>, now: u32) -> Option<Handed> {
    let original: Tuple<V4> = key.tuple();
    let timeout = match original.proto {
        proto::TCP => TCP_TIMEOUT,
        proto::UDP => UDP_TIMEOUT,
        _ => return None,
    };
    let peer = all.get(&entry.peer(original.proto));
    let is_over = entry.is_expired(peer, original.proto, now)
        || original.proto == proto::TCP && entry.is_closed(peer.map_or(0, |peer| peer.seen));
    let is_wanted = entry.kind == kind::ORIGINAL && entry.translates == translates::HERE && !is_over;
    is_wanted.then(|| Handed { original, translated: entry.translated(original.proto), timeout })
}

/// Settings as they were, and the CNI configuration gone: from here on flannel's plugin makes pods.
fn put_back_settings(
    record: &Record,
    state_dir: &Path,
    netlink: &mut Netlink,
    pods: &[Pod],
    undone: &mut Undone,
) -> Result<(), TakeoverError> {
    let (restored, errors) = install::take_back(state_dir, 0);
    if let Some(error) = errors.into_iter().next() {
        return Err(error.into());
    }
    undone.notes.extend(restored.left);
    let ours = pods.iter().filter(|pod| !pod.is_adopted());
    let ours = ours.map(|pod| links::by_name(netlink, &pod.host_interface)).collect::<Result<Vec<_>, LinksError>>()?;
    if ours.into_iter().flatten().next().is_some() {
        // The bridge goes on answering for them.
        let settings = record.bridge.iter().flat_map(|bridge| sysctl::of_adopted_bridge(bridge)).collect::<Vec<_>>();
        sysctl::apply(&settings).map_err(SettingsError::from)?;
    }
    Ok(())
}

/// What only flannel's and kube-proxy's own programs can do.
fn what_is_missing(record: &Record) -> Result<Vec<String>, TakeoverError> {
    let present = survey::rules()?;
    let mut notes = Vec::new();
    let had_proxy = record.rules.iter().any(|kept| kept.owner == Owner::KubeProxy && kept.counts() != (0, 0));
    if had_proxy && !present.in_force(Owner::KubeProxy) {
        notes.push("kube-proxy's rules could not be put back: they come when kube-proxy starts".to_owned());
    }
    notes.push(
        "rules and routes are those of the moment of the takeover: let flanneld and kube-proxy run on this node again"
            .to_owned(),
    );
    Ok(notes)
}
