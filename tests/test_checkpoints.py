"""What training saves: the dtype of the weights, and the share of them that changed."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from r3core.training.checkpoints import _cast, changed_share


def test_only_floating_point_weights_take_the_dtype() -> None:
    tied = torch.tensor([0.1, 0.2])
    weights = {
        "embed": tied,
        "head": tied,
        "counter": torch.tensor([4097]),
        "router.bias": torch.tensor([0.1]),
        "empty": torch.empty(0, 3),
        "hollow": torch.empty(2, 0),
    }
    saved = _cast(weights, torch.bfloat16, keep=("router.bias",))
    assert saved["embed"] is saved["head"], "tied weights stay tied"
    assert saved["embed"].dtype == torch.bfloat16
    assert saved["counter"].tolist() == [4097]
    assert saved["router.bias"].dtype == torch.float32
    assert (saved["empty"].shape, saved["hollow"].shape) == ((0, 3), (2, 0))


def test_the_share_of_changed_weights_is_that_of_the_files(tmp_path: Path) -> None:
    for name, weights in (("before", [1.0, 2.0, 3.0, 4.0]), ("after", [1.0, 2.5, 3.0, 4.0])):
        (tmp_path / name).mkdir()
        more = {"only here": torch.ones(9)} if name == "after" else {}
        save_file({"weights": torch.tensor(weights), **more}, tmp_path / name / "model.safetensors")
    assert changed_share(tmp_path / "before", tmp_path / "after") == 0.25
    assert changed_share(tmp_path / "before", tmp_path / "before") == 0
    assert changed_share(tmp_path / "nowhere", tmp_path / "after") is None
    (tmp_path / "after" / "model.safetensors").write_bytes(b"torn")
    assert changed_share(tmp_path / "before", tmp_path / "after") is None
