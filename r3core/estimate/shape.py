"""The shape of a model, read from its configuration: no weight is loaded, and the parameters are counted exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r3core.errors import UsageError, one_line
from r3core.task import Frozen

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_PATIENCE = 3.0  # seconds that the hub has to answer in: a dry run is to be quick


class Shape(Frozen):
    """What memory and time depend on in a model."""

    architecture: str
    """The name of its class."""
    parameters: int
    """Each counted once; the adapters of LoRA are not among them."""
    linear: int
    """Parameters of linear layers other than the output's: those that autocast copies and that 4 bit replaces."""
    head: int
    """Parameters of the output layer, also where they are those of the input's embeddings."""
    trainable: int
    """All parameters, or those of LoRA's adapters."""
    tensors: int
    """Trainable tensors."""
    lora: bool = False
    layers: int
    hidden: int
    inner: int
    """The width inside the feed-forward part."""
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int | None = None
    """The longest sequence, where the configuration names one."""
    dtype_bytes: int
    """Bytes of a weight in the type they were saved in; 4 where the configuration does not say it."""
    experts: bool = False
    """A mixture of experts: all of them are counted, though a token passes through a few."""


def read_config(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """Return a model's configuration, from a folder, the hub's cache or the hub; UsageError when it cannot be had."""
    given: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        try:
            return _config(name, local_files_only=True, **given)
        except OSError:
            if Path(name).is_dir() or Path(name).is_absolute():
                raise
        _reach(name, revision)
        return _config(name, **given)
    except Exception as error:  # OSError, ValueError, HTTP's own errors, and whatever a model's own code raises
        raise UsageError(f"the shape of `{name}` cannot be read: {one_line(error, first=True).rstrip('.')}") from None


def shape_of(config: PretrainedConfig, *, lora: Mapping[str, Any] | None = None) -> Shape:
    """Return the shape of a configuration; `lora` are options of peft's LoraConfig.

    The model is built on torch's device `meta`, where tensors have a shape and no content. UsageError when it cannot.
    """
    try:
        model = _on_meta(config)
        linear = _linear(model)
        trained = list(model.parameters()) if lora is None else _adapters(model, lora)
        text = config.get_text_config()
        dtype: Any = getattr(text, "dtype", None) or getattr(config, "dtype", None)
        heads = text.num_attention_heads
        head = model.get_output_embeddings()
        return Shape(
            architecture=type(model).__name__,
            parameters=_count(model, lora),
            linear=linear,
            head=head.weight.numel() if head is not None else 0,
            trainable=sum(parameter.numel() for parameter in trained),
            tensors=len(trained),
            lora=lora is not None,
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            vocabulary=text.vocab_size,
            context=getattr(text, "max_position_embeddings", None),
            dtype_bytes=dtype.itemsize if hasattr(dtype, "itemsize") else 4,
            experts=any(getattr(text, key, None) for key in ("num_experts", "num_local_experts", "n_routed_experts")),
        )
    except Exception as error:  # the code of any architecture runs here, and it raises what it likes
        kind = getattr(config, "model_type", None) or type(config).__name__
        raise UsageError(
            f"models of type `{kind}` are not understood: {one_line(error, first=True).rstrip('.')}"
        ) from None


def _config(name: str, **given: Any) -> PretrainedConfig:
    from transformers import AutoConfig

    config: PretrainedConfig = AutoConfig.from_pretrained(name, **given)
    return config


def _on_meta(config: PretrainedConfig) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def _linear(model: PreTrainedModel) -> int:
    from torch import nn

    head = model.get_output_embeddings()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    return sum(layer.weight.numel() for layer in layers)


def _adapters(model: PreTrainedModel, lora: Mapping[str, Any]) -> list[Any]:
    """Put LoRA's adapters into a model on `meta`, and return the parameters that are trained."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ImportError("LoRA needs peft, which is not installed") from None
    wrapped = get_peft_model(model, LoraConfig(**{"task_type": "CAUSAL_LM"} | dict(lora)), low_cpu_mem_usage=True)
    return [parameter for parameter in wrapped.parameters() if parameter.requires_grad]


def _count(model: PreTrainedModel, lora: Mapping[str, Any] | None) -> int:
    """Count the parameters of the model itself; peft has frozen them when there are adapters."""
    return sum(p.numel() for p in model.parameters() if lora is None or not p.requires_grad)


def _reach(name: str, revision: str | None) -> None:
    """Ask the hub once whether it has the file: transformers would try for half a minute."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=_PATIENCE)
