"""The command line: help, versions, errors, summary, predict and doctor."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import gpucnn
from gpucnn import data, functional, models, training
from gpucnn.cli import cli, main
from gpucnn.data.pictures import write_picture
from gpucnn.data.shapes import shape_levels
from gpucnn.training.recipes import OPTIMIZERS, optimizer_options, recipe
from tests.support import needs_onnxruntime

CHECKOUT = str(Path(gpucnn.__file__).parents[1])
ENVIRONMENT = {**os.environ, "GPUCNN_DEVICE": "cpu", "PYTHONPATH": CHECKOUT}
TINY = ["--images", "64", "--epochs", "1", "--batch-size", "16", "--device", "cpu", "--no-report"]


def fails(capsys: pytest.CaptureFixture[str], *args: str, code: int = 2) -> str:
    """Run a command that must fail with one ``Error:`` line, and return that line."""
    assert main(args) == code
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("Error: ")
    return lines[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    with gpucnn.use_device("cpu"):
        assert main(["train", "shapes", *TINY, "--out", str(folder)]) == 0
    return folder


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gpucnn, version {gpucnn.__version__}\n"


@pytest.mark.parametrize("command", ["", *cli.commands])
def test_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: gpucnn {command}".rstrip())
    expected = cli.commands[command].params if command else []
    for parameter in expected:
        if parameter.opts[0].startswith("-"):
            assert parameter.opts[0] in out
            assert parameter.help, parameter.name


def test_help_states_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split()).replace("- ", "-")  # wrapped at hyphens
    each = [recipe(name) for name in ("shapes", "shapes-segmentation", "fashion-mnist")]
    text = "Default: {} for shapes, {} for segmentation, {} for fashion-mnist"
    assert text.format(*(r.epochs for r in each)) in out
    assert text.format(*(r.batch_size for r in each)) in out
    drawn = f"{data.SHAPES_TRAIN_IMAGES:,} shapes, {data.SEGMENTATION_TRAIN_IMAGES:,} for"
    assert f"Default: {drawn} segmentation" in out
    assert " ".join([*OPTIMIZERS][:-1]).replace(" ", ", ") + f" or {[*OPTIMIZERS][-1]}" in out
    options = {name: optimizer_options(name) for name in OPTIMIZERS}
    having = [name for name in OPTIMIZERS if "momentum" in options[name]]
    assert (
        f"Of {', '.join(having[:-1])} and {having[-1]}. Default: 0.9 for momentum and nest" in out
    )
    assert all(options[name].get("momentum", 0) == 0.9 * (name in having[1:3]) for name in having)
    decay = {"sgd": 5e-4, "momentum": 5e-4, "nesterov": 5e-4, "adamw": 0.01}
    assert {name: o["weight_decay"] for name, o in options.items() if o["weight_decay"]} == decay


def test_no_command_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Commands:" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "No such command 'trian'"),
        (
            ["train"],
            "Missing argument DATASET: one of shapes, shapes-segmentation, fash",
        ),
        (["train", "shapse"], "Did you mean 'shapes'?"),
        (
            ["train", "cifar"],
            "must be one of shapes, shapes-segmentation, fashion-mnist, mni",
        ),
        (["train", "shapes", "--epoch", "3"], "--epochs"),
        (["train", "shapes", "--epochs", "0"], "'--epochs': 0 is not in the range"),
        (["train", "shapes", "--epochs", "two"], "'two' is not a valid integer"),
        (["train", "shapes", "--batch-size", "0"], "'--batch-size': 0 is not in the range"),
        (["train", "shapes", "--images", "0"], "'--images': 0 is not in the range"),
        (["train", "shapes", "--lr", "0"], "'--lr': 0.0 is not in the range"),
        (["train", "shapes", "--lr", "nan"], "'--lr': nan is not a finite number"),
        (["train", "shapes", "--lr", "inf"], "'--lr': inf is not a finite number"),
        (["train", "shapes", "--seed", "-1"], "'--seed': -1 is not in the range"),
        (["train", "shapes", "--optimizer", "adamm"], "Did you mean 'adam'?"),
        (["train", "shapes", "--optimizer", "rprop"], "'rprop' is not an optimizer, which must be"),
        (["train", "shapes", "--momentum", "0.9"], "momentum: adam has none, sgd, momentum, nes"),
        (["train", "shapes", "--momentum", "1"], "'--momentum': 1.0 is not in the range"),
        (["train", "shapes", "--weight-decay", "inf"], "'--weight-decay': inf is not a finite"),
        (["train", "shapes", "--clip", "-1"], "'--clip': -1.0 is not in the range"),
        (
            ["train", "shapes", "--images", "9", "--optimizer", "nesterov", "--momentum", "0"],
            "nesterov=True needs momentum > 0",
        ),
        (["train", "shapes", "--device", "gpu"], "'gpu' is not one of"),
        (["train", "shapes", "--model", "shapenett"], "Did you mean 'shapenet'?"),
        (["train", "shapes", "--model", "unet_small"], "does not give one label per image, as sh"),
        (["export", "/nowhere", "model.onnx"], "/nowhere is not a run folder"),
        (["export", "/nowhere", "model.pb"], "FILE must end in .onnx or .safetensors, got model"),
        (["train", "shapes", "--data", "x"], "data_dir must be left out"),
        (["train", "fashion-mnist", "--data", "/nowhere"], "install Debian's package dataset-fash"),
        (["train", "shapes", "--images", "9", "--batch-size", "10"], "at most the 9 training imag"),
        (["train", "--resume", "/nowhere"], "/nowhere is not a run folder"),
        (["predict", "/nowhere", "a.png"], "/nowhere is not a run folder"),
        (["predict", "/nowhere"], "Missing argument 'IMAGE...'"),
        (["summary", "resnet"], "must be one of lenet5, fashionnet, shapenet"),
    ],
)
def test_errors(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *args)
    assert not list(tmp_path.iterdir())


def test_out_must_be_new_or_empty(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("")
    error = fails(capsys, "train", "shapes", *TINY, "--out", str(tmp_path))
    assert f"run folder {tmp_path} must be new or empty" in error
    error = fails(capsys, "train", "shapes", *TINY, "--out", str(tmp_path / "precious.txt"))
    assert "must be a folder, it is a file" in error


def test_a_missing_device_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    if gpucnn.cuda_available():
        pytest.skip("there is a GPU here")
    out = tmp_path / "run"
    error = fails(capsys, "train", "shapes", "--device", "cuda", "--out", str(out))
    assert "device 'cuda' cannot be used" in error
    assert not out.exists()


@pytest.mark.parametrize("option", [["--epochs", "2"], ["--seed", "0"], ["--out", "x"]])
def test_options_that_would_change_a_resumed_run_are_refused(
    capsys: pytest.CaptureFixture[str], trained: Path, option: list[str]
) -> None:
    error = fails(capsys, "train", "--resume", str(trained), *option)
    assert f"{option[0]} cannot stand beside --resume" in error


def test_resuming_another_dataset_is_refused(
    capsys: pytest.CaptureFixture[str], trained: Path
) -> None:
    error = fails(capsys, "train", "fashion-mnist", "--resume", str(trained))
    assert "trains on shapes, not fashion-mnist" in error


def test_a_finished_run_says_so(capsys: pytest.CaptureFixture[str], trained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*.json*")}
    assert main(["train", "--resume", str(trained), "--no-report", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "is finished: epoch 1 of 1 is done" in err
    assert json.loads(out).keys() == {"run", "test_accuracy", "seconds"}
    assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("*.json*")}


def test_weights_and_images_depend_on_the_seed_alone(tmp_path: Path) -> None:
    states = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        trainer = training.start(
            "shapes", images=16, batch_size=16, seed=seed, device="cpu", out=tmp_path / name
        )
        tensors = trainer.state().group("model")
        states[name] = tensors["0.weight"].tobytes(), trainer.train.images.tobytes()
    assert states["a"] == states["b"]
    assert states["a"][0] != states["c"][0]
    assert states["a"][1] != states["c"][1]


def test_predict_json(capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path) -> None:
    levels, _ = shape_levels(3, 0, "test")
    files = [str(tmp_path / f"{i}.png") for i in range(3)]
    for file, picture in zip(files, levels, strict=True):
        write_picture(file, picture)
    assert main(["predict", str(trained), *files, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [result["file"] for result in results] == files
    for result in results:
        assert result.keys() == {"file", "label", "probabilities"}
        probabilities = result["probabilities"]
        assert list(probabilities) == ["triangle", "circle", "rectangle"]
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert result["label"] == max(probabilities, key=probabilities.get)
    # The same as the model says of the dataset's own pixels.
    model, config, _ = training.load_model(trained)
    images = data.normalize(levels, config.mean, config.std)
    with gpucnn.no_grad():
        expected = functional.softmax(model(gpucnn.Tensor(images))).numpy()
    got = [list(result["probabilities"].values()) for result in results]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@needs_onnxruntime
def test_export_to_onnx(capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path) -> None:
    import onnxruntime

    file = tmp_path / "shapes.onnx"
    assert main(["export", str(trained), str(file), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["file"] == str(file)
    assert result["bytes"] == file.stat().st_size
    assert 0 <= result["largest_difference"] < 1e-5
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    kept = session.get_modelmeta().custom_metadata_map
    assert json.loads(kept["classes"]) == ["triangle", "circle", "rectangle"]
    levels, _ = shape_levels(3, 0, "test")
    normal = (levels / 255.0 - json.loads(kept["mean"])) / json.loads(kept["std"])
    images = np.moveaxis(normal.astype(np.float32), -1, 1)
    (scores,) = session.run(None, {"images": images})
    model, config, _ = training.load_model(trained)
    expected = training.scores(model, data.normalize(levels, config.mean, config.std))
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    assert main(["export", str(trained), str(file)]) == 0
    assert "onnxruntime computes the same scores up to" in capsys.readouterr().out
    missing = tmp_path / "nowhere" / "m.onnx"
    assert "cannot be written" in fails(capsys, "export", str(trained), str(missing))


def test_export_of_weights(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path
) -> None:
    file = tmp_path / "shapes.safetensors"
    assert main(["export", str(trained), str(file)]) == 0
    assert "the weights of" in capsys.readouterr().out
    model, _, _ = training.load_model(trained)
    weight = safetensors.numpy.load_file(file)["0.weight"]
    assert (weight == np.moveaxis(model[0].weight.numpy(), -1, 1)).all()


def test_predict_text(capsys: pytest.CaptureFixture[str], trained: Path) -> None:
    files = sorted(map(str, (trained / "examples").glob("*.png")))
    assert len(files) == 3
    assert main(["predict", str(trained), *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for file, line in zip(files, lines, strict=True):
        assert line.startswith(f"{file}: ")
        assert line.count("%") == 3


def test_predict_errors(capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path) -> None:
    good = str(next((trained / "examples").glob("*.png")))
    for bad, message in (
        (tmp_path, "holds no PNG, JPEG or BMP file"),
        (tmp_path / "nothing.png", "no such file"),
        (trained / "config.json", "not a PNG, JPEG or BMP picture"),
    ):
        assert f"{bad}: {message}" in fails(capsys, "predict", str(trained), good, str(bad))


def test_a_damaged_run_is_one_sentence(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path
) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(trained, run)
    good = str(next((trained / "examples").glob("*.png")))
    newest = max((run / "checkpoints").iterdir())
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    for args in (["predict", str(run), good], ["train", "--resume", str(run)]):
        assert "does not match its SHA-256" in fails(capsys, *args)
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    assert "holds no checkpoint yet" in fails(capsys, "predict", str(run), good)
    assert "no checkpoint to resume from" in fails(capsys, "train", "--resume", str(run))
    (run / "config.json").write_text("{")
    assert "not the config of a run" in fails(capsys, "predict", str(run), good)


def test_summary_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["summary", "shapenet"]) == 0
    out = capsys.readouterr().out
    total = sum(p.size for p in models.create("shapenet").parameters())
    assert f"{total:,}" in out
    for heading in ("layer", "output", "parameters", "multiply-", "receptive"):
        assert heading in out
    assert "Conv2d(1, " in out
    assert "kernel_size=(" not in out
    assert "\x1b" not in out


@pytest.mark.parametrize("name", models.names())
def test_summary_json(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["summary", name, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == name
    assert result["parameters"] == sum(p.size for p in models.create(name).parameters())
    assert result["parameters"] == sum(layer["parameters"] for layer in result["layers"])
    assert result["multiply_adds"] == sum(layer["multiply_adds"] for layer in result["layers"])


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from gpucnn.kernel import CompileRow

    rows = [CompileRow("linear", ("linear_forward",), "g++", True, 0.1, "")]
    monkeypatch.setattr("gpucnn.kernel.compile_report", lambda: rows)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("device is 'cpu'", "gpucnn", "Python", "NumPy", "BLAS", "CuPy", "NVRTC", "g++"):
        assert word in out
    assert "linear" in out
    rows.append(CompileRow("pool2d", ("pool",), "nvrtc", False, 0.1, "pool2d.cu:3: error: ["))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "pool2d.cu:3: error: [" in out
    assert out.endswith("1 kernels compiled, 1 files failed\n")
    assert main(["doctor", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] is False
    assert result["kernels"][1]["message"] == "pool2d.cu:3: error: ["


def run_command(*args: str, **options) -> subprocess.CompletedProcess[str]:
    environment = {**ENVIRONMENT, **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "gpucnn", *args],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        **options,
    )


def test_a_closed_pipe_is_quiet() -> None:
    for args in (["summary", "shapenet"], ["summary", "shapenet", "--json"]):
        with subprocess.Popen(
            [sys.executable, "-m", "gpucnn", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode != 0


def test_a_full_disk_is_one_sentence_and_leaves_no_temporary(tmp_path: Path) -> None:
    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    out = tmp_path / "run"
    result = run_command("train", "shapes", *TINY, "--out", str(out), preexec_fn=small_files_only)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "Error: [Errno 27] File too large"
    assert "Traceback" not in result.stderr
    assert not list((out / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("GPUCNN_DEVICE", "tpu", "must be one of cpu, cuda, emulated"),
        ("GPUCNN_THREADS", "0", "must be an integer >= 1, got '0'"),
    ],
)
def test_a_wrong_environment_variable_is_one_sentence(
    tmp_path: Path, name: str, value: str, says: str
) -> None:
    result = run_command("train", "shapes", "--out", str(tmp_path / "run"), env={name: value})
    assert result.returncode == 2
    assert result.stderr.startswith(f"Error: {name} {says}")
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()
