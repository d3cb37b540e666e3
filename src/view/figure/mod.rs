//! Figures as SVG and PNG.
//!
//! A figure is readable without colours, because each curve also has its own dashes. Every figure is drawn as SVG. To
//! write it to a file, it is also rendered as PNG, with a font that the program contains, so that it looks the same on
//! every machine.

mod bars;
mod curves;
mod heat_map;
mod lanes;
mod legend;
mod raster;

pub use bars::{bars, named_bars};
pub use curves::{Curve, Figure};
pub use heat_map::heat_map;
pub use lanes::lanes;
pub use legend::{Legend, field};
pub use raster::save;

use crate::error::Error;
use plotters::style::RGBColor;

/// Colours that people with colour blindness can tell apart (Okabe & Ito, 2008).
pub const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// Height of the labels below the x axis, and width of the labels at the y axis, in pixels.
const LABELS: (u32, u32) = (44, 72);

/// Upper estimate of the width of a letter in a label, in pixels.
const LETTER: f64 = 7.4;
/// Upper estimate of the width of a letter in a title, in pixels.
const TITLE: f64 = 9.2;

/// Shortens `text` until it fits into `width` pixels, if a letter is `letter` pixels wide.
fn fitted(text: &str, width: u32, letter: f64) -> String {
    let most = ((width as f64 - 40.0) / letter) as usize;
    if text.chars().count() <= most { text.into() } else { text.chars().take(most - 1).chain(['…']).collect() }
}

/// Formats a number for an axis: few digits, and an exponent for large and small numbers.
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

fn failed(e: impl std::fmt::Display) -> Error {
    Error::failed(format!("cannot draw a figure: {e}"))
}
