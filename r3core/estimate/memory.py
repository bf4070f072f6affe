"""The memory of a run at its peak, as arithmetic: each term's formula stands in the function that computes it."""

from __future__ import annotations

from r3core.estimate.plan import Plan
from r3core.estimate.shape import Shape
from r3core.task import Frozen

PHASES = ("training", "generating", "evaluating")
"""When memory is needed: in the two phases of a training step, and by mining and evaluation before and after."""
_TILE = 4096, 32768  # rows and columns of the logits that exist at once: TOKEN_CHUNK_SIZE and chunk size of TRL 1.16


class Memory(Frozen):
    """Bytes on each device by what they are for, in each phase of a run."""

    training: dict[str, int]
    generating: dict[str, int]
    """Reflections and retries within training, beside the optimizer's states."""
    evaluating: dict[str, int] = {}
    """Mining and evaluation with transformers, in the saved dtype; empty where something else generates."""
    vllm: float = 0.0
    """The share of the card that vLLM takes, on top, while the model is trained."""
    vllm_generating: float = 0.0

    @property
    def phase(self) -> str:
        """The phase with the largest need."""
        return max(PHASES, key=self.total)

    @property
    def need(self) -> int:
        """Bytes at the peak, without vLLM."""
        return self.total(self.phase)

    def total(self, phase: str) -> int:
        """Return the bytes of one of the PHASES."""
        return _sum(self.terms(phase))

    def terms(self, phase: str) -> dict[str, int]:
        """Return the bytes of one of the PHASES by what they are for."""
        return {"training": self.training, "generating": self.generating, "evaluating": self.evaluating}[phase]

    def share(self, phase: str) -> float:
        """Return the share of the card that vLLM takes in one of the PHASES."""
        return {"training": self.vllm, "generating": self.vllm_generating, "evaluating": 0.0}[phase]

    def enough(self, card: float, phase: str) -> bool:
        """Tell whether a phase fits a device of `card` bytes, a tenth of which is left to CUDA and to gaps."""
        return self.total(phase) + self.share(phase) * card <= 0.9 * card

    def fits(self, card: float) -> bool:
        """Tell whether all phases fit a device of `card` bytes."""
        return all(self.enough(card, phase) for phase in PHASES)


def memory_of(shape: Shape, plan: Plan) -> Memory:
    """Return the bytes on each device while training, while generating, and while mining and evaluating."""
    always = {"weights": weights(shape, plan), "optimizer states": states(shape, plan)}
    if plan.beta and not shape.lora:
        always["reference model"] = reference(shape, plan)
    training = always | {"gradients": gradients(shape, plan), "activations": activations(shape, plan)}
    copy = {"16-bit copy of the weights": autocast_copy(shape, plan)}
    moments = [{"log-probabilities": log_probabilities(shape, plan)}, {"a layer's way back": way_back(shape, plan)}]
    if plan.checkpointing:
        moments.append(copy)  # it is gone with the pass forward; without checkpointing it is kept for the way back
    elif copy["16-bit copy of the weights"]:
        training |= copy
    largest: dict[str, int] = max(moments, key=_sum)
    training |= largest
    generating = dict(always)
    if plan.steps_per_generation < plan.accumulation:  # it falls between passes whose gradients are being summed
        generating["gradients"] = gradients(shape, plan)
    if not plan.served:
        generating |= generation(shape, plan, rows=min(plan.batch_size, plan.generated * plan.retries))
        if plan.sharded:  # in the type that FSDP2 computes in
            generating["gathered weights"] = (shape.parameters + shape.trainable * shape.lora) * _stream(shape, plan)
    return Memory(
        training=training,
        generating=generating,
        evaluating=evaluating(shape, plan) if plan.evaluates else {},
        vllm=0.0 if plan.sleeps else plan.vllm,
        vllm_generating=plan.vllm,
    )


def evaluating(shape: Shape, plan: Plan) -> dict[str, int]:
    """Return the bytes of mining and evaluation: the model in its saved dtype, in one process, without autocast."""
    alone = untrained(plan, plan.dtype_bytes)
    base = shape.model_copy(update={"lora": False})  # adapters are merged, or small
    return {"weights": weights(base, alone)} | generation(base, alone, rows=plan.batch_size)


def untrained(plan: Plan, size: int) -> Plan:
    """Return the plan of a model that only generates, whose weights have `size` bytes each."""
    changes = {"dtype_bytes": size, "full_bytes": size, "amp": False, "sharded": False, "processes": 1}
    return plan.model_copy(update=changes)


def trained_bytes(shape: Shape, plan: Plan) -> int:
    """Return the bytes of a weight that is trained.

    When all weights are trained it is that of `train.dtype`, 4 by default, as autocast leaves weights in the dtype they
    were loaded in. FSDP2 (accelerate) makes 32-bit weights of any it trains when it computes in 16 bits. peft makes
    adapters in 32 bits, which TRL turns into 16 on a quantized model.
    """
    if shape.lora:
        return 2 if plan.quantized else 4
    return 4 if plan.sharded and plan.amp else plan.full_bytes


def model_bytes(shape: Shape, plan: Plan) -> int:
    """Return the bytes of a weight of the model in training: as it is trained, or that of the base of an adapter."""
    return plan.dtype_bytes if shape.lora else trained_bytes(shape, plan)


def weights(shape: Shape, plan: Plan) -> int:
    """Return parameters x bytes of their dtype (4 when all are trained, see `trained_bytes`), and adapters on top.

    In 4 bits a linear layer takes half a byte a weight and a 32-bit scale for 64 of them (QLoRA, arXiv 2305.14314);
    embeddings, norms and the output layer keep their type. FSDP divides what there is.
    """
    if not shape.lora and not plan.quantized:
        return shape.parameters * trained_bytes(shape, plan) // _shards(plan)
    small = shape.linear if plan.quantized else 0
    base = small * 9 // 16 + (shape.parameters - small) * plan.dtype_bytes
    return (base + (shape.trainable * trained_bytes(shape, plan) if shape.lora else 0)) // _shards(plan)


def gradients(shape: Shape, plan: Plan) -> int:
    """Return trained parameters x bytes of their type; without FSDP, several processes hold buckets of the same size.

    The buckets are those of torch's DistributedDataParallel.
    """
    whole = shape.trainable * trained_bytes(shape, plan)
    return whole * (2 if plan.processes > 1 and not plan.sharded else 1) // _shards(plan)


def states(shape: Shape, plan: Plan) -> int:
    """Return the two moments of AdamW (Lion: one), each of the parameters' own dtype, and a 32-bit step count a tensor.

    torch.optim.AdamW makes its moments like the parameter: 8 bytes per trained parameter in 32 bits, 4 in 16. An 8-bit
    optimizer takes one byte for each moment and a 32-bit scale for 256 of them (arXiv 2110.02861), a 4-bit one half a
    byte; with bitsandbytes, transformers leaves the moments of embeddings in 32 bits, with torchao it does not.
    Adafactor keeps about a row and a column of each matrix (arXiv 1804.04235), SGD nothing.
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
    """Return the frozen model that the KL term compares with; LoRA needs none.

    TRL loads it in the dtype that the trained model was loaded in: 32 bits, or the saved dtype where FSDP2 makes the 32
    bits of the trained one afterwards.
    """
    size = plan.dtype_bytes if plan.sharded and plan.amp else plan.full_bytes
    return shape.parameters * size // _shards(plan)


def autocast_copy(shape: Shape, plan: Plan) -> int:
    """Return the 16-bit copies that autocast makes of linear weights in 32 bits: of all, or of two layers under FSDP.

    The output layer is cast in slices.
    """
    if not plan.amp or model_bytes(shape, plan) == 2 or plan.quantized:
        return 0
    return 2 * shape.linear * (2 if plan.sharded else shape.layers) // shape.layers


def activations(shape: Shape, plan: Plan) -> int:
    """Return what a pass keeps for the way back, of rows x (prompt + attempt + reflection) tokens.

    With checkpointing (arXiv 1604.06174) that is the input of each layer; without it, what each layer saves. The final
    norm comes on top.
    """
    stream = _stream(shape, plan)
    layer = stream * shape.hidden if plan.checkpointing else saved_by_a_layer(shape, plan)
    return _tokens(plan) * (shape.layers * layer + (4 + stream) * shape.hidden)


def way_back(shape: Shape, plan: Plan) -> int:
    """Return what one layer needs on the way back: gradients of about three widths of its feed-forward part.

    With checkpointing, all that it saves is there once more. The loss has given its memory back by then.
    """
    again = saved_by_a_layer(shape, plan) if plan.checkpointing else 0
    return _tokens(plan) * (again + 3 * _compute(shape, plan) * shape.inner)


def saved_by_a_layer(shape: Shape, plan: Plan) -> int:
    """Return the bytes a token that one layer keeps, of Llama's kind (arXiv 2205.05198 has the method).

    Two norms keep their input in 32 bits, the normalised input and the output, under autocast once for each of the
    five projections that read it; attention keeps queries, keys, values (repeated for each head), its output, a
    contiguous copy of it, a mask and one 32-bit number a head; the feed-forward part keeps four of its width.
    """
    stream, compute = _stream(shape, plan), _compute(shape, plan)
    outputs = 5 * 2 if stream == 4 and compute == 2 else 2 * stream
    norms = (2 * (4 + stream) + outputs) * shape.hidden
    attention = 5 * compute * shape.heads * shape.head_dim + 4 * shape.heads
    mask = compute * (plan.asked + plan.reflection)  # as long as the sequence, for each token in it
    return norms + attention + mask + 4 * compute * shape.inner


def log_probabilities(shape: Shape, plan: Plan) -> int:
    """Return what the loss needs beside the model: TRL 1.16 never makes all logits, but tiles of 4096 x 32768.

    The tile is as wide for a smaller vocabulary. On top are the gradients of the hidden states and, where it is
    trained, of the output layer, in 32 bits before they are added to the others. Without CUDA all positions are
    scored, and about seven 32-bit copies of a tile are made, as wide as the vocabulary.
    """
    tokens = plan.rows * plan.reflection if plan.cuda else _tokens(plan)
    rows, columns = min(tokens, _TILE[0]), _TILE[1]
    tile = rows * (columns * _compute(shape, plan) + (0 if plan.cuda else 29 * min(shape.vocabulary, columns)))
    size = trained_bytes(shape, plan)
    head = 0 if shape.lora else shape.head * (4 + (size if size != 4 else 0))
    gathered = shape.head * size if plan.sharded else 0
    return tile + head + gathered + tokens * shape.hidden * (4 + _stream(shape, plan))


def generation(shape: Shape, plan: Plan, *, rows: int) -> dict[str, int]:
    """Return what the longest generation needs: that of retries, whose conversations hold all turns.

    The larger of two moments counts: the prompts going through the model at once, about three widths of the
    feed-forward part and four of the stream, and the last token, with the cache at its longest, logits and three
    32-bit copies of them. Under autocast, each pass makes a 16-bit copy of all trained linear weights, in the end of
    the output layer's too.
    """
    before = plan.asked + plan.reflection
    stream, compute = _stream(shape, plan), _compute(shape, plan)
    prefill = rows * before * (3 * compute * shape.inner + 4 * stream * shape.hidden)
    first = {"key-value cache": cache(shape, plan, rows=rows, tokens=before), "prompts": prefill}
    logits = rows * shape.vocabulary * (compute + 3 * 4)
    last = {"key-value cache": cache(shape, plan, rows=rows, tokens=before + plan.retry), "logits": logits}
    if copied := generation_copy(shape, plan):
        first["16-bit copy of the weights"] = copied - 2 * shape.head
        last["16-bit copy of the weights"] = copied
    return max(first, last, key=_sum)


def generation_copy(shape: Shape, plan: Plan) -> int:
    """Return the 16-bit copies at the end of a generating pass: of every trained matrix in 32 bits, none under FSDP.

    Autocast keeps copies of weights that take a gradient alone, until the pass ends.
    """
    if not plan.amp or shape.lora or plan.sharded or trained_bytes(shape, plan) == 2:
        return 0
    return 2 * (shape.linear + shape.head)


def cache(shape: Shape, plan: Plan, *, rows: int, tokens: int) -> int:
    """Return 2 x layers x key-value heads x their width x bytes x rows x tokens.

    Under autocast on weights of 32 bits the rotation of the keys leaves them in 32, and the cache is all of their type.
    """
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * _stream(shape, plan) * rows * tokens


def _sum(terms: dict[str, int]) -> int:
    return sum(terms.values())


def _tokens(plan: Plan) -> int:
    """Return the tokens of one pass through the model in training."""
    return plan.rows * (plan.asked + plan.reflection)


def _shards(plan: Plan) -> int:
    return plan.processes if plan.sharded else 1


def _stream(shape: Shape, plan: Plan) -> int:
    """Return the bytes of a number between two layers: that of the weights, under FSDP2 that of autocast."""
    return 2 if plan.sharded and plan.amp else model_bytes(shape, plan)


def _compute(shape: Shape, plan: Plan) -> int:
    """Return the bytes of a number inside a matrix product."""
    return 2 if plan.amp else model_bytes(shape, plan)
