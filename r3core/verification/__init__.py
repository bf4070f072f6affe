"""Verification: a task's verifier runs in worker processes, under limits."""
