//! What was measured: rows beside their goals for the terminal, comparisons and curves besides for a report with plots.

use std::{fmt::Write as _, path::Path};

use anyhow::Result;

use super::{
    Group,
    figure::{Figure, shown},
    machine::Facts,
};

mod markdown;
mod plot;
mod slower;

/// What a figure has to reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// Shown for comparison; it cannot fall short.
    None,
}

impl Goal {
    fn reached(self, figure: f64) -> bool {
        match self {
            Self::AtMost(limit) => figure <= limit,
            Self::AtLeast(limit) => figure >= limit,
            Self::None => true,
        }
    }

    fn shown(self, unit: &str) -> String {
        match self {
            Self::AtMost(limit) => format!("<= {limit}{unit}"),
            Self::AtLeast(limit) => format!(">= {limit}{unit}"),
            Self::None => String::new(),
        }
    }
}

/// A figure beside its goal.
#[derive(Debug)]
struct Row {
    name: String,
    goal: Goal,
    unit: &'static str,
    figure: Option<Figure>,
    detail: String,
}

impl Row {
    fn short(&self) -> bool {
        !matches!(self.goal, Goal::None) && !self.figure.is_some_and(|figure| self.goal.reached(figure.median))
    }

    fn line(&self) -> String {
        let mut line = format!("{:<66}", self.name);
        if let Some(figure) = self.figure {
            let measured = format!("{:.2}{}", figure.median, self.unit);
            let _ = write!(line, " {:>10} {measured:>10} {:>8.2} {:>8.2}", self.goal.shown(self.unit), figure.min, figure.max);
        }
        let verdict = if self.short() { "SHORT" } else { "" };
        let _ = write!(line, "  {verdict:<5}  {}", self.detail);
        line.trim_end().to_owned()
    }
}

/// One thing measured of several contenders that took turns.
#[derive(Clone, Debug)]
pub(crate) struct Comparison {
    pub(crate) title: String,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    /// The first is the one that the others are held against.
    pub(crate) contenders: Vec<Standing>,
}

/// Which end of the scale is the good one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
}

/// How one contender did.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) name: &'static str,
    pub(crate) figure: Figure,
    /// CPU time of the whole machine for one piece of work in microseconds, and what a piece is.
    pub(crate) cpu: Option<(f64, &'static str)>,
}

/// A name for each line, and what it has at each of its sizes.
pub(crate) type Lines<T> = Vec<(&'static str, Vec<(f64, T)>)>;

/// One thing measured at several sizes.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    pub(crate) title: String,
    /// What is more of from left to right: on a logarithmic scale.
    pub(crate) size: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    pub(crate) lines: Lines<Figure>,
    /// What a piece of work is, and how many microseconds of the whole machine's CPU time one took, for each line at its sizes.
    pub(crate) cpu: Option<(&'static str, Lines<f64>)>,
    /// Why ours may be slower than a rival, if that is known.
    pub(crate) reason: Option<&'static str>,
}

impl Curve {
    /// Over numbers of Services; CPU time was not counted.
    pub(crate) fn over_services(title: String, unit: &'static str, better: Better, lines: Lines<Figure>) -> Self {
        Self { title, size: "Services", unit, better, lines, cpu: None, reason: None }
    }
}

/// All of a group.
#[derive(Debug)]
struct Chapter {
    group: Group,
    rows: Vec<Row>,
    comparisons: Vec<Comparison>,
    curves: Vec<Curve>,
}

/// What comes in, in the order in which it comes.
#[derive(Debug, Default)]
pub(crate) struct Report {
    chapters: Vec<Chapter>,
}

impl Report {
    /// What comes from now on belongs to a group.
    pub(crate) fn begin(&mut self, group: Group) {
        if self.chapters.last().is_none_or(|chapter| chapter.group != group) {
            self.chapters.push(Chapter { group, rows: Vec::new(), comparisons: Vec::new(), curves: Vec::new() });
        }
    }

    fn chapter(&mut self) -> &mut Chapter {
        if self.chapters.is_empty() {
            self.begin(Group::Data);
        }
        let last = self.chapters.len() - 1;
        &mut self.chapters[last]
    }

    /// Adds a row; `unit` is empty for a ratio.
    pub(crate) fn row(&mut self, name: &str, goal: Goal, unit: &'static str, figure: Figure, detail: String) {
        self.chapter().rows.push(Row { name: name.to_owned(), goal, unit, figure: Some(figure), detail });
    }

    /// Adds rows that could not be measured: they fall short.
    pub(crate) fn unmeasured(&mut self, name: &str, error: &anyhow::Error) {
        let detail = format!("not measured: {error:#}");
        let goal = Goal::AtLeast(f64::INFINITY);
        self.chapter().rows.push(Row { name: name.to_owned(), goal, unit: "", figure: None, detail });
    }

    /// Adds what a written report shows in absolute figures.
    pub(crate) fn comparison(&mut self, comparison: Comparison) {
        self.chapter().comparisons.push(comparison);
    }

    /// Adds what a written report plots over a size.
    pub(crate) fn curve(&mut self, curve: Curve) {
        self.chapter().curves.push(curve);
    }

    /// Prints the table, where ours is slower than a rival, and, last, `N rows, M short`.
    pub(crate) fn print(&self) {
        println!("{:<66} {:>10} {:>10} {:>8} {:>8}", "", "goal", "measured", "min", "max");
        for chapter in &self.chapters {
            println!("{}", chapter.group.name());
            for row in &chapter.rows {
                println!("{}", row.line());
            }
        }
        let beside = slower::Beside::of(&self.chapters);
        println!("\n{}", beside.summary());
        for slower in &beside.slower {
            println!("    {slower}");
        }
        println!("\n{}", self.summary());
    }

    /// `N rows, M short`, of those with a goal.
    fn summary(&self) -> String {
        let rows = self.chapters.iter().flat_map(|chapter| &chapter.rows);
        let rows = rows.filter(|row| !matches!(row.goal, Goal::None));
        format!("{} rows, {} short", rows.clone().count(), rows.filter(|row| row.short()).count())
    }

    /// Writes `README.md` and its plots into a directory, which is made.
    ///
    /// # Errors
    /// A file could not be written.
    pub(crate) fn write(&self, dir: &Path, facts: &Facts) -> Result<()> {
        markdown::write(self, dir, facts)
    }
}

impl Comparison {
    /// A contender's figure over that of the first.
    fn of_the_first(&self, standing: &Standing) -> Option<String> {
        let first = self.contenders.first()?;
        Some(shown(standing.figure.median / first.figure.median))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rows_with_a_goal_fall_short() {
        let mut report = Report::default();
        report.row("a", Goal::AtMost(1.0), "", Figure::of(&[1.1]), String::new());
        report.row("b", Goal::AtLeast(1.0), "", Figure::of(&[1.1]), String::new());
        report.row("c", Goal::None, "", Figure::of(&[1.1]), String::new());
        report.unmeasured("d", &anyhow::anyhow!("no iperf3"));
        let short: Vec<_> = report.chapters[0].rows.iter().map(Row::short).collect();
        assert_eq!((short.as_slice(), report.summary().as_str()), ([true, false, false, true].as_slice(), "3 rows, 2 short"));
    }
}
