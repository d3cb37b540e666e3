//! Figures: curves with bands, readable without colours (each curve has dashes of its own too). Each is drawn as SVG; a file of it is
//! also painted as PNG, with a font that the program carries, so that it looks the same on every machine.

use crate::error::{Error, Result};
use plotters::coord::Shift;
use plotters::element::DynElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use resvg::{tiny_skia, usvg};
use std::path::Path;
use std::sync::{Arc, OnceLock};

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

/// Numbers that a figure shows are smaller.
const LARGEST: f64 = 1e100;

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
        self.curves.iter().all(|curve| self.shown(curve).count() < 2)
    }

    /// The points of a curve that an axis can hold: numbers so large that their differences overflow would have it look for marks for ever.
    fn shown<'a>(&self, curve: &'a Curve) -> impl Iterator<Item = &'a (f64, f64, f64)> {
        let (log, small) = (self.log_y, |x: f64| x.abs() < LARGEST);
        curve.points.iter().filter(move |p| small(p.0) && small(p.1) && small(p.2) && !(log && p.1 <= 0.0))
    }

    /// The figure as one SVG element.
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
                return Err(Error::failed(format!("the figure `{}` has nothing to show", self.title)));
            }
            let failed = |e: &dyn std::fmt::Display| Error::failed(format!("the figure `{}`: {e}", self.title));
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
                // Solid is a dash that does not end.
                let dash = if gap == 0 { 30 } else { dash };
                let ends = [(x, y), (x + SIGN, y)];
                plotters::element::DashedPathElement::new(ends, dash, gap, colour.stroke_width(2)).into_dyn()
            })?;
            root.present().map_err(|e| failed(&e))?;
        }
        Ok(text)
    }

    /// Colour and dashes of the k-th curve.
    fn style(&self, k: usize) -> (RGBColor, (i32, i32)) {
        (COLOURS[k % COLOURS.len()], DASHES[k % DASHES.len()])
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
            let (colour, (dash, gap)) = self.style(k);
            let points: Vec<_> = self.shown(curve).collect();
            if points.iter().any(|p| p.2 > 0.0) {
                let above = points.iter().map(|p| (p.0, within(p.1 + p.2)));
                let below = points.iter().rev().map(|p| (p.0, within(p.1 - p.2)));
                let band = Polygon::new(above.chain(below).collect::<Vec<_>>(), colour.mix(0.18).filled());
                chart.draw_series([band]).map_err(|e| text(&e))?;
            }
            let line: Vec<_> = points.iter().map(|p| (p.0, within(p.1))).collect();
            if let [alone] = line.as_slice() {
                chart.draw_series([Circle::new(*alone, 4, colour.filled())]).map_err(|e| text(&e))?;
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

/// A part of a sheet.
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// What stands below a figure: the sign and the name of each curve or colour, in rows as wide as the figure, so that nothing is hidden.
pub struct Legend {
    /// Name, and where its sign begins.
    entries: Vec<(String, (i32, i32))>,
}

/// Width of a sign, height of a row.
const SIGN: i32 = 26;
const ROW: i32 = 20;

/// Widths of a letter, generously: of a legend and of a title.
const LETTER: f64 = 7.4;
const TITLE: f64 = 9.2;

/// `text` so short that its letters of this width have room.
fn fitted(text: &str, width: u32, letter: f64) -> String {
    let most = ((width as f64 - 40.0) / letter) as usize;
    if text.chars().count() <= most { text.into() } else { text.chars().take(most - 1).chain(['…']).collect() }
}

impl Legend {
    /// Of these names, below a figure so wide.
    pub fn of<'a>(names: impl Iterator<Item = &'a str>, width: u32) -> Self {
        let (mut x, mut y) = (LABELS.1 as i32, ROW / 2);
        let place = |name: &str| {
            let name = fitted(name, width - LABELS.1 - SIGN as u32, LETTER);
            let wide = SIGN + 30 + (name.chars().count() as f64 * LETTER) as i32;
            if x > LABELS.1 as i32 && x + wide > width as i32 {
                (x, y) = (LABELS.1 as i32, y + ROW);
            }
            let at = (x, y);
            x += wide;
            (name, at)
        };
        Legend { entries: names.map(place).collect() }
    }

    /// Pixels that it takes.
    pub fn height(&self) -> u32 {
        self.entries.last().map_or(0, |(_, (_, y))| (y + ROW) as u32)
    }

    /// A white sheet, divided into the figure's part, so high, and the legend's.
    pub fn under<'a>(&self, sheet: SVGBackend<'a>, height: u32) -> Result<(Area<'a>, Area<'a>)> {
        let whole = sheet.into_drawing_area();
        whole.fill(&WHITE).map_err(failed)?;
        Ok(whole.split_vertically(height))
    }

    /// Draws it; `sign` draws the k-th sign at its place.
    pub fn draw<'a>(
        &self,
        area: &Area<'a>,
        sign: impl Fn(usize, (i32, i32)) -> DynElement<'static, SVGBackend<'a>, (i32, i32)>,
    ) -> Result<()> {
        for (k, (name, (x, y))) in self.entries.iter().enumerate() {
            area.draw(&sign(k, (*x, *y))).map_err(failed)?;
            let style = TextStyle::from(("sans-serif", 13)).pos(Pos::new(HPos::Left, VPos::Center));
            area.draw(&Text::new(name.as_str(), (x + SIGN + 6, *y), style)).map_err(failed)?;
        }
        Ok(())
    }
}

/// A field of colour as the sign of a legend.
pub fn field<'a>((x, y): (i32, i32), colour: RGBColor) -> DynElement<'static, SVGBackend<'a>, (i32, i32)> {
    Rectangle::new([(x + 6, y - 5), (x + 20, y + 5)], colour.filled()).into_dyn()
}

/// Pixels of a PNG per unit of its SVG: twice as fine as a screen shows it, for print.
const FINE: f32 = 2.0;

/// Writes a drawing into `folder`, as `name.svg` and, painted, as `name.png`.
pub fn save(folder: &Path, name: &str, svg: &str) -> Result<()> {
    // A name that somebody gave may hold what no SVG file may.
    let is_allowed = |c: &char| (!c.is_control() || *c == '\n') && !matches!(c, '\u{fffe}' | '\u{ffff}');
    let svg: String = svg.chars().filter(is_allowed).collect();
    let put = |ending: &str, bytes: &[u8]| {
        let file = folder.join(format!("{name}.{ending}"));
        std::fs::write(&file, bytes).map_err(|e| Error::failed(format!("cannot write {}: {e}", file.display())))
    };
    put("svg", svg.as_bytes())?;
    put("png", &painted(&svg)?)
}

/// A drawing as the bytes of a PNG file.
fn painted(svg: &str) -> Result<Vec<u8>> {
    static FONTS: OnceLock<Arc<usvg::fontdb::Database>> = OnceLock::new();
    let fonts = FONTS.get_or_init(|| {
        let mut fonts = usvg::fontdb::Database::new();
        fonts.load_font_data(epaint_default_fonts::UBUNTU_LIGHT.to_vec());
        fonts.set_sans_serif_family("Ubuntu");
        Arc::new(fonts)
    });
    let options = usvg::Options { fontdb: fonts.clone(), ..Default::default() };
    let tree = usvg::Tree::from_str(svg, &options).map_err(failed)?;
    let size = tree.size().to_int_size().scale_by(FINE).ok_or_else(|| failed("it has no size"))?;
    let mut pixels = tiny_skia::Pixmap::new(size.width(), size.height()).ok_or_else(|| failed("it is too large"))?;
    resvg::render(&tree, tiny_skia::Transform::from_scale(FINE, FINE), &mut pixels.as_mut());
    pixels.encode_png().map_err(failed)
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

/// Room of a drawing's labels.
const LABELS: (u32, u32) = (44, 72);

fn failed(e: impl std::fmt::Display) -> Error {
    Error::failed(format!("a figure cannot be drawn: {e}"))
}

/// Bars beside each other: for each group a value at 0, 1, 2, ...
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
        // Whole numbers alone stand under bars.
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

/// Bars that run to the right, for things that have names: each thing's values, one of each series, below each other, with the number
/// behind each. What has no value has no bar; a thing without any has no line.
pub fn named_bars(
    title: &str,
    axis: &str,
    things: &[(String, Vec<Option<f64>>)],
    series: &[String],
    width: u32,
) -> Result<String> {
    let things: Vec<_> = things.iter().filter(|thing| thing.1.iter().any(Option::is_some)).collect();
    let all = || things.iter().flat_map(|thing| thing.1.iter().flatten().copied());
    let most = all().filter(|x| x.is_finite()).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    // One alone needs no name.
    let legend = Legend::of(series.iter().filter(|_| series.len() > 1).map(String::as_str), width);
    let (each, lines) = (if series.len() > 1 { 13 } else { 17 }, things.len() as u32);
    let height = 90 + lines * (each * series.len() as u32 + 8);
    let letters = things.iter().map(|thing| thing.0.chars().count()).max().unwrap_or(0);
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
            // Room for the number behind the longest.
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
        for (line, (name, values)) in things.iter().enumerate() {
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

/// A number as it stands behind a bar.
fn three_figures(x: f64) -> String {
    if x == 0.0 || x.abs() >= 100.0 {
        return short(x.round());
    }
    let digits = (2 - x.abs().log10().floor() as i32).clamp(0, 6) as usize;
    format!("{x:.digits$}")
}

/// Who computed when: one lane per worker, over an axis of time. A span is its beginning, its end, and which of `kinds` (a
/// name, and a number of [`COLOURS`]) it is.
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
            // A hairline of white tells one from the next, where it leaves something of it.
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

/// Counts as shades, rows by columns, with the numbers in them where there is room.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every bar has its number, and only those that have a value are there.
    #[test]
    fn bars_that_have_names() {
        let (both, one) = (("both".to_string(), vec![Some(7.25), Some(250.4)]), ("one".into(), vec![None, Some(0.5)]));
        let things = [both, one, ("neither".into(), vec![None, None])];
        let svg = named_bars("A title", "ms", &things, &["a".into(), "b".into()], 600).unwrap();
        for text in ["A title", "both", "one", "7.25", "250", "0.500"] {
            assert!(svg.contains(&format!("\n{text}\n")), "{text} is missing in {svg}");
        }
        assert!(!svg.contains("neither"));
        let count = |colour: &str| svg.matches(&format!("fill=\"{colour}\"")).count();
        assert_eq!((count("#0072B2"), count("#E69F00")), (2, 3), "bars, and a sign of each in the legend");
        assert!(painted(&svg).unwrap().len() > 1000);
        assert!(named_bars("Nothing", "ms", &[], &[String::new()], 600).is_ok());
    }

    /// A painted text leaves ink: the font that it asks for is there.
    #[test]
    fn letters_are_painted() {
        let ink = |text: &str| {
            let svg = format!(
                r#"<svg width="80" height="20" xmlns="http://www.w3.org/2000/svg"><text x="2" y="15" font-family="sans-serif" font-size="14">{text}</text></svg>"#
            );
            let pixels = tiny_skia::Pixmap::decode_png(&painted(&svg).unwrap()).unwrap();
            assert_eq!((pixels.width(), pixels.height()), (160, 40));
            pixels.pixels().iter().filter(|p| p.alpha() > 128).count()
        };
        assert_eq!(ink(" "), 0);
        for letter in ["a", "7", "%", "±", "α", "τ", "‖", "²"] {
            assert!(ink(letter) > 5, "{letter} is not painted");
        }
    }
}
