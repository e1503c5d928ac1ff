"""Published figures of codecs, to stand beside measured ones. `published_rd.json` names their sources."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

READ = {
    "file": "a table of numbers by the authors",
    "plot": "the authors' figure, digitised (about 1 %)",
    "eye": "the authors' figure, by eye (about 3 %)",
}
# Under which keys runs keep what the papers call by the name on the left; first found counts.
_SAME = {"fid": ("fid", "fid_256"), "kid": ("kid", "kid_256"), "lpips": ("lpips", "lpips_alex")}


@dataclass(frozen=True)
class PublishedCurve:
    """What somebody published of a codec on a set."""

    codec: str
    source: str
    read: str
    """How the figures were obtained, a key of `READ`."""
    points: Sequence[Mapping[str, float]]
    """By rate, lowest first: `bpp` and metrics."""

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """Return rate and value of the points that have a metric, named as runs name it."""
        name = next((published for published, keys in _SAME.items() if metric in keys), metric)
        return [(point["bpp"], point[name]) for point in self.points if name in point]


@functools.cache
def _content() -> Mapping[str, Any]:
    content: Mapping[str, Any] = json.loads(
        files("glc.evaluation").joinpath("published_rd.json").read_text("utf-8")
    )
    return content


def published_curves(data_name: str) -> list[PublishedCurve]:
    """Return what was published on a set: `kodak`, `clic2020` or `div2k`; nothing for others."""
    return [
        PublishedCurve(
            codec=entry["codec"],
            source=entry["source"],
            read=entry["read"],
            points=sorted(entry["points"], key=lambda point: point["bpp"]),
        )
        for entry in _content()["sets"].get(data_name, [])
    ]


def published_latencies() -> list[Mapping[str, Any]]:
    """Return published times: `codec, device, size, encode, decode` (ms), `params_m` (millions), `source`."""
    return list(_content()["latency"])


def published_ablations() -> Mapping[str, Any]:
    """Return the paper's ablations: `set`, `what`, `source`, and `percent` by variant."""
    found: Mapping[str, Any] = _content()["ablations"]
    return found
