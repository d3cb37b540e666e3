//! Bar charts.

use super::legend::{Legend, field};
use super::{COLOURS, LABELS, LETTER, TITLE, failed, fitted, short};
use crate::error::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Draws vertical bars at x = 0, 1, 2, ... Each group has one value per position, and its name in the legend. Returns
/// the SVG.
pub fn bars(
    title: &str,
    x: &str,
    y: &str,
    groups: &[(String, Vec<f64>)],
    (width, height): (u32, u32),
) -> Result<String> {
    let mut text = String::new();
    let legend = Legend::of(groups.iter().map(|group| group.0.as_str()), width);
    {
        let (root, below) =
            legend.under(SVGBackend::with_string(&mut text, (width, height + legend.height())), height)?;
        let places = groups.iter().map(|g| g.1.len()).max().unwrap_or(0).max(1);
        let most = groups.iter().flat_map(|g| &g.1).copied().fold(0.0, f64::max).max(f64::MIN_POSITIVE);
        let mut chart = ChartBuilder::on(&root)
            .caption(fitted(title, width, TITLE), ("sans-serif", 17))
            .margin(12)
            .x_label_area_size(LABELS.0)
            .y_label_area_size(LABELS.1)
            .build_cartesian_2d(-0.5..places as f64 - 0.5, 0.0..most * 1.05)
            .map_err(failed)?;
        // Only whole numbers have a label, because each is the position of bars.
        let whole = |x: &f64| {
            if x.fract() == 0.0 && *x >= 0.0 && *x < places as f64 { format!("{x:.0}") } else { String::new() }
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_desc(x)
            .y_desc(y)
            .x_label_formatter(&whole)
            .y_label_formatter(&|y| short(*y))
            .light_line_style(WHITE)
            .label_style(("sans-serif", 13))
            .draw()
            .map_err(failed)?;
        let each = 0.8 / groups.len().max(1) as f64;
        for (k, (_, values)) in groups.iter().enumerate() {
            let colour = COLOURS[k % COLOURS.len()];
            let bar = |(i, value): (usize, &f64)| {
                let left = i as f64 - 0.4 + each * k as f64;
                Rectangle::new([(left, 0.0), (left + each * 0.95, *value)], colour.filled())
            };
            chart.draw_series(values.iter().enumerate().filter(|v| *v.1 > 0.0).map(bar)).map_err(failed)?;
        }
        legend.draw(&below, |k, at| field(at, COLOURS[k % COLOURS.len()]))?;
        root.present().map_err(failed)?;
    }
    Ok(text)
}

/// Draws horizontal bars for named items. An item has one value per series; its bars are below each other, each with
/// its number. A missing value has no bar, and items without any value are left out. Returns the SVG.
pub fn named_bars(
    title: &str,
    axis: &str,
    items: &[(String, Vec<Option<f64>>)],
    series: &[String],
    width: u32,
) -> Result<String> {
    let items: Vec<_> = items.iter().filter(|item| item.1.iter().any(Option::is_some)).collect();
    let all = || items.iter().flat_map(|item| item.1.iter().flatten().copied());
    let most = all().filter(|x| x.is_finite()).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    // A single series needs no legend.
    let legend = Legend::of(series.iter().filter(|_| series.len() > 1).map(String::as_str), width);
    let (each, lines) = (if series.len() > 1 { 13 } else { 17 }, items.len() as u32);
    let height = 90 + lines * (each * series.len() as u32 + 8);
    let letters = items.iter().map(|item| item.0.chars().count()).max().unwrap_or(0);
    let names = ((letters as f64 * LETTER) as u32 + 10).min(width / 2);
    let mut text = String::new();
    {
        let (root, below) =
            legend.under(SVGBackend::with_string(&mut text, (width, height + legend.height())), height)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(fitted(title, width, TITLE), ("sans-serif", 17))
            .margin(12)
            .x_label_area_size(LABELS.0)
            .y_label_area_size(names)
            // This leaves room for the number behind the longest bar.
            .build_cartesian_2d(0.0..most * 1.12, lines as f64..0.0)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .x_desc(axis)
            .x_label_formatter(&|x| short(*x))
            .light_line_style(WHITE)
            .label_style(("sans-serif", 13))
            .draw()
            .map_err(failed)?;
        let centred = |side| TextStyle::from(("sans-serif", 13)).pos(Pos::new(side, VPos::Center));
        let high = 0.84 / series.len().max(1) as f64;
        for (line, (name, values)) in items.iter().enumerate() {
            let (x, y) = chart.backend_coord(&(0.0, line as f64 + 0.5));
            let name = fitted(name, names + 40, LETTER);
            root.draw(&Text::new(name, (x - 8, y), centred(HPos::Right))).map_err(failed)?;
            let shown = values.iter().enumerate().filter_map(|(k, value)| Some((k, value.filter(|x| x.is_finite())?)));
            for (k, value) in shown {
                let top = line as f64 + 0.08 + high * k as f64;
                let colour = COLOURS[k % COLOURS.len()];
                let corners = [(0.0, top), (value, top + high * 0.92)];
                chart.draw_series([Rectangle::new(corners, colour.filled())]).map_err(failed)?;
                let (x, y) = chart.backend_coord(&(value, top + high * 0.46));
                root.draw(&Text::new(three_figures(value), (x + 5, y), centred(HPos::Left))).map_err(failed)?;
            }
        }
        legend.draw(&below, |k, at| field(at, COLOURS[k % COLOURS.len()]))?;
        root.present().map_err(failed)?;
    }
    Ok(text)
}

/// Formats a number with about three significant digits.
fn three_figures(x: f64) -> String {
    if x == 0.0 || x.abs() >= 100.0 {
        return short(x.round());
    }
    let digits = (2 - x.abs().log10().floor() as i32).clamp(0, 6) as usize;
    format!("{x:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::super::raster::rendered;
    use super::*;

    #[test]
    fn every_value_has_a_bar_with_its_number() {
        let (both, one) = (("both".to_string(), vec![Some(7.25), Some(250.4)]), ("one".into(), vec![None, Some(0.5)]));
        let items = [both, one, ("neither".into(), vec![None, None])];
        let svg = named_bars("A title", "ms", &items, &["a".into(), "b".into()], 600).unwrap();
        for text in ["A title", "both", "one", "7.25", "250", "0.500"] {
            assert!(svg.contains(&format!("\n{text}\n")), "`{text}` is missing in {svg}");
        }
        assert!(!svg.contains("neither"));
        let count = |colour: &str| svg.matches(&format!("fill=\"{colour}\"")).count();
        assert_eq!(
            (count("#0072B2"), count("#E69F00")),
            (2, 3),
            "number of bars plus one sign per series in the legend"
        );
        assert!(rendered(&svg).unwrap().len() > 1000);
        assert!(named_bars("Nothing", "ms", &[], &[String::new()], 600).is_ok());
    }
}
