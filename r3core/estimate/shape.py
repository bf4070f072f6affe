"""The shape of a model: exact parameter counts and widths from its configuration, without loading a weight."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r3core.errors import UsageError, one_line
from r3core.task import Frozen
from r3core.training.lora import lora_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_HUB_SECONDS = 3.0  # the longest that a dry run waits for the Hub


class Shape(Frozen):
    """What the memory of a model depends on."""

    architecture: str
    parameters: int  # tied ones counted once, without LoRA adapters
    linear: int
    """Parameters of linear layers other than the output layer: autocast copies them, quantization shrinks them."""
    head: int  # parameters of the output layer, also where they are tied to the input embeddings
    trainable: int  # all parameters, or those of the LoRA adapters
    tensors: int  # number of trainable tensors
    lora: bool = False
    layers: int
    hidden: int
    inner: int  # width of the feed-forward part
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int | None = None  # maximum sequence length, where the configuration has one
    dtype_bytes: int  # bytes per saved weight; 4 where the configuration has no dtype


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
        raise UsageError(f"the configuration of `{name}` cannot be read: {one_line(error, first=True)}") from None
    return config


def shape_of(config: PretrainedConfig, *, lora: Mapping[str, Any] | None = None) -> Shape:
    """Return the shape of the model that a configuration describes; `lora` holds options of peft's LoraConfig.

    The model is built on torch's device `meta`, where tensors have a shape but no data. Raises UsageError when that
    fails, because transformers or peft cannot do it or because it is no causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    adapters = lora_config(lora) if lora is not None else None
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        architecture, head = type(model).__name__, model.get_output_embeddings()
        layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
        linear = sum(layer.weight.numel() for layer in layers)
        if adapters is not None:
            from peft import get_peft_model

            model = get_peft_model(model, adapters, low_cpu_mem_usage=True)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        text = config.get_text_config()
        dtype: Any = getattr(text, "dtype", None) or getattr(config, "dtype", None)
        heads = text.num_attention_heads
        return Shape(
            architecture=architecture,
            parameters=parameters,
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
            dtype_bytes=getattr(dtype, "itemsize", 4),
        )
    except Exception as error:  # the code of any architecture runs here, and may raise anything
        kind = getattr(config, "model_type", None) or type(config).__name__
        raise UsageError(f"models of type `{kind}` are not supported: {one_line(error, first=True)}") from None
