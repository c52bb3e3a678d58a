//! The models that were made: a folder each, named by its content, and which of them each node runs.
//!
//! ```text
//! store/
//!   models/<name>-<digits>/   model.yaml, ONNX files, report, and version.json, which lists and hashes the rest
//!   active/<node>.json        what a node runs, what it ran before, and what it gave up
//!   incoming/<random>/        models being made
//!   lock                      held by whoever changes the store
//! ```
//!
//! A reader needs no lock: a model appears by one rename and is never changed, `active` files are replaced by one
//! rename, and files are on the disk before their names are. So the store can be read after a kill or a power cut at any
//! moment, and what a killed process left in `incoming` is removed by the next one. Several nodes may share a store.
//!
//! Nothing here looks at the clock: versions are ordered by a number that grows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::detector::{DetectorError, ModelDescription, ModelFiles};
use crate::files::{self, FileError, Links, hex};
use crate::onnx::{OnnxError, limit};
use crate::ptq::check::Verdict;
use crate::ptq::recipe::{self, Target, has_exact_u8s8};
use crate::ptq::report::{self, FileRecord, Report, ReportError};

/// The `format` of `version.json` and of `active` files.
const FORMAT: u32 = 1;
const VERSION_FILE: &str = "version.json";
const DESCRIPTION: &str = "model.yaml";
/// What is known of a model besides; not part of what it is.
const REPORTS: [&str; 3] = [report::JSON_FILE, report::TEXT_FILE, report::PAGE_FILE];
const MODELS: &str = "models";
const ACTIVE: &str = "active";
const INCOMING: &str = "incoming";
const LOCK: &str = "lock";
/// Digits of the content's hash in a version's name.
const DIGITS: usize = 12;
/// Models that a node ran before, kept in its selection.
const REMEMBERED: usize = 8;
/// Bytes of a record that are read at most.
const MOST_RECORD: u64 = 16 << 20;
/// Changes take milliseconds; who waits longer than this waits for something that hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much a store may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub models: usize,
    pub bytes: u64,
}

impl Limits {
    pub const NONE: Self = Self {
        models: usize::MAX,
        bytes: u64::MAX,
    };
}

/// Why the store did not do what it was asked to.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} is held by another process for more than {} s", .path.display(), PATIENCE.as_secs())]
    Busy { path: PathBuf },
    #[error("{} is damaged: {reason}", .path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error(transparent)]
    Model(#[from] Box<DetectorError>),
    #[error("{}", .0)]
    NoModel(String),
    #[error(
        "the store {} has no room for {} MB: it may hold {} MB (`store.max_mb`), and what nodes run in it stays: {}",
        .store.display(), .needed.div_ceil(1_000_000), .most / 1_000_000, list(.kept)
    )]
    Full {
        store: PathBuf,
        needed: u64,
        most: u64,
        /// Models that a node runs or would go back to.
        kept: Vec<String>,
    },
    #[error("the store {} has no model '{wanted}'; it has {}", .store.display(), list(.there))]
    NoSuch {
        store: PathBuf,
        wanted: String,
        there: Vec<String>,
    },
    #[error("'{wanted}' stands for several models: {}", list(.there))]
    Ambiguous { wanted: String, there: Vec<String> },
    #[error("{id} is what {} runs; change that first", list(.nodes))]
    InUse { id: String, nodes: Vec<String> },
}

impl From<DetectorError> for StoreError {
    fn from(error: DetectorError) -> Self {
        StoreError::Model(Box::new(error))
    }
}

impl From<OnnxError> for StoreError {
    fn from(error: OnnxError) -> Self {
        DetectorError::from(error).into()
    }
}

fn no_name(name: &str) -> StoreError {
    StoreError::NoModel(format!("'{name}' is no name of a file in a model's folder"))
}

fn list(names: &[String]) -> String {
    match names {
        [] => "none".into(),
        names => names.join(", "),
    }
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::Io {
        action,
        path,
        source,
    }
}

/// A model of the store: `version.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Version {
    pub format: u32,
    /// Name of the float model and first digits of a hash of [`Version::files`] without the reports, and of `accepted`.
    pub id: String,
    /// Grows with every model that a store gets.
    pub number: u64,
    /// Seconds since the epoch, by the clock of the machine that made it.
    pub created: u64,
    /// The node whose traffic it was made from, where a node had it made.
    pub node: Option<String>,
    pub target: Target,
    /// Name and schema version of the recipe.
    pub recipe: String,
    pub recipe_format: u32,
    /// The ONNX files it was made from.
    pub float_files: Vec<FileRecord>,
    /// Whether its sums are right only on a CPU that multiplies 8-bit integers without saturating.
    pub needs_exact_products: bool,
    pub calibration_frames: usize,
    pub held_out_frames: usize,
    /// What the gate said. Records of older versions do not say what it judged.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// F1 of its boxes against float's on the held-out frames.
    pub f1: Option<f64>,
    /// Median time of the float backbone by that of this one, where it was made.
    pub speedup: Option<f64>,
    /// All files of the folder but this record.
    pub files: Vec<FileRecord>,
    /// Where it lies.
    #[serde(skip)]
    pub folder: PathBuf,
}

impl Version {
    /// Reads the record of a model folder; its other files are not looked at, see [`Version::verify`].
    fn read(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join(VERSION_FILE);
        let damaged = |reason: String| StoreError::Damaged {
            path: folder.to_owned(),
            reason,
        };
        if !fs::symlink_metadata(folder).is_ok_and(|found| found.is_dir()) {
            return Err(damaged("it is no folder".into()));
        }
        let text = files::open_no_link(&path, MOST_RECORD)
            .and_then(|file| files::read_open(file, MOST_RECORD))
            .map_err(|error| damaged(format!("{VERSION_FILE} cannot be read: {error}")))?;
        let mut version: Self = serde_json::from_slice(&text)
            .map_err(|error| damaged(format!("{VERSION_FILE}: {error}")))?;
        if version.format != FORMAT {
            let found = version.format;
            return Err(damaged(format!(
                "{VERSION_FILE} has format {found}; this version reads {FORMAT}"
            )));
        }
        if folder.file_name().is_none_or(|n| *n != *version.id) {
            return Err(damaged(format!("{VERSION_FILE} is that of {}", version.id)));
        }
        version.check().map_err(damaged)?;
        folder.clone_into(&mut version.folder);
        Ok(version)
    }

    /// What is wrong with a record by itself. Nothing that it names is looked at.
    fn check(&self) -> Result<(), String> {
        let names: BTreeSet<&str> = self.files.iter().map(|f| f.file.as_str()).collect();
        if let Some(name) = names.iter().find(|name| !files::is_plain_name(name)) {
            return Err(format!(
                "{VERSION_FILE} lists '{name}', which is no name of a file in its folder"
            ));
        }
        if names.len() != self.files.len() || !names.contains(DESCRIPTION) {
            return Err(format!(
                "{VERSION_FILE} lists a file twice, or no {DESCRIPTION}"
            ));
        }
        let digits = &content(&self.files, self.verdict.accepted)[..DIGITS];
        match self.id.rsplit('-').next() == Some(digits) {
            true => Ok(()),
            false => Err(format!(
                "what {VERSION_FILE} lists, and whether it was accepted, is not what {} was named by",
                self.id
            )),
        }
    }

    /// Whether this node had it made from its own traffic.
    pub fn is_made_by(&self, node: &str) -> bool {
        self.node
            .as_deref()
            .is_some_and(|own| key(own) == key(node))
    }

    pub fn description(&self) -> PathBuf {
        self.folder.join(DESCRIPTION)
    }

    /// What is known of it from where it was made.
    pub fn as_made(&self) -> String {
        match self.verdict.coverage() {
            Some(coverage) => format!("where it was made: {coverage}"),
            None => "its record does not say which classes were judged where it was made".into(),
        }
    }

    /// Its files without description and reports.
    pub fn model_files(&self) -> impl Iterator<Item = &FileRecord> {
        let of_model =
            |file: &&FileRecord| file.file != DESCRIPTION && !REPORTS.contains(&file.file.as_str());
        self.files.iter().filter(of_model)
    }

    /// Where its report lies.
    pub fn report(&self) -> PathBuf {
        self.folder.join(crate::ptq::report::JSON_FILE)
    }

    pub fn bytes(&self) -> u64 {
        let bytes = self.files.iter().map(|file| file.bytes);
        bytes.fold(0, u64::saturating_add)
    }

    /// Reads every file and compares it with the record.
    pub fn verify(&self) -> Result<(), StoreError> {
        let checked = FileRecord::check_all(&self.files, &self.folder, Links::Refuse);
        checked.map_err(|problem| self.damaged(problem))
    }

    /// Compares the files that a model was loaded from with the record: what was read is what was stored.
    pub fn verify_loaded(&self, loaded: &[FileRecord]) -> Result<(), StoreError> {
        let description = self.files.iter().find(|file| file.file == DESCRIPTION);
        if let Some(description) = description {
            let checked = description.check(&self.folder, Links::Refuse);
            checked.map_err(|problem| self.damaged(problem))?;
        }
        match loaded.iter().find(|file| !self.files.contains(file)) {
            None => Ok(()),
            Some(file) => Err(self.damaged(format!("{} changed while it was loaded", file.file))),
        }
    }

    fn damaged(&self, problem: String) -> StoreError {
        StoreError::Damaged {
            path: self.folder.clone(),
            reason: format!("{problem}; it is not as it was stored"),
        }
    }
}

/// A float model as far as it tells whether a version was made from it.
#[derive(Debug, Clone, PartialEq)]
pub struct FloatModel {
    /// Its ONNX files, those that hold only weights included.
    pub files: Vec<FileRecord>,
    /// [`ModelDescription::behaviour`]; not compared where it is not known.
    behaviour: Option<serde_json::Value>,
}

impl FloatModel {
    /// Reads every file of the model.
    pub fn of(model: &ModelDescription) -> Result<Self, StoreError> {
        Ok(FloatModel {
            files: FileRecord::all_of(model)?,
            behaviour: Some(model.behaviour()),
        })
    }

    /// The model that a version was made from, as its record has it.
    pub fn of_version(version: &Version) -> Self {
        FloatModel {
            files: version.float_files.clone(),
            behaviour: None,
        }
    }

    /// A model as it was when it was loaded.
    pub fn loaded(model: &ModelDescription, files: &[FileRecord]) -> Self {
        FloatModel {
            files: files.to_owned(),
            behaviour: Some(model.behaviour()),
        }
    }

    /// Whether these are the files of this one, whatever they are called.
    pub fn has_files(&self, files: &[FileRecord]) -> bool {
        let hashes = |files: &[FileRecord]| -> Vec<String> {
            files.iter().map(|file| file.sha256.clone()).collect()
        };
        hashes(&self.files) == hashes(files)
    }

    /// Why a model with this description was not made from this one, though the files are the same.
    fn differs(&self, made: &ModelDescription) -> Option<Unfit> {
        let own = self.behaviour.as_ref()?;
        let key = first_difference("", own, &made.behaviour())?;
        Some(Unfit::OtherDescription { key })
    }

    /// Why the model in a folder, as `quantize` writes it, was not made from this one.
    pub fn check_made(&self, folder: &Path) -> Result<(), Unfit> {
        let report = Report::load(folder).map_err(StoreError::from)?;
        if !self.has_files(&report.float_files) {
            return Err(Unfit::OtherFloat);
        }
        // One that does not load does not run either, and then says why.
        let made = ModelDescription::load(&folder.join(DESCRIPTION)).ok();
        made.and_then(|made| self.differs(&made))
            .map_or(Ok(()), Err)
    }
}

/// The first key whose value differs, with dots between the levels.
fn first_difference(path: &str, a: &serde_json::Value, b: &serde_json::Value) -> Option<String> {
    use serde_json::Value;
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let keys = x.keys().chain(y.keys().filter(|key| !x.contains_key(*key)));
            keys.into_iter().find_map(|key| {
                let path = match path {
                    "" => key.clone(),
                    path => format!("{path}.{key}"),
                };
                let of = |map: &serde_json::Map<_, _>| map.get(key).cloned().unwrap_or_default();
                first_difference(&path, &of(x), &of(y))
            })
        }
        _ => (a != b).then(|| path.to_owned()),
    }
}

/// Why a stored model is not the one to run.
#[derive(Debug, Error)]
pub enum Unfit {
    #[error(transparent)]
    Damaged(#[from] StoreError),
    #[error("it was made from another float model")]
    OtherFloat,
    #[error(
        "it was made from this float model with another description: `{key}` was changed since; \
         calibrate again"
    )]
    OtherDescription { key: String },
    #[error("its recipe has format {found}, this version has {}", recipe::FORMAT)]
    Recipe { found: u32 },
    #[error(
        "it was made on a CPU that multiplies 8-bit integers exactly; on this one its sums would saturate"
    )]
    Cpu,
    #[error("the gate refused it: {0}")]
    Refused(String),
    #[error("it was given up: {0}")]
    GivenUp(String),
    #[error(
        "another made it, and it was not judged on what this node saw: load it by name once the buffer holds out frames \
         enough, activate it with --unjudged, or set `store.allow_unjudged`"
    )]
    NotJudged,
}

/// What a node runs: `active/<node>.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    format: u32,
    /// Version that runs; the float model, if none.
    pub runs: Option<String>,
    /// Versions that ran and were not given up, the last one first. The one that runs is the first of them.
    pub good: Vec<String>,
    /// Versions that failed while they ran, and how. They are not chosen again by themselves.
    pub given_up: BTreeMap<String, String>,
    /// Versions that another made, of those in `good`, and on what grounds they run here.
    #[serde(default)]
    pub admitted: BTreeMap<String, Admitted>,
}

/// On what grounds a node runs a model that another made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// Frames of the node's own that it was judged on; 0: it was not, and a person wants it all the same.
    pub frames: usize,
    pub text: String,
}

/// What a model has to meet that a node goes to by itself.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    pub node: &'a str,
    /// The float model that the node runs.
    pub float: &'a FloatModel,
    /// Also one that another made and that this node's own frames have not judged.
    pub unjudged: bool,
}

/// What a node may start with.
#[derive(Debug, Default)]
pub struct Pick {
    pub version: Option<Version>,
    /// Where another made it, and it was admitted.
    pub admitted: Option<Admitted>,
    /// Better candidates that are unfit, and why.
    pub skipped: Vec<(String, Unfit)>,
}

/// What is in a store.
#[derive(Debug, Default)]
pub struct Listing {
    /// The oldest first.
    pub versions: Vec<Version>,
    /// Folders that are no model.
    pub damaged: Vec<StoreError>,
}

/// A store on the disk, shared with whoever else uses it.
#[derive(Debug, Clone)]
pub struct ModelStore {
    root: PathBuf,
    limits: Limits,
}

impl ModelStore {
    /// Nothing is read or made until it is needed.
    pub fn new(root: impl Into<PathBuf>, limits: Limits) -> Self {
        Self {
            root: root.into(),
            limits,
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The id of the stored model whose description this is.
    pub fn id_of(&self, description: &Path) -> Option<String> {
        let folder = description.parent()?;
        let id = folder.file_name()?.to_string_lossy().into_owned();
        (folder.parent()? == self.models()).then_some(id)
    }

    fn models(&self) -> PathBuf {
        self.root.join(MODELS)
    }

    fn selection_file(&self, node: &str) -> PathBuf {
        self.root.join(ACTIVE).join(format!("{}.json", key(node)))
    }

    /// Keeps others from changing the store until the file is dropped.
    fn lock(&self) -> Result<File, StoreError> {
        let path = self.root.join(LOCK);
        fs::create_dir_all(&self.root).map_err(io("make", &self.root))?;
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(false);
        let file = file.open(&path).map_err(io("open", &path))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(TryLockError::WouldBlock) => return Err(StoreError::Busy { path }),
                Err(TryLockError::Error(error)) => return Err(io("lock", &path)(error)),
            }
        }
    }

    /// Every model, and every folder that should be one.
    pub fn list(&self) -> Result<Listing, StoreError> {
        let mut listing = Listing::default();
        for folder in entries(&self.models())? {
            match Version::read(&folder) {
                Ok(version) => listing.versions.push(version),
                Err(error) => listing.damaged.push(error),
            }
        }
        let order = |v: &Version| (v.number, v.id.clone());
        listing.versions.sort_by_key(order);
        Ok(listing)
    }

    /// The model of this id, or the only one whose id or hash begins so.
    pub fn find(&self, wanted: &str) -> Result<Version, StoreError> {
        let versions = self.list()?.versions;
        let there = |v: &[Version]| v.iter().map(|v| v.id.clone()).collect::<Vec<_>>();
        let begins = |v: &&Version| {
            let digits = v.id.rsplit('-').next().unwrap_or_default();
            !wanted.is_empty() && (v.id.starts_with(wanted) || digits.starts_with(wanted))
        };
        if let Some(version) = versions.iter().find(|v| v.id == wanted) {
            return Ok(version.clone());
        }
        let found: Vec<Version> = versions.iter().filter(begins).cloned().collect();
        match found.as_slice() {
            [version] => Ok(version.clone()),
            [] => Err(StoreError::NoSuch {
                store: self.root.clone(),
                wanted: wanted.into(),
                there: there(&versions),
            }),
            several => Err(StoreError::Ambiguous {
                wanted: wanted.into(),
                there: there(several),
            }),
        }
    }

    /// A folder of the store to make a model in, by whatever process; gone with the value.
    pub fn incoming(&self) -> Result<Incoming, StoreError> {
        let _lock = self.lock()?;
        let parent = self.root.join(INCOMING);
        fs::create_dir_all(&parent).map_err(io("make", &parent))?;
        let folder = tempfile::Builder::new()
            .prefix("")
            .tempdir_in(&parent)
            .map_err(io("make a folder in", &parent))?;
        let path = folder.path().join(LOCK);
        let held = File::create(&path).map_err(io("make", &path))?;
        held.try_lock()
            .map_err(|error| io("lock", &path)(error.into()))?;
        Ok(Incoming {
            folder,
            _held: held,
        })
    }

    /// Removes what killed processes left behind. What a living one works on stays.
    pub fn clean(&self) -> Result<usize, StoreError> {
        if !self.root.is_dir() {
            return Ok(0);
        }
        let _lock = self.lock()?;
        let mut removed = 0;
        for file in entries(&self.root.join(ACTIVE))? {
            // Nobody writes while this holds the lock.
            if file.file_name().is_some_and(is_temporary) {
                remove(&file)?;
            }
        }
        for folder in entries(&self.root.join(INCOMING))? {
            // Made and locked under the store's lock, so one that is not locked has no maker.
            let held = File::open(folder.join(LOCK))
                .is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)));
            if !held {
                remove(&folder)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Takes a finished model folder, as `quantize` writes it, into the store and makes room for it.
    ///
    /// `made` is renamed, so it must lie on the store's disk, best in an [`Incoming`]. A model that is there already
    /// stays as it is.
    pub fn add(&self, made: &Path, node: Option<&str>) -> Result<Version, StoreError> {
        let report = Report::load(made)?;
        report.check_files(made)?;
        let mut files = Vec::new();
        for path in entries(made)? {
            if path.file_name().is_some_and(|name| *name != *VERSION_FILE) {
                let name = path.file_name().and_then(|name| name.to_str());
                if !name.is_some_and(files::is_plain_name) {
                    return Err(StoreError::NoModel(format!(
                        "{} is no file of a model",
                        path.display()
                    )));
                }
                let record = files::open_no_link(&path, limit::bytes())
                    .and_then(|file| FileRecord::of_open(&path, file, limit::bytes()));
                files.push(record.map_err(|error| io("read", &path)(error.into()))?);
            }
        }
        files.sort_by(|a, b| a.file.cmp(&b.file));
        let _lock = self.lock()?;
        let number = self.list()?.versions.iter().map(|v| v.number).max();
        let models = self.models();
        fs::create_dir_all(&models).map_err(io("make", &models))?;
        let accepted = report.check.verdict.accepted;
        let digits = &content(&files, accepted)[..DIGITS];
        let id = format!("{}-{digits}", key(&report.model));
        let folder = models.join(&id);
        if let Ok(there) = Version::read(&folder)
            && there.verify().is_ok()
        {
            return Ok(there);
        }
        let check = &report.check;
        let version = Version {
            format: FORMAT,
            id,
            number: number.unwrap_or(0).saturating_add(1),
            created: report.tool.created,
            node: node.map(str::to_owned),
            target: report.target,
            recipe: report.recipe.name.clone(),
            recipe_format: report.recipe.format,
            needs_exact_products: report.target == Target::Cpu && !report.reduced_range,
            calibration_frames: report.frames.calibration,
            held_out_frames: report.frames.held_out,
            verdict: check.verdict.clone(),
            f1: check.agreement.total.f1,
            speedup: Some(check.latency.backbone_speedup).filter(|s| s.is_finite()),
            float_files: report.float_files,
            files,
            folder: folder.clone(),
        };
        write_whole(&made.join(VERSION_FILE), &version)?;
        for path in entries(made)? {
            sync(&path)?;
        }
        sync(made)?;
        self.make_room(version.bytes(), &version.id)?;
        if fs::symlink_metadata(&folder).is_ok() {
            // Damaged, or it would have been taken above.
            remove(&folder)?;
        }
        fs::rename(made, &folder).map_err(io("move the model to", &folder))?;
        sync(&models)?;
        Ok(version)
    }

    /// Takes a copy of a folder that `quantize` wrote into the store, wherever it lies: its description, its reports, and
    /// the files that its report lists.
    ///
    /// These have to be regular files. What a link leads to may be anything that the node can read, and the store is for
    /// others to read.
    pub fn import(&self, folder: &Path) -> Result<Version, StoreError> {
        let report = folder.join(report::JSON_FILE);
        if !report.is_file() {
            return Err(StoreError::NoModel(format!(
                "{} holds no report.json; it is no folder that `quantize` wrote",
                folder.display()
            )));
        }
        let listed = Report::load(&report)?.int8_files;
        if let Some(odd) = listed.iter().find(|f| !files::is_plain_name(&f.file)) {
            return Err(no_name(&odd.file));
        }
        let names = [DESCRIPTION].into_iter().chain(REPORTS);
        let names: BTreeSet<&str> = names
            .chain(listed.iter().map(|record| record.file.as_str()))
            .collect();
        let mut sources = Vec::new();
        let mut bytes = 0u64;
        for name in names {
            let path = folder.join(name);
            match fs::symlink_metadata(&path) {
                Ok(found) => bytes = bytes.saturating_add(found.len()),
                Err(error) if error.kind() == ErrorKind::NotFound && REPORTS.contains(&name) => {
                    continue;
                }
                Err(error) => return Err(io("copy", &path)(error)),
            }
            sources.push((name, path));
        }
        self.import_with(bytes, |copy| {
            let mut left = limit::bytes();
            for (name, path) in sources {
                let copied = files::copy(&path, &copy.join(name), left);
                left -= copied.map_err(|error| match error {
                    FileError::TooLarge { .. } => limit::refused(&path, error).into(),
                    error => io("copy", &path)(error.into()),
                })?;
            }
            Ok(())
        })
    }

    /// Takes a model into the store whose files came in another way, by name and content.
    pub fn import_files(&self, files: &[(String, Vec<u8>)]) -> Result<Version, StoreError> {
        if let Some((name, _)) = files.iter().find(|(name, _)| !files::is_plain_name(name)) {
            return Err(no_name(name));
        }
        let names: BTreeSet<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        if names.len() < files.len() {
            return Err(StoreError::NoModel("a file is there twice".into()));
        }
        let bytes = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        self.import_with(bytes, |copy| {
            for (name, bytes) in files {
                let path = copy.join(name);
                fs::write(&path, bytes).map_err(io("write", &path))?;
            }
            Ok(())
        })
    }

    /// Has a folder filled on the store's disk first, so that the model appears there at once and whole. No node made it.
    /// There is room for its bytes before the first of them is written.
    fn import_with(
        &self,
        bytes: u64,
        fill: impl FnOnce(&Path) -> Result<(), StoreError>,
    ) -> Result<Version, StoreError> {
        limit::Scale::default().add(Path::new("its folder"), bytes)?;
        self.clean()?;
        {
            let _lock = self.lock()?;
            self.make_room(bytes, "")?;
        }
        let incoming = self.incoming()?;
        let copy = incoming.path().join("model");
        fs::create_dir(&copy).map_err(io("make", &copy))?;
        fill(&copy)?;
        let report = Report::load(&copy)?;
        report.check_files(&copy)?;
        let no_model = |error: String| StoreError::NoModel(format!("it is no model: {error}"));
        // What does not load here would not load in a node; weights in files beside the graphs have to be there, too.
        let model = ModelDescription::load(&copy.join(DESCRIPTION))
            .map_err(DetectorError::from)
            .and_then(|model| ModelFiles::of(&model))
            .map_err(|error| no_model(error.to_string()))?;
        for path in model.paths() {
            let name = path.file_name().unwrap_or_default();
            if !report.int8_files.iter().any(|f| *f.file == *name) {
                let name = name.display();
                return Err(no_model(format!(
                    "it needs {name}, of which {} has no hash",
                    report::JSON_FILE
                )));
            }
        }
        self.add(&copy, None)
    }

    /// Removes the oldest models until the limits hold with another one of so many bytes, but never what a node runs or
    /// would go back to. Nothing is removed where that would not do. A damaged folder of the new one's name counts as gone.
    fn make_room(&self, bytes: u64, new: &str) -> Result<(), StoreError> {
        let mut versions = self.list()?.versions;
        versions.retain(|version| version.id != new);
        let kept: Vec<String> = self
            .selections()?
            .into_iter()
            .flat_map(|(_, s)| s.runs.into_iter().chain(s.good.into_iter().take(1)))
            .collect();
        let bytes_of = |versions: &[Version]| {
            let all = versions.iter().map(Version::bytes);
            all.fold(bytes, u64::saturating_add)
        };
        let over = |versions: &[Version]| {
            versions.len() >= self.limits.models || bytes_of(versions) > self.limits.bytes
        };
        let mut leaving = Vec::new();
        while over(&versions) {
            // A refused one is of no use but its report; it goes first.
            let oldest = |v: &(usize, &Version)| (v.1.verdict.accepted, v.1.number);
            let free = versions.iter().enumerate();
            let free = free
                .filter(|(_, v)| !kept.contains(&v.id))
                .min_by_key(oldest);
            let Some((index, _)) = free else {
                if bytes_of(&versions) > self.limits.bytes {
                    return Err(StoreError::Full {
                        store: self.root.clone(),
                        needed: bytes,
                        most: self.limits.bytes,
                        kept: versions.iter().map(|v| v.id.clone()).collect(),
                    });
                }
                tracing::warn!(
                    "the model store {} is over its limits, and every model in it is in use",
                    self.root.display()
                );
                break;
            };
            leaving.push(versions.remove(index));
        }
        for version in leaving {
            tracing::info!("the model store is full: {} is removed", version.id);
            self.remove_folder(&version.folder)?;
        }
        Ok(())
    }

    /// Whether a model of so many bytes would find room, and if not, why.
    pub fn has_room(&self, bytes: u64) -> Result<(), StoreError> {
        let kept = self.selections()?.into_iter();
        let kept: BTreeSet<String> = kept
            .flat_map(|(_, s)| s.runs.into_iter().chain(s.good.into_iter().take(1)))
            .collect();
        let versions = self.list()?.versions.into_iter();
        let versions: Vec<Version> = versions.filter(|v| kept.contains(&v.id)).collect();
        let all = versions.iter().map(Version::bytes);
        match all.fold(bytes, u64::saturating_add) > self.limits.bytes {
            false => Ok(()),
            true => Err(StoreError::Full {
                store: self.root.clone(),
                needed: bytes,
                most: self.limits.bytes,
                kept: versions.into_iter().map(|v| v.id).collect(),
            }),
        }
    }

    /// Removes a model that no node runs.
    pub fn remove(&self, wanted: &str) -> Result<Version, StoreError> {
        let _lock = self.lock()?;
        let version = self.find(wanted)?;
        let users: Vec<String> = self
            .selections()?
            .into_iter()
            .filter(|(_, s)| s.runs.as_ref() == Some(&version.id))
            .map(|(node, _)| node)
            .collect();
        if !users.is_empty() {
            return Err(StoreError::InUse {
                id: version.id,
                nodes: users,
            });
        }
        self.remove_folder(&version.folder)?;
        Ok(version)
    }

    /// Out of sight by one rename, then away.
    fn remove_folder(&self, folder: &Path) -> Result<(), StoreError> {
        let parent = self.root.join(INCOMING);
        fs::create_dir_all(&parent).map_err(io("make", &parent))?;
        let name = folder.file_name().unwrap_or_default();
        let away = parent.join(name);
        remove(&away)?;
        fs::rename(folder, &away).map_err(io("remove", folder))?;
        remove(&away)
    }

    /// What a node runs; the default, where it never chose.
    pub fn selection(&self, node: &str) -> Result<Selection, StoreError> {
        read_selection(&self.selection_file(node))
    }

    /// What every node that ever chose runs, by node. Damaged files are left out.
    pub fn selections(&self) -> Result<Vec<(String, Selection)>, StoreError> {
        let mut found = Vec::new();
        for path in entries(&self.root.join(ACTIVE))? {
            if path.file_name().is_some_and(is_temporary) {
                continue;
            }
            if let (Some(node), Ok(selection)) = (path.file_stem(), read_selection(&path)) {
                found.push((node.to_string_lossy().into_owned(), selection));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    /// Changes what a node runs, in one step. A damaged record is replaced.
    fn select(
        &self,
        node: &str,
        change: impl FnOnce(&mut Selection),
    ) -> Result<Selection, StoreError> {
        let _lock = self.lock()?;
        let path = self.selection_file(node);
        let mut selection = match read_selection(&path) {
            Ok(selection) => selection,
            Err(StoreError::Damaged { .. }) => Selection::default(),
            Err(error) => return Err(error),
        };
        let before = selection.clone();
        change(&mut selection);
        selection.format = FORMAT;
        selection.good.truncate(REMEMBERED);
        let Selection { good, admitted, .. } = &mut selection;
        admitted.retain(|id, _| good.contains(id));
        if selection != before {
            let parent = self.root.join(ACTIVE);
            fs::create_dir_all(&parent).map_err(io("make", &parent))?;
            write_whole(&path, &selection)?;
        }
        Ok(selection)
    }

    /// Notes that a node runs a version from now on; what was said against it is forgotten.
    pub fn run(&self, node: &str, id: &str) -> Result<Selection, StoreError> {
        self.run_admitted(node, id, None)
    }

    /// The same, with the grounds on which it runs where another made it; without, those that were known stay.
    pub fn run_admitted(
        &self,
        node: &str,
        id: &str,
        grounds: Option<Admitted>,
    ) -> Result<Selection, StoreError> {
        self.select(node, |selection| {
            selection.good.retain(|known| known != id);
            selection.good.insert(0, id.into());
            selection.given_up.remove(id);
            if let Some(grounds) = grounds {
                selection.admitted.insert(id.into(), grounds);
            }
            selection.runs = Some(id.into());
        })
    }

    /// Notes that a node runs the float model from now on.
    pub fn run_float(&self, node: &str) -> Result<Selection, StoreError> {
        self.select(node, |selection| selection.runs = None)
    }

    /// Notes that a version failed on a node, which runs the float model from now on.
    pub fn give_up(&self, node: &str, id: &str, reason: &str) -> Result<Selection, StoreError> {
        self.select(node, |selection| {
            selection.runs = None;
            selection.good.retain(|known| known != id);
            selection.given_up.insert(id.into(), reason.into());
        })
    }

    /// The version that a node should start with: the one it ran last, or the best one before it that is whole and
    /// fits; none, where it ran the float model.
    pub fn pick(&self, terms: &Terms) -> Result<Pick, StoreError> {
        let selection = self.selection(terms.node)?;
        match selection.runs {
            Some(_) => Ok(self.last_good(&selection, terms)),
            None => Ok(Pick::default()),
        }
    }

    /// The version that ran last, running or not, that is whole and fits.
    pub fn last_good(&self, selection: &Selection, terms: &Terms) -> Pick {
        let mut pick = Pick::default();
        for id in &selection.good {
            let admitted = selection.admitted.get(id);
            let fit = self.fit(id, selection, terms.float).and_then(|version| {
                match admitted.is_some() || terms.unjudged || version.is_made_by(terms.node) {
                    true => Ok(version),
                    false => Err(Unfit::NotJudged),
                }
            });
            match fit {
                Ok(version) => {
                    pick.version = Some(version);
                    pick.admitted = admitted.cloned();
                    break;
                }
                Err(unfit) => pick.skipped.push((id.clone(), unfit)),
            }
        }
        pick
    }

    /// The version of this id, if it is whole and made from this float model for a machine like this one.
    pub fn fit(
        &self,
        id: &str,
        selection: &Selection,
        float: &FloatModel,
    ) -> Result<Version, Unfit> {
        if let Some(reason) = selection.given_up.get(id) {
            return Err(Unfit::GivenUp(reason.clone()));
        }
        let version = self.find(id)?;
        if !version.verdict.accepted {
            return Err(Unfit::Refused(version.verdict.reasons.join("; ")));
        }
        if version.recipe_format != recipe::FORMAT {
            return Err(Unfit::Recipe {
                found: version.recipe_format,
            });
        }
        if !float.has_files(&version.float_files) {
            return Err(Unfit::OtherFloat);
        }
        if version.needs_exact_products && !has_exact_u8s8() {
            return Err(Unfit::Cpu);
        }
        version.verify()?;
        // One that does not load does not run either, and then says why.
        let made = ModelDescription::load(&version.description()).ok();
        match made.and_then(|made| float.differs(&made)) {
            Some(unfit) => Err(unfit),
            None => Ok(version),
        }
    }
}

/// A folder of the store that a model is being made in; removed with this value.
#[derive(Debug)]
pub struct Incoming {
    folder: tempfile::TempDir,
    /// Says that its maker lives.
    _held: File,
}

impl Incoming {
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// A name as the name of a file.
fn key(name: &str) -> String {
    let plain = |c: char| match c {
        c if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') => c,
        _ => '.',
    };
    let key: String = name.trim_matches('/').chars().map(plain).collect();
    match key.trim_matches('.') {
        "" => "unnamed".into(),
        key => key.into(),
    }
}

/// Hash over what makes a model: its files without the reports, and whether it may run.
fn content(files: &[FileRecord], accepted: bool) -> String {
    let mut hash = Sha256::new();
    hash.update([u8::from(accepted)]);
    let of_model = |record: &&FileRecord| !REPORTS.contains(&record.file.as_str());
    for record in files.iter().filter(of_model) {
        hash.update(record.file.as_bytes());
        hash.update([0]);
        hash.update(record.sha256.as_bytes());
    }
    hex(&hash.finalize())
}

fn read_selection(path: &Path) -> Result<Selection, StoreError> {
    let damaged = |reason| StoreError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let read =
        files::open_no_link(path, MOST_RECORD).and_then(|file| files::read_open(file, MOST_RECORD));
    let text = match read {
        Ok(text) => text,
        Err(FileError::Io(error)) if error.kind() == ErrorKind::NotFound => {
            return Ok(Selection::default());
        }
        Err(FileError::Io(error)) => return Err(io("read", path)(error)),
        Err(error) => return Err(damaged(error.to_string())),
    };
    let selection: Selection =
        serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    if selection.format != FORMAT {
        return Err(damaged(format!(
            "it has format {}; this version reads {FORMAT}",
            selection.format
        )));
    }
    Ok(selection)
}

/// What lies in a folder; nothing, if it is not there.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let read = match fs::read_dir(folder) {
        Ok(read) => read,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io("read", folder)(error)),
    };
    let paths: Result<Vec<PathBuf>, _> = read.map(|entry| entry.map(|e| e.path())).collect();
    paths.map_err(io("read", folder))
}

/// Whether a name is that of a file on its way to another name.
fn is_temporary(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with('.')
}

fn write_whole(path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
    let written = files::replace::<std::io::Error>(path, |file| {
        serde_json::to_writer_pretty(&mut *file, value)?;
        writeln!(file)
    });
    written.map_err(io("write", path))
}

fn sync(path: &Path) -> Result<(), StoreError> {
    files::sync(path).map_err(io("write", path))
}

fn remove(path: &Path) -> Result<(), StoreError> {
    files::remove(path).map_err(io("remove", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "/vehicle/front";

    fn store(folder: &Path, models: usize) -> ModelStore {
        let limits = Limits {
            models,
            ..Limits::NONE
        };
        ModelStore::new(folder.join("store"), limits)
    }

    fn float() -> FloatModel {
        FloatModel {
            files: vec![FileRecord {
                file: "a.onnx".into(),
                bytes: 3,
                sha256: "f1".into(),
            }],
            behaviour: None,
        }
    }

    /// Adds a model whose weights are `weights`.
    fn add(store: &ModelStore, weights: &str, change: impl FnOnce(&mut Report)) -> Version {
        try_add(store, weights, change).unwrap()
    }

    fn try_add(
        store: &ModelStore,
        weights: &str,
        change: impl FnOnce(&mut Report),
    ) -> Result<Version, StoreError> {
        let incoming = store.incoming().unwrap();
        let made = incoming.path().join("model");
        fs::create_dir(&made).unwrap();
        let mut report = crate::ptq::report::tests::sample();
        report.model = "demo".into();
        report.float_files = float().files;
        report.check.verdict.accepted = true;
        report.reduced_range = true;
        change(&mut report);
        fs::write(made.join("model.yaml"), "name: demo\n").unwrap();
        fs::write(made.join("backbone.onnx"), weights).unwrap();
        report.int8_files = vec![FileRecord::of(&made.join("backbone.onnx")).unwrap()];
        let text = serde_json::to_string(&report).unwrap();
        fs::write(made.join("report.json"), text).unwrap();
        store.add(&made, Some(NODE))
    }

    /// What `NODE` is to start with.
    fn pick_for_node(store: &ModelStore, float: &FloatModel) -> Result<Pick, StoreError> {
        store.pick(&Terms {
            node: NODE,
            float,
            unjudged: false,
        })
    }

    fn ids(store: &ModelStore) -> Vec<String> {
        let versions = store.list().unwrap().versions;
        versions.into_iter().map(|v| v.id).collect()
    }

    #[test]
    fn a_model_is_named_by_its_content_and_there_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), 9);
        let first = add(&store, "one", |_| ());
        let second = add(&store, "two", |_| ());
        // The report says when and how long; that makes no other model.
        let again = add(&store, "one", |r| r.tool.created += 1);
        assert_eq!(again, first);
        assert_ne!(first.id, second.id);
        assert!(first.id.starts_with("demo-") && second.number > first.number);
        assert_eq!(ids(&store), [first.id.clone(), second.id.clone()]);
        assert_eq!(first.node.as_deref(), Some("/vehicle/front"));
        first.verify().unwrap();
        assert_eq!(store.id_of(&first.description()), Some(first.id.clone()));
        assert_eq!(store.id_of(Path::new("/models/demo/model.yaml")), None);
        let left = fs::read_dir(store.root().join(INCOMING)).unwrap();
        assert_eq!(left.count(), 0);
    }

    #[test]
    fn a_node_starts_with_the_newest_good_model_that_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), 9);
        assert!(pick_for_node(&store, &float()).unwrap().version.is_none());
        let old = add(&store, "old", |_| ());
        let new = add(&store, "new", |_| ());
        for version in [&old, &new] {
            store.run(NODE, &version.id).unwrap();
        }
        let pick = pick_for_node(&store, &float()).unwrap();
        assert_eq!((pick.version, pick.skipped.len()), (Some(new.clone()), 0));

        fs::write(new.folder.join("backbone.onnx"), "bad").unwrap();
        let pick = pick_for_node(&store, &float()).unwrap();
        assert_eq!(pick.version, Some(old.clone()));
        let (skipped, why) = &pick.skipped[0];
        assert_eq!(*skipped, new.id);
        assert!(why.to_string().contains("backbone.onnx"), "{why}");

        fs::remove_file(old.folder.join(VERSION_FILE)).unwrap();
        let pick = pick_for_node(&store, &float()).unwrap();
        assert!(pick.version.is_none() && pick.skipped.len() == 2);
        // What is damaged is listed, and made again it is whole.
        assert_eq!(store.list().unwrap().damaged.len(), 1);
        let mended = add(&store, "old", |_| ());
        assert_eq!(mended.id, old.id);
        assert_eq!(
            pick_for_node(&store, &float()).unwrap().version,
            Some(mended)
        );
    }

    #[test]
    fn models_that_do_not_fit_are_left_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), 9);
        let reason = |version: &Version, float: &FloatModel| {
            store.run(NODE, &version.id).unwrap();
            let pick = pick_for_node(&store, float).unwrap();
            assert!(pick.skipped.iter().all(|(id, _)| ids(&store).contains(id)));
            pick.skipped[0].1.to_string()
        };
        let good = add(&store, "good", |_| ());
        let mut other = float();
        other.files[0].sha256 = "f2".into();
        assert!(reason(&good, &other).contains("another float model"));
        let recipe = add(&store, "recipe", |r| r.recipe.format = 99);
        assert!(reason(&recipe, &float()).contains("format 99"));
        let refused = add(&store, "refused", |r| {
            r.check.verdict.accepted = false;
            r.check.verdict.reasons = vec!["lost cars".into()];
        });
        assert!(reason(&refused, &float()).contains("lost cars"));
        let exact = add(&store, "exact", |r| r.reduced_range = false);
        assert!(exact.needs_exact_products);
        store.run(NODE, &exact.id).unwrap();
        let picked = pick_for_node(&store, &float()).unwrap().version;
        assert_eq!(picked == Some(exact), has_exact_u8s8());
    }

    #[test]
    fn a_model_that_was_given_up_comes_back_only_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), 9);
        let (old, new) = (add(&store, "old", |_| ()), add(&store, "new", |_| ()));
        store.run(NODE, &old.id).unwrap();
        store.run(NODE, &new.id).unwrap();
        let selection = store.give_up(NODE, &new.id, "not finite").unwrap();
        assert_eq!(
            (&selection.runs, &selection.good),
            (&None, &vec![old.id.clone()])
        );
        // Float ran last, so float starts; asked for INT8, it is the one before.
        assert!(pick_for_node(&store, &float()).unwrap().version.is_none());
        let float = float();
        let terms = Terms {
            node: NODE,
            float: &float,
            unjudged: false,
        };
        let last = store.last_good(&selection, &terms);
        assert_eq!(last.version, Some(old));
        let why = store.fit(&new.id, &selection, &float).unwrap_err();
        assert!(why.to_string().contains("not finite"));
        let selection = store.run(NODE, &new.id).unwrap();
        assert!(selection.given_up.is_empty());
        assert_eq!(pick_for_node(&store, &float).unwrap().version, Some(new));
    }

    #[test]
    fn room_is_made_by_refused_and_old_models_and_never_by_those_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), 3);
        let used = add(&store, "used", |_| ());
        store.run(NODE, &used.id).unwrap();
        let old = add(&store, "old", |_| ());
        let refused = add(&store, "refused", |r| r.check.verdict.accepted = false);
        let third = add(&store, "third", |_| ());
        assert_eq!(ids(&store), [used.id.as_str(), &old.id, &third.id]);
        assert!(!refused.folder.exists());
        let fourth = add(&store, "fourth", |_| ());
        assert_eq!(ids(&store), [used.id.as_str(), &third.id, &fourth.id]);

        // Models differ by some bytes, as their reports do.
        let small = |bytes: u64| ModelStore {
            limits: Limits {
                bytes,
                ..Limits::NONE
            },
            ..store.clone()
        };
        let two = small(used.bytes() + fourth.bytes() + 100);
        let fifth = add(&two, "fifth", |_| ());
        assert_eq!(ids(&store), [used.id.as_str(), &fifth.id]);

        // Where it would not do, nothing leaves for it.
        let one = small(used.bytes() + 100);
        let full = try_add(&one, "sixth", |_| ()).unwrap_err();
        assert!(matches!(full, StoreError::Full { .. }), "{full}");
        let said = full.to_string();
        assert!(
            said.contains("store.max_mb") && said.contains(&used.id),
            "{said}"
        );
        assert!(one.has_room(fifth.bytes()).is_err() && two.has_room(fifth.bytes()).is_ok());
        assert_eq!(ids(&store), [used.id, fifth.id]);
    }

    #[test]
    fn what_a_living_process_makes_stays_and_what_a_dead_one_left_goes() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), 9);
        assert_eq!(store.clean().unwrap(), 0);
        let living = store.incoming().unwrap();
        store.run(NODE, "any").unwrap();
        let half = store.root().join(ACTIVE).join(".half");
        fs::write(&half, "{").unwrap();
        let parent = store.root().join(INCOMING);
        for (name, file) in [("dead", LOCK), ("older", "half")] {
            fs::create_dir(parent.join(name)).unwrap();
            fs::write(parent.join(name).join(file), "").unwrap();
        }
        assert_eq!(store.clean().unwrap(), 2);
        assert!(living.path().is_dir() && !half.exists());
        assert_eq!(store.selections().unwrap().len(), 1);
        drop(living);
        assert_eq!(fs::read_dir(parent).unwrap().count(), 0);
    }

    #[test]
    fn models_are_found_by_the_first_digits_of_their_hash() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), 9);
        let (first, second) = (add(&store, "1", |_| ()), add(&store, "2", |_| ()));
        let digits = first.id.strip_prefix("demo-").unwrap();
        assert_eq!(store.find(&digits[..6]).unwrap(), first);
        assert_eq!(store.find(&second.id).unwrap(), second);
        let ambiguous = store.find("demo-").unwrap_err().to_string();
        assert!(ambiguous.contains(&first.id) && ambiguous.contains(&second.id));
        let none = store.find("0000000000").unwrap_err().to_string();
        assert!(none.contains(&first.id), "{none}");
    }

    #[test]
    fn a_model_in_use_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), 9);
        let version = add(&store, "1", |_| ());
        store.run(NODE, &version.id).unwrap();
        let refusal = store.remove(&version.id).unwrap_err().to_string();
        assert!(refusal.contains("vehicle.front"), "{refusal}");
        store.run_float(NODE).unwrap();
        store.remove(&version.id).unwrap();
        assert!(ids(&store).is_empty());
        // What remains of it in the selection is a skipped candidate, no more.
        let selection = store.selection(NODE).unwrap();
        let terms = Terms {
            node: NODE,
            float: &float(),
            unjudged: true,
        };
        assert!(store.last_good(&selection, &terms).version.is_none());
    }

    #[test]
    fn a_damaged_selection_is_an_error_until_it_is_chosen_anew() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), 9);
        let version = add(&store, "1", |_| ());
        store.run(NODE, &version.id).unwrap();
        let path = store.selection_file(NODE);
        fs::write(&path, "{\"format\":1,\"ru").unwrap();
        let error = pick_for_node(&store, &float()).unwrap_err().to_string();
        assert!(error.contains("vehicle.front.json"), "{error}");
        assert!(store.selections().unwrap().is_empty());
        store.run(NODE, &version.id).unwrap();
        assert_eq!(
            pick_for_node(&store, &float()).unwrap().version,
            Some(version)
        );
    }

    #[test]
    fn a_record_that_is_no_regular_file_of_sane_size_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), 9);
        let version = add(&store, "1", |_| ());
        store.run(NODE, &version.id).unwrap();
        let records = [
            version.folder.join(VERSION_FILE),
            store.selection_file(NODE),
        ];
        let kept = records.each_ref().map(|path| fs::read(path).unwrap());
        let read = |index: usize| match index {
            0 => store.list().unwrap().damaged.pop().unwrap(),
            _ => store.selection(NODE).unwrap_err(),
        };
        for (index, path) in records.iter().enumerate() {
            fs::remove_file(path).unwrap();
            std::os::unix::fs::symlink("/dev/zero", path).unwrap();
            let error = read(index).to_string();
            assert!(error.contains("a symbolic link"), "{error}");
            fs::remove_file(path).unwrap();
            File::create(path).unwrap().set_len(1 << 40).unwrap();
            let error = read(index).to_string();
            assert!(error.contains("at most"), "{error}");
            fs::write(path, &kept[index]).unwrap();
        }
        assert_eq!(
            pick_for_node(&store, &float()).unwrap().version,
            Some(version)
        );
    }

    /// Writes a model's record anew.
    fn rewrite(version: &Version, change: impl FnOnce(&mut Version)) {
        let mut record = version.clone();
        change(&mut record);
        let text = serde_json::to_string(&record).unwrap();
        fs::write(version.folder.join(VERSION_FILE), text).unwrap();
    }

    #[test]
    fn a_record_names_files_of_its_folder_only_and_they_are_what_it_was_named_by() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), 9);
        let version = add(&store, "1", |r| r.check.verdict.accepted = false);
        let damaged = |part: &str| {
            let said = store.list().unwrap().damaged.pop().unwrap().to_string();
            assert!(said.contains(part), "{said}");
            assert!(store.find(&version.id).is_err());
        };
        for odd in ["/dev/zero", "../model.yaml", "a/b", ""] {
            rewrite(&version, |v| v.files[0].file = odd.into());
            damaged("no name of a file");
        }
        rewrite(&version, |v| v.files[0].sha256 = "00".repeat(32));
        damaged("was named by");
        // The gate's word is part of the name.
        rewrite(&version, |v| v.verdict.accepted = true);
        damaged("was named by");
        rewrite(&version, |v| v.files.retain(|f| f.file != "model.yaml"));
        damaged("no model.yaml");
        rewrite(&version, |v| v.files.push(v.files[0].clone()));
        damaged("a file twice");
        // Sizes and numbers at the end of their range.
        rewrite(&version, |v| {
            v.number = u64::MAX;
            v.files.iter_mut().for_each(|f| f.bytes = u64::MAX);
        });
        let odd = store.find(&version.id).unwrap();
        assert_eq!(odd.bytes(), u64::MAX);
        assert!(odd.verify().unwrap_err().to_string().contains("too large"));
        assert_eq!(add(&store, "2", |_| ()).number, u64::MAX);
    }

    #[test]
    fn a_stored_file_that_is_no_regular_one_is_damage_and_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), 9);
        let version = add(&store, "1", |_| ());
        let file = version.folder.join("backbone.onnx");
        let aside = folder.path().join("elsewhere.onnx");
        fs::rename(&file, &aside).unwrap();
        let damaged = |part: &str| {
            let said = version.verify().unwrap_err().to_string();
            assert!(
                said.contains("backbone.onnx") && said.contains(part),
                "{said}"
            );
            fs::remove_file(&file).unwrap();
        };
        std::os::unix::fs::symlink(&aside, &file).unwrap();
        damaged("a symbolic link");
        std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
        damaged("a symbolic link");
        {
            use rustix::fs::{CWD, FileType, Mode, mknodat};
            mknodat(CWD, &file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        }
        damaged("a FIFO");
        // A folder of the store that lies elsewhere is none of its models.
        fs::rename(&aside, &file).unwrap();
        let moved = folder.path().join("moved");
        fs::rename(&version.folder, &moved).unwrap();
        std::os::unix::fs::symlink(&moved, &version.folder).unwrap();
        assert!(store.list().unwrap().versions.is_empty());
    }

    #[test]
    fn a_folder_whose_files_are_not_those_of_its_report_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), 9);
        let made = folder.path().join("made");
        let write = |weights: &str, change: &dyn Fn(&mut Report)| {
            let _ = fs::remove_dir_all(&made);
            fs::create_dir(&made).unwrap();
            fs::write(made.join("model.yaml"), "no: model").unwrap();
            fs::write(made.join("backbone.onnx"), "as made").unwrap();
            let mut report = crate::ptq::report::tests::sample();
            report.int8_files = vec![FileRecord::of(&made.join("backbone.onnx")).unwrap()];
            change(&mut report);
            fs::write(made.join("backbone.onnx"), weights).unwrap();
            fs::write(
                made.join("report.json"),
                serde_json::to_string(&report).unwrap(),
            )
            .unwrap();
        };
        let refused = |part: &str| {
            let files = fs::read_dir(&made).unwrap().map(|entry| {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                (name, fs::read(entry.path()).unwrap())
            });
            let files: Vec<_> = files.collect();
            for refused in [
                store.import(&made),
                store.import_files(&files),
                store.add(&made, Some(NODE)),
            ] {
                let said = refused.unwrap_err().to_string();
                // The hashes come before anything is parsed, so it is not told that this is no description.
                assert!(
                    said.contains(part) && !said.contains("it is no model"),
                    "{said}"
                );
            }
        };
        for damaged in ["as mad3", "as made and more", "as"] {
            write(damaged, &|_| ());
            refused("backbone.onnx has ");
        }
        write("as made", &|report| report.int8_files.clear());
        refused("names none of them");
        for name in ["../backbone.onnx", "/dev/zero", ".."] {
            write("as made", &|report| report.int8_files[0].file = name.into());
            refused("no name of a file in a model's folder");
        }
        write("as made", &|report| report.int8_files[0].bytes = u64::MAX);
        refused("backbone.onnx");
        assert!(ids(&store).is_empty());
    }

    #[test]
    fn what_comes_into_the_store_are_regular_files() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), 9);
        let version = add(&store, "1", |_| ());
        let linked = folder.path().join("linked");
        fs::create_dir(&linked).unwrap();
        for name in ["model.yaml", "backbone.onnx", "report.json"] {
            std::os::unix::fs::symlink(version.folder.join(name), linked.join(name)).unwrap();
        }
        let said = store.import(&linked).unwrap_err().to_string();
        assert!(said.contains("symbolic link"), "{said}");
        // What the report does not list stays behind, whatever it is.
        for name in ["model.yaml", "backbone.onnx", "report.json"] {
            fs::remove_file(linked.join(name)).unwrap();
            fs::copy(version.folder.join(name), linked.join(name)).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", linked.join("passwd")).unwrap();
        let said = store.import(&linked).unwrap_err().to_string();
        assert!(
            said.contains("it is no model"),
            "it comes to the description: {said}"
        );
    }

    #[test]
    fn a_model_that_another_made_starts_only_where_it_was_admitted() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), 9);
        let version = add(&store, "1", |_| ());
        rewrite(&version, |v| v.node = Some("/vehicle/rear".into()));
        store.run(NODE, &version.id).unwrap();
        let picked = pick_for_node(&store, &float()).unwrap();
        assert!(picked.version.is_none());
        assert!(matches!(picked.skipped[0].1, Unfit::NotJudged));
        let float = float();
        let lenient = Terms {
            node: NODE,
            float: &float,
            unjudged: true,
        };
        assert!(store.pick(&lenient).unwrap().version.is_some());
        let own = Terms {
            node: "vehicle/rear",
            unjudged: false,
            ..lenient
        };
        store.run(own.node, &version.id).unwrap();
        assert!(store.pick(&own).unwrap().version.is_some());
        let grounds = Admitted {
            frames: 4,
            text: "it agrees".into(),
        };
        store
            .run_admitted(NODE, &version.id, Some(grounds.clone()))
            .unwrap();
        let picked = pick_for_node(&store, &float).unwrap();
        assert!(picked.version.is_some() && picked.admitted == Some(grounds.clone()));
        // Chosen again it is still known; given up it is not.
        let selection = store.run(NODE, &version.id).unwrap();
        assert_eq!(selection.admitted.get(&version.id), Some(&grounds));
        let selection = store.give_up(NODE, &version.id, "bad").unwrap();
        assert!(selection.admitted.is_empty());
    }

    #[test]
    fn names_of_nodes_and_models_are_plain_file_names() {
        assert_eq!(key("/vehicle/front"), "vehicle.front");
        assert_eq!(key("../../etc"), "etc");
        assert_eq!(key("//"), "unnamed");
        assert_eq!(key("a b<c"), "a.b.c");
    }
}
