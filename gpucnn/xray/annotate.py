"""The source of kernels with what was counted in the margin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from gpucnn.kernel import kernel_folder
from gpucnn.xray.counters import LaunchCounters, Site
from gpucnn.xray.measure import joined_sites

_CELLS = "{:>6} {:>8} {:>5} {:>5} {:>5} {:>7}"
_HEAD = _CELLS.format("access", "requests", "sect", "ideal", "confl", "FLOPs")
_EVENTS = {"barrier": "bar", "shuffle": "shfl", "vote": "vote", "reduce": "redux", "sync": "sync"}
_ACCESS = {"read": "ld", "write": "st", "atomic": "at"}


def access_code(site: Site) -> str:
    """``ld.g``, ``st.s``, …: load, store or atomic of global or shared memory."""
    return f"{_ACCESS[site.access]}.{site.space[0]}"


def _cells(site: Site) -> list[str]:
    access, requests = access_code(site), _short(site.requests)
    if site.space == "global":
        sectors, ideal = site.sectors_per_request, site.ideal_sectors_per_request
        return [access, requests, f"{sectors:.2f}", f"{ideal:.2f}", ""]
    return [access, requests, "", "", f"{site.conflicts / site.requests:.2f}"]


def _short(count: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= 10 * size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def annotated(counters: Sequence[LaunchCounters]) -> Iterator[str]:
    """Lines of the sources that ``counters`` name, the kernels' own file first.

    In the margin of a line, summed over ``counters``: each of its accesses (load, store or atomic;
    global or shared memory), the requests of that access, sectors per request and the fewest
    possible, bank conflicts per request, and floating-point operations; or the barriers passed and
    the shuffles. A line with several of them has as many margins.
    """
    sites: dict[tuple[str, int], list[Site]] = {}
    events: dict[tuple[str, int], Counter[str]] = {}
    flops: Counter[tuple[str, int]] = Counter()
    for launch in counters:
        for site in launch.sites:
            sites.setdefault((site.file, site.line), []).append(site)
        for event in launch.events:
            events.setdefault((event.file, event.line), Counter())[event.kind] += event.count
        for entry in launch.arithmetic:
            flops[entry.file, entry.line] += entry.flops
    files = sorted({file for file, _ in (*sites, *events, *flops)}, key=lambda f: f[-3:] != ".cu")
    for file in files:
        path = kernel_folder() / PurePosixPath(file).name
        if not path.is_file():
            continue
        yield f"{_HEAD} | {file}"
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            place = file, number
            margins = [_cells(site) for site in joined_sites(sites.get(place, []))]
            for kind, times in events.get(place, {}).items():
                margins.append([_EVENTS[kind], _short(times), "", "", ""])
            first, *others = margins or [[""] * 5]
            done = _short(flops[place]) if place in flops else ""
            yield f"{_CELLS.format(*first, done)} | {text}".rstrip()
            yield from (f"{_CELLS.format(*cells, '')} |" for cells in others)
        yield ""
