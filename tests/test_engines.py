"""The registry of engines: what plugins bring through `r3_engines`, and the checks before any work starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import R3
from toy import Toy

from r3core import ConfigError, Prompt, get_task
from r3core.config import Config, model_of, resolve
from r3core.plugins.engines import checked_engine, engine_of, engines, find_engine

pytestmark = pytest.mark.usefixtures("imports_restored")

Install = Callable[..., None]
INSTALLED, _ = engines()
VALID = {"vllm": "seed"}
"""A wrong option of each engine that is an error everywhere; others are named `bogus`."""

ENGINE = """
from r3core import Engine, hookimpl
from r3core.engine import EngineOptions
from r3core.generation.scripted import ScriptedGenerator

class Options(EngineOptions):
    phrase: str = "no"
    machine: str | None = None

class Parrot(Engine):
    name = "parrot"
    Options = Options
    places = frozenset({"machine"})

    def open(self, model, *, run=None):
        return ScriptedGenerator(lambda conversation, index: self.options.phrase)

@hookimpl
def r3_engines():
    return [Parrot]
"""


def test_the_engines_of_r3core_and_of_the_plugins_here_are_installed() -> None:
    found, broken = engines()
    assert set(found) == {"transformers", "vllm", "openai", "ray"}
    assert broken == []


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTALLED)
def test_a_wrong_option_is_an_error_before_anything_is_loaded(name: str, r3: R3) -> None:
    option = VALID.get(name, "bogus")
    config = Config(task="toy", engine=name, engine_options={option: 1}, model="nowhere")
    with pytest.raises(ConfigError, match=option) as caught:
        checked_engine(config)
    task = f"{sys.modules[Toy.__module__].__file__}:Toy"
    for command in ("mine", "eval"):
        arguments = (command, "--task", task, "--model", "nowhere", "--engine", name)
        for more in ([], ["--dry-run"]):
            done = r3(*arguments, "--set", f"engine_options.{option}=1", "--output-dir", "run", *more)
            assert (done.code, done.out) == (2, "")
            assert f"error: {caught.value}\n" == done.err
    assert not Path("run").exists()


def test_a_misspelt_option_names_the_nearest_one() -> None:
    for name, option, near in (("openai", "time_out", "timeout"), ("ray", "actor", "actors"), ("ray", "cpu", "cpus")):
        with pytest.raises(ConfigError, match=f"the engine `{name}` has no option `{option}`") as caught:
            engine_of(Config(task="toy", engine=name, engine_options={option: 1}))
        assert caught.value.hints == (f"did you mean `{near}`?",)


def test_options_that_cannot_be_checked_here_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    checked_engine(Config(task="toy", engine="vllm"))
    assert capsys.readouterr().err == ""
    checked_engine(Config(task="toy", engine="vllm", engine_options={"max_model_len": 64}))
    assert "warning: vLLM is not installed here, so that engine_options are not checked" in capsys.readouterr().err


def test_an_engine_of_a_plugin_generates(install: Install) -> None:
    install("parrot", ENGINE)
    config = resolve(Toy(), overrides=["engine=parrot", "engine_options.phrase=Polly"])
    prompt = Prompt(messages=[{"role": "user", "content": "Say 1."}])
    [completion] = engine_of(config).open("any").generate([prompt], sampling())
    assert completion.text == "Polly"


def sampling() -> Any:
    from r3core.generation.generator import Sampling

    return Sampling()


def test_options_that_only_place_an_engine_do_not_change_the_run(install: Install) -> None:
    install("parrot", ENGINE)
    there = resolve(Toy(), overrides=["engine=parrot", "engine_options.machine=there"])
    assert there.record()["engine_options"] == {}
    assert there.directory == resolve(Toy(), overrides=["engine=parrot"]).directory
    assert there.directory != resolve(Toy(), overrides=["engine=parrot", "engine_options.phrase=yes"]).directory


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vlm", "did you mean `vllm`?"),
        ("Transformers", "did you mean `transformers`?"),
        ("sglang", "pip install r3-plugin-sglang"),
    ],
)
def test_an_unknown_engine_is_an_error_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"`engine` cannot be '{name}': installed are openai, ray") as caught:
        resolve(Toy(), overrides=[f"engine={name}"])
    assert caught.value.hints == (hint,)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_module_that_nobody_has", "No module named 'a_module_that_nobody_has'"),
        (ENGINE.replace("return [Parrot]", "return [int]"), "<class 'int'> is not a subclass of `r3core.Engine`"),
        (ENGINE.replace("return [Parrot]", "return [Parrot()]"), "did not return a list of engines"),
        (ENGINE.replace("return [Parrot]", "pass"), "did not return a list of engines"),
        (ENGINE.replace("def open", "def opened"), "`Parrot` does not define `open`"),
        (ENGINE.replace('name = "parrot"', ""), "`Parrot` has no class attribute `name`"),
        (ENGINE.replace("Options = Options", "Options = int"), "`Parrot.Options` is not a subclass of"),
        (ENGINE.replace("Options = Options", "Options = 'x'"), "`Parrot.Options` is not a subclass of"),
        (ENGINE.replace('{"machine"}', '{"machin"}'), "`Parrot.places` names no options: machin"),
        (ENGINE.replace('"parrot"', '"vllm"'), "its engine `vllm` has the same name as r3core.generation.vllm:Vllm"),
        (ENGINE.replace("r3_engines", "r3_engine"), "there is no hook `r3_engine`"),
    ],
)
def test_a_broken_engine_is_reported_and_the_others_work(install: Install, r3: R3, source: str, reason: str) -> None:
    install("parrot", source)
    found, broken = engines()
    assert [(one.name, one.distribution, one.version) for one in broken] == [("parrot", "r3-plugin-parrot", "1.0")]
    assert reason in broken[0].reason
    assert "\n" not in broken[0].reason
    assert {"transformers", "openai"} <= set(found)
    assert find_engine("vllm").__module__ == "r3core.generation.vllm"
    with pytest.raises(ConfigError, match=r"the engine `parrot` of r3-plugin-parrot 1\.0 is broken"):
        find_engine("parrot")
    assert get_task("countdown").name == "countdown"
    listed = r3("tasks")
    assert listed.err.count("broken: parrot (r3-plugin-parrot 1.0): ") == 1
    assert "countdown" in listed.out


@pytest.mark.parametrize(
    ("name", "options", "local"),
    [
        ("transformers", {}, True),
        ("vllm", {}, True),
        ("openai", {}, False),
        ("ray", {}, True),
        ("ray", {"engine": "vllm"}, True),
        ("ray", {"engine": "openai"}, False),
    ],
)
def test_a_model_that_is_not_local_must_be_named(name: str, options: dict[str, Any], *, local: bool) -> None:
    config = Config(task="countdown", engine=name, engine_options=options)
    assert engine_of(config).local is local
    if local:
        assert Path(model_of(config, get_task("countdown"))).is_dir()
    else:
        with pytest.raises(ConfigError, match="no model is named"):
            model_of(config, get_task("countdown"))


@pytest.mark.slow
def test_listing_what_is_installed_imports_no_library_of_an_engine() -> None:
    program = "import sys; from r3core.plugins.engines import engines; engines(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "vllm", "openai", "ray"} & set(done.stdout.split())
