"""A model in training mode: nothing that the library computes depends on the global generator, and the mode stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_graft import batch, tiny
from torch import nn

from grafting.diffusion import Denoiser
from grafting.graft import Grafted, graft
from grafting.measure.denoising import Triples, denoising_losses
from grafting.modes import evaluating
from grafting.plan import Plan
from grafting.restructure import Merge
from grafting.study.stages import denoiser
from grafting.training.distill import DistillConfig, distill
from grafting.training.finetune import FinetuneConfig, finetune
from grafting.training.loop import LoopConfig

Found = dict[str, torch.Tensor]
SITES = Plan.explicit(site="attn", operator="hyena_x", blocks=[1, 2])
PAIRS = SITES + Plan(restructure=(Merge(groups=((0, 1), (2, 3))),))


def weights(model: nn.Module) -> Found:
    return {name: value.clone() for name, value in model.state_dict().items()}


def solved(model: nn.Module) -> Found:
    return weights(graft(model, SITES, init="solve", calibration=batch, calibration_batches=2).model)


def distilled(plan: Plan) -> Callable[[nn.Module], Found]:
    def run(model: nn.Module) -> Found:
        handle = graft(model, plan, init="copy", seed=3)
        distill(handle, batch, 10, config=DistillConfig(steps=3, evaluate_every=2, heldout_batches=1))
        return weights(handle.model)

    return run


def teacher_of(handle: Grafted) -> Denoiser:
    def teacher(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with handle.teacher():
            return handle.host.call(handle.model, z, t, y)

    return teacher


def finetuned(plan: Plan) -> Callable[[nn.Module], Found]:
    def run(model: nn.Module) -> Found:
        handle = graft(model, plan, init="copy", seed=3)
        handle.train_grafted()

        def student(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return handle.host.call(handle.model, z, t, y)

        config = FinetuneConfig(loop=LoopConfig(steps=3, lr=1e-3), teacher_share=(1.0, 0.3))
        finetune(handle.model, student, teacher_of(handle), batches=batch, null=10, config=config)
        return weights(handle.model)

    return run


class Module(nn.Module):
    """A denoiser that is a module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(z, timestep=t, class_labels=y).sample
        return found


def judged(wrap: Callable[[nn.Module], Denoiser]) -> Callable[[nn.Module], Found]:
    triples = Triples.draw(batch(0)["z"], batch(0)["y"], n=16)
    return lambda model: {"losses": denoising_losses(wrap(model), triples, batch_size=8)}


RUNS: dict[str, Callable[[nn.Module], Found]] = {
    "solve": solved,
    "distill": distilled(SITES),
    "distill pairs": distilled(PAIRS),
    "finetune": finetuned(SITES),
    "finetune pairs": finetuned(PAIRS),
    "denoising of a module": judged(Module),
    "denoising of a host": judged(denoiser),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_global_generator_has_no_say_and_the_mode_is_put_back(name: str) -> None:
    found = []
    for seed in (0, 1):
        model = tiny().train()
        torch.manual_seed(seed)
        found.append(RUNS[name](model))
        assert all(module.training for module in model.modules())
    one, two = found
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    other = RUNS[name](tiny())  # in evaluation mode all along
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_models_own_dropping_would_tell() -> None:
    """The models above do drop labels when nobody stops them."""
    model, z = tiny().train(), batch(0)
    drawn = []
    for seed in range(4):
        torch.manual_seed(seed)
        drawn.append(denoiser_in_training(model, z))
    assert not all(torch.equal(drawn[0], other) for other in drawn[1:])


@torch.no_grad()
def denoiser_in_training(model: nn.Module, z: dict[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = model(z["z"], timestep=torch.arange(8) * 100, class_labels=z["y"]).sample
    return found


def test_every_submodules_own_mode_is_put_back_after_an_error_too() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Dropout(), nn.Linear(1, 1)))
    model[1].eval()
    model[1][0].train()
    before = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="within"), evaluating(model, model[1], lambda: None):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("within")
    assert [module.training for module in model.modules()] == before
