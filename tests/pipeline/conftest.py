import os
import sys
import tempfile
from pathlib import Path

HERE = str(Path(__file__).parent)
if (
    HERE not in sys.path
):  # the toy stages are a user's own stages: full import paths, found by Ray's workers too
    sys.path.insert(0, HERE)
os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (HERE, os.environ.get("PYTHONPATH", "")) if p)

_CACHE = tempfile.TemporaryDirectory(
    prefix="vlpipe-tests-"
)  # digests of outside files: not into the user's own
os.environ["XDG_CACHE_HOME"] = _CACHE.name
