"""The `Calibrate` action, by a process that drives the node's services or works for a node elsewhere."""

import os
import shutil
import signal
import threading
import time

import graph
from action_msgs.msg import GoalStatus
from centerpoint_ptq_msgs.action import Calibrate
from centerpoint_ptq_msgs.msg import CalibrationStatus
from centerpoint_ptq_msgs.srv import ListModels, SaveBuffer
from live import AT_ONCE, FRAMES, IMPOSSIBLE, LENIENT, QUANTIZE, Live, wait_gone
from rclpy.action import ActionClient


class Goal:
    """A goal that was accepted, what it said on the way, and how it ended."""

    def __init__(self, caller: "Caller", fields: dict):
        self.feedback: list[Calibrate.Feedback] = []
        sent = caller.ask(
            caller.client.send_goal_async,
            Calibrate.Goal(**fields),
            lambda m: self.feedback.append(m.feedback),
        )
        self.handle = caller.wait(sent, 20.0)
        assert self.handle.accepted
        self.caller, self.ended = caller, caller.ask(self.handle.get_result_async)

    def result(self, timeout: float = QUANTIZE) -> tuple[int, Calibrate.Result]:
        reply = self.caller.wait(self.ended, timeout)
        return reply.status, reply.result

    def cancel(self) -> bool:
        asked = self.caller.ask(self.handle.cancel_goal_async)
        return bool(self.caller.wait(asked, 20.0).goals_canceling)


class Caller:
    """An rclpy client of the action."""

    def __init__(self, observer: graph.Observer, server: graph.Process):
        self.observer, self.server = observer, server
        self.client = ActionClient(observer.node, Calibrate, "/centerpoint_calibration/calibrate")
        self.wait_ready()

    def wait_ready(self) -> None:
        self.observer.wait_for(self.client.server_is_ready, 30.0, "action server", self.server)
        # That is what this side knows. The server may not know this client yet, and an answer to one that it does not know is
        # lost: a property of ROS 2's services.
        time.sleep(1.0)

    def ask(self, call, *arguments):
        """Sends a request from the thread that takes the answers: rclpy's action client notes what it asked for only once
        that was sent, and drops an answer that another thread takes before."""
        return self.wait(self.observer.executor.create_task(call, *arguments), 20.0)

    def wait(self, future, timeout: float):
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        timeout = max(timeout, graph.PATIENCE)
        assert done.wait(timeout), f"no answer within {timeout} s\n{self.server.output}"
        return future.result()

    def send(self, **fields) -> Goal:
        return Goal(self, fields)


def saved_buffer(live, folder):
    reply = live.observer.ask(SaveBuffer, "save_buffer", path=str(folder))
    assert reply.success, reply.message
    return folder


def test_a_goal_calibrates_tells_how_it_goes_and_ends_with_the_model(ros, eager_model, recipe):
    live = Live(ros, eager_model, recipe("strict", **IMPOSSIBLE))
    caller = Caller(live.observer, ros.action_server())
    goal = caller.send(recipe=str(recipe("lenient", **LENIENT)))
    # One at a time, whoever asks.
    live.wait_child()
    status, second = caller.send().result(20.0)
    assert (status, second.outcome) == (GoalStatus.STATUS_ABORTED, CalibrationStatus.FAILED)
    assert "already running" in second.reasons[0]
    assert not live.observer.call("calibrate").success

    status, result = goal.result()
    assert (status, result.outcome) == (GoalStatus.STATUS_SUCCEEDED, CalibrationStatus.SWAPPED), result
    assert result.frames == FRAMES and result.seconds > 0.0
    assert "judged" in result.reasons[0], result.reasons
    assert live.observer.status["last"]["notes"] == result.reasons
    assert live.observer.status["stored_id"] == result.stored_id
    assert live.models() == [result.stored_id]
    assert os.path.isfile(result.report) and os.path.isfile(result.model_path)
    fractions = [f.fraction for f in goal.feedback]
    assert fractions == sorted(fractions) and fractions[-1] > 0.5
    assert len({f.stage for f in goal.feedback}) >= 3

    # The node's own recipe wants what no INT8 model has.
    status, result = caller.send().result()
    assert (status, result.outcome) == (GoalStatus.STATUS_ABORTED, CalibrationStatus.REFUSED)
    assert result.reasons and os.path.isfile(result.report)
    assert caller.server.end()[0] == 0
    live.wait_more_detections()


def test_a_cancelled_goal_ends_the_quantization_and_the_next_goal_is_free(ros, eager_model, recipe):
    live = Live(ros, eager_model, recipe(**LENIENT))
    caller = Caller(live.observer, ros.action_server())
    for _ in range(2):
        goal = caller.send()
        pid = live.wait_child()
        assert goal.cancel()
        status, result = goal.result(20.0)
        assert (status, result.outcome) == (GoalStatus.STATUS_CANCELED, CalibrationStatus.CANCELLED), result
        wait_gone(pid)
    assert not live.models()
    live.wait_more_detections()


def test_a_node_that_is_killed_fails_the_goal_and_the_server_serves_the_next_node(ros, eager_model, recipe):
    live = Live(ros, eager_model, recipe(**LENIENT))
    caller = Caller(live.observer, ros.action_server())
    goal = caller.send()
    live.wait_child()
    live.node.kill()
    # A killed process is seen as such once its lease on the graph is over.
    status, result = goal.result(60.0)
    assert (status, result.outcome) == (GoalStatus.STATUS_ABORTED, CalibrationStatus.FAILED)
    assert "/centerpoint" in result.reasons[0], result.reasons
    live.driver.pause()
    before = len(live.observer.seen.statuses)
    node = ros.node(eager_model)
    live.observer.wait_for(lambda: live.observer.seen.statuses[before:], 30.0, "the next node", node)
    # Too few frames for the built-in recipe or not: the node that is there now answers.
    status, result = caller.send(bag="/no/such/bag").result(30.0)
    assert "'/no/such/bag' lies outside of the folders" in result.reasons[0]


def test_a_server_that_ends_says_so_and_the_node_goes_on(ros, eager_model, recipe):
    live = Live(ros, eager_model, recipe(**LENIENT))
    caller = Caller(live.observer, ros.action_server())
    goal = caller.send()
    live.wait_child()
    code, seconds = caller.server.end(signal.SIGTERM)
    assert code == 0 and seconds < AT_ONCE
    status, result = goal.result(5.0)
    assert status == GoalStatus.STATUS_ABORTED and "/centerpoint goes on" in result.reasons[0], result
    assert live.finish()["outcome"] == "swapped"


def test_a_server_that_is_killed_takes_nothing_with_it(ros, eager_model, recipe):
    live = Live(ros, eager_model, recipe(**LENIENT))
    caller = Caller(live.observer, ros.action_server())
    caller.send()
    live.wait_child()
    caller.server.kill()
    assert live.finish()["outcome"] == "swapped"
    live.wait_more_detections()


def test_a_machine_elsewhere_calibrates_from_a_copied_buffer_and_sends_the_model(ros, eager_model, recipe, tmp_path):
    live = Live(ros, eager_model, recipe(**LENIENT))
    copied = tmp_path / "elsewhere" / "copied"
    shutil.copytree(saved_buffer(live, tmp_path / "saved"), copied)
    shutil.rmtree(tmp_path / "saved")
    store = tmp_path / "elsewhere" / "store"
    server = ros.action_server(
        work_here=True,
        model_path=str(eager_model),
        model_store=str(store),
        recipe_path=str(recipe("lenient", **LENIENT)),
        **{"calibration.threads": 2, "calibration.nice": 0},
    )
    caller = Caller(live.observer, server)
    status, result = caller.send().result(20.0)
    assert status == GoalStatus.STATUS_ABORTED and "name a bag" in result.reasons[0]

    goal = caller.send(bag=str(copied))
    status, result = goal.result()
    assert (status, result.outcome) == (GoalStatus.STATUS_SUCCEEDED, CalibrationStatus.SWAPPED), result
    assert (store / "models" / result.stored_id).is_dir()
    live.observer.wait_status(lambda s: s["stored_id"] == result.stored_id, 5.0, "the model in the node", live.node)
    assert live.models() == [result.stored_id], "the node has files of its own"
    assert live.observer.status["calibration"] == 0, "the node did not calibrate"
    assert [f.stage for f in goal.feedback][-1] == "load"
    live.wait_more_detections()

    # A refused model stays where it was made.
    status, result = caller.send(bag=str(copied), recipe=str(recipe("strict", **IMPOSSIBLE))).result()
    assert (status, result.outcome) == (GoalStatus.STATUS_ABORTED, CalibrationStatus.REFUSED)
    assert len(list((store / "models").iterdir())) == 2 and len(live.models()) == 1

    # Cancelled, and ended, with nothing left half-made.
    goal = caller.send(bag=str(copied))
    live.observer.wait_for(lambda: goal.feedback, 30.0, "feedback", server)
    assert goal.cancel()
    status, result = goal.result(20.0)
    assert (status, result.outcome) == (GoalStatus.STATUS_CANCELED, CalibrationStatus.CANCELLED)
    goal = caller.send(bag=str(copied))
    live.observer.wait_for(lambda: goal.feedback, 30.0, "feedback", server)
    code, seconds = server.end()
    assert code == 0 and seconds < AT_ONCE
    status, result = goal.result(5.0)
    assert status == GoalStatus.STATUS_ABORTED and "shut down" in result.reasons[0], result
    assert not list((store / "incoming").iterdir())
    models = live.observer.ask(ListModels, "list_models").models
    assert len(models) == 1 and models[0].running


def test_a_model_for_a_node_that_is_not_there_is_kept(ros, model, recipe, program, bag, tmp_path):
    observer = ros.observer()
    store = tmp_path / "store"
    server = ros.action_server(
        work_here=True, node="/nobody", model_path=str(model), model_store=str(store),
        recipe_path=str(recipe(**LENIENT)),
    )  # fmt: skip
    status, result = Caller(observer, server).send(bag=str(bag)).result()
    assert (status, result.outcome) == (GoalStatus.STATUS_ABORTED, CalibrationStatus.FAILED)
    assert "there is no node /nobody" in result.reasons[-1]
    assert (store / "models" / result.stored_id / "report.json").is_file()
