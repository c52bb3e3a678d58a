//! Lays scenes out: where roads run, what stands beside them and who moves where.
//!
//! Places along a road are given as arc length `s` and offset to the left of its middle. Nothing
//! is placed where it would meet something else at any time of the scene.

use std::collections::HashMap;
use std::f64::consts::{FRAC_PI_2, PI, TAU};
use std::sync::Arc;

use super::models::{self, Model, ObjectClass, Person};
use super::path::{Curve, Footprint, Motion, Planar, Speed};
use super::rng::Rng;
use super::scene::{Actor, Body, SceneKind};
use super::terrain::{Ground, Terrain};

/// A scene laid out.
pub(crate) struct World {
    pub terrain: Terrain,
    pub actors: Vec<Actor>,
    pub ego: Motion,
}

pub(crate) fn lay_out(seed: u64, kind: SceneKind, duration: f64, reach: f64) -> World {
    let mut rng = Rng::new(&[seed, 0x1a40]);
    match kind {
        SceneKind::Highway => highway(&mut rng, seed, duration, reach),
        SceneKind::Urban | SceneKind::Residential | SceneKind::Rural => {
            street(&mut rng, seed, kind, duration, reach)
        }
        SceneKind::Junction => junction(&mut rng, seed, duration, reach),
        SceneKind::CarPark => car_park(&mut rng, seed, duration, reach),
        SceneKind::Plaza => plaza(&mut rng, seed, duration, reach),
    }
}

/// Half the interval within which movers are compared, seconds: 3 m at motorway speed.
const CHECK_STEP: f64 = 0.1;

/// Something that moves, sampled over the scene.
struct Mover {
    path: Vec<Footprint>,
    low: (f64, f64),
    high: (f64, f64),
}

impl Mover {
    fn new(path: Vec<Footprint>) -> Self {
        let (mut low, mut high) = ((f64::MAX, f64::MAX), (f64::MIN, f64::MIN));
        for at in &path {
            let r = at.radius();
            low = (low.0.min(at.pose.x - r), low.1.min(at.pose.y - r));
            high = (high.0.max(at.pose.x + r), high.1.max(at.pose.y + r));
        }
        Self { path, low, high }
    }

    fn meets(&self, other: &Self) -> bool {
        if self.low.0 > other.high.0
            || other.low.0 > self.high.0
            || self.low.1 > other.high.1
            || other.low.1 > self.high.1
        {
            return false;
        }
        // A path of one sample stands still.
        let steps = self.path.len().max(other.path.len());
        (0..steps).any(|i| {
            let a = &self.path[i.min(self.path.len() - 1)];
            let b = &other.path[i.min(other.path.len() - 1)];
            a.overlaps(b)
        })
    }
}

/// Cell of the hash of standing things, metres.
const HASH_CELL: f64 = 8.0;

struct Builder {
    rng: Rng,
    duration: f64,
    terrain: Terrain,
    actors: Vec<Actor>,
    ego: Motion,
    movers: Vec<Mover>,
    standing: Vec<Footprint>,
    hash: HashMap<(i64, i64), Vec<u32>>,
}

impl Builder {
    fn new(rng: &mut Rng, seed: u64, ego: Motion, duration: f64, reach: f64) -> Self {
        let (mut low, mut high) = ((f64::MAX, f64::MAX), (f64::MIN, f64::MIN));
        let margin = reach.min(120.0) + 8.0;
        let samples = (duration / CHECK_STEP).ceil() as usize;
        for i in 0..=samples {
            let at = ego.at(i as f64 * CHECK_STEP);
            low = (low.0.min(at.x - margin), low.1.min(at.y - margin));
            high = (high.0.max(at.x + margin), high.1.max(at.y + margin));
        }
        let mut builder = Self {
            rng: Rng::new(&[seed, rng.next_u64()]),
            duration,
            terrain: Terrain::new(seed, low, high),
            actors: Vec::new(),
            ego: ego.clone(),
            movers: Vec::new(),
            standing: Vec::new(),
            hash: HashMap::new(),
        };
        // The vehicle's own room, wider than a car so that nothing brushes the sensor.
        let room = builder.sample(&ego, 5.2, 2.3, 0.3);
        builder.movers.push(Mover::new(room));
        builder
    }

    fn sample(&self, motion: &Motion, length: f64, width: f64, margin: f64) -> Vec<Footprint> {
        let steps = if motion.is_fixed() {
            0
        } else {
            (self.duration / CHECK_STEP).ceil() as usize
        };
        (0..=steps)
            .map(|i| {
                let at = motion.at(i as f64 * CHECK_STEP);
                Footprint::new(at, length, width, margin)
            })
            .collect()
    }

    fn cells(at: &Footprint) -> impl Iterator<Item = (i64, i64)> {
        let r = at.radius();
        let cell = |v: f64| (v / HASH_CELL).floor() as i64;
        let (x0, x1) = (cell(at.pose.x - r), cell(at.pose.x + r));
        let (y0, y1) = (cell(at.pose.y - r), cell(at.pose.y + r));
        (x0..=x1).flat_map(move |x| (y0..=y1).map(move |y| (x, y)))
    }

    fn meets_standing(&self, at: &Footprint) -> bool {
        Self::cells(at).any(|cell| {
            self.hash
                .get(&cell)
                .is_some_and(|list| list.iter().any(|&i| self.standing[i as usize].overlaps(at)))
        })
    }

    /// Places an actor if its room on the ground stays its own; says whether it did.
    fn place(
        &mut self,
        body: Body,
        class: Option<ObjectClass>,
        motion: Motion,
        room: (f64, f64),
        margin: f64,
    ) -> bool {
        let candidate = Mover::new(self.sample(&motion, room.0, room.1, margin));
        if candidate.path.iter().any(|at| self.meets_standing(at))
            || self.movers.iter().any(|mover| mover.meets(&candidate))
        {
            return false;
        }
        let path = self.sample(&motion, room.0, room.1, 0.0);
        if let [at] = path[..] {
            let index = self.standing.len() as u32;
            self.standing.push(at);
            for cell in Self::cells(&at) {
                self.hash.entry(cell).or_default().push(index);
            }
        } else {
            self.movers.push(Mover::new(path));
        }
        let tilts = !matches!(class, None | Some(ObjectClass::Pedestrian));
        self.actors.push(Actor {
            body,
            motion,
            class,
            tilts,
        });
        true
    }

    fn place_model(
        &mut self,
        model: Model,
        class: Option<ObjectClass>,
        motion: Motion,
        margin: f64,
    ) -> bool {
        let room = (f64::from(model.size.x), f64::from(model.size.y));
        self.place(Body::Rigid(Box::new(model)), class, motion, room, margin)
    }

    /// Street furniture and the like: standing, not labelled.
    fn thing(&mut self, model: Model, at: Planar, margin: f64) -> bool {
        self.place_model(model, None, Motion::Fixed(at), margin)
    }

    fn tree(&mut self, at: Planar, reach: f32) -> bool {
        let turn = self.rng.range64(0.0, TAU);
        let model = models::tree(&mut self.rng, reach);
        // Crowns may reach over things; trunks may not.
        self.place(
            Body::Rigid(Box::new(model)),
            None,
            Motion::Fixed(at.ahead(0.0, 0.0, turn)),
            (0.7, 0.7),
            0.1,
        )
    }

    /// A vehicle of the mix given as weights of car, truck, bus.
    fn vehicle(&mut self, mix: [f32; 3], driven: bool) -> (Model, ObjectClass) {
        match self.rng.weighted(&mix) {
            0 => (models::car(&mut self.rng, driven), ObjectClass::Car),
            1 => (models::truck(&mut self.rng), ObjectClass::Truck),
            _ => (models::bus(&mut self.rng), ObjectClass::Bus),
        }
    }

    fn person(&mut self, motion: Motion, speed: f64, margin: f64) -> bool {
        let person = Person::new(&mut self.rng);
        let size = person.size(speed > 0.0);
        let room = (f64::from(size.x), f64::from(size.y));
        let gait = self.rng.unit();
        self.place(
            Body::Walker {
                person: Box::new(person),
                size,
                speed: speed as f32,
                gait,
            },
            Some(ObjectClass::Pedestrian),
            motion,
            room,
            margin,
        )
    }

    /// One person or a small group at a place: standing, or walking along `yaw` and back.
    fn people_at(&mut self, at: Planar, walking: f32) -> usize {
        let group = [1, 2, 3, 4][self.rng.weighted(&[0.66, 0.2, 0.09, 0.05])];
        let mut placed = 0;
        if self.rng.chance(walking) {
            let speed = self.rng.range64(0.6, 1.8);
            let length = self.rng.range64(8.0, 22.0);
            let turn = if self.rng.chance(0.5) { PI } else { 0.0 };
            let at = at.ahead(0.0, 0.0, turn + 0.03 * f64::from(self.rng.normal()));
            let start = self.rng.range64(0.0, 2.0 * length);
            for i in 0..group {
                let side = (i as f64 - (group - 1) as f64 / 2.0) * self.rng.range64(0.7, 0.9);
                let lag = self.rng.range64(-0.3, 0.3);
                let from = at.ahead(lag - length / 2.0, side, 0.0);
                let to = at.ahead(lag + length / 2.0, side, 0.0);
                let motion = Motion::Patrol {
                    from: (from.x, from.y),
                    to: (to.x, to.y),
                    start,
                    speed,
                };
                placed += usize::from(self.person(motion, speed, 0.05));
            }
        } else {
            let circle = if group == 1 {
                0.0
            } else {
                self.rng.range64(0.45, 0.8)
            };
            let first = self.rng.range64(0.0, TAU);
            for i in 0..group {
                let turn = first + TAU * i as f64 / group as f64;
                let spot = Planar { yaw: turn, ..at }.ahead(circle, 0.0, PI);
                let motion = Motion::Fixed(spot.ahead(0.0, 0.0, self.rng.range64(-0.4, 0.4)));
                placed += usize::from(self.person(motion, 0.0, 0.03));
            }
        }
        placed
    }

    fn cyclist(&mut self, motion: Motion) -> bool {
        let model = models::cyclist(&mut self.rng);
        self.place_model(model, Some(ObjectClass::Bicycle), motion, 0.25)
    }

    fn finish(mut self) -> World {
        self.terrain.finish();
        World {
            terrain: self.terrain,
            actors: self.actors,
            ego: self.ego,
        }
    }
}

/// A lane of traffic on a road.
#[derive(Debug, Clone, Copy)]
struct Lane {
    left: f64,
    direction: f64,
    speed: Speed,
    /// Mean distance from one vehicle's middle to the next's, metres.
    gap: f64,
    mix: [f32; 3],
}

/// A road's cross section and what lines it.
struct Road {
    curve: Arc<Curve>,
    /// Arc lengths that are furnished.
    along: (f64, f64),
    /// Arc lengths left free, as at junctions.
    gaps: Vec<(f64, f64)>,
    /// 1 where traffic keeps right, -1 where it keeps left.
    hand: f64,
    lane_width: f64,
    lanes_each_way: usize,
    bike: f64,
    /// Width of the strip of parked cars on the left and on the right, 0 for none.
    parking: [f64; 2],
    parked: f32,
    pavement: f64,
    median: f64,
}

impl Road {
    /// From the middle to the edge of the lanes.
    fn half_lanes(&self) -> f64 {
        self.median / 2.0 + self.lane_width * self.lanes_each_way as f64
    }

    /// Distance of the kerb from the middle on a side (1 left, -1 right).
    fn kerb(&self, side: f64) -> f64 {
        self.half_lanes() + self.bike + self.parking[usize::from(side < 0.0)]
    }

    /// Middle of a lane, counted from the middle of the road, for traffic in this direction.
    fn lane(&self, direction: f64, number: usize) -> f64 {
        -direction * self.hand * (self.median / 2.0 + self.lane_width * (number as f64 + 0.5))
    }

    fn is_free(&self, s: f64, half: f64) -> bool {
        self.gaps.iter().all(|&(a, b)| s + half < a || s - half > b)
    }

    fn paint(&self, terrain: &mut Terrain) {
        let (left, right) = (self.kerb(1.0), self.kerb(-1.0));
        if self.pavement > 0.0 {
            terrain.paint_strip(
                &self.curve,
                self.along,
                (-right - self.pavement, left + self.pavement),
                Ground::Pavement,
            );
        }
        terrain.paint_strip(&self.curve, self.along, (-right, left), Ground::Road);
        let mut line = |left: f64, dash: Option<(f64, f64)>| {
            let (on, period) = dash.unwrap_or((1.0, 1.0));
            let mut s = self.along.0;
            while s < self.along.1 {
                if self.is_free(s + on / 2.0, on / 2.0) {
                    terrain.paint_strip(
                        &self.curve,
                        (s, s + on),
                        (left - 0.06, left + 0.06),
                        Ground::Marking,
                    );
                }
                s += period;
            }
        };
        let half = self.half_lanes();
        if self.lane_width < 2.7 {
            return;
        }
        line(half - 0.1, None);
        line(-half + 0.1, None);
        for side in [-1.0, 1.0] {
            for i in 0..self.lanes_each_way {
                let left = side * (self.median / 2.0 + self.lane_width * i as f64);
                if i > 0 || (self.median == 0.0 && side > 0.0) {
                    line(left, Some((3.0, 9.0)));
                } else if self.median > 0.0 {
                    line(left, None);
                }
            }
        }
    }
}

/// Straight or gently winding heading of a road; never turns back on itself.
fn winding(rng: &mut Rng, strength: f64) -> impl Fn(f64) -> f64 + use<> {
    let swing = strength * rng.range64(0.2, 1.0);
    let length = rng.range64(110.0, 260.0);
    let phase = rng.range64(0.0, TAU);
    move |s: f64| swing * (TAU * s / length + phase).sin()
}

fn somewhere(rng: &mut Rng) -> Planar {
    Planar {
        x: rng.range64(-500.0, 500.0),
        y: rng.range64(-500.0, 500.0),
        yaw: rng.range64(-PI, PI),
    }
}

fn ego_speed(rng: &mut Rng, low: f64, high: f64, standing: f32) -> Speed {
    if rng.chance(standing) {
        return Speed::ZERO;
    }
    let mean = rng.range64(low, high);
    Speed {
        mean,
        swing: mean * rng.range64(0.0, 0.3),
        rate: rng.range64(0.2, 0.8),
        phase: rng.range64(0.0, TAU),
    }
}

/// Farthest that objects are laid out beyond the drive: a little more than they are labelled.
const AROUND: f64 = 85.0;

impl Builder {
    /// Fills a lane with traffic that is in view at some time; `first` is free of vehicles.
    fn traffic(&mut self, road: &Road, lane: Lane, view: (f64, f64), keep: Option<(f64, f64)>) {
        let run = lane.speed.distance(self.duration);
        let (low, high) = if lane.direction > 0.0 {
            (view.0 - run, view.1)
        } else {
            (view.0, view.1 + run)
        };
        let mut s = low + self.rng.range64(0.0, lane.gap);
        let mut last_half = 0.0;
        while s < high {
            let (model, class) = self.vehicle(lane.mix, true);
            let half = f64::from(model.size.x) / 2.0;
            s += half + last_half;
            last_half = half;
            let clear = keep.is_none_or(|(a, b)| s + half < a || s - half > b);
            if clear && s < high {
                let motion = Motion::Lane {
                    curve: Arc::clone(&road.curve),
                    start: s,
                    left: lane.left + 0.15 * f64::from(self.rng.normal().clamp(-2.0, 2.0)),
                    direction: lane.direction,
                    speed: lane.speed,
                };
                self.place_model(model, Some(class), motion, 0.3);
            }
            // Exponential over a minimum distance.
            let least = if lane.speed.mean < 0.5 {
                1.2
            } else {
                3.0 + 0.4 * lane.speed.mean
            };
            let mean = (lane.gap - 4.5 - least).max(0.5);
            s += least + mean * f64::from(-(1.0 - self.rng.unit()).ln()).min(4.0);
        }
    }

    /// Cyclists along the edge of the lanes, or on their own strip.
    fn cyclists(&mut self, road: &Road, view: (f64, f64), gap: f64) {
        for direction in [-1.0, 1.0] {
            let edge = road.half_lanes()
                + if road.bike > 0.0 {
                    road.bike / 2.0
                } else {
                    -0.5
                };
            let left = -direction * road.hand * edge;
            let mean = if self.rng.chance(0.1) {
                0.0
            } else {
                self.rng.range64(2.5, 6.5)
            };
            let speed = Speed::steady(mean);
            let run = speed.distance(self.duration);
            let (low, high) = if direction > 0.0 {
                (view.0 - run, view.1)
            } else {
                (view.0, view.1 + run)
            };
            let mut s = low + gap * f64::from(-(1.0 - self.rng.unit()).ln());
            while s < high {
                let motion = Motion::Lane {
                    curve: Arc::clone(&road.curve),
                    start: s,
                    left: left + self.rng.range64(-0.25, 0.25),
                    direction,
                    speed,
                };
                self.cyclist(motion);
                s += 3.0 + gap * f64::from(-(1.0 - self.rng.unit()).ln());
            }
        }
    }

    /// Parked vehicles along both kerbs.
    fn parked(&mut self, road: &Road) {
        for (side, width) in [(1.0, road.parking[0]), (-1.0, road.parking[1])] {
            if width <= 0.0 {
                continue;
            }
            let perpendicular = width > 3.5;
            // Bays across the kerb, square or slanted.
            let slant = if self.rng.chance(0.35) {
                self.rng.sign() * self.rng.range64(0.35, 0.8)
            } else {
                0.0
            };
            let pitch = if perpendicular {
                self.rng.range64(2.6, 2.9) / slant.cos()
            } else {
                self.rng.range64(5.9, 6.9)
            };
            let facing = if side * road.hand < 0.0 { 0.0 } else { PI };
            let mut s = road.along.0 + self.rng.range64(0.0, pitch);
            while s < road.along.1 {
                let mut step = pitch;
                if road.is_free(s, 4.0) && self.rng.chance(road.parked) {
                    let mix = if perpendicular {
                        [1.0, 0.0, 0.0]
                    } else {
                        [0.93, 0.055, 0.015]
                    };
                    let (model, class) = self.vehicle(mix, false);
                    let (l, w) = (f64::from(model.size.x), f64::from(model.size.y));
                    let half = road.half_lanes() + road.bike;
                    let (along, left, turn) = if perpendicular {
                        let nose_in = if self.rng.chance(0.6) { 0.0 } else { PI };
                        (s, half + width / 2.0, FRAC_PI_2 * side + slant + nose_in)
                    } else {
                        let against = if self.rng.chance(0.1) { PI } else { 0.0 };
                        let clearance = self.rng.range64(0.1, 0.35);
                        step = step.max(l + self.rng.range64(0.6, 1.6));
                        (
                            s + l / 2.0,
                            half + width - clearance - w / 2.0,
                            facing + against,
                        )
                    };
                    let spot = road.curve.at(along, side * left).ahead(
                        0.0,
                        0.0,
                        turn + 0.025 * f64::from(self.rng.normal()),
                    );
                    self.place_model(model, Some(class), Motion::Fixed(spot), 0.15);
                }
                s += step;
            }
        }
    }

    /// What stands on the pavement's outer edge and along the walls.
    fn furniture(&mut self, road: &Road, density: f64, trees: f64) {
        for side in [-1.0, 1.0] {
            let kerb = road.kerb(side);
            let over = road.pavement.max(1.0);
            // Faces the road: +y of the model towards the middle.
            let inward = if side > 0.0 { PI } else { 0.0 };
            let row = |builder: &mut Self,
                       gap: f64,
                       from: f64,
                       place: &mut dyn FnMut(&mut Self, Planar)| {
                let mut s = road.along.0 + builder.rng.range64(0.0, gap);
                while s < road.along.1 {
                    if road.is_free(s, 1.0) {
                        let at = road.curve.at(s, side * (kerb + from));
                        place(builder, at.ahead(0.0, 0.0, inward));
                    }
                    s += gap * builder.rng.range64(0.6, 1.4);
                }
            };
            row(self, 32.0 / density, 0.5, &mut |b, at| {
                let model = models::lamp(&mut b.rng);
                b.place(
                    Body::Rigid(Box::new(model)),
                    None,
                    Motion::Fixed(at),
                    (0.4, 0.4),
                    0.1,
                );
            });
            if trees > 0.0 && self.rng.chance(0.8) {
                let gap = self.rng.range64(6.0, 14.0) / trees;
                let reach = self.rng.range(1.5, 3.2);
                row(self, gap, 0.7, &mut |b, at| {
                    if b.rng.chance(0.85) {
                        b.tree(at, reach);
                    }
                    // What grows in the bed around the trunk.
                    if b.rng.chance(0.2) {
                        let model = models::bush(&mut b.rng);
                        b.thing(model, at.ahead(1.2, 0.0, 0.0), 0.0);
                    }
                });
            }
            row(self, 40.0 / density, 0.45, &mut |b, at| {
                let toward = if b.rng.chance(0.5) { 0.0 } else { PI };
                let model = models::sign(&mut b.rng);
                b.thing(model, at.ahead(0.0, 0.0, toward), 0.1);
            });
            if self.rng.chance(0.25) {
                let from = road.along.0 + self.rng.range64(0.0, 80.0);
                row(self, 3.0, 0.35, &mut |b, at| {
                    let model = models::bollard(&mut b.rng);
                    let near = road.curve.at(from, 0.0);
                    if (at.x - near.x).hypot(at.y - near.y) < 25.0 {
                        b.thing(model, at, 0.1);
                    }
                });
            }
            row(self, 26.0 / density, 0.6, &mut |b, at| {
                let model = match b.rng.weighted(&[0.3, 0.3, 0.25, 0.15]) {
                    0 => models::bin(&mut b.rng),
                    1 => models::street_box(&mut b.rng),
                    2 => models::bollard(&mut b.rng),
                    _ => models::bench(&mut b.rng),
                };
                let back = f64::from(model.size.y) / 2.0;
                b.thing(model, at.ahead(0.0, -back, 0.0), 0.1);
            });
            if over > 1.5 {
                // Along the walls.
                row(self, 22.0 / density, over - 0.5, &mut |b, at| {
                    let model = match b.rng.weighted(&[0.45, 0.25, 0.3]) {
                        0 => models::bin(&mut b.rng),
                        1 => models::bench(&mut b.rng),
                        _ => models::street_box(&mut b.rng),
                    };
                    b.thing(model, at, 0.1);
                });
            }
        }
    }

    /// A row of cones that closes a piece of lane edge or pavement.
    fn road_works(&mut self, road: &Road) {
        let side = self.rng.sign();
        let s = self.rng.range64(road.along.0 + 30.0, road.along.1 - 30.0);
        let left = side * (road.kerb(side) + self.rng.range64(-1.5, 1.0));
        for i in 0..self.rng.count(4, 14) {
            let at = road.curve.at(s + 2.2 * i as f64, left);
            let model = models::cone(&mut self.rng);
            self.thing(model, at, 0.2);
        }
    }

    /// People on both pavements, `per_100_m` groups on each.
    fn walkers(&mut self, road: &Road, per_100_m: f64) {
        let length = road.along.1 - road.along.0;
        for side in [-1.0, 1.0] {
            let count = per_100_m * length / 100.0 * self.rng.range64(0.5, 1.5);
            for _ in 0..count.round() as usize {
                let s = self.rng.range64(road.along.0, road.along.1);
                let across = self.rng.range64(0.5, (road.pavement - 0.35).max(0.6));
                let at = road.curve.at(s, side * (road.kerb(side) + across));
                self.people_at(at, 0.62);
            }
        }
    }

    /// Houses in a row with gaps, hedges, fences and trees, `from` the kerb on.
    fn frontage(&mut self, road: &Road, side: f64, style: Frontage) {
        let line = road.kerb(side) + road.pavement;
        let mut s = road.along.0;
        while s < road.along.1 {
            let (length, depth, height, set_back, skip) = match style {
                Frontage::Town => (
                    self.rng.range64(9.0, 26.0),
                    self.rng.range64(9.0, 16.0),
                    self.rng.range64(5.5, 24.0),
                    if self.rng.chance(0.3) {
                        self.rng.range64(2.0, 6.0)
                    } else {
                        self.rng.range64(0.0, 0.8)
                    },
                    0.15,
                ),
                Frontage::Houses => (
                    self.rng.range64(7.0, 13.0),
                    self.rng.range64(7.0, 11.0),
                    self.rng.range64(3.0, 7.0),
                    self.rng.range64(3.0, 7.5),
                    0.15,
                ),
                Frontage::Open => (self.rng.range64(10.0, 25.0), 10.0, 4.0, 8.0, 1.0),
            };
            let middle = s + length / 2.0;
            if !road.is_free(middle, length / 2.0) {
                s += 3.0;
                continue;
            }
            let inward = if side > 0.0 { PI } else { 0.0 };
            let at = |along: f64, out: f64| road.curve.at(along, side * (line + out));
            if self.rng.chance(skip) {
                // A gap: lawn, trees, a site, or a yard with cars.
                self.yard(|along, out| at(s + along, out), length, inward);
            } else {
                let model =
                    models::building(&mut self.rng, length as f32, depth as f32, height as f32);
                self.thing(
                    model,
                    at(middle, set_back + depth / 2.0 + 0.5).ahead(0.0, 0.0, inward),
                    0.0,
                );
            }
            let garden = match style {
                Frontage::Houses => true,
                Frontage::Town => set_back > 1.9,
                Frontage::Open => self.rng.chance(0.5),
            };
            if garden {
                self.front_garden(road, side, s, length, set_back);
            }
            s += length
                + match style {
                    Frontage::Town => {
                        [0.1, self.rng.range64(2.0, 6.0)][usize::from(self.rng.chance(0.3))]
                    }
                    Frontage::Houses => self.rng.range64(2.5, 7.0),
                    Frontage::Open => 0.0,
                };
        }
    }

    /// Fills a gap between houses: `at` maps metres along and away from the street.
    fn yard(&mut self, at: impl Fn(f64, f64) -> Planar, length: f64, inward: f64) {
        match self.rng.weighted(&[0.62, 0.2, 0.18]) {
            0 => {
                for _ in 0..self.rng.count(4, 14) {
                    // Denser towards the street.
                    let out = 1.0 + 26.0 * self.rng.range64(0.0, 1.0).powi(2);
                    let spot = at(self.rng.range64(0.0, length), out);
                    if self.rng.chance(0.5) {
                        self.tree(spot, 3.2);
                    } else {
                        let model = models::bush(&mut self.rng);
                        self.thing(model, spot, 0.1);
                    }
                }
            }
            1 => {
                for i in 0..(length / 2.9) as usize {
                    if self.rng.chance(0.5) {
                        let turn = if self.rng.chance(0.5) {
                            FRAC_PI_2
                        } else {
                            -FRAC_PI_2
                        };
                        let spot = at(1.5 + 2.9 * i as f64, self.rng.range64(4.3, 4.8))
                            .ahead(0.0, 0.0, turn);
                        let model = models::car(&mut self.rng, false);
                        self.place_model(model, Some(ObjectClass::Car), Motion::Fixed(spot), 0.2);
                    }
                }
            }
            _ => {
                for _ in 0..self.rng.count(1, 2) {
                    let spot = at(self.rng.range64(2.0, length), self.rng.range64(3.0, 9.0));
                    let turn = inward + 0.1 * f64::from(self.rng.normal());
                    let model = models::container(&mut self.rng);
                    self.thing(model, spot.ahead(0.0, 0.0, turn), 0.3);
                }
            }
        }
    }

    /// Hedge, fence or wall towards the pavement, a driveway with a car, shrubs.
    fn front_garden(&mut self, road: &Road, side: f64, s: f64, length: f64, set_back: f64) {
        let line = road.kerb(side) + road.pavement;
        let driveway = self.rng.chance(0.4) && set_back > 5.0;
        if driveway {
            let turn = if self.rng.chance(0.5) {
                FRAC_PI_2
            } else {
                -FRAC_PI_2
            };
            let spot = road.curve.at(s + length - 1.6, side * (line + 2.8)).ahead(
                0.0,
                0.0,
                turn + 0.03 * f64::from(self.rng.normal()),
            );
            let model = models::car(&mut self.rng, false);
            self.place_model(model, Some(ObjectClass::Car), Motion::Fixed(spot), 0.15);
        }
        let span = if driveway { length - 3.4 } else { length };
        let kind = self.rng.weighted(&[0.45, 0.2, 0.2, 0.15]);
        let pieces = (span / 3.0).max(1.0) as usize;
        let piece = span / pieces as f64;
        for i in 0..pieces {
            let at = road
                .curve
                .at(s + piece * (i as f64 + 0.5), side * (line + 0.45));
            let length = piece as f32 - 0.02;
            let model = match kind {
                0 => models::hedge(&mut self.rng, length),
                1 => models::fence(&mut self.rng, length),
                2 => models::wall(&mut self.rng, length),
                _ => break,
            };
            self.thing(model, at, 0.0);
        }
        if set_back > 2.5 {
            for _ in 0..self.rng.count(1, 7) {
                let at = road.curve.at(
                    s + self.rng.range64(0.5, length),
                    side * (line + self.rng.range64(1.6, set_back)),
                );
                if self.rng.chance(0.4) {
                    self.tree(at, 1.8);
                } else {
                    let model = models::bush(&mut self.rng);
                    self.thing(model, at, 0.1);
                }
            }
        }
    }

    /// A stop with a shelter, people who wait and, often, a bus.
    fn bus_stop(&mut self, road: &Road, side: f64) {
        let (low, high) = (road.along.0 + 40.0, road.along.1 - 40.0);
        let s = self.rng.range64(low, high.max(low + 1.0));
        if !road.is_free(s, 10.0) || road.pavement < 2.0 {
            return;
        }
        let kerb = road.kerb(side);
        let facing = if side * road.hand < 0.0 { 0.0 } else { PI };
        if self.rng.chance(0.7) {
            let model = models::bus(&mut self.rng);
            let half = f64::from(model.size.y) / 2.0;
            let at = road
                .curve
                .at(s, side * (kerb - half - 0.3))
                .ahead(0.0, 0.0, facing);
            self.place_model(model, Some(ObjectClass::Bus), Motion::Fixed(at), 0.3);
        }
        let back = if side > 0.0 { 0.0 } else { PI };
        let shelter = models::shelter(&mut self.rng);
        let stand = road.curve.at(s, side * (kerb + 1.8)).ahead(0.0, 0.0, back);
        self.thing(shelter, stand, 0.0);
        for _ in 0..self.rng.count(1, 4) {
            let along = s + self.rng.range64(-5.0, 5.0);
            let at = road
                .curve
                .at(along, side * (kerb + self.rng.range64(0.5, 1.0)));
            self.people_at(at, 0.0);
        }
    }

    /// People who cross the road at this arc length.
    fn crossing(&mut self, road: &Road, s: f64, count: usize) {
        for _ in 0..count {
            let along = s + self.rng.range64(-1.5, 1.5);
            let from = road.curve.at(along, -road.kerb(-1.0) - 1.5);
            let to = road.curve.at(along, road.kerb(1.0) + 1.5);
            let length = (to.x - from.x).hypot(to.y - from.y);
            let speed = self.rng.range64(0.8, 1.7);
            let motion = Motion::Patrol {
                from: (from.x, from.y),
                to: (to.x, to.y),
                start: self.rng.range64(0.0, 2.0 * length),
                speed,
            };
            self.person(motion, speed, 0.15);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Frontage {
    Town,
    Houses,
    Open,
}

/// Arc lengths seen during a drive along the road's own curve.
fn view(ego: &Speed, duration: f64) -> (f64, f64) {
    (-AROUND, ego.distance(duration) + AROUND)
}

/// Town, residential and country streets.
fn street(rng: &mut Rng, seed: u64, kind: SceneKind, duration: f64, reach: f64) -> World {
    let urban = kind == SceneKind::Urban;
    let rural = kind == SceneKind::Rural;
    let hand = if rng.chance(0.85) { 1.0 } else { -1.0 };
    let speed = match kind {
        SceneKind::Urban => ego_speed(rng, 2.0, 14.0, 0.15),
        SceneKind::Rural => ego_speed(rng, 7.0, 15.0, 0.0),
        _ => ego_speed(rng, 2.0, 9.0, 0.12),
    };
    let strength = if rural {
        0.6
    } else if rng.chance(0.5) {
        0.45
    } else {
        0.03
    };
    let (from, to) = view(&speed, duration);
    let along = (from - 35.0, to + 35.0);
    let curve = Arc::new(Curve::new(
        somewhere(rng),
        along.0 - 40.0,
        along.1 + 40.0,
        winding(rng, strength),
    ));
    let lanes_each_way = if urban { rng.count(1, 2) } else { 1 };
    let strip = |rng: &mut Rng, chance: f32, perpendicular: f32| {
        if !rng.chance(chance) {
            0.0
        } else if rng.chance(perpendicular) {
            5.2
        } else {
            2.2
        }
    };
    let road = Road {
        curve: Arc::clone(&curve),
        along,
        gaps: Vec::new(),
        hand,
        lane_width: match kind {
            SceneKind::Residential => rng.range64(2.6, 3.1),
            _ => rng.range64(3.0, 3.6),
        },
        lanes_each_way,
        bike: if urban && rng.chance(0.55) {
            rng.range64(1.4, 1.9)
        } else {
            0.0
        },
        parking: match kind {
            SceneKind::Urban => [strip(rng, 0.75, 0.16), strip(rng, 0.75, 0.16)],
            SceneKind::Residential => [strip(rng, 0.9, 0.18), strip(rng, 0.9, 0.18)],
            _ => [0.0; 2],
        },
        parked: match kind {
            SceneKind::Urban => rng.range(0.15, 0.8),
            _ => rng.range(0.2, 0.92),
        },
        pavement: match kind {
            SceneKind::Urban => rng.range64(2.4, 5.5),
            SceneKind::Residential => rng.range64(1.5, 2.6),
            _ => 0.0,
        },
        median: 0.0,
    };
    let ego_lane = rng.count(0, lanes_each_way - 1);
    let ego_left = road.lane(1.0, ego_lane);
    let ego = Motion::Lane {
        curve: Arc::clone(&curve),
        start: 0.0,
        left: ego_left,
        direction: 1.0,
        speed,
    };
    let mut b = Builder::new(rng, seed, ego, duration, reach);
    road.paint(&mut b.terrain);
    if rural {
        // Verge.
        let edge = road.half_lanes() + 1.0;
        b.terrain
            .paint_strip(&curve, along, (-edge, edge), Ground::Gravel);
    }

    let mix = match kind {
        SceneKind::Urban => [0.8, 0.11, 0.09],
        SceneKind::Residential => [0.84, 0.12, 0.04],
        _ => [0.75, 0.19, 0.06],
    };
    let flow = match kind {
        SceneKind::Urban => b.rng.range64(18.0, 55.0),
        SceneKind::Residential => b.rng.range64(45.0, 140.0),
        _ => b.rng.range64(40.0, 120.0),
    };
    for direction in [-1.0, 1.0] {
        for number in 0..lanes_each_way {
            let own = direction > 0.0 && number == ego_lane;
            let lane_speed = if own {
                speed
            } else if b.rng.chance(0.15) {
                Speed::ZERO
            } else {
                Speed::steady(b.rng.range64(4.0, 14.0))
            };
            let gap = if lane_speed.mean == 0.0 {
                b.rng.range64(8.0, 16.0)
            } else {
                flow
            };
            let lane = Lane {
                left: road.lane(direction, number),
                direction,
                speed: lane_speed,
                gap,
                mix,
            };
            b.traffic(&road, lane, (from, to), own.then_some((-9.0, 9.0)));
        }
    }
    let riders = match kind {
        SceneKind::Urban => b.rng.range64(22.0, 90.0),
        SceneKind::Residential => b.rng.range64(35.0, 120.0),
        _ => b.rng.range64(80.0, 300.0),
    };
    b.cyclists(&road, (from, to), riders);
    if urban {
        for side in [-1.0, 1.0] {
            if b.rng.chance(0.5) {
                b.bus_stop(&road, side);
            }
        }
    }
    if b.rng.chance(0.25) {
        b.road_works(&road);
    }
    b.parked(&road);
    let style = match kind {
        SceneKind::Urban if b.rng.chance(0.85) => Frontage::Town,
        SceneKind::Residential if b.rng.chance(0.85) => Frontage::Houses,
        _ => Frontage::Open,
    };
    for side in [-1.0, 1.0] {
        let style = if style != Frontage::Open && b.rng.chance(0.12) {
            Frontage::Open
        } else {
            style
        };
        b.frontage(&road, side, style);
    }
    if rural {
        country(&mut b, &road);
        return b.finish();
    }
    let density = if urban { 1.0 } else { 0.6 };
    b.furniture(&road, density, if urban { 1.0 } else { 0.6 });
    let people = if urban {
        b.rng.range64(2.0, 6.0)
    } else {
        b.rng.range64(0.7, 2.5)
    };
    b.walkers(&road, people);
    if b.rng.chance(0.3) {
        let s = b.rng.range64(from + 30.0, to - 20.0);
        b.crossing(&road, s, 3);
    }
    b.finish()
}

/// Trees, posts, hedges and a few people beside a country road.
fn country(b: &mut Builder, road: &Road) {
    let wood = b.rng.chance(0.5);
    let count = (road.along.1 - road.along.0) * if wood { 0.9 } else { 0.25 };
    for _ in 0..count as usize {
        let s = b.rng.range64(road.along.0, road.along.1);
        let side = b.rng.sign();
        let at = road.curve.at(
            s,
            side * (road.kerb(side) + 1.8 + 43.0 * b.rng.range64(0.0, 1.0).powi(2)),
        );
        match b.rng.weighted(&[0.7, 0.25, 0.05]) {
            0 => {
                b.tree(at, 3.5);
            }
            1 => {
                let model = models::bush(&mut b.rng);
                b.thing(model, at, 0.1);
            }
            _ => {
                let model = models::container(&mut b.rng);
                b.thing(model, at, 0.3);
            }
        }
    }
    for side in [-1.0, 1.0] {
        let mut s = road.along.0;
        let barrier = b.rng.weighted(&[0.4, 0.3, 0.3]);
        while s < road.along.1 {
            let at = road.curve.at(s, side * (road.kerb(side) + 1.2));
            let model = match barrier {
                0 => models::bollard(&mut b.rng),
                1 => models::guard_rail(3.96),
                _ => models::hedge(&mut b.rng, 3.9),
            };
            b.thing(model, at, 0.0);
            s += if barrier == 0 { 25.0 } else { 4.0 };
        }
    }
    for _ in 0..b.rng.count(0, 5) {
        let s = b.rng.range64(road.along.0, road.along.1);
        let side = b.rng.sign();
        let at = road.curve.at(s, side * (road.kerb(side) + 0.6));
        b.people_at(at, 0.8);
    }
}

fn highway(rng: &mut Rng, seed: u64, duration: f64, reach: f64) -> World {
    let hand = if rng.chance(0.85) { 1.0 } else { -1.0 };
    let jam = rng.chance(0.3);
    let speed = if jam {
        ego_speed(rng, 1.0, 8.0, 0.1)
    } else {
        ego_speed(rng, 10.0, 22.0, 0.0)
    };
    let (from, to) = view(&speed, duration);
    let along = (from - 35.0, to + 35.0);
    let curve = Arc::new(Curve::new(
        somewhere(rng),
        along.0 - 40.0,
        along.1 + 40.0,
        winding(rng, 0.12),
    ));
    let lanes_each_way = rng.count(2, 4);
    let road = Road {
        curve: Arc::clone(&curve),
        along,
        gaps: Vec::new(),
        hand,
        lane_width: rng.range64(3.4, 3.75),
        lanes_each_way,
        // Hard shoulder.
        bike: rng.range64(1.5, 3.0),
        parking: [0.0; 2],
        parked: 0.0,
        pavement: 0.0,
        median: rng.range64(2.0, 5.0),
    };
    let ego_lane = rng.count(0, lanes_each_way - 1);
    let ego = Motion::Lane {
        curve: Arc::clone(&curve),
        start: 0.0,
        left: road.lane(1.0, ego_lane),
        direction: 1.0,
        speed,
    };
    let mut b = Builder::new(rng, seed, ego, duration, reach);
    road.paint(&mut b.terrain);
    for direction in [-1.0, 1.0] {
        let flow = if jam && direction > 0.0 {
            b.rng.range64(11.0, 22.0)
        } else {
            b.rng.range64(35.0, 75.0)
        };
        for number in 0..lanes_each_way {
            let own = direction > 0.0 && number == ego_lane;
            let outer = number == lanes_each_way - 1;
            let mean = if jam && direction > 0.0 {
                b.rng.range64(0.5, 9.0)
            } else {
                b.rng.range64(18.0, 24.0) + 3.0 * (lanes_each_way - 1 - number) as f64
            };
            let lane = Lane {
                left: road.lane(direction, number),
                direction,
                speed: if own { speed } else { Speed::steady(mean) },
                gap: flow,
                mix: if outer {
                    [0.66, 0.3, 0.04]
                } else {
                    [0.9, 0.08, 0.02]
                },
            };
            b.traffic(&road, lane, (from, to), own.then_some((-10.0, 10.0)));
        }
    }
    // Barriers in the middle and at the edges.
    let edge_kind = [
        b.rng.weighted(&[0.5, 0.25, 0.25]),
        b.rng.weighted(&[0.5, 0.25, 0.25]),
    ];
    let barrier_height = b.rng.range(2.0, 5.0);
    let mut s = road.along.0;
    while s < road.along.1 {
        let middle = models::guard_rail(3.98);
        b.thing(middle, road.curve.at(s, 0.0), 0.0);
        for (side, kind) in [(1.0, edge_kind[0]), (-1.0, edge_kind[1])] {
            let at = road.curve.at(s, side * (road.kerb(side) + 0.8));
            let model = match kind {
                0 => models::guard_rail(3.98),
                1 => models::noise_barrier(barrier_height, 3.98),
                _ => continue,
            };
            b.thing(model, at, 0.0);
        }
        s += 4.0;
    }
    for side in [-1.0, 1.0] {
        let count = (road.along.1 - road.along.0) * b.rng.range64(0.06, 0.5);
        for _ in 0..count as usize {
            let s = b.rng.range64(road.along.0, road.along.1);
            let out = 2.0 + 33.0 * b.rng.range64(0.0, 1.0).powi(2);
            let at = road.curve.at(s, side * (road.kerb(side) + out));
            if b.rng.chance(0.5) {
                b.tree(at, 3.0);
            } else {
                let model = models::bush(&mut b.rng);
                b.thing(model, at, 0.1);
            }
        }
        let mut s = road.along.0 + b.rng.range64(0.0, 40.0);
        while s < road.along.1 {
            let at = road.curve.at(s, side * (road.kerb(side) + 1.5));
            let inward = if side > 0.0 { PI } else { 0.0 };
            let model = if b.rng.chance(0.6) {
                models::lamp(&mut b.rng)
            } else {
                models::sign(&mut b.rng)
            };
            b.place(
                Body::Rigid(Box::new(model)),
                None,
                Motion::Fixed(at.ahead(0.0, 0.0, inward)),
                (0.5, 0.5),
                0.1,
            );
            s += b.rng.range64(30.0, 60.0);
        }
    }
    if b.rng.chance(0.5) {
        let s = b.rng.range64(from, to);
        let span = road.kerb(1.0).max(road.kerb(-1.0)) + 1.8;
        let model = models::gantry(span as f32);
        b.actors.push(Actor {
            body: Body::Rigid(Box::new(model)),
            motion: Motion::Fixed(road.curve.at(s, 0.0)),
            class: None,
            tilts: false,
        });
    }
    if b.rng.chance(0.3) {
        b.road_works(&road);
    }
    // Breakdown on the shoulder.
    if b.rng.chance(0.3) && road.bike > 2.3 {
        let s = b.rng.range64(from, to);
        let at = road
            .curve
            .at(s, -hand * (road.half_lanes() + road.bike / 2.0));
        let (model, class) = b.vehicle([0.7, 0.3, 0.0], false);
        b.place_model(model, Some(class), Motion::Fixed(at), 0.1);
    }
    b.finish()
}

fn junction(rng: &mut Rng, seed: u64, duration: f64, reach: f64) -> World {
    let hand = if rng.chance(0.85) { 1.0 } else { -1.0 };
    let lanes = [rng.count(1, 2), rng.count(1, 2)];
    let lane_width = rng.range64(3.0, 3.5);
    let pavement = rng.range64(2.2, 5.0);
    let parking = |rng: &mut Rng| -> f64 { if rng.chance(0.5) { 2.2 } else { 0.0 } };
    let strips = [parking(rng), parking(rng), parking(rng), parking(rng)];
    let half = |i: usize| lane_width * lanes[i] as f64 + strips[2 * i].max(strips[2 * i + 1]);
    // Free ground of each street around the other, and where vehicles stop.
    let clear = [half(1) + pavement + 1.0, half(0) + pavement + 1.0];
    let waits = rng.chance(0.35);
    let speed = if waits {
        Speed::ZERO
    } else {
        ego_speed(rng, 2.5, 9.0, 0.0)
    };
    // The vehicle's way: straight on (0), a turn to its own side of the road (1) or across the
    // oncoming lanes (2).
    let turn = if waits {
        0
    } else {
        rng.weighted(&[0.45, 0.28, 0.27])
    };
    let crossing_at = if waits {
        clear[0] + rng.range64(3.5, 16.0)
    } else if turn > 0 {
        // Room for the arc's tangent.
        rng.range64(20.0, 35.0)
    } else {
        rng.range64(5.0, 45.0)
    };
    let run = speed.distance(duration);
    let origin = somewhere(rng);
    let main = Arc::new(Curve::new(origin, -10.0, 10.0, |_| 0.0));
    let center = origin.ahead(crossing_at, 0.0, FRAC_PI_2 + rng.range64(-0.12, 0.12));
    let cross = Arc::new(Curve::new(center, -10.0, 10.0, |_| 0.0));
    let road = |i: usize| Road {
        curve: Arc::clone([&main, &cross][i]),
        along: if i == 0 {
            (-AROUND - 35.0, run.max(crossing_at) + AROUND + 35.0)
        } else {
            (-AROUND - 35.0 - run, AROUND + 35.0 + run)
        },
        gaps: vec![if i == 0 {
            (crossing_at - clear[0], crossing_at + clear[0])
        } else {
            (-clear[1], clear[1])
        }],
        hand,
        lane_width,
        lanes_each_way: lanes[i],
        bike: 0.0,
        parking: [strips[2 * i], strips[2 * i + 1]],
        parked: 0.4,
        pavement,
        median: 0.0,
    };
    let roads = [road(0), road(1)];
    let ego_lane = match turn {
        0 => rng.count(0, lanes[0] - 1),
        // Towards the side of traffic from the outer lane, across the oncoming one from the inner.
        1 => lanes[0] - 1,
        _ => 0,
    };
    let ego_left = roads[0].lane(1.0, ego_lane);
    let ego = if turn == 0 {
        Motion::Lane {
            curve: Arc::clone(&main),
            start: 0.0,
            left: ego_left,
            direction: 1.0,
            speed,
        }
    } else {
        // 1: towards its own side of the road (right where traffic keeps right).
        let way = if turn == 1 { -hand } else { hand };
        let lane = if turn == 1 { lanes[1] - 1 } else { 0 };
        let target = roads[1].lane(way, lane);
        let angle = if way > 0.0 {
            center.yaw - origin.yaw
        } else {
            PI - (center.yaw - origin.yaw)
        };
        let radius = if turn == 1 {
            rng.range64(6.5, 8.0)
        } else {
            rng.range64(9.0, 13.0)
        };
        // The lines of both lanes meet at `meet`; the arc begins a tangent's length before.
        let cross_line = cross.at(0.0, target);
        let (sin, cos) = origin.yaw.sin_cos();
        let (dx, dy) = (cross_line.x - origin.x, cross_line.y - origin.y);
        let (along, left) = (dx * cos + dy * sin, dy * cos - dx * sin);
        let lean = center.yaw - origin.yaw;
        let meet = along + (ego_left - left) * lean.cos() / lean.sin();
        let begin = meet - radius * (angle / 2.0).tan();
        let heading = move |s: f64| way * ((s - begin) / radius).clamp(0.0, angle);
        Motion::Lane {
            curve: Arc::new(Curve::new(
                origin.ahead(0.0, ego_left, 0.0),
                -10.0,
                crossing_at + 40.0,
                heading,
            )),
            start: 0.0,
            left: 0.0,
            direction: 1.0,
            speed,
        }
    };
    let mut b = Builder::new(rng, seed, ego, duration, reach);
    for road in &roads {
        road.paint(&mut b.terrain);
    }

    let mix = [0.79, 0.11, 0.1];
    let views = [(-AROUND, run + AROUND), (-AROUND, AROUND)];
    let flowing = usize::from(waits);
    for (i, road) in roads.iter().enumerate() {
        let (gap_low, gap_high) = road.gaps[0];
        for direction in [-1.0, 1.0] {
            for number in 0..lanes[i] {
                let own = i == 0 && direction > 0.0 && number == ego_lane;
                let mut lane = Lane {
                    left: road.lane(direction, number),
                    direction,
                    speed: Speed::ZERO,
                    gap: b.rng.range64(7.0, 14.0),
                    mix,
                };
                if i == flowing {
                    lane.speed = if own && turn == 0 {
                        speed
                    } else {
                        Speed::steady(b.rng.range64(4.0, 12.0))
                    };
                    lane.gap = b.rng.range64(18.0, 60.0);
                    b.traffic(road, lane, views[i], own.then_some((-9.0, 9.0)));
                    continue;
                }
                // A queue before the line, and vehicles that drive away beyond the junction.
                let (queue, leaving) = if direction > 0.0 {
                    (
                        (gap_low - b.rng.range64(5.0, 45.0), gap_low - 1.0),
                        (gap_high + 4.0, views[i].1),
                    )
                } else {
                    (
                        (gap_high + 1.0, gap_high + b.rng.range64(5.0, 45.0)),
                        (views[i].0, gap_low - 4.0),
                    )
                };
                let keep = own.then_some((-8.0, 8.0));
                b.traffic(road, lane, queue, keep);
                let mut away = lane;
                away.speed = Speed::steady(b.rng.range64(4.0, 12.0));
                away.gap = b.rng.range64(20.0, 60.0);
                b.leaving(road, away, leaving);
            }
        }
        let riders = b.rng.range64(30.0, 110.0);
        if i == flowing {
            b.cyclists(road, views[i], riders);
        }
    }
    for road in &roads {
        b.parked(road);
    }
    for (i, road) in roads.iter().enumerate() {
        let (gap_low, gap_high) = road.gaps[0];
        for s in [gap_low + 1.5, gap_high - 1.5] {
            let count = b.rng.count(0, if i == flowing { 3 } else { 4 });
            b.crossing(road, s, count);
            // Lights and people who wait at the corners.
            for side in [-1.0, 1.0] {
                let before = if s < (gap_low + gap_high) / 2.0 {
                    -1.0
                } else {
                    1.0
                };
                let at = road
                    .curve
                    .at(s + before * 1.5, side * (road.kerb(side) + 0.5));
                let inward = if side > 0.0 { PI } else { 0.0 };
                if b.rng.chance(0.6) {
                    let model = models::traffic_light(&mut b.rng);
                    b.place(
                        Body::Rigid(Box::new(model)),
                        None,
                        Motion::Fixed(at.ahead(0.0, 0.0, inward)),
                        (0.5, 0.5),
                        0.05,
                    );
                }
                if b.rng.chance(0.4) {
                    let at = road
                        .curve
                        .at(s, side * (road.kerb(side) + b.rng.range64(0.8, 2.0)));
                    b.people_at(at, 0.0);
                }
            }
        }
        for side in [-1.0, 1.0] {
            let style = [Frontage::Town, Frontage::Houses, Frontage::Open]
                [b.rng.weighted(&[0.65, 0.2, 0.15])];
            b.frontage(road, side, style);
        }
        if b.rng.chance(0.4) {
            let side = b.rng.sign();
            b.bus_stop(road, side);
        }
    }
    for road in &roads {
        b.furniture(road, 0.9, 0.7);
        let people = b.rng.range64(0.8, 3.0);
        b.walkers(road, people);
    }
    b.finish()
}

impl Builder {
    /// Vehicles that start within `starts` and drive off along the lane.
    fn leaving(&mut self, road: &Road, lane: Lane, starts: (f64, f64)) {
        let mut s = starts.0 + self.rng.range64(2.0, lane.gap);
        while s < starts.1 {
            let (model, class) = self.vehicle(lane.mix, true);
            let motion = Motion::Lane {
                curve: Arc::clone(&road.curve),
                start: s,
                left: lane.left,
                direction: lane.direction,
                speed: lane.speed,
            };
            let length = f64::from(model.size.x);
            self.place_model(model, Some(class), motion, 0.3);
            s += length + lane.gap * self.rng.range64(0.5, 1.5);
        }
    }
}

fn car_park(rng: &mut Rng, seed: u64, duration: f64, reach: f64) -> World {
    let speed = ego_speed(rng, 0.8, 4.5, 0.2);
    let run = speed.distance(duration);
    let origin = somewhere(rng);
    let curve = Arc::new(Curve::new(origin, -10.0, 10.0, |_| 0.0));
    let ego = Motion::Lane {
        curve: Arc::clone(&curve),
        start: 0.0,
        left: rng.range64(-1.2, 1.2),
        direction: 1.0,
        speed,
    };
    let mut b = Builder::new(rng, seed, ego, duration, reach);
    let low = -b.rng.range64(15.0, 45.0);
    let high = run.min(60.0) + b.rng.range64(15.0, 45.0);
    let aisle = b.rng.range64(5.8, 7.2);
    let slot = b.rng.range64(4.9, 5.3);
    let pitch = b.rng.range64(2.5, 2.8);
    let bay = aisle + 2.0 * slot;
    let (right_aisles, left_aisles) = (b.rng.count(0, 2) as i64, b.rng.count(0, 2) as i64);
    let (edge_right, edge_left) = (
        -(right_aisles as f64 + 0.5) * bay - 2.0,
        (left_aisles as f64 + 0.5) * bay + 2.0,
    );
    b.terrain.paint_strip(
        &curve,
        (low - 6.0, high + 6.0),
        (edge_right, edge_left),
        Ground::Road,
    );
    // The way in and out.
    b.terrain
        .paint_strip(&curve, (-130.0, run + 130.0), (-3.2, 3.2), Ground::Road);
    let full = b.rng.range(0.1, 0.62);
    // Trees and lamps between the rows first, so that they keep their place.
    for i in -right_aisles..=left_aisles {
        let middle = (i as f64 + 0.5) * bay;
        let mut s = low;
        while s < high {
            let at = curve.at(s, middle);
            if b.rng.chance(0.35) {
                b.tree(at, 2.2);
            } else if b.rng.chance(0.3) {
                let model = models::lamp(&mut b.rng);
                b.place(
                    Body::Rigid(Box::new(model)),
                    None,
                    Motion::Fixed(at),
                    (0.4, 0.4),
                    0.05,
                );
            }
            s += 4.0 * pitch;
        }
    }
    for i in -right_aisles..=left_aisles {
        for side in [-1.0, 1.0] {
            let left = i as f64 * bay + side * (aisle + slot) / 2.0;
            let mut s = low;
            while s < high {
                b.terrain.paint_strip(
                    &curve,
                    (s - 0.05, s + 0.05),
                    (left - slot / 2.0, left + slot / 2.0),
                    Ground::Marking,
                );
                if b.rng.chance(full) {
                    let nose = if b.rng.chance(0.7) { 0.0 } else { PI };
                    let at = curve
                        .at(s + pitch / 2.0, left + 0.15 * f64::from(b.rng.normal()))
                        .ahead(
                            0.0,
                            0.0,
                            side * FRAC_PI_2 + nose + 0.03 * f64::from(b.rng.normal()),
                        );
                    let model = models::car(&mut b.rng, false);
                    b.place_model(model, Some(ObjectClass::Car), Motion::Fixed(at), 0.05);
                }
                s += pitch;
            }
        }
        // Somebody looks for a place, people walk to their cars.
        if i != 0 && b.rng.chance(0.5) {
            let model = models::car(&mut b.rng, true);
            let direction = b.rng.sign();
            let motion = Motion::Lane {
                curve: Arc::clone(&curve),
                start: b.rng.range64(low, high),
                left: i as f64 * bay - direction * 1.4,
                direction,
                speed: Speed::steady(b.rng.range64(0.0, 3.5)),
            };
            b.place_model(model, Some(ObjectClass::Car), motion, 0.3);
        }
        for _ in 0..b.rng.count(1, 5) {
            let at = curve.at(
                b.rng.range64(low, high),
                i as f64 * bay + b.rng.range64(-0.5, 0.5) * aisle,
            );
            b.people_at(at, 0.7);
        }
        if b.rng.chance(0.5) {
            let direction = b.rng.sign();
            let motion = Motion::Lane {
                curve: Arc::clone(&curve),
                start: b.rng.range64(low, high),
                left: i as f64 * bay + direction * b.rng.range64(-1.8, 1.8),
                direction,
                speed: Speed::steady(b.rng.range64(1.5, 4.5)),
            };
            b.cyclist(motion);
        }
    }
    // Around it: a supermarket, hedges, containers, delivery.
    let length = (high - low).min(45.0);
    let building = models::building(&mut b.rng, length as f32, 22.0, 7.0);
    let at = curve
        .at((low + high) / 2.0, edge_left + 18.0)
        .ahead(0.0, 0.0, PI);
    b.thing(building, at, 0.0);
    for _ in 0..b.rng.count(2, 10) {
        let at = curve.at(
            b.rng.range64(low, high),
            edge_left + b.rng.range64(1.0, 5.0),
        );
        b.people_at(at, 0.5);
    }
    for _ in 0..b.rng.count(1, 3) {
        let at = curve.at(
            b.rng.range64(low, high),
            edge_left + b.rng.range64(3.0, 6.0),
        );
        let (model, class) = b.vehicle([0.3, 0.65, 0.05], false);
        b.place_model(model, Some(class), Motion::Fixed(at), 0.3);
    }
    let mut s = low;
    while s < high {
        let at = curve.at(s, edge_right - 1.0);
        let model = models::hedge(&mut b.rng, 3.9);
        b.thing(model, at, 0.0);
        s += 4.0;
    }
    scatter(
        &mut b,
        &curve,
        (-120.0, run + 120.0),
        (edge_right - 60.0, edge_right - 3.0),
        25,
    );
    scatter(
        &mut b,
        &curve,
        (-120.0, low - 12.0),
        (5.0, edge_left + 30.0),
        12,
    );
    scatter(
        &mut b,
        &curve,
        (high + 12.0, run + 120.0),
        (5.0, edge_left + 30.0),
        12,
    );
    b.finish()
}

/// Trees, shrubs, boxes and houses on free ground.
fn scatter(b: &mut Builder, curve: &Curve, along: (f64, f64), across: (f64, f64), count: usize) {
    for _ in 0..count {
        let at = curve
            .at(
                b.rng.range64(along.0, along.1),
                b.rng.range64(across.0, across.1),
            )
            .ahead(0.0, 0.0, b.rng.range64(0.0, TAU));
        match b.rng.weighted(&[0.5, 0.2, 0.1, 0.1, 0.1]) {
            0 => {
                b.tree(at, 3.0);
            }
            1 => {
                let model = models::bush(&mut b.rng);
                b.thing(model, at, 0.1);
            }
            2 => {
                let model = models::container(&mut b.rng);
                b.thing(model, at, 0.2);
            }
            3 => {
                let model = models::street_box(&mut b.rng);
                b.thing(model, at, 0.1);
            }
            _ => {
                let (length, depth, height) = (
                    b.rng.range(8.0, 20.0),
                    b.rng.range(8.0, 14.0),
                    b.rng.range(3.0, 15.0),
                );
                let model = models::building(&mut b.rng, length, depth, height);
                b.thing(model, at, 0.5);
            }
        }
    }
}

fn plaza(rng: &mut Rng, seed: u64, duration: f64, reach: f64) -> World {
    let speed = ego_speed(rng, 0.6, 5.0, 0.3);
    let run = speed.distance(duration);
    let origin = somewhere(rng);
    let curve = Arc::new(Curve::new(origin, -60.0, run + 60.0, winding(rng, 0.2)));
    let ego = Motion::Lane {
        curve: Arc::clone(&curve),
        start: 0.0,
        left: 0.0,
        direction: 1.0,
        speed,
    };
    let mut b = Builder::new(rng, seed, ego, duration, reach);
    let sides = [b.rng.range64(14.0, 40.0), b.rng.range64(14.0, 40.0)];
    let ends = (-b.rng.range64(40.0, 80.0), run + b.rng.range64(40.0, 80.0));
    b.terrain
        .paint_strip(&curve, ends, (-sides[1], sides[0]), Ground::Pavement);
    if b.rng.chance(0.6) {
        b.terrain
            .paint_strip(&curve, (-130.0, run + 130.0), (-3.0, 3.0), Ground::Road);
    }
    // Houses around it.
    for (side, width) in [(1.0, sides[0]), (-1.0, sides[1])] {
        let mut s = ends.0;
        while s < ends.1 {
            let (length, depth, height) = (
                b.rng.range64(10.0, 25.0),
                b.rng.range64(9.0, 15.0),
                b.rng.range64(7.0, 22.0),
            );
            if b.rng.chance(0.85) {
                let model =
                    models::building(&mut b.rng, length as f32, depth as f32, height as f32);
                let inward = if side > 0.0 { PI } else { 0.0 };
                let at = curve
                    .at(s + length / 2.0, side * (width + depth / 2.0 + 1.0))
                    .ahead(0.0, 0.0, inward);
                b.thing(model, at, 0.0);
            }
            s += length
                + if b.rng.chance(0.3) {
                    b.rng.range64(3.0, 8.0)
                } else {
                    0.1
                };
        }
    }
    let spot = |b: &mut Builder| {
        let s = b.rng.range64(ends.0, ends.1);
        curve.at(s, b.rng.range64(-sides[1] + 1.0, sides[0] - 1.0))
    };
    // Rows of trees and bollards along the lane.
    if b.rng.chance(0.6) {
        let gap = b.rng.range64(7.0, 12.0);
        let left = b.rng.range64(6.0, 12.0);
        let mut s = ends.0;
        while s < ends.1 {
            for side in [-1.0, 1.0] {
                b.tree(curve.at(s, side * left), 2.6);
            }
            s += gap;
        }
    }
    if b.rng.chance(0.5) {
        let mut s = ends.0;
        while s < ends.1 {
            for side in [-1.0, 1.0] {
                let model = models::bollard(&mut b.rng);
                b.thing(model, curve.at(s, side * 3.6), 0.05);
            }
            s += 3.5;
        }
    }
    // A market, benches, kiosks.
    for _ in 0..b.rng.count(10, 26) {
        let at = spot(&mut b).ahead(0.0, 0.0, b.rng.range64(0.0, TAU));
        let model = match b.rng.weighted(&[0.35, 0.35, 0.2, 0.1]) {
            0 => models::bench(&mut b.rng),
            1 => models::street_box(&mut b.rng),
            2 => models::bin(&mut b.rng),
            _ => models::shelter(&mut b.rng),
        };
        b.thing(model, at, 0.2);
    }
    // Deliveries, taxis, a bus.
    for _ in 0..b.rng.count(2, 12) {
        let (model, class) = b.vehicle([0.68, 0.22, 0.1], false);
        let side = b.rng.sign();
        let width = if side > 0.0 { sides[0] } else { sides[1] };
        let turn = if b.rng.chance(0.5) { 0.0 } else { PI };
        let out = if b.rng.chance(0.4) { 5.2 } else { width - 2.0 };
        let at = curve.at(b.rng.range64(ends.0, ends.1), side * out).ahead(
            0.0,
            0.0,
            turn + 0.05 * f64::from(b.rng.normal()),
        );
        b.place_model(model, Some(class), Motion::Fixed(at), 0.3);
    }
    let crowd = b.rng.count(8, 26);
    for _ in 0..crowd {
        let at = spot(&mut b).ahead(0.0, 0.0, b.rng.range64(0.0, TAU));
        b.people_at(at, 0.6);
    }
    for _ in 0..b.rng.count(2, 9) {
        let at = spot(&mut b).ahead(0.0, 0.0, 0.2 * f64::from(b.rng.normal()));
        let length = b.rng.range64(25.0, 60.0);
        let (from, to) = (
            at.ahead(-length / 2.0, 0.0, 0.0),
            at.ahead(length / 2.0, 0.0, 0.0),
        );
        let motion = Motion::Patrol {
            from: (from.x, from.y),
            to: (to.x, to.y),
            start: b.rng.range64(0.0, 2.0 * length),
            speed: b.rng.range64(1.5, 5.0),
        };
        b.cyclist(motion);
    }
    scatter(&mut b, &curve, (-120.0, ends.0 - 8.0), (-60.0, 60.0), 14);
    scatter(
        &mut b,
        &curve,
        (ends.1 + 8.0, run + 120.0),
        (-60.0, 60.0),
        14,
    );
    b.finish()
}
