"""scripts/app_packages.py: what of the page's lock is to be installed beside the environment."""

from importlib.metadata import version

from tests.programs import load_script


def test_only_what_differs_is_installed_and_torch_stays() -> None:
    lock = f"""click=={version("click")} \\
    --hash=sha256:00
gradio==0.0.1 ; python_version > "3.10" \\
    --hash=sha256:11 \\
    --hash=sha256:22
torch==0.0.1 \\
    --hash=sha256:33
"""
    (entry,) = load_script("app_packages").missing(lock)
    assert entry.startswith("gradio==0.0.1 ;")
    assert entry.count("--hash") == 2
