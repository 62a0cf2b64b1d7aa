"""Another process that is at work somewhere."""

import subprocess
import sys
from contextlib import contextmanager

HOLDS = (
    "import pathlib, sys\nfrom softpool3d.runs.lock import claim\n"
    "with claim(pathlib.Path(sys.argv[1]), is_folder=bool(sys.argv[2]), request=sys.argv[3]):\n"
    "    print('held', flush=True)\n    sys.stdin.read()\n"
)


@contextmanager
def held(path, request="", is_folder=False):
    """It has claimed the path; yields its number."""
    command = [sys.executable, "-c", HOLDS, path, "yes" if is_folder else "", request]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        yield holder.pid
        holder.stdin.close()
