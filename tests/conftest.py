"""What holds for all tests."""

from __future__ import annotations

import os
import signal

# A suite that a shell started in the background ignores interrupts, and so would every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Nothing here is timed against a bar, and batches are small: one thread each, in processes that a test starts too. So a seed
# gives the same weights whatever else runs. It has to stand before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Each of several workers has a core to itself, and so do the sessions that it opens: on shared ones, threads wait for threads.
_worker = os.environ.get("PYTEST_XDIST_WORKER")
if _worker is not None and hasattr(os, "sched_setaffinity"):
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_cores[int(_worker.removeprefix("gw")) % len(_cores)]})
