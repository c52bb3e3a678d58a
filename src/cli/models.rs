//! `centerpoint_ptq models`: what INT8 models there are, what they are worth, and which one a node starts with.
//!
//! A running node is not told; it changes by its own services. What is activated here it takes at its next start.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};
use serde_json::{Value, json};

use super::Ended;
use super::columns::{number, table};
use super::terminal::{print, print_json};
use crate::calibration::ModelStore;
use crate::calibration::store::{Admitted, FloatModel, Limits, Listing, Selection, Version};
use crate::detector::ModelDescription;
use crate::node::settings::{Settings, ros_home};
use crate::ptq::check::Evidence;
use crate::ptq::report::{Report, date};

#[derive(clap::Args)]
pub struct Args {
    /// The store; by default the node's, below ROS_HOME
    #[arg(long, global = true)]
    store: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// All models, the oldest first, and who runs them
    List {
        /// Write JSON instead of text
        #[arg(long)]
        json: bool,
        /// Read every file and compare it with its hash
        #[arg(long)]
        check: bool,
    },
    /// Two models side by side, and where their recipes differ
    Compare { first: String, second: String },
    /// Take a model that `quantize` wrote into the store, as a copy
    Add {
        /// The folder
        folder: PathBuf,
    },
    /// Choose the model that a node starts with
    Activate {
        /// The model, or the first digits of its hash
        #[arg(required_unless_present = "float")]
        model: Option<String>,
        /// The node, as /centerpoint; may be left out where the store knows one only
        #[arg(long)]
        node: Option<String>,
        /// The float model, instead of a stored one
        #[arg(long, conflicts_with = "model")]
        float: bool,
        /// Description of the node's float model: also check that the stored one was made from it
        #[arg(long, value_name = "MODEL")]
        for_model: Option<PathBuf>,
        /// Also a model that the node neither made itself nor judged on what it saw
        #[arg(long, conflicts_with = "float")]
        unjudged: bool,
    },
    /// Remove models that no node runs
    Remove {
        #[arg(required = true)]
        models: Vec<String>,
    },
}

pub fn run(args: Args) -> anyhow::Result<Ended> {
    let root = match args.store {
        Some(root) => root,
        None => Settings::default().store_folder(&ros_home()),
    };
    // A person who adds a model does not mean that another one goes.
    let store = ModelStore::new(root, Limits::NONE);
    match args.command {
        Command::List { json, check } => list(&store, json, check),
        Command::Compare { first, second } => {
            print(&compare(&store.find(&first)?, &store.find(&second)?)?)
        }
        Command::Add { folder } => print(&format!("added {}\n", store.import(&folder)?.id)),
        Command::Activate {
            model,
            node,
            float: _,
            for_model,
            unjudged,
        } => activate(
            &store,
            model.as_deref(),
            node,
            for_model.as_deref(),
            unjudged,
        ),
        Command::Remove { models } => models.iter().try_for_each(|wanted| {
            let version = store.remove(wanted)?;
            print(&format!("removed {}\n", version.id))
        }),
    }?;
    Ok(Ended::Done)
}

fn list(store: &ModelStore, json: bool, check: bool) -> anyhow::Result<()> {
    let Listing { versions, damaged } = store.list()?;
    let mut problems: Vec<String> = damaged.iter().map(|e| e.to_string()).collect();
    if check {
        let broken = versions.iter().filter_map(|v| v.verify().err());
        problems.extend(broken.map(|error| error.to_string()));
    }
    let selections = store.selections()?;
    if json {
        let text = json!({
            "store": store.root(),
            "models": versions,
            "nodes": selections.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            "problems": problems,
        });
        print_json(&text)?;
    } else {
        let mut text = listing(store, &versions, &selections);
        for problem in &problems {
            text += &format!("! {problem}\n");
        }
        print(&text)?;
    }
    ensure!(
        problems.is_empty(),
        "{} of the store's folders are damaged; `models remove`, or remove the folder",
        problems.len()
    );
    Ok(())
}

fn megabytes(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}

fn listing(store: &ModelStore, versions: &[Version], selections: &[(String, Selection)]) -> String {
    let bytes: u64 = versions.iter().map(Version::bytes).sum();
    let mut text = format!(
        "{}: {} models, {}\n",
        store.root().display(),
        versions.len(),
        megabytes(bytes)
    );
    if versions.is_empty() {
        return text;
    }
    let head = [
        "model",
        "made",
        "recipe",
        "target",
        "frames",
        "F1",
        "judged",
        "not judged",
        "speed",
        "size",
        "state",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    for version in versions {
        rows.push(vec![
            version.id.clone(),
            date(version.created),
            version.recipe.clone(),
            version.target.to_string(),
            version.calibration_frames.to_string(),
            number(version.f1),
            names(version, version.verdict.judged_classes()),
            names(version, version.verdict.unjudged_classes()),
            version.speedup.map_or("-".into(), |s| format!("{s:.2}x")),
            megabytes(version.bytes()),
            state(version, selections),
        ]);
    }
    text += &table(&rows);
    for version in versions {
        for remark in &version.verdict.remarks {
            text += &format!("! {}: {remark}\n", version.id);
        }
    }
    text
}

/// Classes of a verdict, with the boxes that there were.
fn names<'a>(version: &Version, classes: impl Iterator<Item = &'a Evidence>) -> String {
    let classes = classes.map(|class| format!("{class} ({})", class.boxes()));
    match classes.collect::<Vec<_>>().join(", ") {
        // Of an older version, whose record does not say.
        none if none.is_empty() && version.verdict.coverage().is_none() => "?".into(),
        none if none.is_empty() => "-".into(),
        names => names,
    }
}

/// Who runs a model, ran it, or gave it up.
fn state(version: &Version, selections: &[(String, Selection)]) -> String {
    let mut words = Vec::new();
    if !version.verdict.accepted {
        words.push("refused".to_owned());
    }
    for (node, selection) in selections {
        if selection.runs.as_ref() == Some(&version.id) {
            words.push(format!("runs on {node}"));
        } else if let Some(reason) = selection.given_up.get(&version.id) {
            words.push(format!("given up by {node}: {reason}"));
        } else if selection.good.contains(&version.id) {
            words.push(format!("ran on {node}"));
        }
    }
    words.join("; ")
}

/// Figures of two reports in columns, then the keys of the recipes that differ.
fn compare(first: &Version, second: &Version) -> anyhow::Result<String> {
    let reports = [Report::load(&first.folder)?, Report::load(&second.folder)?];
    let both = |of: &dyn Fn(&Report) -> String| reports.iter().map(of).collect::<Vec<_>>();
    let mut rows = vec![vec![
        "model".to_owned(),
        first.id.clone(),
        second.id.clone(),
    ]];
    let mut row = |name: String, of: &dyn Fn(&Report) -> String| {
        let mut cells = vec![name];
        cells.extend(both(of));
        rows.push(cells);
    };
    row("made".into(), &|r| date(r.tool.created));
    row("by version".into(), &|r| r.tool.version.clone());
    row("on".into(), &|r| r.tool.machine.clone());
    row("recipe".into(), &|r| r.recipe.name.clone());
    row("target".into(), &|r| r.target.to_string());
    row("accepted".into(), &|r| match r.check.verdict.accepted {
        true => "yes".into(),
        false => "no".into(),
    });
    row("frames, calibration".into(), &|r| {
        r.frames.calibration.to_string()
    });
    row("frames, held out".into(), &|r| {
        r.frames.held_out.to_string()
    });
    row("ONNX files".into(), &|r| {
        megabytes(r.int8_files.iter().map(|f| f.bytes).sum())
    });
    row("backbone, float / INT8".into(), &|r| {
        format!("{:.2}", r.check.latency.backbone_speedup)
    });
    row("F1 to float".into(), &|r| {
        number(r.check.agreement.total.f1)
    });
    row("centre m, mean".into(), &|r| {
        number(r.check.agreement.total.centre.map(|s| s.mean))
    });
    row("size m, mean".into(), &|r| {
        number(r.check.agreement.total.size.map(|s| s.mean))
    });
    row("yaw rad, mean".into(), &|r| {
        number(r.check.agreement.total.yaw.map(|s| s.mean))
    });
    let mut classes: Vec<&str> = Vec::new();
    for class in reports.iter().flat_map(|r| &r.check.agreement.classes) {
        if !classes.contains(&class.class.as_str()) {
            classes.push(&class.class);
        }
    }
    for class in classes {
        row(format!("F1 of {class}"), &|r| {
            let found = r.check.agreement.classes.iter();
            number(found.filter(|c| c.class == class).find_map(|c| c.all.f1))
        });
        row(format!("judged on {class}"), &|r| {
            let verdict = &r.check.verdict;
            let judged = verdict.judged_classes().find(|e| e.class == class);
            let lacking = verdict.unjudged_classes().find(|e| e.class == class);
            match (judged, lacking) {
                (Some(e), _) => format!("{} boxes", e.boxes()),
                (None, Some(e)) => format!("NOT, {} of {} boxes", e.boxes(), e.needed),
                (None, None) => "-".into(),
            }
        });
    }
    let mut text = table(&rows);
    for (version, report) in [first, second].into_iter().zip(&reports) {
        for remark in &report.check.verdict.remarks {
            text += &format!("! {}: {remark}\n", version.id);
        }
    }
    let same_float = first.float_files == second.float_files;
    if !same_float {
        text += "They were made from different float models.\n";
    }
    if reports[0].frames.sha256 != reports[1].frames.sha256 {
        text += "They were calibrated and judged on different frames, so small differences say nothing.\n";
    }
    let mut keys = Vec::new();
    let recipes = [&reports[0].recipe, &reports[1].recipe].map(serde_json::to_value);
    let [a, b] = recipes;
    differences("", &a?, &b?, &mut keys);
    match keys.is_empty() {
        true => text += "The recipes are the same.\n",
        false => text += &format!("The recipes differ in\n{}", table(&keys)),
    }
    Ok(text)
}

/// Keys whose values differ, with dots between the levels, and both values.
fn differences(path: &str, a: &Value, b: &Value, found: &mut Vec<Vec<String>>) {
    if a == b {
        return;
    }
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let mut keys: Vec<&String> = x.keys().chain(y.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let path = match path {
                    "" => key.clone(),
                    path => format!("{path}.{key}"),
                };
                let none = Value::Null;
                let (a, b) = (x.get(key).unwrap_or(&none), y.get(key).unwrap_or(&none));
                differences(&path, a, b, found);
            }
        }
        _ => {
            let text = |v: &Value| match v {
                Value::Null => "-".to_owned(),
                v => v.to_string(),
            };
            found.push(vec![path.to_owned(), text(a), text(b)]);
        }
    }
}

fn activate(
    store: &ModelStore,
    wanted: Option<&str>,
    node: Option<String>,
    for_model: Option<&Path>,
    unjudged: bool,
) -> anyhow::Result<()> {
    let node = match node {
        Some(node) => node,
        None => only_node(store)?,
    };
    let Some(wanted) = wanted else {
        store.run_float(&node)?;
        return print(&format!("{node} starts with its float model\n"));
    };
    let version = store.find(wanted)?;
    let float = match for_model {
        Some(path) => FloatModel::of(&ModelDescription::load(path)?)?,
        None => FloatModel::of_version(&version),
    };
    // Whoever names a model knows that it was given up; everything else would only fail at the start.
    let fresh = Selection::default();
    store
        .fit(&version.id, &fresh, &float)
        .map_err(|unfit| anyhow::anyhow!("{} cannot be activated: {unfit}", version.id))?;
    let known = store.selection(&node).unwrap_or_default().admitted;
    let grounds = match version.is_made_by(&node) || known.contains_key(&version.id) {
        true => None,
        false if unjudged => Some(Admitted {
            frames: 0,
            text: format!(
                "not judged on what this node saw: it was activated with --unjudged; {}",
                version.as_made()
            ),
        }),
        false => bail!(
            "{node} has not judged {} on what it saw, and does not start with it unjudged: have the running node load it \
             (~/load_model), which judges it, or say --unjudged",
            version.id
        ),
    };
    store.run_admitted(&node, &version.id, grounds)?;
    print(&format!("{node} starts with {}\n", version.id))
}

fn only_node(store: &ModelStore) -> anyhow::Result<String> {
    let nodes: Vec<String> = store.selections()?.into_iter().map(|(n, _)| n).collect();
    match nodes.as_slice() {
        [node] => Ok(node.clone()),
        [] => bail!("no node used the store yet; name the one that is to, as --node /centerpoint"),
        several => bail!(
            "several nodes use the store, name one with --node: {}",
            several.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_the_keys_at_any_depth_and_both_values() {
        let a = json!({"weights": {"bits": 8, "p": 2.0}, "name": "a", "extra": [1]});
        let b = json!({"weights": {"bits": 4, "p": 2.0}, "name": "a", "sensitivity": {"keep": 4}});
        let mut found = Vec::new();
        differences("", &a, &b, &mut found);
        let text: Vec<String> = found.iter().map(|r| r.join(" ")).collect();
        assert_eq!(
            text,
            [
                "extra [1] -",
                "sensitivity - {\"keep\":4}",
                "weights.bits 8 4"
            ]
        );
    }
}
