//! Figures as SVG: curves with bands, readable without colours (each curve has dashes of its own too).

use crate::error::{Error, Result};
use plotters::prelude::*;

/// Colours that people who see few of them can tell apart (Okabe & Ito, 2008).
pub const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// Dashes of the curves, in turn: length and gap.
const DASHES: [(i32, i32); 4] = [(1, 0), (10, 5), (3, 4), (16, 4)];

/// One curve.
pub struct Curve {
    /// For the legend.
    pub name: String,
    /// x, y, and half the height of the band.
    pub points: Vec<(f64, f64, f64)>,
}

/// Curves over common axes.
pub struct Figure {
    /// Above it.
    pub title: String,
    /// Axis label with its unit.
    pub x: String,
    /// Axis label with its unit.
    pub y: String,
    /// The curves, in the order of the legend.
    pub curves: Vec<Curve>,
    /// Whether y is drawn by its logarithm.
    pub log_y: bool,
}

impl Figure {
    /// Whether there is anything to draw.
    pub fn is_empty(&self) -> bool {
        self.curves.iter().all(|curve| curve.points.len() < 2)
    }

    /// The figure as one SVG element.
    pub fn svg(&self, (width, height): (u32, u32)) -> Result<String> {
        let mut text = String::new();
        {
            let root = SVGBackend::with_string(&mut text, (width, height)).into_drawing_area();
            let all =
                || self.curves.iter().flat_map(|curve| &curve.points).filter(|p| p.0.is_finite() && p.1.is_finite());
            let most_x = all().map(|p| p.0).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
            let least_y = all().map(|p| p.1 - if self.log_y { 0.0 } else { p.2 }).fold(f64::INFINITY, f64::min);
            let most_y = all().map(|p| p.1 + p.2).fold(f64::NEG_INFINITY, f64::max);
            if !least_y.is_finite() || !most_y.is_finite() {
                return Err(Error::failed(format!("the figure `{}` has nothing to show", self.title)));
            }
            let failed = |e: &dyn std::fmt::Display| Error::failed(format!("the figure `{}`: {e}", self.title));
            root.fill(&WHITE).map_err(|e| failed(&e))?;
            let mut builder = ChartBuilder::on(&root);
            builder.caption(&self.title, ("sans-serif", 17)).margin(12).x_label_area_size(44).y_label_area_size(72);
            // The legend stands to the right of the curves.
            let x = 0.0..most_x * 1.32;
            if self.log_y {
                let low = all().map(|p| p.1).filter(|y| *y > 0.0).fold(f64::INFINITY, f64::min);
                let y = (low * 0.8..most_y.max(low * 2.0) * 1.2).log_scale();
                let chart = builder.build_cartesian_2d(x, y).map_err(|e| failed(&e))?;
                self.draw(chart, |y| y.max(low * 0.8)).map_err(|e| failed(&e))?;
            } else {
                let room = (most_y - least_y).max(most_y.abs() * 0.01).max(1e-9) * 0.06;
                let y = least_y - room..most_y + room;
                let chart = builder.build_cartesian_2d(x, y).map_err(|e| failed(&e))?;
                self.draw(chart, |y| y).map_err(|e| failed(&e))?;
            }
            root.present().map_err(|e| failed(&e))?;
        }
        Ok(text)
    }

    fn draw<'a, Y>(
        &self,
        mut chart: ChartContext<'a, SVGBackend<'a>, Cartesian2d<plotters::coord::types::RangedCoordf64, Y>>,
        within: impl Fn(f64) -> f64,
    ) -> std::result::Result<(), String>
    where
        Y: plotters::coord::ranged1d::Ranged<ValueType = f64> + plotters::coord::ranged1d::ValueFormatter<f64>,
    {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        chart
            .configure_mesh()
            .x_desc(&self.x)
            .y_desc(&self.y)
            .x_label_formatter(&|x| short(*x))
            .y_label_formatter(&|y| short(*y))
            .light_line_style(WHITE)
            .label_style(("sans-serif", 13))
            .draw()
            .map_err(|e| text(&e))?;
        for (k, curve) in self.curves.iter().enumerate() {
            let (colour, (dash, gap)) = (COLOURS[k % COLOURS.len()], DASHES[k / COLOURS.len() % DASHES.len()]);
            let points: Vec<_> = curve.points.iter().filter(|p| p.1.is_finite()).collect();
            if points.iter().any(|p| p.2 > 0.0) {
                let above = points.iter().map(|p| (p.0, within(p.1 + p.2)));
                let below = points.iter().rev().map(|p| (p.0, within(p.1 - p.2)));
                let band = Polygon::new(above.chain(below).collect::<Vec<_>>(), colour.mix(0.18).filled());
                chart.draw_series([band]).map_err(|e| text(&e))?;
            }
            let line: Vec<_> = points.iter().map(|p| (p.0, within(p.1))).collect();
            let style = colour.stroke_width(2);
            let drawn = if gap == 0 {
                chart.draw_series(LineSeries::new(line, style))
            } else {
                chart.draw_series(DashedLineSeries::new(line, dash, gap, style))
            };
            let legend = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2));
            drawn.map_err(|e| text(&e))?.label(&curve.name).legend(legend);
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::MiddleRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .label_font(("sans-serif", 13))
            .draw()
            .map_err(|e| text(&e))
    }
}

/// A number as an axis shows it: few digits, large and small ones by their exponent.
pub fn short(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        size if !(1e-3..1e5).contains(&size) => {
            let text = format!("{x:.2e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            format!("{}e{exponent}", digits.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => {
            let text = format!("{x:.3}");
            text.trim_end_matches('0').trim_end_matches('.').into()
        }
    }
}
