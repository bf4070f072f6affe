"""Imported by the clean process that workers are forked from, and by no other: what every worker needs.

A worker that is stopped while it is still starting says nothing; what goes wrong later is told by the worker's results.
"""

import sys

import r3core.verification.worker  # noqa: F401  # so that workers find it imported

sys.excepthook = lambda *_: None
