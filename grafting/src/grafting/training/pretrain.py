"""Training from nothing what a grafting study stands on: an autoencoder, a transformer teacher, a classifier.

A recipe is a YAML file with ``kind`` (autoencoder, transformer or classifier), ``data``, ``model`` (the diffusers
configuration), ``loop`` (:class:`~grafting.training.loop.LoopConfig`), ``batch``, ``seed``, ``precision``, and
``start``, the folder of an earlier model of the same shape to go on from.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from ..claims import claim
from ..data import Batches, load_fashion
from ..diffusion import Diffusion, draw, drop_labels
from ..files import sha256, write_json_atomic
from ..graft import tensors_hash
from ..precision import autocast
from ..random import normal
from ..settings import SettingsError, build, read_yaml
from .loop import Loop, LoopConfig
from .objective import teacher_objective
from .team import Team

KINDS = ("autoencoder", "transformer", "classifier")


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """One model, its data and its loop."""

    kind: str
    model: dict[str, Any]
    loop: LoopConfig
    batch: int
    seed: int = 0
    precision: str = "fp32"
    data: str | None = None
    autoencoder: str | None = None
    start: str | None = None
    label_dropout: float = 0.1
    kl_weight: float = 1e-4
    notes: str = field(default="", compare=False)

    @classmethod
    def from_dict(cls, content: dict[str, Any], where: str = "recipe") -> PretrainRecipe:
        """Build from parsed YAML. Raises SettingsError naming every unknown key and bad value at once."""
        problems: list[str] = []
        if "kind" in content and content["kind"] not in KINDS:
            problems.append(f"{where}: kind {content['kind']!r}: one of {', '.join(KINDS)}")
        made = build(cls, content, where, problems)
        if problems or made is None:
            raise SettingsError(problems)
        return made

    @classmethod
    def from_yaml(cls, text: str, where: str = "recipe") -> PretrainRecipe:
        """From YAML text. Raises SettingsError, also for a recipe of a study."""
        content = read_yaml(text, where)
        if not isinstance(content, dict):
            raise SettingsError([f"{where}: {content!r} is no mapping of settings"])
        if "teacher" in content and "kind" not in content:
            raise SettingsError([f"{where} is the recipe of a study and trains no teacher: give it to grafting run"])
        return cls.from_dict(content, where)


def pretrain(recipe: PretrainRecipe, out: Path, *, until: int | None = None, team: Team | None = None) -> nn.Module:
    """Run or continue ``recipe`` in the folder ``out`` and write the model (EMA weights) to ``out/model``.

    until: stop after this step; the state is saved and a later call goes on. team: the processes that share the work,
    and their device; alone on the CPU by default. Returns the model with its EMA weights.
    """
    team = team or Team(device=torch.device("cpu"))
    torch.manual_seed(recipe.seed)
    make = {"autoencoder": _autoencoder, "transformer": _transformer, "classifier": _classifier}[recipe.kind]
    model, losses = make(recipe, out, team)
    if recipe.start:
        (weights,) = Path(recipe.start).glob("*.safetensors")
        model.load_state_dict(load_file(weights))
    if team.leads:
        claim(out / "settings.json", _depends(recipe), begun=(out / "state.json").is_file())
    team.wait()
    loop = Loop(model, losses, recipe.loop, out, recipe.kind, team)
    loop.run(until)
    loop.use_ema()
    model.eval()
    if recipe.kind == "autoencoder":
        set_latent_scale(model, load_fashion(_folder(recipe)).images[:5000])
    if team.leads:
        model.save_pretrained(out / "model")  # type: ignore[operator]
    team.wait()
    return model


def _depends(recipe: PretrainRecipe) -> dict[str, Any]:
    """What the weights depend on: the settings, and the bytes behind the folders that they name."""
    found = {key: value for key, value in asdict(recipe).items() if key != "notes"}
    del found["loop"]["save_every"]  # says when to write, not what
    source = load_fashion(_folder(recipe))
    found["data"] = tensors_hash({"images": source.images, "labels": source.labels})
    for part in ("autoencoder", "start"):
        if found[part]:
            found[part] = {path.name: sha256(path) for path in sorted(Path(found[part]).glob("*.safetensors"))}
    return found


def set_latent_scale(autoencoder: Any, images: torch.Tensor) -> None:
    """Set ``scaling_factor`` to one over the latents' deviation on ``images``, as latent diffusion expects."""
    autoencoder.register_to_config(scaling_factor=1 / encode(autoencoder, images).std().item())


def _folder(recipe: PretrainRecipe) -> Path | None:
    return Path(recipe.data) if recipe.data else None


def _autoencoder(recipe: PretrainRecipe, out: Path, team: Team) -> tuple[nn.Module, Any]:
    """L1 + L2 reconstruction with a small KL term; the latents' scale is measured at the end."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(**recipe.model).to(device=team.device, memory_format=torch.channels_last)
    source = load_fashion(_folder(recipe))
    batches = Batches(inputs=source.images, labels=source.labels, size=recipe.batch, seed=recipe.seed)

    def losses(step: int) -> dict[str, torch.Tensor]:
        x = team.rows(batches(step)["z"])
        with autocast(team.device, recipe.precision):
            posterior = model.encode(x).latent_dist
            # Drawn for the whole batch, so that every process takes what it would get alone.
            noise = normal((recipe.batch, *posterior.mean.shape[1:]), recipe.seed, "posterior", step)
            z = posterior.mean + posterior.std * team.rows(noise).to(posterior.mean.dtype)
            y = model.decode(z).sample.float()
        error = y - x
        kl = posterior.kl().float().mean() / z[0].numel()
        return {"l1": error.abs().mean(), "l2": error.square().mean(), "kl": recipe.kl_weight * kl}

    return model, losses


@torch.no_grad()
def encode(autoencoder: nn.Module, images: torch.Tensor, batch: int = 500) -> torch.Tensor:
    """(n, C, h, w) float32 posterior means of ``images``, unscaled, on the CPU; computed where the autoencoder is."""
    device = next(autoencoder.parameters()).device
    parts = [autoencoder.encode(x.to(device)).latent_dist.mean.cpu() for x in images.split(batch)]  # type: ignore[operator]
    return torch.cat(parts)


def _transformer(recipe: PretrainRecipe, out: Path, team: Team) -> tuple[nn.Module, Any]:
    """The DiT objective on latents scaled to unit deviation; labels dropped once, the embedders in eval mode."""
    from diffusers import AutoencoderKL, DiTTransformer2DModel

    if recipe.autoencoder is None:
        raise ValueError("a transformer recipe needs autoencoder: the folder of the trained AutoencoderKL")
    model = DiTTransformer2DModel(**recipe.model)
    _zero_adaln(model)
    model.eval()  # its only training-mode behaviour is each block dropping labels on its own
    model.to(team.device)
    autoencoder = AutoencoderKL.from_pretrained(recipe.autoencoder).eval().to(team.device)
    kept, y = latents(autoencoder, Path(recipe.autoencoder), recipe, out, team)
    batches = Batches(inputs=kept, labels=y, size=recipe.batch, seed=recipe.seed)
    diffusion, null = Diffusion(), recipe.model["num_embeds_ada_norm"]

    def losses(step: int) -> dict[str, torch.Tensor]:
        batch = batches(step)
        noise, t = draw(batch["z"].shape, diffusion.steps, recipe.seed, step)
        labels = drop_labels(batch["y"], recipe.label_dropout, null, recipe.seed, step)
        z, t, labels, noise = (team.rows(tensor) for tensor in (batch["z"], t, labels, noise))
        with autocast(team.device, recipe.precision):

            def denoise(zt: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                return model(zt, timestep=t, class_labels=y).sample

            return teacher_objective(denoise, diffusion, z, t, labels, noise)

    return model, losses


def latents(
    autoencoder: nn.Module, folder: Path, recipe: PretrainRecipe, out: Path, team: Team
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled latents and labels of the training images, kept in ``out`` for the next start."""
    from ..files import save_safetensors_atomic

    cache, identity = out / "latents.safetensors", sha256(folder / "diffusion_pytorch_model.safetensors")
    if cache.is_file() and (out / "latents.json").is_file() and identity in (out / "latents.json").read_text():
        tensors = load_file(cache)
        return tensors["z"], tensors["y"]
    source = load_fashion(_folder(recipe))
    z = encode(autoencoder, source.images) * autoencoder.config.scaling_factor  # type: ignore[union-attr, operator]
    if team.leads:
        moments = {"mean": z.mean().item(), "std": z.std().item()}
        save_safetensors_atomic(cache, {"z": z, "y": source.labels})
        write_json_atomic(out / "latents.json", {"autoencoder": identity, **moments})
    return z, source.labels


def _zero_adaln(model: Any) -> None:
    """DiT's adaLN-Zero start: every block begins as the identity and the output as zero (Peebles & Xie 2022, 3.2)."""
    for linear in (*(block.norm1.linear for block in model.transformer_blocks), model.proj_out_1, model.proj_out_2):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)


def _classifier(recipe: PretrainRecipe, out: Path, team: Team) -> tuple[nn.Module, Any]:
    from ..classifier import Classifier

    model = Classifier(**recipe.model).to(team.device)
    source = load_fashion(_folder(recipe))
    batches = Batches(inputs=source.images, labels=source.labels, size=recipe.batch, seed=recipe.seed)

    def losses(step: int) -> dict[str, torch.Tensor]:
        batch = batches(step)
        images, labels = team.rows(batch["z"]), team.rows(batch["y"])
        with autocast(team.device, recipe.precision):
            logits = model(images)
        return {"cross_entropy": F.cross_entropy(logits.float(), labels, label_smoothing=0.05)}

    return model, losses
