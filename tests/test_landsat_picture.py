import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from dmic import landsat_picture
from dmic.constants import INFRARED
from dmic.data.landsat import landsat_galleries
from dmic.landsat_picture import BADGE, NUM_QUERIES, NUM_RESULTS, RIGHT, WRONG, retrieval_picture


def draw_mark(colour):
    mark = Image.new("RGB", (BADGE, BADGE))
    landsat_picture._draw_mark(ImageDraw.Draw(mark), (0, 0), colour)
    return np.asarray(mark)


@pytest.fixture(scope="module")
def picture():
    """Every result before training is of another place, every one after it of the same place."""
    _, test = landsat_galleries(num_crops=2)
    right = F.one_hot(test.person_ids).float()
    places = test.person_ids.unique()
    shifted = dict(zip(places.tolist(), places.roll(1).tolist(), strict=True))
    other = torch.tensor([shifted[place] for place in test.person_ids.tolist()])
    wrong = torch.where((test.unlabeled.modality_ids == INFRARED)[:, None], right, F.one_hot(other).float())
    return np.asarray(retrieval_picture(test, (wrong, right), (0.0, 1.0)))


@pytest.mark.parametrize("colour", [RIGHT, WRONG])
def test_every_result_and_the_legend_have_a_mark(picture, colour):
    mark = draw_mark(colour)
    corners = np.argwhere((picture == colour).all(axis=2))
    found = sum(np.array_equal(picture[y : y + BADGE, x : x + BADGE], mark) for y, x in corners)
    assert found == NUM_QUERIES * NUM_RESULTS + 1


def test_the_marks_differ_without_colour():
    right, wrong = ((draw_mark(colour) == 255).all(axis=2) for colour in (RIGHT, WRONG))
    assert min(right.sum(), wrong.sum()) > 0.05 * BADGE**2
    assert (right ^ wrong).sum() > 0.1 * BADGE**2


def test_abbreviations_are_in_capitals_everywhere():
    assert landsat_picture._band_names() == ["blue", "green", "red", "NIR", "SWIR1", "SWIR2"]
