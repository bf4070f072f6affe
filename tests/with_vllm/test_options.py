"""Options of vLLM: all of them are passed on, and a wrong one is an error before vLLM starts."""

from __future__ import annotations

from typing import Any

import pytest

from r3core import ConfigError
from r3core.config import Config
from r3core.generation.vllm import options_of
from r3core.plugins.engines import checked_engine

pytestmark = pytest.mark.vllm


def test_every_option_of_vllm_goes_to_it() -> None:
    given = {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.5, "max_model_len": 4096}
    assert options_of(given).items() >= given.items()


def test_the_prefix_cache_is_on_unless_it_is_turned_off() -> None:
    assert options_of({})["enable_prefix_caching"]
    assert not options_of({"enable_prefix_caching": False})["enable_prefix_caching"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"tensor_paralel_size": 2},
            "vLLM has no option `tensor_paralel_size`\nhint: did you mean",
        ),
        ({"seed": 1}, "`engine_options.seed` cannot be set here\nhint: set `seed`"),
        ({"dtype": "half"}, "`engine_options.dtype` cannot be set here\nhint: set `dtype`"),
    ],
)
def test_a_wrong_option_is_an_error(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options_of(given)
    config = Config(task="toy", engine="vllm", engine_options=given)
    with pytest.raises(ConfigError, match=message):
        checked_engine(config)
