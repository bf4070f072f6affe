"""The engine `openai` for r3core; importing this package imports nothing else."""
