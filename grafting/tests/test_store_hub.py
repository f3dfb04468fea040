"""A model of the hub, from a local stand-in for the hub: fetched files lie in a folder, missing ones are told so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_graft import tiny
from torch import nn

from grafting.cli import main
from grafting.graft import graft
from grafting.lora import Lora, add_lora
from grafting.plan import Plan
from grafting.store.configs import ModelError, config_of, home_of, hub_file
from grafting.store.folder import load, save
from grafting.store.manifest import StoreError, read_manifest
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


@pytest.fixture
def grafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """A folder of repositories that stands for the hub, a delta and a whole graft among them, and what was fetched."""
    from huggingface_hub.errors import EntryNotFoundError

    asked: list[str] = []

    def download(name: str, file: str) -> str:
        asked.append(f"{name}/{file}")
        if not (tmp_path / "hub" / name / file).is_file():
            raise EntryNotFoundError(f"404: {file}")
        return str(tmp_path / "hub" / name / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    tiny().save_pretrained(tmp_path / "base")  # type: ignore[operator]
    handle = graft(open_model(tmp_path / "base").transformer, Plan.interleaved(operator="local_mean"), init="copy")
    for name, whole in (("delta", False), ("whole", True)):
        save(handle, tmp_path / "hub" / "me" / name, whole=whole, base=str(tmp_path / "base"))
    return tmp_path / "hub" / "me", asked


@pytest.mark.parametrize("name", ["me/delta", "me/whole"])
def test_a_graft_of_the_hub_opens_as_its_folder_does(name: str, grafts: tuple[Path, list[str]]) -> None:
    there, asked = grafts[0].parent / name, grafts[1]
    assert config_of(name) == config_of(str(there)) and home_of(name) == home_of(str(there))
    assert not any(file.endswith(".safetensors") for file in asked)  # the manifest alone says this
    opened, wanted = open_model(name), open_model(there)
    assert opened.name == name and opened.graft is not None and wanted.graft is not None
    assert opened.graft.plan == wanted.graft.plan and opened.folder == wanted.folder
    state = wanted.transformer.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in opened.transformer.state_dict().items())
    base = None if name == "me/whole" else open_model(grafts[0].parents[1] / "base").transformer
    state = load(there).model.state_dict() if base is None else state
    loaded = load(name, base).model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.items())


def test_a_hub_id_that_is_no_graft_or_only_half_of_one_is_refused(
    grafts: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (grafts[0] / "delta" / "graft.safetensors").unlink()
    with pytest.raises(ModelError, match=r"^me/delta on the hub has a graft\.json and no graft\.safetensors"):
        open_model("me/delta")
    with pytest.raises(ModelError, match=r"me/none on the hub has no transformer/config\.json and no graft\.json"):
        open_model("me/none")
    with pytest.raises(StoreError, match=r"^me/none is no graft: it has no graft\.json"):
        load("me/none")
    with pytest.raises(StoreError, match=r"gone/at/all is no graft: it has no graft\.json"):
        load("gone/at/all")


def test_a_graft_that_changes_on_the_hub_while_it_is_fetched_is_refused(
    grafts: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each commit is a folder of the cache, and its manifest knows its own weights alone."""
    commits = iter(("delta", "whole"))
    fetched = {"graft.json", "graft.safetensors"}
    monkeypatch.setattr(
        "grafting.store.configs.hub_file",
        lambda name, file: grafts[0] / next(commits) / file if file in fetched else None,
    )
    with pytest.raises(ModelError, match=r"me/delta changed on the hub while it was fetched: try again"):
        load("me/delta")


def test_a_model_of_diffusers_is_not_asked_for_a_graft(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the cache alone knows of no such file, and opens without the hub as before."""
    import huggingface_hub

    asked, download = [], huggingface_hub.hf_hub_download
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda name, file: (asked.append(file), download(name, file))[1]
    )
    open_model(NAME), config_of(NAME), home_of(NAME)
    assert "transformer/config.json" in asked and "graft.json" not in asked


def test_verbs_take_a_graft_of_the_hub(grafts: tuple[Path, list[str]], tmp_path: Path, capsys: Any) -> None:
    model = open_model("me/delta")
    assert model.graft is not None
    add_lora(model.graft, Lora(rank=2))
    save(model.graft, grafts[0] / "adapted", base=str(tmp_path / "base"))
    assert main(["merge", "me/adapted", "--out", str(tmp_path / "merged")]) == 0
    merged = read_manifest(tmp_path / "merged")
    assert merged["whole"] and merged["base"] == read_manifest(grafts[0] / "adapted")["base"]
    assert main(["plan", "me/whole", "--operator", "swa"]) == 0 and "me/whole" in capsys.readouterr().out
