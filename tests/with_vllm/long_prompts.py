"""A program that trains with vLLM on problems of some 300 tokens: two such trainings do not fit into one process.

It prints what is logged of each step, and the lengths of the requests to reflect.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import password
import tiny
from toy import Even

from r3core.generation.chat import encode
from r3core.generation.models import load_model
from r3core.protocol import Protocol
from r3core.runs import Run
from r3core.sections import Turn
from r3core.train import train
from r3core.verification.judge import Judge


def main(path: Path, block: int, *, cached: bool) -> None:
    """Train five steps in a directory, with vLLM's cache of prefixes in blocks of so many tokens."""
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB
    saved = tiny.tiny_tokenizer()
    model = tiny.tiny_model(saved, context=1024, spread=0.2, head_dim=64)
    model.generation_config.eos_token_id = list(range(0, len(saved), 7))  # so that most retries end, and are judged
    model.save_pretrained(path / "base")
    saved.save_pretrained(path / "base")
    config = password.config(steps=5, use_vllm=True, vllm_mode="colocate", vllm_max_model_length=1024)
    options = {"block_size": block, "enable_prefix_caching": cached}
    sampling = config.sampling.model_copy(update={"retry": Turn(max_tokens=16)})
    config = config.model_copy(update={"engine": "vllm", "engine_options": options, "sampling": sampling})
    failures = [
        failure.model_copy(update={"prompt": [{"role": "user", "content": f"{number:02}" + "so it goes " * 25}]})
        for number, failure in enumerate(password.failures())
    ]
    model, tokenizer = load_model(path / "base", dtype="float32")
    with Run.open(path / "run", config.record()) as run, Judge(Even()) as judge:
        protocol = Protocol(Even(), judge, config)
        train(run, protocol, failures, model=model, tokenizer=tokenizer)
        requests = [protocol.reflection_request(failure.episode()) for failure in failures]
        lengths = [len(encode(tokenizer, request)) for request in requests]
        print(json.dumps({"rows": run.read("train"), "lengths": lengths}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), cached=sys.argv[3] == "cached")
