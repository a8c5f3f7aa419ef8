//! Where ours is slower than a rival, computed from all that was measured of both.

use std::fmt;

use super::{super::rival::MODES, Better, Chapter, Figure, shown};

/// What ours must never be slower than.
const RIVALS: [&str; 3] = ["flannel", MODES[0].0, MODES[1].0];
const OURS: &str = "shunt";

/// All figures that ours and a rival have of the same.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// How many there are.
    compared: usize,
    /// Those in which ours is the slower one.
    pub(super) slower: Vec<Slower>,
}

/// A figure in which ours is slower than a rival.
#[derive(Debug)]
pub(super) struct Slower {
    /// The title of what was measured, and the size if there are several.
    pub(super) what: String,
    pub(super) unit: &'static str,
    pub(super) ours: Figure,
    pub(super) rival: &'static str,
    pub(super) theirs: Figure,
    /// Written where it is measured.
    reason: Option<&'static str>,
}

/// What is measured of several at once: a title, what counts, and each one's figure.
struct Contest {
    what: String,
    unit: &'static str,
    better: Better,
    reason: Option<&'static str>,
    figures: Vec<(&'static str, Figure)>,
}

impl Beside {
    pub(super) fn of(chapters: &[Chapter]) -> Self {
        let mut beside = Self::default();
        for contest in chapters.iter().flat_map(contests) {
            beside.judge(&contest);
        }
        beside
    }

    fn judge(&mut self, contest: &Contest) {
        let of = |name| contest.figures.iter().find(|(known, _)| *known == name).map(|(_, figure)| *figure);
        let Some(ours) = of(OURS) else { return };
        for rival in RIVALS {
            let Some(theirs) = of(rival) else { continue };
            self.compared += 1;
            let is_slower = match contest.better {
                Better::More => ours.median < theirs.median,
                Better::Less => ours.median > theirs.median,
            };
            if is_slower {
                let Contest { what, unit, reason, .. } = contest;
                self.slower.push(Slower { what: what.clone(), unit, ours, rival, theirs, reason: *reason });
            }
        }
    }

    /// How many, in a sentence.
    pub(super) fn summary(&self) -> String {
        let within = self.slower.iter().filter(|slower| slower.is_within_the_spread()).count();
        let without = self.slower.iter().filter(|slower| slower.reason.is_none() && !slower.is_within_the_spread()).count();
        format!(
            "slower than flannel or a mode of kube-proxy in {} of {} figures: {within} of them within the spread of the rounds, {without} beyond \
             it without a reason given",
            self.slower.len(),
            self.compared
        )
    }
}

/// Comparisons as they are, and each size of a curve.
fn contests(chapter: &Chapter) -> Vec<Contest> {
    let comparisons = chapter.comparisons.iter().map(|comparison| Contest {
        what: comparison.title.clone(),
        unit: comparison.unit,
        better: comparison.better,
        reason: None,
        figures: comparison.contenders.iter().map(|standing| (standing.name, standing.figure)).collect(),
    });
    let mut contests: Vec<_> = comparisons.collect();
    for curve in &chapter.curves {
        let Some((_, sizes)) = curve.lines.iter().find(|(name, _)| *name == OURS) else { continue };
        for (size, _) in sizes {
            let here = |points: &'_ [(f64, Figure)]| points.iter().find(|(other, _)| other == size).map(|(_, figure)| *figure);
            contests.push(Contest {
                what: format!("{}, {size} {}", curve.title, curve.size),
                unit: curve.unit,
                better: curve.better,
                reason: curve.reason,
                figures: curve.lines.iter().filter_map(|(name, points)| Some((*name, here(points)?))).collect(),
            });
        }
    }
    contests
}

impl Slower {
    /// Whether some round of ours was as good as some round of the rival's.
    fn is_within_the_spread(&self) -> bool {
        self.ours.min <= self.theirs.max && self.theirs.min <= self.ours.max
    }

    pub(super) fn reason(&self) -> &'static str {
        self.reason.unwrap_or(if self.is_within_the_spread() { "within the spread of the rounds" } else { "no reason given" })
    }
}

impl fmt::Display for Slower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, unit, ours, rival, theirs, .. } = self;
        let [ours, theirs] = [ours, theirs].map(|figure| shown(figure.median));
        write!(f, "{what}: {ours} {unit}, {rival} {theirs} {unit}: {}", self.reason())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Comparison, Curve, Report, Standing},
        *,
    };

    #[test]
    fn whatever_ours_and_a_rival_were_measured_at_is_held_against_each_other() {
        let mut report = Report::default();
        let standing = |name, rounds: &[f64]| Standing { name, figure: Figure::of(rounds), cpu: None };
        let comparison = |title: &str, better, figures: &[(&'static str, &[f64])]| Comparison {
            title: title.to_owned(),
            unit: "k/s",
            better,
            contenders: figures.iter().map(|(name, rounds)| standing(name, rounds)).collect(),
        };
        report.comparison(comparison("as fast", Better::More, &[("veth", &[9.0]), ("flannel", &[5.0]), ("shunt", &[5.0])]));
        report.comparison(comparison("less", Better::More, &[("flannel", &[5.0]), ("shunt", &[4.0])]));
        report.comparison(comparison("later", Better::Less, &[("flannel", &[5.0]), ("shunt", &[6.0])]));
        report.comparison(comparison(
            "now and then",
            Better::Less,
            &[("flannel", &[4.0, 5.0, 7.0]), ("shunt", &[5.5, 6.0, 6.5])],
        ));
        report.comparison(comparison("nobody to compare with", Better::Less, &[("direct", &[5.0]), ("service", &[6.0])]));
        let points = |values: &[(f64, f64)]| values.iter().map(|(size, value)| (*size, Figure::of(&[*value]))).collect();
        let lines = vec![
            ("shunt", points(&[(10.0, 2.0), (1000.0, 2.0)])),
            ("iptables", points(&[(10.0, 1.0), (1000.0, 3.0)])),
            // A size without nftables is no size at which ours is slower.
            ("nftables", points(&[(1000.0, 1.0)])),
        ];
        let curve = Curve::over_services("start".to_owned(), "s", Better::Less, lines);
        report.curve(Curve { reason: Some("measured on a Sunday"), ..curve.clone() });
        report.curve(Curve { title: "again".to_owned(), ..curve });
        let beside = Beside::of(&report.chapters);
        let listed: Vec<_> = beside.slower.iter().map(ToString::to_string).collect();
        assert_eq!(
            listed,
            [
                "less: 4.00 k/s, flannel 5.00 k/s: no reason given",
                "later: 6.00 k/s, flannel 5.00 k/s: no reason given",
                "now and then: 6.00 k/s, flannel 5.00 k/s: within the spread of the rounds",
                "start, 10 Services: 2.00 s, iptables 1.00 s: measured on a Sunday",
                "start, 1000 Services: 2.00 s, nftables 1.00 s: measured on a Sunday",
                "again, 10 Services: 2.00 s, iptables 1.00 s: no reason given",
                "again, 1000 Services: 2.00 s, nftables 1.00 s: no reason given",
            ]
        );
        let summary = "slower than flannel or a mode of kube-proxy in 7 of 10 figures: 1 of them within the spread of the rounds, 4 beyond it \
                       without a reason given";
        assert_eq!(beside.summary(), summary);
    }
}
