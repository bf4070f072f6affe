"""The engine `ray` for r3core; importing this package imports nothing else."""
