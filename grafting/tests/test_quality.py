"""Metrics against closed forms for Gaussians, hand-made sets, and torchmetrics with the same features."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from scipy.stats import t as student

from grafting.measure.quality import (
    ClassifierExtractor,
    Estimate,
    Features,
    Moments,
    Protocol,
    Reference,
    collect,
    evaluate,
    fid,
    frechet,
    inception_score,
    kid,
    mmd,
    paired_fid_difference,
    paired_kid_difference,
    precision_recall,
    recognition,
)
from grafting.random import generator
from grafting.sampling import Sampling

RNG = np.random.default_rng(0)


def features(n: int, width: int = 6, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1.0, (n, width))


def test_moments_merge_equals_one_pass_even_far_from_zero():
    x = features(501) + 1e6
    parts = [Moments.of(p) for p in np.split(x, [1, 7, 300])]
    merged = parts[3].merge(parts[0]).merge(parts[2].merge(parts[1]))
    assert merged.count == 501
    np.testing.assert_allclose(merged.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(merged.covariance, np.cov(x, rowvar=False), rtol=1e-6, atol=1e-8)


def test_moments_round_trip_without_pickle(tmp_path):
    moments = Moments.of(features(40))
    moments.save(tmp_path / "reference.npz")
    back = Moments.load(tmp_path / "reference.npz")
    assert back.count == 40 and (back.mean == moments.mean).all() and (back.scatter == moments.scatter).all()
    np.savez(tmp_path / "bad.npz", count=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        Moments.load(tmp_path / "bad.npz")


def test_frechet_closed_forms():
    d = np.array([1.0, 4.0, 9.0])
    # Commuting covariances: the sum of squared differences of standard deviations.
    got = frechet(np.zeros(3), np.diag(d), np.array([1.0, 2.0, 0.0]), np.diag(d[::-1]))
    assert got == pytest.approx(5 + (1 - 3) ** 2 + 0 + (3 - 1) ** 2)
    # 2 x 2, not commuting: tr (AB)^½ = sqrt(tr AB + 2 sqrt(det AB)).
    a, b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    assert frechet(np.zeros(2), a, np.zeros(2), b) == pytest.approx(np.trace(a) + np.trace(b) - 2 * root)


def test_fid_of_singular_covariances_and_itself():
    x = features(4, width=20)  # rank 3 of 20
    assert fid(Moments.of(x), Moments.of(x)) == pytest.approx(0, abs=1e-5)
    assert fid(Moments.of(x), Moments.of(x + 0.5)) == pytest.approx(20 * 0.25, rel=1e-5)


def test_fid_equals_torchmetrics():
    from torchmetrics.image.fid import _compute_fid

    a, b = Moments.of(features(300)), Moments.of(features(200, shift=0.3, seed=1) @ RNG.normal(size=(6, 6)))
    theirs = _compute_fid(*(torch.from_numpy(x) for x in (a.mean, a.covariance, b.mean, b.covariance)))
    assert fid(a, b) == pytest.approx(theirs.item(), rel=1e-9)
    assert fid(b, a) == pytest.approx(fid(a, b), rel=1e-9)


def test_mmd_equals_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    a, b = features(50), features(50, shift=0.5, seed=1)
    assert mmd(a, b) == pytest.approx(poly_mmd(torch.from_numpy(a), torch.from_numpy(b)).item(), rel=1e-9)


@pytest.mark.parametrize("block", [None, 20])
def test_kid_is_unbiased_and_its_interval_covers(block):
    covered, values = 0, []
    for trial in range(60):
        result = kid(features(200, seed=2 * trial), features(200, seed=2 * trial + 1), block=block)
        values.append(result.value)
        covered += result.low <= 0 <= result.high
    # The mean over trials within four of its own standard errors; 95 % coverage: 51 of 60 is four sigma off.
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert covered >= 50
    shifted = kid(features(200), features(200, shift=0.5, seed=1), block=block)
    assert shifted.low > 0


def test_inception_score_of_hand_made_logits():
    sure = 50 * np.eye(4)
    assert inception_score(sure) == pytest.approx(4)
    assert inception_score(np.tile(sure[:1], (9, 1))) == pytest.approx(1)
    assert inception_score(np.zeros((5, 7))) == pytest.approx(1)
    p = np.array([[0.9, 0.1], [0.2, 0.8]])
    mean = p.mean(0)
    assert inception_score(np.log(p) + 3) == pytest.approx(np.exp((p * np.log(p / mean)).sum(1).mean()))


def test_inception_score_equals_torchmetrics_over_a_custom_module():
    from torchmetrics.image.inception import InceptionScore

    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    theirs = InceptionScore(feature=torch.nn.Identity(), splits=1)
    theirs.update(logits)
    with pytest.warns(UserWarning):  # the deviation over a single split
        value = theirs.compute()[0].item()
    assert inception_score(logits) == pytest.approx(value, rel=1e-5)


def test_precision_and_recall_of_hand_made_sets():
    real = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    one_mode = np.array([[0.5], [1.5], [1.0], [0.9]])
    assert precision_recall(real, one_mode, k=1) == (1.0, pytest.approx(2 / 6))  # at 1 and, on the edge, at 2
    assert precision_recall(real, one_mode + 100, k=1) == (0.0, 0.0)
    assert precision_recall(real, real, k=1) == (1.0, 1.0)


def test_precision_and_recall_equal_a_loop_over_pairs():
    """Kynkäänniemi et al., eq. 1 and 2, written out point by point; numbers above one slab of the distance matrix."""
    real, generated = features(61, width=3), features(47, width=3, shift=0.4, seed=1)

    def share(points: np.ndarray, centres: np.ndarray, k: int) -> float:
        radii = [sorted(np.linalg.norm(c - other) for other in centres)[k] for c in centres]
        return np.mean(
            [any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radii, strict=True)) for p in points]
        ).item()

    for k in (1, 3, 5):
        found = precision_recall(real, generated, k=k)
        assert found == (pytest.approx(share(generated, real, k)), pytest.approx(share(real, generated, k)))
        assert 0 < found[0] < 1


def test_recognition_counts_by_class():
    logits = torch.eye(3)[[0, 1, 1, 2]]
    result = recognition(logits, torch.tensor([0, 0, 1, 2]))
    assert result.share == 0.75 and result.per_class == {0: 0.5, 1: 1.0, 2: 1.0}


def as_features(array: np.ndarray) -> Features:
    pool = torch.from_numpy(array)
    return Features(pool=pool, spatial=pool[:, :3], logits=pool)


PROTOCOL = Protocol(
    n=300, sampling=Sampling(), labels="balanced", extractor="toy", extractor_label="a toy", reference="toy", seed=0
)


def test_evaluation_orders_models_and_subtracts_the_floor():
    reference, floor = as_features(features(1000)), as_features(features(300, seed=1))
    good = evaluate(as_features(features(300, seed=2)), reference, floor, PROTOCOL, bootstraps=20)
    bad = evaluate(as_features(features(300, shift=1.0, seed=3)), reference, floor, PROTOCOL, bootstraps=20)
    for name in ("fid", "sfid", "kid"):
        assert bad.figures[name].low > good.figures[name].high
    assert bad.figures["fid"].value == pytest.approx(6, rel=0.2)  # six features shifted by one
    assert good.figures["fid_minus_floor"].value == pytest.approx(good.figures["fid"].value - good.floors["fid"])
    assert abs(good.figures["fid_minus_floor"].value) < 0.1
    assert bad.to_dict()["protocol"]["sampling"]["steps"] == 50 and "a toy" in bad.to_dict()["protocol"]["text"]


def test_sfid_and_fid_of_an_evaluation_equal_torchmetrics():
    from torchmetrics.image.fid import _compute_fid

    x, y, z = (as_features(features(300, shift=0.1 * k, seed=k)) for k in range(3))
    found = evaluate(x, y, z, PROTOCOL, bootstraps=0)
    for name, part in (("fid", lambda f: f.pool), ("sfid", lambda f: f.spatial)):
        moments = [(part(f).double().mean(0), part(f).double().T.cov()) for f in (x, y, z)]
        assert found.figures[name].value == pytest.approx(_compute_fid(*moments[0], *moments[1]).item(), rel=1e-6)
        assert found.floors[name] == pytest.approx(_compute_fid(*moments[2], *moments[1]).item(), rel=1e-6)
        assert found.figures[f"{name}_minus_floor"].low is None  # no bootstrap, no interval


def covered(points: torch.Tensor, centres: torch.Tensor) -> float:
    """Share of points within a ball of a centre that reaches to its third neighbour."""
    radii = torch.cdist(centres, centres).sort(1).values[:, 3]
    return (torch.cdist(points, centres) <= radii).any(1).double().mean().item()


def test_every_figure_stands_under_its_name_and_floors_are_of_the_floor():
    """Samples of one narrow mode: all of them look real, and much of what is real is missing."""
    x = as_features(0.5 * features(120, width=4, seed=1))
    z, y = as_features(features(120, width=4, shift=0.2, seed=2)), as_features(features(300, width=4, seed=3))
    labels = torch.arange(120) % 4
    found = evaluate(x, y, z, replace(PROTOCOL, n=120), labels=labels, bootstraps=0)
    real = y.pool[:120]
    for figures, part in (({k: v.value for k, v in found.figures.items()}, x), (found.floors, z)):
        assert figures["precision"] == pytest.approx(covered(part.pool, real))
        assert figures["recall"] == pytest.approx(covered(real, part.pool))
        assert figures["kid"] == pytest.approx(mmd(part.pool.numpy(), y.pool.numpy()))
        assert figures["inception_score"] == pytest.approx(inception_score(part.logits))
        assert figures["fid"] == pytest.approx(fid_of(part, y))
    assert found.figures["precision"].value > found.figures["recall"].value + 0.1
    assert found.figures["recognised"].value == (x.logits.argmax(1) == labels).double().mean().item()
    assert found.figures.keys() - found.floors.keys() == {"fid_minus_floor", "sfid_minus_floor", "recognised"}


def test_the_intervals_of_shares_and_of_differences_by_hand():
    """Of a share the truths that are 1.96 of their own deviations from it, so that all of 120 are no certainty; two
    intervals of 3 and 4 to either side make one of 5."""
    sure = as_features(features(120, width=4))
    right = sure.logits.argmax(1)
    for wrong in (0, 1, 90, 120):
        labels = torch.where(torch.arange(120) < wrong, (right + 1) % 4, right)
        found = evaluate(sure, sure, sure, replace(PROTOCOL, n=120), labels=labels, bootstraps=0).figures["recognised"]
        share, square = 1 - wrong / 120, norm.ppf(0.975) ** 2 / 120
        ends = sorted(np.roots([1 + square, -2 * share - square, share**2]).real)
        assert (found.low, found.value, found.high) == pytest.approx((ends[0], share, ends[1]))
        assert 0 <= found.low <= found.value <= found.high <= 1 and found.high - found.low > 0.03
    apart = Estimate(value=10.0, low=7.0, high=13.0).minus(Estimate(value=4.0, low=0.0, high=8.0))
    assert (apart.low, apart.value, apart.high) == pytest.approx((1.0, 6.0, 11.0))
    assert Estimate(value=10.0).minus(apart) == Estimate(value=4.0)


def test_the_interval_of_kid_is_student_s_over_the_groups_left_out():
    """Twenty groups, in the order of the seed's permutations; squared MMDs without each, one by one."""
    x, y = features(60, shift=0.3), features(80, seed=1)
    found = kid(x, y, seed=3)
    x, y = (z[torch.randperm(len(z), generator=generator(3, "kid", k)).numpy()] for k, z in enumerate((x, y)))
    without = []
    for k in range(20):
        kept = [np.delete(z, range(k * len(z) // 20, (k + 1) * len(z) // 20), axis=0) for z in (x, y)]
        without.append(mmd(*kept))
    pseudo = 20 * mmd(x, y) - 19 * np.array(without)
    error = pseudo.std(ddof=1) / np.sqrt(20)
    half = student.ppf(0.975, 19) * error
    assert found.standard_error == pytest.approx(error)
    assert (found.low, found.high) == pytest.approx((mmd(x, y) - half, mmd(x, y) + half))


def test_the_interval_of_fid_minus_floor_holds_the_chance_of_both():
    """Samples like the real images: FID − floor is zero on average, and its interval must cover that."""
    reference = as_features(features(3000, width=3, seed=99))
    protocol, covered, narrow = replace(PROTOCOL, n=80), 0, 0
    for trial in range(60):
        x, z = (as_features(features(80, width=3, seed=1000 + 2 * trial + k)) for k in range(2))
        found = evaluate(x, reference, z, protocol, bootstraps=40).figures
        apart, alone = found["fid_minus_floor"], found["fid"]
        assert apart.value == pytest.approx(found["fid"].value - fid_of(z, reference))
        covered += apart.low <= 0 <= apart.high
        narrow += abs(apart.value) <= (alone.high - alone.low) / 2  # what a floor taken for exact would claim
    assert covered >= 51 and covered > narrow  # 95 % of 60 is 57; 51 is four sigma off


def fid_of(x: Features, y: Features) -> float:
    return fid(Moments.of(x.pool.double()), Moments.of(y.pool.double()))


def test_kid_leaves_groups_out_as_if_they_had_never_been_there():
    """The jackknife against squared MMDs of the sets without each group, one by one."""
    from grafting.measure.quality.kid import _left_out

    x, y = features(43, shift=0.3), features(61, seed=1)
    value, pseudo = _left_out(x, y, 5)
    assert value == pytest.approx(mmd(x, y))
    for k in range(5):
        keep_x = np.delete(x, range(k * 43 // 5, (k + 1) * 43 // 5), axis=0)
        keep_y = np.delete(y, range(k * 61 // 5, (k + 1) * 61 // 5), axis=0)
        assert pseudo[k] == pytest.approx(5 * value - 4 * mmd(keep_x, keep_y))


def test_kid_of_few_samples_and_of_many(monkeypatch):
    """Whole sets up to a size, blocks above; either way the interval holds the difference that there is."""
    x, y = features(200, shift=0.5), features(2000, seed=1)
    few = kid(x, y)
    assert few.value == pytest.approx(mmd(x, y)) and few.low > 0
    monkeypatch.setattr(sys.modules[kid.__module__], "WHOLE", 100)
    many = kid(features(2000, shift=0.5), y, block=None)
    assert many.low > 0 and abs(many.value - few.value) < few.standard_error * 4
    with pytest.raises(ValueError, match="at least 4 of each"):
        kid(x[:3], y[:90])
    protocol = replace(PROTOCOL, n=99)
    small, reference = as_features(features(99)), as_features(features(500, seed=1))
    assert "kid" not in evaluate(small, reference, small, protocol, bootstraps=0).figures


def test_paired_kid_is_the_difference_and_tighter_than_unpaired():
    base, reference = features(300), features(1000, seed=9)
    mine = paired_kid_difference(base + 0.1, base, reference)
    assert mine.value == pytest.approx(mmd(base + 0.1, reference) - mmd(base, reference))
    apart = paired_kid_difference(features(300, seed=5) + 0.1, base, reference)
    assert mine.standard_error < 0.6 * apart.standard_error
    with pytest.raises(ValueError, match="300 and 299 samples"):
        paired_kid_difference(base, base[:299], reference)


class Flat:
    """An extractor that counts how many images it sees at a time."""

    name, label = "flat", "a toy"

    def __init__(self) -> None:
        self.most = 0

    def __call__(self, images: torch.Tensor) -> Features:
        self.most = max(self.most, len(images))
        flat = images.flatten(1)
        return Features(pool=flat, spatial=flat[:, :2], logits=flat[:, :3])


def test_a_streamed_reference_equals_one_from_all_images(tmp_path):
    images = torch.randn(1000, 1, 2, 3, generator=torch.Generator().manual_seed(0)) + 5
    images[:, 0, 0, 0] = torch.arange(1000)  # where an image stood
    extractor = Flat()
    sizes = [7, 300, 1, 92, 600]
    streamed = Reference.stream(extractor, images.split(sizes), rows=100, key="abc")
    whole = Reference.of(collect(extractor, images))
    assert len(streamed) == 1000 and extractor.most == 600 and streamed.pool.shape == (100, 6)
    for mine, other in ((streamed.moments, whole.moments), (streamed.spatial, whole.spatial)):
        np.testing.assert_allclose(mine.mean, other.mean, rtol=1e-12)
        np.testing.assert_allclose(mine.covariance, other.covariance, rtol=1e-9, atol=1e-9)
    places = streamed.pool[:, 0].sort().values
    assert len(places.unique()) == 100 and (places[1:] - places[:-1]).max() <= 25  # even: a gap of 10 on average
    again = Reference.stream(Flat(), images.split(50), rows=100)
    assert torch.equal(again.pool, streamed.pool)  # whatever the batches
    streamed.save(tmp_path / "reference.npz")
    back = Reference.load(tmp_path / "reference.npz", "abc")
    assert torch.equal(back.pool, streamed.pool) and (back.moments.scatter == streamed.moments.scatter).all()
    assert Reference.load(tmp_path / "reference.npz", "other") is None
    assert Reference.load(tmp_path / "nothing.npz") is None
    with pytest.raises(ValueError, match="no images"):
        Reference.stream(extractor, [])


def test_published_statistics_stand_for_their_images(tmp_path):
    x = collect(Flat(), torch.randn(400, 1, 2, 3, generator=torch.Generator().manual_seed(1)))
    real = features(500, seed=3)
    np.savez(
        tmp_path / "adm.npz",
        mu=real.mean(0),
        sigma=np.cov(real.T),
        mu_s=real.mean(0)[:2],
        sigma_s=np.cov(real.T)[:2, :2],
    )
    published = Reference.published(tmp_path / "adm.npz", torch.zeros(0, 6))
    whole = Features(pool=torch.from_numpy(real), spatial=torch.from_numpy(real[:, :2]), logits=None)
    protocol = replace(PROTOCOL, n=400)
    mine, other = (evaluate(x, y, x, protocol, bootstraps=0).figures for y in (published, whole))
    assert mine["fid"].value == pytest.approx(other["fid"].value) and mine["sfid"].value == pytest.approx(
        other["sfid"].value
    )
    assert "kid" not in mine and "precision" not in mine and "kid" in other
    with pytest.raises(ValueError, match="statistics of 6 features, the extractor gives 7"):
        Reference.published(tmp_path / "adm.npz", torch.zeros(0, 7))
    np.savez(tmp_path / "other.npz", images=real)
    with pytest.raises(ValueError, match="no mu and sigma in it, but images"):
        Reference.published(tmp_path / "other.npz", torch.zeros(0, 6))


def test_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="300 samples, 299 floor images"):
        evaluate(as_features(features(300)), as_features(features(900)), as_features(features(299)), PROTOCOL)


def test_paired_difference_is_tighter_than_two_intervals():
    base = features(400)
    a, b, reference = as_features(base), as_features(base + 0.05), as_features(features(1000, seed=9))
    paired = paired_fid_difference(b, a, reference, bootstraps=40)
    unpaired = paired_fid_difference(as_features(features(400, seed=5) + 0.05), a, reference, bootstraps=40)
    assert paired.low < paired.value < paired.high
    assert (paired.high - paired.low) < 0.5 * (unpaired.high - unpaired.low)
    assert paired_fid_difference(a, a, reference, bootstraps=5).value == 0


def test_collecting_in_batches_and_refusing_broken_images():
    from grafting.classifier import Classifier

    torch.manual_seed(0)
    extractor = ClassifierExtractor(Classifier(widths=(8, 16)).eval())
    images = torch.randn(9, 1, 8, 8)
    whole, parts = collect(extractor, images), collect(extractor, images, batch_size=4)
    torch.testing.assert_close(whole.pool, parts.pool)
    assert whole.spatial.shape == (9, 8 * 2 * 2) and whole.logits.shape == (9, 10)
    torch.testing.assert_close(whole.at(torch.tensor([3])).logits, extractor.classifier(images[3:4]))
    images[2, 0, 0, 0] = float("nan")
    streamed = collect(extractor, iter(images[:2].split(1)))
    torch.testing.assert_close(streamed.pool, whole.pool[:2])
    with pytest.raises(ValueError, match="1 of images 0 to 8"):
        collect(extractor, images)
    with pytest.raises(ValueError, match="there are no images"):
        collect(extractor, images[:0])
