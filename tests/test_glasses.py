"""New people wear no glasses: what tells them, and what is left of the prior without them."""

from __future__ import annotations

import numpy as np
import torch

from anonymize.aligners import TEMPLATE
from anonymize.cells import fit_cells
from anonymize.faces import Faces
from anonymize.glasses import SURE, bridge, without_glasses
from anonymize.priors import CODE, CodePrior

COUNT = 1200


def crop(rng: np.random.Generator, worn: bool) -> np.ndarray:
    """Skin with some grain, and with a dark line from eye to eye if glasses are worn."""
    image = np.full((128, 128, 3), (200, 160, 140)) + rng.normal(0, 2, (128, 128, 1))
    if worn:
        y, (left, right) = round(float(TEMPLATE[:2, 1].mean())), TEMPLATE[:2, 0].astype(int)
        image[y - 1 : y + 1, left:right] = 40
    return image.clip(0, 255).astype(np.uint8)


def sample() -> tuple[Faces, np.ndarray]:
    """Faces some of which wear glasses, which the recogniser's first number tells."""
    rng = np.random.default_rng(0)
    worn = np.arange(COUNT) < SURE * COUNT
    crops = np.stack([crop(rng, some) for some in worn])
    embeddings = rng.normal(0, 1, (COUNT, CODE))
    embeddings[:, 0] += 12 * worn
    marks = np.repeat(TEMPLATE[None], COUNT, 0)
    faces = Faces(crops, marks, embeddings.astype(np.float32), np.zeros(COUNT, np.int64))
    return faces, worn


def test_a_frame_is_a_line_across_the_nose() -> None:
    rng = np.random.default_rng(1)
    plain, glasses = (bridge(crop(rng, worn), TEMPLATE) for worn in (False, True))
    assert plain < 0.05
    assert glasses > 0.3


def test_new_people_look_as_if_without_and_are_else_as_varied_as_before() -> None:
    faces, worn = sample()
    prior = CodePrior(2)
    features = torch.randn(COUNT, 8, generator=torch.Generator().manual_seed(0))
    fit_cells(prior, torch.from_numpy(faces.embeddings), faces.groups, features, 0)
    generator = torch.Generator().manual_seed(1)
    cells = torch.randint(0, 2, (4000,), generator=generator)
    normal = torch.randn(4000, CODE, generator=generator)
    before = prior.draw(cells, normal)
    without_glasses(prior, faces)
    after = prior.draw(cells, normal)
    others = prior.code(torch.from_numpy(faces.embeddings[~worn]))[:, 0]
    assert before[:, 0].std() > 2 * after[:, 0].std()
    assert abs(after[:, 0].mean() - others.median()) < 0.02
    assert after[:, 0].max() < others.quantile(0.99)
    assert ((after - before)[:, 1:].square().mean().sqrt() / before[:, 1:].std()) < 0.35


def test_few_faces_teach_nothing() -> None:
    faces, _ = sample()
    few = Faces(
        faces.crops[:300], faces.landmarks[:300], faces.embeddings[:300], faces.groups[:300]
    )
    prior = CodePrior(2)
    torch.nn.init.ones_(prior.factor)
    without_glasses(prior, few)
    assert (prior.factor == 1).all()
