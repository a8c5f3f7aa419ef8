//! The truth table: who answers a client, and whom it sees, for every Service by every way in from everywhere; with us and with kube-proxy.
//!
//! ```text
//!   outside -- router --+-- n1 -- pods a, b       virtual addresses are routed to n1
//!                       +-- n2 -- pods c, d       b and c are backends, and so are n1, n2 and the outside
//! ```
//!
//! The lab is built with nodes of ours, once for each way in which they translate, and with nodes of flannel and rules as kube-proxy writes them: in
//! its iptables mode, which says what is right, and in its nftables mode. The cells are generated; all that is written by hand is where somebody
//! differs.

mod cells;
mod differences;
mod sides;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    path::PathBuf,
    thread,
};

use anyhow::{Result, anyhow, bail, ensure};
use shunt_lab::{both_translations, kube_proxy::Mode, translation::Translation};

use cells::{Cell, cells};
use differences::{Difference, NFTABLES, ON_PURPOSE};
use sides::{Outcome, Reply, Side};

/// How often a cell is asked again that is not as it should be: a machine under load is slow to answer, and chance may leave a backend out.
const AGAIN: usize = 3;

/// Names a kube-proxy, which is then held against the rules that are written as it writes them.
const KUBE_PROXY: &str = "SHUNT_KUBE_PROXY";

/// Who is held against kube-proxy's iptables mode.
struct Compared {
    name: &'static str,
    side: Side,
    differences: Vec<&'static Difference>,
}

both_translations!(every_cell_has_the_outcome_that_kube_proxy_gives_it);

/// End to end:
/// - `should be able to create a functioning NodePort service`
/// - `should preserve source pod IP for traffic thru service cluster IP`
/// - `should be possible to connect to a service via ExternalIP when the external IP is not assigned to a node`
/// - `should respect internalTrafficPolicy=Local Pod to Pod`
/// - `should respect internalTrafficPolicy=Local Pod (hostNetwork: true) to Pod`
/// - `should respect internalTrafficPolicy=Local Pod and Node, to Pod (hostNetwork: true)`
/// - `should fallback to terminating endpoints when there are no ready endpoints with internalTrafficPolicy=Cluster`
/// - `should fallback to local terminating endpoints when there are no ready endpoints with internalTrafficPolicy=Local`
/// - `should fallback to terminating endpoints when there are no ready endpoints with externallTrafficPolicy=Cluster`
/// - `should fallback to local terminating endpoints when there are no ready endpoints with externalTrafficPolicy=Local`
/// - `should route traffic to an endpoint in the same zone when using PreferClose`
/// - `should route traffic to an endpoint in the same zone when using PreferSameZone`
fn every_cell_has_the_outcome_that_kube_proxy_gives_it(translation: Translation) -> Result<()> {
    let ours = Side::ours(translation)?;
    let theirs = Side::theirs(&ours, Mode::Iptables, None)?;
    let mut compared = Vec::new();
    // Once is enough: it doesn't depend on how ours translate.
    if translation == Translation::Packet {
        let side = Side::theirs(&ours, Mode::Nftables, None)?;
        compared.push(Compared { name: "the nftables mode", side, differences: NFTABLES.iter().collect() });
        if let Some(program) = env::var_os(KUBE_PROXY).map(PathBuf::from) {
            let real = |mode| Side::theirs(&ours, mode, Some(&program));
            let (iptables, nftables) = (real(Mode::Iptables)?, real(Mode::Nftables)?);
            compared.push(Compared { name: "kube-proxy itself", side: iptables, differences: Vec::new() });
            compared.push(Compared {
                name: "kube-proxy itself, nftables",
                side: nftables,
                differences: NFTABLES.iter().collect(),
            });
        }
    }
    compared.insert(0, Compared { name: "ours", side: ours, differences: ON_PURPOSE.iter().collect() });
    let mut open = cells(translation);
    let all = open.len();
    let mut used: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut seen: BTreeSet<Reply> = BTreeSet::new();
    for round in 0..=AGAIN {
        let (their, others) = ask_all(&theirs, &compared, &open, round > 0)?;
        let (mut left, mut why) = (Vec::new(), String::new());
        for (index, (cell, their)) in open.iter().zip(their).enumerate() {
            let (mut by, mut is_right) = (Vec::new(), true);
            for (compared, outcomes) in compared.iter().zip(&others) {
                let (wanted, differences) = expected(cell, &their, &compared.differences);
                by.extend(differences.iter().map(|difference| (compared.name, difference.name)));
                if outcomes[index] != wanted {
                    is_right = false;
                    why += &explanation(cell, compared.name, &outcomes[index], &their, &wanted);
                }
            }
            if is_right {
                by.into_iter().for_each(|difference| *used.entry(difference).or_default() += 1);
                seen.extend(their);
            } else {
                left.push(*cell);
            }
        }
        println!("{all} cells, {} asked, {} not as they should be", open.len(), left.len());
        if left.is_empty() {
            break;
        }
        if round == AGAIN {
            println!("{why}dropped by ours:\n{}", compared[0].side.drops()?);
            bail!("{} of {all} cells are not as they should be", left.len());
        }
        open = left;
    }
    for Compared { name: who, differences, .. } in &compared {
        for Difference { name, why, .. } in differences {
            let cells = used.get(&(*who, *name)).copied().unwrap_or_default();
            println!("{who}, {cells} cells: {name}, for {why}");
            ensure!(cells > 0, "{who}: nothing differs by this any more: {name}");
        }
    }
    for reply in [Reply::Refused, Reply::Silent] {
        ensure!(seen.contains(&reply), "no cell had {reply:?}: the table doesn't show what it is for");
    }
    Ok(())
}

fn explanation(cell: &Cell, name: &str, outcome: &Outcome, theirs: &Outcome, wanted: &Outcome) -> String {
    let what = if outcome == theirs { "does not differ any more" } else { "is not as it should be" };
    format!("{cell}: {name} {what}\n      has {outcome:?}\n   theirs {theirs:?}\n   wanted {wanted:?}\n")
}

/// Asks all sides at once.
fn ask_all(
    theirs: &Side,
    compared: &[Compared],
    cells: &[Cell],
    insistently: bool,
) -> Result<(Vec<Outcome>, Vec<Vec<Outcome>>)> {
    thread::scope(|scope| {
        let others: Vec<_> = compared.iter().map(|compared| scope.spawn(|| compared.side.ask(cells, insistently))).collect();
        let their = theirs.ask(cells, insistently)?;
        let others = others.into_iter().map(|other| other.join().map_err(|_| anyhow!("a side panicked"))?);
        Ok((their, others.collect::<Result<_>>()?))
    })
}

/// What somebody's must be, given theirs, and what of a list made it so.
fn expected(cell: &Cell, theirs: &Outcome, differences: &[&'static Difference]) -> (Outcome, Vec<&'static Difference>) {
    let mut wanted = theirs.clone();
    let mut used = Vec::new();
    for difference in differences {
        let other = wanted.iter().map(|reply| (difference.other)(cell, reply).unwrap_or_else(|| reply.clone())).collect();
        if other != wanted {
            wanted = other;
            used.push(*difference);
        }
    }
    (wanted, used)
}
