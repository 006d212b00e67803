"""Every kernel compiles with NVRTC for every architecture, without a warning and without spills.

NVRTC needs no driver, so this runs on machines without a GPU.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpucnn import kernel
from gpucnn.primitive import PRIMITIVES
from gpucnn.xray.compiled import ARCHITECTURES, compiled

SPECIALISATIONS = list(kernel.specialisations())

needs_nvrtc = pytest.mark.skipif(
    kernel.nvrtc_version() is None, reason="needs CuPy and NVRTC: pip install 'gpucnn[cuda13x]'"
)


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("spec", SPECIALISATIONS, ids=str)
def test_compiles_without_warnings_or_spills(spec: kernel.Specialisation, arch: str) -> None:
    module, macros = compiled(spec, arch), dict(spec.macros)
    assert "warning" not in module.log
    assert set(module.usage) == set(kernel.signatures(spec.family))
    for name, usage in module.usage.items():
        assert (usage.stack, usage.spills) == (0, 0), f"{name} spills"
        # A multiprocessor's 64 Ki registers hold two blocks of 256 threads; of the kernels that
        # keep their sums in registers for the tensor cores, eight warps.
        warps = macros.get("WARPS_M", 8) * macros.get("WARPS_N", 1)
        resident = (1 << 16) // (32 * warps * (-(-usage.registers // 8) * 8)) * warps
        enough = 8 if "WARPS_M" in macros else 16
        assert resident >= enough, f"{name}: {usage.registers} registers, {resident} warps"


@needs_nvrtc
def test_a_warning_is_an_error() -> None:
    """The compiler's log is where warnings would be: plant one."""
    spec = SPECIALISATIONS[0]
    planted = kernel.Specialisation(spec.family, (*spec.macros, ("PLANTED", 1)))
    source = planted.source + '\nextern "C" __global__ void planted() { int unused; }\n'

    class Planted(kernel.Specialisation):
        source = property(lambda self: globals()["_planted_source"])

    globals()["_planted_source"] = source
    _, log = kernel.nvrtc_cubin(Planted(spec.family, spec.macros), "sm_80")
    assert "warning" in log


def test_every_file_is_used() -> None:
    """Each .cu file belongs to an operator, and each of its kernels parses."""
    files = {path.stem for path in kernel.kernel_folder().glob("*.cu")}
    assert files == set(kernel.FILES)
    for family in files:
        assert kernel.signatures(family)


def test_every_primitive_has_a_kernel() -> None:
    for made in PRIMITIVES.values():
        assert made.launchers, f"{made.name} has no kernel"
        assert made.definition.__doc__, f"{made.name} has no docstring"


def test_no_floating_point_atomics_and_no_fast_math() -> None:
    """Sums in a fixed order are a promise; so are NaN and infinity."""
    for path in kernel.kernel_folder().iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"atomic\w*\s*\(\s*\(?\s*float", text), path
        assert "atomicAdd" not in text, path
        assert "fast_math" not in text, path


def test_every_header_is_part_of_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compile cache sees the source alone: a changed header must change it."""
    for family in kernel.FILES:
        assert not re.search(r'^\s*#\s*include\s*"', kernel.translation_unit(family), re.MULTILINE)
    (tmp_path / "outer.cuh").write_text('#include "inner.cuh"\n')
    (tmp_path / "inner.cuh").write_text("// first\n")
    (tmp_path / "a.cu").write_text('#include "outer.cuh"\n')
    monkeypatch.setattr(kernel, "kernel_folder", lambda: tmp_path)
    units = []
    for text in ("// first\n", "// second\n"):
        (tmp_path / "inner.cuh").write_text(text)
        units.append(kernel.translation_unit.__wrapped__("a"))
    assert "// first" in units[0]
    assert units[0] != units[1]


def test_errors_name_the_real_file_and_line() -> None:
    """Headers are inlined with #line, once each."""
    text = kernel.translation_unit("conv2d_tiled")
    assert text.count("__device__ __forceinline__ bool aligned16") == 1
    assert '#line 1 "kernels/tile_matmul.cuh"' in text
    lines = (kernel.kernel_folder() / "conv2d_tiled.cu").read_text(encoding="utf-8").splitlines()
    position = text.index("#define LATTICE")
    directive = list(re.finditer(r'#line (\d+) "([^"]+)"\n', text[:position]))[-1]
    line = int(directive[1]) + text.count("\n", directive.end(), position)
    assert directive[2] == "kernels/conv2d_tiled.cu"
    assert lines[line - 1].startswith("#define LATTICE")
