"""The peak memory of a run on each device: the formula of each term is in the function that computes it."""

from __future__ import annotations

from math import ceil

from r3core.config import Config
from r3core.estimate.shape import Shape
from r3core.objective import attempts_of_anchor
from r3core.plugins.engines import find_engine
from r3core.task import Frozen
from r3core.training.grpo_options import with_defaults

PHASES = ("training", "generating", "evaluating")
"""The two phases of a training step; and mining and evaluation, which come before and after."""
PROMPT_TOKENS = 300
"""Tokens assumed for a prompt."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_TORCHAO = ("adamw_torch_8bit", "adamw_torch_4bit")
_TILE = 4096, 32768  # rows and columns of the logits that exist at once: TOKEN_CHUNK_SIZE and chunk size of TRL 1.16


class Plan(Frozen):
    """The settings that memory depends on, with TRL's defaults filled in."""

    rows: int  # reflections per forward pass in training, on each process
    accumulation: int  # passes per update
    steps_per_generation: int  # passes per generation
    retries: int
    batch_size: int  # conversations generated at once
    prompt: int  # tokens, like the next three, which are maximums
    attempt: int
    reflection: int
    retry: int
    checkpointing: bool
    amp: bool  # training computes in 16 bits by autocast, whatever the dtype of the weights
    dtype_bytes: int  # bytes per weight in mining and evaluation, and of the base of a LoRA adapter in training
    full_bytes: int  # bytes per weight when all weights are trained: those of `train.dtype`
    beta: float  # weight of the KL term or of the anchor; 0 needs no reference model
    anchored: int  # attempts whose distributions the anchor compares in a pass
    rows_per_sample: int  # rows that the objective trains for one sample
    scored: int  # tokens of the longest trained turn
    trains_retry: bool  # the longest of them ends with the retry, not with the reflection
    quantized: bool  # the linear layers have 4 bits per weight
    optimizer: str
    rate: float  # the learning rate
    stochastic: bool  # the optimizer rounds 16-bit weights stochastically, so that small updates survive on average
    vllm: bool  # vLLM generates within training, in the same process or on a server
    vllm_share: float  # share of the device that vLLM reserves while it generates
    vllm_sleeps: bool  # vLLM frees its share while the model is trained
    evaluates: bool  # mining and evaluation generate with transformers, on the device of the first process
    processes: int
    sharded: bool  # FSDP2 divides weights, gradients and optimizer states among the processes
    cuda: bool

    @property
    def before(self) -> int:
        """Tokens before a reflection."""
        return self.prompt + self.attempt

    @property
    def sequence(self) -> int:
        """Tokens of the longest row in training."""
        return self.before + self.reflection + (self.retry if self.trains_retry else 0)


def plan_of(config: Config, shape: Shape, *, processes: int = 1, sharded: bool = False, cuda: bool = True) -> Plan:
    """Return the settings of a configuration for a model; `cuda` is whether training is on a GPU.

    GRPOConfig of TRL 1.16 turns on gradient checkpointing, and bf16 unless fp16 is set; r3 turns bf16 off on a CPU.
    """
    options = with_defaults(config.grpo_options())
    turns, objective = config.sampling, config.objective
    in_training = config.as_trained().sampling
    reflection = in_training.reflection.max_tokens
    room = (shape.context or 2**31) - turns.attempt.max_tokens - reflection - turns.retry.max_tokens
    bf16 = options["bf16"] if options["bf16"] is not None else cuda and not options["fp16"]
    shared = options["use_vllm"] and options["vllm_mode"] == "colocate"
    optimizer = str(getattr(options["optim"], "value", options["optim"]))
    rows = options["per_device_train_batch_size"]
    per_generation = options["steps_per_generation"] or options["gradient_accumulation_steps"]
    if options["generation_batch_size"]:
        per_generation = ceil(options["generation_batch_size"] / (rows * processes))
    return Plan(
        rows=rows,
        accumulation=options["gradient_accumulation_steps"],
        steps_per_generation=per_generation,
        retries=config.train.retries,
        batch_size=config.batch_size,
        prompt=max(1, min(PROMPT_TOKENS, room)),
        attempt=max(turns.attempt.max_tokens, in_training.attempt.max_tokens),
        reflection=reflection if objective.retries else 0,
        retry=max(turns.retry.max_tokens, in_training.retry.max_tokens),
        checkpointing=options["gradient_checkpointing"],
        amp=bool(bf16 or options["fp16"]),
        dtype_bytes=_BYTES.get(config.dtype, shape.dtype_bytes),
        full_bytes=_BYTES[config.train.dtype],
        beta=options["beta"] or config.train.anchor,
        anchored=attempts_of_anchor(rows * objective.rows(retries=config.train.retries)) if config.train.anchor else 0,
        rows_per_sample=objective.rows(retries=config.train.retries),
        scored=max(getattr(in_training, turn).max_tokens for turn in objective.turns),
        trains_retry="retry" in objective.turns,
        quantized=config.quantization == "4bit",
        optimizer=optimizer,
        rate=options["learning_rate"],
        stochastic=optimizer in _TORCHAO and "bf16_stochastic_round=true" in str(options["optim_args"]).lower(),
        vllm=bool(options["use_vllm"]),
        vllm_share=options["vllm_gpu_memory_utilization"] if shared else 0.0,
        vllm_sleeps=bool(options["vllm_enable_sleep_mode"]),
        evaluates=find_engine(config.engine).in_process,
        processes=processes,
        sharded=sharded and processes > 1,
        cuda=cuda,
    )


class Memory(Frozen):
    """Bytes on each device in each phase, by what they are for; a phase without transformers is empty."""

    training: dict[str, int]
    generating: dict[str, int]
    evaluating: dict[str, int]
    vllm: dict[str, float] = {}  # phase -> share of the device that vLLM reserves on top

    @property
    def need(self) -> int:
        """Bytes at the peak, without vLLM."""
        return max(map(self.total, PHASES))

    def terms(self, phase: str) -> dict[str, int]:
        """Return the bytes of one of the PHASES by what they are for."""
        return {"training": self.training, "generating": self.generating, "evaluating": self.evaluating}[phase]

    def total(self, phase: str) -> int:
        """Return the bytes of one of the PHASES."""
        return sum(self.terms(phase).values())

    def fits(self, card: float, *phases: str) -> bool:
        """Return whether phases, by default all, fit `card` bytes with a tenth left for CUDA and fragmentation."""
        return all(self.total(p) + self.vllm.get(p, 0.0) * card <= 0.9 * card for p in phases or PHASES)


def memory_of(shape: Shape, plan: Plan) -> Memory:
    """Return the bytes on each device in each phase."""
    model = {"weights": weights(shape, plan), "optimizer states": states(shape, plan)}
    if plan.beta and not shape.lora:
        model["reference model"] = reference(shape, plan)
    generating = dict(model)
    if plan.steps_per_generation < plan.accumulation:  # it happens while gradients are being accumulated
        generating["gradients"] = gradients(shape, plan)
    if not plan.vllm:
        generating |= generation(
            shape, plan, rows=min(plan.batch_size, plan.rows * plan.steps_per_generation * plan.retries)
        )
        if plan.sharded:  # all weights are gathered, in the dtype that FSDP2 computes in
            generating["gathered weights"] = (shape.parameters + shape.trainable * shape.lora) * _stream(shape, plan)
    shares = {"training": 0.0 if plan.vllm_sleeps else plan.vllm_share, "generating": plan.vllm_share}
    return Memory(
        training=model | _pass(shape, plan),
        generating=generating,
        evaluating=evaluating(shape, plan) if plan.evaluates else {},
        vllm={phase: share for phase, share in shares.items() if share},
    )


def _pass(shape: Shape, plan: Plan) -> dict[str, int]:
    """Return what a training pass needs beside the model: the largest of the moments at which memory can peak."""
    needed = {"gradients": gradients(shape, plan), "activations": activations(shape, plan)}
    moments = [
        {"log-probabilities": log_probabilities(shape, plan)},
        {"the anchor's distributions": anchor_distributions(shape, plan)},
        {"a layer's backward pass": backward(shape, plan)},
    ]
    if copy := autocast_copy(shape, plan):
        if plan.checkpointing:  # freed after the forward pass; without checkpointing it is saved for the backward pass
            moments.append({"16-bit copy of the weights": copy})
        else:
            needed["16-bit copy of the weights"] = copy
    return needed | max(moments, key=lambda moment: sum(moment.values()))


def evaluating(shape: Shape, plan: Plan) -> dict[str, int]:
    """Return the bytes of mining and evaluation: the model in its saved dtype, in one process, without autocast."""
    changes = {"full_bytes": plan.dtype_bytes, "amp": False, "sharded": False, "processes": 1}
    alone, base = (
        plan.model_copy(update=changes),
        shape.model_copy(update={"lora": False}),
    )  # adapters are merged or small
    return {"weights": weights(base, alone)} | generation(base, alone, rows=plan.batch_size)


def trained_bytes(shape: Shape, plan: Plan) -> int:
    """Return the bytes of a trained weight.

    When all weights are trained: those of `train.dtype`, since autocast does not change the dtype of weights; but FSDP2
    (accelerate) makes them 32-bit when it computes in 16 bits. peft creates adapters in 32 bits, which TRL converts to
    16 on a quantized model.
    """
    if shape.lora:
        return 2 if plan.quantized else 4
    return 4 if plan.sharded and plan.amp else plan.full_bytes


def weights(shape: Shape, plan: Plan) -> int:
    """Return parameters x bytes of their dtype, with adapters on top; FSDP2 divides them.

    In 4 bits, a linear layer takes half a byte per weight and a 32-bit scale per 64 weights (QLoRA, arXiv 2305.14314);
    embeddings, norms and the output layer keep their dtype.
    """
    if not shape.lora and not plan.quantized:
        return shape.parameters * trained_bytes(shape, plan) // _shards(plan)
    small = shape.linear if plan.quantized else 0
    base = small * 9 // 16 + (shape.parameters - small) * plan.dtype_bytes
    return (base + (shape.trainable * trained_bytes(shape, plan) if shape.lora else 0)) // _shards(plan)


def gradients(shape: Shape, plan: Plan) -> int:
    """Return trained parameters x bytes of their dtype; twice that for the buckets of DistributedDataParallel."""
    whole = shape.trainable * trained_bytes(shape, plan)
    return whole * (2 if plan.processes > 1 and not plan.sharded else 1) // _shards(plan)


def states(shape: Shape, plan: Plan) -> int:
    """Return the two moments of AdamW (Lion: one) in the dtype of the parameters, and a 32-bit step count per tensor.

    An 8-bit optimizer takes one byte per moment and a 32-bit scale per 256 of them (arXiv 2110.02861), a 4-bit one half
    a byte; with bitsandbytes, transformers leaves the moments of embeddings in 32 bits, with torchao it does not.
    Adafactor stores about a row and a column per matrix (arXiv 1804.04235), SGD nothing.
    """
    if plan.optimizer == "sgd":
        return 0
    if plan.optimizer == "adafactor":
        return 8 * shape.trainable // shape.hidden // _shards(plan)
    moments = 1 if "lion" in plan.optimizer else 2
    bits = next((bits for bits in (4, 8) if f"{bits}bit" in plan.optimizer), None)
    if bits is None:
        size = 4 if "32bit" in plan.optimizer else trained_bytes(shape, plan)
        return moments * shape.trainable * size // _shards(plan) + 4 * shape.tensors
    wide = 0 if shape.lora or plan.optimizer.startswith("adamw_torch") else shape.head
    small = (shape.trainable - wide) * (32 * bits + 4) // 256
    return moments * (small + 4 * wide) // _shards(plan)


def reference(shape: Shape, plan: Plan) -> int:
    """Return the frozen model of the KL term; LoRA needs none.

    TRL loads it in the dtype in which the trained model was loaded: `train.dtype`, or the saved dtype where FSDP2
    converts the trained one afterwards.
    """
    size = plan.dtype_bytes if plan.sharded and plan.amp else plan.full_bytes
    return shape.parameters * size // _shards(plan)


def autocast_copy(shape: Shape, plan: Plan) -> int:
    """Return autocast's 16-bit copies of 32-bit linear weights: of all, or of two layers at a time under FSDP2.

    The output layer is cast in slices.
    """
    if not plan.amp or _model_bytes(shape, plan) == 2 or plan.quantized:
        return 0
    return 2 * shape.linear * (2 if plan.sharded else shape.layers) // shape.layers


def activations(shape: Shape, plan: Plan) -> int:
    """Return what a forward pass saves for the backward pass, for rows x (prompt + attempt + reflection) tokens.

    With checkpointing (arXiv 1604.06174) that is the input of each layer, without it all that each layer saves; the
    final norm comes on top. The attempts of the anchor pass through the model too before the backward pass.
    """
    stream = _stream(shape, plan)
    layer = stream * shape.hidden if plan.checkpointing else _saved_by_layer(shape, plan)
    tokens = _tokens(plan) + plan.anchored * plan.before
    return tokens * (shape.layers * layer + (4 + stream) * shape.hidden)


def backward(shape: Shape, plan: Plan) -> int:
    """Return what one layer's backward pass needs: gradients of about three widths of its feed-forward part.

    With checkpointing, the layer's activations are computed again. The loss has freed its memory by then.
    """
    again = _saved_by_layer(shape, plan) if plan.checkpointing else 0
    return _tokens(plan) * (again + 3 * _compute(shape, plan) * shape.inner)


def _saved_by_layer(shape: Shape, plan: Plan) -> int:
    """Return the bytes per token that a layer like Llama's saves (method: arXiv 2205.05198).

    Two norms save their input in 32 bits, the normalized input and the output, under autocast once for each of the five
    projections that read it; attention saves queries, keys, values (repeated for each head), its output, a contiguous
    copy of it, a mask and one 32-bit number per head; the feed-forward part saves four times its width.
    """
    stream, compute = _stream(shape, plan), _compute(shape, plan)
    outputs = 5 * 2 if stream == 4 and compute == 2 else 2 * stream
    norms = (2 * (4 + stream) + outputs) * shape.hidden
    attention = 5 * compute * shape.heads * shape.head_dim + 4 * shape.heads
    mask = compute * plan.sequence  # a row as long as the sequence for each of its tokens
    return norms + attention + mask + 4 * compute * shape.inner


def log_probabilities(shape: Shape, plan: Plan) -> int:
    """Return what the loss needs: TRL 1.16 computes logits in tiles of 4096 x 32768, however small the vocabulary is.

    On top are the gradients of the hidden states and, where it is trained, of the output layer, in 32 bits before they
    are added to the others. Without CUDA all positions are scored, with about seven 32-bit copies of a tile, which are
    as wide as the vocabulary.
    """
    tokens = plan.rows * plan.rows_per_sample * plan.scored if plan.cuda else _tokens(plan)
    rows, columns = min(tokens, _TILE[0]), _TILE[1]
    tile = rows * (columns * _compute(shape, plan) + (0 if plan.cuda else 29 * min(shape.vocabulary, columns)))
    size = trained_bytes(shape, plan)
    head = 0 if shape.lora else shape.head * (4 + (size if size != 4 else 0))
    gathered = shape.head * size if plan.sharded else 0
    return tile + head + gathered + tokens * shape.hidden * (4 + _stream(shape, plan))


def anchor_distributions(shape: Shape, plan: Plan) -> int:
    """Return 20 bytes for each token of an attempt and its end, and of the vocabulary.

    Those are the base's log-probabilities, the policy's logits and log-probabilities, and their gradients.
    """
    return 20 * plan.anchored * (plan.attempt + 1) * shape.vocabulary


def generation(shape: Shape, plan: Plan, *, rows: int) -> dict[str, int]:
    """Return what generating the retries needs, whose conversations hold all turns.

    The larger of two moments: the prompts in one forward pass, with about three widths of the feed-forward part and
    four of the residual stream; or the last token, with the longest cache, logits and three 32-bit copies of them.
    """
    before = plan.before + plan.reflection
    stream, compute = _stream(shape, plan), _compute(shape, plan)
    prefill = rows * before * (3 * compute * shape.inner + 4 * stream * shape.hidden)
    first = {"key-value cache": cache(shape, plan, rows=rows, tokens=before), "prompts": prefill}
    logits = rows * shape.vocabulary * (compute + 3 * 4)
    last = {"key-value cache": cache(shape, plan, rows=rows, tokens=before + plan.retry), "logits": logits}
    if copy := generation_copy(shape, plan):
        first["16-bit copy of the weights"] = copy - 2 * shape.head
        last["16-bit copy of the weights"] = copy
    return max(first, last, key=lambda moment: sum(moment.values()))


def generation_copy(shape: Shape, plan: Plan) -> int:
    """Return autocast's 16-bit copies at the end of a generating pass: of every trained 32-bit matrix, not under FSDP2.

    Autocast caches copies only of weights that require a gradient, until the pass ends.
    """
    if not plan.amp or shape.lora or plan.sharded or trained_bytes(shape, plan) == 2:
        return 0
    return 2 * (shape.linear + shape.head)


def cache(shape: Shape, plan: Plan, *, rows: int, tokens: int) -> int:
    """Return 2 x layers x key-value heads x head width x bytes x rows x tokens.

    Under autocast on 32-bit weights, rotary embeddings turn the keys into 32 bits, and the whole cache has their dtype.
    """
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * _stream(shape, plan) * rows * tokens


def _tokens(plan: Plan) -> int:
    """Return the tokens of one training pass."""
    return plan.rows * plan.rows_per_sample * plan.sequence


def _shards(plan: Plan) -> int:
    return plan.processes if plan.sharded else 1


def _model_bytes(shape: Shape, plan: Plan) -> int:
    return plan.dtype_bytes if shape.lora else trained_bytes(shape, plan)


def _stream(shape: Shape, plan: Plan) -> int:
    """Return the bytes of a number between two layers: those of a weight, or of autocast's dtype under FSDP2."""
    return 2 if plan.sharded and plan.amp else _model_bytes(shape, plan)


def _compute(shape: Shape, plan: Plan) -> int:
    """Return the bytes of a number inside a matrix product."""
    return 2 if plan.amp else _model_bytes(shape, plan)
