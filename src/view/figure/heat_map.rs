//! Heat maps of counts.

use super::{COLOURS, LABELS, TITLE, failed, fitted, short};
use crate::error::Result;
use plotters::prelude::*;

/// Draws counts as shades, `counts[row][column]`. The numbers are drawn into the cells if the cells are high enough.
/// Returns the SVG.
pub fn heat_map(
    title: &str,
    (x, y): (&str, &str),
    columns: &[String],
    counts: &[Vec<f64>],
    (width, height): (u32, u32),
) -> Result<String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (width, height)).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let most = counts.iter().flatten().copied().fold(0.0, f64::max).max(1.0);
        let (wide, high) = (columns.len() as f64, counts.len() as f64);
        let mut chart = ChartBuilder::on(&root)
            .caption(fitted(title, width, TITLE), ("sans-serif", 17))
            .margin(12)
            .x_label_area_size(LABELS.0)
            .y_label_area_size(LABELS.1)
            .build_cartesian_2d(-0.5..wide - 0.5, -0.5..high - 0.5)
            .map_err(failed)?;
        let name = |x: &f64| {
            let place = (x.fract() == 0.0 && *x >= 0.0).then_some(*x as usize);
            place.and_then(|k| columns.get(k)).cloned().unwrap_or_default()
        };
        let whole = |y: &f64| if y.fract() == 0.0 && *y >= 0.0 { format!("{y:.0}") } else { String::new() };
        chart
            .configure_mesh()
            .disable_mesh()
            .x_labels(columns.len().max(2) * 2)
            .x_desc(x)
            .y_desc(y)
            .x_label_formatter(&name)
            .y_label_formatter(&whole)
            .label_style(("sans-serif", 13))
            .draw()
            .map_err(failed)?;
        let cells =
            || counts.iter().enumerate().flat_map(|(r, row)| row.iter().enumerate().map(move |(c, n)| (r, c, *n)));
        chart
            .draw_series(cells().map(|(r, c, n)| {
                let (r, c) = (r as f64, c as f64);
                let shade = COLOURS[0].mix(n / most);
                Rectangle::new([(c - 0.48, r - 0.46), (c + 0.48, r + 0.46)], shade.filled())
            }))
            .map_err(failed)?;
        if height as f64 / high > 26.0 {
            chart
                .draw_series(cells().filter(|cell| cell.2 > 0.0).map(|(r, c, n)| {
                    let colour = if n / most > 0.55 { WHITE } else { BLACK };
                    let style = ("sans-serif", 12).into_font().color(&colour);
                    Text::new(short(n), (c as f64 - 0.3, r as f64 + 0.15), style)
                }))
                .map_err(failed)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(text)
}
