//! Convex solids and what a ray does when it meets one.
//!
//! Every solid answers with the span of the ray inside it. The material of the face then says
//! whether the ray stops, passes (glass, mesh) or is stopped somewhere inside (foliage).

use nalgebra::Vector3;

use super::rng::Rng;

pub(crate) type V3 = Vector3<f32>;

/// A ray from `origin` along the unit vector `dir`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ray {
    pub origin: V3,
    pub dir: V3,
}

impl Ray {
    pub fn at(&self, t: f32) -> V3 {
        self.origin + self.dir * t
    }
}

/// How light meets a surface.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Surface {
    /// Every ray stops.
    Opaque,
    /// Lacquer: stops every ray, but mirrors some away, the more the flatter they meet it. `gloss`
    /// is the share that a nearly parallel ray loses.
    Paint { gloss: f32 },
    /// The flatter rays meet the pane the more of them return. Of the others `clear` pass; tinted
    /// glass swallows the rest.
    Glass { clear: f32 },
    /// Leaves: a ray is stopped after an exponentially distributed path, `density` stops a metre.
    Foliage { density: f32 },
    /// Spokes, wire, railings: this share of the rays stops.
    Mesh { fill: f32 },
    /// A wall with a grid of windows set back into it.
    Facade { period: f32, recess: f32 },
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Material {
    pub surface: Surface,
    /// Diffuse reflectance, 0 to 1; above 1 for retroreflectors.
    pub reflectance: f32,
}

impl Material {
    pub const fn opaque(reflectance: f32) -> Self {
        Self {
            surface: Surface::Opaque,
            reflectance,
        }
    }
    pub const fn paint(reflectance: f32, gloss: f32) -> Self {
        Self {
            surface: Surface::Paint { gloss },
            reflectance,
        }
    }
    pub const fn glass(clear: f32) -> Self {
        Self {
            surface: Surface::Glass { clear },
            reflectance: 0.08,
        }
    }
    pub const GLASS: Self = Self::glass(1.0);
    pub const RUBBER: Self = Self::opaque(0.05);
    pub const STEEL: Self = Self::opaque(0.35);
    pub const PLATE: Self = Self::opaque(1.6);
    pub const fn foliage(density: f32) -> Self {
        Self {
            surface: Surface::Foliage { density },
            reflectance: 0.4,
        }
    }
    pub const fn mesh(fill: f32, reflectance: f32) -> Self {
        Self {
            surface: Surface::Mesh { fill },
            reflectance,
        }
    }
}

/// The half space `normal . x <= offset`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plane {
    pub normal: V3,
    pub offset: f32,
    pub material: Material,
}

#[derive(Debug, Clone)]
pub(crate) enum Shape {
    /// Intersection of half spaces.
    Convex(Box<[Plane]>),
    /// Cylinder with flat ends.
    Cylinder { from: V3, to: V3, radius: f32 },
    /// Cylinder with round ends.
    Capsule { from: V3, to: V3, radius: f32 },
    /// Ellipsoid along the axes.
    Ellipsoid { center: V3, radii: V3 },
}

/// The part of a ray inside a solid.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub enter: f32,
    pub exit: f32,
    pub enter_normal: V3,
    pub exit_normal: V3,
    /// Planes met, for a convex solid of several materials.
    enter_face: usize,
    exit_face: usize,
}

/// Where a ray stopped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hit {
    pub t: f32,
    /// Cosine between the ray and the surface normal, 0 to 1.
    pub cos: f32,
    pub reflectance: f32,
}

/// Axis-aligned bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bounds {
    pub low: V3,
    pub high: V3,
}

impl Bounds {
    pub const EMPTY: Self = Self {
        low: V3::new(f32::INFINITY, f32::INFINITY, f32::INFINITY),
        high: V3::new(f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY),
    };

    pub fn add(&mut self, point: &V3) {
        self.low = self.low.inf(point);
        self.high = self.high.sup(point);
    }

    pub fn join(&self, other: &Self) -> Self {
        Self {
            low: self.low.inf(&other.low),
            high: self.high.sup(&other.high),
        }
    }

    pub fn corners(&self) -> [V3; 8] {
        std::array::from_fn(|i| {
            let pick = |axis: usize| {
                if i >> axis & 1 == 1 {
                    self.high[axis]
                } else {
                    self.low[axis]
                }
            };
            V3::new(pick(0), pick(1), pick(2))
        })
    }

    /// Distance at which the ray enters the bounds (0 if it starts inside), if it does.
    #[inline]
    pub fn entry(&self, origin: &V3, inverse_dir: &V3) -> Option<f32> {
        let mut near = 0f32;
        let mut far = f32::INFINITY;
        for axis in 0..3 {
            let a = (self.low[axis] - origin[axis]) * inverse_dir[axis];
            let b = (self.high[axis] - origin[axis]) * inverse_dir[axis];
            near = near.max(a.min(b));
            far = far.min(a.max(b));
        }
        (near <= far).then_some(near)
    }
}

impl Shape {
    /// The span of the ray inside the solid; parts behind the origin have negative distances.
    #[inline]
    pub fn span(&self, ray: &Ray) -> Option<Span> {
        match self {
            Shape::Convex(planes) => convex_span(planes, ray),
            Shape::Cylinder { from, to, radius } => cylinder_span(*from, *to, *radius, ray),
            Shape::Capsule { from, to, radius } => capsule_span(*from, *to, *radius, ray),
            Shape::Ellipsoid { center, radii } => ellipsoid_span(center, radii, ray),
        }
    }

    pub fn bounds(&self) -> Bounds {
        let mut bounds = Bounds::EMPTY;
        match self {
            Shape::Convex(planes) => {
                for vertex in convex_vertices(planes) {
                    bounds.add(&vertex);
                }
            }
            Shape::Cylinder { from, to, radius } => {
                let axis = (to - from).normalize();
                // A disc of unit normal n reaches r sqrt(1 - n_i^2) along axis i.
                let reach = axis.map(|n| radius * (1.0 - n * n).max(0.0).sqrt());
                for end in [from, to] {
                    bounds.add(&(end - reach));
                    bounds.add(&(end + reach));
                }
            }
            Shape::Capsule { from, to, radius } => {
                let reach = V3::repeat(*radius);
                for end in [from, to] {
                    bounds.add(&(end - reach));
                    bounds.add(&(end + reach));
                }
            }
            Shape::Ellipsoid { center, radii } => {
                bounds.add(&(center - radii));
                bounds.add(&(center + radii));
            }
        }
        bounds
    }
}

#[inline]
fn convex_span(planes: &[Plane], ray: &Ray) -> Option<Span> {
    let (mut enter, mut exit) = (f32::NEG_INFINITY, f32::INFINITY);
    let (mut enter_face, mut exit_face) = (0, 0);
    for (i, plane) in planes.iter().enumerate() {
        let slope = plane.normal.dot(&ray.dir);
        let depth = plane.offset - plane.normal.dot(&ray.origin);
        if slope.abs() < 1e-9 {
            if depth < 0.0 {
                return None;
            }
            continue;
        }
        let t = depth / slope;
        if slope < 0.0 {
            if t > enter {
                (enter, enter_face) = (t, i);
            }
        } else if t < exit {
            (exit, exit_face) = (t, i);
        }
        if enter > exit {
            return None;
        }
    }
    (enter.is_finite() && exit.is_finite()).then(|| Span {
        enter,
        exit,
        enter_normal: planes[enter_face].normal,
        exit_normal: planes[exit_face].normal,
        enter_face,
        exit_face,
    })
}

/// Corners of a convex solid: the points where three planes meet inside all others.
fn convex_vertices(planes: &[Plane]) -> Vec<V3> {
    let mut vertices = Vec::new();
    for i in 0..planes.len() {
        for j in i + 1..planes.len() {
            let edge = planes[i].normal.cross(&planes[j].normal);
            for k in j + 1..planes.len() {
                let determinant = edge.dot(&planes[k].normal);
                if determinant.abs() < 1e-6 {
                    continue;
                }
                let point = (planes[j].normal.cross(&planes[k].normal) * planes[i].offset
                    + planes[k].normal.cross(&planes[i].normal) * planes[j].offset
                    + edge * planes[k].offset)
                    / determinant;
                if planes
                    .iter()
                    .all(|p| p.normal.dot(&point) <= p.offset + 1e-3)
                {
                    vertices.push(point);
                }
            }
        }
    }
    vertices
}

fn round_span(enter: f32, exit: f32, enter_normal: V3, exit_normal: V3) -> Span {
    Span {
        enter,
        exit,
        enter_normal,
        exit_normal,
        enter_face: 0,
        exit_face: 0,
    }
}

/// Both roots of `a t^2 + 2 b t + c = 0`, ascending.
fn roots(a: f32, b: f32, c: f32) -> Option<(f32, f32)> {
    let discriminant = b * b - a * c;
    if discriminant < 0.0 {
        return None;
    }
    let root = discriminant.sqrt();
    Some(((-b - root) / a, (-b + root) / a))
}

fn cylinder_span(from: V3, to: V3, radius: f32, ray: &Ray) -> Option<Span> {
    let length = (to - from).norm();
    let axis = (to - from) / length;
    let rel = ray.origin - from;
    let (slope, height) = (ray.dir.dot(&axis), rel.dot(&axis));
    let (dir, offset) = (ray.dir - axis * slope, rel - axis * height);
    let a = dir.norm_squared();
    let (mut enter, mut exit) = if a > 1e-12 {
        // Measured from the point closest to the axis: the round-off of a far origin stays out.
        let nearest = -dir.dot(&offset) / a;
        let miss = (offset + dir * nearest).norm_squared();
        let half = ((radius * radius - miss) / a).max(-1.0);
        if half < 0.0 {
            return None;
        }
        let half = half.sqrt();
        (nearest - half, nearest + half)
    } else if offset.norm_squared() <= radius * radius {
        (f32::NEG_INFINITY, f32::INFINITY)
    } else {
        return None;
    };
    let side = |t: f32| (offset + dir * t) / radius;
    let (mut enter_cap, mut exit_cap) = (None, None);
    if slope.abs() > 1e-9 {
        let (low, high) = (-height / slope, (length - height) / slope);
        let (near, far, near_normal) = if slope > 0.0 {
            (low, high, -axis)
        } else {
            (high, low, axis)
        };
        if near > enter {
            enter = near;
            enter_cap = Some(near_normal);
        }
        if far < exit {
            exit = far;
            exit_cap = Some(-near_normal);
        }
    } else if !(0.0..=length).contains(&height) {
        return None;
    }
    (enter <= exit).then(|| {
        round_span(
            enter,
            exit,
            enter_cap.unwrap_or_else(|| side(enter)),
            exit_cap.unwrap_or_else(|| side(exit)),
        )
    })
}

fn sphere_span(center: &V3, radius: f32, ray: &Ray) -> Option<Span> {
    let rel = ray.origin - center;
    let nearest = -ray.dir.dot(&rel);
    let miss = (rel + ray.dir * nearest).norm_squared();
    let half = radius * radius - miss;
    if half < 0.0 {
        return None;
    }
    let half = half.sqrt();
    let (enter, exit) = (nearest - half, nearest + half);
    let normal = |t: f32| (ray.at(t) - center) / radius;
    Some(round_span(enter, exit, normal(enter), normal(exit)))
}

fn capsule_span(from: V3, to: V3, radius: f32, ray: &Ray) -> Option<Span> {
    let pieces = [
        cylinder_span(from, to, radius, ray),
        sphere_span(&from, radius, ray),
        sphere_span(&to, radius, ray),
    ];
    // A capsule is convex, so the spans of its pieces join into one.
    pieces.into_iter().flatten().reduce(|a, b| {
        let (first, last) = (
            if a.enter <= b.enter { &a } else { &b },
            if a.exit >= b.exit { &a } else { &b },
        );
        round_span(first.enter, last.exit, first.enter_normal, last.exit_normal)
    })
}

fn ellipsoid_span(center: &V3, radii: &V3, ray: &Ray) -> Option<Span> {
    let rel = ray.origin - center;
    let dir = ray.dir.component_div(radii);
    // Shift to the closest approach first, for precision at long range.
    let shift = -dir.dot(&rel.component_div(radii)) / dir.norm_squared();
    let origin = (rel + ray.dir * shift).component_div(radii);
    let (low, high) = roots(
        dir.norm_squared(),
        dir.dot(&origin),
        origin.norm_squared() - 1.0,
    )?;
    let normal = |t: f32| {
        (rel + ray.dir * t)
            .component_div(&radii.component_mul(radii))
            .normalize()
    };
    let (enter, exit) = (low + shift, high + shift);
    Some(round_span(enter, exit, normal(enter), normal(exit)))
}

/// A solid of one material, or of one material per plane.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub shape: Shape,
    pub material: Material,
}

impl Part {
    pub fn new(shape: Shape, material: Material) -> Self {
        Self { shape, material }
    }

    pub fn cylinder(from: [f32; 3], to: [f32; 3], radius: f32, material: Material) -> Self {
        Self::new(
            Shape::Cylinder {
                from: from.into(),
                to: to.into(),
                radius,
            },
            material,
        )
    }

    pub fn capsule(from: [f32; 3], to: [f32; 3], radius: f32, material: Material) -> Self {
        Self::new(
            Shape::Capsule {
                from: from.into(),
                to: to.into(),
                radius,
            },
            material,
        )
    }

    pub fn ellipsoid(center: [f32; 3], radii: [f32; 3], material: Material) -> Self {
        Self::new(
            Shape::Ellipsoid {
                center: center.into(),
                radii: radii.into(),
            },
            material,
        )
    }

    /// An upright box between two opposite corners.
    pub fn cuboid(low: [f32; 3], high: [f32; 3], material: Material) -> Self {
        let mut hull = Hull::new(material);
        for axis in 0..3 {
            let mut normal = V3::zeros();
            normal[axis] = 1.0;
            hull = hull.cut(normal, high.into()).cut(-normal, low.into());
        }
        hull.part()
    }

    fn face(&self, face: usize) -> Material {
        match &self.shape {
            Shape::Convex(planes) => planes[face].material,
            _ => self.material,
        }
    }

    /// Where the ray stops on or in this part, nearer than `limit`.
    #[inline]
    pub fn hit(&self, ray: &Ray, limit: f32, rng: &mut Rng) -> Option<Hit> {
        let span = self.shape.span(ray)?;
        if span.exit <= 0.0 || span.enter >= limit {
            return None;
        }
        let entered = self.face(span.enter_face);
        let cos = |normal: &V3| ray.dir.dot(normal).abs().min(1.0);
        let surface_hit = |t: f32, normal: &V3, material: Material| {
            (t > 0.0 && t < limit).then(|| Hit {
                t,
                cos: cos(normal),
                reflectance: material.reflectance,
            })
        };
        match entered.surface {
            Surface::Opaque => surface_hit(span.enter, &span.enter_normal, entered),
            Surface::Paint { gloss } => {
                let lost = gloss * (0.06 + 0.94 * (1.0 - cos(&span.enter_normal)).powi(2));
                let material = if rng.chance(lost) {
                    Material::opaque(ABSORBED)
                } else {
                    entered
                };
                surface_hit(span.enter, &span.enter_normal, material)
            }
            Surface::Mesh { fill } => {
                if rng.chance(fill) {
                    surface_hit(span.enter, &span.enter_normal, entered)
                } else {
                    None
                }
            }
            Surface::Foliage { density } => {
                let t = span.enter.max(0.0) - (1.0 - rng.unit()).ln() / density;
                (t < span.exit && t < limit).then_some(Hit {
                    t,
                    cos: 0.7,
                    reflectance: entered.reflectance,
                })
            }
            Surface::Glass { clear } => {
                if rng.chance(glass_return(cos(&span.enter_normal))) {
                    return surface_hit(span.enter, &span.enter_normal, entered);
                }
                if clear < 1.0 && !rng.chance(clear) {
                    return surface_hit(span.enter, &span.enter_normal, Material::opaque(ABSORBED));
                }
                let left = self.face(span.exit_face);
                match left.surface {
                    Surface::Opaque | Surface::Paint { .. } => {
                        surface_hit(span.exit, &span.exit_normal, left)
                    }
                    _ => None,
                }
            }
            Surface::Facade { period, recess } => {
                let at = ray.at(span.enter);
                // Faces of a building stand along its own x and y axes.
                let along = if span.enter_normal.x.abs() > span.enter_normal.y.abs() {
                    at.y
                } else {
                    at.x
                };
                let roof = span.enter_normal.z.abs() > 0.5;
                let (u, v) = (
                    (along / period).rem_euclid(1.0),
                    (at.z / 3.2).rem_euclid(1.0),
                );
                let window = (0.22..0.78).contains(&u) && (0.28..0.8).contains(&v);
                if roof || !window {
                    return surface_hit(span.enter, &span.enter_normal, entered);
                }
                if !rng.chance(0.45) {
                    // Lost in the room behind the pane: nothing comes back, nothing is seen beyond.
                    return surface_hit(span.enter, &span.enter_normal, Material::opaque(ABSORBED));
                }
                let set_back = recess / cos(&span.enter_normal).max(0.15);
                surface_hit(
                    span.enter + set_back,
                    &span.enter_normal,
                    Material::opaque(0.15),
                )
            }
        }
    }
}

/// Reflectance of a stop that returns no light.
pub(crate) const ABSORBED: f32 = 0.0;

/// Share of the rays that a car's pane returns, pillars and frames of the panes included.
fn glass_return(cos: f32) -> f32 {
    // Schlick's approximation of Fresnel reflection for n = 1.5, over 15 % of frame and dirt.
    let fresnel = 0.04 + 0.96 * (1.0 - cos).powi(5);
    (0.15 + 0.6 * fresnel).min(1.0)
}

/// Builds a convex solid by cutting half spaces.
pub(crate) struct Hull {
    planes: Vec<Plane>,
    material: Material,
}

impl Hull {
    pub fn new(material: Material) -> Self {
        Self {
            planes: Vec::new(),
            material,
        }
    }

    /// Keeps what lies behind the plane through `point` with this outward normal.
    pub fn cut(self, normal: V3, point: V3) -> Self {
        let material = self.material;
        self.cut_as(normal, point, material)
    }

    pub fn cut_as(mut self, normal: V3, point: V3, material: Material) -> Self {
        let normal = normal.normalize();
        self.planes.push(Plane {
            normal,
            offset: normal.dot(&point),
            material,
        });
        self
    }

    /// A profile in the x-z plane, counter-clockwise with x right and z up: one plane per edge,
    /// of the material given with the edge's first point.
    pub fn profile(mut self, points: &[(f32, f32, Material)]) -> Self {
        for (i, &(x, z, material)) in points.iter().enumerate() {
            let (next_x, next_z, _) = points[(i + 1) % points.len()];
            self = self.cut_as(
                V3::new(next_z - z, 0.0, x - next_x),
                V3::new(x, 0.0, z),
                material,
            );
        }
        self
    }

    /// Both sides: from half width `low.1` at height `low.0` to `high.1` at `high.0`.
    pub fn sides(self, low: (f32, f32), high: (f32, f32), material: Material) -> Self {
        let (rise, inward) = (high.0 - low.0, low.1 - high.1);
        self.cut_as(
            V3::new(0.0, rise, inward),
            V3::new(0.0, low.1, low.0),
            material,
        )
        .cut_as(
            V3::new(0.0, -rise, inward),
            V3::new(0.0, -low.1, low.0),
            material,
        )
    }

    /// Takes the vertical edges off: a triangle of `dx` by `dy` at each end of the half extents.
    pub fn chamfer(mut self, x: f32, half_width: f32, dx: f32, dy: f32) -> Self {
        for side in [-1.0, 1.0] {
            self = self.cut(
                V3::new(dy * x.signum(), dx * side, 0.0),
                V3::new(x, side * (half_width - dy), 0.0),
            );
        }
        self
    }

    pub fn part(self) -> Part {
        Part::new(Shape::Convex(self.planes.into_boxed_slice()), self.material)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    const GREY: Material = Material::opaque(0.5);

    fn ray(origin: [f32; 3], toward: [f32; 3]) -> Ray {
        let origin = V3::from(origin);
        Ray {
            origin,
            dir: (V3::from(toward) - origin).normalize(),
        }
    }

    #[test]
    fn a_box_is_entered_and_left_where_its_faces_are() {
        let part = Part::cuboid([4.0, -1.0, 0.0], [6.0, 1.0, 2.0], GREY);
        let span = part
            .shape
            .span(&ray([0.0, 0.0, 1.0], [1.0, 0.0, 1.0]))
            .unwrap();
        assert_relative_eq!(span.enter, 4.0);
        assert_relative_eq!(span.exit, 6.0);
        assert_eq!(span.enter_normal, V3::new(-1.0, 0.0, 0.0));
        assert!(
            part.shape
                .span(&ray([0.0, 0.0, 1.0], [4.0, 1.1, 1.0]))
                .is_none_or(|s| s.enter > s.exit || s.enter > 4.1)
        );
        assert!(
            part.shape
                .span(&ray([0.0, 0.0, 3.0], [1.0, 0.0, 3.0]))
                .is_none()
        );
        // 45 degrees onto the top face, seen from above: down 3 m in 3 m.
        let slanted = part
            .shape
            .span(&ray([2.0, 0.0, 5.0], [5.0, 0.0, 2.0]))
            .unwrap();
        assert_relative_eq!(slanted.enter, 18f32.sqrt(), epsilon = 1e-5);
    }

    #[test]
    fn a_cylinder_is_met_on_its_side_and_on_its_cap() {
        let pole = Part::cylinder([10.0, 0.0, 0.0], [10.0, 0.0, 5.0], 0.5, GREY);
        let side = pole
            .shape
            .span(&ray([0.0, 0.3, 2.0], [1.0, 0.3, 2.0]))
            .unwrap();
        assert_relative_eq!(side.enter, 10.0 - 0.4, epsilon = 1e-4);
        assert_relative_eq!(side.exit, 10.0 + 0.4, epsilon = 1e-4);
        let cap = pole
            .shape
            .span(&ray([10.0, 0.2, 9.0], [10.0, 0.2, 0.0]))
            .unwrap();
        assert_relative_eq!(cap.enter, 4.0, epsilon = 1e-5);
        assert_eq!(cap.enter_normal, V3::new(0.0, 0.0, 1.0));
        assert!(
            pole.shape
                .span(&ray([0.0, 0.6, 2.0], [1.0, 0.6, 2.0]))
                .is_none()
        );
        assert!(
            pole.shape
                .span(&ray([0.0, 0.0, 6.0], [1.0, 0.0, 6.0]))
                .is_none()
        );
    }

    #[test]
    fn a_capsule_has_round_ends() {
        let limb = Part::capsule([5.0, 0.0, 1.0], [5.0, 0.0, 2.0], 0.25, GREY);
        let top = limb
            .shape
            .span(&ray([5.0, 0.0, 9.0], [5.0, 0.0, 0.0]))
            .unwrap();
        assert_relative_eq!(top.enter, 9.0 - 2.25, epsilon = 1e-4);
        assert_relative_eq!(top.exit, 9.0 - 0.75, epsilon = 1e-4);
        let above = limb
            .shape
            .span(&ray([0.0, 0.0, 2.15], [1.0, 0.0, 2.15]))
            .unwrap();
        assert_relative_eq!(above.enter, 5.0 - 0.2, epsilon = 1e-4);
    }

    #[test]
    fn an_ellipsoid_far_away_is_met_at_its_surface() {
        let crown = Part::ellipsoid([100.0, 0.0, 5.0], [2.0, 3.0, 1.0], GREY);
        let span = crown
            .shape
            .span(&ray([0.0, 0.0, 5.0], [1.0, 0.0, 5.0]))
            .unwrap();
        assert_relative_eq!(span.enter, 98.0, epsilon = 1e-3);
        assert_relative_eq!(span.exit, 102.0, epsilon = 1e-3);
        assert_relative_eq!(span.enter_normal.x, -1.0, epsilon = 1e-4);
        assert!(
            crown
                .shape
                .span(&ray([0.0, 0.0, 6.01], [1.0, 0.0, 6.01]))
                .is_none()
        );
    }

    #[test]
    fn bounds_hold_every_surface_point() {
        let parts = [
            Part::cuboid([-1.0, 2.0, 0.0], [3.0, 4.0, 1.5], GREY),
            Part::cylinder([0.0, 0.0, 0.0], [1.0, 2.0, 0.5], 0.4, GREY),
            Part::capsule([0.0, 0.0, 0.0], [1.0, 2.0, 0.5], 0.4, GREY),
            Part::ellipsoid([1.0, 1.0, 1.0], [0.5, 1.5, 0.3], GREY),
            Hull::new(GREY)
                .profile(&[
                    (-2.0, 0.0, GREY),
                    (2.0, 0.0, GREY),
                    (1.0, 1.0, GREY),
                    (-1.0, 1.0, GREY),
                ])
                .sides((0.0, 1.0), (1.0, 0.8), GREY)
                .chamfer(2.0, 1.0, 0.3, 0.2)
                .part(),
        ];
        let mut rng = Rng::new(&[3]);
        for part in &parts {
            let bounds = part.shape.bounds();
            let mut hits = 0;
            for _ in 0..4000 {
                let from: [f32; 3] = std::array::from_fn(|_| rng.range(-8.0, 8.0));
                let to: [f32; 3] = std::array::from_fn(|_| rng.range(-1.0, 3.0));
                let ray = ray(from, to);
                if let Some(span) = part.shape.span(&ray) {
                    hits += 1;
                    for t in [span.enter, span.exit] {
                        let p = ray.at(t);
                        for axis in 0..3 {
                            assert!(p[axis] >= bounds.low[axis] - 2e-3, "{part:?} {p}");
                            assert!(p[axis] <= bounds.high[axis] + 2e-3, "{part:?} {p}");
                        }
                    }
                    let inverse = ray.dir.map(|v| 1.0 / v);
                    assert!(span.exit < 0.0 || bounds.entry(&ray.origin, &inverse).is_some());
                }
            }
            assert!(hits > 100, "{hits}");
        }
    }

    #[test]
    fn most_rays_pass_a_pane_seen_head_on_and_few_pass_at_a_grazing_angle() {
        let pane = Part::cuboid([5.0, -50.0, -50.0], [5.01, 50.0, 50.0], Material::GLASS);
        let mut rng = Rng::new(&[5]);
        let mut stopped = |toward: [f32; 3]| {
            let ray = ray([0.0; 3], toward);
            (0..2000)
                .filter(|_| pane.hit(&ray, 200.0, &mut rng).is_some())
                .count() as f32
                / 2000.0
        };
        assert!(stopped([1.0, 0.0, 0.0]) < 0.25);
        assert!(stopped([0.11, 1.0, 0.0]) > 0.4);
    }

    #[test]
    fn foliage_stops_rays_in_proportion_to_the_path_through_it() {
        let mut rng = Rng::new(&[6]);
        let mut passed = |depth: f32| {
            let hedge = Part::cuboid(
                [3.0, -1.0, -1.0],
                [3.0 + depth, 1.0, 1.0],
                Material::foliage(1.0),
            );
            let ray = ray([0.0; 3], [1.0, 0.0, 0.0]);
            (0..4000)
                .filter(|_| hedge.hit(&ray, 99.0, &mut rng).is_none())
                .count() as f32
                / 4000.0
        };
        // Beer and Lambert: exp(-density depth).
        assert!((passed(1.0) - (-1f32).exp()).abs() < 0.03);
        assert!((passed(3.0) - (-3f32).exp()).abs() < 0.03);
    }
}
