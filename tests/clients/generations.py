"""The client module `diffusers.utils.remote_utils` of several diffusers releases, each as it was published.

    python generations.py     fetches the ones that are not installed, so that the tests need no network

Only that one file is taken from the wheel of an older release. It is loaded inside the installed diffusers, which gives it
its image processors, and with the safetensors it was written for: releases before 0.39 call a function that safetensors
0.8 no longer has. What is fetched lies in the Python environment's own folder.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

OLDER = ("0.33.1", "0.36.0")
INSTALLED = importlib.metadata.version("diffusers")
ALL = (*OLDER, INSTALLED)
SAFETENSORS = "0.7.0"
MODULE = "diffusers/utils/remote_utils.py"
FOLDER = Path(sys.prefix) / "client-generations"


class Unavailable(Exception):
    """A release could not be fetched."""


@functools.cache
def load(version):
    """The module of that release.

    Raises:
        Unavailable: it is not there and cannot be fetched.
    """
    # First, so that what the installed diffusers imports is not the older safetensors.
    installed = importlib.import_module("diffusers.utils.remote_utils")
    if version == INSTALLED:
        return installed
    fetch(version)
    # Its relative imports are resolved by the package of this name.
    name = f"diffusers.utils.remote_utils_{version.replace('.', '_')}"
    spec = importlib.util.spec_from_file_location(name, _module(version))
    module = importlib.util.module_from_spec(spec)
    with _older_safetensors():
        spec.loader.exec_module(module)
    return module


def fetch(version):
    """Takes the module from the release's wheel, and the safetensors it wants, unless they are there."""
    if not _module(version).is_file():
        with tempfile.TemporaryDirectory() as folder:
            _pip("download", "--dest", folder, f"diffusers=={version}")
            (wheel,) = Path(folder).glob("*.whl")
            text = zipfile.ZipFile(wheel).read(MODULE)
        _module(version).parent.mkdir(parents=True, exist_ok=True)
        _module(version).write_bytes(text)
    if not (FOLDER / "safetensors").is_dir():
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            _pip("install", "--target", folder, f"safetensors=={SAFETENSORS}")
            (Path(folder) / "safetensors").rename(FOLDER / "safetensors")


def _module(version):
    return FOLDER / f"diffusers-{version}" / "remote_utils.py"


def _pip(command, *arguments):
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", command, *options, *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    )
    if done.returncode != 0:
        raise Unavailable(f"pip {command} {arguments[-1]}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")


@contextlib.contextmanager
def _older_safetensors():
    """While this holds, `import safetensors` gives the older release; whoever has imported either keeps what they have."""

    def take():
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "safetensors"}

    newer = take()
    sys.modules |= _older_modules
    sys.path.insert(0, str(FOLDER))
    try:
        yield
    finally:
        sys.path.remove(str(FOLDER))
        _older_modules.update(take())
        sys.modules.update(newer)


# A process loads the older release once.
_older_modules = {}


if __name__ == "__main__":
    for release in OLDER:
        fetch(release)
        print(f"client of diffusers {release}: {_module(release)}")
