"""The reference model of `beta > 0` is the model that training starts from, whatever its revision."""

from __future__ import annotations

from pathlib import Path

import password
import pytest
from programs import finished, program, settings

from r3core.runs import RunRecord
from r3core.train import grpo_config

pytestmark = [pytest.mark.slow, pytest.mark.processes]

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


def hub_cache(home: Path) -> None:
    """Create the cache of a Hub model with two revisions: random on `main`, trained on the protocol on `v1`."""
    repository = home / "hub" / "models--org--doors"
    for revision, commit in COMMITS.items():
        folder = repository / "snapshots" / commit
        password.beginner(steps=0 if revision == "main" else 300).save_pretrained(folder)
        password.tokenizer().save_pretrained(folder)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)


def test_the_kl_term_is_zero_before_the_first_update_under_a_revision(tmp_path: Path) -> None:
    hub_cache(tmp_path / "home")
    file = settings(tmp_path, Path("org/doors"), max_steps=1, beta=0.1)
    command = ["run", "--config", file, "--set", "revision=v1", "--set", "evaluate.limit=2"]
    code, _, err = finished(program(*command, "--output-dir", tmp_path / "run", HF_HOME=str(tmp_path / "home")))
    assert code == 0, err
    [step] = RunRecord(tmp_path / "run").read("train")
    assert step["kl"] == 0.0
    assert "model_init_kwargs" not in err, "TRL's warning is wrong here"


@pytest.mark.parametrize("trusted", [False, True])
def test_the_reference_model_runs_code_of_its_own_only_where_the_user_allows_it(trusted: bool, tmp_path: Path) -> None:
    config = password.config(steps=1, beta=0.1).model_copy(update={"trust_remote_code": trusted, "revision": "v1"})
    args = grpo_config(password.protocol(config), tmp_path, on_cpu=True)
    assert args.trust_remote_code is trusted
    assert args.model_init_kwargs == {"revision": "v1"}
