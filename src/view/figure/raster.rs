//! Writes figures as SVG and PNG files.

use super::failed;
use crate::error::{Error, Result};
use resvg::{tiny_skia, usvg};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Pixels of the PNG per pixel of the SVG. The higher resolution is for print.
const FINE: f32 = 2.0;

/// Writes a drawing to `folder`, as `name.svg` and `name.png`.
pub fn save(folder: &Path, name: &str, svg: &str) -> Result<()> {
    // A name in the drawing may contain characters that are not allowed in an SVG file.
    let is_allowed = |c: &char| (!c.is_control() || *c == '\n') && !matches!(c, '\u{fffe}' | '\u{ffff}');
    let svg: String = svg.chars().filter(is_allowed).collect();
    let put = |ending: &str, bytes: &[u8]| {
        let file = folder.join(format!("{name}.{ending}"));
        std::fs::write(&file, bytes).map_err(|e| Error::failed(format!("cannot write {}: {e}", file.display())))
    };
    put("svg", svg.as_bytes())?;
    put("png", &rendered(&svg)?)
}

/// Renders a drawing as the bytes of a PNG file.
pub(super) fn rendered(svg: &str) -> Result<Vec<u8>> {
    static FONTS: OnceLock<Arc<usvg::fontdb::Database>> = OnceLock::new();
    let fonts = FONTS.get_or_init(|| {
        let mut fonts = usvg::fontdb::Database::new();
        fonts.load_font_data(epaint_default_fonts::UBUNTU_LIGHT.to_vec());
        fonts.set_sans_serif_family("Ubuntu");
        Arc::new(fonts)
    });
    let options = usvg::Options { fontdb: fonts.clone(), ..Default::default() };
    let tree = usvg::Tree::from_str(svg, &options).map_err(failed)?;
    let size = tree.size().to_int_size().scale_by(FINE).ok_or_else(|| failed("the drawing has no size"))?;
    let mut pixels =
        tiny_skia::Pixmap::new(size.width(), size.height()).ok_or_else(|| failed("the drawing is too large"))?;
    resvg::render(&tree, tiny_skia::Transform::from_scale(FINE, FINE), &mut pixels.as_mut());
    pixels.encode_png().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rendered text has dark pixels, so the font is found.
    #[test]
    fn letters_are_rendered() {
        let ink = |text: &str| {
            let svg = format!(
                r#"<svg width="80" height="20" xmlns="http://www.w3.org/2000/svg"><text x="2" y="15" font-family="sans-serif" font-size="14">{text}</text></svg>"#
            );
            let pixels = tiny_skia::Pixmap::decode_png(&rendered(&svg).unwrap()).unwrap();
            assert_eq!((pixels.width(), pixels.height()), (160, 40));
            pixels.pixels().iter().filter(|p| p.alpha() > 128).count()
        };
        assert_eq!(ink(" "), 0);
        for letter in ["a", "7", "%", "±", "α", "τ", "‖", "²"] {
            assert!(ink(letter) > 5, "`{letter}` is not rendered");
        }
    }
}
