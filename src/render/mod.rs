//! A frame seen from above: points coloured by height, layers of boxes over them.
//!
//! In: points and boxes in one frame (x forward, y left, metres). Out: an image in which forward
//! is to the right, with range rings, a scale bar and a legend. What the picture shows is meant to
//! be compared: a first layer drawn broad and translucent stays visible under a second one drawn
//! thin, also where they coincide.

mod text;

use image::RgbImage;
use tiny_skia::{
    Color, LineCap, LineJoin, Paint, PathBuilder, Pixmap, PremultipliedColorU8, Rect, Stroke,
    StrokeDash, Transform,
};

use crate::cloud::Points;
use crate::geometry::Box3d;
use text::{TextSize, draw_text, text_width};

/// A colour as red, green, blue.
pub type Rgb = [u8; 3];

/// Amber, for the float model.
pub const AMBER: Rgb = [255, 166, 43];
/// Light cyan, for the INT8 model.
pub const CYAN: Rgb = [80, 232, 255];
/// Green, for labels.
pub const GREEN: Rgb = [122, 222, 128];

const BACKGROUND: Rgb = [13, 17, 23];
const INK: Rgb = [214, 221, 230];
const FAINT_INK: Rgb = [125, 138, 153];
/// Heights from low to high. Cool and unsaturated, so that boxes in warm or bright colours stand
/// out.
const HEIGHTS: [Rgb; 5] = [
    [50, 72, 102],
    [56, 98, 138],
    [70, 130, 168],
    [134, 178, 200],
    [222, 232, 240],
];
/// Pictures are no larger than this along either side.
const LARGEST_SIDE: f32 = 8192.0;

/// Boxes that belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct BoxLayer {
    pub boxes: Vec<Box3d>,
    pub colour: Rgb,
    /// Entry of the legend.
    pub label: String,
    /// Breadth of the outline in pixels.
    pub width: f32,
    /// 0 (invisible) to 1.
    pub opacity: f32,
    pub dashed: bool,
}

impl BoxLayer {
    /// An opaque outline of two pixels.
    pub fn new(label: impl Into<String>, boxes: Vec<Box3d>, colour: Rgb) -> Self {
        Self {
            boxes,
            colour,
            label: label.into(),
            width: 2.0,
            opacity: 1.0,
            dashed: false,
        }
    }

    /// A broad, translucent outline, to be seen under another layer.
    pub fn broad(self) -> Self {
        Self {
            width: 6.0,
            opacity: 0.72,
            ..self
        }
    }

    /// A thin outline, to be seen over another layer.
    pub fn thin(self) -> Self {
        Self { width: 1.7, ..self }
    }

    /// A thin, broken outline.
    pub fn dashed(self) -> Self {
        Self {
            width: 1.5,
            dashed: true,
            ..self
        }
    }
}

/// What part of the world is shown, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct BevOptions {
    /// Extent along x, forward, in metres: from, to.
    pub x: (f32, f32),
    /// Extent along y, to the left, in metres: from, to.
    pub y: (f32, f32),
    /// Pixels per metre; lowered where the picture would grow beyond 8192 pixels.
    pub scale: f32,
    /// Range rings every so many metres; 0 for none.
    pub rings: f32,
    /// Heights of the darkest and the lightest points in metres; `None` takes the ground (the
    /// 2nd percentile of the heights) and 4 m above it.
    pub heights: Option<(f32, f32)>,
    /// First line of the legend.
    pub title: String,
    /// Legend, scale bar and ring labels.
    pub annotate: bool,
}

impl Default for BevOptions {
    fn default() -> Self {
        Self {
            x: (-51.2, 51.2),
            y: (-28.8, 28.8),
            scale: 14.0,
            rings: 10.0,
            heights: None,
            title: String::new(),
            annotate: true,
        }
    }
}

/// From metres to pixels.
#[derive(Debug, Clone, Copy)]
struct View {
    left: f32,
    top: f32,
    scale: f32,
    width: u32,
    height: u32,
}

impl View {
    /// An interval the wrong way round or not finite becomes one metre, so that any options give a
    /// picture.
    fn new(options: &BevOptions) -> Self {
        let extent = |(from, to): (f32, f32)| {
            let span = to - from;
            if span.is_finite() && span > 0.0 {
                (from, to, span)
            } else {
                (0.0, 1.0, 1.0)
            }
        };
        let (left, _, across) = extent(options.x);
        let (_, top, down) = extent(options.y);
        let most = LARGEST_SIDE / across.max(down);
        let scale = if options.scale.is_finite() && options.scale > 0.0 {
            options.scale.min(most)
        } else {
            1f32.min(most)
        };
        let pixels = |metres: f32| (metres * scale).round().clamp(1.0, LARGEST_SIDE) as u32;
        Self {
            left,
            top,
            scale,
            width: pixels(across),
            height: pixels(down),
        }
    }

    /// Position in the picture, in pixels from the upper left corner.
    fn pixel(&self, x: f32, y: f32) -> (f32, f32) {
        ((x - self.left) * self.scale, (self.top - y) * self.scale)
    }
}

/// The pixel of a picture made with these options that shows a place; it may lie outside.
pub fn pixel_of(options: &BevOptions, x: f32, y: f32) -> (f32, f32) {
    View::new(options).pixel(x, y)
}

/// Draws points and boxes from above. Later layers lie over earlier ones.
pub fn bev(points: &Points, layers: &[BoxLayer], options: &BevOptions) -> RgbImage {
    let view = View::new(options);
    let mut canvas =
        Pixmap::new(view.width, view.height).expect("a view has between 1 and 8192 pixels a side");
    let [r, g, b] = BACKGROUND;
    canvas.fill(Color::from_rgba8(r, g, b, 255));

    draw_rings(&mut canvas, &view, options);
    let heights = draw_points(&mut canvas, &view, points, options);
    draw_vehicle(&mut canvas, &view);
    for layer in layers {
        draw_boxes(&mut canvas, &view, layer);
    }
    if options.annotate {
        draw_ring_labels(&mut canvas, &view, options);
        draw_scale_bar(&mut canvas, &view);
        draw_legend(&mut canvas, layers, &options.title, heights);
    }

    let opaque = canvas.pixels().iter();
    let bytes = opaque.flat_map(|p| [p.red(), p.green(), p.blue()]);
    RgbImage::from_raw(view.width, view.height, bytes.collect())
        .expect("three bytes for each pixel")
}

fn paint(colour: Rgb, opacity: f32) -> Paint<'static> {
    let mut paint = Paint::default();
    let alpha = (opacity.clamp(0.0, 1.0) * 255.0).round() as u8;
    paint.set_color_rgba8(colour[0], colour[1], colour[2], alpha);
    paint.anti_alias = true;
    paint
}

fn stroke(width: f32) -> Stroke {
    Stroke {
        width,
        line_cap: LineCap::Butt,
        line_join: LineJoin::Miter,
        ..Stroke::default()
    }
}

/// Lays a colour over an opaque pixel.
fn blend(canvas: &mut Pixmap, x: i32, y: i32, colour: Rgb, opacity: f32) {
    let (width, height) = (canvas.width() as i32, canvas.height() as i32);
    if !(0..width).contains(&x) || !(0..height).contains(&y) {
        return;
    }
    let pixel = &mut canvas.pixels_mut()[(y * width + x) as usize];
    let mix = |under: u8, over: u8| {
        let mixed = f32::from(under) + (f32::from(over) - f32::from(under)) * opacity;
        mixed.round().clamp(0.0, 255.0) as u8
    };
    let opaque = PremultipliedColorU8::from_rgba(
        mix(pixel.red(), colour[0]),
        mix(pixel.green(), colour[1]),
        mix(pixel.blue(), colour[2]),
        255,
    );
    if let Some(opaque) = opaque {
        *pixel = opaque;
    }
}

/// Colour of a height between 0 (lowest) and 1.
fn height_colour(share: f32) -> Rgb {
    let place = share.clamp(0.0, 1.0) * (HEIGHTS.len() - 1) as f32;
    let below = (place as usize).min(HEIGHTS.len() - 2);
    let part = place - below as f32;
    std::array::from_fn(|i| {
        let (low, high) = (
            f32::from(HEIGHTS[below][i]),
            f32::from(HEIGHTS[below + 1][i]),
        );
        (low + (high - low) * part).round() as u8
    })
}

/// Draws the points, the highest last; returns the heights of the darkest and lightest colour, if
/// there are points.
fn draw_points(
    canvas: &mut Pixmap,
    view: &View,
    points: &Points,
    options: &BevOptions,
) -> Option<(f32, f32)> {
    let mut order: Vec<&crate::cloud::Point> = points.0.iter().collect();
    order.sort_by(|a, b| a.z.total_cmp(&b.z));
    let ground = order.get(order.len() / 50)?.z;
    let (low, high) = options.heights.unwrap_or((ground, ground + 4.0));
    let span = (high - low).max(1e-3);
    for point in order {
        let (u, v) = view.pixel(point.x, point.y);
        if !(u > -2.0 && v > -2.0 && u < view.width as f32 + 2.0 && v < view.height as f32 + 2.0) {
            continue;
        }
        let share = (point.z - low) / span;
        let colour = height_colour(share);
        // A dot of a little more than a pixel: weights fall off linearly around its centre.
        let radius = 1.25;
        let (column, row) = (u.floor() as i32, v.floor() as i32);
        for y in row - 1..=row + 1 {
            for x in column - 1..=column + 1 {
                let distance = (x as f32 + 0.5 - u).hypot(y as f32 + 0.5 - v);
                let weight = (radius - distance).clamp(0.0, 1.0);
                if weight > 0.0 {
                    blend(canvas, x, y, colour, weight * 0.85);
                }
            }
        }
    }
    Some((low, high))
}

/// Radii in metres of the rings that can be seen.
fn rings(view: &View, options: &BevOptions) -> impl Iterator<Item = f32> + use<> {
    let step = options.rings;
    let far = [0.0, view.width as f32]
        .into_iter()
        .flat_map(|u| [0.0, view.height as f32].map(|v| (u, v)))
        .map(|(u, v)| (view.left + u / view.scale).hypot(view.top - v / view.scale))
        .fold(0.0, f32::max);
    // Rings closer than a few pixels would only darken the picture.
    let visible = step.is_finite() && step * view.scale >= 4.0;
    let count = if visible { (far / step) as usize } else { 0 };
    (1..=count.min(1000)).map(move |i| i as f32 * step)
}

fn draw_rings(canvas: &mut Pixmap, view: &View, options: &BevOptions) {
    let (u, v) = view.pixel(0.0, 0.0);
    for (i, radius) in rings(view, options).enumerate() {
        let strong = (i + 1) % 5 == 0;
        if let Some(path) = PathBuilder::from_circle(u, v, radius * view.scale) {
            let paint = paint([96, 112, 132], if strong { 0.65 } else { 0.4 });
            canvas.stroke_path(&path, &paint, &stroke(1.0), Transform::identity(), None);
        }
    }
}

fn draw_ring_labels(canvas: &mut Pixmap, view: &View, options: &BevOptions) {
    for radius in rings(view, options) {
        // Along the diagonal to the front right, where the scale bar and the legend are not.
        let along = radius * std::f32::consts::FRAC_1_SQRT_2;
        let (u, v) = view.pixel(along, -along);
        let label = format!("{radius}");
        let (x, y) = (u - text_width(&label, TextSize::Small) / 2.0, v - 8.0);
        let inside =
            x > 4.0 && y > 4.0 && x + 40.0 < view.width as f32 && y + 56.0 < view.height as f32;
        if inside {
            draw_text(canvas, x, y, &label, TextSize::Small, FAINT_INK);
        }
    }
}

/// An arrowhead where the points' frame has its origin.
fn draw_vehicle(canvas: &mut Pixmap, view: &View) {
    let mut path = PathBuilder::new();
    for (i, (x, y)) in [(1.6, 0.0), (-1.2, 1.0), (-0.7, 0.0), (-1.2, -1.0)]
        .into_iter()
        .enumerate()
    {
        let (u, v) = view.pixel(x, y);
        if i == 0 {
            path.move_to(u, v);
        } else {
            path.line_to(u, v);
        }
    }
    path.close();
    if let Some(path) = path.finish() {
        let rule = tiny_skia::FillRule::Winding;
        canvas.fill_path(&path, &paint(INK, 0.95), rule, Transform::identity(), None);
    }
}

/// Outline and heading of a box: one path, so that a translucent layer is equally strong
/// throughout.
fn box_path(view: &View, bbox: &Box3d) -> Option<tiny_skia::Path> {
    let corners = bbox.bev_corners();
    let numbers = corners.iter().flat_map(|c| [c.x, c.y]);
    // Far outside, and of no use to anyone: a faulty box must not upset the rasteriser.
    if !numbers.into_iter().all(|n| n.abs() < 1e5) {
        return None;
    }
    let pixels = corners.map(|c| view.pixel(c.x, c.y));
    let outside = |f: &dyn Fn(&(f32, f32)) -> bool| pixels.iter().all(f);
    if outside(&|p| p.0 < 0.0)
        || outside(&|p| p.1 < 0.0)
        || outside(&|p| p.0 > view.width as f32)
        || outside(&|p| p.1 > view.height as f32)
    {
        return None;
    }
    let mut path = PathBuilder::new();
    for (i, (u, v)) in pixels.iter().enumerate() {
        if i == 0 {
            path.move_to(*u, *v);
        } else {
            path.line_to(*u, *v);
        }
    }
    path.close();
    // The tick runs from the middle of the front edge halfway to the centre.
    let front = (corners[0] + corners[3]) / 2.0;
    let inner = front + (bbox.center.xy() - front) * 0.6;
    let (from, to) = (view.pixel(front.x, front.y), view.pixel(inner.x, inner.y));
    path.move_to(from.0, from.1);
    path.line_to(to.0, to.1);
    path.finish()
}

fn layer_stroke(layer: &BoxLayer) -> Stroke {
    Stroke {
        dash: layer
            .dashed
            .then(|| StrokeDash::new(vec![5.0, 4.0], 0.0))
            .flatten(),
        ..stroke(layer.width)
    }
}

fn draw_boxes(canvas: &mut Pixmap, view: &View, layer: &BoxLayer) {
    let (paint, stroke) = (paint(layer.colour, layer.opacity), layer_stroke(layer));
    for bbox in &layer.boxes {
        if let Some(path) = box_path(view, bbox) {
            canvas.stroke_path(&path, &paint, &stroke, Transform::identity(), None);
        }
    }
}

fn line(canvas: &mut Pixmap, from: (f32, f32), to: (f32, f32), paint: &Paint, stroke: &Stroke) {
    let mut path = PathBuilder::new();
    path.move_to(from.0, from.1);
    path.line_to(to.0, to.1);
    if let Some(path) = path.finish() {
        canvas.stroke_path(&path, paint, stroke, Transform::identity(), None);
    }
}

fn draw_scale_bar(canvas: &mut Pixmap, view: &View) {
    // The largest of 1, 2, 5, 10, ... metres that takes up to a fifth of the picture.
    let most = view.width as f32 / view.scale / 5.0;
    let Some(metres) = (-2..4)
        .flat_map(|e| [1.0, 2.0, 5.0].map(|m| m * 10f32.powi(e)))
        .rfind(|m| *m <= most)
    else {
        return;
    };
    let length = metres * view.scale;
    let (right, y) = (view.width as f32 - 24.0, view.height as f32 - 22.0);
    let left = right - length;
    let (ink, thin) = (paint(INK, 0.9), stroke(2.0));
    line(canvas, (left, y), (right, y), &ink, &thin);
    for x in [left, right] {
        line(canvas, (x, y - 5.0), (x, y + 5.0), &ink, &thin);
    }
    let label = format!("{metres} m");
    let x = (left + right - text_width(&label, TextSize::Small)) / 2.0;
    draw_text(canvas, x, y - 22.0, &label, TextSize::Small, INK);
}

fn draw_legend(canvas: &mut Pixmap, layers: &[BoxLayer], title: &str, heights: Option<(f32, f32)>) {
    const MARGIN: f32 = 14.0;
    const PADDING: f32 = 14.0;
    const ROW: f32 = 28.0;
    const SAMPLE: f32 = 40.0;
    // Adding zero turns a rounded -0 into 0.
    let tenths = |v: f32| (v * 10.0).round() / 10.0 + 0.0;
    let range =
        heights.map(|(low, high)| format!("height {:.1} to {:.1} m", tenths(low), tenths(high)));
    let entries = layers
        .iter()
        .map(|l| format!("{} ({})", l.label, l.boxes.len()));
    let mut texts: Vec<String> = entries.collect();
    texts.extend(range);
    let titled = usize::from(!title.is_empty());
    let rows = texts.len() + titled;
    if rows == 0 {
        return;
    }
    let widest = texts
        .iter()
        .map(|t| text_width(t, TextSize::Large) + SAMPLE + 12.0)
        .chain([text_width(title, TextSize::Large)])
        .fold(0.0, f32::max);
    let panel = Rect::from_xywh(
        MARGIN,
        MARGIN,
        widest + 2.0 * PADDING,
        rows as f32 * ROW + 2.0 * PADDING - 6.0,
    );
    if let Some(panel) = panel {
        let back = paint(BACKGROUND, 0.82);
        canvas.fill_rect(panel, &back, Transform::identity(), None);
        let frame = PathBuilder::from_rect(panel);
        let edge = paint(FAINT_INK, 0.4);
        canvas.stroke_path(&frame, &edge, &stroke(1.0), Transform::identity(), None);
    }
    let left = MARGIN + PADDING;
    let mut y = MARGIN + PADDING;
    if titled == 1 {
        draw_text(canvas, left, y, title, TextSize::LargeBold, INK);
        y += ROW;
    }
    for (i, text) in texts.iter().enumerate() {
        let middle = y + 11.0;
        match layers.get(i) {
            Some(layer) => line(
                canvas,
                (left, middle),
                (left + SAMPLE, middle),
                &paint(layer.colour, layer.opacity),
                &layer_stroke(layer),
            ),
            None => {
                for column in 0..SAMPLE as i32 {
                    let colour = height_colour(column as f32 / SAMPLE);
                    for row in -5..5 {
                        let (x, y) = (left as i32 + column, middle as i32 + row);
                        blend(canvas, x, y, colour, 1.0);
                    }
                }
            }
        }
        draw_text(canvas, left + SAMPLE + 12.0, y, text, TextSize::Large, INK);
        y += ROW;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::Point;
    use nalgebra::Vector3;
    use proptest::prelude::*;

    fn plain() -> BevOptions {
        BevOptions {
            x: (-20.0, 20.0),
            y: (-10.0, 10.0),
            scale: 10.0,
            rings: 0.0,
            annotate: false,
            ..BevOptions::default()
        }
    }

    fn car(x: f32, y: f32, yaw: f32) -> Box3d {
        Box3d {
            center: Vector3::new(x, y, 0.0),
            size: Vector3::new(4.0, 2.0, 1.5),
            yaw,
        }
    }

    fn at(picture: &RgbImage, options: &BevOptions, x: f32, y: f32) -> Rgb {
        let (u, v) = pixel_of(options, x, y);
        picture.get_pixel(u as u32, v as u32).0
    }

    #[test]
    fn forward_is_right_and_left_is_up() {
        let options = plain();
        assert_eq!(pixel_of(&options, -20.0, 10.0), (0.0, 0.0));
        assert_eq!(pixel_of(&options, 20.0, -10.0), (400.0, 200.0));
        assert_eq!(
            bev(&Points::default(), &[], &options).dimensions(),
            (400, 200)
        );
    }

    #[test]
    fn the_outline_of_a_box_has_its_layer_s_colour_and_its_inside_has_not() {
        let options = plain();
        for yaw in [0.0, 0.7, -2.5] {
            let bbox = car(10.0, 3.0, yaw);
            let picture = bev(
                &Points::default(),
                &[BoxLayer::new("boxes", vec![bbox], AMBER)],
                &options,
            );
            let corners = bbox.bev_corners();
            for i in 0..4 {
                // A little inwards of the corner, along the edge.
                let place = corners[i] + (corners[(i + 1) % 4] - corners[i]) * 0.1;
                let [r, g, b] = at(&picture, &options, place.x, place.y);
                let near = |c: u8, wanted: u8| c.abs_diff(wanted) < 90;
                let hit = near(r, AMBER[0]) && near(g, AMBER[1]) && near(b, AMBER[2]);
                assert!(hit, "corner {i} at yaw {yaw}: {:?}", [r, g, b]);
            }
            // Behind the centre there is no tick.
            let (sin, cos) = yaw.sin_cos();
            let behind = at(&picture, &options, 10.0 - cos, 3.0 - sin);
            assert_eq!(behind, BACKGROUND, "yaw {yaw}");
            let ahead = at(&picture, &options, 10.0 + 1.4 * cos, 3.0 + 1.4 * sin);
            assert_ne!(ahead, BACKGROUND, "yaw {yaw}");
        }
    }

    #[test]
    fn a_thin_layer_leaves_the_broad_one_below_visible_where_they_coincide() {
        let options = plain();
        let picture = bev(
            &Points::default(),
            &[
                BoxLayer::new("float", vec![car(10.0, 3.0, 0.0)], AMBER).broad(),
                BoxLayer::new("int8", vec![car(10.0, 3.0, 0.0)], CYAN).thin(),
            ],
            &options,
        );
        // Across the left edge, at y = 4: cyan in the middle, amber (mixed with the background)
        // on both sides of it.
        let (u, v) = pixel_of(&options, 9.0, 4.0);
        let pixel = |dv: i32| picture.get_pixel(u as u32, (v as i32 + dv) as u32).0;
        let bluish = |c: Rgb| c[2] > c[0];
        assert!(
            bluish(pixel(0)) || bluish(pixel(-1)),
            "{:?} {:?}",
            pixel(0),
            pixel(-1)
        );
        for side in [-2, 1] {
            let [r, _, b] = pixel(side);
            assert!(r > 120 && b < 80, "{side}: {:?}", pixel(side));
        }
        assert_eq!(pixel(8), BACKGROUND);
    }

    #[test]
    fn points_are_drawn_where_they_are_and_higher_ones_are_lighter() {
        let options = BevOptions {
            heights: Some((0.0, 4.0)),
            ..plain()
        };
        let point = |x: f32, y: f32, z: f32| Point {
            x,
            y,
            z,
            ..Point::default()
        };
        let points = Points(vec![
            point(5.05, 5.05, 0.0),
            point(-5.05, 5.05, 4.0),
            point(500.0, 0.0, 1.0),
        ]);
        let picture = bev(&points, &[], &options);
        let sum = |c: Rgb| c.iter().map(|v| u32::from(*v)).sum::<u32>();
        let (low, high) = (
            at(&picture, &options, 5.05, 5.05),
            at(&picture, &options, -5.05, 5.05),
        );
        assert!(sum(low) > sum(BACKGROUND), "{low:?}");
        assert!(sum(high) > 2 * sum(low), "{high:?} {low:?}");
        assert_eq!(at(&picture, &options, 0.0, 8.0), BACKGROUND);
    }

    #[test]
    fn rings_lie_at_their_radii() {
        let options = BevOptions {
            rings: 10.0,
            ..plain()
        };
        let picture = bev(&Points::default(), &[], &options);
        let lit = |x: f32, y: f32| at(&picture, &options, x, y) != BACKGROUND;
        assert!(lit(10.0, 0.05) || lit(9.95, 0.05));
        assert!(lit(0.05, 9.95) || lit(0.05, 9.9));
        assert!(!lit(7.0, 3.0));
    }

    #[test]
    fn annotations_change_the_corners_only_when_wanted() {
        let layer = [BoxLayer::new("float", vec![], AMBER).broad()];
        let with = BevOptions {
            annotate: true,
            title: "A title".into(),
            ..plain()
        };
        let picture = bev(&Points::default(), &layer, &with);
        let amber = picture
            .pixels()
            .filter(|p| p.0[0] > 120 && p.0[2] < 80)
            .count();
        assert!(
            amber > 40,
            "the legend shows the layer's colour: {amber} pixels"
        );
        let bare = bev(&Points::default(), &layer, &plain());
        assert_eq!(
            bare.pixels()
                .filter(|p| p.0[0] > 120 && p.0[2] < 80)
                .count(),
            0
        );
    }

    #[test]
    fn senseless_options_still_give_a_picture() {
        for (x, scale) in [
            ((5.0, -5.0), 10.0),
            ((f32::NAN, 1.0), 10.0),
            ((0.0, 1e9), 10.0),
            ((-10.0, 10.0), f32::INFINITY),
            ((-10.0, 10.0), -1.0),
        ] {
            let options = BevOptions {
                x,
                scale,
                rings: 1e-6,
                annotate: true,
                ..plain()
            };
            let picture = bev(&Points::default(), &[], &options);
            assert!(picture.width() <= 8192 && picture.height() <= 8192);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_box_can_be_drawn(
            x in any::<f32>(), y in -1e4f32..1e4, l in any::<f32>(), yaw in any::<f32>(),
        ) {
            let bbox = Box3d { center: Vector3::new(x, y, 0.0), size: Vector3::new(l, 2.0, 1.0), yaw };
            let layer = BoxLayer::new("any", vec![bbox], CYAN).dashed();
            bev(&Points::default(), &[layer], &plain());
        }
    }
}
