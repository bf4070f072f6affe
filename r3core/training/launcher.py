"""The process between a run and its training processes: accelerate's launcher, in a process of its own.

    python -m r3core.training.launcher EXIT_CODES ARGUMENTS_OF_ACCELERATE_LAUNCH...

It changes signal handlers and environment variables as it likes, and prints to what it is given as standard output;
none of that reaches the run. Exit codes of training processes that failed are written to the file EXIT_CODES.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

from r3core.training.launch import end_with_run


def main() -> None:
    """Start the training processes and wait for them; exit code 1 when one of them failed."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    end_with_run()
    logging.disable(logging.CRITICAL)  # torch logs a table and tracebacks of what the run reports in one line
    report, *arguments = sys.argv[1:]
    try:
        launch_command(launch_command_parser().parse_args(arguments))
    except ChildFailedError as failed:  # several processes, under torch's elastic agent
        exit_codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
    except subprocess.CalledProcessError as failed:  # one process, which accelerate starts without the agent
        exit_codes = {0: failed.returncode}
    except (KeyboardInterrupt, SignalException):  # the run was stopped, and passed it on
        sys.exit(130)
    else:
        return
    Path(report).write_text(json.dumps(exit_codes), encoding="utf-8")
    sys.exit(1)


if __name__ == "__main__":
    main()
