//! The agent's part of a takeover: what is decided in `crate::takeover`, carried out at the right moments of setting the dataplane up.

use std::{net::Ipv4Addr, path::PathBuf, time::Instant};

use shunt_common::{
    address::kind,
    config::link_local,
    conntrack::takeover,
    net::{Ip4, Mac},
};

use super::{dataplane::Dataplane, own_node::OwnNode};
use crate::{
    attachment::{HOST_MAC, Pod},
    config::AgentOptions,
    install::{self, settings},
    ipam::Ipam,
    kernel::{
        grace::Hurried,
        links,
        netlink::Netlink,
        nf_conntrack,
        nf_tables::{Change, RuleSets},
        pins::PinDir,
        ports,
        read::Reader,
        sweeper, sysctl,
    },
    takeover::{
        TakeoverError, allocations, conf,
        flows::{self, Backends, Fate, Place},
        netfilter,
        plan::{self, Wanted},
        record::{FlowCounts, Record, Stage},
        rules::{self, Owner},
        survey::{self, Survey},
    },
};

/// A takeover that was asked for, is under way or was made.
#[derive(Debug)]
pub(super) struct Takeover {
    is_wanted: bool,
    cni_dir: PathBuf,
    state_dir: PathBuf,
    record: Option<Record>,
    began: Option<Instant>,
    notes: Vec<String>,
}

impl Takeover {
    /// As the options and the record of an earlier agent say.
    pub(super) fn open(options: &AgentOptions) -> Result<Self, TakeoverError> {
        let record = Record::read(&options.state_dir)?;
        if let Some(record) = &record {
            if record.stage == Stage::RollingBack {
                return Err(TakeoverError::RollbackUnfinished);
            }
            if record.is_of_earlier_boot() {
                tracing::info!("the node has booted since it was taken over: nothing of flannel is left to be rolled back to");
                Record::remove(&options.state_dir)?;
            }
        }
        Ok(Self {
            is_wanted: options.takeover,
            cni_dir: options.cni_state_dir.clone(),
            state_dir: options.state_dir.clone(),
            record: record.filter(|record| !record.is_of_earlier_boot()),
            began: None,
            notes: Vec::new(),
        })
    }

    fn is_under_way(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.stage == Stage::Begun)
    }

    /// Looks at the node, writes down what has to be known to put it back, and enters its pods into the book; nothing that packets meet changes yet.
    pub(super) fn begin(
        &mut self,
        options: &AgentOptions,
        own: &OwnNode,
        ipam: &mut Ipam,
        changes: &install::Record,
    ) -> Result<(), TakeoverError> {
        if !self.is_under_way() && (!self.is_wanted || self.record.is_some()) {
            return Ok(());
        }
        self.began.get_or_insert_with(Instant::now);
        let mut netlink = Netlink::open().map_err(netfilter("open a netlink socket"))?;
        let survey = Survey::make(&mut netlink, &self.cni_dir)?;
        let wanted = Wanted { vni: options.config.vni, port: options.config.vxlan_port, pod_cidr: own.pod_cidr };
        let plan = plan::plan(&survey, &wanted)?;
        let settings: Vec<_> = plan
            .bridge
            .iter()
            .flat_map(|bridge| sysctl::of_adopted_bridge(bridge))
            .chain(plan.tunnel.iter().flat_map(|tunnel| sysctl::of_idle_tunnel(tunnel)))
            .collect();
        if self.record.is_none() {
            if !survey.has_anything() {
                tracing::info!("neither flannel nor kube-proxy is on this node: there is nothing to take over");
                self.is_wanted = false;
                return Ok(());
            }
            let mut record = Record::begin(&self.cni_dir);
            record.tunnel.clone_from(&plan.tunnel);
            record.routes.clone_from(&plan.routes);
            record.bridge.clone_from(&plan.bridge);
            if let Some(dir) = &options.config.cni_conf_dir {
                record.configurations = conf::of_flannel(dir)?;
            }
            record.network = survey.network();
            record.gateway = survey.bridge.as_ref().and_then(|bridge| bridge.address).map(|address| address.addr());
            record.rules = [Owner::KubeProxy, Owner::Flannel].map(|owner| rules::keep(&survey.rules, owner)).into();
            record.write(&self.state_dir)?;
            self.record = Some(record);
        }
        tracing::info!(pods = plan.pods.len(), tunnel = ?plan.tunnel, "the node is being taken over");
        ipam.adopt(plan.pods)?;
        Ok(settings::apply(&settings, changes)?)
    }

    /// Until it is dropped, programs are attached without long waits, if a takeover is under way.
    pub(super) fn hurry(&self) -> Option<Hurried> {
        let record = self.record.as_ref().filter(|record| record.stage == Stage::Begun)?;
        Some(Hurried::begin(Some(&record.grace)))
    }

    /// Before maps, routes and programs come into force: what they do not know goes on to the host's stack.
    pub(super) fn hold_back(&self, dataplane: &mut Dataplane) -> Result<(), super::pods::PodError> {
        if !self.is_under_way() {
            return Ok(());
        }
        dataplane.kernel.maps().takeover.put(&0, &takeover::TAKING, || "the sign of a takeover".to_owned())?;
        dataplane.kernel.hold_back(self.record.iter().flat_map(|record| &record.routes).map(|route| route.prefix));
        // Routes lead the host's packets there next.
        Ok(dataplane.attach_host()?)
    }

    /// With programs in force on every pod: the rules go, and the flows that they made are known before the stack is no longer asked.
    pub(super) fn complete(&mut self, dataplane: &mut Dataplane, dir: &PinDir) -> Result<(), TakeoverError> {
        let began = self.began;
        let state_dir = self.state_dir.clone();
        let Some(record) = self.record.as_mut().filter(|record| record.stage == Stage::Begun) else { return Ok(()) };
        let mut rule_sets = RuleSets::open().map_err(netfilter("open a netlink socket"))?;
        let found = survey::rules()?;
        let mut changes = vec![Change::HoldTranslation];
        changes.extend(rules::disconnect(&found, Owner::KubeProxy));
        rule_sets.apply(&changes).map_err(netfilter("take kube-proxy's rules out of force"))?;

        let flows = nf_conntrack::list().map_err(netfilter("read the flows of the host's stack"))?;
        let (counts, ours) = import(&flows, dataplane, dir)?;
        dataplane.kernel.maps().takeover.put(&0, &takeover::NONE, || "the sign of a takeover".to_owned())?;
        let took = began.map(|began| began.elapsed());
        tracing::info!(
            ours = counts.ours, left_to_the_stack = counts.stacks, without_room = counts.lost, took = ?took,
            "the node is taken over"
        );
        rule_sets
            .apply(&rules::disconnect(&found, Owner::Flannel))
            .map_err(netfilter("take flannel's masquerading out of force"))?;
        nf_conntrack::forget(&ours).map_err(netfilter("let the host's stack forget flows"))?;
        // Flannel may have masqueraded some more until now.
        let flows = nf_conntrack::list().map_err(netfilter("read the flows of the host's stack"))?;
        let bound: Vec<_> = flows.iter().filter(|flow| flows::is_bound(flow, &record.routes)).collect();
        nf_conntrack::unbind(&bound).map_err(netfilter("free flows of the host's stack from flannel's device"))?;
        dataplane.kernel.let_go().map_err(TakeoverError::Kernel)?;
        // What is out of force does no harm: its chains go if they can.
        if let Err(error) = rule_sets.apply(&rules::remove(&survey::rules()?)) {
            tracing::warn!(%error, "rules of kube-proxy and flannel are out of force, but cannot be removed");
        }
        for configuration in &record.configurations {
            conf::put_aside(configuration)?;
        }
        record.flows = counts;
        record.took_ms = took.and_then(|took| u64::try_from(took.as_millis()).ok());
        record.stage = Stage::Done;
        record.write(&state_dir)
    }

    /// Pods that flannel's plugin made meanwhile, and who works against us.
    pub(super) fn look_again(
        &mut self,
        own: &OwnNode,
        options: &AgentOptions,
        ipam: &mut Ipam,
    ) -> Result<Vec<Pod>, TakeoverError> {
        let Some(record) = self.record.as_ref().filter(|record| record.stage == Stage::Done) else { return Ok(Vec::new()) };
        let mut netlink = Netlink::open().map_err(netfilter("open a netlink socket"))?;
        let mut survey = Survey { rules: survey::rules()?, legacy: survey::legacy()?, ..Survey::default() };
        let mut late = Vec::new();
        if let Some(bridge) = record.bridge.as_deref().map(|name| links::by_name(&mut netlink, name)).transpose()?.flatten() {
            let known = |port: &ports::Port| ipam.pods().values().any(|pod| pod.host_interface == port.name);
            if !ports::of_bridge(&mut netlink, bridge.index)?.iter().all(known) {
                survey = Survey::make(&mut netlink, &self.cni_dir)?;
                let wanted = Wanted { vni: options.config.vni, port: options.config.vxlan_port, pod_cidr: own.pod_cidr };
                let pods = plan::plan(&survey, &wanted)?.pods;
                late = pods.into_iter().filter(|pod| !ipam.pods().contains_key(&pod.attachment)).collect();
                ipam.adopt(late.clone())?;
            }
        }
        self.notes = plan::notes(&survey);
        Ok(late)
    }

    /// What an operator should know.
    pub(super) fn notes(&self) -> Vec<String> {
        let Some(record) = &self.record else { return Vec::new() };
        let FlowCounts { ours, stacks, lost } = record.flows;
        let made = (record.stage == Stage::Done).then(|| {
            let took = record.took_ms.map(|ms| format!(" in {ms} ms")).unwrap_or_default();
            let lost = if lost == 0 { String::new() } else { format!(", {lost} found no room (raise conntrackMax)") };
            format!(
                "this node was taken over from flannel and kube-proxy{took}: {ours} flows became ours, {stacks} stay with the host's stack \
                 until they end{lost}; `shunt rollback` puts it back"
            )
        });
        made.into_iter().chain(self.notes.iter().cloned()).collect()
    }

    /// Whether flannel's plugin has given an address to somebody.
    pub(super) fn holds(&self, address: Ipv4Addr) -> bool {
        self.record.is_some() && allocations::holds(&self.cni_dir, address)
    }

    /// Gives an adopted pod's address back where it came from.
    pub(super) fn release(&self, pod: &Pod) {
        if pod.is_adopted()
            && let Err(error) = allocations::release(&self.cni_dir, &pod.network, pod.address, &pod.attachment)
        {
            tracing::warn!(%error, address = %pod.address, "host-local keeps the address of a pod that is gone");
        }
    }

    /// The gateway that a pod sees, with its MAC.
    pub(super) fn gateway_of(&self, pod: &Pod) -> (Ipv4Addr, Mac) {
        let adopted = || self.record.as_ref().filter(|_| pod.is_adopted())?.gateway;
        (adopted().unwrap_or(link_local::GATEWAY.into()), HOST_MAC)
    }
}

/// Enters the flows of the host's stack into our table; which have become ours.
fn import(
    flows: &[nf_conntrack::StackFlow],
    dataplane: &Dataplane,
    dir: &PinDir,
) -> Result<(FlowCounts, Vec<nf_conntrack::StackFlow>), TakeoverError> {
    let reader = Reader::open(dir)?;
    let backends = Backends::of(&reader.services()?);
    let addresses: std::collections::BTreeMap<Ip4, u32> =
        reader.addresses()?.into_iter().map(|(addr, address)| (addr, address.kind)).collect();
    let ranges = reader.routes()?;
    let place = |addr: Ip4| match addresses.get(&addr) {
        Some(&kind::POD) => Place::LocalPod,
        Some(&kind::HOST) => Place::Host,
        Some(_) => Place::Cluster,
        None => {
            let is_within = |len: u32, prefix: Ip4| {
                let mask = u32::MAX.checked_shl(32 - len.min(32)).unwrap_or(0);
                (addr.to_host() ^ prefix.to_host()) & mask == 0
            };
            let in_cluster = ranges.iter().any(|(prefix, _)| is_within(prefix.len, prefix.addr));
            if in_cluster { Place::Cluster } else { Place::Outside }
        }
    };
    let now = sweeper::now().map_err(netfilter("read the clock"))?;
    let table = &dataplane.kernel.maps().conntrack;
    let (mut counts, mut ours) = (FlowCounts::default(), Vec::new());
    for flow in flows {
        let (pair, is_ours) = match flows::fate(flow, place, &backends, now) {
            Fate::Ours(pair) => (pair, true),
            Fate::Stacks(pair) => (pair, false),
            Fate::Untouched => continue,
        };
        let [(original, entry), (reply, reply_entry)] = pair;
        // A flow that has begun under our programs is younger than what the stack remembers under its tuple.
        if table.get(&original)?.is_some() {
            continue;
        }
        // The answer's half first, as everywhere.
        let written = table
            .put_new(&reply, &reply_entry, || "a flow of the host's stack".to_owned())
            .and_then(|_| table.put_new(&original, &entry, || "a flow of the host's stack".to_owned()));
        match written {
            Ok(_) if is_ours => {
                counts.ours += 1;
                ours.push(*flow);
            }
            Ok(_) => counts.stacks += 1,
            Err(crate::kernel::table::TableError::Full { .. }) => counts.lost += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Ok((counts, ours))
}
