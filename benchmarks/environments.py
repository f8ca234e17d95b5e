"""Make the environments that rivals run in, one for each benchmarks/rivals/*.txt: they do not fit beside ours.

    python -m outzoom.benchmarks.environments DIR [NAME ...]

NAME is a file's, without its ending; without any, all are made. An environment that is whole already is left alone.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from ..runtime.errors import OutzoomError, unknown_name
from ..runtime.files import check_replaceable
from .scripts import complain

SETUPS = Path(__file__).parent / "rivals"
ENVIRONMENT = "pyvenv.cfg"  # what every environment has: no other folder is replaced
INSTALLED = "installed.txt"  # what an environment was made of; there when it is whole


def setup_files() -> dict[str, Path]:
    """The setup file of each rival, by name."""
    return {file.stem: file for file in sorted(SETUPS.glob("*.txt"))}


def make(name: str, folder: Path) -> bool:
    """Make the environment of a rival in `folder`/`name`, anew unless it is whole; whether there was anything to do.

    Raises UserError for a name that no rival has and for a folder that is no environment, OutzoomError with pip's own
    words when it fails.
    """
    files = setup_files()
    if name not in files:
        raise unknown_name("rival", name, files)
    environment, wanted = folder / name, files[name].read_bytes()
    if (installed := environment / INSTALLED).is_file() and installed.read_bytes() == wanted:
        return False
    check_replaceable(environment, ENVIRONMENT)
    shutil.rmtree(environment, ignore_errors=True)
    venv.create(environment, with_pip=True)
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    command = [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(files[name])]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise OutzoomError(f"pip can't install what {name} needs: {done.stderr.strip()[-600:]}", hint=str(files[name]))
    installed.write_bytes(wanted)
    return True


def run(names: Sequence[str], folder: Path) -> None:
    """Make them in turn."""
    for name in names or setup_files():
        print(f"{name}: {'made' if make(name, folder) else 'there already'}", flush=True)


def main() -> int:
    """Make what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(setup_files())}")
    args = parser.parse_args()
    try:
        run(args.names, args.folder)
    except OutzoomError as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
