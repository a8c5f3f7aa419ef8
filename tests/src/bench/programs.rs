//! What a packet costs in each program, by the way that it takes, and how large programs are; kept in a committed [`baseline`].

use anyhow::Result;

use super::{
    Options,
    figure::{Figure, median},
    report::{Goal, Report},
};

pub mod baseline;
mod paths;
mod size;
mod time;

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    if options.rivals_only {
        return Ok(());
    }
    for time in time::measure(options.rounds(), if options.quick { 1000 } else { 5000 })? {
        let detail = format!("{:.0} ns, empty {:.0} ns", median(&time.full), median(&time.empty));
        report.row(&time.name, Goal::None, " ns", Figure::of(&time.over()), detail);
    }
    Ok(())
}
