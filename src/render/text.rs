//! Text in a fixed-width bitmap font (Noto Sans Mono).

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use tiny_skia::Pixmap;

use super::{Rgb, blend};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextSize {
    Small,
    Large,
    LargeBold,
}

impl TextSize {
    fn font(self) -> (FontWeight, RasterHeight) {
        match self {
            TextSize::Small => (FontWeight::Regular, RasterHeight::Size16),
            TextSize::Large => (FontWeight::Regular, RasterHeight::Size20),
            TextSize::LargeBold => (FontWeight::Bold, RasterHeight::Size20),
        }
    }
}

/// Breadth in pixels.
pub(super) fn text_width(text: &str, size: TextSize) -> f32 {
    let (weight, height) = size.font();
    (text.chars().count() * get_raster_width(weight, height)) as f32
}

/// Writes one line with its upper left corner at (x, y). Characters that the font lacks become
/// question marks.
pub(super) fn draw_text(
    canvas: &mut Pixmap,
    x: f32,
    y: f32,
    text: &str,
    size: TextSize,
    colour: Rgb,
) {
    let (weight, height) = size.font();
    let (mut left, top) = (x.round() as i32, y.round() as i32);
    for character in text.chars() {
        let glyph =
            get_raster(character, weight, height).or_else(|| get_raster('?', weight, height));
        if let Some(glyph) = glyph {
            for (row, line) in glyph.rows().enumerate() {
                for (column, strength) in line.iter().enumerate() {
                    if *strength > 0 {
                        let (x, y) = (left + column as i32, top + row as i32);
                        blend(canvas, x, y, colour, f32::from(*strength) / 255.0);
                    }
                }
            }
        }
        left += get_raster_width(weight, height) as i32;
    }
}
