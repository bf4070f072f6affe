"""Time `r3 --help` and `r3 tasks` against a typer app with one command; the exit code is 1 when one takes too long.

The bare app is a plain `typer.Typer()`. It is timed both when it prints its help, which rich renders, and when its
command prints a word; the faster of the two is the baseline. All are started in turn, so that other load on the
machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

LIMIT = 2.5
"""The maximum time of a command, as a multiple of the bare app's."""

BARE = "import typer\napp = typer.Typer()\n@app.command()\ndef hello() -> None: print('hello')\napp()"
R3 = "from r3core.cli.main import main\nmain()"
BASELINES = {"bare typer app --help": [BARE, "--help"], "bare typer app": [BARE]}
COMMANDS = {"r3 --help": [R3, "--help"], "r3 tasks": [R3, "tasks"]}


def main() -> None:
    """Print the median times and their ratios to the faster bare app's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="number of starts of each, at least 10")
    rounds = max(10, parser.parse_args().rounds)
    started = BASELINES | COMMANDS
    seconds: dict[str, list[float]] = {name: [] for name in started}
    for name, command in started.items():
        _time(name, command)  # compiles the byte code
    for _ in range(rounds):
        for name, command in started.items():
            seconds[name].append(_time(name, command))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    bare = min(medians[name] for name in BASELINES)
    ratios = {name: medians[name] / bare for name in COMMANDS}
    print(f"median of {rounds} starts, in turn; at most {LIMIT} times the faster bare app")
    for name in BASELINES:
        print(f"{name:<24}{medians[name]:6.3f} s")
    for name, ratio in ratios.items():
        print(f"{name:<24}{medians[name]:6.3f} s  {ratio:4.2f} times  {'ok' if ratio <= LIMIT else 'TOO SLOW'}")
    sys.exit(max(ratios.values()) > LIMIT)


def _time(name: str, command: list[str]) -> float:
    started_at = time.perf_counter()
    ended = subprocess.run([sys.executable, "-c", *command], capture_output=True, text=True)
    took = time.perf_counter() - started_at
    if ended.returncode:
        sys.exit(f"{name} failed:\n{ended.stderr}")
    return took


if __name__ == "__main__":
    main()
