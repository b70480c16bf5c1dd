"""The picture of a demo: places of the satellite scene, and what unseen queries retrieve before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from .constants import INFRARED, VISIBLE
from .data import LabeledGallery
from .data.landsat import TILE, landsat_bands, tile_corner
from .report import percent

# The picture, in pixels and RGB.
MARGIN, CROP_SIZE, GAP, FRAME = 36, 84, 10, 4
BADGE = 20  # the side of the mark on a result
NUM_RESULTS, NUM_QUERIES = 5, 6
MAP_SCALE = 1.62
BACKGROUND, INK, FAINT = (250, 250, 247), (28, 32, 38), (112, 118, 126)
RIGHT, WRONG, QUERY = (26, 150, 92), (208, 62, 58), (226, 152, 22)
WHITE = (255, 255, 255)
STROKES = {  # of the mark that tells right from wrong without colour, in shares of BADGE
    RIGHT: (((0.24, 0.54), (0.44, 0.74), (0.78, 0.30)),),
    WRONG: (((0.29, 0.29), (0.71, 0.71)), ((0.29, 0.71), (0.71, 0.29))),
}


@dataclass(frozen=True, eq=False)
class _Ranking:
    """One infrared query and what it retrieved before and after training: sample ids, nearest first."""

    query: int
    results: tuple[list[int], list[int]]


def retrieval_picture(
    labeled: LabeledGallery,
    features: tuple[torch.Tensor, torch.Tensor],
    rank1: tuple[float, float],
    *,
    seed: int = 0,
) -> Image.Image:
    """Infrared queries of unseen places and the visible crops they retrieve, before and after training.

    Args:
        labeled: the test gallery of `landsat_galleries`.
        features: float [N, d] before and after training.
        rank1: infrared-to-visible Rank-1 over all queries, before and after, as shares.
        seed: of the draw of the queries: places at random, the infrared sensors in turn.

    Returns:
        An RGB image.
    """
    rankings = [_rank(labeled, features, query) for query in _draw_queries(labeled, seed)]
    maps = _maps(labeled, [int(labeled.person_ids[ranking.query]) for ranking in rankings])
    step = CROP_SIZE + GAP
    left = MARGIN + maps.width + 44
    columns = [left, left + step + 30, left + step + 30 + NUM_RESULTS * step + 34]
    top = 158
    bottom = top + max(len(rankings) * step, maps.height)
    canvas = Image.new("RGB", (columns[2] + NUM_RESULTS * step - GAP + MARGIN, bottom + 74), BACKGROUND)
    draw = ImageDraw.Draw(canvas)

    title = "The same place, seen in infrared and in visible light"
    draw.text((MARGIN, 28), title, INK, _font(34))
    subtitle = (
        "Places that were never seen in training. The network was trained without knowing which crops show one place."
    )
    draw.text((MARGIN, 74), subtitle, FAINT, _font(19))
    draw.text((left, top - 34), "query", QUERY, _font(19))
    for column, moment, share in zip(columns[1:], ("before training", "after training"), rank1, strict=True):
        draw.text((column, top - 34), f"{moment}: Rank-1 {percent(share)} %", INK, _font(19))
    canvas.paste(maps, (MARGIN, top))

    names = _band_names()
    for row, ranking in enumerate(rankings):
        y = top + row * step
        _paste_crop(canvas, labeled, ranking.query, (left, y), QUERY, names, number=row + 1)
        for column, results in zip(columns[1:], ranking.results, strict=True):
            for position, sample in enumerate(results):
                right = bool(labeled.person_ids[sample] == labeled.person_ids[ranking.query])
                colour = RIGHT if right else WRONG
                _paste_crop(canvas, labeled, sample, (column + position * step, y), colour, names)

    y = bottom + 24
    x = MARGIN
    for colour, text in ((QUERY, "infrared query"), (RIGHT, "the same place"), (WRONG, "another place")):
        if colour in STROKES:
            _draw_mark(draw, (x - 2, y + 1), colour)
        else:
            draw.rectangle((x, y + 3, x + 16, y + 19), outline=colour, width=FRAME)
        draw.text((x + 25, y), text, INK, _font(18))
        x += 25 + int(draw.textlength(text, _font(18))) + 34
    note = f"Queries drawn at random; the {NUM_RESULTS} nearest visible crops, nearest first."
    note += " Landsat-7 ETM+, Olinda, Brazil."
    draw.text((x, y), note, FAINT, _font(18))
    return canvas


def _draw_queries(labeled: LabeledGallery, seed: int) -> list[int]:
    """One infrared sample for each of a few places, drawn at random and not chosen; the sensors take turns."""
    gallery = labeled.unlabeled
    rng = np.random.default_rng(seed)
    places = rng.permutation(labeled.person_ids.unique().numpy())[:NUM_QUERIES]
    sensors = gallery.camera_ids[gallery.modality_ids == INFRARED].unique()
    queries = []
    for turn, place in enumerate(places.tolist()):
        mask = (labeled.person_ids == place) & (gallery.camera_ids == sensors[turn % len(sensors)])
        queries.append(int(rng.choice(mask.nonzero().flatten().numpy())))
    return queries


def _rank(labeled: LabeledGallery, features: tuple[torch.Tensor, torch.Tensor], query: int) -> _Ranking:
    visible = (labeled.unlabeled.modality_ids == VISIBLE).nonzero().flatten()
    results = []
    for rows in features:
        similarity = F.normalize(rows[visible]) @ F.normalize(rows[query], dim=0)
        order = similarity.argsort(descending=True, stable=True)[:NUM_RESULTS]
        results.append(visible[order].tolist())
    return _Ranking(query, (results[0], results[1]))


def _maps(labeled: LabeledGallery, places: Sequence[int]) -> Image.Image:
    """The scene twice, visible (true colour) and infrared (false colour), with the queried places numbered."""
    bands, modality, _ = landsat_bands()
    names = np.array(_band_names())
    views = []
    for kind, word in ((VISIBLE, "visible"), (INFRARED, "infrared")):
        channels = [_stretch(band) for band in bands[modality == kind][::-1]]
        scene = Image.fromarray(np.stack(channels, axis=2))
        size = round(scene.width * MAP_SCALE), round(scene.height * MAP_SCALE)
        caption = f"{word}: {', '.join(names[modality == kind][::-1])}"
        views.append((scene.resize(size, Image.Resampling.LANCZOS), caption))
    num_columns = bands.shape[2] // TILE
    test_places = labeled.person_ids.unique().tolist()
    width, height = views[0][0].size
    scale = (NUM_QUERIES * (CROP_SIZE + GAP) - GAP - 2 * 26) / (2 * height)  # both maps beside the rows of results
    small = round(width * scale), round(height * scale)
    sheet = Image.new("RGB", (small[0], 2 * (small[1] + 26)), BACKGROUND)
    for row, (scene, caption) in enumerate(views):
        draw = ImageDraw.Draw(scene)
        for place in test_places:
            y, x = (round(corner * MAP_SCALE) for corner in tile_corner(place, num_columns))
            box = (x, y, x + round(TILE * MAP_SCALE), y + round(TILE * MAP_SCALE))
            if place in places:
                draw.rectangle(box, outline=QUERY, width=4)
                number = str(list(places).index(place) + 1)
                draw.text((x + 12, y + 4), number, WHITE, _font(28), stroke_width=3, stroke_fill=INK)
        offset = row * (small[1] + 26)
        sheet.paste(scene.resize(small, Image.Resampling.LANCZOS), (0, offset))
        ImageDraw.Draw(sheet).text((0, offset + small[1] + 3), caption, FAINT, _font(16))
    return sheet


def _paste_crop(
    canvas: Image.Image,
    labeled: LabeledGallery,
    sample: int,
    corner: tuple[int, int],
    colour: tuple[int, int, int],
    names: list[str],
    number: int | None = None,
) -> None:
    """An upscaled crop in a frame, with the name of its sensor band, and its number on the map or a mark."""
    pixels = _stretch(labeled.unlabeled.images[sample, 0].numpy())
    inside = CROP_SIZE - 2 * FRAME
    crop = Image.fromarray(pixels).resize((inside, inside), Image.Resampling.BICUBIC).convert("RGB")
    x, y = corner
    canvas.paste(crop, (x + FRAME, y + FRAME))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((x, y, x + CROP_SIZE - 1, y + CROP_SIZE - 1), outline=colour, width=FRAME)
    outline = {"stroke_width": 2, "stroke_fill": INK}
    name = names[int(labeled.unlabeled.camera_ids[sample])]
    draw.text((x + 8, y + CROP_SIZE - 24), name, WHITE, _font(14), **outline)
    if number is not None:
        draw.text((x + 9, y + 6), str(number), WHITE, _font(20), **outline)
    if colour in STROKES:
        _draw_mark(draw, (x + CROP_SIZE - BADGE, y), colour)


def _draw_mark(draw: ImageDraw.ImageDraw, corner: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """A check mark or a cross, white on a square of the colour that means the same."""
    x, y = corner
    draw.rectangle((x, y, x + BADGE - 1, y + BADGE - 1), fill=colour)
    for points in STROKES[colour]:
        draw.line([(x + BADGE * across, y + BADGE * down) for across, down in points], WHITE, width=3, joint="curve")


def _band_names() -> list[str]:
    """`blue`, `green`, `red`, and abbreviations in capitals: `NIR`, `SWIR1`, `SWIR2`."""
    _, modality, names = landsat_bands()
    return [name.upper() if kind == INFRARED else name for name, kind in zip(names, modality, strict=True)]


def _stretch(pixels: np.ndarray) -> np.ndarray:
    """Contrast for the eye: the 1st and 99th percentile become black and white; uint8."""
    low, high = np.percentile(pixels, (1, 99))
    shares = ((pixels - low) / max(high - low, 1.0)).clip(0, 1)
    return (255 * shares).astype(np.uint8)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
