"""The wheel carries the CUDA sources and the emulator's C++, and works outside the checkout."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gpucnn.kernel import kernel_folder

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (path,) = folder.glob("*.whl")
    return path


def test_training_and_tests_install_one_and_the_same_cupy(tmp_path: Path) -> None:
    """Whatever the driver: two CuPy packages in one environment do not work."""
    said = {"": ("plot", "test,cuda13x")}
    said |= {extra: (f"plot,{extra}", f"test,{extra}") for extra in ("cuda12x", "cuda13x")}
    for extra, expected in said.items():
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\necho {extra}\n")
        python.chmod(0o755)
        for target, extras in zip(("train", "test"), expected, strict=True):
            make = ["make", "-n", "-B", f"PYTHON={python}", f".venv/.{target}"]
            recipe = subprocess.run(make, cwd=ROOT, check=True, capture_output=True, text=True)
            (install,) = [line for line in recipe.stdout.splitlines() if "pip install" in line]
            shown = install.replace(".venv/bin/pip install --quiet -e", "echo")
            done = subprocess.run(["sh", "-c", shown], capture_output=True, text=True, check=True)
            assert done.stdout == f".[{extras}]\n"
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (test,) = re.findall(r"(?ms)^test = \[(.*?)^\]", project)
    assert "cuda" not in test


def test_every_source_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for source in kernel_folder().iterdir():
        assert f"gpucnn/_kernels/{source.name}" in names
    emulator = ROOT / "gpucnn" / "emulator"
    for source in emulator.rglob("*"):
        if source.is_file() and "__pycache__" not in source.parts:
            assert f"gpucnn/emulator/{source.relative_to(emulator)}" in names


def test_the_bench_is_in_the_wheel_without_its_results(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    bench = ROOT / "bench"
    for source in bench.rglob("*"):
        path = source.relative_to(bench)
        if source.is_file() and "__pycache__" not in path.parts:
            shipped = f"gpucnn/_bench/{path.as_posix()}" in names
            assert shipped is (path.parts[0] != "results"), path
    assert not any("__pycache__" in name for name in names)
    roots = {name.split("/")[0] for name in names}
    assert {root for root in roots if not root.endswith(".dist-info")} == {"gpucnn"}


def test_an_installed_wheel_finds_its_kernels(wheel: Path, tmp_path: Path) -> None:
    """In a clean environment: a venv that sees only the wheel and this one's dependencies."""
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(wheel)], check=True, timeout=120)
    code = (
        "import gpucnn.kernel as k; folder = k.kernel_folder(); print(folder);"
        "[k.signatures(f) for f in k.FILES]; print(len(k.FILES))"
    )
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    folder, count = result.stdout.split()
    assert Path(folder) == site / "gpucnn" / "_kernels"
    assert int(count) == len(list(kernel_folder().glob("*.cu")))
    code = (
        "from gpucnn.cli.bench_package import bench_module as find;"
        "print(find('command').__name__, find('machine').SOURCE.name, len(find('run').__doc__) > 0)"
    )
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert found.stdout == "gpucnn._bench.command machine.cu True\n"
