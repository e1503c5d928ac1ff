#!/bin/sh
# torch 2.15.0 (oneDNN 3.13.3), on x86-64 with AVX-512 or AMX: threads that share a core make the weight gradient of a bfloat16 convolution
# up to 27 times slower, with OMP_WAIT_POLICY=passive.
#
# Expected: with OMP_WAIT_POLICY=passive a thread that waits sleeps, so that two threads on one core take about as long as one, as in float32.
#
# Observed (one core, two threads against one, convolution of 192 channels, 3x3, on 8 maps of 8x8, channels-last):
#
#   float32: 7.9 ms with one thread, 7.6 with two, ratio 1.0
#   bfloat16: 2.8 ms with one thread, 75.3 with two, ratio 26.9
#
# The threads sum their parts of the gradient in brgemm_convolution_bwd_weights, behind a barrier of oneDNN's own that spins: the thread that
# waits keeps the core until the scheduler takes it away. ONEDNN_MAX_CPU_ISA=AVX2 avoids it and is 20 times slower.
#
# Affected: training in bfloat16 on a machine that others use too; float32 is slowed in proportion, bfloat16 stands still.
# Workaround: as many threads as there are free cores (OMP_NUM_THREADS).
set -eu
grep -q -m1 avx512f /proc/cpuinfo || { echo "needs a processor with AVX-512"; exit 0; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy
OMP_WAIT_POLICY=passive "$folder/env/bin/python" - <<'PY'
import os
import time

import torch
import torch.nn.functional as F

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def seconds(dtype, threads):
    torch.set_num_threads(threads)
    x = torch.randn(8, 192, 8, 8).to(dtype).contiguous(memory_format=torch.channels_last)
    w = torch.randn(192, 192, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()

    def step():
        torch.autograd.grad(F.conv2d(x, w, padding=1).float().sum(), w)

    step()
    taken = []
    for _ in range(20):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return sorted(taken)[10]


ratios = {}
for dtype in (torch.float32, torch.bfloat16):
    one, two = seconds(dtype, 1), seconds(dtype, 2)
    ratios[dtype] = two / one
    print(f"{dtype}: {1e3 * one:.1f} ms with one thread, {1e3 * two:.1f} with two, ratio {two / one:.1f}")
if ratios[torch.bfloat16] < 3 * ratios[torch.float32]:
    raise SystemExit("the behaviour has changed")
PY
