"""The command line: its arguments, the commands on runs, and the commands for task authors."""
