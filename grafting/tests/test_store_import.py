"""Checkpoints from disk to a model that runs, is saved and read again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_store_checkpoints import HEADS, forward, grafted_layout, inputs, original

from grafting.graft import Grafted
from grafting.store.folder import import_original, load, save


def test_original_checkpoint_runs_as_the_original(tmp_path: Path) -> None:
    torch.save({"ema": original()}, tmp_path / "dit.pt")
    model = import_original(tmp_path / "dit.pt", heads=HEADS)
    z, t, y = inputs()
    with torch.no_grad():
        given = model(z, timestep=t, class_labels=y).sample
    torch.testing.assert_close(given, forward(original(), z, t, y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operator", ["hyena_se", "hyena_x", "hyena_y", "swa", "mlp"])
def test_released_graft_is_loaded_key_by_key_and_survives_a_folder(tmp_path: Path, operator: str) -> None:
    layout = grafted_layout(operator)
    torch.save({"ema": layout}, tmp_path / "graft.pt")
    handle = import_original(tmp_path / "graft.pt", heads=HEADS)
    assert isinstance(handle, Grafted)
    ((site, stand_in),) = handle.operators().items()
    for key, value in stand_in.state_dict().items():
        assert torch.equal(value, layout[f"{site.name}.{key}"])
    save(handle, tmp_path / "folder")
    again = load(tmp_path / "folder")
    z, t, y = inputs()
    with torch.no_grad():
        outputs = [h.model(z, timestep=t, class_labels=y).sample for h in (handle, again)]
    assert torch.equal(outputs[0], outputs[1])
    assert again.model.transformer_blocks[1].norm1.emb.time_proj.downscale_freq_shift == 0
