"""Kernels from outside, as a user of ``gpucnn check`` writes them, and a way to check them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gpucnn.cli import main

SIZES = """
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G"""

CONV = f"""// One thread per output.
extern "C" __global__ void my_conv(
    float* y, const float* x, const float* w, const float* b,{SIZES}) {{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= N * OH * OW * OC) return;
    int oc = i % OC, ow = i / OC % OW, oh = i / OC / OW % OH, n = i / OC / OW / OH;
    int CG = C / G, first = oc / (OC / G) * CG;
    float sum = b ? b[oc] : 0.0f;
    for (int kh = 0; kh < KH; ++kh)
        for (int kw = 0; kw < KW; ++kw) {{
            int h = oh * SH - PT + kh * DH, v = ow * SW - PL + kw * DW;
            if (h < 0 || h >= H || v < 0 || v >= W) continue;
            for (int c = 0; c < CG; ++c)
                sum += x[((n * H + h) * W + v) * C + first + c] *
                       w[((oc * KH + kh) * KW + kw) * CG + c];
        }}
    y[i] = sum;
}}
"""

# A block is TILE x TILE outputs of one image and one channel; its inputs are staged channel by
# channel. PATCH is what a tile of outputs of stride 2 and a filter of 6 rows need.
TILED = f"""#define TILE 4
#define PATCH 24
extern "C" __global__ void tiled_conv(
    float* y, const float* x, const float* w, const float* b,{SIZES}) {{
    __shared__ float patch[PATCH][PATCH];
    int oc = blockIdx.z % OC, n = blockIdx.z / OC;
    int top = blockIdx.y * TILE * SH - PT, left = blockIdx.x * TILE * SW - PL;
    int oh = blockIdx.y * TILE + threadIdx.y, ow = blockIdx.x * TILE + threadIdx.x;
    int high = (TILE - 1) * SH + KH, wide = (TILE - 1) * SW + KW;
    float sum = b ? b[oc] : 0.0f;
    for (int c = 0; c < C; ++c) {{
        for (int r = threadIdx.y; r < high; r += TILE)
            for (int q = threadIdx.x; q < wide; q += TILE) {{
                int h = top + r, v = left + q;
                bool inside = h >= 0 && h < H && v >= 0 && v < W;
                patch[r][q] = inside ? x[((n * H + h) * W + v) * C + c] : 0.0f;
            }}
        __syncthreads();
        for (int kh = 0; kh < KH; ++kh)
            for (int kw = 0; kw < KW; ++kw)
                sum += patch[threadIdx.y * SH + kh][threadIdx.x * SW + kw] *
                       w[((oc * KH + kh) * KW + kw) * C + c];
        __syncthreads();  // before the next channel is staged
    }}
    if (oh < OH && ow < OW) y[((n * OH + oh) * OW + ow) * OC + oc] = sum;
}}
"""
TILED_OPTIONS = ("--block", "4,4", "--grid", "OW/4, OH/4, N*OC", "--without", "groups,dilation")

POOL = """extern "C" __global__ void my_pool(
    float* y, int* indices, const float* x,
    int N, int H, int W, int C, int KH, int KW, int OH, int OW, int SH, int SW, int PT, int PL,
    int DH, int DW, int ZH, int ZW) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= N * OH * OW * C) return;
    int c = i % C, ow = i / C % OW, oh = i / C / OW % OH, n = i / C / OW / OH;
    float best = -INFINITY;
    int at = -1;
    for (int kh = 0; kh < KH; ++kh)
        for (int kw = 0; kw < KW; ++kw) {
            int h = oh * SH - PT + kh * DH, w = ow * SW - PL + kw * DW;
            if (h < 0 || h >= H || w < 0 || w >= W) continue;
            float v = x[((n * H + h) * W + w) * C + c];
            if (at < 0 || v > best || v != v) { best = v; at = h * W + w; }
        }
    if ((oh >= ZH || ow >= ZW) && best < 0.0f) { best = 0.0f; at = -1; }
    y[i] = best;
    indices[i] = at;
}
"""

RELU = """#include "common.cuh"
extern "C" __global__ void my_relu(float* y, const float* x, int n) {
    map_four(y, x, n, [](float v) { return v <= 0.0f ? 0.0f : v; });
}
"""

Check = Callable[..., tuple[int, str, str]]


def checker(folder: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs ``gpucnn check`` on a text -> (exit code, stdout, stderr)."""

    def run(text: str, *options: str) -> tuple[int, str, str]:
        file = folder / "mine.cu"
        file.write_text(text, encoding="utf-8")
        code = main(["check", str(file), *options])
        return code, *capsys.readouterr()

    return run


def changed(text: str, old: str, new: str) -> str:
    """The text with every ``old`` replaced; there must be one."""
    assert old in text
    return text.replace(old, new)


def refused(result: tuple[int, str, str]) -> str:
    """The stderr of a check that exited with 2 and printed no result."""
    code, out, err = result
    assert code == 2
    assert out == ""
    return err
