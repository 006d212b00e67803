"""Argument types and options that several commands share."""

from __future__ import annotations

import difflib
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpucnn.device import DEVICES

if TYPE_CHECKING:
    _StringType = click.ParamType[str]
else:
    _StringType = click.ParamType  # not generic in every version of click


class Name(_StringType):
    """One of a list of names, which is made when it is needed; a near miss gets a suggestion."""

    def __init__(self, name: str, allowed: Callable[[], Sequence[str]]) -> None:
        self.name = name
        self._allowed = allowed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        allowed = self._allowed()
        if value in allowed:
            return str(value)
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        choices, article = ", ".join(allowed), "an" if self.name[0] in "aeiou" else "a"
        self.fail(f"{value!r} is not {article} {self.name}, which must be one of {choices}.{hint}")


class DatasetName(Name):
    """The name of a dataset, or the path of an .npz file or a folder of class folders."""

    def __init__(self) -> None:
        super().__init__("dataset", dataset_names)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from gpucnn import data

        if data.is_path(str(value)):
            return str(value)
        return super().convert(value, param, ctx)


def parsed_size(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """HxW, or one number for both, as (H, W)."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is no size, such as 64 or 48x64 (height x width).")
    return int(match[1]), int(match[2] or match[1])


def program() -> str:
    """How the user can call this command again from here, quoted for a shell."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m gpucnn"
    found = shutil.which("gpucnn")
    if called.name != "gpucnn" or (found and Path(found).resolve() == called.resolve()):
        return "gpucnn"
    return shlex.quote(os.path.relpath(called))


def dataset_names() -> Sequence[str]:
    """The names of the datasets."""
    from gpucnn import data

    return data.names()


def model_names() -> Sequence[str]:
    """The names of the models."""
    from gpucnn import models

    return tuple(models.names())


def precisions() -> Sequence[str]:
    """The names of the precisions."""
    from gpucnn import precision

    return precision.modes


def optimizer_names() -> Sequence[str]:
    """The names of the optimizers."""
    from gpucnn.training.recipes import OPTIMIZERS

    return tuple(OPTIMIZERS)


def finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Refuse NaN and infinity, which a range lets through."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


def parsed_augmentation(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """The Augmentation that a text describes."""
    if value is None:
        return None
    from gpucnn.ops.augmentation import Augmentation

    try:
        return Augmentation.parse(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


device_option = click.option(
    "--device",
    type=click.Choice(DEVICES),
    help="Where to compute. Default: GPUCNN_DEVICE, or cuda where a GPU works, else cpu.",
)
moved_data_option = click.option(
    "--data",
    "data_dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of the dataset's files. Default: where they were when the run was made.",
)
skip_unreadable_option = click.option(
    "--skip-unreadable",
    is_flag=True,
    help="Leave out pictures of a folder that cannot be read, and list them.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
