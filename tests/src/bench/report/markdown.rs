//! A report for readers who were not there.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{
    Better, Chapter, Comparison, Curve, Figure, Report, Row, plot, shown,
    slower::{Beside, Slower},
};
use crate::bench::machine::Facts;

/// What no figure of a lab can show.
const LIMITS: &str = "\
- Wires are veth pairs. A NIC has queues, interrupts, DMA and its own offloads: it makes every contender slower and the differences
  between them smaller in relation. XDP in a NIC's driver runs before a packet's buffer is a kernel's; on veth it runs after.
- Both ends of a path, and all between, share one CPU: a rate is what the whole path costs, not what one machine of a pair could carry.
  TCP streams are sent and received by batch processes (SCHED_BATCH): others preempt each other by chance, at one of two speeds.
  None is paced, so that it is the path that limits them: a full queue of the wire drops, and what is lost there is sent again.
  CPU figures are of the whole machine, from the kernel's accounting (`/proc/stat`, ticks of 10 ms).
- Segments are cut to the MTU before the wire, as a wire has them; checksums there are left to a NIC that does them for nothing.
- Ratios are of medians over rounds in which contenders took turns; min and max are of single rounds. In the chapters Change and Scale
  no rival takes turns with ours, and some figures are single ones, which have no min and max: each chapter says so. n is how many rounds, starts or
  changes a figure is of. Absolute figures belong to this machine.
";

/// See [`Report::write`].
pub(super) fn write(report: &Report, dir: &Path, facts: &Facts) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut text = String::from("# Benchmark\n\n");
    let _ = writeln!(text, "{}, measured by\n\n    {}\n\nin {}.\n", report.summary(), facts.command, facts.duration());
    let _ = writeln!(text, "## Machine\n\n| | |\n| --- | --- |");
    for (name, fact) in &facts.list {
        let _ = writeln!(text, "| {name} | {} |", cell(fact));
    }
    let _ = writeln!(text, "\n## What these figures cannot show\n\n{LIMITS}");
    slower_of(&Beside::of(&report.chapters), &mut text);
    for chapter in &report.chapters {
        chapter_of(chapter, dir, &mut text)?;
    }
    let path = dir.join("README.md");
    fs::write(&path, text.trim_end().to_owned() + "\n").with_context(|| format!("cannot write {}", path.display()))
}

fn slower_of(beside: &Beside, text: &mut String) {
    let _ = writeln!(text, "## Where shunt is slower\n\nBy medians, {}.\n", beside.summary());
    if beside.slower.is_empty() {
        return;
    }
    let _ = writeln!(text, "| | | shunt | | rival | reason |\n| --- | --- | --- | --- | --- | --- |");
    for slower in &beside.slower {
        let Slower { what, unit, ours, rival, theirs, .. } = slower;
        let _ = writeln!(
            text,
            "| {} | {unit} | {} | {rival} | {} | {} |",
            cell(what),
            spread(ours),
            spread(theirs),
            cell(slower.reason())
        );
    }
    text.push('\n');
}

fn chapter_of(chapter: &Chapter, dir: &Path, text: &mut String) -> Result<()> {
    let _ = writeln!(text, "## {}\n\n{}\n", chapter.group.title(), chapter.group.about());
    if !chapter.rows.is_empty() {
        let _ = writeln!(text, "| | goal | measured | min | max | n | | |\n| --- | --- | --- | --- | --- | --- | --- | --- |");
        for row in &chapter.rows {
            let _ = writeln!(text, "{}", line(row));
        }
        text.push('\n');
    }
    for curve in &chapter.curves {
        let file = file_of(dir, &curve.title);
        plot::curve(&file, curve)?;
        let _ = writeln!(text, "### {}\n\n{}", curve.title, image(&file, &curve.title));
        table_of_curve(curve, text);
    }
    for comparison in &chapter.comparisons {
        let file = file_of(dir, &comparison.title);
        plot::bars(&file, comparison)?;
        let _ = writeln!(text, "### {}\n\n{}", comparison.title, image(&file, &comparison.title));
        table_of_comparison(comparison, text);
    }
    Ok(())
}

fn line(row: &Row) -> String {
    let verdict = if row.short() { "**short**" } else { "" };
    let (name, detail) = (cell(&row.name), cell(&row.detail));
    let Some(figure) = row.figure else { return format!("| {name} | | | | | | {verdict} | {detail} |") };
    let median = shown(figure.median);
    let [min, max] = [figure.min, figure.max].map(|end| if figure.count > 1 { shown(end) } else { String::new() });
    let (goal, unit, count) = (row.goal.shown(row.unit), row.unit, figure.count);
    format!("| {name} | {goal} | {median}{unit} | {min} | {max} | {count} | {verdict} | {detail} |")
}

fn table_of_curve(curve: &Curve, text: &mut String) {
    let sizes = curve.lines.first().map(|(_, points)| points.as_slice()).unwrap_or_default();
    let heads: String = sizes.iter().fold(String::new(), |heads, (size, _)| heads + &format!(" {size} |"));
    let mut counts = curve.lines.iter().flat_map(|(_, points)| points).map(|(_, figure)| figure.count);
    let first = counts.next();
    let common = first.filter(|first| counts.all(|count| count == *first));
    let head = common.map_or(String::new(), |count| format!(" (n = {count})"));
    let _ = writeln!(text, "| {}, by {}{head} |{heads}\n| --- |{}", curve.unit, curve.size, " --- |".repeat(sizes.len()));
    let show = |figure: &Figure| match common {
        Some(_) => spread(figure),
        None => format!("{}, n = {}", spread(figure), figure.count),
    };
    for (name, points) in &curve.lines {
        let _ = writeln!(text, "| {name} |{}", cells(sizes, points, show));
    }
    if let Some((work, lines)) = &curve.cpu {
        for (name, times) in lines {
            let _ = writeln!(text, "| {name}, CPU us per {work} |{}", cells(sizes, times, |time| shown(*time)));
        }
    }
    text.push('\n');
}

/// A cell for each size of a table's head; empty where a line has no point.
fn cells<T>(sizes: &[(f64, Figure)], points: &[(f64, T)], show: impl Fn(&T) -> String) -> String {
    let at = |size| points.iter().find(|(other, _)| other == size).map(|(_, value)| show(value) + " ").unwrap_or_default();
    sizes.iter().fold(String::new(), |cells, (size, _)| cells + " " + &at(size) + "|")
}

fn table_of_comparison(comparison: &Comparison, text: &mut String) {
    let better = if comparison.better == Better::More { "more" } else { "less" };
    let work = comparison.contenders.iter().find_map(|standing| standing.cpu).map(|(_, work)| work);
    let first = comparison.contenders.first().map_or("", |standing| standing.name);
    let _ = write!(text, "| {} ({better} is better) | median | min | max | over {first} |", comparison.unit);
    let cpu = work.map_or(String::new(), |work| format!(" CPU us per {work} |"));
    let _ = writeln!(text, "{cpu}\n| --- | --- | --- | --- | --- |{}", if work.is_some() { " --- |" } else { "" });
    for standing in &comparison.contenders {
        let [median, min, max] = [standing.figure.median, standing.figure.min, standing.figure.max].map(shown);
        let over = comparison.of_the_first(standing).unwrap_or_default();
        let _ = write!(text, "| {} | {median} | {min} | {max} | {over} |", standing.name);
        let cpu = standing.cpu.map_or(String::new(), |(time, _)| format!(" {} |", shown(time)));
        let _ = writeln!(text, "{cpu}");
    }
    text.push('\n');
}

/// A median, and from where to where single rounds went, if there were several.
fn spread(figure: &Figure) -> String {
    if figure.count == 1 {
        return shown(figure.median);
    }
    format!("{} ({}-{})", shown(figure.median), shown(figure.min), shown(figure.max))
}

/// Where a plot lies: its title in small letters.
fn file_of(dir: &Path, title: &str) -> PathBuf {
    let words = title.to_lowercase();
    let words: Vec<_> = words.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    dir.join(words.join("-")).with_extension("svg")
}

fn image(file: &Path, title: &str) -> String {
    format!("![{title}]({})\n", file.file_name().unwrap_or_default().to_string_lossy())
}

/// Text that doesn't end a table's cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{
        Group,
        figure::Figure,
        report::{Goal, Standing},
    };

    #[test]
    fn a_report_has_a_table_and_a_plot_for_all_that_was_measured() {
        let mut report = Report::default();
        report.begin(Group::Data);
        report.row("cross node | 64 B", Goal::AtLeast(0.75), "", Figure::of(&[0.7, 0.8, 0.6]), "detail".to_owned());
        let standing = |name, values: &[f64], cpu| Standing { name, figure: Figure::of(values), cpu: Some((cpu, "packet")) };
        report.comparison(Comparison {
            title: "Packets of 64 B, cross node".to_owned(),
            unit: "k/s",
            better: Better::More,
            contenders: vec![standing("bare", &[100.0, 110.0], 1.25), standing("shunt", &[75.0, 76.0], 1.75)],
        });
        report.row("a start", Goal::None, " s", Figure::of(&[2.0]), "alone".to_owned());
        report.begin(Group::Services);
        let line = |values: [f64; 2]| vec![(10.0, Figure::of(&values[..1])), (1000.0, Figure::of(&values[1..]))];
        let lines = vec![("shunt", line([9.0, 9.5])), ("iptables", line([8.0, 10.0]))];
        report.curve(Curve {
            cpu: Some(("connection", vec![("shunt", vec![(1000.0, 105.0)])])),
            reason: Some("it is made up"),
            ..Curve::over_services("Connections".to_owned(), "k/s", Better::More, lines)
        });
        let effects = [("shunt", vec![(10.0, Figure::of(&[2.0, 3.0, 4.0]))]), ("nftables", vec![(10.0, Figure::of(&[5.0]))])];
        report.curve(Curve::over_services("Effects".to_owned(), "ms", Better::Less, effects.to_vec()));
        let dir = tempfile::tempdir().unwrap();
        write(&report, dir.path(), &Facts::default()).unwrap();
        let text = fs::read_to_string(dir.path().join("README.md")).unwrap();
        for line in [
            "1 rows, 1 short, measured by",
            "| cross node \\| 64 B | >= 0.75 | 0.700 | 0.600 | 0.800 | 3 | **short** | detail |",
            "| a start |  | 2.00 s |  |  | 1 |  | alone |",
            "![Packets of 64 B, cross node](packets-of-64-b-cross-node.svg)",
            "| k/s (more is better) | median | min | max | over bare | CPU us per packet |",
            "| shunt | 75.5 | 75.0 | 76.0 | 0.719 | 1.75 |",
            "| k/s, by Services (n = 1) | 10 | 1000 |",
            "| shunt | 9.00 | 9.50 |",
            "| ms, by Services | 10 |",
            "| shunt | 3.00 (2.00-4.00), n = 3 |",
            "| nftables | 5.00, n = 1 |",
            "| shunt, CPU us per connection | | 105 |",
            "By medians, slower than flannel or a mode of kube-proxy in 1 of 3 figures: 0 of them within the spread of the rounds, 0 beyond it \
             without a reason given.",
            "| Connections, 1000 Services | k/s | 9.50 | iptables | 10.0 | it is made up |",
        ] {
            assert!(text.lines().any(|found| found.starts_with(line)), "{line} is not in\n{text}");
        }
        for (plot, word) in [("packets-of-64-b-cross-node.svg", "bare"), ("connections.svg", "Services")] {
            let drawn = fs::read_to_string(dir.path().join(plot)).unwrap();
            assert!(drawn.contains("<svg") && drawn.contains(word), "{plot}");
        }
    }
}
