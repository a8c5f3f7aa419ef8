//! The truth table: who answers a client, and whom it sees, for every Service by every way in from everywhere; with us and with kube-proxy.
//!
//! ```text
//!   outside -- router --+-- n1 -- pods a, b       virtual addresses are routed to n1
//!                       +-- n2 -- pods c, d       b and c are backends, and so are n1, n2 and the outside
//! ```
//!
//! The lab is built twice: with nodes of ours, and with nodes of flannel and rules as kube-proxy writes them, which say what is right; and that for each
//! way in which ours translate. The cells are generated; all that is written by hand is where we differ.

mod cells;
mod differences;
mod sides;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, anyhow, bail, ensure};
use shunt_lab::{both_translations, translation::Translation};

use cells::{Cell, cells};
use differences::{Difference, ON_PURPOSE, OWED};
use sides::{Outcome, Reply, Side};

/// How often a cell is asked again that is not as it should be: a machine under load is slow to answer, and chance may leave a backend out.
const AGAIN: usize = 3;

both_translations!(every_cell_has_the_outcome_that_kube_proxy_gives_it);

fn every_cell_has_the_outcome_that_kube_proxy_gives_it(translation: Translation) -> Result<()> {
    let ours = Side::ours(translation)?;
    let theirs = Side::theirs(&ours)?;
    let mut open = cells(translation);
    let all = open.len();
    let mut used: BTreeMap<&str, usize> = BTreeMap::new();
    let mut seen: BTreeSet<Reply> = BTreeSet::new();
    for round in 0..=AGAIN {
        let (our, their) = ask_both(&ours, &theirs, &open, round > 0)?;
        let mut left = Vec::new();
        for ((cell, our), their) in open.iter().zip(our).zip(their) {
            let (wanted, differences) = expected(cell, &their);
            if our == wanted {
                for difference in differences {
                    *used.entry(difference.name).or_default() += 1;
                }
                seen.extend(their);
            } else {
                left.push((*cell, our, their, wanted));
            }
        }
        println!("{all} cells, {} asked, {} not as they should be", open.len(), left.len());
        if left.is_empty() {
            break;
        }
        if round == AGAIN {
            for (cell, our, their, wanted) in &left {
                let what = if our == their { "does not differ any more" } else { "is not as it should be" };
                println!("{cell} {what}\n     ours {our:?}\n   theirs {their:?}\n   wanted {wanted:?}");
            }
            println!("dropped by ours:\n{}", ours.drops()?);
            bail!("{} of {all} cells are not as they should be", left.len());
        }
        open = left.into_iter().map(|(cell, ..)| cell).collect();
    }
    for difference in differences() {
        let cells = used.get(difference.name).copied().unwrap_or_default();
        println!("{cells} cells: {}, for {}", difference.name, difference.why);
        ensure!(cells > 0, "nothing differs by this any more: {}", difference.name);
    }
    for reply in [Reply::Refused, Reply::Silent] {
        ensure!(seen.contains(&reply), "no cell had {reply:?}: the table doesn't show what it is for");
    }
    Ok(())
}

fn ask_both(ours: &Side, theirs: &Side, cells: &[Cell], insistently: bool) -> Result<(Vec<Outcome>, Vec<Outcome>)> {
    std::thread::scope(|scope| {
        let their = scope.spawn(|| theirs.ask(cells, insistently));
        let our = ours.ask(cells, insistently)?;
        let their = their.join().map_err(|_| anyhow!("the other side panicked"))??;
        Ok((our, their))
    })
}

/// What ours must be, given theirs, and what of the list made it so.
fn expected(cell: &Cell, theirs: &Outcome) -> (Outcome, Vec<&'static Difference>) {
    let mut wanted = theirs.clone();
    let mut used = Vec::new();
    for difference in differences() {
        let ours = wanted.iter().map(|reply| (difference.ours)(cell, reply).unwrap_or_else(|| reply.clone())).collect();
        if ours != wanted {
            wanted = ours;
            used.push(difference);
        }
    }
    (wanted, used)
}

fn differences() -> impl Iterator<Item = &'static Difference> {
    ON_PURPOSE.iter().chain(&OWED)
}
