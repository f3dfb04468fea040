"""A model of the hub, from a local stand-in for the hub: fetched files lie in a folder, missing ones are told so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_graft import tiny
from torch import nn

from grafting.graft import graft
from grafting.plan import Plan
from grafting.store.configs import ModelError, config_of, hub_file
from grafting.store.folder import save
from grafting.store.models import open_model

NAME = "somebody/tiny-dit"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository's folder: its files are what a download gives, weights what diffusers loads from."""
    import diffusers
    from huggingface_hub.errors import EntryNotFoundError

    tiny().save_pretrained(tmp_path / "transformer")  # type: ignore[operator]
    load = diffusers.DiTTransformer2DModel.from_pretrained

    def download(name: str, file: str) -> str:
        assert name == NAME
        if not (tmp_path / file).is_file():
            raise EntryNotFoundError(f"404: {file}")
        return str(tmp_path / file)

    def pretrained(name: str, *, subfolder: str, **how: Any) -> Any:
        assert name == NAME
        return load(tmp_path / subfolder, **how)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(diffusers.DiTTransformer2DModel, "from_pretrained", pretrained)
    return tmp_path


def test_a_hub_id_opens_with_what_the_repository_has(hub: Path) -> None:
    model = open_model(NAME)
    assert model.name == NAME and model.autoencoder is None and not model.transformer.training
    kinds = {p.dtype for p in open_model(NAME, weights="bf16").transformer.parameters()}
    assert kinds == {torch.bfloat16} != {p.dtype for p in model.transformer.parameters()}
    assert config_of(NAME)["num_layers"] == json.loads((hub / "transformer/config.json").read_text())["num_layers"]
    assert hub_file(NAME, "vae/config.json") is None


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ({"beta_schedule": "linear", "beta_end": 0.02, "prediction_type": "epsilon"}, None),
        ({"beta_schedule": "scaled_linear"}, "beta_schedule scaled_linear"),
        ({"prediction_type": "v_prediction"}, "prediction_type v_prediction"),
    ],
)
def test_the_noise_of_a_hub_id_is_checked_as_a_folder_s(found: dict[str, Any], word: str | None, hub: Path) -> None:
    (hub / "scheduler").mkdir()
    (hub / "scheduler" / "scheduler_config.json").write_text(json.dumps(found))
    if word is None:
        assert open_model(NAME).graft is None
        return
    with pytest.raises(ModelError, match=word):
        open_model(NAME)


def test_a_scheduler_that_cannot_be_had_is_not_taken_for_none(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(name: str, file: str) -> str:
        if file.startswith("scheduler"):
            raise LocalEntryNotFoundError("no connection")
        return str(hub / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(ModelError, match=r"scheduler_config.json was not had from the hub: no connection"):
        open_model(NAME)


def test_a_repository_without_a_transformer_is_refused(hub: Path) -> None:
    (hub / "transformer" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no transformer/config\.json"):
        open_model(NAME)


def test_a_whole_graft_of_a_hub_id_has_its_autoencoder(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it can be had, and where the name is no path that is gone."""
    handle = graft(open_model(NAME).transformer, Plan.interleaved(operator="local_mean"))
    asked: list[str] = []
    monkeypatch.setattr("grafting.store.models.own_autoencoder", lambda home: asked.append(home) or nn.Identity())
    save(handle, tmp_path / "graft", whole=True, base=NAME)
    assert isinstance(open_model(str(tmp_path / "graft")).autoencoder, nn.Identity) and asked == [NAME]

    def gone(home: str) -> None:
        raise OSError("weights are not in the cache")

    monkeypatch.setattr("grafting.store.models.own_autoencoder", gone)
    assert open_model(str(tmp_path / "graft")).autoencoder is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME.split("/")[0]).mkdir()
    asked.clear()
    assert open_model(str(tmp_path / "graft")).autoencoder is None and not asked


def test_a_delta_whose_base_is_gone_says_how_to_name_it(hub: Path, tmp_path: Path) -> None:
    handle = graft(open_model(NAME).transformer, Plan.interleaved(operator="local_mean"))
    save(handle, tmp_path / "graft", base="gone-away")
    with pytest.raises(ModelError, match=r"'gone-away' is no bundled teacher.*; .*graft holds .* say with --base"):
        open_model(str(tmp_path / "graft"))
