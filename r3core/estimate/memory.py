"""The memory of a run at its peak, as arithmetic: each term's formula stands in the function that computes it."""

from __future__ import annotations

from r3core.estimate.plan import Plan
from r3core.estimate.shape import Shape
from r3core.task import Frozen

_TILE = 4096, 32768  # rows and columns of the logits that exist at once: TOKEN_CHUNK_SIZE and chunk size of TRL 1.16


class Memory(Frozen):
    """Bytes on each device by what they are for, in the two phases of a training step."""

    training: dict[str, int]
    generating: dict[str, int]
    vllm: float = 0.0
    """The share of the card that vLLM takes, on top, while the model is trained."""
    vllm_generating: float = 0.0

    @property
    def phase(self) -> str:
        """The phase with the larger need."""
        return "training" if self.total("training") >= self.total("generating") else "generating"

    @property
    def need(self) -> int:
        """Bytes at the peak, without vLLM."""
        return self.total(self.phase)

    def total(self, phase: str) -> int:
        """Return the bytes of one phase, `training` or `generating`."""
        return _sum(self.terms(phase))

    def terms(self, phase: str) -> dict[str, int]:
        """Return the bytes of one phase by what they are for."""
        return self.training if phase == "training" else self.generating

    def fits(self, card: float) -> bool:
        """Tell whether both phases fit a device of so many bytes, a tenth of which is left to CUDA and to gaps."""
        phases = ((self.training, self.vllm), (self.generating, self.vllm_generating))
        return all(_sum(terms) + share * card <= 0.9 * card for terms, share in phases)


def memory_of(shape: Shape, plan: Plan) -> Memory:
    """Return the bytes on each device while training and while generating."""
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
        generating |= generation(shape, plan)
        if plan.sharded:  # in the type that FSDP2 computes in
            generating["gathered weights"] = (shape.parameters + shape.trainable * shape.lora) * _stream(shape, plan)
    share = 0.0 if plan.sleeps else plan.vllm
    return Memory(training=training, generating=generating, vllm=share, vllm_generating=plan.vllm)


def trained_bytes(shape: Shape, plan: Plan) -> int:
    """Return the bytes of a weight that is trained: nothing makes copies in 32 bits of a model loaded in 16.

    Autocast leaves weights as they were loaded. FSDP (accelerate) turns trained weights into 32 bits when it computes
    in 16; peft makes adapters in 32 bits, which TRL turns into 16 on a quantized model.
    """
    if shape.lora:
        return 2 if plan.quantized else 4
    return 4 if plan.sharded and plan.amp else plan.dtype_bytes


def weights(shape: Shape, plan: Plan) -> int:
    """Return parameters x bytes of their type, and adapters on top.

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
    """Return the two moments of AdamW, each of the parameters' own type, and a 32-bit count of steps for each tensor.

    torch.optim.AdamW makes its moments like the parameter, so a model in 16 bits has them in 16; the 8-bit optimizers
    take one byte for each, and plain SGD has none.
    """
    if plan.optimizer == "sgd":
        return 0
    size = 1 if "8bit" in plan.optimizer else trained_bytes(shape, plan)
    return 2 * shape.trainable * size // _shards(plan) + 4 * shape.tensors


def reference(shape: Shape, plan: Plan) -> int:
    """Return the frozen model that the KL term compares with, in the type it was loaded in; LoRA needs none."""
    return shape.parameters * plan.dtype_bytes // _shards(plan)


def autocast_copy(shape: Shape, plan: Plan) -> int:
    """Return the 16-bit copies that autocast makes of linear weights in 32 bits: of all, or of two layers under FSDP.

    The output layer is cast in slices.
    """
    if not plan.amp or (4 if plan.sharded and not shape.lora else plan.dtype_bytes) == 2 or plan.quantized:
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
    return _tokens(plan) * (again + 3 * _compute(plan) * shape.inner)


def saved_by_a_layer(shape: Shape, plan: Plan) -> int:
    """Return the bytes a token that one layer keeps, of Llama's kind (arXiv 2205.05198 has the method).

    Two norms keep their input in 32 bits, the normalised input and the output, under autocast once for each of the
    five projections that read it; attention keeps queries, keys, values (repeated for each head), its output, a
    contiguous copy of it, a mask and one 32-bit number a head; the feed-forward part keeps four of its width.
    """
    stream, compute = _stream(shape, plan), _compute(plan)
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
    tile = rows * (columns * _compute(plan) + (0 if plan.cuda else 29 * min(shape.vocabulary, columns)))
    size = trained_bytes(shape, plan)
    head = 0 if shape.lora else shape.head * (4 + (size if size != 4 else 0))
    gathered = shape.head * size if plan.sharded else 0
    return tile + head + gathered + tokens * shape.hidden * (4 + _stream(shape, plan))


def generation(shape: Shape, plan: Plan) -> dict[str, int]:
    """Return what the longest generation needs: that of retries, whose conversations hold all turns.

    The larger of two moments counts: the prompts going through the model at once, about three widths of the
    feed-forward part and four of the stream, and the last token, with the cache at its longest, logits and three
    32-bit copies of them.
    """
    rows = min(plan.batch_size, plan.generated * plan.retries)
    before = plan.asked + plan.reflection
    stream, compute = _stream(shape, plan), _compute(plan)
    prefill = rows * before * (3 * compute * shape.inner + 4 * stream * shape.hidden)
    first = {"key-value cache": cache(shape, plan, rows=rows, tokens=before), "prompts": prefill}
    logits = rows * shape.vocabulary * (compute + 3 * 4)
    last = {"key-value cache": cache(shape, plan, rows=rows, tokens=before + plan.retry), "logits": logits}
    return max(first, last, key=_sum)


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
    """Return the bytes of a number between two layers: it has the type of the weights."""
    return 2 if plan.sharded and plan.amp else plan.dtype_bytes


def _compute(plan: Plan) -> int:
    """Return the bytes of a number inside a matrix product."""
    return 2 if plan.amp else plan.dtype_bytes
