//! What callers can ask the node for.
//!
//! Requests without arguments are `std_srvs/Trigger`, for scripts and for callers that lack this project's messages;
//! those with arguments have types of their own, in `centerpoint_ptq_msgs`.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use clap::ValueEnum;
use futures::stream::SelectAll;
use futures::{Stream, StreamExt};
use r2r::centerpoint_ptq_msgs::srv::{ListModels, LoadModel, SaveBuffer, StartCalibration};
use r2r::std_srvs::srv::Trigger;
use r2r::{QosProfile, ServiceRequest, WrappedServiceTypeSupport};

use super::{NodeError, entity, messages};
use crate::calibration::buffer::Snapshot;
use crate::calibration::store::{Listing, Selection};
use crate::detector::Precision;
use crate::node::Supervisor;
use crate::node::pipeline::Active;
use crate::node::reach::Reach;
use crate::node::supervisor::{Loaded, Order, Refusal, Started, Wanted, on_a_thread_that_may_wait};
use crate::ptq::recipe::Target;
use crate::text::shown;

/// Requests without arguments.
#[derive(Debug, Clone, Copy)]
enum Plain {
    Calibrate,
    Cancel,
    State,
    UseFloat,
    UseInt8,
    RollBack,
    Snapshot,
    Models,
}

enum Asked {
    Plain(Plain, ServiceRequest<Trigger::Service>),
    Start(ServiceRequest<StartCalibration::Service>),
    Save(ServiceRequest<SaveBuffer::Service>),
    Load(ServiceRequest<LoadModel::Service>),
    List(ServiceRequest<ListModels::Service>),
}

type Requests = Pin<Box<dyn Stream<Item = Asked> + Send>>;

/// All services of the node, as one stream of requests.
pub struct Services(SelectAll<Requests>);

impl Services {
    pub fn create(node: &mut r2r::Node) -> Result<Self, NodeError> {
        let mut all = Vec::new();
        for (name, plain) in [
            ("~/calibrate", Plain::Calibrate),
            ("~/cancel_calibration", Plain::Cancel),
            ("~/calibration_state", Plain::State),
            ("~/use_float", Plain::UseFloat),
            ("~/use_int8", Plain::UseInt8),
            ("~/roll_back", Plain::RollBack),
            ("~/snapshot", Plain::Snapshot),
            ("~/models", Plain::Models),
        ] {
            all.push(service(node, name, move |asked| {
                Asked::Plain(plain, asked)
            })?);
        }
        all.push(service(node, "~/start_calibration", Asked::Start)?);
        all.push(service(node, "~/save_buffer", Asked::Save)?);
        all.push(service(node, "~/load_model", Asked::Load)?);
        all.push(service(node, "~/list_models", Asked::List)?);
        Ok(Self(all.into_iter().collect()))
    }

    /// Answers as long as the node lives.
    ///
    /// `reach`: where files may lie that callers name.
    pub async fn serve(mut self, supervisor: Arc<Supervisor>, reach: Arc<Reach>) {
        while let Some(asked) = self.0.next().await {
            // A swap waits for the frame under way, a model takes seconds to load; others can ask meanwhile.
            tokio::spawn(answer(asked, supervisor.clone(), reach.clone()));
        }
    }
}

fn service<S: WrappedServiceTypeSupport + 'static>(
    node: &mut r2r::Node,
    name: &str,
    asked: impl Fn(ServiceRequest<S>) -> Asked + Send + 'static,
) -> Result<Requests, NodeError> {
    let requests = node
        .create_service::<S>(name, QosProfile::services_default())
        .map_err(|source| entity(format!("the service {name}"), source))?;
    Ok(Box::pin(requests.map(asked)))
}

fn respond<S: WrappedServiceTypeSupport + 'static>(
    asked: ServiceRequest<S>,
    response: S::Response,
) {
    if let Err(error) = asked.respond(response) {
        tracing::debug!("a caller got no answer: {error}");
    }
}

async fn answer(asked: Asked, supervisor: Arc<Supervisor>, reach: Arc<Reach>) {
    match asked {
        Asked::Plain(plain, asked) => {
            let (success, message) = told(answer_plain(plain, &supervisor).await);
            respond(asked, Trigger::Response { success, message });
        }
        Asked::Start(asked) => {
            let request = asked.message.clone();
            let started = match on_a_thread_that_may_wait(move || order(request, &reach)).await {
                Ok(order) => supervisor.calibrate(order).await,
                Err(refusal) => Err(refusal),
            };
            let calibration = started.as_ref().map_or(0, |started| started.number);
            let (success, message) = told(started.map(|started| begun(&started)));
            let response = StartCalibration::Response {
                success,
                message,
                calibration,
            };
            respond(asked, response);
        }
        Asked::Save(asked) => {
            let folder = given(&asked.message.path);
            let place = move || {
                let place = folder.map(|folder| reach.within("path", Path::new(&folder)));
                Ok(place.transpose()?)
            };
            let saved = match on_a_thread_that_may_wait(place).await {
                Ok(folder) => supervisor.save_buffer(folder).await,
                Err(refusal) => Err(refusal),
            };
            let mut response = SaveBuffer::Response::default();
            if let Ok(saved) = &saved {
                response.path = saved.bag.display().to_string();
                response.frames = saved.calibration as u32;
                response.held_out_frames = saved.held_out as u32;
            }
            (response.success, response.message) = told(saved.map(|saved| written(&saved)));
            respond(asked, response);
        }
        Asked::Load(mut asked) => {
            let request = std::mem::take(&mut asked.message);
            let wanted = move || {
                Ok(match given(&request.model) {
                    Some(name) if name.contains('/') => {
                        let folder = reach.existing("model", Path::new(&name))?;
                        Wanted::Named(folder.to_string_lossy().into_owned())
                    }
                    Some(id) => Wanted::Named(id),
                    None => {
                        let files = request.files.into_iter();
                        Wanted::Files(files.map(|file| (file.name, file.data)).collect())
                    }
                })
            };
            let loaded = match on_a_thread_that_may_wait(wanted).await {
                Ok(wanted) => supervisor.load_model(wanted).await,
                Err(refusal) => Err(refusal),
            };
            let stored_id = loaded
                .as_ref()
                .map_or("", |loaded| &loaded.version.id)
                .to_owned();
            let (success, message) = told(loaded.map(|loaded| taken_over(&loaded)));
            let response = LoadModel::Response {
                success,
                message,
                stored_id,
            };
            respond(asked, response);
        }
        Asked::List(asked) => {
            let mut response = ListModels::Response::default();
            match supervisor.models().await {
                Ok((listing, selection)) => {
                    response.success = true;
                    response.message = problems(&listing);
                    let models = listing.versions.iter();
                    response.models = models.map(|v| messages::model(v, &selection)).collect();
                }
                Err(refusal) => response.message = refusal.to_string(),
            }
            respond(asked, response);
        }
    }
}

async fn answer_plain(plain: Plain, supervisor: &Arc<Supervisor>) -> Result<String, Refusal> {
    match plain {
        Plain::Calibrate => {
            let started = supervisor.calibrate(Order::default()).await?;
            Ok(begun(&started))
        }
        Plain::Cancel => supervisor.cancel().map(|()| "cancelling".into()),
        Plain::State => Ok(supervisor.status().to_json()),
        Plain::UseFloat => Ok(runs(&supervisor.select(Precision::Float).await?)),
        Plain::UseInt8 => Ok(runs(&supervisor.select(Precision::Int8).await?)),
        Plain::RollBack => {
            let (active, skipped) = supervisor.roll_back().await?;
            let mut message = runs(&active);
            if !skipped.is_empty() {
                message += &format!("; not chosen: {}", skipped.join("; "));
            }
            Ok(message)
        }
        Plain::Snapshot => Ok(written(&supervisor.save_buffer(None).await?)),
        Plain::Models => {
            let (listing, selection) = supervisor.models().await?;
            Ok(listed(&listing, &selection))
        }
    }
}

/// Success and message of an answer.
fn told(result: Result<String, Refusal>) -> (bool, String) {
    match result {
        Ok(message) => (true, message),
        Err(refusal) => (false, refusal.to_string()),
    }
}

fn given(text: &str) -> Option<String> {
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn order(request: StartCalibration::Request, reach: &Reach) -> Result<Order, Refusal> {
    let file = |what, text: &str| {
        let found = given(text).map(|path| reach.existing(what, Path::new(&path)));
        found.transpose()
    };
    let target = match given(&request.target) {
        Some(name) => match Target::from_str(&name, false) {
            Ok(target) => Some(target),
            Err(_) => return Err(Refusal::Target(shown(&name))),
        },
        None => None,
    };
    Ok(Order {
        recipe: file("recipe", &request.recipe)?,
        bag: file("bag", &request.bag)?,
        topic: given(&request.topic),
        target,
    })
}

fn begun(started: &Started) -> String {
    format!(
        "calibration from {} started; ~/status says how it goes",
        started.source
    )
}

fn runs(active: &Active) -> String {
    format!(
        "{} model '{}' runs",
        active.model.precision, active.model.id
    )
}

fn taken_over(loaded: &Loaded) -> String {
    format!("{}; {}", runs(&loaded.active), loaded.judgement.text)
}

fn written(saved: &Snapshot) -> String {
    let few = match saved.few_sweeps {
        0 => String::new(),
        few => format!("; {few} of them have fewer sweeps than the model wants"),
    };
    format!(
        "wrote {} frames to calibrate with and {} to check with to {}{few}",
        saved.calibration,
        saved.held_out,
        saved.bag.display()
    )
}

fn problems(listing: &Listing) -> String {
    let damaged = listing.damaged.iter().map(|error| error.to_string());
    damaged.collect::<Vec<_>>().join("; ")
}

/// The store as JSON.
fn listed(listing: &Listing, selection: &Selection) -> String {
    let text = serde_json::json!({
        "models": listing.versions,
        "selection": selection,
        "problems": listing.damaged.iter().map(|e| e.to_string()).collect::<Vec<_>>(),
    });
    text.to_string()
}
