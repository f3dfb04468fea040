"""Metrics against closed forms for Gaussians, hand-made sets, and torchmetrics with the same features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from grafting.measure.quality import (
    ClassifierExtractor,
    Features,
    Moments,
    Protocol,
    collect,
    evaluate,
    fid,
    frechet,
    inception_score,
    kid,
    mmd,
    paired_fid_difference,
    precision_recall,
    recognition,
)
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


def test_kid_is_unbiased_and_its_interval_covers():
    covered, values = 0, []
    for trial in range(60):
        result = kid(features(200, seed=2 * trial), features(200, seed=2 * trial + 1), block=20)
        values.append(result.value)
        covered += result.low <= 0 <= result.high
    # The mean over trials within four of its own standard errors; 95 % coverage: 51 of 60 is four sigma off.
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert covered >= 50
    shifted = kid(features(200), features(200, shift=0.5, seed=1), block=20)
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
    with pytest.raises(ValueError, match="1 of 9 images"):
        collect(extractor, images)
