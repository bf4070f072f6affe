"""Preload module of the fork server, the clean process that workers are forked from; nothing else imports it.

Workers start faster because they inherit what is imported here. The server itself must stay small and without threads,
so this module imports the worker's code only: no torch, no task.
"""

import sys

import r3core.verification.worker  # noqa: F401  # imported once here, inherited by every worker

# A worker that is stopped while it is still starting must not print a traceback. Nothing is lost: errors in a task's
# code come back as results, and a dead worker is noticed by its exit code.
sys.excepthook = lambda *_: None
