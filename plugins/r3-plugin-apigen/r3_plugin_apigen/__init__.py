"""The function calling task for r3core; importing this package imports nothing else."""
