"""The commands on runs, in the process of the test: their options, output and error messages."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from command import R3, succeed

pytestmark = pytest.mark.slow

TOY = Path(__file__).with_name("support") / "toy.py"
TASK = f"{TOY}:Even"
TINY = [
    *(f"sampling.{turn}.max_tokens=6" for turn in ("attempt", "reflection", "retry")),
    *("mine.limit=12", "mine.probe=2", "evaluate.limit=8", "grpo.max_steps=1", "grpo.num_generations=4"),
    *("grpo.per_device_train_batch_size=4", "grpo.gradient_accumulation_steps=1", "grpo.gradient_checkpointing=false"),
    "mine.keep_truncated=true",  # a random model ends no turn
    "mine.order=head",
    "evaluate.controls=false",
    "uncertified=true",  # `Even` lets almost everything pass
]


def settings(*overrides: str) -> list[str]:
    return [word for override in (*TINY, *overrides) for word in ("--set", override)]


@pytest.fixture
def asked(tiny_folder: Path) -> list[str]:
    """The options of a run that takes a moment."""
    return ["--task", TASK, "--model", str(tiny_folder), "--output-dir", "run", *settings()]


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; do not write to it."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    succeed("run", "--task", TASK, "--model", tiny_folder, "--output-dir", directory, *settings())
    return directory


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A finished run that may be written to; its configuration says where it came from, and that is no matter."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_prints_its_table(r3: R3, copied: Path) -> None:
    said = r3("run", "--output-dir", "run")
    assert said.code == 0
    for word in ("first try", "second try", "fix rate", "- run directory: run"):
        assert word in said.out
    assert said.err == "page: run/report.html\n"


def test_a_run_ends_with_its_diagnosis(r3: R3, copied: Path) -> None:
    printed, explained = r3("run", "--output-dir", "run"), r3("explain", "run")
    assert "1. references-refused: " in explained.out  # `Even` lets almost everything pass
    assert printed.out.endswith(explained.out)
    as_json = r3("run", "--output-dir", "run", "--json")
    assert json.loads(as_json.out)["base"]
    assert explained.out in as_json.err


def test_a_run_wants_a_verifier_that_passes_the_check(r3: R3, asked: list[str]) -> None:
    said = r3("run", *asked, "--set", "uncertified=false")
    assert said.code == 1
    assert "error: the verifier of task `even` does not pass `r3 check`; fail: " in said.err
    assert "`empty`" in said.err
    assert "shows all findings; fix the verifier, or train without a certificate: --uncertified" in said.err
    assert not Path("run/mine.jsonl").exists()
    assert json.loads(Path("run/certificate.json").read_text())["outcome"] == "fail"


def test_without_certificate_a_run_is_marked_wherever_it_is_shown(r3: R3, copied: Path) -> None:
    certificate = json.loads((copied / "certificate.json").read_text())
    assert certificate["outcome"] == "fail"
    assert json.loads((copied / "model" / "certificate.json").read_text()) == certificate
    card = " ".join((copied / "model" / "README.md").read_text().split())
    assert "## Verifier `r3 check`, fail: " in card
    assert "the verifier was not required to pass `r3 check` (--uncertified)" in card
    assert "was not required to pass" in " ".join(r3("report", "--output-dir", "run").out.split())


def test_a_certificate_is_made_once(r3: R3, asked: list[str]) -> None:
    refused = [r3("run", *asked, "--set", f"uncertified={value}", "--limit", "1") for value in ("false", "false")]
    assert "checking the verifier" not in refused[1].err
    assert refused[0].code == refused[1].code == 1


def test_training_wants_failures_before_it_checks_the_verifier(r3: R3, asked: list[str]) -> None:
    said = r3("train", *asked, "--set", "uncertified=false")
    assert said.code == 2
    assert "there are no failures" in said.err


def test_the_stages_one_by_one_are_a_run(r3: R3, asked: list[str], finished: Path) -> None:
    told = {}
    for stage in ("mine", "train", "eval", "report"):
        said = r3(stage, *(asked if stage != "report" else ["--output-dir", "run"]), "--json")
        assert said.code == 0, said.err
        told[stage] = json.loads(said.out)
    assert Path(told["mine"]["failures"]) == Path("run/failures")
    assert told["mine"]["counts"]["attempts"] == 12
    assert told["train"]["model"] == "run/model"
    assert sum(told["train"]["shares_of_a_step"].values()) == pytest.approx(1)
    assert told["eval"] == told["report"]
    assert Path("run/mine.jsonl").read_bytes() == (finished / "mine.jsonl").read_bytes()
    assert json.loads(r3("run", "--output-dir", "run", "--json").out) == told["report"]


def test_the_stages_one_by_one_in_words(r3: R3, asked: list[str]) -> None:
    said = r3("mine", *asked)
    assert said.out.startswith("failures: run/failures\ncounts: problems 12, attempts 12, ")
    assert "forecast from" in said.err
    assert r3("eval", *asked).out.count("│") > 20


def test_an_existing_run_needs_no_other_option(r3: R3, copied: Path) -> None:
    for command in ("run", "mine", "train", "eval", "report"):
        assert r3(command, "--output-dir", "run").code == 0


@pytest.mark.parametrize(
    "more", [["--seed", "0"], ["--set", "seed=0"], ["--task-option", "problems=24"], ["--limit", "12"]]
)
def test_an_option_beside_the_directory_is_never_overlooked(r3: R3, copied: Path, more: list[str]) -> None:
    said = r3("run", "--output-dir", "run", *more)
    assert said.code == 2
    assert "error: no task is named" in said.err


def test_another_configuration_in_the_same_directory_is_refused(r3: R3, asked: list[str], copied: Path) -> None:
    said = r3("run", *asked, "--seed", "7")
    assert said.code == 2
    assert "holds a run with another configuration: seed was 0, now 7" in said.err


def test_a_trained_model_is_compared_with_what_it_was_trained_from(r3: R3, finished: Path, tiny_folder: Path) -> None:
    said = r3("eval", "--model", finished / "model", "--json", *settings())
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert set(told) == {"base", "trained", "paired", "cross", "reflections", "problems", "also", "greedy"} | {
        "seconds",
        "shares_of_a_step",
    }
    expected = json.loads((finished / "result.json").read_text())
    assert {key: told[key] for key in ("base", "trained", "paired")} == {
        key: expected[key] for key in ("base", "trained", "paired")
    }
    directory = next(Path("runs").iterdir())
    assert json.loads((directory / "config.json").read_text())["model"] == str(tiny_folder)
    assert json.loads((finished / "model" / "r3.json").read_text())["history"] == "template"
    assert json.loads(r3("eval", "--model", finished / "model", "--json", *settings()).out) == told
    for command in ("eval", "report"):
        assert json.loads(r3(command, "--output-dir", directory, "--json").out) == told


def test_a_model_that_was_not_trained_here_is_evaluated_alone(r3: R3, asked: list[str]) -> None:
    told = json.loads(r3("eval", *asked, "--json").out)
    assert told["base"]["first"]["total"] == 8
    assert told["trained"] is None
    assert told["paired"] is None


def test_a_set_of_failures_is_used_instead_of_mining(r3: R3, asked: list[str], finished: Path) -> None:
    said = r3("mine", *asked, "--failures", finished, "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["counts"]["from"] == str(finished)
    assert Path("run/failures/failures.jsonl").read_bytes() == (finished / "failures/failures.jsonl").read_bytes()


def test_failures_are_taken_over_by_training_too(r3: R3, asked: list[str], finished: Path) -> None:
    said = r3("train", *asked, "--failures", finished, "--json")
    assert said.code == 0, said.err
    assert Path("run/model/model.safetensors").exists()


def test_failures_are_judged_again_by_the_verifier_as_it_is_now(r3: R3, tiny_folder: Path, tmp_path: Path) -> None:
    task = tmp_path / "mine.py"
    task.write_text(TOY.read_text())
    options = ["--task", f"{task}:Even", "--model", str(tiny_folder), "--output-dir", "run", *settings()]
    assert r3("mine", *options).code == 0
    unchanged = json.loads(r3("rescore", "run/failures", "--json").out)
    assert unchanged["changed"] == 0
    assert unchanged["judged"] > 0

    task.write_text(TOY.read_text().replace("len(response) % 2 == 0", "len(response) != 5"))
    changed = json.loads(r3("rescore", "run/failures", "--json", "--output-dir", "again").out)
    assert changed["judged"] == unchanged["judged"] == changed["changed"] + changed["written"]["failures"]
    assert changed["changed"] > 0
    still = [json.loads(line) for line in Path("again/failures.jsonl").read_text().splitlines()]
    assert all(len(failure["attempt"]["text"]) == 5 for failure in still)
    warned = r3("mine", *options[: -len(settings())], *settings("seed=1"), "--failures", "run", "--output-dir", "other")
    assert "the verifier has changed" in warned.err
    if still:
        fresh = r3("mine", *options, "--failures", "again", "--output-dir", "third")
        assert fresh.code == 0
        assert "changed" not in fresh.err


def test_all_of_a_run_is_judged_again(r3: R3, copied: Path, tmp_path: Path) -> None:
    told = json.loads(r3("rescore", "run", "--json").out)
    files = {tally["file"] for tally in told["tallies"]}
    assert files == {"mine", "failures/failures", "train-episodes", "evaluate-base", "evaluate-trained"}
    assert (told["changed"], told["stages"], told["before"]) == (0, ["mine", "train", "evaluate"], told["now"])
    result = json.loads((copied / "result.json").read_text())
    for evaluated, side in zip(told["evaluated"], ("base", "trained"), strict=True):
        assert evaluated["before"] == evaluated["now"]
        assert evaluated["now"] == result[side]

    task = tmp_path / "longer.py"
    task.write_text(TOY.read_text().replace("len(response) % 2 == 0", "len(response) > 2"))
    said = r3("rescore", "run", "--task", f"{task}:Even", "--output-dir", "again")
    assert said.code == 0
    assert "pass -> fail" in said.out
    assert "; now: verifier version 1 (" in said.out
    still = [json.loads(line) for line in Path("again/failures.jsonl").read_text().splitlines()]
    assert all(len(failure["attempt"]["text"]) <= 2 for failure in still)
    mined = len(Path("run/failures/failures.jsonl").read_text().splitlines())
    assert said.out.endswith(f"{len(still)} of {mined} failures still fail; they are in again\n")


def test_show_prints_conversations(r3: R3, tiny_folder: Path) -> None:
    said = r3("show", "--task", TASK, "--model", tiny_folder, "-n", 1, *settings())
    assert said.code == 0
    assert [said.out.count(f"-- {turn}") for turn in ("attempt: fail", "reflection (", "retry: ")] == [1, 1, 1]
    assert "⟦" in said.out
    assert said.err == ""
    assert not list(Path().iterdir())


def test_a_dry_run_explains_and_does_nothing(r3: R3, asked: list[str]) -> None:
    said = r3("run", *asked, "--dry-run")
    assert said.code == 0
    for line in (
        "run directory: run",
        "; a pass is not required (--uncertified)",
        "mine: 12 problems x 1 attempts",
        "train: a step trains on 4 samples = per_device_train_batch_size 4 x gradient_accumulation_steps 1",
        "train: 4 samples are generated at a time = 1 failures x num_generations 4",
        "evaluate: 8 problems x 1, without controls\n",
        "evaluate: each model generates at most ",
    ):
        assert line in said.out
    assert not list(Path().iterdir())


@pytest.mark.parametrize("command", ["run", "mine", "train", "eval"])
def test_a_dry_run_writes_nothing(r3: R3, tiny_folder: Path, command: str) -> None:
    said = r3(command, "--task", TASK, "--model", tiny_folder, *settings(), "--dry-run")
    assert said.code == 0, said.err
    assert re.search(r"^run directory: runs/Even-[0-9a-f]{8}$", said.out, re.MULTILINE)
    assert not list(Path().iterdir())


def test_a_dry_run_leaves_a_finished_run_as_it_is(r3: R3, copied: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in copied.rglob("*")}
    for command in ("run", "mine", "train", "eval"):
        assert r3(command, "--output-dir", "run", "--dry-run").code == 0
    assert r3("report", "--output-dir", "run", "--dry-run").code == 2
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in copied.rglob("*")} == before


NAMES = {"--task", "--task-option", "--config", "--set", "--output-dir", "--json"}
GENERATES = NAMES | {"--model", "--chat-template", "--preset", "--engine", "--limit", "--seed", "--dry-run", "--quiet"}
MINES = {"--samples", "--keep", "--failures"}
TRAINS = {"--lora", "--processes", "--accelerate-config", "--uncertified"}
RECORDED = {"--run", "--fixed", "--newly-fixed", "--newly-broken", "--category", "--leaked", "--truncated", "--example"}
OPTIONS = {
    "run": GENERATES | MINES | TRAINS | {"--seeds", "--share-mining", "--also"},
    "mine": GENERATES | MINES,
    "train": NAMES | TRAINS | (GENERATES - {"--limit"}) | {"--failures"},
    "eval": GENERATES | {"--also"},
    "report": NAMES | {"--csv", "--png"},
    "show": {"--task", "--task-option", "--model", "--chat-template", "--set", "--seed", "-n", *RECORDED},
    "rescore": {"--task", "--task-option", "--output-dir", "--json", "--quiet"},
}
"""Command -> its options."""


@pytest.mark.parametrize("command", OPTIONS)
def test_a_command_has_the_options_that_concern_it(r3: R3, command: str) -> None:
    listed = re.findall(r"^  (-[\w-]+)", r3(command, "--help").out.partition("Options:")[2], re.MULTILINE)
    assert sorted(listed) == sorted({*OPTIONS[command], "-h"})


@pytest.mark.parametrize(
    ("command", "option"),
    [(command, option) for command in OPTIONS for option in sorted(OPTIONS["run"] - OPTIONS[command])],
)
def test_an_option_of_another_command_is_refused(r3: R3, command: str, option: str) -> None:
    said = r3(command, option, "1")
    assert (said.code, said.out) == (2, "")
    assert f"No such option: {option}" in said.err
    assert not list(Path().iterdir())


def test_a_report_finds_a_run_by_its_settings(r3: R3, tiny_folder: Path) -> None:
    Path("run.yaml").write_text(json.dumps({"task": TASK, "model": str(tiny_folder), "mine": {"limit": 12}}))
    evaluated = r3("eval", "--config", "run.yaml", *settings())
    assert evaluated.code == 0, evaluated.err
    assert r3("report", "--config", "run.yaml", *settings()).out.startswith(evaluated.out.partition("\n- ")[0])
    assert r3("report", "--config", "run.yaml").code == 2  # another run


def test_a_text_option_of_a_task_is_not_read_as_yaml(r3: R3, tiny_folder: Path) -> None:
    Path("named.py").write_text(TOY.read_text() + "\n\nclass Named(Toy):\n    label: str = ''\n")
    given = ["--task", "named.py:Named", "--task-option", "label=no", "--set", "wording.retry=Try: ${x}"]
    said = r3("mine", *given, "--model", tiny_folder, "--dry-run")
    assert said.code == 0, said.err
    assert "label: 'no'" in said.out
    assert "retry: 'Try: ${x}'" in said.out
    assert r3("verify", "named.py:Named", "--response", "2000", "--task-option", "label=007").code == 0


def test_a_dry_run_prints_what_the_check_has_found(r3: R3, asked: list[str]) -> None:
    r3("check", TASK)
    said = r3("run", *asked, "--dry-run", "--set", "uncertified=false").out
    assert re.search(r"^check: fail: \d+ checks, .*; training requires a pass$", said, re.MULTILINE)


def test_an_interrupted_run_prints_how_to_resume(r3: R3, tiny_folder: Path) -> None:
    Path("stopped.py").write_text(
        TOY.read_text().replace("def load(self", "def load(self, _): raise KeyboardInterrupt\n    def unused(self")
    )
    said = r3("mine", "--task", "stopped.py:Toy", "--model", tiny_folder, *settings())
    assert said.code == 130
    assert "interrupted; run the same command to resume\n" in said.err
    assert "Traceback" not in said.err


def test_a_dry_run_suggests_numbers_that_fit(r3: R3, asked: list[str]) -> None:
    said = r3("run", *asked, "--dry-run", "--set", "grpo.num_generations=3")
    assert said.code == 2
    assert "generation batch size (4) must be divisible by num_generations (3)" in said.err
    assert "; num_generations can be 2 or 4" in said.err


MODEL = object()  # stands for the tiny model's folder


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run"], 2, "no task is named"),
        (["run", "--task", "contdown"], 2, "did you mean `countdown`?"),
        (["run", "--task", "nowhere.py:Toy"], 2, "there is no file `nowhere.py`"),
        (["run", "--task", f"{TOY}:Evne"], 2, "did you mean `Even`?"),
        (["run", "--task", TASK], 2, "task `even` ships no model of its own"),
        (["run", "--task", TASK, "--task-option", "size=3"], 2, "task `even` has no option `size`"),
        (["run", "--task", TASK, "--task-option", "problems=many"], 2, "option `problems` (int) cannot be 'many'"),
        (["run", "--task", TASK, "--task-option", "problems"], 2, "is not of the form name=value"),
        (["run", "--task", TASK, "--model", MODEL, "--set", "mine.limt=3"], 2, "did you mean `mine.limit`?"),
        (["run", "--task", TASK, "--model", MODEL, "--set", "mine.limit"], 2, "is not of the form key=value"),
        (["run", "--task", TASK, "--model", MODEL, "--set", "grpo.learnin_rate=1"], 2, "did you mean `learning_rate`?"),
        (["run", "--task", TASK, "--model", MODEL, "--set", "grpo.seed=1"], 2, "`grpo.seed` is set by r3"),
        (["run", "--task", TASK, "--model", MODEL], 2, "`grpo.max_steps` is not set"),
        (
            ["run", "--task", TASK, "--model", MODEL, "--set=grpo.max_steps=5", "--set=grpo.use_vllm=true"],
            2,
            "and vLLM is not installed",
        ),
        (["run", "--task", TASK, "--model", MODEL, "--limit", "0"], 2, "`mine.limit` cannot be 0"),
        (["run", "--task", TASK, "--model", MODEL, "--seed", "-1"], 2, "`seed` cannot be -1"),
        (["run", "--task", TASK, "--model", MODEL, "--preset", "papr"], 2, "did you mean `paper`?"),
        (
            ["run", "--task", TASK, "--model", MODEL, "--engine", "vlm"],
            2,
            "`engine` cannot be 'vlm': installed are openai, ray, transformers, vllm",
        ),
        (["run", "--task", TASK, "--model", MODEL, "--config", "no.yaml"], 2, "there is no file no.yaml"),
        (
            ["mine", "--task", TASK, "--model", MODEL, "--output-dir", "/dev/null/run"],
            2,
            "cannot be used as the run directory",
        ),
        (["mine", "--task", TASK, "--model", MODEL, "--failures", "no"], 2, "`no` is not a failure dataset"),
        (["mine", "--task", TASK, "--model", "no/such/model"], 2, "the model `no/such/model` cannot be loaded"),
        (["mine", "--task", TASK, "--model", "../no/model"], 2, "the model `../no/model` cannot be loaded"),
        (["mine", "--task", TASK, "--model", "/no"], 2, "`/no` contains no model: there is no config.json in it"),
        (["eval", "--model", "."], 2, "no task is named"),
        (["eval", "--task", TASK, "--model", "."], 2, "the model `.` cannot be loaded"),
        (["eval", "--task", TASK], 2, "ships no model of its own"),
        (["mine", "--task", TASK, "--model", MODEL, "--set", "mine.split=tset"], 2, "`mine.split` cannot be 'tset'"),
        (["train", "--task", TASK, "--model", MODEL, "--set", "grpo.max_steps=1"], 2, "there are no failures in"),
        (["report", "--task", TASK, "--set", "model=x"], 2, "is not a run directory"),
        (["report", "--output-dir", "nowhere"], 2, "`nowhere` is not a run directory"),
        (["rescore", "nowhere"], 2, "`nowhere` is neither a run directory nor a failure dataset"),
        (["show", "--task", TASK, "--model", MODEL, "-n", "0"], 2, "Invalid value for '-n'"),
        (["show"], 2, "no task is named"),
        (["run", "--tusk", "x"], 2, "No such option: --tusk"),
        (["run", "--limit", "many"], 2, "Invalid value for '--limit'"),
        (["rum"], 2, "No such command 'rum'"),
    ],
)
def test_a_user_error_is_readable(r3: R3, tiny_folder: Path, arguments: list[object], code: int, message: str) -> None:
    said = r3(*(tiny_folder if argument is MODEL else argument for argument in arguments))
    assert message in said.err
    assert (said.code, said.out) == (code, "")
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("grpo.max_steps=0", "`grpo.max_steps` is not set"),
        ("grpo.num_generations=3", "num_generations can be"),
        ("grpo.beta=much", "`grpo.beta` cannot be 'much'"),
        ("grpo.use_vllm=true", "vLLM is not installed"),
        ("grpo.loss_type=dapoo", "`grpo.loss_type` cannot be 'dapoo'; allowed: bnpo, cispo, dapo"),
        ("grpo.lr_scheduler_type=cosin", "`grpo.lr_scheduler_type` cannot be 'cosin'; allowed: linear, cosine"),
        ("grpo.optim=adam", "`grpo.optim` cannot be 'adam'; allowed: "),
        ("grpo.report_to=wandbb", "`grpo.report_to` cannot be 'wandbb': no such tracker is installed"),
        ("grpo.temperature=0", "the sampling temperature of training (0) must be above 0 in training"),
        ("sampling.reflection.temperature=0", "the sampling temperature of training (0.0) must be above 0 in training"),
        ("grpo.save_strategy=epoch", "`grpo.save_strategy` cannot be 'epoch'; allowed: steps, no"),
        ("grpo.save_steps=0", "`grpo.save_steps` cannot be 0"),
        ("evaluate.split=train", "`evaluate.split` cannot be 'train': `mine.split` is the same split"),
    ],
)
def test_a_mistake_about_training_is_found_before_mining(r3: R3, asked: list[str], mistake: str, message: str) -> None:
    said = r3("run", *asked, "--set", mistake)
    assert (said.code, said.out) == (2, "")
    assert message in said.err
    assert not list(Path().iterdir())
    if mistake != "grpo.use_vllm=true":  # that may be planned for another machine
        assert r3("run", *asked, "--set", mistake, "--dry-run").code == 2


def test_failures_of_the_split_that_is_evaluated_are_refused(r3: R3, asked: list[str], finished: Path) -> None:
    said = r3("run", *asked, "--failures", finished, "--set", "evaluate.split=train", "--output-dir", "other")
    assert said.code == 2
    assert f"`evaluate.split` cannot be 'train': the failures in `{finished}` are from the same split" in said.err


def test_no_checkpoints_is_a_word_and_not_false(r3: R3, asked: list[str]) -> None:
    said = r3("run", *asked, "--set", "grpo.save_strategy=no", "--dry-run")
    assert said.code == 0, said.err
    assert "save_strategy: 'no'" in said.out
    assert "train: no checkpoints (save_strategy=no)" in said.out


def test_a_directory_is_not_spoilt_by_a_mistyped_model(r3: R3, asked: list[str]) -> None:
    mistyped = r3("mine", *asked, "--model", "no/such/model")
    assert (mistyped.code, mistyped.out) == (2, "")
    assert Path("run").exists()
    assert r3("mine", *asked).code == 0


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            "def load(self, split): return open('words.txt')",
            "`load('train')` raised FileNotFoundError: [Errno 2] No su",
        ),
        ("def load(self, split): yield 7", "`load('train')` yielded 7\nhint: yield Examples"),
        ("def load(self, split): ...", "`load('train')` returned None\nhint: yield Examples"),
        (
            "def prompt(self, example): return example.info['words']",
            "`prompt` of example 'n0' raised KeyError: 'words'",
        ),
        (
            "def prompt(self, example): return 7",
            "the prompt of example 'n0' is 7; it must be a str, a list of chat messages or a Prompt",
        ),
        ("def prompt(self): return 'Say 1.'", "`Mine` must define `prompt` as `def prompt(self, example)`"),
        ("prompt: str = 'Say 1.'", "`Mine` has an option `prompt`, an attribute of every task"),
    ],
)
def test_an_error_in_a_task_is_readable(r3: R3, asked: list[str], method: str, message: str) -> None:
    source = Path("own.py")
    source.write_text(f"{TOY.read_text()}\n\nclass Mine(Even):\n    name = 'mine'\n\n    {method}\n")
    said = r3("mine", *asked, "--task", f"{source}:Mine")
    assert (said.code, said.out) == (2, "")
    assert message in said.err
    assert "Traceback" not in said.err
    if " raised " in message:
        assert f"(own.py, line {source.read_text().count(chr(10))})" in said.err


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "null", '{"task": 3}', '{"task": "even", "limt": 3}'])
def test_a_damaged_configuration_is_an_error(r3: R3, copied: Path, text: str) -> None:
    (copied / "config.json").write_text(text)
    said = r3("run", "--output-dir", "run")
    assert "config.json` is no" in said.err
    assert said.code in (1, 2)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("mine.jsonl", "{}\n", "line 1 of mine.jsonl is not a valid Episode"),
        ("mine.jsonl", "oh\n", "mine.jsonl is not JSON"),
        ("evaluate-base.jsonl", "[]\n", "line 1 of evaluate-base.jsonl is not a valid Episode"),
        ("stages/mine.json", "", "stages/mine.json` is not JSON"),
        ("failures/card.json", "", "card.json` is not a failure dataset's provenance"),
        ("failures/failures.jsonl", "{}\n", "failures.jsonl` has an invalid row"),
        ("result.json", "", "result.json` is not JSON"),
        ("result.json", "{}", "result.json` is not a valid Result"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(r3: R3, copied: Path, file: str, text: str, message: str) -> None:
    (copied / file).write_text(text)
    if file in ("mine.jsonl", "evaluate-base.jsonl"):  # they are read only while there is something to do
        for stage in ("mine", "evaluate"):
            (copied / f"stages/{stage}.json").unlink()
    said = r3("run", "--output-dir", "run")
    assert message in said.err
    assert (said.code, said.out) == ((2 if "failures" in file else 1), "")


def test_a_trained_model_with_a_damaged_origin_is_an_error(r3: R3, copied: Path) -> None:
    (copied / "model/r3.json").write_text("{}")
    said = r3("eval", "--model", copied / "model")
    assert (said.code, said.out) == (2, "")
    assert "r3.json` does not contain the base model and the task" in said.err


def test_the_placement_of_a_resumed_run_is_validated(r3: R3, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"task": TASK, "model": "a-model"}), encoding="utf-8")
    result = r3("train", "--output-dir", folder, "--processes", 0)
    assert result.code == 2
    assert "`processes` cannot be 0: it should be greater than 0" in result.err
