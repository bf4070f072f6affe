"""How the threads of torch wait for each other on the CPU.

By default OpenMP's threads spin: one that has done its part of an operation keeps its processor busy until the others
have done theirs. Beside another busy process a thread that spins takes the time of the one that it waits for, at every
operation, and a small model then spends nearly all of its time waiting. Threads that sleep cost a little more per
operation on an idle machine.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

OF_THE_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Environment variables that set how threads wait: where one of them is set, it stands."""


def let_threads_sleep(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let waiting threads sleep, in this process and in those that it starts, if torch is not imported yet."""
    if not any(name in environ for name in OF_THE_USER):
        environ["OMP_WAIT_POLICY"] = "PASSIVE"
