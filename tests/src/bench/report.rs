//! The table.

use std::fmt::Write as _;

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

/// A figure with its spread over the rounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Figure {
    /// Of single values.
    pub(crate) fn of(values: &[f64]) -> Self {
        let sorted = sorted(values);
        let end = |value: Option<&f64>| value.copied().unwrap_or(f64::NAN);
        Self { median: median(values), min: end(sorted.first()), max: end(sorted.last()) }
    }

    /// The ratio of two contenders' medians; min and max of the ratios round by round.
    pub(crate) fn ratio(ours: &[f64], theirs: &[f64]) -> Self {
        let rounds: Vec<f64> = ours.iter().zip(theirs).map(|(our, their)| our / their).collect();
        Self { median: median(ours) / median(theirs), ..Self::of(&rounds) }
    }
}

/// The median; not a number if there are none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

/// The value that a share of all values doesn't exceed (the nearest rank); not a number if there are none.
pub(crate) fn percentile(values: &[f64], share: f64) -> f64 {
    let sorted = sorted(values);
    let rank = (share * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

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
}

/// Rows as they come.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Adds a row; `unit` is empty for a ratio.
    pub(crate) fn row(&mut self, name: &str, goal: Goal, unit: &'static str, figure: Figure, detail: String) {
        self.rows.push(Row { name: name.to_owned(), goal, unit, figure: Some(figure), detail });
    }

    /// Adds rows that could not be measured: they fall short.
    pub(crate) fn unmeasured(&mut self, name: &str, error: &anyhow::Error) {
        let detail = format!("not measured: {error:#}");
        self.rows.push(Row { name: name.to_owned(), goal: Goal::AtLeast(f64::INFINITY), unit: "", figure: None, detail });
    }

    /// Prints the table and, last, `N rows, M short`.
    pub(crate) fn print(&self) {
        println!("{:<50} {:>10} {:>10} {:>8} {:>8}", "", "goal", "measured", "min", "max");
        for row in &self.rows {
            println!("{}", row.line());
        }
        let rows = self.rows.iter().filter(|row| !matches!(row.goal, Goal::None));
        println!("\n{} rows, {} short", rows.clone().count(), rows.filter(|row| row.short()).count());
    }
}

impl Row {
    fn line(&self) -> String {
        let mut line = format!("{:<50}", self.name);
        if let Some(figure) = self.figure {
            let measured = format!("{:.2}{}", figure.median, self.unit);
            let _ = write!(line, " {:>10} {measured:>10} {:>8.2} {:>8.2}", self.goal.shown(self.unit), figure.min, figure.max);
        }
        let verdict = if self.short() { "SHORT" } else { "" };
        let _ = write!(line, "  {verdict:<5}  {}", self.detail);
        line.trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_medians_and_its_spread_of_rounds() {
        let figure = Figure::ratio(&[2.0, 4.0, 9.0], &[2.0, 2.0, 3.0]);
        assert_eq!((figure.median, figure.min, figure.max), (2.0, 1.0, 3.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(median(&[]).is_nan());
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((percentile(&hundred, 0.5), percentile(&hundred, 0.99), percentile(&[7.0], 0.99)), (50.0, 99.0, 7.0));
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn only_rows_with_a_goal_fall_short() {
        let mut report = Report::default();
        report.row("a", Goal::AtMost(1.0), "", Figure::of(&[1.1]), String::new());
        report.row("b", Goal::AtLeast(1.0), "", Figure::of(&[1.1]), String::new());
        report.row("c", Goal::None, "", Figure::of(&[1.1]), String::new());
        report.unmeasured("d", &anyhow::anyhow!("no iperf3"));
        assert_eq!(report.rows.iter().map(Row::short).collect::<Vec<_>>(), [true, false, false, true]);
    }
}
