//! Curves with bands.

use super::legend::{Legend, SIGN};
use super::{COLOURS, TITLE, fitted, short};
use crate::error::{Error, Result};
use plotters::prelude::*;

/// Dash length and gap of each curve, in pixels. More curves start again with the first.
const DASHES: [(i32, i32); 4] = [(1, 0), (10, 5), (3, 4), (16, 4)];

/// A point is drawn only if its absolute values are below this limit.
const LARGEST: f64 = 1e100;

/// One curve.
pub struct Curve {
    /// Name in the legend.
    pub name: String,
    /// Points: x, y, and half the height of the band.
    pub points: Vec<(f64, f64, f64)>,
}

/// Curves over common axes.
pub struct Figure {
    /// Title above the figure.
    pub title: String,
    /// Label of the x axis, with the unit.
    pub x: String,
    /// Label of the y axis, with the unit.
    pub y: String,
    /// The curves, in the order of the legend.
    pub curves: Vec<Curve>,
    /// Whether the y axis is logarithmic.
    pub log_y: bool,
}

impl Figure {
    /// Whether no curve has two points that can be drawn.
    pub fn is_empty(&self) -> bool {
        self.curves.iter().all(|curve| self.shown(curve).count() < 2)
    }

    /// The points of a curve that can be drawn. Values of at least [`LARGEST`] are left out: if their differences
    /// overflow, plotters searches for axis marks forever.
    fn shown<'a>(&self, curve: &'a Curve) -> impl Iterator<Item = &'a (f64, f64, f64)> {
        let (log, small) = (self.log_y, |x: f64| x.abs() < LARGEST);
        curve.points.iter().filter(move |p| small(p.0) && small(p.1) && small(p.2) && !(log && p.1 <= 0.0))
    }

    /// Draws the figure as one SVG element of this width and height in pixels. The legend is added to the height.
    pub fn svg(&self, (width, height): (u32, u32)) -> Result<String> {
        let mut text = String::new();
        let legend = Legend::of(self.curves.iter().map(|curve| curve.name.as_str()), width);
        {
            let (root, below) =
                legend.under(SVGBackend::with_string(&mut text, (width, height + legend.height())), height)?;
            let all = || self.curves.iter().flat_map(|curve| self.shown(curve));
            let most_x = all().map(|p| p.0).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
            let least_y = all().map(|p| p.1 - if self.log_y { 0.0 } else { p.2 }).fold(f64::INFINITY, f64::min);
            let most_y = all().map(|p| p.1 + p.2).fold(f64::NEG_INFINITY, f64::max);
            if !least_y.is_finite() || !most_y.is_finite() {
                return Err(Error::failed(format!("the figure `{}` has no points", self.title)));
            }
            let failed =
                |e: &dyn std::fmt::Display| Error::failed(format!("cannot draw the figure `{}`: {e}", self.title));
            let mut builder = ChartBuilder::on(&root);
            let title = fitted(&self.title, width, TITLE);
            builder.caption(title, ("sans-serif", 17)).margin(12).x_label_area_size(44).y_label_area_size(72);
            let x = 0.0..most_x * 1.02;
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
            legend.draw(&below, |k, (x, y)| {
                let (colour, (dash, gap)) = self.style(k);
                // A solid line is one dash that is longer than the sign.
                let dash = if gap == 0 { 30 } else { dash };
                let ends = [(x, y), (x + SIGN, y)];
                plotters::element::DashedPathElement::new(ends, dash, gap, colour.stroke_width(2)).into_dyn()
            })?;
            root.present().map_err(|e| failed(&e))?;
        }
        Ok(text)
    }

    /// Colour, dash length and gap of the k-th curve.
    fn style(&self, k: usize) -> (RGBColor, (i32, i32)) {
        (COLOURS[k % COLOURS.len()], DASHES[k % DASHES.len()])
    }

    /// Draws the axes, the bands and the curves. `within` limits a value to the range of a logarithmic axis.
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
            let (colour, (dash, gap)) = self.style(k);
            let points: Vec<_> = self.shown(curve).collect();
            if points.iter().any(|p| p.2 > 0.0) {
                let above = points.iter().map(|p| (p.0, within(p.1 + p.2)));
                let below = points.iter().rev().map(|p| (p.0, within(p.1 - p.2)));
                let band = Polygon::new(above.chain(below).collect::<Vec<_>>(), colour.mix(0.18).filled());
                chart.draw_series([band]).map_err(|e| text(&e))?;
            }
            let line: Vec<_> = points.iter().map(|p| (p.0, within(p.1))).collect();
            if let [single] = line.as_slice() {
                chart.draw_series([Circle::new(*single, 4, colour.filled())]).map_err(|e| text(&e))?;
            }
            let style = colour.stroke_width(2);
            let drawn = if gap == 0 {
                chart.draw_series(LineSeries::new(line, style))
            } else {
                chart.draw_series(DashedLineSeries::new(line, dash, gap, style))
            };
            drawn.map_err(|e| text(&e))?;
        }
        Ok(())
    }
}
