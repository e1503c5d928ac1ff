"""Published figures: each with its source, plausible, and under the names of the metrics that runs have."""

import pytest
from glc.evaluation.published import READ, published_ablations, published_curves, published_latencies

SETS = ("kodak", "clic2020", "div2k")
RANGES = {
    "bpp": (0.001, 0.2),
    "psnr": (10, 32),
    "ms_ssim": (0.5, 1),
    "lpips": (0.05, 0.7),
    "dists": (0.03, 0.4),
    "fid": (1, 30),
    "kid": (1e-5, 1e-2),
}


@pytest.mark.parametrize("data", SETS)
def test_figures_are_plausible_and_have_sources(data: str) -> None:
    curves = published_curves(data)
    assert curves[0].codec == "GLC"
    for entry in curves:
        assert entry.source
        assert entry.read in READ
        rates = [point["bpp"] for point in entry.points]
        assert rates == sorted(rates)
        for point in entry.points:
            assert all(RANGES[key][0] < value < RANGES[key][1] for key, value in point.items())


def test_nothing_is_known_of_other_sets() -> None:
    assert not published_curves("folder")


def test_metrics_under_the_names_of_runs() -> None:
    entry = published_curves("clic2020")[0]
    assert entry.curve("fid_256") == entry.curve("fid") != []
    # Of other patches nothing was published.
    assert entry.curve("fid_64") == []
    assert published_curves("kodak")[0].curve("psnr")[0] == (0.0247, 21.32)


def test_vvc_on_kodak_near_0048() -> None:
    """The point that measured VVC is held against."""
    (vvc,) = (entry for entry in published_curves("kodak") if "VVC" in entry.codec)
    assert dict(vvc.curve("psnr"))[0.048] == pytest.approx(26.1, abs=0.05)


def test_latencies_and_ablations() -> None:
    for entry in published_latencies():
        assert entry["source"]
        assert 0 < entry["encode"] < 2000
        assert 0 < entry["decode"] < 2000
    found = published_ablations()
    assert found["set"] in SETS
    assert found["percent"]["attention 32"] == 0
