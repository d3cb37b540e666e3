//! Timelines with one lane per worker.

use super::legend::{Legend, field};
use super::{COLOURS, LABELS, TITLE, failed, fitted, short};
use crate::error::Result;
use plotters::prelude::*;

/// Draws when each worker computed: one lane per worker over a time axis. A span is its start, its end, and the index
/// of its kind. A kind is a name and an index of [`COLOURS`]. Returns the SVG.
pub fn lanes(
    title: &str,
    time: &str,
    lanes: &[Vec<(f64, f64, usize)>],
    kinds: &[(&str, usize)],
    (width, height): (u32, u32),
) -> Result<String> {
    let mut text = String::new();
    let legend = Legend::of(kinds.iter().map(|kind| kind.0), width);
    let colour = |kind: usize| COLOURS[kinds[kind].1];
    {
        let (root, below) =
            legend.under(SVGBackend::with_string(&mut text, (width, height + legend.height())), height)?;
        let end = lanes.iter().flatten().map(|span| span.1).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
        let mut chart = ChartBuilder::on(&root)
            .caption(fitted(title, width, TITLE), ("sans-serif", 17))
            .margin(12)
            .x_label_area_size(LABELS.0)
            .y_label_area_size(LABELS.1)
            .build_cartesian_2d(0.0..end * 1.02, -0.5..lanes.len() as f64 - 0.5)
            .map_err(failed)?;
        let whole = |y: &f64| if y.fract() == 0.0 && *y >= 0.0 { format!("{y:.0}") } else { String::new() };
        chart
            .configure_mesh()
            .disable_mesh()
            .x_desc(time)
            .y_desc("worker")
            .x_label_formatter(&|x| short(*x))
            .y_label_formatter(&whole)
            .label_style(("sans-serif", 13))
            .draw()
            .map_err(failed)?;
        for kind in 0..kinds.len() {
            let colour = colour(kind);
            let all =
                lanes.iter().enumerate().flat_map(|(lane, spans)| spans.iter().map(move |span| (lane as f64, span)));
            // A thin white edge separates adjacent spans, if the span is wide enough.
            let edge = |wide: f64| if wide * width as f64 > 4.0 * end { WHITE } else { colour };
            let rectangles = all.filter(|(_, span)| span.2 == kind).flat_map(|(lane, span)| {
                let corners = [(span.0, lane - 0.36), (span.1, lane + 0.36)];
                let edge = edge(span.1 - span.0).stroke_width(1);
                [Rectangle::new(corners, colour.filled()), Rectangle::new(corners, edge)]
            });
            chart.draw_series(rectangles).map_err(failed)?;
        }
        legend.draw(&below, |kind, at| field(at, colour(kind)))?;
        root.present().map_err(failed)?;
    }
    Ok(text)
}
