//! The legend below a figure.

use super::{LABELS, LETTER, failed, fitted};
use crate::error::Result;
use plotters::coord::Shift;
use plotters::element::DynElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Width of a sign, in pixels.
pub(super) const SIGN: i32 = 26;
/// Height of a row, in pixels.
const ROW: i32 = 20;

/// A part of a drawing.
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The legend below a figure: a sign and a name for each curve or colour. The rows are as wide as the figure, so the
/// legend hides nothing.
pub struct Legend {
    /// The name of each entry, and the position of its sign.
    entries: Vec<(String, (i32, i32))>,
}

impl Legend {
    /// A legend with these names, for a figure of this width in pixels.
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

    /// Height of the legend, in pixels.
    pub fn height(&self) -> u32 {
        self.entries.last().map_or(0, |(_, (_, y))| (y + ROW) as u32)
    }

    /// Fills a drawing with white and divides it into the figure, which is `height` pixels high, and the legend.
    pub fn under<'a>(&self, sheet: SVGBackend<'a>, height: u32) -> Result<(Area<'a>, Area<'a>)> {
        let whole = sheet.into_drawing_area();
        whole.fill(&WHITE).map_err(failed)?;
        Ok(whole.split_vertically(height))
    }

    /// Draws the legend. `sign` returns the k-th sign for a position.
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

/// A coloured rectangle as the sign in a legend.
pub fn field<'a>((x, y): (i32, i32), colour: RGBColor) -> DynElement<'static, SVGBackend<'a>, (i32, i32)> {
    Rectangle::new([(x + 6, y - 5), (x + 20, y + 5)], colour.filled()).into_dyn()
}
