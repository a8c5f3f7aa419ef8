//! Plots as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{Comparison, Curve, Figure, shown};

const WIDTH: u32 = 720;
const FONT: &str = "sans-serif";
/// Ours, then the rivals in their order.
const OURS: RGBColor = RGBColor(0x0b, 0x6e, 0x4f);
const RIVALS: [RGBColor; 5] = [
    RGBColor(0x8a, 0x8d, 0x91),
    RGBColor(0xc9, 0x7b, 0x2b),
    RGBColor(0x4a, 0x6f, 0xa5),
    RGBColor(0xa2, 0x3b, 0x72),
    RGBColor(0x6b, 0x4e, 0x3d),
];

/// A colour of a contender: ours is the same in every plot.
fn colour(name: &str, index: usize) -> RGBColor {
    if name == "shunt" { OURS } else { RIVALS[index % RIVALS.len()] }
}

/// A bar for each contender with its median, and a line from its min to its max.
///
/// # Errors
/// The file cannot be written.
pub(super) fn bars(path: &Path, comparison: &Comparison) -> Result<()> {
    let standings = &comparison.contenders;
    let height = 90 + 34 * standings.len() as u32;
    draw(path, height, |area| {
        let most = standings.iter().map(|standing| standing.figure.max).fold(f64::MIN_POSITIVE, f64::max) * 1.12;
        let rows = standings.len() as u32;
        let title = format!("{}, {}", comparison.title, comparison.unit);
        let mut chart = ChartBuilder::on(area)
            .caption(title, (FONT, 17))
            .margin(10)
            .x_label_area_size(26)
            .y_label_area_size(96)
            .build_cartesian_2d(0.0..most, (0..rows.saturating_sub(1)).into_segmented())?;
        // The first contender on top.
        let row_of = |index: usize| rows - 1 - index as u32;
        let name_at = |at: &SegmentValue<u32>| match at {
            SegmentValue::CenterOf(row) => {
                standings.get(rows.saturating_sub(1 + row) as usize).map_or("", |standing| standing.name)
            }
            _ => "",
        };
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .y_labels(standings.len())
            .y_label_formatter(&|at| name_at(at).to_owned())
            .x_label_formatter(&|value| shown_tick(*value))
            .label_style((FONT, 13))
            .draw()?;
        for (index, standing) in standings.iter().enumerate() {
            let (row, Figure { median, min, max, .. }) = (row_of(index), standing.figure);
            let (from, to) =
                (SegmentValue::Exact(row), if index == 0 { SegmentValue::Last } else { SegmentValue::Exact(row + 1) });
            let mut bar = Rectangle::new([(0.0, from), (median, to)], colour(standing.name, index).mix(0.85).filled());
            bar.set_margin(6, 6, 0, 0);
            chart.draw_series([bar])?;
            let middle = SegmentValue::CenterOf(row);
            chart.draw_series([PathElement::new([(min, middle.clone()), (max, middle.clone())], BLACK.stroke_width(2))])?;
            let style = TextStyle::from((FONT, 12)).pos(Pos::new(HPos::Left, VPos::Center));
            let text = Text::new(shown(median), (6, 0), style);
            chart.draw_series([EmptyElement::at((median.max(max), middle)) + text])?;
        }
        Ok(())
    })
}

/// A line for each contender over the sizes, which are on a logarithmic scale, with a bar from min to max at each.
///
/// # Errors
/// The file cannot be written.
pub(super) fn curve(path: &Path, curve: &Curve) -> Result<()> {
    draw(path, 380, |area| {
        let points = || curve.lines.iter().flat_map(|(_, points)| points);
        let sizes = points().map(|(size, _)| *size);
        let (least, most) = sizes.fold((f64::MAX, 1.0_f64), |(least, most), size| (least.min(size), most.max(size)));
        let top = points().map(|(_, figure)| figure.max).fold(f64::MIN_POSITIVE, f64::max) * 1.1;
        let mut chart = ChartBuilder::on(area)
            .caption(&curve.title, (FONT, 17))
            .margin(10)
            .x_label_area_size(42)
            .y_label_area_size(60)
            .build_cartesian_2d((least * 0.8..most * 1.25).log_scale(), 0.0..top)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc(curve.size)
            .y_desc(curve.unit)
            .x_label_formatter(&|value| shown_tick(*value))
            .y_label_formatter(&|value| shown_tick(*value))
            .label_style((FONT, 13))
            .draw()?;
        for (index, (name, points)) in curve.lines.iter().enumerate() {
            let colour = colour(name, index);
            let line = points.iter().map(|(size, figure)| (*size, figure.median));
            chart
                .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
            for (size, Figure { median, min, max, .. }) in points {
                chart.draw_series([PathElement::new([(*size, *min), (*size, *max)], colour.stroke_width(1))])?;
                chart.draw_series([Circle::new((*size, *median), 3, colour.filled())])?;
            }
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerLeft)
            .background_style(WHITE.mix(0.8))
            .label_font((FONT, 13))
            .draw()?;
        Ok(())
    })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

fn draw(path: &Path, height: u32, body: impl FnOnce(&Area<'_>) -> Drawn) -> Result<()> {
    let area = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    let drawn = area.fill(&WHITE).and_then(|()| body(&area)).and_then(|()| area.present());
    drawn.map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

/// A number at an axis: without digits that say nothing.
fn shown_tick(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}").trim_end_matches('0').to_owned() }
}
