"""What every operator begins with, written down beside its version: who changes a start raises its version.

Kept results name the version (``Operator.start_version``): a start that changed without it would pass for the older.
"""

from __future__ import annotations

import pytest
import torch
from test_graft import batch, tiny

from grafting.graft import graft
from grafting.initialise import start_versions
from grafting.operators import get, list_operators
from grafting.plan import Plan

INITS = ("random", "copy", "solve")
STARTS: dict[str, tuple[tuple[int, float], ...]] = {
    "hyena_se": ((1, 6.60524), (2, -2.81242), (2, 0.547832)),
    "hyena_x": ((1, 3.3235), (2, 7.84021), (2, 0.537165)),
    "hyena_x_2d": ((1, 1.38894), (2, -1.74805), (2, 0.526823)),
    "hyena_x_centred": ((1, 4.78282), (2, -0.264982), (2, 0.553922)),
    "hyena_y": ((1, 0.468237), (2, 5.36486), (2, 0.588473)),
    "linear": ((1, 2.20071), (1, -5.74953), (1, 0.979454)),
    "local_mean": ((2, 9.55695), (2, 2.00639), (2, 0.966457)),
    "mamba2": ((1, 2.34186), (1, 2.34186), (1, 0.296564)),
    "mha": ((1, 2.20071), (1, -5.74953), (1, 1)),
    "mix_ffn": ((1, 1.53602), (1, 3.42486), (1, 0.966482)),
    "mlp": ((1, 0.498774), (1, 4.38395), (1, 1)),
    "mlp_hyena_x": ((1, 1.00061), (1, 1.00061), (1, 0.229288)),
    "swa": ((1, 2.20071), (1, -5.74953), (1, 0.86532)),
    "swa_2d": ((1, 2.20071), (1, -5.74953), (1, 0.934767)),
}
"""By operator, in the order of INITS: its version, and what :func:`begun` gives."""


def begun(name: str, init: str) -> float:
    """Of a start at a seed: its weights against fixed ones, or what of the site's variance a solved one explains."""
    kind = "mlp" if get(name).kind == "channel" else "attn"
    plan = Plan.explicit(site=kind, operator=name, blocks=[1])
    handle = graft(tiny(), plan, init=init, seed=3, calibration=batch, calibration_batches=8)
    if init == "solve":
        (share,) = handle.explained.values()
        return share
    weights = torch.cat([parameter.detach().flatten().double() for parameter in handle.new()])
    return float(weights @ torch.cos(torch.arange(len(weights), dtype=torch.float64)))


def test_every_operator_is_written_down() -> None:
    assert set(STARTS) == set(list_operators())


@pytest.mark.parametrize("name", sorted(STARTS))
def test_a_start_that_changes_has_another_version(name: str) -> None:
    for init, (version, wanted) in zip(INITS, STARTS[name], strict=True):
        assert get(name).start_version(init) == version
        assert begun(name, init) == pytest.approx(wanted, rel=1e-3), f"{init}: raise start_version, then write it down"


def test_versions_are_named_where_they_are_not_the_first() -> None:
    both = (Plan.all(operator="hyena_x") + Plan.all(site="mlp", operator="none")).edits
    assert start_versions(both, "default") == {"starts": {"hyena_x": 2}} and start_versions(both, "random") == {}
    assert start_versions(Plan.all(operator="local_mean").edits, "random") == {"starts": {"local_mean": 2}}
    assert start_versions(Plan.all(operator="swa").edits, "solve") == {}
