//! Rule sets of others in nf_tables, which iptables-nft writes too: looking at them, and changing them in one step that can be taken back.
//!
//! A rule is kept as the kernel tells it and given back as it was told. What it does is read no further than to which chain it jumps.
//! Numbers are those of include/uapi/linux/netfilter/nf_tables.h.

use std::io;

use serde::{Deserialize, Serialize};

use super::nfnetlink::{Attributes, Kind, Messages, Netfilter, attributes, find, find_in, text};

const SUBSYSTEM: u8 = 10;

/// `NFT_MSG_*`.
mod message {
    pub(super) const NEW_TABLE: u8 = 0;
    pub(super) const GET_TABLE: u8 = 1;
    pub(super) const DELETE_TABLE: u8 = 2;
    pub(super) const NEW_CHAIN: u8 = 3;
    pub(super) const GET_CHAIN: u8 = 4;
    pub(super) const DELETE_CHAIN: u8 = 5;
    pub(super) const NEW_RULE: u8 = 6;
    pub(super) const GET_RULE: u8 = 7;
    pub(super) const DELETE_RULE: u8 = 8;
}
/// `NFTA_TABLE_*`.
mod table {
    pub(super) const NAME: u16 = 1;
    pub(super) const FLAGS: u16 = 2;
}
/// `NFTA_CHAIN_*`, and below `HOOK` `NFTA_HOOK_*`.
mod chain {
    pub(super) const TABLE: u16 = 1;
    pub(super) const NAME: u16 = 3;
    pub(super) const HOOK: u16 = 4;
    pub(super) const TYPE: u16 = 7;
    pub(super) const HOOK_NUMBER: u16 = 1;
    pub(super) const HOOK_PRIORITY: u16 = 2;
}
/// `NFTA_RULE_*`.
mod rule {
    pub(super) const TABLE: u16 = 1;
    pub(super) const CHAIN: u16 = 2;
    pub(super) const HANDLE: u16 = 3;
    pub(super) const EXPRESSIONS: u16 = 4;
    pub(super) const COMPAT: u16 = 5;
    pub(super) const POSITION: u16 = 6;
    pub(super) const USERDATA: u16 = 7;
    pub(super) const COMPAT_PROTO: u16 = 1;
    pub(super) const COMPAT_FLAGS: u16 = 2;
}
/// Attributes of expressions.
mod expression {
    pub(super) const NAME: u16 = 1;
    pub(super) const DATA: u16 = 2;
    pub(super) const IMMEDIATE_DATA: u16 = 2;
    pub(super) const DATA_VALUE: u16 = 1;
    pub(super) const DATA_VERDICT: u16 = 2;
    pub(super) const VERDICT_CHAIN: u16 = 2;
    pub(super) const META_KEY: u16 = 2;
    pub(super) const META_L4PROTO: [u8; 4] = 16u32.to_be_bytes();
    pub(super) const CMP_DATA: u16 = 3;
}

/// `NFT_TABLE_F_DORMANT`.
const DORMANT: u32 = 1;
/// `NLM_F_CREATE`, `NLM_F_APPEND`.
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// The name of our own table, which holds no rule: see [`Change::HoldTranslation`].
const OURS: &str = "shunt";

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableId {
    /// `NFPROTO_*`.
    pub family: u8,
    /// Its name.
    pub name: String,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChainId {
    /// Its table.
    pub table: TableId,
    /// Its name.
    pub name: String,
}

/// A rule as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its chain.
    pub chain: ChainId,
    /// What the kernel calls it.
    pub handle: u64,
    /// The chain that it jumps to, if it does.
    pub jumps_to: Option<String>,
    /// All that it is.
    pub body: Body,
}

/// A rule's expressions and comment, opaque.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Body(#[serde(with = "hex")] Vec<u8>);

impl Body {
    /// Whether some text stands in it, as a comment does.
    #[must_use]
    pub fn contains(&self, text: &str) -> bool {
        self.0.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    /// Removes one rule.
    DeleteRule(ChainId, u64),
    /// Removes all rules of a chain.
    FlushChain(ChainId),
    /// Removes an empty chain that nothing jumps to.
    DeleteChain(ChainId),
    /// Makes a chain that others jump to; one that is there stays.
    AddChain(ChainId),
    /// Adds a rule before the one with this handle, or at the chain's end.
    AddRule(ChainId, Option<u64>, Body),
    /// Adds a rule at the chain's beginning.
    AddFirstRule(ChainId, Body),
    /// Takes a table's chains off their hooks, all at once, without changing it.
    Suspend(TableId),
    /// The reverse.
    Resume(TableId),
    /// Keeps address translation on its hooks, with chains of our own that have no rule: flows that are translated stay so when no chain
    /// of others is there any more.
    HoldTranslation,
    /// The reverse.
    ReleaseTranslation,
}

/// Bytes as hexadecimal text.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        serializer.collect_str(&digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect::<String>())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let byte = |pair: &[u8]| Some(digit(pair.first()?)? << 4 | digit(pair.get(1)?)?);
        text.as_bytes().chunks(2).map(|pair| byte(pair).ok_or_else(|| D::Error::custom("not hexadecimal"))).collect()
    }
}

/// Tables of IPv4 and IPv6, and whether each is suspended.
///
/// # Errors
/// What the kernel answers; none where it has no nf_tables.
pub fn tables(netfilter: &mut RuleSets) -> io::Result<Vec<(TableId, bool)>> {
    let answers = netfilter.dump(message::GET_TABLE, &Attributes::default())?;
    let parse = |(family, bytes): &(u8, Vec<u8>)| {
        let flags = find(bytes, table::FLAGS).and_then(|value| value.try_into().ok()).map_or(0, u32::from_be_bytes);
        Some((TableId { family: *family, name: text(find(bytes, table::NAME)?)? }, flags & DORMANT != 0))
    };
    Ok(answers.iter().filter_map(parse).collect())
}

/// All chains, and whether each is on a hook.
///
/// # Errors
/// As [`tables`].
pub fn chains(netfilter: &mut RuleSets) -> io::Result<Vec<(ChainId, bool)>> {
    let answers = netfilter.dump(message::GET_CHAIN, &Attributes::default())?;
    let parse = |(family, bytes): &(u8, Vec<u8>)| {
        let table = TableId { family: *family, name: text(find(bytes, chain::TABLE)?)? };
        Some((ChainId { table, name: text(find(bytes, chain::NAME)?)? }, find(bytes, chain::HOOK).is_some()))
    };
    Ok(answers.iter().filter_map(parse).collect())
}

/// The rules of a table, in order within each chain.
///
/// # Errors
/// As [`tables`].
pub fn rules(netfilter: &mut RuleSets, of: &TableId) -> io::Result<Vec<Rule>> {
    let answers = netfilter.dump_family(of.family, message::GET_RULE, &Attributes::default().text(rule::TABLE, &of.name))?;
    let parse = |(_, bytes): &(u8, Vec<u8>)| {
        let expressions = find(bytes, rule::EXPRESSIONS).unwrap_or_default();
        Some(Rule {
            chain: ChainId { table: of.clone(), name: text(find(bytes, rule::CHAIN)?)? },
            handle: u64::from_be_bytes(find(bytes, rule::HANDLE)?.try_into().ok()?),
            jumps_to: target(expressions),
            body: Body(body(expressions, find(bytes, rule::USERDATA)).into_bytes()),
        })
    };
    Ok(answers.iter().filter_map(parse).collect())
}

/// Where a rule's verdict leads.
fn target(expressions: &[u8]) -> Option<String> {
    use expression::{DATA, DATA_VERDICT, IMMEDIATE_DATA, NAME, VERDICT_CHAIN};
    attributes(expressions)
        .filter(|(_, bytes)| find(bytes, NAME).and_then(text).as_deref() == Some("immediate"))
        .find_map(|(_, bytes)| find_in(bytes, &[DATA, IMMEDIATE_DATA, DATA_VERDICT, VERDICT_CHAIN]).and_then(text))
}

/// What a rule is added with. The kernel doesn't tell for which protocol iptables' own matches were checked when they were added, but
/// the rule compares it.
fn body(expressions: &[u8], userdata: Option<&[u8]>) -> Attributes {
    let mut body = Attributes::default().nested_bytes(rule::EXPRESSIONS, expressions);
    if let Some(protocol) = protocol(expressions) {
        let compat = Attributes::default()
            .put(rule::COMPAT_PROTO, &u32::from(protocol).to_be_bytes())
            .put(rule::COMPAT_FLAGS, &0u32.to_be_bytes());
        body = body.nest(rule::COMPAT, &compat);
    }
    if let Some(userdata) = userdata {
        body = body.put(rule::USERDATA, userdata);
    }
    body
}

/// The transport protocol that a rule with matches of iptables compares.
fn protocol(expressions: &[u8]) -> Option<u8> {
    use expression::{CMP_DATA, DATA, DATA_VALUE, META_KEY, META_L4PROTO, NAME};
    let expressions: Vec<(String, &[u8])> = attributes(expressions)
        .filter_map(|(_, bytes)| Some((text(find(bytes, NAME)?)?, find(bytes, DATA).unwrap_or_default())))
        .collect();
    if !expressions.iter().any(|(name, _)| name == "match" || name == "target") {
        return None;
    }
    expressions.windows(2).find_map(|pair| {
        let [(load, key), (compare, data)] = pair else { return None };
        let is_protocol = load == "meta" && find(key, META_KEY) == Some(&META_L4PROTO[..]) && compare == "cmp";
        is_protocol.then(|| find_in(data, &[CMP_DATA, DATA_VALUE]))?.and_then(|value| value.first()).copied()
    })
}

/// The rule sets of this network namespace.
#[derive(Debug)]
pub struct RuleSets {
    netfilter: Netfilter,
}

impl RuleSets {
    /// Opens them.
    ///
    /// # Errors
    /// No netlink socket.
    pub fn open() -> io::Result<Self> {
        Ok(Self { netfilter: Netfilter::open()? })
    }

    /// Makes changes, all or none, in one step for packets.
    ///
    /// # Errors
    /// What the kernel answers; then nothing has changed.
    pub fn apply(&mut self, changes: &[Change]) -> io::Result<()> {
        let requests: Vec<_> = changes.iter().flat_map(requests).collect();
        self.netfilter.batch(&requests)
    }

    fn dump(&mut self, message: u8, attributes: &Attributes) -> io::Result<Messages> {
        let mut answers = Vec::new();
        for family in [libc::NFPROTO_IPV4, libc::NFPROTO_IPV6, libc::NFPROTO_INET] {
            answers.extend(self.dump_family(family as u8, message, attributes)?);
        }
        Ok(answers)
    }

    fn dump_family(&mut self, family: u8, message: u8, attributes: &Attributes) -> io::Result<Messages> {
        match self.netfilter.dump(Kind { subsystem: SUBSYSTEM, message, flags: 0, family }, attributes) {
            // No nf_tables in this kernel (the subsystem is not there), or no such family.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) => {
                Ok(Vec::new())
            }
            answers => answers,
        }
    }
}

fn requests(change: &Change) -> Vec<(Kind, Attributes)> {
    let kind = |message, flags, table: &TableId| Kind { subsystem: SUBSYSTEM, message, flags, family: table.family };
    let of = |chain: &ChainId| Attributes::default().text(rule::TABLE, &chain.table.name).text(rule::CHAIN, &chain.name);
    let named = |chain: &ChainId| Attributes::default().text(chain::TABLE, &chain.table.name).text(chain::NAME, &chain.name);
    let flags = |table: &TableId, flags: u32| {
        Attributes::default().text(table::NAME, &table.name).put(table::FLAGS, &flags.to_be_bytes())
    };
    let ours = TableId { family: libc::NFPROTO_IPV4 as u8, name: OURS.to_owned() };
    match change {
        Change::DeleteRule(chain, handle) => {
            vec![(kind(message::DELETE_RULE, 0, &chain.table), of(chain).put(rule::HANDLE, &handle.to_be_bytes()))]
        }
        Change::FlushChain(chain) => vec![(kind(message::DELETE_RULE, 0, &chain.table), of(chain))],
        Change::DeleteChain(chain) => vec![(kind(message::DELETE_CHAIN, 0, &chain.table), named(chain))],
        Change::AddChain(chain) => vec![(kind(message::NEW_CHAIN, CREATE, &chain.table), named(chain))],
        Change::AddRule(chain, before, body) => {
            let (flags, mut rule) = (if before.is_some() { CREATE } else { CREATE | APPEND }, of(chain));
            if let Some(handle) = before {
                rule = rule.put(rule::POSITION, &handle.to_be_bytes());
            }
            vec![(kind(message::NEW_RULE, flags, &chain.table), rule.followed_by(&body.0))]
        }
        Change::AddFirstRule(chain, body) => {
            vec![(kind(message::NEW_RULE, CREATE, &chain.table), of(chain).followed_by(&body.0))]
        }
        Change::Suspend(table) => vec![(kind(message::NEW_TABLE, 0, table), flags(table, DORMANT))],
        Change::Resume(table) => vec![(kind(message::NEW_TABLE, 0, table), flags(table, 0))],
        Change::HoldTranslation => {
            let mut requests = vec![(kind(message::NEW_TABLE, CREATE, &ours), flags(&ours, 0))];
            // Hooks and their usual priorities (`NF_IP_PRI_NAT_DST`, `NF_IP_PRI_NAT_SRC`).
            let hooks = [
                ("prerouting", libc::NF_INET_PRE_ROUTING, -100i32),
                ("input", libc::NF_INET_LOCAL_IN, 100),
                ("output", libc::NF_INET_LOCAL_OUT, -100),
                ("postrouting", libc::NF_INET_POST_ROUTING, 100),
            ];
            for (name, hook, priority) in hooks {
                let hook = Attributes::default()
                    .put(chain::HOOK_NUMBER, &(hook as u32).to_be_bytes())
                    .put(chain::HOOK_PRIORITY, &priority.to_be_bytes());
                let chain = ChainId { table: ours.clone(), name: name.to_owned() };
                let attributes = named(&chain).nest(chain::HOOK, &hook).text(chain::TYPE, "nat");
                requests.push((kind(message::NEW_CHAIN, CREATE, &ours), attributes));
            }
            requests
        }
        Change::ReleaseTranslation => {
            vec![(kind(message::DELETE_TABLE, 0, &ours), Attributes::default().text(table::NAME, &ours.name))]
        }
    }
}

/// Whether our own table is there.
///
/// # Errors
/// As [`tables`].
pub fn holds_translation(rule_sets: &mut RuleSets) -> io::Result<bool> {
    Ok(tables(rule_sets)?.iter().any(|(table, _)| table.name == OURS && i32::from(table.family) == libc::NFPROTO_IPV4))
}
