"""What makes compositions, forked programs and garbage collections of the tests fast."""

import atexit
import gc
import pickle
from collections.abc import Callable
from pathlib import Path

from hydra._internal.config_repository import ConfigRepository
from hydra.plugins.config_source import ConfigResult

from glc.launch.config import CONF
from glc.launch.overrides import compose

Load = Callable[[ConfigRepository, str], ConfigResult | None]


def reading_once(read: Load) -> Load:
    """Return `ConfigRepository.load_config`, which keeps the files of conf/ for later compositions."""
    kept: dict[tuple[tuple[str, ...], str], bytes] = {}

    def load(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        sources = tuple(source.path for source in self.sources)
        if any(Path(path).is_absolute() and Path(path) != CONF for path in sources):
            return read(self, config_path)  # a test's own folder, whose files may change
        if (sources, config_path) not in kept:
            kept[sources, config_path] = pickle.dumps(read(self, config_path))
        found: ConfigResult | None = pickle.loads(kept[sources, config_path])  # compositions change it
        return found

    return load


def skip_in_collections() -> None:
    """Let the garbage collector skip what exists now, and run less often: walking through it takes long."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def warm_up() -> None:
    """Import and read what a training run needs, so that forked programs need not."""
    import lpips  # noqa: F401
    import pillow_jxl  # noqa: F401
    import s3fs  # noqa: F401
    from PIL import Image

    import glc.data.module  # noqa: F401

    Image.init()
    ConfigRepository.load_config = reading_once(ConfigRepository.load_config)  # type: ignore[method-assign]
    for stage in ("vqvae", "transform", "joint"):
        compose("train", [f"stage={stage}", "model=tiny", "data=folder", "data.train=a", "data.val=b"])
    skip_in_collections()
    atexit.register(gc.unfreeze)  # else triton complains of leaks at exit
