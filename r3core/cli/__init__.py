"""The command line: its arguments, the commands on runs, and those for the authors of tasks."""
