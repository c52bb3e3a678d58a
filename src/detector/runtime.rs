//! ONNX Runtime: finding its library, and making sessions.
//!
//! The library is loaded when the first model is, so a program without it still starts and can say
//! what is missing. It is looked for in this order:
//!
//! 1. `ORT_DYLIB_PATH`, a file; when it is set nothing else is tried.
//! 2. Beside the executable, and in `../lib` from there.
//! 3. The `onnxruntime` wheel of a Python environment: `VIRTUAL_ENV`, then `build/ros2/venv`, then
//!    other environments in `build/`, where `build` lies above the executable or the working directory.
//! 4. The system's library folders.

use std::env;
use std::ffi::{CStr, c_char};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;

use ort::environment::Environment;
use ort::ep::{self, ExecutionProvider, ExecutionProviderDispatch};
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::onnx::Outline;
use crate::onnx::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorType, TypeProto, TypeValue,
    ValueInfoProto, data_type,
};

/// Oldest ONNX Runtime whose interface is enough: 1.x.
pub const OLDEST_MINOR: u32 = ort::MINOR_VERSION;

/// The loaded ONNX Runtime. There is one per process.
#[derive(Debug)]
pub struct Runtime {
    environment: Environment,
    library: PathBuf,
    version: String,
}

impl Runtime {
    /// The shared library in use.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// As the library states it, for example `1.22.0`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The providers that this library was built with and this crate can use.
    pub fn providers(&self) -> Vec<Provider> {
        Provider::ALL
            .into_iter()
            .filter(|p| p.is_available())
            .collect()
    }
}

/// What runs the graph's nodes. Nodes that a provider cannot run fall back to the CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    #[default]
    Cpu,
    Cuda,
    TensorRt,
    OpenVino,
}

impl Provider {
    pub const ALL: [Provider; 4] = [
        Provider::Cpu,
        Provider::Cuda,
        Provider::TensorRt,
        Provider::OpenVino,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Provider::Cpu => "cpu",
            Provider::Cuda => "cuda",
            Provider::TensorRt => "tensorrt",
            Provider::OpenVino => "openvino",
        }
    }

    /// Only after [`init`]: asks the loaded library.
    fn is_available(self) -> bool {
        match self {
            Provider::Cpu => ep::CPU::is_available(),
            Provider::Cuda => ep::CUDA::is_available(),
            Provider::TensorRt => ep::TensorRT::is_available(),
            Provider::OpenVino => ep::OpenVINO::is_available(),
        }
        .unwrap_or(false)
    }

    fn dispatch(self) -> Option<ExecutionProviderDispatch> {
        match self {
            Provider::Cpu => None,
            Provider::Cuda => Some(ep::CUDA::default().build()),
            Provider::TensorRt => Some(ep::TensorRT::default().build()),
            Provider::OpenVino => Some(ep::OpenVINO::default().build()),
        }
        .map(ExecutionProviderDispatch::error_on_failure)
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Provider {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Provider::ALL
            .into_iter()
            .find(|p| p.name().eq_ignore_ascii_case(text))
            .ok_or_else(|| format!("no provider `{text}`; one of {}", names(&Provider::ALL)))
    }
}

fn names(providers: &[Provider]) -> String {
    let names: Vec<&str> = providers.iter().map(|p| p.name()).collect();
    names.join(", ")
}

/// How sessions run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeOptions {
    /// Threads within an operator; 0 means one per core.
    pub threads: usize,
    pub provider: Provider,
    /// Start of the file names that ONNX Runtime's profiles are written to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile_to: Option<PathBuf>,
    /// Memory goes back to the system after each run on the CPU instead of being kept for the next: a little slower, and
    /// for inner tensors of large networks gigabytes less.
    #[serde(skip)]
    pub lean: bool,
}

/// Why ONNX Runtime or a session is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error(
        "no usable ONNX Runtime (1.{OLDEST_MINOR} or newer). Set ORT_DYLIB_PATH to libonnxruntime.so, \
         put it beside the executable, or `pip install onnxruntime` in an active environment. Tried:\n{}",
        tried.iter().map(|t| format!("  {t}")).collect::<Vec<_>>().join("\n")
    )]
    NotFound { tried: Vec<String> },
    #[error("ONNX Runtime {} was loaded but does not start: {message}", library.display())]
    Start { library: PathBuf, message: String },
    #[error(
        "this ONNX Runtime ({}, {version}) was not built with the provider `{provider}`; it has: {}. \
         Choose one of these, or point ORT_DYLIB_PATH to a build that has it",
        library.display(), names(available)
    )]
    NoProvider {
        provider: Provider,
        library: PathBuf,
        version: String,
        available: Vec<Provider>,
    },
    #[error("ONNX Runtime cannot load {model}: {message}")]
    Session { model: String, message: String },
    #[error(
        "{model} has {what} {found}, and this ONNX Runtime ({version}) takes no newer than {newest}. {advice}, or point \
         ORT_DYLIB_PATH to a newer ONNX Runtime"
    )]
    TooNew {
        model: String,
        /// The kind of version.
        what: &'static str,
        found: i64,
        newest: i64,
        /// Of the library.
        version: String,
        /// How to convert the file.
        advice: String,
    },
}

/// Loads ONNX Runtime, once; later calls return the same.
pub fn init() -> Result<&'static Runtime, RuntimeError> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    static LOADING: std::sync::Mutex<()> = std::sync::Mutex::new(());

    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    // A failure is not remembered, so that a library installed meanwhile is found.
    let _guard = LOADING.lock().unwrap_or_else(|poison| poison.into_inner());
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let runtime = load()?;
    tracing::info!(
        "ONNX Runtime {} from {}",
        runtime.version,
        runtime.library.display()
    );
    Ok(RUNTIME.get_or_init(|| runtime))
}

fn load() -> Result<Runtime, RuntimeError> {
    let mut tried = Vec::new();
    for library in candidates() {
        let version = match version_of(&library) {
            Ok(version) => version,
            Err(problem) => {
                tried.push(format!("{}: {problem}", library.display()));
                continue;
            }
        };
        let minor = version
            .split('.')
            .nth(1)
            .and_then(|part| part.parse::<u32>().ok());
        if minor.is_none_or(|minor| minor < OLDEST_MINOR) {
            tried.push(format!(
                "{}: version {version} is too old",
                library.display()
            ));
            continue;
        }
        let start_error = |message: String| RuntimeError::Start {
            library: library.clone(),
            message,
        };
        let environment = ort::init_from(&library)
            .map_err(|e| start_error(e.to_string()))?
            .with_name("centerpoint_ptq")
            .with_telemetry(false)
            .build()
            .map_err(|e| start_error(e.to_string()))?;
        return Ok(Runtime {
            environment,
            library,
            version,
        });
    }
    if tried.is_empty() {
        tried.push("no candidate file".into());
    }
    Err(RuntimeError::NotFound { tried })
}

/// The first member of ONNX Runtime's entry table that never changed: `OrtApiBase`.
#[repr(C)]
struct ApiBase {
    _get_api: *const std::ffi::c_void,
    get_version_string: unsafe extern "C" fn() -> *const c_char,
}

fn version_of(library: &Path) -> Result<String, String> {
    // SAFETY: loading runs the library's initialisers. The path is one that the user or the
    // installation names as ONNX Runtime, whose initialisers have no preconditions.
    let loaded = unsafe { libloading::Library::new(library) }.map_err(|e| with_cause(&e))?;
    // SAFETY: in every ONNX Runtime since 1.0 this symbol is a function of no arguments that
    // returns a pointer to a static `OrtApiBase`.
    let version = unsafe {
        let entry: libloading::Symbol<unsafe extern "C" fn() -> *const ApiBase> = loaded
            .get(b"OrtGetApiBase\0")
            .map_err(|_| "is not an ONNX Runtime (no OrtGetApiBase)".to_string())?;
        let base = entry();
        if base.is_null() {
            return Err("gives no API table".into());
        }
        let text = ((*base).get_version_string)();
        if text.is_null() {
            return Err("gives no version".into());
        }
        CStr::from_ptr(text).to_string_lossy().into_owned()
    };
    // Unloading and loading again would run the library's destructors in between for nothing.
    std::mem::forget(loaded);
    Ok(version)
}

/// The linker's own words are in the cause.
fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", with_cause(cause)),
        None => error.to_string(),
    }
}

/// Files to try, best first.
fn candidates() -> Vec<PathBuf> {
    if let Some(path) = env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()) {
        let path = PathBuf::from(path);
        if !path.is_dir() {
            return vec![path];
        }
        let inside = libraries_in(&path);
        return match inside.is_empty() {
            true => vec![path.join("libonnxruntime.so")],
            false => inside,
        };
    }
    let mut found = Vec::new();
    let executable = env::current_exe().ok();
    if let Some(folder) = executable.as_deref().and_then(Path::parent) {
        found.extend(libraries_in(folder));
        found.extend(libraries_in(&folder.join("../lib")));
    }
    if let Some(environment) = env::var_os("VIRTUAL_ENV") {
        found.extend(wheel_libraries(Path::new(&environment)));
    }
    let starts = [
        executable,
        env::current_dir().ok(),
        // Set by cargo for tests and `cargo run`, whose target folder may lie elsewhere.
        env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from),
    ];
    for start in starts.iter().flatten() {
        for above in start.ancestors() {
            let build = above.join("build");
            found.extend(wheel_libraries(&build.join("ros2/venv")));
            for environment in sorted_entries(&build) {
                if environment.join("pyvenv.cfg").is_file() {
                    found.extend(wheel_libraries(&environment));
                }
            }
        }
    }
    let system = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&system).collect();
    for folder in [
        "/usr/local/lib",
        "/opt/onnxruntime/lib",
        "/usr/lib",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
    ] {
        folders.push(folder.into());
    }
    for folder in folders {
        found.extend(libraries_in(&folder));
    }
    let mut unique: Vec<PathBuf> = Vec::new();
    for path in found {
        let path = path.canonicalize().unwrap_or(path);
        if !unique.contains(&path) {
            unique.push(path);
        }
    }
    // Last, whatever the dynamic linker finds by itself.
    unique.push("libonnxruntime.so".into());
    unique
}

fn wheel_libraries(environment: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for lib in ["lib", "lib64"] {
        for python in sorted_entries(&environment.join(lib)) {
            found.extend(libraries_in(&python.join("site-packages/onnxruntime/capi")));
        }
    }
    found
}

/// `libonnxruntime.so` or, failing that, versioned ones, newest name first.
fn libraries_in(folder: &Path) -> Vec<PathBuf> {
    let plain = folder.join("libonnxruntime.so");
    if plain.is_file() {
        return vec![plain];
    }
    let mut found: Vec<PathBuf> = sorted_entries(folder)
        .into_iter()
        .filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with("libonnxruntime.so."))
        })
        .collect();
    found.reverse();
    found
}

fn sorted_entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    entries.sort();
    entries
}

/// A session for an ONNX file.
pub fn session_from_file(path: &Path, options: &RuntimeOptions) -> Result<Session, RuntimeError> {
    let model = path.display().to_string();
    builder(options, &model)?
        .commit_from_file(path)
        .map_err(|e| session_error(&model, e))
}

/// A session for a graph in memory; `name` is what errors call it.
pub fn session_from_bytes(
    bytes: &[u8],
    name: &str,
    options: &RuntimeOptions,
) -> Result<Session, RuntimeError> {
    builder(options, name)?
        .commit_from_memory(bytes)
        .map_err(|e| session_error(name, e))
}

/// What is behind the refusal of a graph, where its versions are: [`RuntimeError::TooNew`], else the error as it is.
pub fn explain(error: RuntimeError, outline: &Outline) -> RuntimeError {
    let (RuntimeError::Session { model, .. }, Ok(runtime)) = (&error, init()) else {
        return error;
    };
    // Found by trial: the library's interface does not tell them, and messages change from version to version.
    let newest = |found: i64, takes: &dyn Fn(i64) -> bool| {
        // Neither is near this for many years.
        let mut older = (1..found.min(64)).rev();
        if found < 1 || takes(found) {
            return None;
        }
        older.find(|version| takes(*version))
    };
    let too_new = |what, found, newest, advice| RuntimeError::TooNew {
        model: model.clone(),
        what,
        found,
        newest,
        version: runtime.version.clone(),
        advice,
    };
    let ir = outline.ir_version();
    // Every runtime that is new enough takes this operator set.
    if let Some(newest) = newest(ir, &|version| takes(version, 11)) {
        let advice = format!(
            "Export it again with an older onnx package, or, in Python, load it, set `model.ir_version = {newest}` \
             and save it"
        );
        return too_new("IR version", ir, newest, advice);
    }
    let opset = outline.opset();
    if let Some(newest) = newest(opset, &|version| takes(ir, version)) {
        let advice = format!(
            "Export it again with `opset_version={newest}` or less, or convert it with onnx.version_converter"
        );
        return too_new("operator set", opset, newest, advice);
    }
    error
}

/// Whether the library takes graphs of these versions.
fn takes(ir_version: i64, opset: i64) -> bool {
    let value = |name: &str| ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto {
            value: Some(TypeValue::Tensor(TensorType {
                elem_type: Some(data_type::FLOAT),
                shape: None,
            })),
            denotation: None,
        }),
        ..Default::default()
    };
    let proto = ModelProto {
        ir_version: Some(ir_version),
        opset_import: vec![OperatorSetIdProto {
            domain: None,
            version: Some(opset),
        }],
        graph: Some(GraphProto {
            name: Some("versions".into()),
            node: vec![NodeProto::new("Identity", "identity", &["x"], &["y"])],
            input: vec![value("x")],
            output: vec![value("y")],
            ..Default::default()
        }),
        ..Default::default()
    };
    let options = RuntimeOptions {
        threads: 1,
        ..RuntimeOptions::default()
    };
    session_from_bytes(&proto.encode_to_vec(), "a graph of one node", &options).is_ok()
}

fn session_error<R>(model: &str, error: ort::Error<R>) -> RuntimeError {
    RuntimeError::Session {
        model: model.into(),
        message: error.to_string(),
    }
}

fn builder(options: &RuntimeOptions, model: &str) -> Result<SessionBuilder, RuntimeError> {
    let runtime = init()?;
    if !options.provider.is_available() {
        return Err(RuntimeError::NoProvider {
            provider: options.provider,
            library: runtime.library.clone(),
            version: runtime.version.clone(),
            available: runtime.providers(),
        });
    }
    let mut builder =
        SessionBuilder::new(&runtime.environment).map_err(|e| session_error(model, e))?;
    builder = builder
        .with_intra_threads(options.threads)
        .map_err(|e| session_error(model, e))?
        .with_optimization_level(GraphOptimizationLevel::All)
        .map_err(|e| session_error(model, e))?
        // Worker threads that spin on after a run take the cores from the next session and from
        // everybody else on the vehicle: on two busy cores, a fifth of the processor time.
        .with_config_entry("session.force_spinning_stop", "1")
        .map_err(|e| session_error(model, e))?;
    if let Some(provider) = options.provider.dispatch() {
        builder = builder
            .with_execution_providers([provider])
            .map_err(|e| session_error(model, e))?;
    }
    if options.lean {
        builder = builder
            .with_execution_providers([ep::CPU::default().with_arena_allocator(false).build()])
            .map_err(|e| session_error(model, e))?
            .with_memory_pattern(false)
            .map_err(|e| session_error(model, e))?;
    }
    if let Some(prefix) = &options.profile_to {
        builder = builder
            .with_profiling(prefix)
            .map_err(|e| session_error(model, e))?;
    }
    Ok(builder)
}
