"""scripts/app_packages.py: the entries of the app's lock file that are installed."""

from importlib.metadata import version

from tests.programs import load_script


def test_missing_and_differing_packages_are_installed_except_torch() -> None:
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
