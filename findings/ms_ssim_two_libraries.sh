#!/bin/sh
# pytorch-msssim 1.0.0, torchmetrics 1.9.0 (torch 2.15.0): MS-SSIM of the same two colour images differs by 0.02.
#
# Expected: equal to four decimals, with the same window (11, sigma 1.5), weights and range.
#
# Observed: 0.789 and 0.813 where the channels are disturbed differently. pytorch-msssim multiplies the scales for each channel
# and then takes the mean; torchmetrics takes the mean over channels at each scale and then multiplies. Channel by channel the
# two agree. On decoded photographs, whose channels differ less, the gap is about 0.001.
#
# Affected: tables that compare codecs by MS-SSIM from different programs; differences between papers are often 0.002.
# Workaround: compare numbers of one library only, or compute each channel and take the mean.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 torchmetrics==1.9.0 pytorch-msssim==1.0.0 numpy
"$folder/env/bin/python" - <<'PY'
import torch
from pytorch_msssim import ms_ssim
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as other

generator = torch.Generator().manual_seed(0)
coarse = torch.rand(1, 3, 24, 24, generator=generator, dtype=torch.float64)
image = torch.nn.functional.interpolate(coarse, (384, 384), mode="bicubic", align_corners=False).clamp(0, 1)
noise = torch.randn(1, 3, 384, 384, generator=generator, dtype=torch.float64)
changed = (image + 0.2 * noise * torch.tensor([0.2, 1.0, 2.0]).view(1, 3, 1, 1)).clamp(0, 1)
first, second = (float(measure(image, changed, data_range=1.0)) for measure in (ms_ssim, other))
channels = [float(other(image[:, i : i + 1], changed[:, i : i + 1], data_range=1.0)) for i in range(3)]
mean = sum(channels) / 3
print(f"pytorch-msssim {first:.4f}, torchmetrics {second:.4f}, its mean over the channels {mean:.4f}")
if abs(first - second) < 0.01 or abs(first - mean) > 1e-3:
    raise SystemExit("the behaviour has changed")
PY
