"""Checkpoints from disk to a model that runs, is saved and read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_store_checkpoints import GRID, HEADS, WIDTH, forward, grafted_layout, inputs, original

from grafting.cli import main
from grafting.graft import Grafted
from grafting.operators import build
from grafting.plan import PlanError
from grafting.store.checkpoints import CheckpointError
from grafting.store.configs import config_of
from grafting.store.folder import StoreError, import_original, load, save
from grafting.store.manifest import read_manifest


def test_original_checkpoint_runs_as_the_original(tmp_path: Path) -> None:
    torch.save({"ema": original()}, tmp_path / "dit.pt")
    model = import_original(tmp_path / "dit.pt", heads=HEADS)
    z, t, y = inputs()
    with torch.no_grad():
        given = model(z, timestep=t, class_labels=y).sample
    torch.testing.assert_close(given, forward(original(), z, t, y), rtol=1e-4, atol=1e-4)


def test_what_a_checkpoint_says_of_itself_is_read_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So every verb takes one that takes a MODEL."""
    monkeypatch.setattr("test_store_checkpoints.WIDTH", 64)  # where the number of heads follows from it
    path = tmp_path / "dit.pt"
    torch.save({"ema": original()}, path)
    config = config_of(str(path))
    model: Any = import_original(path)
    assert config["_class_name"] == type(model).__name__ == "DiTTransformer2DModel"
    assert {key: model.config[key] for key in config if key != "_class_name"} == {
        key: value for key, value in config.items() if key != "_class_name"
    }
    assert main(["plan", str(path)]) == 0
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(CheckpointError, match=r"notes\.txt"):
        config_of(str(tmp_path / "notes.txt"))


@pytest.mark.parametrize("operator", ["hyena_se", "hyena_x", "hyena_y", "swa", "mlp"])
def test_released_graft_is_loaded_key_by_key_and_survives_a_folder(tmp_path: Path, operator: str) -> None:
    layout = grafted_layout(operator)
    torch.save({"ema": layout}, tmp_path / "graft.pt")
    handle = import_original(str(tmp_path / "graft.pt"), heads=HEADS)
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


SIZES: dict[str, dict[str, int]] = {
    "hyena_se": {"kernel": 7},
    "hyena_x": {"kernel": 6},
    "hyena_y": {"kernel": 3},
    "mlp_hyena_x": {"ratio": 3, "kernel": 5},
    "mamba2": {"state": 12, "head_dim": 8, "expand": 3, "kernel": 3},
    "swa": {"window": 2},
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_are_not_the_defaults_are_read_from_the_shapes(tmp_path: Path, name: str) -> None:
    torch.save({"ema": grafted_layout(name, **SIZES[name])}, tmp_path / "graft.pt")
    given = {"options": {"swa": SIZES["swa"]}} if name == "swa" else {}
    handle = import_original(tmp_path / "graft.pt", heads=HEADS, **given)
    assert isinstance(handle, Grafted)
    ((_, found),) = handle.operators().items()
    wanted = build(name, width=WIDTH, heads=HEADS, tokens=GRID**2, **SIZES[name])
    wanted.load_state_dict(found.state_dict())
    x = torch.randn(2, GRID**2, WIDTH)
    with torch.no_grad():
        assert torch.equal(found(x, grid=(GRID, GRID)), wanted(x, grid=(GRID, GRID)))


def test_a_window_that_is_not_told_is_the_papers(tmp_path: Path) -> None:
    torch.save({"ema": grafted_layout("swa")}, tmp_path / "graft.pt")
    for given, window in (({}, 4), ({"swa": {"window": 8}}, 8)):
        handle = import_original(tmp_path / "graft.pt", heads=HEADS, options=given)
        assert isinstance(handle, Grafted)
        assert [op.options["window"] for op in handle.operators().values()] == [window]
    with pytest.raises(StoreError, match=r"options for mamba2: .*graft\.pt holds swa"):
        import_original(tmp_path / "graft.pt", heads=HEADS, options={"mamba2": {"chunk": 8}})
    with pytest.raises(PlanError, match="unknown option 'windw'"):
        import_original(tmp_path / "graft.pt", heads=HEADS, options={"swa": {"windw": 8}})


def test_tensors_that_do_not_fit_are_named_with_their_file(tmp_path: Path) -> None:
    path, layout = tmp_path / "graft.pt", grafted_layout("hyena_x")

    def refused(changed: dict[str, torch.Tensor], words: str, **given: object) -> None:
        torch.save({"ema": changed}, path)
        with pytest.raises((StoreError, CheckpointError), match=words) as caught:
            import_original(path, heads=HEADS, **given)  # type: ignore[arg-type]
        assert str(caught.value).count("\n") == 0

    own = "blocks.1.attn"
    bias = f"{own}.short_filter.bias"
    wrong = {"hyena_x": {"kernel": 5}}
    refused({k: v for k, v in layout.items() if k != bias}, rf"graft\.pt does not fit .*{bias} is missing")
    refused(layout | {f"{own}.odd": torch.zeros(1)}, rf"graft\.pt .*{own}\.odd is of no use here")
    refused(layout, rf"{own}.short_filter.weight is \(96, 1, 4\), must be \(96, 1, 5\)", options=wrong)
    without = {k: v for k, v in layout.items() if k != f"{own}.short_filter.weight"}
    refused(without, rf"{own}: short_filter.weight is missing")
    key = "blocks.0.attn.proj.weight"
    for kind in (original(), layout):
        refused(kind | {key: torch.zeros(32, 8)}, r"graft\.pt does not fit .*to_out\.0\.weight is \(32, 8\), must be")
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"x\.safetensors: no safetensors file"):
        import_original(tmp_path / "x.safetensors")


def test_a_released_graft_is_trained_on_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On pairs that it draws itself; what it was made from is not known."""
    monkeypatch.setattr("test_store_checkpoints.WIDTH", 64)  # one head, which follows from it
    monkeypatch.setattr("test_store_checkpoints.HEADS", 1)
    path, data, out = tmp_path / "graft.pt", tmp_path / "pairs", tmp_path / "out"
    torch.save({"ema": grafted_layout("hyena_x")}, path)
    assert main(["pairs", str(path), "--count", "16", "--steps", "2", "--guidance", "1", "--out", str(data)]) == 0
    command = ["finetune", str(path), "--data", str(data), "--steps", "2", "--batch", "4", "--set", "target=noise"]
    assert main([*command, "--out", str(out)]) == 0
    manifest = read_manifest(out)
    assert manifest["whole"] and manifest["base"]["name"] is None and [*manifest["protocol"]] == ["stage 2"]
