"""Verification: a task's verifier is called in worker processes, under limits."""
