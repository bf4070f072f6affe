"""The figures that `r3 explain` reads of a run, as one small file: `python tests/support/figures.py RUN > FILE`.

`countdown.json` holds those of the demonstration, `r3 run --task countdown --set evaluate.cross=true`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from r3core.config import NOT_SETTINGS, Config
from r3core.explain.figures import Figures, figures_of
from r3core.recorded import config_of
from r3core.runs import RunRecord

DEMONSTRATION = Path(__file__).with_name("countdown.json")


def demonstration() -> tuple[Figures, Config]:
    """Return the figures and the configuration of the demonstration."""
    recorded = json.loads(DEMONSTRATION.read_bytes())
    return Figures.model_validate(recorded["figures"]), Config.model_validate(recorded["config"])


def _extract(folder: Path) -> dict[str, Any]:
    run = RunRecord(folder)
    figures = figures_of(run, config_of(folder))
    config = {key: value for key, value in run.read_json("config").items() if key not in NOT_SETTINGS}
    return {"config": config, "figures": figures.model_dump(mode="json")}


if __name__ == "__main__":
    print(json.dumps(_extract(Path(sys.argv[1])), separators=(",", ":")))
