"""One of several processes that train a recipe to its end: `resume_worker.py JOBS.pickle`, a list of configs for `fit`.

KILL_AT=n: SIGKILL of this process after its n-th step of a job.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from pathlib import Path

from tests.ranks import join, leave
from vlpipe.models import distributed
from vlpipe.stages.train import fit

if __name__ == "__main__":
    join()
    step = fit.train_step

    def fatal(run, batches):  # type: ignore[no-untyped-def]
        step(run, batches)
        if os.environ.get("KILL_AT") == str(run.step):
            os.kill(os.getpid(), signal.SIGKILL)

    fit.train_step = fatal
    for config in pickle.loads(Path(sys.argv[1]).read_bytes()):
        fit.fit(config)
        distributed.use(None)
    leave()
