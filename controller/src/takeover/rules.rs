//! Which rules are kube-proxy's and flannel's, by the names that their sources give to chains, and how they go and come back.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::kernel::nf_tables::{Body, ChainId, Change, Rule, TableId};

/// What there is, as the kernel tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RulesFound {
    /// Tables, and whether each is suspended.
    pub tables: Vec<(TableId, bool)>,
    /// Chains, and whether each is on a hook.
    pub chains: Vec<(ChainId, bool)>,
    /// Rules of the tables that iptables writes.
    pub rules: Vec<Rule>,
}

/// Who made a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Owner {
    /// kube-proxy.
    KubeProxy,
    /// flannel.
    Flannel,
}

/// Tables of iptables-nft.
const IPTABLES: [&str; 5] = ["nat", "filter", "mangle", "raw", "security"];
/// The table of kube-proxy's nftables mode (pkg/proxy/nftables/proxier.go).
const KUBE_PROXY_TABLE: &str = "kube-proxy";
/// Tables of flannel's nftables mode (pkg/trafficmngr/nftables).
const FLANNEL_TABLES: [&str; 2] = ["flannel-ipv4", "flannel-ipv6"];
/// kube-proxy's chains (pkg/proxy/iptables/proxier.go). `KUBE-FIREWALL`, `KUBE-MARK-DROP`, `KUBE-KUBELET-CANARY` and `KUBE-IPTABLES-HINT` are kubelet's.
const KUBE_PROXY_CHAINS: [&str; 8] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
];
const KUBE_PROXY_PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-XLB-", "KUBE-EXT-"];
/// flannel's chain that masquerades. Its `FLANNEL-FWD` stays: it only lets packets of pods pass where the policy wouldn't.
const FLANNEL_MASQUERADE: &str = "FLANNEL-POSTRTG";
/// The comment of flannel's masquerading before it had a chain of its own (pkg/trafficmngr/iptables).
const FLANNEL_COMMENT: &str = "flanneld masq";

impl RulesFound {
    /// The tables that iptables writes.
    #[must_use]
    pub fn of_iptables(&self) -> Vec<TableId> {
        let is_iptables = |table: &&TableId| {
            IPTABLES.contains(&table.name.as_str())
                && matches!(i32::from(table.family), libc::NFPROTO_IPV4 | libc::NFPROTO_IPV6)
        };
        self.tables.iter().map(|(table, _)| table).filter(is_iptables).cloned().collect()
    }

    /// Whether rules of an owner are in force.
    #[must_use]
    pub fn in_force(&self, owner: Owner) -> bool {
        self.tables.iter().any(|(table, suspended)| !suspended && owner_of_table(table) == Some(owner))
            || self.rules.iter().any(|rule| entry(rule) == Some(owner))
    }

    /// Whether a rule has this handle.
    #[must_use]
    pub fn has(&self, chain: &ChainId, handle: u64) -> bool {
        self.rules.iter().any(|rule| rule.chain == *chain && rule.handle == handle)
    }

    fn is_owned_chain(&self, chain: &ChainId) -> bool {
        IPTABLES.contains(&chain.table.name.as_str()) && owner_of_chain(&chain.name).is_some()
    }
}

fn owner_of_table(table: &TableId) -> Option<Owner> {
    if table.name == KUBE_PROXY_TABLE {
        Some(Owner::KubeProxy)
    } else if FLANNEL_TABLES.contains(&table.name.as_str()) {
        Some(Owner::Flannel)
    } else {
        None
    }
}

fn owner_of_chain(name: &str) -> Option<Owner> {
    if KUBE_PROXY_CHAINS.contains(&name) || KUBE_PROXY_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        Some(Owner::KubeProxy)
    } else if name == FLANNEL_MASQUERADE {
        Some(Owner::Flannel)
    } else {
        None
    }
}

/// Whose rules a rule in a chain of nobody's leads to, or itself is.
fn entry(rule: &Rule) -> Option<Owner> {
    if owner_of_chain(&rule.chain.name).is_some() {
        return None;
    }
    let by_comment = || rule.body.contains(FLANNEL_COMMENT).then_some(Owner::Flannel);
    rule.jumps_to.as_deref().and_then(owner_of_chain).or_else(by_comment)
}

/// A rule that led to theirs, to be put back where it stood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    chain: ChainId,
    /// The rule that followed, which was not theirs.
    before: Option<u64>,
    body: Body,
}

/// How the rules of one owner come back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    /// Whose they are.
    pub owner: Owner,
    tables: Vec<TableId>,
    chains: Vec<ChainId>,
    rules: Vec<(ChainId, Body)>,
    entries: Vec<Entry>,
}

/// What is to be known of an owner's rules to put them back.
#[must_use]
pub fn keep(found: &RulesFound, owner: Owner) -> Kept {
    let tables = found.tables.iter().filter(|(table, suspended)| !suspended && owner_of_table(table) == Some(owner));
    let owned = |chain: &ChainId| found.is_owned_chain(chain) && owner_of_chain(&chain.name) == Some(owner);
    let rules = found.rules.iter().filter(|rule| owned(&rule.chain));
    let entries = found.rules.iter().enumerate().filter(|(_, rule)| entry(rule) == Some(owner)).map(|(at, rule)| {
        let mut following = found.rules[at + 1..].iter().take_while(|next| next.chain == rule.chain);
        let before = following.find(|next| entry(next).is_none()).map(|next| next.handle);
        Entry { chain: rule.chain.clone(), before, body: rule.body.clone() }
    });
    Kept {
        owner,
        tables: tables.map(|(table, _)| table.clone()).collect(),
        chains: found.chains.iter().filter(|(chain, _)| owned(chain)).map(|(chain, _)| chain.clone()).collect(),
        rules: rules.map(|rule| (rule.chain.clone(), rule.body.clone())).collect(),
        entries: entries.collect(),
    }
}

/// Takes an owner's rules out of force, in as few changes as can be.
#[must_use]
pub fn disconnect(found: &RulesFound, owner: Owner) -> Vec<Change> {
    let entries = found.rules.iter().filter(|rule| entry(rule) == Some(owner));
    let tables = found.tables.iter().filter(|(table, suspended)| !suspended && owner_of_table(table) == Some(owner));
    let mut changes: Vec<Change> = tables.map(|(table, _)| Change::Suspend(table.clone())).collect();
    changes.extend(entries.map(|rule| Change::DeleteRule(rule.chain.clone(), rule.handle)));
    changes
}

/// Removes the chains that nothing leads to any more.
#[must_use]
pub fn remove(found: &RulesFound) -> Vec<Change> {
    let owned: BTreeSet<&ChainId> =
        found.chains.iter().map(|(chain, _)| chain).filter(|chain| found.is_owned_chain(chain)).collect();
    let flush = owned.iter().map(|chain| Change::FlushChain((*chain).clone()));
    let delete = owned.iter().map(|chain| Change::DeleteChain((*chain).clone()));
    flush.chain(delete).collect()
}

impl Kept {
    /// How many rules and chains there were.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.rules.len() + self.entries.len(), self.chains.len())
    }

    /// Puts them back; nothing if their owner has meanwhile written his own.
    #[must_use]
    pub fn restore(&self, present: &RulesFound) -> Vec<Change> {
        if present.in_force(self.owner) {
            return Vec::new();
        }
        let mut changes: Vec<Change> = self.chains.iter().cloned().map(Change::AddChain).collect();
        // One that its owner has left half made is made anew.
        let half_made = self.chains.iter().filter(|chain| present.rules.iter().any(|rule| rule.chain == **chain));
        changes.extend(half_made.cloned().map(Change::FlushChain));
        changes.extend(self.rules.iter().map(|(chain, body)| Change::AddRule(chain.clone(), None, body.clone())));
        changes.extend(self.entries.iter().map(|entry| {
            let (chain, body) = (entry.chain.clone(), entry.body.clone());
            match entry.before {
                Some(handle) if present.has(&chain, handle) => Change::AddRule(chain, Some(handle), body),
                // What stood behind it is gone: kube-proxy wants to be first, and flannel's place matters little.
                Some(_) => Change::AddFirstRule(chain, body),
                None => Change::AddRule(chain, None, body),
            }
        }));
        let suspended = |table: &&TableId| present.tables.iter().any(|(there, suspended)| *suspended && there == *table);
        changes.extend(self.tables.iter().filter(suspended).cloned().map(Change::Resume));
        changes
    }
}
