//! The server's side of the action protocol, on plain services and topics.
//!
//! r2r's own action server (0.9.7) reads freed memory on a result request for a goal that it does not know, keeps its loop
//! busy once a goal has ended (r2r issue 136), and does not tell whether a result was ever asked for. An action is three
//! services and two topics below its name; here they are served one by one, so that it is known which goals still owe a
//! result.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use r2r::action_msgs::msg::{GoalInfo, GoalStatus, GoalStatusArray};
use r2r::action_msgs::srv::CancelGoal;
use r2r::centerpoint_ptq_msgs::action::Calibrate::{
    Feedback, FeedbackMessage, GetResult, Goal as Wanted, Result as Ended, SendGoal,
};
use r2r::unique_identifier_msgs::msg::UUID;
use r2r::{Clock, Publisher, QosProfile, ServiceRequest, WrappedServiceTypeSupport};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::{NodeError, entity, lock, messages, now_on, publish, publisher};
use crate::bag::Stamp;

/// For so long the results of goals are kept for those who ask late, as rclcpp does.
const KEPT: Duration = Duration::from_secs(15 * 60);
/// An ended goal whose result nobody has asked for so long is given up when the server ends. A client asks as soon as it
/// knows that its goal was accepted.
const UNASKED: Duration = Duration::from_millis(1500);
/// What an answer may take to its reader: the middleware drops what was sent, but not read, when its writer goes, and
/// services have no acknowledgement that could be waited for.
const DELIVERY: Duration = Duration::from_secs(1);
/// Cancel requests of one goal that may wait.
const CANCELS: usize = 10;

type Id = [u8; 16];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Executing,
    Canceling,
    Succeeded,
    Canceled,
    Aborted,
}

impl State {
    fn number(self) -> i8 {
        match self {
            State::Executing => GoalStatus::STATUS_EXECUTING as i8,
            State::Canceling => GoalStatus::STATUS_CANCELING as i8,
            State::Succeeded => GoalStatus::STATUS_SUCCEEDED as i8,
            State::Canceled => GoalStatus::STATUS_CANCELED as i8,
            State::Aborted => GoalStatus::STATUS_ABORTED as i8,
        }
    }
}

/// What is known of a goal. `Q` are requests for its result, `C` is where it takes its cancel requests.
struct Entry<Q, C> {
    accepted: Stamp,
    state: State,
    cancels: C,
    waiting: Vec<Q>,
    end: Option<End>,
    answered: Option<Instant>,
}

struct End {
    at: Instant,
    result: Ended,
}

/// All goals, without ROS.
struct Book<Q, C>(BTreeMap<Id, Entry<Q, C>>);

impl<Q, C> Default for Book<Q, C> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<Q, C> Book<Q, C> {
    /// `false` where there is such a goal already.
    fn accept(&mut self, id: Id, accepted: Stamp, cancels: C, now: Instant) -> bool {
        self.0.retain(|_, goal| {
            let ended = goal.end.as_ref();
            ended.is_none_or(|end| now.duration_since(end.at) < KEPT)
        });
        if self.0.contains_key(&id) {
            return false;
        }
        let entry = Entry {
            accepted,
            state: State::Executing,
            cancels,
            waiting: Vec::new(),
            end: None,
            answered: None,
        };
        self.0.insert(id, entry);
        true
    }

    /// From here on the goal ends as cancelled.
    fn cancel(&mut self, id: &Id) {
        if let Some(goal) = self.0.get_mut(id)
            && goal.state == State::Executing
        {
            goal.state = State::Canceling;
        }
    }

    /// Gives out the requests that have waited for this end, with what they are to be told.
    fn end(&mut self, id: &Id, swapped: bool, result: Ended, now: Instant) -> (i8, Vec<Q>) {
        let Some(goal) = self.0.get_mut(id) else {
            return (GoalStatus::STATUS_UNKNOWN as i8, Vec::new());
        };
        goal.state = match (goal.state, swapped) {
            (State::Canceling, _) => State::Canceled,
            (_, true) => State::Succeeded,
            (_, false) => State::Aborted,
        };
        goal.end = Some(End { at: now, result });
        let waiting = std::mem::take(&mut goal.waiting);
        if !waiting.is_empty() {
            goal.answered = Some(now);
        }
        (goal.state.number(), waiting)
    }

    /// The answer to a request for a result, with the request, where there is one yet.
    fn ask(&mut self, id: &Id, request: Q, now: Instant) -> Option<(Q, i8, Ended)> {
        let Some(goal) = self.0.get_mut(id) else {
            let unknown = GoalStatus::STATUS_UNKNOWN as i8;
            return Some((request, unknown, Ended::default()));
        };
        match &goal.end {
            Some(end) => {
                goal.answered = Some(now);
                Some((request, goal.state.number(), end.result.clone()))
            }
            None => {
                goal.waiting.push(request);
                None
            }
        }
    }

    /// Goals that a request to cancel is meant for: one by its id, or those accepted until a time, or all.
    fn meant(&self, id: &Id, until: Stamp) -> Vec<&Id> {
        let (any, ever) = (*id == Id::default(), until.0 == 0);
        let meant = |(key, goal): &(&Id, &Entry<Q, C>)| match (any, ever) {
            (true, true) => true,
            (true, false) => goal.accepted <= until,
            (false, true) => *key == id,
            (false, false) => *key == id || goal.accepted <= until,
        };
        self.0.iter().filter(meant).map(|(key, _)| key).collect()
    }

    /// Whether every goal has ended, and what it came to has reached who asked for it, or nobody asks.
    fn is_settled(&self, now: Instant) -> bool {
        let since = |at: Instant| now.saturating_duration_since(at);
        self.0
            .values()
            .all(|goal| match (&goal.end, goal.answered) {
                (None, _) => false,
                (Some(_), Some(at)) => since(at) >= DELIVERY,
                (Some(end), None) => since(end.at) >= UNASKED,
            })
    }

    fn unasked(&self) -> usize {
        let unasked = |goal: &&Entry<Q, C>| goal.answered.is_none();
        self.0.values().filter(unasked).count()
    }
}

/// The services and topics of the action `~/calibrate`.
pub struct Requests {
    send_goal: Asked<SendGoal::Service>,
    cancel_goal: Asked<CancelGoal::Service>,
    get_result: Asked<GetResult::Service>,
    answers: Answers,
}

/// The requests of a service, as they come.
type Asked<S> = Pin<Box<dyn Stream<Item = ServiceRequest<S>> + Send>>;

struct Answers {
    feedback: Publisher<FeedbackMessage>,
    status: Publisher<GoalStatusArray>,
    clock: Arc<Mutex<Clock>>,
}

type Goals = Book<ServiceRequest<GetResult::Service>, mpsc::Sender<Cancel>>;

struct Shared {
    goals: Mutex<Goals>,
    /// Publishers may move between threads, but not be shared.
    answers: Mutex<Answers>,
}

impl Shared {
    fn publish_status(&self) {
        let goals = lock(&self.goals);
        let status_list = goals.0.iter().map(|(id, goal)| GoalStatus {
            goal_info: info(id, goal.accepted),
            status: goal.state.number(),
        });
        let status = GoalStatusArray {
            status_list: status_list.collect(),
        };
        publish(&lock(&self.answers).status, &status);
    }
}

fn info(id: &Id, accepted: Stamp) -> GoalInfo {
    GoalInfo {
        goal_id: UUID { uuid: id.to_vec() },
        stamp: messages::time(accepted),
    }
}

/// The id of the message, padded or cut to the length that ids have.
fn id(uuid: &UUID) -> Id {
    let mut id = Id::default();
    id.iter_mut()
        .zip(&uuid.uuid)
        .for_each(|(to, from)| *to = *from);
    id
}

fn respond<S: WrappedServiceTypeSupport + 'static>(
    what: &str,
    request: ServiceRequest<S>,
    response: S::Response,
) {
    if let Err(error) = request.respond(response) {
        tracing::warn!("{what} could not be sent: {error}");
    }
}

/// A goal under way.
pub struct Goal {
    id: Id,
    pub wanted: Wanted,
    shared: Arc<Shared>,
}

impl Goal {
    pub fn feed_back(&self, stage: String, fraction: f32, eta_s: f32, detail: String) {
        let message = FeedbackMessage {
            goal_id: UUID {
                uuid: self.id.to_vec(),
            },
            feedback: Feedback {
                stage,
                fraction,
                eta_s,
                detail,
            },
        };
        publish(&lock(&self.shared.answers).feedback, &message);
    }

    /// Ends the goal, as cancelled where a request for that was accepted, and tells who asks.
    pub fn finish(self, swapped: bool, result: Ended) {
        let (status, waiting) = {
            let mut goals = lock(&self.shared.goals);
            goals.end(&self.id, swapped, result.clone(), Instant::now())
        };
        self.shared.publish_status();
        for request in waiting {
            let result = result.clone();
            let response = GetResult::Response { status, result };
            respond("the result of a calibration", request, response);
        }
    }
}

/// A request to cancel a goal. Dropped, it is refused.
pub struct Cancel {
    id: Id,
    shared: Arc<Shared>,
    granted: oneshot::Sender<bool>,
}

impl Cancel {
    pub fn accept(self) {
        lock(&self.shared.goals).cancel(&self.id);
        self.shared.publish_status();
        // Who asked may be gone.
        let _ = self.granted.send(true);
    }

    pub fn reject(self) {
        let _ = self.granted.send(false);
    }
}

/// Puts the action on the graph.
pub fn create(node: &mut r2r::Node) -> Result<Requests, NodeError> {
    let latched = QosProfile::default().keep_last(1).transient_local();
    let feedback = QosProfile::default().keep_last(10);
    Ok(Requests {
        send_goal: service(node, "send_goal")?,
        cancel_goal: service(node, "cancel_goal")?,
        get_result: service(node, "get_result")?,
        answers: Answers {
            feedback: publisher(node, &part("feedback"), feedback)?,
            status: publisher(node, &part("status"), latched)?,
            clock: node.get_ros_clock(),
        },
    })
}

fn part(name: &str) -> String {
    format!("~/calibrate/_action/{name}")
}

fn service<S: WrappedServiceTypeSupport + 'static>(
    node: &mut r2r::Node,
    name: &str,
) -> Result<Asked<S>, NodeError> {
    let name = part(name);
    let requests = node
        .create_service::<S>(&name, QosProfile::services_default())
        .map_err(|source| entity(format!("the service {name}"), source))?;
    Ok(Box::pin(requests))
}

impl Requests {
    /// Has every goal attended to. Once `ending` is raised no goal is accepted any more; it returns when those that there
    /// are have ended and their results were delivered.
    pub async fn serve<F: Future<Output = ()> + Send + 'static>(
        mut self,
        mut ending: watch::Receiver<bool>,
        attend: impl Fn(Goal, mpsc::Receiver<Cancel>) -> F,
    ) {
        let shared = Arc::new(Shared {
            goals: Mutex::default(),
            answers: Mutex::new(self.answers),
        });
        shared.publish_status();
        let mut attended = JoinSet::new();
        let mut pulse = tokio::time::interval(Duration::from_millis(20));
        let mut over = false;
        loop {
            tokio::select! {
                Some(request) = self.send_goal.next() => {
                    match over {
                        false => if let Some((goal, cancels)) = accept(&shared, request) {
                            attended.spawn(attend(goal, cancels));
                        },
                        true => respond("an answer", request, SendGoal::Response::default()),
                    }
                }
                Some(request) = self.cancel_goal.next() => {
                    tokio::spawn(cancel(shared.clone(), request));
                }
                Some(request) = self.get_result.next() => {
                    let goal = id(&request.message.goal_id);
                    let answer = lock(&shared.goals).ask(&goal, request, Instant::now());
                    if let Some((request, status, result)) = answer {
                        let response = GetResult::Response { status, result };
                        respond("the result of a calibration", request, response);
                    }
                }
                Some(_) = attended.join_next() => {}
                // An error means that who could raise it is gone, as at the end.
                _ = ending.wait_for(|raised| *raised), if !over => over = true,
                _ = pulse.tick(), if over => {
                    let goals = lock(&shared.goals);
                    if attended.is_empty() && goals.is_settled(Instant::now()) {
                        if goals.unasked() > 0 {
                            tracing::info!("nobody asked for the results of {} goals", goals.unasked());
                        }
                        return;
                    }
                }
            }
        }
    }
}

fn accept(
    shared: &Arc<Shared>,
    mut request: ServiceRequest<SendGoal::Service>,
) -> Option<(Goal, mpsc::Receiver<Cancel>)> {
    let goal = id(&request.message.goal_id);
    let wanted = std::mem::take(&mut request.message.goal);
    let (sender, cancels) = mpsc::channel(CANCELS);
    let now = now_on(&lock(&shared.answers).clock).unwrap_or(Stamp(0));
    let accepted = lock(&shared.goals).accept(goal, now, sender, Instant::now());
    let response = SendGoal::Response {
        accepted,
        stamp: messages::time(now),
    };
    respond("the answer to a goal", request, response);
    shared.publish_status();
    let goal = Goal {
        id: goal,
        wanted,
        shared: shared.clone(),
    };
    accepted.then_some((goal, cancels))
}

/// Asks the goals that a request is meant for, and answers once all have decided.
async fn cancel(shared: Arc<Shared>, request: ServiceRequest<CancelGoal::Service>) {
    let wanted = &request.message.goal_info;
    let (by_id, until) = (id(&wanted.goal_id), messages::stamp(&wanted.stamp));
    let meant: Vec<_> = {
        let goals = lock(&shared.goals);
        let meant = goals.meant(&by_id, until).into_iter();
        let entries = meant.filter_map(|id| goals.0.get(id).map(|goal| (*id, goal)));
        entries
            .map(|(id, goal)| (id, goal.accepted, goal.cancels.clone()))
            .collect()
    };
    let mut response = CancelGoal::Response {
        return_code: match meant.is_empty() && by_id != Id::default() {
            true => CancelGoal::Response::ERROR_UNKNOWN_GOAL_ID as i8,
            false => CancelGoal::Response::ERROR_NONE as i8,
        },
        ..Default::default()
    };
    for (id, accepted, cancels) in &meant {
        let (granted, decision) = oneshot::channel();
        let asked = Cancel {
            id: *id,
            shared: shared.clone(),
            granted,
        };
        // A goal that has ended takes none, and one that ends drops those that wait.
        if cancels.try_send(asked).is_ok() && decision.await.unwrap_or(false) {
            response.goals_canceling.push(info(id, *accepted));
        }
    }
    if response.goals_canceling.is_empty() && !meant.is_empty() {
        let goals = lock(&shared.goals);
        let ended = |id: &Id| goals.0.get(id).is_none_or(|goal| goal.end.is_some());
        response.return_code = match meant.iter().all(|(id, ..)| ended(id)) {
            true => CancelGoal::Response::ERROR_GOAL_TERMINATED as i8,
            false => CancelGoal::Response::ERROR_REJECTED as i8,
        };
    }
    respond("the answer to a cancel request", request, response);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goal(number: u8) -> Id {
        [number; 16]
    }

    fn result(stage: &str) -> Ended {
        Ended {
            reasons: vec![stage.into()],
            ..Ended::default()
        }
    }

    fn book(goals: u8, now: Instant) -> Book<&'static str, ()> {
        let mut book = Book::default();
        for number in 1..=goals {
            assert!(book.accept(goal(number), Stamp(number.into()), (), now));
        }
        book
    }

    #[test]
    fn a_result_goes_to_who_waits_for_it_and_to_who_asks_later() {
        let now = Instant::now();
        let mut book = book(2, now);
        assert!(book.ask(&goal(1), "early", now).is_none());
        let (status, waiting) = book.end(&goal(1), true, result("made"), now);
        assert_eq!(status, GoalStatus::STATUS_SUCCEEDED as i8);
        assert_eq!(waiting, ["early"]);
        let (request, status, told) = book.ask(&goal(1), "late", now).unwrap();
        assert_eq!(
            (request, status),
            ("late", GoalStatus::STATUS_SUCCEEDED as i8)
        );
        assert_eq!(told, result("made"));
        let (_, status, _) = book.ask(&goal(9), "of nobody", now).unwrap();
        assert_eq!(status, GoalStatus::STATUS_UNKNOWN as i8);
    }

    #[test]
    fn a_cancelled_goal_ends_as_cancelled_whatever_came_of_it() {
        let now = Instant::now();
        let mut book = book(2, now);
        book.cancel(&goal(1));
        let (status, _) = book.end(&goal(1), true, result(""), now);
        assert_eq!(status, GoalStatus::STATUS_CANCELED as i8);
        let (status, _) = book.end(&goal(2), false, result(""), now);
        assert_eq!(status, GoalStatus::STATUS_ABORTED as i8);
    }

    #[test]
    fn a_server_may_go_when_results_had_the_time_to_arrive_or_nobody_asks() {
        let now = Instant::now();
        let after = |wait: Duration| now + wait;
        let mut book = book(0, now);
        assert!(book.is_settled(now));
        book.accept(goal(1), Stamp(1), (), now);
        assert!(!book.is_settled(after(KEPT)), "it has not ended");
        book.end(&goal(1), false, result(""), now);
        assert!(!book.is_settled(now));
        assert!(book.is_settled(after(UNASKED)));
        // Asked at the last moment, it is waited for again.
        let asked = after(UNASKED - Duration::from_millis(1));
        assert!(book.ask(&goal(1), "late", asked).is_some());
        assert!(!book.is_settled(after(UNASKED)));
        assert!(book.is_settled(asked + DELIVERY));
        assert_eq!(book.unasked(), 0);
    }

    #[test]
    fn cancel_requests_name_one_goal_or_those_until_a_time_or_all() {
        let book = book(3, Instant::now());
        let meant = |id: Id, until: i64| -> Vec<u8> {
            let meant = book.meant(&id, Stamp(until)).into_iter();
            meant.map(|id| id[0]).collect()
        };
        assert_eq!(meant(Id::default(), 0), [1, 2, 3]);
        assert_eq!(meant(Id::default(), 2), [1, 2]);
        assert_eq!(meant(goal(3), 0), [3]);
        assert_eq!(meant(goal(3), 1), [1, 3]);
        assert_eq!(meant(goal(9), 0), [] as [u8; 0]);
    }

    #[test]
    fn ids_are_accepted_once_and_forgotten_after_a_while() {
        let now = Instant::now();
        let mut book = book(1, now);
        assert!(!book.accept(goal(1), Stamp(5), (), now));
        book.end(&goal(1), true, result(""), now);
        assert!(book.accept(goal(2), Stamp(5), (), now + KEPT));
        assert!(!book.0.contains_key(&goal(1)));
    }
}
