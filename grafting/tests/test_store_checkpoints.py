"""The original DiT layout and the released grafts, against an independent forward written from the paper."""

from __future__ import annotations

import argparse
import math
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from grafting.store.checkpoints import CheckpointError, read_checkpoint, translate, unshift_timesteps

WIDTH, HEADS, BLOCKS, CLASSES, GRID = 32, 2, 3, 5, 4


def original(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights in the original layout: patch 2, 4 channels, 8 x 8 latents, learned variance."""
    source = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.weight": (WIDTH, 4, 2, 2),
        "x_embedder.proj.bias": (WIDTH,),
        "t_embedder.mlp.0.weight": (WIDTH, 256),
        "t_embedder.mlp.0.bias": (WIDTH,),
        "t_embedder.mlp.2.weight": (WIDTH, WIDTH),
        "t_embedder.mlp.2.bias": (WIDTH,),
        "y_embedder.embedding_table.weight": (CLASSES + 1, WIDTH),
        "final_layer.linear.weight": (32, WIDTH),
        "final_layer.linear.bias": (32,),
        "final_layer.adaLN_modulation.1.weight": (2 * WIDTH, WIDTH),
        "final_layer.adaLN_modulation.1.bias": (2 * WIDTH,),
    }
    for i in range(BLOCKS):
        for name, rows, columns in (
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
            ("adaLN_modulation.1", 6 * WIDTH, WIDTH),
        ):
            shapes |= {f"blocks.{i}.{name}.weight": (rows, columns), f"blocks.{i}.{name}.bias": (rows,)}
    weights = {key: 0.2 * torch.randn(shape, generator=source) for key, shape in shapes.items()}
    return weights | {"pos_embed": sines().unsqueeze(0)}


def sines() -> torch.Tensor:
    """(N, D) fixed 2-D embedding: half of the channels for the column, half for the row, sines before cosines."""
    omega = 1 / 10000 ** (torch.arange(WIDTH // 4, dtype=torch.float64) / (WIDTH // 4))
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    halves = []
    for position in (columns, rows):
        angle = position.flatten()[:, None].double() * omega
        halves += [angle.sin(), angle.cos()]
    return torch.cat(halves, 1).float()


def forward(w: dict[str, torch.Tensor], z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """DiT (arXiv 2212.09748) in plain functions over the original keys."""

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()

    x = F.conv2d(z, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=2).flatten(2).transpose(1, 2)
    x = x + w["pos_embed"]
    angle = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    c = torch.cat([angle.cos(), angle.sin()], 1)
    c = linear(F.silu(linear(c, "t_embedder.mlp.0")), "t_embedder.mlp.2") + w["y_embedder.embedding_table.weight"][y]
    for i in range(BLOCKS):
        parts = linear(F.silu(c), f"blocks.{i}.adaLN_modulation.1")[:, None].chunk(6, -1)
        q, k, v = linear(norm(x) * (1 + parts[1]) + parts[0], f"blocks.{i}.attn.qkv").chunk(3, -1)
        heads = []
        for h in range(HEADS):
            s = slice(h * WIDTH // HEADS, (h + 1) * WIDTH // HEADS)
            scores = q[..., s] @ k[..., s].transpose(1, 2) / math.sqrt(WIDTH / HEADS)
            heads.append(scores.softmax(-1) @ v[..., s])
        x = x + parts[2] * linear(torch.cat(heads, -1), f"blocks.{i}.attn.proj")
        h1 = F.gelu(linear(norm(x) * (1 + parts[4]) + parts[3], f"blocks.{i}.mlp.fc1"), approximate="tanh")
        x = x + parts[5] * linear(h1, f"blocks.{i}.mlp.fc2")
    shift, scale = linear(F.silu(c), "final_layer.adaLN_modulation.1")[:, None].chunk(2, -1)
    out = linear(norm(x) * (1 + scale) + shift, "final_layer.linear")
    return torch.einsum("nhwpqc->nchpwq", out.view(-1, GRID, GRID, 2, 2, 8)).reshape(-1, 8, 2 * GRID, 2 * GRID)


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    return torch.randn(4, 4, 8, 8, generator=source), torch.tensor([0, 50, 500, 999]), torch.tensor([0, 3, 4, 5])


def plain_model(weights: dict[str, torch.Tensor], unshift: bool = True) -> torch.nn.Module:
    from diffusers import DiTTransformer2DModel

    found = translate(weights, heads=HEADS)
    model = DiTTransformer2DModel(**found.config).eval()
    missing = model.load_state_dict(found.shared, strict=False)
    assert not missing.unexpected_keys and not [k for k in missing.missing_keys if "pos_embed.pos_embed" not in k]
    if unshift:
        unshift_timesteps(model)
    return model


def test_import_computes_what_the_original_computes() -> None:
    weights, (z, t, y) = original(), inputs()
    model = plain_model(weights)
    with torch.no_grad():
        torch.testing.assert_close(
            model(z, timestep=t, class_labels=y).sample, forward(weights, z, t, y), rtol=1e-4, atol=1e-4
        )


def test_without_the_unshifted_timesteps_it_is_another_model() -> None:
    weights, (z, t, y) = original(), inputs()
    model = plain_model(weights, unshift=False)
    with torch.no_grad():
        given, wanted = model(z, timestep=t, class_labels=y).sample, forward(weights, z, t, y)
    assert (given - wanted)[3].abs().max() > 0.1


@pytest.mark.parametrize("swapped", ["to_q", "shift"])
def test_sabotage_is_seen(swapped: str) -> None:
    weights, (z, t, y) = original(), inputs()
    broken = dict(weights)
    if swapped == "to_q":
        q, k, v = weights["blocks.1.attn.qkv.weight"].chunk(3)
        broken["blocks.1.attn.qkv.weight"] = torch.cat([v, k, q])
    else:
        broken["blocks.1.adaLN_modulation.1.bias"] = weights["blocks.1.adaLN_modulation.1.bias"].roll(WIDTH)
    with torch.no_grad():
        given = plain_model(broken)(z, timestep=t, class_labels=y).sample
    assert (given - forward(weights, z, t, y)).abs().max() > 1e-2


def grafted_layout(operator: str, **options: int) -> dict[str, torch.Tensor]:
    from grafting.operators import build

    site = "mlp" if operator.startswith("mlp") else "attn"
    options = options or ({"ratio": 3} if operator == "mlp" else {})
    weights = {key: value for key, value in original().items() if not key.startswith(f"blocks.1.{site}.")}
    own = build(operator, width=WIDTH, heads=HEADS, tokens=GRID**2, **options).state_dict()
    return weights | {f"blocks.1.{site}.{key}": value for key, value in own.items()}


@pytest.mark.parametrize("operator", ["hyena_se", "hyena_x", "hyena_y", "swa", "mlp"])
def test_released_grafts_are_recognised(operator: str) -> None:
    found = translate(grafted_layout(operator), heads=HEADS)
    ((block, site), (name, options, own)) = next(iter(found.grafts.items()))
    assert (block, name, len(found.grafts)) == (1, operator, 1)
    assert site == ("mlp" if operator == "mlp" else "attn")
    assert options == ({} if operator == "swa" else {"ratio": 3} if operator == "mlp" else {"kernel": 4})
    assert own and not any(f"transformer_blocks.1.{'ff' if site == 'mlp' else 'attn1'}" in key for key in found.shared)


def test_training_dictionary_with_namespace_is_read_and_other_classes_refused(tmp_path: Path) -> None:
    weights = original()
    half = {key: value + 1 for key, value in weights.items()}
    path = tmp_path / "released.pt"
    torch.save({"model": weights, "ema": half, "opt": {"state": {}}, "args": argparse.Namespace(lr=1.0)}, path)
    assert torch.equal(read_checkpoint(path)["pos_embed"], half["pos_embed"])
    assert torch.equal(read_checkpoint(path, "model")["pos_embed"], weights["pos_embed"])
    with pytest.raises(CheckpointError, match="no weights under 'swa'; the file holds ema, model"):
        read_checkpoint(path, "swa")
    torch.save({"ema": weights, "args": Path("/")}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="refused by the weights-only loader"):
        read_checkpoint(tmp_path / "other.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "plain.pt")
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "absent.pt")


def test_the_allow_list_does_not_leak(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"ema": original(), "args": argparse.Namespace()}, path)
    read_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_errors_name_what_is_wrong() -> None:
    weights = original()
    with pytest.raises(CheckpointError, match="x_embedder"):
        translate({"a": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"keys not understood: strange\.key"):
        translate(weights | {"strange.key": torch.zeros(1)}, heads=HEADS)
    with pytest.raises(CheckpointError, match="without a gap"):
        translate({k: v for k, v in weights.items() if not k.startswith("blocks.1.")}, heads=HEADS)
    with pytest.raises(CheckpointError, match="heads 5"):
        translate(weights, heads=5)
