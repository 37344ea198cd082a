"""`python -m tools.peers`: PEFT's generic test suite with `ThoughtConfig` in the place of `LoraConfig`.

Fetches PEFT's source distribution of the installed version from the package registry, unpacks it into `build/peers`,
makes tiny random models on disk under the names that the suite asks for (no hub is contacted), and runs the suite with
the plugin of this folder. Ends with 1 if a test neither passed, nor was refused by us, nor is on the list of those that
do not apply.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "peers"
SUITES = ("test_decoder_models.py",)


def main() -> int:
    """Fetch, prepare, run."""
    sources = fetch_sources(version("peft"))
    (sources / "tests" / "__init__.py").touch()
    models = BUILD / "models"
    from tools.peers.models import make_models

    make_models(models)
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tools.peers.plugin", "-c", os.devnull,
        "--rootdir", str(sources), "--tb=no", "-r", "N", "-W", "ignore",
        *(str(sources / "tests" / suite) for suite in SUITES), *sys.argv[1:],
    ]  # fmt: skip
    # The suite asks for models by their hub ids; run where folders of these names lie, it finds them there.
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=models, env=environment, check=False).returncode


def fetch_sources(release: str) -> Path:
    """The unpacked source distribution of a PEFT release; fetched once."""
    folder = BUILD / f"peft-{release}"
    if not folder.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        fetch = ["download", "--quiet", "--no-binary", "peft", "--no-deps", f"peft=={release}", "--dest", str(BUILD)]
        subprocess.run([sys.executable, "-m", "pip", *fetch], check=True)
        with tarfile.open(BUILD / f"peft-{release}.tar.gz") as archive:
            archive.extractall(BUILD, filter="data")
    return folder


if __name__ == "__main__":
    sys.exit(main())
