//! Which frames are worth keeping.
//!
//! A calibration needs the values that the network will meet, and its check needs the objects that it must not lose. Both
//! want frames that differ: a vehicle that waits at a light for a minute sees one view six hundred times. So frames are
//! compared by where they were taken, what the scene looks like, and what was detected in it, and the buffer keeps those
//! that are far from each other, and few of any one place. A class that is rare in the buffer counts for more, so that
//! frames with it stay.
//!
//! Frames that check a calibration are kept apart from those that make it, and never lie next to them in time: roles come
//! in runs, with a gap between them.
//!
//! Frames with fewer sweeps than the model wants are taken where there are no others: without the vehicle's motion the
//! network sees no more, either. Each whole frame of their role replaces one of them, and none of them a whole one.

use std::str::FromStr;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::bag::Stamp;
use crate::cloud::frames::Frame;
use crate::eval::Bands;
use crate::geometry::Detection;
use crate::ptq::frames::Role;

/// How frames are chosen where there are more than fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// Those that differ most.
    Diverse,
    /// The newest ones.
    Newest,
    /// Any, each with the same chance.
    Random,
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "diverse" => Ok(Choice::Diverse),
            "newest" => Ok(Choice::Newest),
            "random" => Ok(Choice::Random),
            other => Err(format!("'{other}' is none of diverse, newest, random")),
        }
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Choice::Diverse => "diverse",
            Choice::Newest => "newest",
            Choice::Random => "random",
        })
    }
}

/// Which frames stay. All choice is made here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    pub choice: Choice,
    /// Frames held at the most, of both roles.
    pub max_frames: usize,
    /// Bytes of their files at the most.
    pub max_bytes: u64,
    /// Seconds between two frames at the least, by their stamps.
    pub min_period_s: f64,
    /// Frames taken within [`PLACE_M`] of each other at the most, of one role.
    pub per_place: usize,
    /// Seconds between frames of different roles at the least.
    pub gap_s: f64,
    /// Seconds after which a frame leaves; 0: never.
    pub max_age_s: f64,
    /// Sweeps that the model wants: frames with fewer make room for those that have them.
    pub sweeps: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            choice: Choice::Diverse,
            max_frames: 64,
            max_bytes: 1_000_000_000,
            min_period_s: 0.5,
            per_place: 4,
            gap_s: 2.0,
            max_age_s: 0.0,
            sweeps: 1,
        }
    }
}

/// Frames whose ego positions lie closer show the same view.
pub const PLACE_M: f64 = 2.0;
/// Without positions: scenes closer than this, by [`Signature::scene_distance`], count as the same place.
const SAME_SCENE: f32 = 0.12;
/// Metres at which the distance travelled makes two frames as different as it can, to 63 %.
const TRAVEL_M: f64 = 20.0;
/// Every so many runs of frames one is held out. A run ends when it gave so many frames, as the blocks that recipes split
/// a bag into, or after so many seconds, since a full buffer takes few.
const HOLD_OUT_EVERY: u64 = 4;
const RUN_FRAMES: usize = 4;
const RUN_S: f64 = 10.0;

/// Directions and rings of the scene's histogram; the outer ring is open.
const SECTORS: usize = 12;
const RINGS: [f32; 5] = [5.0, 10.0, 20.0, 30.0, 50.0];
/// Points above it (metres, model's frame) are counted apart from the ground.
const GROUND: f32 = 0.3;
const SCENE: usize = SECTORS * (RINGS.len() + 1) * 2;

/// What a frame is compared by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Signature {
    pub stamp: Stamp,
    /// Sweeps in the frame; 0: not known, in buffers of older versions.
    #[serde(default)]
    pub sweeps: usize,
    /// Where the vehicle was in the frame that stands still, metres.
    pub position: Option<[f64; 3]>,
    /// Points by direction, distance and height, as square roots of shares.
    scene: Vec<f32>,
    /// Detections by class, then by distance band.
    pub objects: Vec<Vec<u32>>,
}

impl Signature {
    /// Of a frame and what a model with so many classes detected in it.
    pub fn new(frame: &Frame, detections: &[Detection], classes: usize) -> Self {
        let bands = Bands::default();
        let mut objects = vec![vec![0; bands.count()]; classes];
        for detection in detections {
            if let Some(row) = objects.get_mut(detection.class) {
                row[bands.of(detection.bbox.range())] += 1;
            }
        }
        let mut scene = vec![0.0f32; SCENE];
        for p in &frame.points.0 {
            let range = p.x.hypot(p.y);
            let ring = RINGS.iter().take_while(|edge| range >= **edge).count();
            let turn = p.y.atan2(p.x) / std::f32::consts::TAU + 0.5;
            // A direction of exactly a whole turn, and one that is not a number, belong somewhere, too.
            let sector = ((turn * SECTORS as f32) as usize).min(SECTORS - 1);
            let high = usize::from(p.z > GROUND);
            scene[(ring * SECTORS + sector) * 2 + high] += 1.0;
        }
        let total = (frame.points.0.len() as f32).max(1.0);
        for cell in &mut scene {
            *cell = (*cell / total).sqrt();
        }
        Self {
            stamp: frame.stamp,
            sweeps: frame.sweeps,
            position: frame.fixed_from_model.map(|pose| {
                let t = pose.translation.vector;
                [t.x, t.y, t.z]
            }),
            scene,
            objects,
        }
    }

    /// Metres between the places, where both are known.
    fn travelled(&self, other: &Self) -> Option<f64> {
        let (a, b) = (self.position?, other.position?);
        let sum: f64 = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum();
        Some(sum.sqrt())
    }

    /// Hellinger distance of the histograms, 0 to 1.
    pub fn scene_distance(&self, other: &Self) -> f32 {
        let overlap: f32 = self
            .scene
            .iter()
            .zip(&other.scene)
            .map(|(a, b)| a * b)
            .sum();
        (1.0 - overlap).max(0.0).sqrt()
    }

    /// Weighted Jaccard distance of the counts, 0 to 1; `weights` by class.
    fn object_distance(&self, other: &Self, weights: &[f32]) -> f32 {
        let (mut apart, mut all) = (0.0, 0.0);
        for ((a, b), weight) in self.objects.iter().zip(&other.objects).zip(weights) {
            for (a, b) in a.iter().zip(b) {
                let (a, b) = ((1.0 + *a as f32).ln(), (1.0 + *b as f32).ln());
                apart += weight * (a - b).abs();
                all += weight * a.max(b);
            }
        }
        if all > 0.0 { apart / all } else { 0.0 }
    }

    /// How different two frames are, 0 to 1: the mean of the parts that are known.
    fn distance(&self, other: &Self, weights: &[f32]) -> f32 {
        let parts = self.scene_distance(other) + self.object_distance(other, weights);
        match self.travelled(other) {
            Some(metres) => (parts + (1.0 - (-metres / TRAVEL_M).exp()) as f32) / 3.0,
            None => parts / 2.0,
        }
    }

    fn same_place(&self, other: &Self) -> bool {
        match self.travelled(other) {
            Some(metres) => metres < PLACE_M,
            None => self.scene_distance(other) < SAME_SCENE,
        }
    }
}

/// A frame of the buffer, without its points.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Grows with every frame that the buffer ever took.
    pub number: u64,
    pub role: Role,
    pub bytes: u64,
    pub signature: Signature,
}

/// What is to happen with a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is not taken.
    Leave,
    /// It is taken in this role, and the entries of these numbers go.
    Take { role: Role, instead_of: Vec<u64> },
}

/// Consecutive frames of one role.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    number: u64,
    began: Option<Stamp>,
    taken: usize,
}

impl Run {
    fn role(self) -> Role {
        match self.number % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1 {
            true => Role::HeldOut,
            false => Role::Calibration,
        }
    }

    /// The run that a frame of this stamp belongs to. Time that jumps back ends a run, too.
    fn at(mut self, stamp: Stamp) -> Self {
        let began = *self.began.get_or_insert(stamp);
        let lasted = stamp.seconds_since(began);
        if self.taken >= RUN_FRAMES || !(0.0..RUN_S).contains(&lasted) {
            self.number += 1;
            self.began = Some(stamp);
            self.taken = 0;
        }
        self
    }
}

/// Decides which frames stay.
#[derive(Debug)]
pub struct Selector {
    policy: Policy,
    entries: Vec<Entry>,
    next_number: u64,
    run: Run,
    /// Frames that could have been taken, by role; for [`Choice::Random`].
    seen: [u64; 2],
    random: ChaCha8Rng,
}

impl Selector {
    /// Goes on with the entries of an earlier run, whose numbers it continues.
    pub fn new(policy: Policy, mut entries: Vec<Entry>) -> Self {
        entries.sort_by_key(|entry| entry.number);
        let next_number = entries.last().map_or(0, |last| last.number + 1);
        let of = |role| entries.iter().filter(|e| e.role == role).count() as u64;
        Self {
            policy,
            seen: [of(Role::Calibration), of(Role::HeldOut)],
            entries,
            next_number,
            run: Run::default(),
            random: ChaCha8Rng::seed_from_u64(next_number),
        }
    }

    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// In the order they came.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn count(&self, role: Role) -> usize {
        self.entries.iter().filter(|e| e.role == role).count()
    }

    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.bytes).sum()
    }

    /// Whether a frame has fewer sweeps than the model wants.
    fn lacks_sweeps(&self, signature: &Signature) -> bool {
        (1..self.policy.sweeps).contains(&signature.sweeps)
    }

    /// Frames that have fewer sweeps than the model wants.
    pub fn few_sweeps(&self) -> usize {
        let few = |e: &&Entry| self.lacks_sweeps(&e.signature);
        self.entries.iter().filter(few).count()
    }

    /// The number that the next frame gets.
    pub fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Takes effect at once: the numbers of the entries that have to go.
    pub fn set_policy(&mut self, policy: Policy) -> Vec<u64> {
        self.policy = policy;
        let mut gone = Vec::new();
        for role in [Role::Calibration, Role::HeldOut] {
            while self.count(role) > self.room(role) {
                gone.push(self.least(role));
                self.remove(&gone);
            }
        }
        gone.extend(self.excess_bytes(0, None));
        self.remove(&gone);
        gone
    }

    /// Frames of a role at the most: one in [`HOLD_OUT_EVERY`] is held out.
    fn room(&self, role: Role) -> usize {
        let held_out = (self.policy.max_frames / HOLD_OUT_EVERY as usize).max(1);
        match role {
            Role::HeldOut => held_out,
            Role::Calibration => self.policy.max_frames.saturating_sub(held_out).max(1),
        }
    }

    /// Whether a frame of this stamp could be taken at all; needs no signature. A stamp that jumps back (a recording
    /// that starts over, a clock that was set) counts as far away.
    pub fn may_follow(policy: &Policy, stamp: Stamp, last: Option<Stamp>) -> bool {
        match last {
            Some(last) if stamp >= last => stamp.seconds_since(last) >= policy.min_period_s,
            _ => true,
        }
    }

    /// Entries that are too old at `now`, by the stamps of the recording.
    pub fn expired(&self, now: Stamp) -> Vec<u64> {
        let limit = self.policy.max_age_s;
        let old = |e: &&Entry| limit > 0.0 && now.seconds_since(e.signature.stamp) > limit;
        self.entries.iter().filter(old).map(|e| e.number).collect()
    }

    /// Whether to take a frame, and what has to go for it. No entry changes.
    pub fn decide(&mut self, signature: &Signature, bytes: u64) -> Decision {
        self.run = self.run.at(signature.stamp);
        let role = self.run.role();
        let near =
            |e: &Entry| e.signature.stamp.seconds_since(signature.stamp).abs() < self.policy.gap_s;
        if self.entries.iter().any(|e| e.role != role && near(e)) {
            return Decision::Leave;
        }
        let full = self.count(role) >= self.room(role);
        let index = usize::from(role == Role::HeldOut);
        self.seen[index] += 1;
        let whole = !self.lacks_sweeps(signature);
        let mut of_role = self.entries.iter().filter(|e| e.role == role);
        if whole && let Some(lacking) = of_role.find(|e| self.lacks_sweeps(&e.signature)) {
            return match self.is_crowded(signature, role) {
                true => Decision::Leave,
                false => self.taken(role, Some(lacking.number), bytes),
            };
        }
        let instead = match self.policy.choice {
            Choice::Newest => full.then(|| self.least(role)),
            Choice::Random if full => {
                let place = self.random.random_range(0..self.seen[index]);
                if place >= self.room(role) as u64 {
                    return Decision::Leave;
                }
                let of_role = self.entries.iter().filter(|e| e.role == role);
                of_role.map(|e| e.number).nth(place as usize)
            }
            Choice::Random => None,
            Choice::Diverse => match self.replaced(signature, role, full) {
                Ok(instead) => instead,
                Err(()) => return Decision::Leave,
            },
        };
        let replaced = |e: &Entry| Some(e.number) == instead && !self.lacks_sweeps(&e.signature);
        if !whole && self.entries.iter().any(replaced) {
            return Decision::Leave;
        }
        self.taken(role, instead, bytes)
    }

    /// That a frame of so many bytes is taken, and what goes for it besides.
    fn taken(&self, role: Role, instead: Option<u64>, bytes: u64) -> Decision {
        let mut instead_of: Vec<u64> = instead.into_iter().collect();
        instead_of.extend(self.excess_bytes(bytes, instead));
        Decision::Take { role, instead_of }
    }

    /// Whether there are whole frames of a role enough of this one's place.
    fn is_crowded(&self, signature: &Signature, role: Role) -> bool {
        let here = |e: &&Entry| {
            e.role == role && !self.lacks_sweeps(&e.signature) && e.signature.same_place(signature)
        };
        self.policy.choice == Choice::Diverse
            && self.entries.iter().filter(here).count() >= self.policy.per_place.max(1)
    }

    /// Notes that a frame was taken as decided.
    pub fn take(&mut self, entry: Entry, instead_of: &[u64]) {
        self.next_number = entry.number + 1;
        self.run.taken += 1;
        self.remove(instead_of);
        self.entries.push(entry);
    }

    pub fn remove(&mut self, numbers: &[u64]) {
        self.entries.retain(|e| !numbers.contains(&e.number));
    }

    /// The entry that a frame replaces, none where there is room for it; an error where it is worth less than all.
    fn replaced(&self, signature: &Signature, role: Role, full: bool) -> Result<Option<u64>, ()> {
        let weights = self.class_weights();
        let here: Vec<&Entry> = self
            .entries
            .iter()
            .filter(|e| e.role == role && e.signature.same_place(signature))
            .collect();
        // Of a place that is full, a frame replaces one of the same place; else any.
        let crowded = here.len() >= self.policy.per_place.max(1);
        if !crowded && !full {
            return Ok(None);
        }
        let of_role = self.entries.iter().filter(|e| e.role == role);
        let rivals = match crowded {
            true => here,
            false => of_role.collect(),
        };
        let Some((worth, number)) = self.spared_best(&rivals, role, &weights) else {
            return Err(());
        };
        // What the frame would be worth in that one's place.
        if self.nearest(signature, Some(role), Some(number), &weights) > worth {
            Ok(Some(number))
        } else {
            Err(())
        }
    }

    /// Distance to the nearest entry, of one role or of any, but for the one of a number; infinite where there is none.
    fn nearest(
        &self,
        signature: &Signature,
        role: Option<Role>,
        but: Option<u64>,
        weights: &[f32],
    ) -> f32 {
        self.entries
            .iter()
            .filter(|e| role.is_none_or(|role| e.role == role) && Some(e.number) != but)
            .map(|e| e.signature.distance(signature, weights))
            .fold(f32::INFINITY, f32::min)
    }

    /// Of some entries of a role the one that is nearest to another of that role, and how near; of equal ones the oldest.
    fn spared_best(&self, rivals: &[&Entry], role: Role, weights: &[f32]) -> Option<(f32, u64)> {
        rivals
            .iter()
            .map(|e| {
                let worth = self.nearest(&e.signature, Some(role), Some(e.number), weights);
                (worth, e.number)
            })
            .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
    }

    /// Weight of each class: the rarer in the buffer, the more.
    fn class_weights(&self) -> Vec<f32> {
        let classes = self.entries.iter().map(|e| e.signature.objects.len());
        let frames = self.entries.len().max(1) as f32;
        (0..classes.max().unwrap_or(0))
            .map(|class| {
                let has = |e: &&Entry| {
                    let row = e.signature.objects.get(class);
                    row.is_some_and(|row| row.iter().any(|n| *n > 0))
                };
                let share = self.entries.iter().filter(has).count() as f32 / frames;
                1.0 / (0.1 + share)
            })
            .collect()
    }

    /// The entry of a role to go first: the least different one, or the oldest where difference does not count.
    fn least(&self, role: Role) -> u64 {
        let of_role: Vec<&Entry> = self.entries.iter().filter(|e| e.role == role).collect();
        let least = match self.policy.choice {
            Choice::Diverse => self
                .spared_best(&of_role, role, &self.class_weights())
                .map(|(_, number)| number),
            Choice::Newest | Choice::Random => of_role.iter().map(|e| e.number).min(),
        };
        least.unwrap_or_default()
    }

    /// Entries that have to go so that `more` bytes fit; `gone` goes already.
    fn excess_bytes(&self, more: u64, gone: Option<u64>) -> Vec<u64> {
        let mut left: Vec<&Entry> = self
            .entries
            .iter()
            .filter(|e| Some(e.number) != gone)
            .collect();
        let mut numbers = Vec::new();
        // The oldest first: bytes are a bound for the disk's sake, far beyond what the number of frames allows.
        while !left.is_empty()
            && left.iter().map(|e| e.bytes).sum::<u64>() + more > self.policy.max_bytes
        {
            numbers.push(left.remove(0).number);
        }
        numbers
    }

    /// Mean over the frames of the distance to the nearest other one: 0 for one view again and again.
    pub fn diversity(&self) -> Option<f32> {
        if self.entries.len() < 2 {
            return None;
        }
        let weights = self.class_weights();
        let nearest = |e: &Entry| self.nearest(&e.signature, None, Some(e.number), &weights);
        let sum: f32 = self.entries.iter().map(nearest).sum();
        Some(sum / self.entries.len() as f32)
    }

    /// Objects detected in the frames, by class.
    pub fn objects(&self) -> Vec<u32> {
        let mut sums = Vec::new();
        for entry in &self.entries {
            sums.resize(sums.len().max(entry.signature.objects.len()), 0);
            for (sum, row) in sums.iter_mut().zip(&entry.signature.objects) {
                *sum += row.iter().sum::<u32>();
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::{Point, Points};
    use crate::geometry::{Box3d, Pose};
    use nalgebra::{Translation3, UnitQuaternion, Vector3};

    /// A frame at `seconds` and `x` metres along the road, with a wall at `wall` metres.
    fn frame(seconds: f64, x: Option<f64>, wall: f32) -> Frame {
        let points = (0..200)
            .map(|i| Point {
                x: wall,
                y: i as f32 * 0.1 - 10.0,
                z: 1.0,
                ..Default::default()
            })
            .collect();
        Frame {
            stamp: Stamp((seconds * 1e9) as i64),
            frame_id: "base_link".into(),
            points: Points(points),
            model_from_cloud: Pose::identity(),
            placement: crate::cloud::frames::Placement::SameFrame,
            fixed_from_model: x.map(|x| {
                Pose::from_parts(Translation3::new(x, 0.0, 0.0), UnitQuaternion::identity())
            }),
            sweeps: 1,
            stats: Default::default(),
            conditions: Vec::new(),
        }
    }

    fn detection(class: usize, x: f32) -> Detection {
        Detection {
            bbox: Box3d {
                center: Vector3::new(x, 0.0, 0.0),
                size: Vector3::new(4.0, 2.0, 1.5),
                yaw: 0.0,
            },
            class,
            score: 0.9,
            velocity: None,
        }
    }

    fn signature(seconds: f64, x: Option<f64>, classes: &[usize]) -> Signature {
        let found: Vec<Detection> = classes.iter().map(|c| detection(*c, 12.0)).collect();
        Signature::new(&frame(seconds, x, 20.0), &found, 3)
    }

    fn policy(choice: Choice, max_frames: usize) -> Policy {
        Policy {
            choice,
            max_frames,
            ..Default::default()
        }
    }

    /// Offers frames and returns whether each was taken.
    fn offer(selector: &mut Selector, frames: impl IntoIterator<Item = Signature>) -> Vec<bool> {
        let taken = frames
            .into_iter()
            .map(|signature| match selector.decide(&signature, 10) {
                Decision::Leave => false,
                Decision::Take { role, instead_of } => {
                    let entry = Entry {
                        number: selector.next_number(),
                        role,
                        bytes: 10,
                        signature,
                    };
                    selector.take(entry, &instead_of);
                    true
                }
            });
        taken.collect()
    }

    fn seconds(selector: &Selector, role: Role) -> Vec<i64> {
        let of_role = selector.entries().iter().filter(|e| e.role == role);
        of_role
            .map(|e| e.signature.stamp.0 / 1_000_000_000)
            .collect()
    }

    #[test]
    fn a_standing_vehicle_does_not_fill_the_buffer_with_one_view() {
        for position in [Some(7.0), None] {
            let mut selector = Selector::new(policy(Choice::Diverse, 64), Vec::new());
            offer(
                &mut selector,
                (0..600).map(|i| signature(i as f64, position, &[0])),
            );
            // per_place of each role.
            assert!(selector.entries().len() <= 8, "{position:?}");
            // Then it drives on.
            let before = selector.entries().len();
            let road = (0..40).map(|i| {
                let x = position.map(|x| x + 10.0 * i as f64);
                Signature::new(&frame(600.0 + i as f64, x, 5.0 + i as f32), &[], 3)
            });
            offer(&mut selector, road);
            assert!(selector.entries().len() > before + 10, "{position:?}");
        }
    }

    #[test]
    fn the_one_frame_with_a_rare_class_stays_through_a_long_drive() {
        let mut selector = Selector::new(policy(Choice::Diverse, 16), Vec::new());
        let drive = (0..2000).map(|i| {
            let classes: &[usize] = if i == 101 { &[0, 2] } else { &[0] };
            signature(i as f64, Some(i as f64 * 5.0), classes)
        });
        offer(&mut selector, drive);
        assert!(selector.entries().len() >= 15);
        assert!(
            selector
                .entries()
                .iter()
                .any(|e| e.signature.objects[2].iter().any(|n| *n > 0))
        );
        // The newest ones alone would not have it.
        let last = selector.entries().iter().map(|e| e.signature.stamp.0).max();
        assert!(last.unwrap() > 1000 * 1_000_000_000);
    }

    #[test]
    fn frames_of_different_roles_are_never_neighbours() {
        for choice in [Choice::Diverse, Choice::Newest, Choice::Random] {
            let mut selector = Selector::new(policy(choice, 32), Vec::new());
            let drive =
                (0..1500).map(|i| signature(f64::from(i) * 0.5, Some(f64::from(i) * 4.0), &[0]));
            offer(&mut selector, drive);
            let (made, held) = (Role::Calibration, Role::HeldOut);
            assert_eq!(
                (selector.count(made), selector.count(held)),
                (24, 8),
                "{choice}"
            );
            for a in selector.entries().iter().filter(|e| e.role == made) {
                for b in selector.entries().iter().filter(|e| e.role == held) {
                    let apart = a.signature.stamp.seconds_since(b.signature.stamp).abs();
                    assert!(apart >= selector.policy().gap_s, "{choice}: {apart} s");
                }
            }
        }
    }

    #[test]
    fn the_newest_are_the_newest_and_random_ones_are_from_all_over() {
        let drive = |n: i32| (0..n).map(|i| signature(f64::from(i), Some(f64::from(i)), &[0]));
        let mut newest = Selector::new(policy(Choice::Newest, 16), Vec::new());
        offer(&mut newest, drive(1000));
        assert!(seconds(&newest, Role::Calibration)[0] > 950);
        let mut random = Selector::new(policy(Choice::Random, 64), Vec::new());
        offer(&mut random, drive(4000));
        let found = seconds(&random, Role::Calibration);
        assert_eq!(found.len(), 48);
        let early = found.iter().filter(|s| **s < 2000).count();
        assert!(
            (12..=36).contains(&early),
            "{early} of 48 from the first half"
        );
    }

    #[test]
    fn a_diverse_buffer_differs_more_than_a_new_one() {
        // Long waits between short drives.
        let drive = |i: i32| {
            let (block, within) = (i / 100, (i % 100).min(20));
            let x = f64::from(block * 100 + within * 5);
            Signature::new(
                &frame(f64::from(i), Some(x), 5.0 + (x % 60.0) as f32),
                &[],
                3,
            )
        };
        let [diverse, newest] = [Choice::Diverse, Choice::Newest].map(|choice| {
            let mut selector = Selector::new(policy(choice, 32), Vec::new());
            offer(&mut selector, (0..1000).map(drive));
            selector.diversity().unwrap()
        });
        assert!(diverse > 3.0 * newest, "{diverse} and {newest}");
    }

    #[test]
    fn limits_of_frames_and_bytes_take_effect_at_once() {
        let mut selector = Selector::new(policy(Choice::Newest, 32), Vec::new());
        offer(
            &mut selector,
            (0..400).map(|i| signature(f64::from(i), None, &[])),
        );
        assert_eq!(selector.bytes(), 320);
        let gone = selector.set_policy(policy(Choice::Newest, 8));
        assert_eq!((gone.len(), selector.entries().len()), (24, 8));
        selector.set_policy(Policy {
            max_bytes: 35,
            ..policy(Choice::Newest, 8)
        });
        assert_eq!(selector.entries().len(), 3);
        offer(
            &mut selector,
            (400..420).map(|i| signature(f64::from(i), None, &[])),
        );
        assert_eq!(selector.entries().len(), 3);
    }

    #[test]
    fn old_frames_expire_by_the_time_of_the_recording() {
        let old = Policy {
            max_age_s: 60.0,
            ..policy(Choice::Newest, 32)
        };
        let mut selector = Selector::new(old, Vec::new());
        offer(
            &mut selector,
            (0..10).map(|i| signature(f64::from(i) * 20.0, None, &[])),
        );
        let expired = selector.expired(Stamp(199 * 1_000_000_000));
        assert_eq!(expired.len(), 7);
        // A clock that jumps back makes nothing old.
        assert!(selector.expired(Stamp(0)).is_empty());
    }

    #[test]
    fn a_recording_that_starts_over_goes_on_filling_the_buffer() {
        let policy = policy(Choice::Newest, 16);
        let last = Some(Stamp(900_000_000));
        assert!(Selector::may_follow(&policy, Stamp(100_000_000), last));
        assert!(!Selector::may_follow(&policy, Stamp(1_000_000_000), last));
        assert!(Selector::may_follow(&policy, Stamp(1_400_000_000), last));
        let mut selector = Selector::new(policy, Vec::new());
        let drive = |from: i32| (0..30).map(move |i| signature(f64::from(from + i), None, &[]));
        offer(&mut selector, drive(1000));
        let taken = offer(&mut selector, drive(0));
        assert!(taken.iter().filter(|t| **t).count() > 20);
    }

    /// With so many sweeps.
    fn joined(signature: Signature, sweeps: usize) -> Signature {
        Signature {
            sweeps,
            ..signature
        }
    }

    #[test]
    fn frames_that_lack_sweeps_stay_only_until_whole_ones_come() {
        for choice in [Choice::Diverse, Choice::Newest, Choice::Random] {
            let policy = Policy {
                sweeps: 2,
                ..policy(choice, 16)
            };
            let mut selector = Selector::new(policy, Vec::new());
            // Without the vehicle's motion there is nothing better: they are used.
            let single = (0..200).map(|i| joined(signature(f64::from(i), None, &[0]), 1));
            offer(&mut selector, single);
            let taken = selector.entries().len();
            assert!(taken >= 2 && selector.few_sweeps() == taken, "{choice}");
            // The same place, and then the road.
            let whole = (200..400).map(|i| {
                let x = f64::from((i - 220).max(0)) * 5.0;
                joined(signature(f64::from(i), Some(x), &[0]), 2)
            });
            offer(&mut selector, whole);
            assert_eq!(selector.few_sweeps(), 0, "{choice}");
            assert!(selector.entries().len() >= taken, "{choice}");
            // The motion is lost again: no whole frame goes for that.
            let kept = selector.entries().len();
            let single = (400..600).map(|i| joined(signature(f64::from(i), None, &[1]), 1));
            offer(&mut selector, single);
            let whole = selector.entries().len() - selector.few_sweeps();
            assert!(whole >= kept, "{choice}: {whole} of {kept}");
        }
    }

    #[test]
    fn a_model_of_one_sweep_lacks_none() {
        let mut selector = Selector::new(policy(Choice::Newest, 16), Vec::new());
        offer(
            &mut selector,
            (0..40).map(|i| joined(signature(f64::from(i), None, &[]), 1)),
        );
        assert_eq!((selector.entries().len(), selector.few_sweeps()), (16, 0));
    }

    #[test]
    fn an_earlier_run_is_continued() {
        let mut first = Selector::new(policy(Choice::Diverse, 16), Vec::new());
        offer(
            &mut first,
            (0..60).map(|i| signature(f64::from(i), Some(f64::from(i) * 9.0), &[])),
        );
        let entries = first.entries().to_vec();
        let mut second = Selector::new(policy(Choice::Diverse, 16), entries.clone());
        assert_eq!(second.entries(), entries);
        assert_eq!(second.next_number(), first.next_number());
        let taken = offer(&mut second, [signature(900.0, Some(5000.0), &[1])]);
        assert_eq!(taken, [true]);
    }
}
