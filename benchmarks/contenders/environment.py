"""A separate virtual environment for the peers, which uses the torch of the current environment."""

import json
import os
import site
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PINNED = ("torchdistill==1.1.5", "timm==1.0.31")
INSTALL_TIMEOUT_S = 300
MARKER = "peers.json"


def default_folder() -> Path:
    """Return a folder in the user's cache, or below the temporary folder if the cache cannot be written."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        cache = Path(tempfile.gettempdir())
    base = cache if os.access(cache, os.W_OK) else Path(tempfile.gettempdir())
    return base / f"w2skd-peers-{sys.version_info.major}.{sys.version_info.minor}"


def prepare(folder: Path) -> tuple[Path, str | None]:
    """Create the environment unless it exists, and install the peers without their dependencies.

    w2skd has the dependencies that the peers need at run time, so they come from the current environment.

    Returns:
        The Python interpreter for the contenders and None. If the peers could not be installed, the current interpreter
        and the reason.
    """
    python, packages = folder / "bin" / "python", site.getsitepackages()
    wanted = json.dumps({"pinned": PINNED, "packages": packages})
    marker = folder / MARKER
    if python.exists() and marker.exists() and marker.read_text() == wanted:
        return python, None
    try:
        venv.EnvBuilder(with_pip=True, clear=True).create(folder)
        install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check", *PINNED]
        subprocess.run(install, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout or "").strip().splitlines()
        return Path(sys.executable), f"pip failed: {lines[-1] if lines else error}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return Path(sys.executable), f"cannot create {folder}: {error}"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    own_packages = folder / "lib" / version / "site-packages"
    (own_packages / "current_environment.pth").write_text("".join(f"{path}\n" for path in packages))
    marker.write_text(wanted)
    return python, None
