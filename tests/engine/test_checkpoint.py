"""Checkpoints survive crashes, and files that lie are refused quickly and cheaply."""

import errno
import json
import os
import random
import resource
import signal
import time
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cambrian.codec import files, tensors
from cambrian.engine import checkpoint as checkpoints_module
from cambrian.engine import state as trees
from cambrian.engine.checkpoint import Checkpoints
from cambrian.errors import CheckpointError, NonFiniteError

plain = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.text(max_size=8)
nested = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        | st.dictionaries(st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(nested)
def test_state_round_trips_without_loss(value):
    tree, named = trees.flatten(value)
    assert trees.unflatten(json.loads(files.dump_json(tree)), named) == value


def test_tensors_arrays_and_special_floats_round_trip(tmp_path):
    state = {
        "recipe": {
            "parts": {"w": torch.randn(3, 4).T, "half": torch.ones(2, dtype=torch.bfloat16), 3: torch.tensor(7)}
        },
        "array": np.arange(6, dtype=np.int32).reshape(2, 3),
        "limits": [float("inf"), (1, 2.5)],
        "empty": torch.zeros(0, 4),
    }
    Checkpoints(tmp_path).save(4, state)
    step, back = Checkpoints(tmp_path).latest()
    assert step == 4 and back["limits"] == [float("inf"), (1, 2.5)]
    assert torch.equal(back["recipe"]["parts"]["w"], state["recipe"]["parts"]["w"])
    assert back["recipe"]["parts"]["half"].dtype == torch.bfloat16 and back["recipe"]["parts"][3] == 7
    assert np.array_equal(back["array"], state["array"]) and back["empty"].shape == (0, 4)


def test_objects_that_are_no_state_are_refused(tmp_path):
    with pytest.raises(TypeError, match="which a checkpoint cannot keep"):
        Checkpoints(tmp_path).save(0, {"x": object()})


def test_nan_parameters_are_not_saved(tmp_path):
    store = Checkpoints(tmp_path)
    store.save(1, {"recipe": {"parts": {"model": {"w": torch.ones(2)}}}})
    with pytest.raises(NonFiniteError, match=r"model\.w holds NaN or infinity at step 2"):
        store.save(2, {"recipe": {"parts": {"model": {"w": torch.tensor([1.0, float("nan")])}}}})
    assert store.steps() == [1]


def test_only_the_newest_are_kept_and_damage_falls_back(tmp_path):
    store = Checkpoints(tmp_path, keep=3)
    for step in range(5):
        store.save(step, {"step": step})
    assert store.steps() == [2, 3, 4]
    (store.path(4) / "tensors.safetensors").write_bytes(b"")
    raw = bytearray((store.path(3) / "state.json").read_bytes())
    raw[-3] ^= 1
    (store.path(3) / "state.json").write_bytes(raw)
    assert store.latest() == (2, {"step": 2})


def save_for_ever(folder, out):
    """The writer that gets killed: saves step after step and says which are done."""
    store = Checkpoints(folder, keep=2)
    store.sweep()
    step = store.steps()[-1] + 1 if store.steps() else 0
    while True:
        store.save(step, {"value": torch.full((20000,), float(step)), "step": step})
        os.write(out, f"{step}\n".encode())
        step += 1


def test_kill_nine_at_fifty_instants_loses_nothing(tmp_path):
    rng = random.Random(7)
    confirmed, longest = -1, 0.06
    for _ in range(50):
        before = confirmed
        end, start = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                save_for_ever(tmp_path, start)
            finally:
                os._exit(1)
        os.close(start)
        time.sleep(rng.uniform(0.0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(end) as lines:
            confirmed = max([confirmed, *(int(line) for line in lines if line.endswith("\n"))])
        # on a busy machine a writer may get no turn in so short a time: give the next ones longer
        longest = min(2.0, 2 * longest) if confirmed == before else 0.06
        store = Checkpoints(tmp_path, keep=2)
        if store.steps():
            step, state = store.latest()
            assert step >= confirmed
            assert state["step"] == step and bool((state["value"] == step).all())
    Checkpoints(tmp_path).sweep()
    assert confirmed >= 5
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith("step-")] == []


def faults():
    return [(name, n) for name in ("write_bytes", "fsync_directory") for n in range(1, 4)] + [("rename", 1)]


@pytest.mark.parametrize(("call", "nth"), faults())
@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_or_a_refusal_at_any_call_keeps_the_old_state(tmp_path, monkeypatch, call, nth, kind):
    store = Checkpoints(tmp_path)
    store.save(1, {"x": torch.ones(4)})
    place = checkpoints_module.os if call == "rename" else files
    real, count = getattr(place, call), [0]

    def failing(*args):
        count[0] += 1
        if count[0] == nth:
            raise OSError(kind, os.strerror(kind))
        return real(*args)

    monkeypatch.setattr(place, call, failing)
    try:
        store.save(2, {"x": torch.zeros(4)})
    except CheckpointError as error:
        assert "earlier checkpoints are intact" in str(error)
    monkeypatch.undo()
    store.sweep()
    assert store.latest()[0] in (1, 2)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


# -- hostile files ---------------------------------------------------------------------------------------------------


def with_header(header, payload=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + payload


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


GOOD = with_header({"a": entry()}, bytes(8))
HOSTILE_TENSORS = {
    "empty": b"",
    "seven bytes": b"1234567",
    "pickle renamed": b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "torch zip renamed": b"PK\x03\x04" + bytes(60),
    "zip polyglot after the data": GOOD + b"PK\x05\x06" + bytes(18),
    "header length 2^63": with_header(b"{}", length=2**63),
    "header length beyond the file": with_header(b"{}", length=1000),
    "header length zero": with_header(b"", length=0),
    "header of 100 MB declared": with_header(b"{}", length=100 << 20),
    "header not an object": with_header(b"[1,2]"),
    "header a string": with_header(b'"abc"'),
    "header not UTF-8": with_header(b'{"\xff\xfe": 1}'),
    "header cut": with_header(b'{"a": {"dtype": "F3'),
    "deep nesting": with_header(b'{"a":' * 50000),
    "NaN in the header": with_header(b'{"a": NaN}'),
    "huge exponent": with_header(b'{"a": 1e999}'),
    "repeated key": with_header(b'{"a": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}, "a": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "overlapping offsets": with_header({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "same bytes twice": with_header({"a": entry(), "b": entry()}, bytes(8)),
    "gap": with_header({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
    "trailing bytes": GOOD + b"x",
    "truncated data": GOOD[:-1],
    "1 GB declared in 1 KB": with_header({"a": entry(shape=(1 << 28,), offsets=(0, 1 << 30))}, bytes(900)),
    "shape overflow": with_header({"a": entry(shape=(2**40, 2**40), offsets=(0, 8))}, bytes(8)),
    "negative shape": with_header({"a": entry(shape=(-2,))}, bytes(8)),
    "negative offsets": with_header({"a": entry(offsets=(-8, 0))}, bytes(8)),
    "boolean shape": with_header({"a": entry(shape=(True, 2))}, bytes(8)),
    "float shape": with_header({"a": entry(shape=(2.0,))}, bytes(8)),
    "shape does not match bytes": with_header({"a": entry(shape=(3,))}, bytes(8)),
    "seventeen dimensions": with_header({"a": entry(shape=(1,) * 17, offsets=(0, 4))}, bytes(4)),
    "unknown type": with_header({"a": entry(dtype="OBJECT")}, bytes(8)),
    "type is a list": with_header({"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "missing fields": with_header({"a": {"dtype": "F32"}}, bytes(8)),
    "extra field naming a class": with_header({"a": entry(_target_="os.system")}, bytes(8)),
    "path traversal in a name": with_header({"../../etc/passwd": entry()}, bytes(8)),
    "absolute path as a name": with_header({"/etc/passwd": entry()}, bytes(8)),
    "NUL in a name": with_header({"a\x00b": entry()}, bytes(8)),
    "name of 2 KB": with_header({"a" * 2048: entry()}, bytes(8)),
}  # fmt: skip

HOSTILE_STATE = {
    "state not JSON": b"not json",
    "state with NaN": b'{"x": NaN}',
    "state with an unknown tag": b'{"$class": "os.system"}',
    "state naming a missing tensor": b'{"$tensor": "nowhere"}',
    "state with a tag among keys": b'{"$tuple": [], "x": 1}',
    "state nested deeply": b'{"a":' * 200 + b"1" + b"}" * 200,
    "state with a strange float": b'{"$float": "__import__"}',
    "state with odd pairs": b'{"$items": [[1]]}',
}


def limited(action):
    """Run `action`, which must raise CheckpointError within a second and 100 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="^[^\n]+$"):
        action()
    seconds, peak = time.monotonic() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert seconds < 1 and peak < 100 << 20 and grown < 100 << 10


def test_the_good_twin_of_the_hostile_files_loads(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD)
    assert torch.equal(tensors.load(path)["a"], torch.zeros(2))


@pytest.mark.parametrize("name", HOSTILE_TENSORS)
def test_hostile_weight_files_are_refused(tmp_path, name):
    path = tmp_path / "x.safetensors"
    path.write_bytes(HOSTILE_TENSORS[name])
    limited(lambda: tensors.load(path))


@pytest.mark.parametrize("name", HOSTILE_STATE)
def test_hostile_state_trees_are_refused_even_with_matching_checksums(tmp_path, name):
    import hashlib

    store = Checkpoints(tmp_path)
    folder = store.save(1, {"x": 1})
    (folder / "state.json").write_bytes(HOSTILE_STATE[name])
    manifest = json.loads((folder / "manifest.json").read_text())
    digest = hashlib.sha256(HOSTILE_STATE[name]).hexdigest()
    manifest["files"]["state.json"] = {"bytes": len(HOSTILE_STATE[name]), "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    limited(lambda: store.load(1))


@pytest.mark.parametrize(
    "manifest",
    [b"", b"[]", b"{}", b'{"format": 2, "step": 1, "files": {}}', b'{"format": 1, "step": 1, "files": {}}', b"nul"],
)
def test_hostile_manifests_are_refused(tmp_path, manifest):
    store = Checkpoints(tmp_path)
    folder = store.save(1, {"x": 1})
    (folder / "manifest.json").write_bytes(manifest)
    limited(lambda: store.load(1))


def test_a_folder_or_a_missing_file_is_refused(tmp_path):
    limited(lambda: tensors.load(tmp_path))
    limited(lambda: tensors.load(tmp_path / "missing"))
