//! The figure of a report.

use super::{Report, cell};
use crate::error::{Error, Result};
use crate::figure::COLOURS;
use plotters::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;

/// The report's figure as SVG, if it has one and anything to show in it.
pub fn draw(report: &Report, facts: &Value) -> Result<Option<String>> {
    let Some((x, y, by)) = &report.figure else { return Ok(None) };
    let mut curves: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for row in &report.rows {
        if let (Some(a), Some(b)) = (row[*x].as_f64(), row[*y].as_f64()) {
            let name: Vec<_> = by.iter().map(|k| cell(&row[*k])).collect();
            curves.entry(name.join(", ")).or_default().push((a, b));
        }
    }
    let failed =
        |e: &dyn std::fmt::Display| Error::failed(format!("the figure of `{}` cannot be drawn: {e}", report.title));
    let points = || curves.values().flatten();
    let most_x = points().map(|p| p.0).fold(0.0, f64::max).max(1.0);
    let most_y = points().map(|p| p.1).fold(0.0, f64::max);
    if most_y <= 0.0 {
        return Ok(None);
    }
    // A legend stands to the right of the curves.
    let room = if by.is_empty() { 1.05 } else { 1.25 };
    let mut text = String::new();
    let root = SVGBackend::with_string(&mut text, (800, 500)).into_drawing_area();
    root.fill(&WHITE).map_err(|e| failed(&e))?;
    // Devices beside each other stand in the legend, for their names are long.
    let place = if report.columns[0] == "backend" { "backend" } else { "device" };
    let title = format!("{} - {}", report.title, cell(&facts[place]));
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(76)
        .build_cartesian_2d(0.0..most_x * room, 0.0..most_y * 1.1)
        .map_err(|e| failed(&e))?;
    chart
        .configure_mesh()
        .x_desc(report.columns[*x])
        .y_desc(report.columns[*y])
        .x_label_formatter(&f64::to_string)
        .y_label_formatter(&f64::to_string)
        .light_line_style(WHITE)
        .label_style(("sans-serif", 14))
        .draw()
        .map_err(|e| failed(&e))?;
    for ((name, points), colour) in curves.into_iter().zip(COLOURS.iter().cycle()) {
        let line =
            chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2))).map_err(|e| failed(&e))?;
        if !name.is_empty() {
            line.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        }
        chart.draw_series(points.iter().map(|p| Circle::new(*p, 4, colour.filled()))).map_err(|e| failed(&e))?;
    }
    if !by.is_empty() {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::MiddleRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .label_font(("sans-serif", 14))
            .draw()
            .map_err(|e| failed(&e))?;
    }
    root.present().map_err(|e| failed(&e))?;
    drop((chart, root));
    Ok(Some(text))
}
