"""The shape of a model: exact parameter counts and widths from its configuration, without loading a weight."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r3core.errors import UsageError
from r3core.task import Frozen

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_HUB_SECONDS = 3.0  # the longest that a dry run waits for the Hub


class Shape(Frozen):
    """What the memory of a model depends on."""

    architecture: str
    parameters: int
    """Tied ones counted once, without LoRA adapters."""
    linear: int
    """Parameters of linear layers other than the output layer: autocast copies them, quantization shrinks them."""
    head: int
    """Parameters of the output layer, also where they are tied to the input embeddings."""
    trainable: int
    """All parameters, or those of the LoRA adapters."""
    tensors: int
    """Number of trainable tensors."""
    lora: bool = False
    layers: int
    hidden: int
    inner: int
    """Width of the feed-forward part."""
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int | None = None
    """Maximum sequence length, where the configuration has one."""
    dtype_bytes: int
    """Bytes per saved weight; 4 where the configuration has no dtype."""


def read_config(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """Return a model's configuration from a folder, the local cache or the Hub. Raises UsageError."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from transformers import AutoConfig

    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    config: PretrainedConfig
    try:
        try:
            config = AutoConfig.from_pretrained(name, local_files_only=True, **options)
        except OSError:
            if Path(name).is_dir() or Path(name).is_absolute():
                raise
            # One short request first, because transformers would retry an unreachable Hub for half a minute.
            get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=_HUB_SECONDS)
            config = AutoConfig.from_pretrained(name, **options)
    except Exception as error:  # OSError, ValueError, HTTP errors, and anything that a model's own code raises
        raise UsageError(f"the configuration of `{name}` cannot be read: {_first_line(error)}") from None
    return config


def shape_of(config: PretrainedConfig, *, lora: Mapping[str, Any] | None = None) -> Shape:
    """Return the shape of the model that a configuration describes; `lora` holds options of peft's LoraConfig.

    The model is built on torch's device `meta`, where tensors have a shape but no data. Raises UsageError for a model
    that transformers cannot build or that is not a causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        head = model.get_output_embeddings()
        linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
        linear_parameters = sum(layer.weight.numel() for layer in linear)
        trained = list(model.parameters()) if lora is None else _adapters(model, lora)
        text = config.get_text_config()
        dtype: Any = getattr(text, "dtype", None) or getattr(config, "dtype", None)
        heads = text.num_attention_heads
        return Shape(
            architecture=type(model).__name__,
            parameters=parameters,
            linear=linear_parameters,
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
            dtype_bytes=getattr(dtype, "itemsize", 4),
        )
    except Exception as error:  # the code of any architecture runs here, and may raise anything
        kind = getattr(config, "model_type", None) or type(config).__name__
        raise UsageError(f"models of type `{kind}` are not supported: {_first_line(error)}") from None


def _adapters(model: Any, lora: Mapping[str, Any]) -> list[Any]:
    """Add LoRA adapters to a model on `meta`, and return the parameters that are trained."""
    from peft import get_peft_model

    from r3core.training.lora import lora_of

    wrapped = get_peft_model(model, lora_of(lora), low_cpu_mem_usage=True)
    return [parameter for parameter in wrapped.parameters() if parameter.requires_grad]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(".")
