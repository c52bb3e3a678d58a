//! Shapes of road users and street furniture, each a set of solids.
//!
//! Model frame: origin on the ground below the centre of the labelled box, x forward, z up.

use serde::{Deserialize, Serialize};

use super::rng::Rng;
use super::shape::{Bounds, Hull, Material, Part, V3};

/// Classes of labelled objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ObjectClass {
    Car,
    Truck,
    Bus,
    Bicycle,
    Pedestrian,
}

impl ObjectClass {
    pub const ALL: [Self; 5] = [
        Self::Car,
        Self::Truck,
        Self::Bus,
        Self::Bicycle,
        Self::Pedestrian,
    ];

    /// The label as written to bags and JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::Car => "CAR",
            Self::Truck => "TRUCK",
            Self::Bus => "BUS",
            Self::Bicycle => "BICYCLE",
            Self::Pedestrian => "PEDESTRIAN",
        }
    }
}

/// An object's solids and the extents of its labelled box.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub parts: Vec<Part>,
    pub part_bounds: Vec<Bounds>,
    pub bounds: Bounds,
    /// Length, width, height of the labelled box; wing mirrors stand out of it.
    pub size: V3,
}

impl Model {
    fn new(parts: Vec<Part>, size: [f32; 3]) -> Self {
        let part_bounds: Vec<Bounds> = parts.iter().map(|p| p.shape.bounds()).collect();
        let bounds = part_bounds.iter().fold(Bounds::EMPTY, |a, b| a.join(b));
        Self {
            parts,
            part_bounds,
            bounds,
            size: size.into(),
        }
    }

    /// A model whose box is as large as its solids.
    fn fitted(parts: Vec<Part>) -> Self {
        let mut model = Self::new(parts, [0.0; 3]);
        model.size = V3::new(
            2.0 * model.bounds.high.x.max(-model.bounds.low.x),
            2.0 * model.bounds.high.y.max(-model.bounds.low.y),
            model.bounds.high.z,
        );
        model
    }
}

/// Car paint: mostly white, grey and black, some in colour; reflectance in the near infrared.
///
/// Some are dull and dusty, some freshly polished or wet.
fn paint(rng: &mut Rng) -> Material {
    let (low, high) = [(0.55, 0.85), (0.3, 0.5), (0.05, 0.12), (0.15, 0.6)]
        [rng.weighted(&[0.3, 0.27, 0.25, 0.18])];
    Material::paint(rng.range(low, high), rng.range(0.0, 0.7))
}

fn wheel(parts: &mut Vec<Part>, x: f32, half_width: f32, radius: f32, thickness: f32) {
    for side in [-1.0, 1.0] {
        let outer = side * half_width;
        parts.push(Part::cylinder(
            [x, outer - side * thickness, radius],
            [x, outer, radius],
            radius,
            Material::RUBBER,
        ));
        parts.push(Part::cylinder(
            [x, outer - side * 0.5 * thickness, radius],
            [x, outer + side * 0.005, radius],
            radius * 0.6,
            Material::STEEL,
        ));
    }
}

fn plates(parts: &mut Vec<Part>, half_length: f32, z: f32) {
    for side in [-1f32, 1.0] {
        let (inner, outer) = (side * (half_length - 0.02), side * (half_length + 0.01));
        parts.push(Part::cuboid(
            [inner.min(outer), -0.26, z],
            [inner.max(outer), 0.26, z + 0.11],
            Material::PLATE,
        ));
    }
}

/// Head and torso of somebody on a seat whose cushion is at `z`.
fn occupant(parts: &mut Vec<Part>, x: f32, y: f32, z: f32) {
    let cloth = Material::opaque(0.3);
    parts.push(Part::ellipsoid([x, y, z + 0.3], [0.15, 0.21, 0.32], cloth));
    parts.push(Part::ellipsoid(
        [x + 0.03, y, z + 0.72],
        [0.1, 0.08, 0.12],
        Material::opaque(0.4),
    ));
}

#[derive(Clone, Copy, PartialEq)]
enum CarBody {
    Mini,
    Hatchback,
    Coupe,
    Sedan,
    Wagon,
    Suv,
    /// One slope from the bonnet to the roof.
    Minivan,
    Van,
    Pickup,
}

/// A passenger car, 3.3 to 6 m long.
pub(crate) fn car(rng: &mut Rng, driven: bool) -> Model {
    use CarBody::*;
    let body = [
        Mini, Hatchback, Coupe, Sedan, Wagon, Suv, Minivan, Van, Pickup,
    ][rng.weighted(&[0.05, 0.18, 0.04, 0.21, 0.07, 0.27, 0.06, 0.06, 0.06])];
    let (length, width, height) = match body {
        Mini => (3.5, 1.6, 1.54),
        Hatchback => (3.95, 1.69, 1.5),
        Coupe => (4.4, 1.78, 1.34),
        Sedan => (4.6, 1.77, 1.46),
        Wagon => (4.6, 1.76, 1.5),
        Suv => (4.55, 1.83, 1.72),
        Minivan => (4.7, 1.8, 1.68),
        Van => (4.9, 1.89, 1.95),
        Pickup => (5.4, 1.93, 1.85),
    };
    let l = length * rng.around(1.0, 0.055);
    let w = width * rng.around(1.0, 0.03);
    let h = height * rng.around(1.0, 0.035);
    let (hl, hw) = (l / 2.0, w / 2.0);
    let paint = paint(rng);
    let dark = Material::opaque(0.12);
    let glass = Material::glass(if rng.chance(0.2) {
        rng.range(0.2, 0.7)
    } else {
        rng.range(0.7, 1.0)
    });
    let clearance = if matches!(body, Suv | Pickup) {
        rng.range(0.2, 0.26)
    } else {
        rng.range(0.15, 0.2)
    };
    let belt = h * rng.range(0.58, 0.65);
    // Cabs lean in and are narrower than the doors; the flanks bulge, the corners are round.
    let lean = rng.range(0.2, 0.34);
    let shoulder = rng.range(0.07, 0.13);
    let round = rng.range(0.7, 1.3);
    let flank = h * rng.range(0.34, 0.46);
    // Along x from the middle: foot of the windscreen, roof's front and rear, foot of the rear pane.
    let (screen, roof_front, roof_rear, rear) = match body {
        Mini => (hl - 0.75, hl - 1.35, -hl + 0.4, -hl + 0.1),
        Coupe => (hl - 1.35, hl - 2.15, -hl + 1.5, -hl + 0.4),
        Minivan => (hl - 0.75, hl - 1.9, -hl + 0.4, -hl + 0.1),
        Hatchback => (hl - 0.95, hl - 1.65, -hl + 0.65, -hl + 0.15),
        Sedan => (hl - 1.2, hl - 1.95, -hl + 1.35, -hl + 0.7),
        Wagon => (hl - 1.2, hl - 1.95, -hl + 0.6, -hl + 0.15),
        Suv => (hl - 1.15, hl - 1.85, -hl + 0.5, -hl + 0.12),
        Van => (hl - 0.55, hl - 1.35, -hl + 0.25, -hl + 0.06),
        Pickup => (hl - 1.35, hl - 2.05, -hl + 2.1, -hl + 1.85),
    };
    let nose = belt - rng.range(0.12, 0.2);
    let face = nose - clearance;
    let roof = roof_front - roof_rear;
    let tail_height = if body == Pickup { belt - 0.08 } else { belt };
    let mut parts = vec![
        // Lower body: sills, bumpers, bonnet, boot.
        Hull::new(paint)
            .profile(&[
                (-hl + 0.3, clearance, dark),
                (hl - 0.3, clearance, dark),
                (hl - 0.04, clearance + 0.25 * face, paint),
                (hl, clearance + 0.5 * face, paint),
                (hl - 0.05, nose - 0.2 * face, paint),
                (hl - 0.22 * round, nose, paint),
                (screen, belt, paint),
                (rear.min(-hl + 0.5), tail_height, paint),
                (-hl + 0.1 * round, tail_height - 0.1, paint),
                (-hl, clearance + 0.5 * face, paint),
                (-hl + 0.05, clearance + 0.25 * face, paint),
            ])
            .sides((flank, hw), (belt, hw - shoulder), paint)
            .sides((clearance, hw - 0.06), (flank - 0.12, hw), paint)
            .sides((0.0, hw), (1.0, hw), paint)
            .chamfer(hl, hw, 0.9 * round, 0.07)
            .chamfer(hl, hw, 0.42 * round, 0.18)
            .chamfer(hl, hw, 0.17 * round, 0.4)
            .chamfer(hl, hw, 0.05 * round, 0.7)
            .chamfer(-hl, hw, 0.7 * round, 0.06)
            .chamfer(-hl, hw, 0.3 * round, 0.15)
            .chamfer(-hl, hw, 0.11 * round, 0.34)
            .chamfer(-hl, hw, 0.035 * round, 0.65)
            .part(),
        // Cabin. Panel vans have sheet metal where others have rear panes.
        Hull::new(paint)
            .profile(&[
                (rear, belt - 0.06, paint),
                (screen, belt - 0.06, glass),
                (roof_front, h - 0.06, paint),
                (roof_front - (0.4 * roof).min(0.45), h, paint),
                (roof_rear + (0.4 * roof).min(0.4), h, paint),
                (roof_rear, h - 0.07, glass),
            ])
            .sides(
                (belt, hw - shoulder - 0.01),
                (h, hw - shoulder - lean),
                glass,
            )
            // Rails and the curve of the roof.
            .sides(
                (h - 0.08, hw - shoulder - lean),
                (h, hw - shoulder - lean - 0.16),
                paint,
            )
            .part(),
    ];
    // Rails, racks and boxes on the roof.
    let mut top = h;
    if matches!(body, Wagon | Suv | Minivan | Van) && rng.chance(0.35) {
        top = h + rng.range(0.04, 0.1);
        let (front, rear) = (roof_front - 0.5, roof_rear + 0.3);
        for side in [-1.0f32, 1.0] {
            let y = side * (hw - shoulder - lean - 0.1);
            parts.push(Part::cuboid(
                [rear, y - 0.025, h - 0.1],
                [front, y + 0.025, top],
                dark,
            ));
        }
        if rng.chance(0.25) {
            top = h + rng.range(0.3, 0.45);
            let (a, b) = (-0.35, rng.range(0.0, 0.35));
            parts.push(Part::cuboid(
                [rear + 0.1, a, h + 0.05],
                [front, b, top],
                dark,
            ));
        }
    }
    if body == Pickup {
        // The load bed is below the belt line: raise its rails over the body's rear.
        for side in [-1.0f32, 1.0] {
            let (a, b) = (side * (hw - 0.12), side * (hw - 0.05));
            parts.push(Part::cuboid(
                [-hl + 0.06, a.min(b), belt - 0.3],
                [rear, a.max(b), belt + 0.06],
                paint,
            ));
        }
        parts.push(Part::cuboid(
            [-hl + 0.03, -hw + 0.1, belt - 0.3],
            [-hl + 0.09, hw - 0.1, belt + 0.05],
            paint,
        ));
    }
    if body == Van && rng.chance(0.5) {
        for side in [-1.0f32, 1.0] {
            let foot = side * (hw - shoulder - 0.03);
            parts.push(Part::cuboid(
                [rear + 0.05, (foot - 0.02).min(foot + 0.02), belt - 0.05],
                [0.3, (foot - 0.02).max(foot + 0.02), belt + 0.3],
                paint,
            ));
        }
    }
    let radius = rng.range(0.3, 0.34)
        * if matches!(body, Suv | Pickup) {
            1.1
        } else {
            1.0
        };
    wheel(
        &mut parts,
        hl - 0.18 * l - rng.range(0.0, 0.08),
        hw - 0.015,
        radius,
        0.22,
    );
    wheel(&mut parts, -hl + 0.19 * l, hw - 0.015, radius, 0.22);
    plates(&mut parts, hl, clearance + 0.3);
    // Lamps reflect strongly.
    for side in [-1.0f32, 1.0] {
        let y = side * (hw - 0.3);
        parts.push(Part::cuboid(
            [-hl + 0.06, y - 0.12, belt - 0.32],
            [-hl + 0.2, y + 0.12, belt - 0.16],
            Material::opaque(0.9),
        ));
        let (a, b) = (side * (hw - 0.05), side * (hw + 0.09));
        parts.push(Part::cuboid(
            [screen - 0.45, a.min(b), belt + 0.02],
            [screen - 0.33, a.max(b), belt + 0.16],
            paint,
        ));
    }
    let seat = Material::opaque(0.2);
    let front_seat = (screen + roof_front) / 2.0 - 0.95;
    for y in [-0.36f32, 0.36] {
        parts.push(Part::cuboid(
            [front_seat - 0.2, y - 0.22, belt - 0.1],
            [front_seat - 0.08, y + 0.22, h - 0.35],
            seat,
        ));
    }
    if rear + 0.6 < front_seat - 0.9 {
        let bench = front_seat - 0.95;
        parts.push(Part::cuboid(
            [bench - 0.15, -hw + 0.3, belt - 0.1],
            [bench, hw - 0.3, h - 0.42],
            seat,
        ));
    }
    if driven {
        occupant(&mut parts, front_seat, 0.36, belt - 0.35);
        if rng.chance(0.3) {
            occupant(&mut parts, front_seat, -0.36, belt - 0.35);
        }
    }
    // Boxes drawn by people sit some centimetres off the metal.
    let slack = rng.range(0.02, 0.16);
    Model::new(parts, [l + slack, w + slack, top + 0.3 * slack])
}

/// A rigid lorry with cab and body, 6 to 10 m long.
pub(crate) fn truck(rng: &mut Rng) -> Model {
    let l = rng.range(5.8, 10.2);
    let w = if l < 7.0 {
        rng.range(2.1, 2.45)
    } else {
        rng.range(2.4, 2.6)
    };
    let cab_height = if l < 7.0 {
        rng.range(2.2, 2.6)
    } else {
        rng.range(2.6, 3.2)
    };
    let (hl, hw) = (l / 2.0, w / 2.0);
    let paint = paint(rng);
    let dark = Material::opaque(0.15);
    let cab = if l < 7.0 {
        rng.range(1.6, 1.9)
    } else {
        rng.range(1.7, 2.3)
    };
    let floor = rng.range(0.85, 1.1);
    let pane = cab_height * 0.55;
    let glass = Material::GLASS;
    let mut parts = vec![
        // Cab: bumper and doors below, panes above.
        Hull::new(paint)
            .profile(&[
                (hl - cab, 0.45, dark),
                (hl - 0.1, 0.35, dark),
                (hl, 0.55, paint),
                (hl - 0.03, pane, paint),
                (hl - cab, pane, paint),
            ])
            .sides((0.0, hw), (1.0, hw), paint)
            .chamfer(hl, hw, 0.2, 0.25)
            .part(),
        Hull::new(paint)
            .profile(&[
                (hl - cab, pane, paint),
                (hl - 0.03, pane, glass),
                (hl - 0.25, cab_height - 0.12, paint),
                (hl - 0.5, cab_height, paint),
                (hl - cab, cab_height, paint),
            ])
            .sides((pane, hw - 0.02), (cab_height, hw - 0.12), glass)
            .part(),
        // Rear wall of the cab and the seats.
        Part::cuboid(
            [hl - cab + 0.02, -hw + 0.15, pane],
            [hl - cab + 0.1, hw - 0.15, cab_height - 0.05],
            paint,
        ),
        Part::cuboid(
            [hl - cab + 0.35, -hw + 0.3, pane - 0.1],
            [hl - cab + 0.5, hw - 0.3, pane + 0.55],
            dark,
        ),
        // Chassis.
        Part::cuboid([-hl + 0.1, -0.45, 0.55], [hl - 0.6, 0.45, floor], dark),
        // Underrun bar.
        Part::cuboid(
            [-hl + 0.05, -hw + 0.1, 0.42],
            [-hl + 0.15, hw - 0.1, 0.56],
            dark,
        ),
    ];
    occupant(&mut parts, hl - 0.9, 0.5, pane - 0.3);
    let body_front = hl - cab - rng.range(0.08, 0.3);
    let load = Material::opaque(rng.range(0.25, 0.8));
    let mut top = cab_height;
    match rng.weighted(&[0.62, 0.14, 0.12, 0.12]) {
        0 => {
            // Box or curtain body.
            let height = (floor + rng.range(1.9, 2.6)).min(3.75);
            parts.push(Part::cuboid(
                [-hl, -hw, floor],
                [body_front, hw, height],
                load,
            ));
            top = top.max(height);
        }
        1 => {
            // Flatbed with low sides and some load.
            let rail = floor + rng.range(0.35, 0.6);
            parts.push(Part::cuboid(
                [-hl, -hw, floor - 0.15],
                [body_front, hw, floor],
                dark,
            ));
            for side in [-1.0f32, 1.0] {
                let (a, b) = (side * (hw - 0.05), side * hw);
                parts.push(Part::cuboid(
                    [-hl, a.min(b), floor],
                    [body_front, a.max(b), rail],
                    load,
                ));
            }
            parts.push(Part::cuboid(
                [-hl, -hw, floor],
                [-hl + 0.05, hw, rail],
                load,
            ));
            let pile = floor + rng.range(0.4, 1.4);
            parts.push(Part::cuboid(
                [-hl + rng.range(0.2, 1.2), -hw + 0.2, floor],
                [body_front - rng.range(0.2, 1.0), hw - 0.2, pile],
                Material::opaque(rng.range(0.15, 0.6)),
            ));
            top = top.max(pile);
        }
        2 => {
            // Tanker.
            let radius = (hw - 0.05).min(1.1);
            parts.push(Part::cylinder(
                [-hl, 0.0, floor + radius],
                [body_front, 0.0, floor + radius],
                radius,
                Material::opaque(rng.range(0.4, 0.8)),
            ));
            top = top.max(floor + 2.0 * radius);
        }
        _ => {
            // Tipper: sloping front and rear, sides that lean out.
            let height = floor + rng.range(1.0, 1.6);
            parts.push(
                Hull::new(load)
                    .profile(&[
                        (-hl + 0.5, floor, load),
                        (body_front - 0.2, floor, load),
                        (body_front, height, load),
                        (-hl, height - 0.1, load),
                    ])
                    .sides((floor, hw - 0.25), (height, hw), load)
                    .part(),
            );
            top = top.max(height);
        }
    }
    let radius = if l < 7.0 { 0.38 } else { rng.range(0.46, 0.52) };
    wheel(&mut parts, hl - cab * 0.62, hw - 0.02, radius, 0.28);
    wheel(&mut parts, -hl + 0.22 * l, hw - 0.02, radius, 0.55);
    if l > 8.6 {
        wheel(
            &mut parts,
            -hl + 0.22 * l - 2.2 * radius - 0.1,
            hw - 0.02,
            radius,
            0.5,
        );
    }
    for side in [-1.0f32, 1.0] {
        let (a, b) = (side * (hw + 0.02), side * (hw + 0.16));
        parts.push(Part::cuboid(
            [hl - 0.3, a.min(b), pane + 0.2],
            [hl - 0.2, a.max(b), pane + 0.75],
            dark,
        ));
    }
    plates(&mut parts, hl - 0.01, 0.5);
    let slack = rng.range(0.0, 0.12);
    Model::new(parts, [l + slack, w + slack, top + 0.3 * slack])
}

/// A city bus or coach, 9.5 to 12.6 m long.
pub(crate) fn bus(rng: &mut Rng) -> Model {
    let l = if rng.chance(0.7) {
        rng.range(11.6, 12.6)
    } else {
        rng.range(9.5, 11.0)
    };
    let w = rng.range(2.5, 2.58);
    let h = rng.range(2.95, 3.4);
    let (hl, hw) = (l / 2.0, w / 2.0);
    let paint = Material::opaque(rng.range(0.2, 0.75));
    let dark = Material::opaque(0.12);
    let glass = Material::GLASS;
    let clearance = rng.range(0.28, 0.36);
    let (sill, lintel) = (rng.range(0.95, 1.25), h - rng.range(0.5, 0.7));
    let mut parts = vec![
        Hull::new(paint)
            .profile(&[
                (-hl + 0.2, clearance, dark),
                (hl - 0.25, clearance, dark),
                (hl, clearance + 0.25, paint),
                (hl, sill, paint),
                (-hl, sill, paint),
                (-hl, clearance + 0.2, paint),
            ])
            .sides((0.0, hw), (1.0, hw), paint)
            .chamfer(hl, hw, 0.12, 0.3)
            .chamfer(-hl, hw, 0.1, 0.15)
            .part(),
        // The band of panes; the rear of most buses is closed by the engine.
        Hull::new(paint)
            .profile(&[
                (-hl, sill, paint),
                (hl, sill, glass),
                (hl - 0.1, lintel, paint),
                (-hl + 0.03, lintel, paint),
            ])
            .sides((sill, hw), (lintel, hw - 0.05), glass)
            .chamfer(hl, hw, 0.12, 0.3)
            .part(),
        Hull::new(paint)
            .profile(&[
                (-hl + 0.03, lintel, paint),
                (hl - 0.1, lintel, paint),
                (hl - 0.2, h - 0.12, paint),
                (hl - 0.5, h, paint),
                (-hl + 0.3, h, paint),
                (-hl + 0.06, h - 0.15, paint),
            ])
            .sides((lintel, hw - 0.02), (h, hw - 0.16), paint)
            .part(),
    ];
    // Window posts and rows of seats, some taken.
    let posts = (l / 1.6) as usize;
    for i in 1..posts {
        let x = -hl + l * i as f32 / posts as f32;
        for side in [-1.0f32, 1.0] {
            let (a, b) = (side * (hw - 0.08), side * (hw - 0.01));
            parts.push(Part::cuboid(
                [x - 0.05, a.min(b), sill],
                [x + 0.05, a.max(b), lintel],
                paint,
            ));
        }
    }
    let mut x = -hl + 0.9;
    while x < hl - 2.2 {
        for y in [-0.75f32, 0.75] {
            parts.push(Part::cuboid(
                [x, y - 0.42, sill - 0.2],
                [x + 0.1, y + 0.42, sill + 0.35],
                Material::opaque(0.25),
            ));
            if rng.chance(0.25) {
                occupant(&mut parts, x + 0.3, y, sill - 0.35);
            }
        }
        x += rng.range(0.85, 1.1);
    }
    occupant(&mut parts, hl - 0.9, 0.7, sill - 0.25);
    wheel(&mut parts, hl - 2.7, hw + 0.005, 0.48, 0.3);
    wheel(&mut parts, -hl + 3.2, hw + 0.005, 0.48, 0.5);
    for side in [-1.0f32, 1.0] {
        let (a, b) = (side * (hw + 0.02), side * (hw + 0.2));
        parts.push(Part::cuboid(
            [hl - 0.05, a.min(b), sill + 0.6],
            [hl + 0.1, a.max(b), sill + 1.0],
            dark,
        ));
    }
    if rng.chance(0.5) {
        // Air conditioning; the labelled box includes it only as far as the roof line.
        parts.push(Part::cuboid(
            [-hl + 1.5, -0.8, h - 0.3],
            [-hl + 3.8, 0.8, h],
            paint,
        ));
    }
    plates(&mut parts, hl, clearance + 0.25);
    let slack = rng.range(0.0, 0.12);
    Model::new(parts, [l + slack, w + slack, h + 0.3 * slack])
}

/// Measures and dress of one person.
#[derive(Debug, Clone)]
pub(crate) struct Person {
    height: f32,
    girth: f32,
    upper: Material,
    lower: Material,
    skin: Material,
    /// Angle of the arms when standing, swing and stride when walking.
    arms: f32,
    swing: f32,
    stride: f32,
    backpack: bool,
    bag: bool,
    /// Or a skirt: cloth around the thighs.
    coat: bool,
    /// By which the labelled box is larger than the person, metres.
    slack: V3,
}

impl Person {
    pub fn new(rng: &mut Rng) -> Self {
        let child = rng.chance(0.07);
        let height = if child {
            rng.range(1.1, 1.45)
        } else {
            rng.around(1.73, 0.09)
        };
        Self {
            height,
            girth: rng.around(1.08, 0.11) * if child { 0.85 } else { 1.0 },
            upper: Material::opaque(rng.range(0.1, 0.75)),
            lower: Material::opaque(rng.range(0.08, 0.5)),
            skin: Material::opaque(rng.range(0.3, 0.55)),
            arms: rng.range(0.0, 0.9),
            swing: rng.range(0.3, 0.6),
            stride: rng.range(0.3, 0.44),
            backpack: rng.chance(0.2),
            bag: rng.chance(0.2),
            coat: rng.chance(0.3),
            slack: V3::new(
                rng.range(0.0, 0.12),
                rng.range(0.0, 0.09),
                rng.range(0.0, 0.1),
            ),
        }
    }

    /// Length of one gait cycle (two steps), metres.
    pub fn cycle(&self) -> f32 {
        4.0 * 0.5 * self.height * self.stride.sin()
    }

    fn limbs(&self, parts: &mut Vec<Part>, phase: f32, walking: bool, swell: f32) {
        let (h, g) = (self.height, self.girth);
        let hip = 0.5 * h;
        let hip_y = 0.085 * g;
        let swing = (phase * std::f32::consts::TAU).sin();
        for (side, way) in [(-1.0f32, 1.0), (1.0, -1.0)] {
            let angle = if walking {
                way * swing * self.stride
            } else {
                way * 0.03
            };
            // The swinging leg bends at the knee.
            let bend = if walking {
                (way * (phase * std::f32::consts::TAU).cos()).max(0.0) * 0.7
            } else {
                0.0
            };
            let thigh = 0.25 * h;
            let knee = [
                thigh * (angle + 0.3 * bend).sin(),
                side * hip_y,
                hip - thigh * (angle + 0.3 * bend).cos(),
            ];
            let shin = 0.22 * h;
            let ankle = [
                knee[0] + shin * (angle - bend).sin(),
                side * (hip_y + 0.01),
                (knee[2] - shin * (angle - bend).cos()).max(0.07),
            ];
            parts.push(Part::capsule(
                [0.0, side * hip_y, hip],
                knee,
                0.09 * g + swell,
                self.lower,
            ));
            parts.push(Part::capsule(knee, ankle, 0.068 * g + swell, self.lower));
            parts.push(Part::capsule(
                [ankle[0] - 0.04, ankle[1], ankle[2] - 0.02],
                [ankle[0] + 0.15, ankle[1], ankle[2] - 0.03],
                0.04,
                Material::opaque(0.15),
            ));
            let shoulder = [0.0, side * 0.21 * g, 0.81 * h];
            let (arm, fore) = if walking {
                (-angle / self.stride * self.swing, 0.35)
            } else {
                (self.arms * 0.3, self.arms * 1.2)
            };
            let elbow = [
                shoulder[0] + 0.17 * h * arm.sin(),
                side * (0.21 * g + 0.04),
                shoulder[2] - 0.17 * h * arm.cos(),
            ];
            let hand = [
                elbow[0] + 0.16 * h * (arm + fore).sin(),
                side * (0.21 * g + 0.03),
                elbow[2] - 0.16 * h * (arm + fore).cos(),
            ];
            parts.push(Part::capsule(shoulder, elbow, 0.06 * g + swell, self.upper));
            parts.push(Part::capsule(elbow, hand, 0.047 * g + swell, self.skin));
        }
    }

    /// The person at this point of the gait cycle (0 to 1). Limbs are thicker by `swell`, metres.
    pub fn model(&self, phase: f32, walking: bool, swell: f32) -> Model {
        let (h, g) = (self.height, self.girth);
        let mut parts = vec![
            Part::ellipsoid(
                [0.0, 0.0, 0.68 * h],
                [0.155 * g + swell, 0.225 * g + swell, 0.21 * h],
                self.upper,
            ),
            Part::ellipsoid(
                [0.0, 0.0, 0.52 * h],
                [0.15 * g + swell, 0.19 * g + swell, 0.1 * h],
                self.lower,
            ),
            Part::capsule(
                [0.0, 0.0, 0.82 * h],
                [0.01, 0.0, 0.87 * h],
                0.055,
                self.skin,
            ),
            Part::ellipsoid(
                [0.02, 0.0, 0.93 * h],
                [0.1 + swell, 0.078 + swell, 0.07 * h],
                self.skin,
            ),
        ];
        if self.coat {
            parts.push(Part::ellipsoid(
                [0.0, 0.0, 0.42 * h],
                [0.19 * g, 0.21 * g, 0.17 * h],
                self.lower,
            ));
        }
        if self.backpack {
            parts.push(Part::ellipsoid(
                [-0.17, 0.0, 0.7 * h],
                [0.12, 0.15, 0.14 * h],
                Material::opaque(0.2),
            ));
        }
        if self.bag {
            parts.push(Part::cuboid(
                [-0.12, 0.24 * g, 0.3 * h],
                [0.12, 0.32 * g, 0.46 * h],
                Material::opaque(0.3),
            ));
        }
        self.limbs(&mut parts, phase, walking, swell);
        Model::fitted(parts)
    }

    /// Extents that hold the person at any point of the gait.
    pub fn size(&self, walking: bool) -> V3 {
        if !walking {
            return self.model(0.0, false, 0.0).size + self.slack;
        }
        (0..8)
            .map(|i| self.model(i as f32 / 8.0, true, 0.0).size)
            .fold(V3::zeros(), |a, b| a.sup(&b))
            + self.slack
    }
}

/// A bicycle with its rider.
pub(crate) fn cyclist(rng: &mut Rng) -> Model {
    let frame = Material::opaque(rng.range(0.1, 0.5));
    let upper = Material::opaque(rng.range(0.1, 0.75));
    let lower = Material::opaque(rng.range(0.08, 0.5));
    let skin = Material::opaque(rng.range(0.3, 0.55));
    let scale = rng.around(1.0, 0.04);
    let radius = 0.34 * scale;
    let base = 0.53 * scale;
    let saddle = [-0.22 * scale, 0.0, 0.95 * scale];
    let bar = [0.38 * scale, 0.0, rng.range(0.98, 1.08) * scale];
    let crank = [-0.05, 0.0, 0.3];
    let mut parts = Vec::new();
    for x in [-base, base] {
        // Tyre, rim and spokes fill a good part of the disc for a beam a few centimetres wide.
        parts.push(Part::cylinder(
            [x, -0.02, radius],
            [x, 0.02, radius],
            radius,
            Material::mesh(0.45, 0.15),
        ));
    }
    for (from, to, thickness) in [
        (crank, saddle, 0.02),
        (crank, bar, 0.022),
        (saddle, [0.32 * scale, 0.0, 0.85 * scale], 0.02),
        (crank, [-base, 0.0, radius], 0.018),
        (saddle, [-base, 0.0, radius], 0.018),
        (bar, [base, 0.0, radius], 0.02),
    ] {
        parts.push(Part::capsule(from, to, thickness, frame));
    }
    let grip = rng.range(0.26, 0.32);
    parts.push(Part::capsule(
        [bar[0], -grip, bar[2]],
        [bar[0], grip, bar[2]],
        0.018,
        frame,
    ));
    // Rider: upright on a city bike to bent on a racer.
    let lean = rng.range(0.15, 0.85);
    let torso = rng.around(0.5, 0.03);
    let hip = [saddle[0], 0.0, saddle[2] + 0.1];
    let neck = [
        hip[0] + (torso + 0.05) * lean.sin(),
        0.0,
        hip[2] + (torso + 0.05) * lean.cos(),
    ];
    let turn = rng.range(0.0, std::f32::consts::TAU);
    for side in [-1.0f32, 1.0] {
        let (y, inner) = (side * 0.14, side * 0.09);
        parts.push(Part::capsule(
            [hip[0] + 0.05 * lean.sin(), inner, hip[2] + 0.05],
            [neck[0] - 0.06, inner, neck[2] - 0.06],
            0.135,
            upper,
        ));
        let shoulder = [neck[0], side * 0.19, neck[2] - 0.04];
        let elbow = [
            (shoulder[0] + bar[0]) / 2.0 - 0.04,
            side * 0.26,
            (shoulder[2] + bar[2]) / 2.0 - 0.08,
        ];
        parts.push(Part::capsule(shoulder, elbow, 0.05, upper));
        parts.push(Part::capsule(
            elbow,
            [bar[0], side * grip, bar[2]],
            0.04,
            skin,
        ));
        // Opposite pedals: half a turn apart.
        let pedal_turn = turn
            + if side > 0.0 {
                std::f32::consts::PI
            } else {
                0.0
            };
        let foot = [
            crank[0] + 0.17 * pedal_turn.cos(),
            y * 0.8,
            crank[2] + 0.17 * pedal_turn.sin() + 0.02,
        ];
        let knee = [
            (hip[0] + foot[0]) / 2.0 + 0.2,
            y,
            (hip[2] + foot[2]) / 2.0 + 0.1,
        ];
        parts.push(Part::capsule([hip[0], inner, hip[2]], knee, 0.075, lower));
        parts.push(Part::capsule(knee, foot, 0.055, lower));
    }
    parts.push(Part::ellipsoid(
        [neck[0] + 0.07, 0.0, neck[2] + 0.15],
        [0.12, 0.09, 0.14],
        skin,
    ));
    if rng.chance(0.2) {
        parts.push(Part::cuboid(
            [-base - 0.2, -0.17, 0.72],
            [-base + 0.15, 0.17, 1.0],
            Material::opaque(0.3),
        ));
    }
    Model::fitted(parts)
}

/// A tree with a porous crown of several ellipsoids.
pub(crate) fn tree(rng: &mut Rng, reach: f32) -> Model {
    let trunk = rng.range(0.1, 0.28);
    let base = rng.range(1.4, 3.3);
    let height = rng.range(4.0, 12.0);
    let bark = Material::opaque(rng.range(0.2, 0.4));
    // From bare twigs in winter to a dense crown.
    let leaves = Material::foliage(0.15 * 12f32.powf(rng.unit()));
    let top = base + (height - base) * 0.6;
    let lean = rng.range(-0.15, 0.15);
    let mut parts = vec![Part::cylinder(
        [0.0, 0.0, -0.2],
        [lean, 0.0, top],
        trunk,
        bark,
    )];
    let reach = reach.min(height * 0.35);
    parts.push(Part::ellipsoid(
        [lean, 0.0, (base + height) / 2.0],
        [reach * 0.8, reach * 0.8, (height - base) / 2.0],
        leaves,
    ));
    for _ in 0..rng.count(2, 5) {
        let radius = reach * rng.range(0.35, 0.6);
        let turn = rng.range(0.0, std::f32::consts::TAU);
        let out = (reach - radius).max(0.0);
        let z = rng.range(base + radius, (height - radius).max(base + radius + 0.1));
        parts.push(Part::ellipsoid(
            [lean + out * turn.cos(), out * turn.sin(), z],
            [radius, radius, radius * 0.8],
            leaves,
        ));
    }
    Model::fitted(parts)
}

/// A shrub, or tall grass and brambles that most beams enter.
pub(crate) fn bush(rng: &mut Rng) -> Model {
    if rng.chance(0.35) {
        let weeds = Material::foliage(rng.range(0.4, 2.5));
        let parts = (0..rng.count(1, 3))
            .map(|_| {
                Part::ellipsoid(
                    [rng.range(-0.8, 0.8), rng.range(-0.8, 0.8), 0.0],
                    [
                        rng.range(0.5, 1.6),
                        rng.range(0.5, 1.6),
                        rng.range(0.25, 1.1),
                    ],
                    weeds,
                )
            })
            .collect();
        return Model::fitted(parts);
    }
    let leaves = Material::foliage(rng.range(2.0, 6.0));
    let parts = (0..rng.count(1, 4))
        .map(|_| {
            let radius = rng.range(0.35, 0.8);
            let height = rng.range(0.5, 1.6);
            Part::ellipsoid(
                [rng.range(-0.6, 0.6), rng.range(-0.6, 0.6), height * 0.4],
                [radius, radius, height * 0.6],
                leaves,
            )
        })
        .collect();
    Model::fitted(parts)
}

pub(crate) fn hedge(rng: &mut Rng, length: f32) -> Model {
    let (half, depth, height) = (length / 2.0, rng.range(0.3, 0.5), rng.range(0.8, 2.1));
    Model::fitted(vec![Part::cuboid(
        [-half, -depth, 0.0],
        [half, depth, height],
        Material::foliage(rng.range(4.0, 9.0)),
    )])
}

pub(crate) fn wall(rng: &mut Rng, length: f32) -> Model {
    let height = rng.range(0.5, 2.2);
    Model::fitted(vec![Part::cuboid(
        [-length / 2.0, -0.12, -0.3],
        [length / 2.0, 0.12, height],
        Material::opaque(rng.range(0.25, 0.6)),
    )])
}

pub(crate) fn fence(rng: &mut Rng, length: f32) -> Model {
    let half = length / 2.0;
    let height = rng.range(0.9, 2.0);
    let mut parts = vec![Part::cuboid(
        [-half, -0.02, 0.05],
        [half, 0.02, height],
        Material::mesh(rng.range(0.15, 0.6), 0.3),
    )];
    for x in [-half, 0.0, half] {
        parts.push(Part::cylinder(
            [x, 0.0, 0.0],
            [x, 0.0, height],
            0.04,
            Material::STEEL,
        ));
    }
    Model::fitted(parts)
}

/// Crash barrier: a rail on posts.
pub(crate) fn guard_rail(length: f32) -> Model {
    let half = length / 2.0;
    let mut parts = vec![Part::cuboid(
        [-half, -0.08, 0.45],
        [half, 0.08, 0.76],
        Material::opaque(0.45),
    )];
    for x in [-half / 2.0, half / 2.0] {
        parts.push(Part::cuboid(
            [x - 0.06, -0.06, 0.0],
            [x + 0.06, 0.06, 0.6],
            Material::STEEL,
        ));
    }
    Model::fitted(parts)
}

pub(crate) fn noise_barrier(height: f32, length: f32) -> Model {
    Model::fitted(vec![Part::cuboid(
        [-length / 2.0, -0.1, -0.5],
        [length / 2.0, 0.1, height],
        Material::opaque(0.4),
    )])
}

/// Street lamp: mast, arm over the road (+y) and head.
pub(crate) fn lamp(rng: &mut Rng) -> Model {
    let height = rng.range(4.5, 9.0);
    let arm = rng.range(0.5, 2.0);
    Model::fitted(vec![
        Part::cylinder(
            [0.0; 3],
            [0.0, 0.0, height],
            rng.range(0.06, 0.11),
            Material::STEEL,
        ),
        Part::cylinder([0.0; 3], [0.0, 0.0, 1.2], 0.13, Material::STEEL),
        Part::capsule(
            [0.0, 0.0, height - 0.1],
            [0.0, arm, height],
            0.04,
            Material::STEEL,
        ),
        Part::cuboid(
            [-0.12, arm - 0.1, height - 0.06],
            [0.12, arm + 0.5, height + 0.06],
            Material::opaque(0.5),
        ),
    ])
}

/// Road sign on a post, its face to -x.
pub(crate) fn sign(rng: &mut Rng) -> Model {
    let height = rng.range(2.0, 2.6);
    let face = Material::opaque(2.0);
    let mut parts = vec![Part::cylinder(
        [0.0; 3],
        [0.0, 0.0, height + 0.6],
        0.035,
        Material::STEEL,
    )];
    if rng.chance(0.6) {
        parts.push(Part::cylinder(
            [-0.06, 0.0, height + 0.3],
            [-0.04, 0.0, height + 0.3],
            0.32,
            face,
        ));
    } else {
        let half = rng.range(0.2, 0.5);
        parts.push(Part::cuboid(
            [-0.06, -half, height],
            [-0.04, half, height + 0.6],
            face,
        ));
    }
    Model::fitted(parts)
}

pub(crate) fn traffic_light(rng: &mut Rng) -> Model {
    let height = rng.range(2.3, 3.0);
    let dark = Material::opaque(0.1);
    let mut parts = vec![
        Part::cylinder([0.0; 3], [0.0, 0.0, height], 0.07, Material::STEEL),
        Part::cuboid([-0.2, -0.15, height], [0.1, 0.15, height + 0.9], dark),
    ];
    if rng.chance(0.4) {
        let reach = rng.range(2.5, 4.5);
        parts.push(Part::cylinder(
            [0.0; 3],
            [0.0, 0.0, 5.6],
            0.1,
            Material::STEEL,
        ));
        parts.push(Part::capsule(
            [0.0, 0.0, 5.4],
            [0.0, reach, 5.6],
            0.06,
            Material::STEEL,
        ));
        parts.push(Part::cuboid(
            [-0.2, reach - 0.2, 5.0],
            [0.1, reach + 0.15, 5.9],
            dark,
        ));
    }
    Model::fitted(parts)
}

/// Post that a careless detector takes for a person.
pub(crate) fn bollard(rng: &mut Rng) -> Model {
    let (radius, height) = (rng.range(0.06, 0.18), rng.range(0.6, 1.1));
    Model::fitted(vec![
        Part::cylinder(
            [0.0; 3],
            [0.0, 0.0, height],
            radius,
            Material::opaque(rng.range(0.1, 0.6)),
        ),
        Part::ellipsoid(
            [0.0, 0.0, height],
            [radius, radius, radius * 0.7],
            Material::opaque(0.4),
        ),
    ])
}

pub(crate) fn bin(rng: &mut Rng) -> Model {
    let material = Material::opaque(rng.range(0.08, 0.5));
    if rng.chance(0.5) {
        Model::fitted(vec![Part::cylinder(
            [0.0, 0.0, rng.range(0.0, 0.3)],
            [0.0, 0.0, rng.range(0.8, 1.15)],
            rng.range(0.2, 0.32),
            material,
        )])
    } else {
        // Wheeled bin, small or large.
        let (l, w, h) = if rng.chance(0.7) {
            (0.35, 0.29, 1.07)
        } else {
            (0.52, 0.68, 1.3)
        };
        Model::fitted(vec![
            Hull::new(material)
                .profile(&[
                    (-l * 0.8, 0.06, material),
                    (l * 0.75, 0.06, material),
                    (l, h - 0.1, material),
                    (-l, h, material),
                ])
                .sides((0.0, w * 0.8), (h, w), material)
                .part(),
        ])
    }
}

pub(crate) fn bench(rng: &mut Rng) -> Model {
    let half = rng.range(0.6, 1.0);
    let wood = Material::mesh(0.75, 0.35);
    let mut parts = vec![Part::cuboid([-half, -0.22, 0.4], [half, 0.22, 0.46], wood)];
    if rng.chance(0.7) {
        parts.push(Part::cuboid([-half, 0.2, 0.46], [half, 0.26, 0.9], wood));
    }
    for x in [-half + 0.1, half - 0.1] {
        parts.push(Part::cuboid(
            [x - 0.04, -0.2, 0.0],
            [x + 0.04, 0.2, 0.42],
            Material::STEEL,
        ));
    }
    Model::fitted(parts)
}

/// Switch cabinet, letter box, planter, advertising column, waste container, kiosk: box-like things
/// on pavements.
pub(crate) fn street_box(rng: &mut Rng) -> Model {
    let grey = Material::opaque(rng.range(0.2, 0.6));
    let boxed = |x: f32, y: f32, z: f32| Part::cuboid([-x, -y, 0.0], [x, y, z], grey);
    Model::fitted(match rng.weighted(&[0.3, 0.18, 0.17, 0.12, 0.08, 0.15]) {
        0 => vec![boxed(
            rng.range(0.3, 0.9),
            rng.range(0.15, 0.25),
            rng.range(0.9, 1.6),
        )],
        1 => vec![
            Part::cylinder([0.0; 3], [0.0, 0.0, 0.8], 0.05, grey),
            Part::cuboid([-0.2, -0.2, 0.7], [0.2, 0.2, 1.4], grey),
        ],
        2 => {
            let (half, height) = (rng.range(0.4, 0.9), rng.range(0.4, 0.7));
            vec![
                boxed(half, half, height),
                Part::ellipsoid(
                    [0.0, 0.0, height],
                    [half * 0.9, half * 0.9, rng.range(0.3, 0.9)],
                    Material::foliage(4.0),
                ),
            ]
        }
        3 => vec![Part::cylinder(
            [0.0; 3],
            [0.0, 0.0, rng.range(2.4, 3.4)],
            rng.range(0.5, 0.75),
            grey,
        )],
        // Waste container on castors.
        4 => vec![
            Part::cuboid([-0.65, -0.5, 0.15], [0.65, 0.5, rng.range(1.0, 1.4)], grey),
            Part::cuboid(
                [-0.6, -0.4, 0.0],
                [0.6, 0.4, 0.15],
                Material::mesh(0.2, 0.1),
            ),
        ],
        _ => vec![boxed(
            rng.range(0.8, 1.6),
            rng.range(0.8, 1.4),
            rng.range(2.2, 2.8),
        )],
    })
}

/// Traffic cone or marker post.
pub(crate) fn cone(rng: &mut Rng) -> Model {
    let height = rng.range(0.5, 1.0);
    let orange = Material::opaque(0.6);
    let mut parts = vec![Part::cuboid([-0.2, -0.2, 0.0], [0.2, 0.2, 0.04], orange)];
    for i in 0..3 {
        let low = height * i as f32 / 3.0;
        parts.push(Part::cylinder(
            [0.0, 0.0, low],
            [0.0, 0.0, low + height / 3.0],
            0.15 - 0.045 * i as f32,
            if i == 1 {
                Material::opaque(1.5)
            } else {
                orange
            },
        ));
    }
    Model::fitted(parts)
}

/// A freight or site container without a vehicle: like a lorry's body, standing on the ground.
pub(crate) fn container(rng: &mut Rng) -> Model {
    let half = [2.99, 1.8, 1.5][rng.weighted(&[0.5, 0.3, 0.2])];
    let (width, height) = (rng.range(0.85, 1.22), rng.range(1.4, 2.6));
    Model::fitted(vec![Part::cuboid(
        [-half, -width, 0.0],
        [half, width, height],
        Material::opaque(rng.range(0.15, 0.6)),
    )])
}

/// Bus shelter: roof, glazed back (+y side) and ends, bench.
pub(crate) fn shelter(rng: &mut Rng) -> Model {
    let half = rng.range(1.6, 2.4);
    let mut parts = vec![
        Part::cuboid([-half, -0.8, 2.35], [half, 0.8, 2.5], Material::STEEL),
        Part::cuboid([-half, 0.74, 0.15], [half, 0.76, 2.3], Material::GLASS),
        Part::cuboid(
            [-half + 0.3, 0.3, 0.45],
            [half - 0.3, 0.65, 0.5],
            Material::STEEL,
        ),
    ];
    for x in [-half + 0.05, half - 0.05] {
        parts.push(Part::cylinder(
            [x, 0.7, 0.0],
            [x, 0.7, 2.4],
            0.05,
            Material::STEEL,
        ));
        parts.push(Part::cuboid(
            [x - 0.02, 0.1, 0.15],
            [x + 0.02, 0.7, 2.2],
            Material::GLASS,
        ));
    }
    Model::fitted(parts)
}

/// A house or block with windows set back into its walls.
pub(crate) fn building(rng: &mut Rng, length: f32, depth: f32, height: f32) -> Model {
    let reflectance = rng.range(0.25, 0.65);
    let (hl, hd) = (length / 2.0, depth / 2.0);
    let facade = |period: f32, recess: f32| Material {
        surface: super::shape::Surface::Facade { period, recess },
        reflectance,
    };
    let plain = Material::opaque(reflectance);
    let front = facade(rng.range(2.2, 4.0), rng.range(0.1, 0.35));
    let mut parts = vec![Part::cuboid([-hl, -hd, -1.0], [hl, hd, height], front)];
    if rng.chance(0.5) {
        // Plinth.
        parts.push(Part::cuboid(
            [-hl - 0.08, -hd - 0.08, -1.0],
            [hl + 0.08, hd + 0.08, rng.range(0.3, 0.9)],
            plain,
        ));
    }
    if height < 9.0 && rng.chance(0.7) {
        // Pitched roof.
        let ridge = height + depth * rng.range(0.25, 0.45);
        parts.push(
            Hull::new(Material::opaque(0.2))
                .cut(V3::new(0.0, ridge - height, hd), V3::new(0.0, hd, height))
                .cut(V3::new(0.0, height - ridge, hd), V3::new(0.0, -hd, height))
                .cut(V3::new(0.0, 0.0, -1.0), V3::new(0.0, 0.0, height))
                .cut(V3::x(), V3::new(hl, 0.0, 0.0))
                .cut(-V3::x(), V3::new(-hl, 0.0, 0.0))
                .part(),
        );
    }
    // Steps, bays and porches on both long sides.
    for side in [-1.0f32, 1.0] {
        for _ in 0..rng.count(0, 1 + (length / 10.0) as usize) {
            let half = rng.range(0.6, 2.0).min(hl * 0.4);
            let x = rng.range(-hl + half, hl - half);
            let out = rng.range(0.25, 0.9);
            let top = if rng.chance(0.5) {
                rng.range(0.3, 0.6)
            } else {
                rng.range(2.2, 3.2).min(height)
            };
            let (a, b) = (side * hd, side * (hd + out));
            parts.push(Part::cuboid(
                [x - half, a.min(b), -0.5],
                [x + half, a.max(b), top],
                plain,
            ));
        }
        // Balconies and awnings.
        if height > 5.5 && rng.chance(0.4) {
            for _ in 0..rng.count(1, 2 + (length / 6.0) as usize) {
                let half = rng.range(0.7, 1.8).min(hl * 0.4);
                let x = rng.range(-hl + half, hl - half);
                let floor =
                    3.0 * rng.count(1, (height / 3.2) as usize) as f32 - rng.range(0.0, 0.6);
                let (a, b) = (side * hd, side * (hd + rng.range(0.6, 1.5)));
                parts.push(Part::cuboid(
                    [x - half, a.min(b), floor - 0.2],
                    [x + half, a.max(b), floor + rng.range(0.0, 0.9)],
                    Material::mesh(rng.range(0.4, 1.0), 0.35),
                ));
            }
        }
    }
    Model::fitted(parts)
}

/// Gantry over a motorway: two masts and a beam with signs across `half_span` to each side.
pub(crate) fn gantry(half_span: f32) -> Model {
    let steel = Material::STEEL;
    let mut parts = vec![Part::cuboid(
        [-0.3, -half_span, 5.8],
        [0.3, half_span, 6.5],
        Material::mesh(0.6, 0.35),
    )];
    for side in [-1.0f32, 1.0] {
        parts.push(Part::cylinder(
            [0.0, side * half_span, 0.0],
            [0.0, side * half_span, 6.5],
            0.22,
            steel,
        ));
        parts.push(Part::cuboid(
            [-0.45, side * half_span * 0.5 - 2.0, 5.6],
            [-0.35, side * half_span * 0.5 + 2.0, 7.4],
            Material::opaque(1.8),
        ));
    }
    Model::fitted(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::shape::Ray;

    /// Rays from all sides that stop on the model.
    fn stops(model: &Model, rays: usize, seed: u64) -> Vec<V3> {
        let mut rng = Rng::new(&[seed]);
        let size = model.size;
        (0..rays)
            .filter_map(|_| {
                let turn = rng.range(0.0, std::f32::consts::TAU);
                let origin = V3::new(20.0 * turn.cos(), 20.0 * turn.sin(), rng.range(0.5, 3.0));
                let target = V3::new(
                    rng.range(-0.5, 0.5) * size.x,
                    rng.range(-0.5, 0.5) * size.y,
                    rng.range(0.0, 1.0) * size.z,
                );
                let ray = Ray {
                    origin,
                    dir: (target - origin).normalize(),
                };
                let mut best: Option<f32> = None;
                for part in &model.parts {
                    if let Some(hit) = part.hit(&ray, best.unwrap_or(60.0), &mut rng) {
                        best = Some(hit.t);
                    }
                }
                best.map(|t| ray.at(t))
            })
            .collect()
    }

    #[test]
    fn solids_fill_the_labelled_box_and_stay_in_it() {
        for seed in 0..25 {
            let mut rng = Rng::new(&[seed]);
            let person = Person::new(&mut rng);
            for (name, model, mirrors) in [
                ("car", car(&mut rng, seed % 2 == 0), 0.1),
                ("truck", truck(&mut rng), 0.17),
                ("bus", bus(&mut rng), 0.21),
                ("cyclist", cyclist(&mut rng), 0.0),
                ("walker", person.model(0.3, true, 0.0), 0.0),
            ] {
                let points = stops(&model, 4000, seed);
                assert!(points.len() > 200, "{name} {}", points.len());
                let mut reached = Bounds::EMPTY;
                for p in &points {
                    assert!(p.x.abs() <= model.size.x / 2.0 + 0.11, "{name} {p}");
                    assert!(
                        p.y.abs() <= model.size.y / 2.0 + mirrors + 0.01,
                        "{name} {p}"
                    );
                    assert!(p.z >= -0.01 && p.z <= model.size.z + 0.01, "{name} {p}");
                    reached.add(p);
                }
                // Toes, elbows and helmets are small and seldom met by a random ray.
                let least = if mirrors > 0.0 { 0.92 } else { 0.8 };
                let extent = (reached.high - reached.low).component_div(&model.size);
                assert!(extent.min() > least, "{name} {seed} {extent}");
            }
        }
    }

    #[test]
    fn no_solid_of_a_vehicle_is_cut_away_whole() {
        for seed in 0..300 {
            let mut rng = Rng::new(&[seed, 9]);
            let driven = rng.chance(0.5);
            for model in [car(&mut rng, driven), truck(&mut rng), bus(&mut rng)] {
                for bounds in &model.part_bounds {
                    let extent = bounds.high - bounds.low;
                    assert!(extent.min() > 0.0, "{seed} {bounds:?}");
                }
            }
        }
    }

    #[test]
    fn rays_pass_through_a_cars_panes_and_not_through_its_doors() {
        let mut rng = Rng::new(&[11]);
        let (mut through_panes, mut through_doors) = (0, 0);
        for seed in 0..40 {
            let model = car(&mut Rng::new(&[seed]), false);
            for i in 0..50 {
                let x = -0.3 + 0.012 * i as f32;
                for (z, count) in [
                    (model.size.z - 0.25, &mut through_panes),
                    (model.size.z * 0.45, &mut through_doors),
                ] {
                    let ray = Ray {
                        origin: V3::new(x, -10.0, z),
                        dir: V3::y(),
                    };
                    if !model
                        .parts
                        .iter()
                        .any(|part| part.hit(&ray, 50.0, &mut rng).is_some())
                    {
                        *count += 1;
                    }
                }
            }
        }
        assert!(through_panes > 500, "{through_panes} of 2000");
        assert_eq!(through_doors, 0);
    }

    #[test]
    fn people_have_human_sizes() {
        for seed in 0..200 {
            let person = Person::new(&mut Rng::new(&[seed]));
            for walking in [false, true] {
                let size = person.size(walking);
                assert!((1.05..2.1).contains(&size.z), "{size}");
                assert!((0.3..1.4).contains(&size.x), "{size}");
                assert!((0.35..1.0).contains(&size.y), "{size}");
            }
        }
    }
}
