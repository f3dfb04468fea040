"""Pretraining a text-to-image transformer over scenes, tiny: its start, its conditions, what is kept, exact resume."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from grafting.conditions import MASK, TEXT
from grafting.diffusion import Diffusion
from grafting.hosts import shape_of
from grafting.sampling import Pipeline, Sampling
from grafting.store.configs import config_of
from grafting.store.models import open_model
from grafting.teachers import bundle, read_bundle
from grafting.text import NULL, Embedded, TextEncoder
from grafting.training.objective import teacher_objective
from grafting.training.pretrain import PretrainRecipe, pictures, pretrain, score, text_transformer
from grafting.training.pretrain.scaffold import Whitened
from grafting.training.team import Team

AUTOENCODER = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [4, 4, 4],
    "norm_num_groups": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "mid_block_add_attention": False,
    "sample_size": 64,
}
PIXART = {
    "_class_name": "PixArtTransformer2DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": 6,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "sample_size": 16,
    "patch_size": 4,
    "use_additional_conditions": False,
}
TWO = Sampling(steps=2, guidance=2.0)


class Letters(torch.nn.Module):
    """A text encoder of one layer; its tokenizer takes letters for tokens."""

    class Config:
        hidden_size = 6

    class Output:
        def __init__(self, states: torch.Tensor) -> None:
            self.last_hidden_state = states

    config = Config

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(128, 6)

    def forward(self, input_ids: torch.Tensor) -> Any:
        return self.Output(self.table(input_ids))


def letters() -> TextEncoder:
    torch.manual_seed(3)
    return TextEncoder(
        lambda texts, **_: {"input_ids": [[1, *map(ord, text), 2] for text in texts]}, Letters(), "letters"
    )


def _recipe(**extra: Any) -> PretrainRecipe:
    loop = {"steps": 4, "lr": 1e-3, "save_every": 2, "log_every": 1}
    content = {"kind": "transformer", "data": "scenes", "batch": 4, "pool": 12, "loop": loop, "model": PIXART, **extra}
    return PretrainRecipe.from_dict(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained autoencoder in ``autoencoder/model`` and a text run with its kept latents and states in ``run``."""
    out = tmp_path_factory.mktemp("scenes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_transformer, "minilm", letters)
        patch.setattr("grafting.training.pretrain.run.SCALE_PICTURES", 50)
        vae = pretrain(_recipe(kind="autoencoder", model=AUTOENCODER), out / "autoencoder")
        assert vae.config.latent_channels == 4  # type: ignore[union-attr]
        pretrain(_recipe(autoencoder=str(out / "autoencoder" / "model")), out / "run")
    return out


@pytest.fixture
def recipe(folder: Path) -> PretrainRecipe:
    return _recipe(autoencoder=str(folder / "autoencoder" / "model"))


def test_every_block_begins_as_the_identity_and_the_output_as_zero() -> None:
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(**{key: value for key, value in PIXART.items() if key != "_class_name"})
    text_transformer.start(model)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    text = {TEXT: torch.randn(2, 5, 6), MASK: torch.ones(2, 5)}
    added = {"resolution": None, "aspect_ratio": None}
    out = model(torch.randn(2, 4, 16, 16), timestep=torch.tensor([5, 900]), added_cond_kwargs=added, **text).sample
    assert len(seen) == 2 and all(torch.equal(x, y) and x.std() > 0.1 for x, y in seen)
    assert not out.any()


def _conditions(recipe: PretrainRecipe, out: Path, steps: int) -> list[dict[str, torch.Tensor]]:
    """What the model is given in the first steps."""
    torch.manual_seed(0)
    model, losses = text_transformer.text_transformer(recipe, out, Team(device=torch.device("cpu")))
    seen: list[dict[str, torch.Tensor]] = []
    model.register_forward_pre_hook(lambda _, __, given: seen.append(given), with_kwargs=True)
    for step in range(steps):
        losses(step)
    return seen


def test_captions_are_dropped_at_their_rate(folder: Path, recipe: PretrainRecipe) -> None:
    kept = Embedded.load(folder / "run" / "prompts.safetensors")
    null = kept.null[TEXT][0]

    def dropped(rate: float) -> torch.Tensor:
        seen = _conditions(replace(recipe, label_dropout=rate), folder / "run", 40)
        return torch.cat([(given[MASK].sum(1) == 2) & (given[TEXT][:, :2] == null).all((1, 2)) for given in seen])

    assert dropped(1.0).all() and not dropped(0.0).any()
    # 160 captions: the count is binomial, 40 expected, and five deviations are 27.
    assert 13 <= int(dropped(0.25).sum()) <= 67


def test_the_model_sees_each_scene_with_its_own_caption(folder: Path, recipe: PretrainRecipe) -> None:
    """Latents of an epoch, noised with nothing, against scenes encoded here; states against those of their captions."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder / "autoencoder" / "model").eval()
    pictures, captions = text_transformer.scenes(recipe, range(12))
    with torch.no_grad():
        wanted = vae.encode(pictures).latent_dist.mean * vae.config.scaling_factor
    z, texts = text_transformer.pool(recipe, folder / "run", Team(device=torch.device("cpu")))
    torch.testing.assert_close(z.float(), wanted, rtol=1e-2, atol=5e-3)
    assert texts == captions
    direct, kept = letters().embed([NULL, *captions]), Embedded.load(folder / "run" / "prompts.safetensors")
    for caption in captions:
        assert torch.equal(kept([caption])[TEXT], direct([caption])[TEXT])


def test_a_recipe_says_what_its_scenes_hold() -> None:
    """Another world is another data set, so that a run of the one is never continued on the other."""
    easy = _recipe(world={"weights": [1, 0, 0, 1, 0, 0], "shapes": ["disc", "star"]})
    _, captions = pictures.scenes(easy, range(40))
    assert all(caption.endswith(("disc", "star")) and " and " not in caption for caption in captions)
    assert pictures.identity(easy) != pictures.identity(_recipe())
    with pytest.raises(ValueError, match=r"recipe: world: most is 7, must be 2, 3 or 4"):
        _recipe(world={"most": 7})


def test_latents_and_states_are_made_once(
    folder: Path, recipe: PretrainRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither a scene of the pool is encoded nor the encoder loaded again, unless the pool is another."""
    shutil.copytree(folder / "run", tmp_path / "run")

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("made again")

    monkeypatch.setattr(text_transformer, "encode", refuse)
    monkeypatch.setattr(text_transformer, "minilm", refuse)
    _conditions(recipe, tmp_path / "run", 1)
    with pytest.raises(AssertionError, match="made again"):
        _conditions(replace(recipe, pool=13), tmp_path / "run", 1)


def test_a_stopped_run_continues_to_the_same_bits(folder: Path, recipe: PretrainRecipe, tmp_path: Path) -> None:
    shutil.copy(folder / "run" / "prompts.safetensors", tmp_path)
    pretrain(recipe, tmp_path, until=3)
    pretrain(recipe, tmp_path)
    whole, again = (load_file(path / "state-4.safetensors") for path in (folder / "run", tmp_path))
    assert whole.keys() == again.keys() and all(torch.equal(whole[key], again[key]) for key in whole)


def test_what_helps_a_run_to_learn_continues_with_it_and_is_not_in_its_model(
    folder: Path, recipe: PretrainRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From an earlier model: the same bits after a stop, a bare model at the end, scored as it stands."""
    from diffusers import AutoencoderKL, PixArtTransformer2DModel

    from grafting.scenes import evaluation_prompts

    monkeypatch.setattr(text_transformer, "minilm", letters)
    start = str(folder / "run" / "model")
    loop = replace(recipe.loop, optimizer="muon")
    helped = replace(recipe, start=start, loop=loop, whiten=True, fresh_text=True, semantics=0.1)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / "run" / "prompts.safetensors", tmp_path / name)
    pretrain(helped, tmp_path / "whole")
    pretrain(helped, tmp_path / "cut", until=3)
    pretrain(helped, tmp_path / "cut")
    whole, again = (load_file(tmp_path / name / "state-4.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == again.keys() and all(torch.equal(whole[key], again[key]) for key in whole)
    rows = [json.loads(row) for row in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"step", "loss", "grad_norm", "mse", "bound", "semantics"}] * 4
    model = PixArtTransformer2DModel.from_pretrained(tmp_path / "whole" / "model")
    begun = load_file(Path(start) / "diffusion_pytorch_model.safetensors")
    assert set(begun) == set(model.state_dict())
    states = Embedded.load(folder / "run" / "prompts.safetensors").values.float()
    averaged = whole["ema/caption_projection.linear_1.parametrizations.weight.original"]
    torch.testing.assert_close(model.caption_projection.linear_1.weight.data, averaged @ Whitened(states).whitening)
    prompts = [prompt.text for prompt in evaluation_prompts(6)]
    vae = AutoencoderKL.from_pretrained(folder / "autoencoder" / "model")
    wanted = Pipeline(model, vae, text=letters().embed([NULL, *prompts]))(prompts, sampling=TWO)
    torch.testing.assert_close(
        score(helped, tmp_path / "whole", 6, sampling=TWO).pictures, wanted, rtol=1e-4, atol=1e-4
    )
    with pytest.raises(ValueError, match="whiten, fresh_text and semantics are for a transformer that"):
        _recipe(kind="autoencoder", model=AUTOENCODER, whiten=True)
    with pytest.raises(ValueError, match=r"semantics -1.0: a weight of 0 or more"):
        _recipe(semantics=-1.0)


KILLED = """
import sys, time
from pathlib import Path
from grafting.data import Batches
from grafting.training.pretrain import PretrainRecipe, pretrain
draw = Batches.__call__
Batches.__call__ = lambda self, step: time.sleep(0.05) or draw(self, step)
pretrain(PretrainRecipe.from_yaml(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
"""


def test_a_killed_run_continues_to_the_same_bits(folder: Path, tmp_path: Path) -> None:
    """Weights, averages, moments and every logged loss, of a real process killed at a random step."""
    loop = {"steps": 12, "lr": 1e-3, "save_every": 1, "log_every": 1}
    content = {"kind": "transformer", "data": "scenes", "batch": 4, "pool": 12, "model": PIXART, "loop": loop}
    content |= {"autoencoder": str(folder / "autoencoder" / "model"), "precision": "bf16", "weight_cap": 50}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / "run" / "prompts.safetensors", tmp_path / name)
    recipe = PretrainRecipe.from_yaml(file.read_text())
    pretrain(recipe, tmp_path / "whole")
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(file), str(tmp_path / "cut")])
    deadline = time.monotonic() + 100
    while not (tmp_path / "cut" / "state.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.random() * 0.4)
    child.kill()
    child.wait()
    assert (tmp_path / "cut" / "state.json").is_file()
    pretrain(recipe, tmp_path / "cut")
    wanted, found = (load_file(tmp_path / name / "state-12.safetensors") for name in ("whole", "cut"))
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert (tmp_path / "cut" / "log.jsonl").read_text() == (tmp_path / "whole" / "log.jsonl").read_text()


def test_a_run_is_scored_by_its_averaged_weights(
    folder: Path, recipe: PretrainRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Against the model that the finished run wrote, drawn and judged here."""
    from diffusers import AutoencoderKL, PixArtTransformer2DModel

    from grafting.scenes import evaluation_prompts
    from grafting.scenes.scorer import judge

    monkeypatch.setattr(text_transformer, "minilm", letters)
    found = score(recipe, folder / "run", 12, sampling=TWO)
    prompts = evaluation_prompts(12)
    model = PixArtTransformer2DModel.from_pretrained(folder / "run" / "model")
    vae = AutoencoderKL.from_pretrained(folder / "autoencoder" / "model")
    text = letters().embed([NULL, *(prompt.text for prompt in prompts)])
    wanted = Pipeline(model, vae, text=text)([prompt.text for prompt in prompts], sampling=TWO)
    torch.testing.assert_close(found.pictures, wanted, rtol=1e-4, atol=1e-4)
    assert (found.step, found.samples, found.scores.overall.n) == (4, 16, 12)
    row = json.loads((folder / "run" / "scores.jsonl").read_text().splitlines()[-1])
    assert row["step"] == 4 and row["overall"] == 0 and row["protocol"] == TWO.describe()
    assert not any(judge(prompt, ()) for prompt in prompts)  # what a picture of nothing scores
    with pytest.raises(ValueError, match="holds no state yet"):
        score(recipe, tmp_path, 6)
    with pytest.raises(ValueError, match="only a transformer that learns from scenes"):
        score(_recipe(kind="autoencoder", model=AUTOENCODER), folder / "autoencoder", 6)


def test_pictures_that_show_what_is_asked_score(
    folder: Path, recipe: PretrainRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With true renderings in the place of the model's pictures the score is whole, with half of them half."""
    from grafting.scenes import evaluation_prompts, render, scene_of

    prompts = evaluation_prompts(12)
    true = [pictures.scaled(torch.from_numpy(render(scene_of(prompt, 0, k)))[None]) for k, prompt in enumerate(prompts)]
    monkeypatch.setattr(text_transformer, "minilm", letters)
    monkeypatch.setattr(Pipeline, "latents", lambda *_, **__: torch.zeros(12, 4, 16, 16))
    monkeypatch.setattr(Pipeline, "decode", lambda *_: torch.cat(true))
    assert score(recipe, folder / "run", 12).scores.overall.value == 1
    monkeypatch.setattr(Pipeline, "decode", lambda *_: torch.cat([*true[:6], *(true[0] * 0 for _ in range(6))]))
    assert score(recipe, folder / "run", 12).scores.overall.value == 0.5


def test_a_text_teacher_is_bundled_in_half_precision_with_its_prompts(folder: Path, tmp_path: Path) -> None:
    run, kept = folder / "run", Embedded.load(folder / "run" / "prompts.safetensors")
    sources = {"transformer": run / "model", "autoencoder": folder / "autoencoder" / "model"}
    bundle(sources, tmp_path / "tiny", {"title": "tiny"}, prompts=kept.only([NULL, kept.prompts[1]]))
    found = read_bundle(tmp_path / "tiny")
    assert type(found.transformer).__name__ == "PixArtTransformer2DModel" and found.classifier is None
    assert found.prompts is not None and found.prompts.prompts == (NULL, kept.prompts[1])
    assert found.card["prompts"]["count"] == 2
    lengths = [len(kept.rows(kept.indices([prompt]))["encoder_attention_mask"][0]) for prompt in found.prompts.prompts]
    assert found.card["prompts"]["tokens"] == round(sum(lengths) / 2) == shape_of(found.transformer).context_tokens
    assert found.card["parts"]["transformer"]["dtype"] == "float16"
    whole = load_file(run / "model" / "diffusion_pytorch_model.safetensors")
    for name, parameter in found.transformer.named_parameters():
        torch.testing.assert_close(parameter.data, whole[name], rtol=1e-3, atol=1e-4)
    drawn = Pipeline(found.transformer, found.autoencoder, text=found.prompts)([kept.prompts[1]], sampling=TWO)
    assert drawn.shape == (1, 3, 64, 64)
    opened = open_model(str(tmp_path / "tiny"))
    assert opened.prompts is not None and opened.prompts.prompts == found.prompts.prompts
    sizes = [shape_of(opened.transformer), shape_of(config_of(str(tmp_path / "tiny")))]
    assert {shape.context_tokens for shape in sizes} == {found.card["prompts"]["tokens"]}
    with pytest.raises(ValueError, match="a bundle needs transformer, autoencoder; missing: autoencoder"):
        bundle({"transformer": run / "model"}, tmp_path / "other", {}, prompts=kept)


def test_weighted_noise_error_is_the_velocity_error() -> None:
    """Against the velocity computed by its definition, where the cap is not reached."""
    diffusion = Diffusion()
    z, noise, wrong = torch.randn(3, 8, 4, 4, 4, dtype=torch.float64).unbind(0)
    t = torch.tensor([0, 10, 100, 200, 300, 400, 500, 600])
    a = diffusion.alphas_bar[t][:, None, None, None]
    zt = diffusion.add_noise(z, t, noise)
    clean = (zt - (1 - a).sqrt() * wrong) / a.sqrt()
    velocity, guess = a.sqrt() * noise - (1 - a).sqrt() * z, a.sqrt() * wrong - (1 - a).sqrt() * clean
    weights = diffusion.level_weights(1e9)
    # The model's output is taken in float32.
    found = teacher_objective(lambda *_: wrong, diffusion, z, t, None, noise, weights)["mse"]
    torch.testing.assert_close(found, (velocity - guess).square().mean(), rtol=1e-5, atol=0, check_dtype=False)
    assert diffusion.level_weights(7.0).max() == 7 and diffusion.level_weights(1.0).eq(1).all()


def test_weights_of_half_the_power_make_gradients_alike() -> None:
    """Of the same error in velocity, at every level: by autograd through the noise that the model gives."""
    diffusion = Diffusion()
    gradients = []
    for t in (10, 300, 600, 990):
        a = diffusion.alphas_bar[t]
        noise = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        guess = (noise + a.sqrt() * 0.3).requires_grad_()  # the velocity is off by 0.3
        weights = diffusion.level_weights(1e9, 0.5)
        parts = teacher_objective(lambda *_, g=guess: g, diffusion, noise, torch.tensor([t]), None, noise, weights)
        (gradient,) = torch.autograd.grad(parts["mse"], guess)
        gradients.append(gradient.item())
    assert gradients == pytest.approx([0.6] * 4, rel=1e-3)


def test_recipes_that_fit_no_transformer_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="_class_name 'UNet': DiTTransformer2DModel or PixArtTransformer2DModel"):
        _recipe(model={"_class_name": "UNet"})
    with pytest.raises(ValueError, match="data None: PixArtTransformer2DModel learns from scenes"):
        _recipe(data=None)
    (tmp_path / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')
    with pytest.raises(ValueError, match="is DiTTransformer2DModel, data 'scenes': PixArtTransformer2DModel learns"):
        _recipe(model={}, start=str(tmp_path)).completed()
