"""`centerpoint_ptq models`: the store of INT8 models, from the command line and under a process killer."""

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "models" / "demo"
NODE = "/vehicle/centerpoint"
KILLS = 200


class Store:
    """A store, and the program that works on it."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder

    def command(self, *arguments) -> list[str]:
        return list(map(str, [self.program, "models", "--store", self.folder, *arguments]))

    def run(self, *arguments, code=0) -> str:
        result = subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=600)
        assert result.returncode == code, f"{arguments}: {result.stdout}{result.stderr}"
        return result.stdout + result.stderr

    def state(self) -> dict:
        return json.loads(self.run("list", "--json", "--check"))

    def ids(self) -> list[str]:
        return [m["id"] for m in self.state()["models"]]


@pytest.fixture
def store(program, tmp_path):
    return Store(program, tmp_path / "store")


def test_models_are_added_listed_and_there_once(store, variants):
    first, second = variants(2)
    assert "0 models" in store.run("list")
    for folder in (first, second, first):
        store.run("add", folder)
    state = store.state()
    ids = [m["id"] for m in state["models"]]
    assert len(set(ids)) == 2 and all(i.startswith("demo-") for i in ids)
    text = store.run("list")
    assert all(i in text for i in ids) and "quick" in text
    # A copy: the folder that was added stays.
    assert (first / "model.yaml").is_file()
    folder = store.folder / "models" / ids[0]
    assert {p.name for p in folder.iterdir()} == {p.name for p in first.iterdir()} | {"version.json"}


def test_a_folder_that_quantize_did_not_write_is_refused(store):
    assert "report.json" in store.run("add", DEMO, code=1)
    assert store.ids() == []


def test_a_model_that_was_damaged_on_the_way_is_not_taken(store, variants, damage):
    (folder,) = variants(1)
    file = folder / "pts_backbone_neck_head.onnx"
    damage(file)
    said = store.run("add", folder, code=1)
    assert file.name in said and "SHA-256" in said and "copy it anew" in said
    assert store.ids() == []


@pytest.mark.parametrize("file", ["../../../outside/pts_voxel_encoder.onnx", "/elsewhere/pts_voxel_encoder.onnx"])
def test_a_description_that_names_files_elsewhere_is_not_taken(store, variants, file):
    (folder,) = variants(1)
    description = folder / "model.yaml"
    text = description.read_text()
    assert "file: pts_voxel_encoder.onnx" in text
    description.write_text(text.replace("file: pts_voxel_encoder.onnx", f"file: {file}"))
    said = store.run("add", folder, code=1)
    assert "`encoder.file`" in said and file in said
    assert store.ids() == [] and not list((store.folder / "incoming").iterdir())


def test_a_model_is_activated_for_a_node_and_then_not_removed(store, variants):
    for folder in variants(2):
        store.run("add", folder)
    first, second = store.ids()
    assert "--node" in store.run("activate", first, code=1)
    # No node has judged it on what it saw.
    said = store.run("activate", first, "--node", NODE, "--for-model", DEMO, code=1)
    assert "has not judged" in said and "--unjudged" in said
    store.run("activate", first, "--node", NODE, "--for-model", DEMO, "--unjudged")
    # Now there is one node only, and the first digits are enough.
    store.run("activate", second.split("-")[1][:8], "--unjudged")
    node = store.state()["nodes"]["vehicle.centerpoint"]
    assert node["runs"] == second and node["good"] == [second, first]
    assert "runs on vehicle.centerpoint" in store.run("list")
    assert "vehicle.centerpoint" in store.run("remove", second, code=1)
    store.run("activate", "--float")
    store.run("remove", second)
    assert store.ids() == [first]


def test_a_model_of_another_float_model_is_not_activated_for_this_one(store, variants, tmp_path):
    store.run("add", *variants(1))
    other = tmp_path / "other"
    shutil.copytree(DEMO, other)
    backbone = other / "pts_backbone_neck_head.onnx"
    # A model may say something of itself (`doc_string`); another file it is all the same.
    backbone.write_bytes(backbone.read_bytes() + b"\x32\x01x")
    (model,) = store.ids()
    said = store.run("activate", model, "--node", NODE, "--for-model", other, code=1)
    assert "another float model" in said


def test_damage_is_found_and_named(store, variants, damage):
    store.run("add", *variants(1))
    (model,) = store.ids()
    file = store.folder / "models" / model / "pts_backbone_neck_head.onnx"
    damage(file)
    said = store.run("list", "--check", code=1)
    assert model in said and file.name in said
    assert file.name in store.run("activate", model, "--node", NODE, code=1)


def test_two_models_are_compared_with_what_differs_in_their_recipes(store, variants):
    for folder in variants(2):
        store.run("add", folder)
    text = store.run("compare", *store.ids())
    assert "F1 to float" in text and "F1 of CAR" in text
    assert "check.latency_runs" in text and "weights.bits" not in text
    assert "other frames" not in text and "different frames" not in text


def test_what_the_gate_judged_and_what_not_is_listed_and_compared(store, variants):
    for folder in variants(2):
        store.run("add", folder)
    for model in store.state()["models"]:
        classes = [e["class"] for e in model["judged"] + model["not_judged"] if "band" not in e]
        assert sorted(classes) == ["BICYCLE", "BUS", "CAR", "PEDESTRIAN", "TRUCK"]
        record = store.folder / "models" / model["id"] / "version.json"
        listed = store.run("list")
        for entry in model["judged"] + model["not_judged"]:
            if "band" not in entry:
                assert f"{entry['class']} ({max(entry['float_boxes'], entry['int8_boxes'])})" in listed
    compared = store.run("compare", *store.ids())
    assert "judged on CAR" in compared and "judged on BUS" in compared
    if any("band" not in e for e in model["not_judged"]):
        assert "NOT, " in compared
    # A record of an older version does not say.
    old = json.loads(record.read_text())
    for key in ("judged", "not_judged", "remarks"):
        del old[key]
    record.write_text(json.dumps(old))
    assert "?" in store.run("list")


def test_a_store_that_cannot_be_written_can_be_read(store, variants):
    first, second = variants(2)
    store.run("add", first)
    # Permissions do not stop root; a folder where the lock belongs stops everybody.
    (store.folder / "lock").unlink()
    (store.folder / "lock").mkdir()
    (model,) = store.ids()
    for change in (["add", second], ["activate", model, "--node", NODE, "--unjudged"], ["remove", model]):
        assert str(store.folder / "lock") in store.run(*change, code=1)
    assert store.ids() == [model]


def test_a_full_disk_leaves_the_store_as_it_was(store, variants):
    first, second = variants(2)
    store.run("add", first)
    before = store.state()
    # Every file ends at 64 kB, with an error instead of a signal: as on a disk without room.
    limited = ["bash", "-c", "trap '' XFSZ; ulimit -f 64; exec \"$@\"", "bash", *store.command("add", second)]
    result = subprocess.run(limited, capture_output=True, text=True, timeout=600)
    assert result.returncode == 1 and "cannot copy" in result.stderr and str(second) in result.stderr, result.stderr
    assert store.state() == before
    assert not list((store.folder / "incoming").iterdir())


def test_many_processes_change_one_store_at_once(store, variants):
    """Two nodes, or ten, may share a store: no change of one is lost to another's."""
    folders = variants(3)
    running = [
        subprocess.Popen(store.command("add", folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for folder in folders * 3
    ]
    ends = [(p.communicate(timeout=600), p.returncode) for p in running]
    assert all(code == 0 for _, code in ends), ends
    ids = store.ids()
    assert len(ids) == 3 and not list((store.folder / "incoming").iterdir())
    nodes = [f"/node_{i}" for i in range(9)]
    running = [
        subprocess.Popen(store.command("activate", ids[i % 3], "--node", node, "--unjudged"), stderr=subprocess.PIPE, text=True)
        for i, node in enumerate(nodes)
    ]
    assert all(p.wait(600) == 0 for p in running)
    chosen = store.state()["nodes"]
    assert {name: chosen[name]["runs"] for name in chosen} == {f"node_{i}": ids[i % 3] for i in range(9)}


def test_a_store_is_whole_after_kills_at_any_moment(store, variants):
    """Adding, activating and removing are killed again and again; what is there is whole, and the node's choice is one
    that was made."""
    folders = variants(4)
    chance = random.Random(7)
    # What adding takes: a kill comes within that, wherever the machine is at.
    whole = 600.0
    for folder in folders[:3]:
        begin = time.monotonic()
        store.run("add", folder)
        whole = min(whole, time.monotonic() - begin)
    store.run("activate", store.ids()[0], "--node", NODE, "--unjudged")
    killed = 0
    while killed < KILLS:
        ids = store.ids()
        jobs = [("add", chance.choice(folders))]
        if ids:
            jobs += [("activate", chance.choice(ids), "--unjudged"), ("remove", chance.choice(ids))]
        process = subprocess.Popen(store.command(*chance.choice(jobs)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0, 1.2 * whole))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        # Reads every file of every model against its hash, and fails if one is damaged.
        state = store.state()
        assert state["nodes"]["vehicle.centerpoint"]["runs"]
    # What the killed ones left goes with the next one that works.
    store.run("add", folders[0])
    assert not list((store.folder / "incoming").iterdir())
