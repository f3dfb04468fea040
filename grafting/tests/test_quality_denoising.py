"""The held-out loss: closed forms for models whose error is known, and the pairing."""

from __future__ import annotations

import pytest
import torch

from grafting.diffusion import Diffusion
from grafting.measure.denoising import Triples, denoising_losses, mean_loss, paired_difference

Z = torch.randn(50, 2, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(50) % 10


def test_triples_come_from_counters_and_spread_over_noise_levels():
    few, many = (Triples.draw(Z, Y, n=n, seed=1) for n in (60, 400))
    for name in ("z", "y", "t", "noise"):
        assert torch.equal(getattr(few, name), getattr(many, name)[:60])
    assert torch.equal(few.z[50], Z[0]) and few.y[50] == Y[0]
    assert not torch.equal(few.noise[0], few.noise[50])
    # A prompt's states can be megabytes: held once for each sample, however many triples there are.
    assert many.conditions is Y and torch.equal(many.asked(slice(48, 52)), Y[[48, 49, 0, 1]])
    # 40 triples per tenth of the schedule; a uniform draw would stray by six.
    assert (torch.histc(many.t.float(), 10, 0, 999) - 40).abs().max() <= 3
    assert not torch.equal(Triples.draw(Z, Y, n=60, seed=2).t, few.t)


def test_losses_of_models_with_known_error():
    triples = Triples.draw(Z, Y, n=64)
    diffusion = Diffusion()

    def oracle(zt, t, y):  # right but for an offset of the noise; with a variance half
        a = diffusion.alphas_bar[t].float()[:, None, None, None]
        rows = [int(torch.nonzero((triples.t == ti) & (triples.y == yi))[0]) for ti, yi in zip(t, y, strict=True)]
        noise = (zt - a.sqrt() * triples.z[rows]) / (1 - a).sqrt()
        return torch.cat([noise + 0.5, torch.full_like(noise, 99.0)], dim=1)

    losses = denoising_losses(oracle, triples, batch_size=10)
    torch.testing.assert_close(losses, torch.full((64,), 0.25, dtype=torch.float64), atol=2e-3, rtol=0)
    zero = denoising_losses(lambda zt, t, y: torch.zeros_like(zt), triples, batch_size=17)
    torch.testing.assert_close(zero, triples.noise.double().square().flatten(1).mean(1))


def test_the_paired_interval_tells_close_models_apart():
    triples = Triples.draw(Z, Y, n=256)
    losses = [denoising_losses(lambda zt, t, y, s=s: s * zt, triples) for s in (0.50, 0.49)]
    difference = paired_difference(*losses)
    apart = [mean_loss(x) for x in losses]
    assert difference.value == pytest.approx(apart[0].value - apart[1].value)
    assert difference.high - difference.low < 0.2 * (apart[0].high - apart[0].low)
    nothing = paired_difference(losses[0], losses[0])
    assert (nothing.low, nothing.value, nothing.high) == (0, 0, 0)


def test_mean_loss_is_the_textbook_interval():
    got = mean_loss(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert got.value == 2.5 and got.high - 2.5 == pytest.approx(3.182446 * 1.2909944 / 2, rel=1e-6)


def test_triples_of_one_image_are_no_independent_draws():
    image = torch.arange(12) % 4
    losses = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3 * image
    mine, means = mean_loss(losses, image), losses.reshape(3, 4).mean(0)
    textbook = mean_loss(means)  # of the images' own means, which are independent
    assert (mine.value, mine.low, mine.high) == pytest.approx((textbook.value, textbook.low, textbook.high))
    assert mine.high - mine.low > 1.5 * (mean_loss(losses).high - mean_loss(losses).low)
    alone = mean_loss(losses, torch.arange(12))
    assert alone.high == pytest.approx(mean_loss(losses).high)
    again = paired_difference(losses, torch.zeros(12), image)
    assert (again.low, again.high) == pytest.approx((mine.low, mine.high))
    single = mean_loss(losses, torch.zeros(12))  # of one image there is nothing to cluster
    assert (single.low, single.high) == (mean_loss(losses).low, mean_loss(losses).high)
    with pytest.raises(ValueError, match="1 losses: an interval needs at least 2"):
        mean_loss(losses[:1], image[:1])


def test_refusals():
    with pytest.raises(ValueError, match="50 samples and 3 labels"):
        Triples.draw(Z, Y[:3], n=5)
    with pytest.raises(ValueError, match="same triples"):
        paired_difference(torch.zeros(3), torch.zeros(4))
