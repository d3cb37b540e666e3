//! The figure of a report.

use super::{Bar, Figure, Report, cell};
use crate::error::{Error, Result};
use crate::view::figure::{COLOURS, Legend, field, named_bars};
use plotters::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;

/// Width and height in pixels, without the legend.
const SIZE: (u32, u32) = (800, 500);

/// Draws the report's figure as SVG. `None` if there is nothing to show.
pub fn draw(report: &Report, facts: &Value) -> Result<Option<String>> {
    match &report.figure {
        Figure::Curves { x, y, range, by } => curves(report, facts, [*x, *y], *range, by),
        Figure::Bars(axis, each) => bars(report, facts, axis, each),
    }
}

/// Whether the report has rows of several backends.
fn has_several_backends(report: &Report) -> bool {
    report.columns[0] == "backend"
}

/// The title above the figure. With several backends it names the backends, because the names of the devices are too
/// long.
fn title(report: &Report, facts: &Value) -> String {
    format!("{} - {}", report.title, cell(&facts[if has_several_backends(report) { "backend" } else { "device" }]))
}

/// Draws bars for every row. With several backends, the bars of one row stand below each other.
fn bars(report: &Report, facts: &Value, axis: &str, bars: &[Bar]) -> Result<Option<String>> {
    let skip = usize::from(has_several_backends(report));
    let mut backends: Vec<String> = Vec::new();
    let mut items: Vec<(String, Vec<Option<f64>>)> = Vec::new();
    for row in &report.rows {
        let backend = if skip > 0 { cell(&row[0]) } else { String::new() };
        let series = backends.iter().position(|name| *name == backend).unwrap_or_else(|| {
            backends.push(backend);
            backends.len() - 1
        });
        let name = cell(&row[skip]);
        let item = items.iter().position(|item| item.0 == name).unwrap_or_else(|| {
            items.push((name, Vec::new()));
            items.len() - 1
        });
        let values = &mut items[item].1;
        values.resize(series * bars.len(), None);
        values.extend(bars.iter().map(|bar| (bar.of)(&row[skip..])));
    }
    if !items.iter().flat_map(|item| item.1.iter().flatten()).any(|x| *x > 0.0) {
        return Ok(None);
    }
    let names = |backend: &String| {
        let backend = backend.clone();
        bars.iter().map(move |bar| match (backend.is_empty(), bar.name.is_empty()) {
            (true, _) => bar.name.into(),
            (_, true) => backend.clone(),
            _ => format!("{backend}: {}", bar.name),
        })
    };
    let series: Vec<String> = backends.iter().flat_map(names).collect();
    named_bars(&title(report, facts), axis, &items, &series, SIZE.0).map(Some)
}

/// The points of a curve, and the two ends of the error bar at each point.
type Points = (Vec<(f64, f64)>, Vec<[(f64, f64); 2]>);

/// Draws one curve for each combination of values in the columns `by`.
fn curves(
    report: &Report,
    facts: &Value,
    [x, y]: [usize; 2],
    range: Option<[usize; 2]>,
    by: &[usize],
) -> Result<Option<String>> {
    let mut curves: BTreeMap<String, Points> = BTreeMap::new();
    for row in &report.rows {
        if let (Some(a), Some(b)) = (row[x].as_f64(), row[y].as_f64()) {
            let name: Vec<_> = by.iter().map(|k| cell(&row[*k])).collect();
            let (points, bars) = curves.entry(name.join(", ")).or_default();
            points.push((a, b));
            if let Some([Some(least), Some(most)]) = range.map(|ends| ends.map(|k| row[k].as_f64())) {
                bars.push([(a, least), (a, most)]);
            }
        }
    }
    let failed =
        |e: &dyn std::fmt::Display| Error::failed(format!("cannot draw the figure of `{}`: {e}", report.title));
    let points = || curves.values().flat_map(|(points, bars)| points.iter().chain(bars.as_flattened()));
    let most_x = points().map(|p| p.0).fold(0.0, f64::max).max(1.0);
    let most_y = points().map(|p| p.1).fold(0.0, f64::max);
    if most_y <= 0.0 {
        return Ok(None);
    }
    let names = || curves.keys().filter(|name| !name.is_empty()).map(String::as_str);
    let legend = Legend::of(names(), SIZE.0);
    let mut text = String::new();
    let sheet = SVGBackend::with_string(&mut text, (SIZE.0, SIZE.1 + legend.height()));
    let (root, below) = legend.under(sheet, SIZE.1)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title(report, facts), ("sans-serif", 18))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(76)
        .build_cartesian_2d(0.0..most_x * 1.05, 0.0..most_y * 1.1)
        .map_err(|e| failed(&e))?;
    chart
        .configure_mesh()
        .x_desc(report.columns[x])
        .y_desc(format!("{}{}", report.columns[y], if range.is_some() { " (bars: the least to the most)" } else { "" }))
        .x_label_formatter(&f64::to_string)
        .y_label_formatter(&f64::to_string)
        .light_line_style(WHITE)
        .label_style(("sans-serif", 14))
        .draw()
        .map_err(|e| failed(&e))?;
    for ((points, bars), colour) in curves.values().zip(COLOURS.iter().cycle()) {
        let bars = bars.iter().map(|ends| PathElement::new(*ends, colour.stroke_width(2)));
        chart.draw_series(bars).map_err(|e| failed(&e))?;
        chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2))).map_err(|e| failed(&e))?;
        chart.draw_series(points.iter().map(|p| Circle::new(*p, 4, colour.filled()))).map_err(|e| failed(&e))?;
    }
    legend.draw(&below, |k, at| field(at, COLOURS[k % COLOURS.len()]))?;
    root.present().map_err(|e| failed(&e))?;
    drop((chart, root, below));
    Ok(Some(text))
}
