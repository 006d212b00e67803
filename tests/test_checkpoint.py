"""Checkpoints: exact, verified, and whole whenever the writer dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpucnn
from gpucnn.training.checkpoint import load_checkpoint, save_checkpoint, write_atomically

BASE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
LAYOUTS = {
    "contiguous": BASE,
    "transposed": BASE.T,
    "strided": BASE[:, ::2],
    "reversed": BASE[::-1],
    "fortran": np.asfortranarray(BASE),
    "broadcast": np.broadcast_to(np.float32(3), (4, 5)),
    "0-d": np.array(7, dtype=np.int64),
    "empty": np.zeros((0, 3), dtype=np.float32),
    "float64": np.array([1e300, -0.0, 2.0**-1074]),
    "bool": np.array([True, False]),
    "nan": np.array([np.nan, np.inf], dtype=np.float32),
}


def test_every_layout_comes_back_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, LAYOUTS, {"step": 3, "name": "Schäfer", "loss": 0.1})
    loaded = load_checkpoint(path)
    assert loaded.state == {"step": 3, "name": "Schäfer", "loss": 0.1}
    assert loaded.tensors.keys() == LAYOUTS.keys()
    for name, value in LAYOUTS.items():
        assert loaded.tensors[name].dtype == value.dtype
        assert loaded.tensors[name].shape == value.shape
        assert loaded.tensors[name].tobytes() == value.tobytes(), name


def test_group_strips_its_prefix(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"model.0.weight": BASE, "models": BASE, "optimizer.step": BASE}, {})
    assert list(load_checkpoint(path).group("model")) == ["0.weight"]


def test_mode_follows_the_umask_and_nothing_else_is_left(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        save_checkpoint(tmp_path / "a", {"x": BASE}, {})
    finally:
        os.umask(previous)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_data_is_synced_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write_atomically(tmp_path / "a", b"x")
    assert calls == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_failed_write_keeps_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    path = tmp_path / "a"
    save_checkpoint(path, {"x": BASE}, {"step": 1})

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(error):
        save_checkpoint(path, {"x": BASE}, {"step": 2})
    assert load_checkpoint(path).state == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_an_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        save_checkpoint(tmp_path / "missing" / "a", {"x": BASE}, {})


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("stored") / "a"
    save_checkpoint(path, {"x": BASE, "y": BASE[0]}, {"step": 1})
    return path.read_bytes()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_changed_bit_is_noticed(stored: bytes, tmp_path_factory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated"
    place = data.draw(st.integers(0, len(stored) - 1))
    bit = data.draw(st.integers(0, 7))
    content = bytearray(stored)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    try:
        loaded = load_checkpoint(path)
    except ValueError as error:
        message = str(error)
    else:
        # Only bytes that carry nothing, the padding of the header, may change unnoticed.
        assert loaded.state == {"step": 1}
        assert loaded.tensors["x"].tobytes() == BASE.tobytes()
        assert loaded.tensors["y"].tobytes() == BASE[0].tobytes()
        return
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(stored: bytes, tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(stored[:cut])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_checkpoint(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    import pickle

    import safetensors.numpy

    with pytest.raises(ValueError, match="no such checkpoint file"):
        load_checkpoint(tmp_path / "nothing")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_checkpoint(tmp_path / "pickle")
    safetensors.numpy.save_file({"x": BASE}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="not a gpucnn checkpoint"):
        load_checkpoint(tmp_path / "foreign")


KILLS = """
import os, signal, sys, time
import numpy as np
from gpucnn.training.checkpoint import load_checkpoint, save_checkpoint

path, tell = sys.argv[1], os.pipe()
for kill in range(40):
    child = os.fork()
    if child == 0:
        step = 0
        while True:
            step += 1
            x = np.full(200_000, step, np.float32)
            save_checkpoint(path, {"x": x}, {"step": step})
            os.write(tell[1], step.to_bytes(4, "big"))
    for _ in range(1 + kill % 5):
        told = int.from_bytes(os.read(tell[0], 4), "big")
    time.sleep(kill * 0.0007)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.set_blocking(tell[0], False)
    try:
        while block := os.read(tell[0], 4):
            told = int.from_bytes(block, "big")
    except BlockingIOError:
        pass
    os.set_blocking(tell[0], True)
    loaded = load_checkpoint(path)
    # The rename may have happened without the word of it, never the reverse.
    assert loaded.state["step"] - told in (0, 1), (loaded.state, told)
    assert (loaded.tensors["x"] == loaded.state["step"]).all()
    print(loaded.state["step"])
"""


def test_sigkill_at_any_moment_leaves_a_loadable_checkpoint(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path / "a.safetensors")],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(gpucnn.__file__).parents[1])},
    )
    assert result.returncode == 0, result.stderr
    steps = [int(line) for line in result.stdout.split()]
    assert len(steps) == 40
    assert max(steps) > 3, "the writer was always killed before it overwrote a checkpoint"
    # Some were killed while they wrote: what they left behind shows that.
    assert list(tmp_path.glob(".*.tmp"))
