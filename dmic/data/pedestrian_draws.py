"""What is random about a synthetic pedestrian: who they are, what they wear, and each shot of them."""

from __future__ import annotations

import math
from bisect import bisect
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import numpy as np

Colour = tuple[float, ...]  # red, green, blue in [0, 1]


@dataclass(frozen=True)
class Difficulty:
    """How far images of one identity lie apart, against how far identities do.

    Attributes:
        pose: spread of gait and direction; 0 is one pose per walk.
        framing: spread of place and size in the image.
        light: spread of exposure, colour temperature, contrast and blur within a camera.
        occlusion: share of images in which something hides a part, in [0, 1].
        diversity: how different identities are, in [0, 1]; at 0 they differ by body, cut and accessories alone.

    Raises:
        ValueError: a negative or infinite value, or more than 1 where the range is [0, 1].
    """

    pose: float = 1.0
    framing: float = 1.0
    light: float = 1.0
    occlusion: float = 0.2
    diversity: float = 1.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            most = 1.0 if name in ("occlusion", "diversity") else math.inf
            if not (math.isfinite(value) and 0 <= value <= most):
                wanted = "in [0, 1]" if most == 1.0 else "finite and not negative"
                raise ValueError(f"Difficulty: {name} must be {wanted}, got {value}")


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A fixed camera: what it stands before, and how it turns light into pixels.

    Attributes:
        scene: "hall", "room", "street", "park" or "yard".
        infrared: it sees near-infrared reflectance, lit by its own lamp.
        tilt: radians it looks down by.
        perspective: relative difference in scale between head and feet.
        size: of a person, head to feet, as a share of the image's height.
        directions: radians; means of the directions of walks: 0 towards the camera, pi away from it.
        light: gains of red, green and blue; one gain in infrared.
        side: where the light comes from, -1 left to 1 right.
        ambient: share of light without direction.
        contrast: slope of the tone curve.
        noise: standard deviation in grey levels.
        blur: standard deviation in 1/1000 of the image's height.
        quality: of the JPEG files.
    """

    scene: str
    infrared: bool = False
    tilt: float
    perspective: float
    size: float
    directions: tuple[float, float]
    light: Colour
    side: float
    ambient: float
    contrast: float
    noise: float
    blur: float
    quality: int


# By number, as in SYSU-MM01: 3 and 6 are infrared; 2 and 3 share a room; 4, 5 and 6 are outdoors.
CAMERAS = {
    1: Camera(
        scene="hall",
        tilt=0.15,
        perspective=0.08,
        size=0.91,
        directions=(0.2, 2.9),
        light=(1.06, 1.00, 0.88),
        side=0.3,
        ambient=0.55,
        contrast=1.0,
        noise=4,
        blur=3.5,
        quality=88,
    ),
    2: Camera(
        scene="room",
        tilt=0.35,
        perspective=0.18,
        size=0.86,
        directions=(-0.6, 2.4),
        light=(0.80, 0.72, 0.56),
        side=-0.5,
        ambient=0.55,
        contrast=0.9,
        noise=6,
        blur=4.5,
        quality=84,
    ),
    3: Camera(
        scene="room",
        infrared=True,
        tilt=0.35,
        perspective=0.16,
        size=0.88,
        directions=(0.4, -2.6),
        light=(1.10,),
        side=0.0,
        ambient=0.35,
        contrast=1.1,
        noise=4,
        blur=5.0,
        quality=84,
    ),
    4: Camera(
        scene="street",
        tilt=0.05,
        perspective=0.0,
        size=0.93,
        directions=(0.9, -2.0),
        light=(0.98, 1.06, 1.16),
        side=0.75,
        ambient=0.40,
        contrast=1.2,
        noise=4,
        blur=4.0,
        quality=86,
    ),
    5: Camera(
        scene="park",
        tilt=0.20,
        perspective=0.06,
        size=0.82,
        directions=(-1.2, 1.8),
        light=(0.62, 0.72, 0.88),
        side=-0.7,
        ambient=0.65,
        contrast=0.9,
        noise=5,
        blur=5.0,
        quality=82,
    ),
    6: Camera(
        scene="yard",
        infrared=True,
        tilt=0.12,
        perspective=0.05,
        size=0.90,
        directions=(0.1, 3.0),
        light=(1.00,),
        side=0.15,
        ambient=0.30,
        contrast=1.25,
        noise=6,
        blur=5.5,
        quality=80,
    ),
}


@dataclass(frozen=True)
class Material:
    """A surface in both modalities.

    Attributes:
        visible: its colour.
        infrared: its near-infrared reflectance, in [0, 1].
        pattern: "plain" or a name of `pedestrian_painting.PATTERNS`.
        accent_visible, accent_infrared: the same of the pattern's other half.
        period: size of the pattern, in metres.
        relief: strength of its folds.
    """

    visible: Colour
    infrared: float
    pattern: str = "plain"
    accent_visible: Colour = (0.0, 0.0, 0.0)
    accent_infrared: float = 0.0
    period: float = 0.1
    relief: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Pedestrian:
    """A person who does not exist. Widths are factors of the average body's, lengths shares of the body's height.

    Attributes:
        height: metres.
        lean: of the upper body, radians.
        sleeves, lower_length: how far they reach: 0 not at all, 1 to the elbow or knee, 2 to the wrist or ankle.
        hem: of the upper garment, below the hip.
        opening: half the angle of an open jacket, under which `inner` shows, radians; 0 is closed.
    """

    height: float
    build: float
    shoulders: float
    hips: float
    legs: float
    stride: float
    lean: float
    skin: Material
    hair: Material
    hair_style: str  # long, ponytail, bob, bun, short, crop, bald
    beard: bool
    glasses: bool
    cut: str  # shirt, jacket, coat, hoodie, dress
    upper: Material
    inner: Material
    sleeve: Material
    sleeves: float
    looseness: float
    opening: float
    hem: float
    lower_cut: str  # trousers, shorts, skirt
    lower: Material
    lower_length: float
    lower_looseness: float
    shoes: Material
    boots: bool
    bag: str  # none, backpack, shoulder, hand
    bag_material: Material
    hat: str  # none, cap, beanie
    hat_material: Material


@dataclass(frozen=True, kw_only=True)
class Shot:
    """What changes from image to image of one person.

    Attributes:
        yaw: direction of the body, radians: 0 towards the camera.
        phase, stride: of the gait, radians; relative to the person's own.
        arms, elbows: forward angles of both upper arms beside their swing, and bends of both elbows, radians.
        size: head to feet, as a share of the image's height.
        x, y: of the body's axis, as a share of the width; of the feet, as a share of the height.
        exposure, contrast, blur: factors of the camera's own.
        warmth: relative gain of red and loss of blue; in infrared the lamp's error of direction.
        scene_x, scene_y: which part of the scene is behind, in [0, 1].
    """

    yaw: float
    phase: float
    stride: float
    arms: tuple[float, float]
    elbows: tuple[float, float]
    size: float
    x: float
    y: float
    exposure: float
    contrast: float
    blur: float
    warmth: float
    scene_x: float
    scene_y: float


# Dyes with how often they are worn.
DYES = (
    (3.0, (0.09, 0.09, 0.10)),
    (1.6, (0.16, 0.18, 0.28)),
    (1.6, (0.42, 0.43, 0.45)),
    (1.8, (0.88, 0.88, 0.86)),
    (1.0, (0.70, 0.62, 0.48)),
    (1.0, (0.68, 0.13, 0.15)),
    (0.9, (0.18, 0.33, 0.62)),
    (0.7, (0.20, 0.38, 0.24)),
    (0.8, (0.38, 0.26, 0.18)),
    (0.7, (0.86, 0.52, 0.60)),
    (0.6, (0.90, 0.75, 0.22)),
    (0.6, (0.50, 0.72, 0.85)),
    (0.5, (0.45, 0.24, 0.50)),
    (0.5, (0.90, 0.45, 0.16)),
    (0.6, (0.45, 0.50, 0.28)),
)
DENIM = (0.27, 0.35, 0.48)
# Fabrics with how often they are worn; mean and spread of their near-infrared reflectance, whatever their dye.
FABRICS = ((3.0, (0.72, 0.10)), (2.5, (0.55, 0.14)), (1.5, (0.42, 0.10)), (1.2, (0.28, 0.07)), (1.5, (0.13, 0.04)))
SKINS = (
    (0.25, (0.93, 0.76, 0.66)),
    (0.35, (0.87, 0.68, 0.55)),
    (0.20, (0.76, 0.56, 0.43)),
    (0.12, (0.56, 0.38, 0.28)),
    (0.08, (0.36, 0.24, 0.18)),
)
HAIRS = (
    (0.45, (0.07, 0.06, 0.06)),
    (0.25, (0.14, 0.09, 0.07)),
    (0.15, (0.30, 0.19, 0.11)),
    (0.08, (0.62, 0.47, 0.28)),
    (0.07, (0.55, 0.54, 0.52)),
)
UPPER_PATTERNS = {
    "plain": 4.0,
    "hoops": 1.6,
    "bars": 0.6,
    "checks": 1.2,
    "yoke": 1.1,
    "band": 1.1,
    "logo": 1.4,
    "dots": 0.5,
}
LOWER_PATTERNS = {"plain": 8.0, "side": 1.0, "checks": 0.5, "bars": 0.3}
WOVEN_SHARE = 0.6  # of patterns; printed ones fade in infrared, where most dyes are transparent


def pick(rng: np.random.Generator, options: dict[str, float] | tuple[tuple, ...]) -> Any:
    """One of names with weights, or of (weight, value, ...): the name or what follows the weight."""
    rows = [(weight, name) for name, weight in options.items()] if isinstance(options, dict) else options
    *borders, total = accumulate(weight for weight, *_ in rows)
    _, *chosen = rows[bisect(borders, rng.random() * total)]
    return chosen[0] if len(chosen) == 1 else chosen


class _Wardrobe:
    """Draws of materials; `diversity` pulls colours and reflectances towards common ones."""

    def __init__(self, rng: np.random.Generator, diversity: float):
        self.rng, self.diversity = rng, diversity

    def dye(self, colour: Colour | None = None) -> Colour:
        tint = np.array(colour or pick(self.rng, DYES)) * self.rng.uniform(0.8, 1.2) + self.rng.normal(0, 0.03, 3)
        return tuple((0.35 + self.diversity * (tint.clip(0.04, 0.95) - 0.35)).tolist())

    def reflectance(self) -> float:
        mean, spread = pick(self.rng, FABRICS)
        return 0.5 + self.diversity * (min(max(self.rng.normal(mean, spread), 0.06), 0.95) - 0.5)

    def cloth(self, patterns: dict[str, float], colour: Colour | None = None) -> Material:
        visible, infrared, accent = self.dye(colour), self.reflectance(), self.dye()
        for _ in range(8):  # two dyes of a pattern can be told apart
            if np.abs(np.subtract(accent, visible)).max() > 0.3 * self.diversity:
                break
            accent = self.dye()
        woven = self.rng.random() < WOVEN_SHARE
        return Material(
            visible,
            infrared,
            pick(self.rng, patterns),
            accent,
            self.reflectance() if woven else infrared * (1 + self.diversity * self.rng.normal(0, 0.06)),
            self.rng.uniform(0.07, 0.2),
            self.rng.uniform(0.5, 1.5),
        )


def draw_identity(rng: np.random.Generator, *, diversity: float = 1.0) -> Pedestrian:
    """A person with clothes; `diversity` as in `Difficulty`."""
    draw = _Wardrobe(rng, diversity)
    long_hair = rng.random() < 0.45  # goes with a wider choice of clothes and another average body
    dress = 1.0 if long_hair else 0.0
    cut = pick(rng, {"shirt": 4.0, "jacket": 2.0, "coat": 1.2, "hoodie": 1.4, "dress": dress})
    thick = cut in ("jacket", "coat", "hoodie")
    short_sleeves = {"shirt": (0.0, 0.55, 0.55, 0.8, 1.9, 1.9), "dress": (0.0, 0.6, 1.9)}
    upper = draw.cloth(UPPER_PATTERNS)
    lower_cut = pick(rng, {"trousers": 6.0, "shorts": 1.6, "skirt": 1.6 * dress})
    jeans = lower_cut != "skirt" and rng.random() < 0.35
    lower = draw.cloth(LOWER_PATTERNS, DENIM if jeans else None)
    if cut == "dress":
        lower_cut, lower = "skirt", upper
    lengths = {"trousers": (1.82, 2.2), "shorts": (0.45, 1.1), "skirt": (0.6, 1.7)}[lower_cut]
    hems = {"coat": (0.12, 0.29), "dress": (0.0, 0.0)}.get(cut, (0.0, 0.07))
    open_front = cut in ("jacket", "coat") and rng.random() < 0.65
    long_styles, short_styles = {"long": 3, "ponytail": 2, "bob": 2, "bun": 1}, {"short": 5, "crop": 3, "bald": 1}
    return Pedestrian(
        height=rng.normal(1.64 if long_hair else 1.75, 0.07),
        build=math.exp(rng.normal(0, 0.14)),
        shoulders=rng.normal(0.93 if long_hair else 1.04, 0.05),
        hips=rng.normal(1.06 if long_hair else 0.97, 0.05),
        legs=rng.normal(1, 0.025),
        stride=rng.uniform(0.7, 1.15),
        lean=rng.normal(0.03, 0.03),
        skin=Material(pick(rng, SKINS), rng.normal(0.62, 0.04), relief=0.2),
        hair=Material(draw.dye(pick(rng, HAIRS)), min(max(rng.normal(0.3, 0.1), 0.1), 0.6), relief=2.0),
        hair_style=pick(rng, long_styles if long_hair else short_styles),
        beard=not long_hair and rng.random() < 0.2,
        glasses=rng.random() < 0.25,
        cut=cut,
        upper=upper,
        inner=draw.cloth({"plain": 3, "hoops": 1, "logo": 0.5}),
        sleeve=draw.cloth({"plain": 1}) if rng.random() < 0.15 else upper,
        sleeves=float(rng.choice(short_sleeves.get(cut, (1.95,)))),
        looseness=rng.uniform(1.02, 1.15) * (1.08 if thick else 1.0),
        opening=rng.uniform(0.25, 0.7) if open_front else 0.0,
        hem=rng.uniform(*hems),
        lower_cut=lower_cut,
        lower=lower,
        lower_length=rng.uniform(*lengths),
        lower_looseness=rng.uniform(0.95, 1.45),
        shoes=draw.cloth({"plain": 1}),
        boots=rng.random() < 0.2,
        bag=pick(rng, {"none": 5, "backpack": 2.2, "shoulder": 1.6, "hand": 1.2}),
        bag_material=draw.cloth({"plain": 3, "band": 1}),
        hat=pick(rng, {"none": 8, "cap": 1.1, "beanie": 0.8}),
        hat_material=draw.cloth({"plain": 2, "hoops": 1}),
    )


# Swinging arms, a telephone at the ear, hands in pockets, something carried: how often, arms, elbows (radians).
_HANDS = (
    (0.70, (0.0, 0.0), (0.35, 0.35)),
    (0.12, (0.5, 0.0), (2.1, 0.3)),
    (0.10, (-0.15, -0.15), (0.75, 0.75)),
    (0.08, (0.35, 0.35), (1.35, 1.35)),
)


def draw_shot(walk: np.random.Generator, rng: np.random.Generator, camera: Camera, difficulty: Difficulty) -> Shot:
    """One image of a walk past a camera.

    Images of a walk differ less than walks do: `walk` is a generator that begins anew for each of them, `rng` the
    image's own.
    """
    pose, framing, light = difficulty.pose, difficulty.framing, difficulty.light
    direction = camera.directions[walk.integers(2)] + walk.normal(0, 0.3) * pose
    phase, walking = walk.uniform(0, 2 * math.pi), walk.random() < 0.85
    arms, elbows = pick(walk, _HANDS)
    exposure, warmth = (walk.normal(0, (0.2, 0.08)) * light).tolist()
    size, x, y = (walk.normal(0, (0.03, 0.03, 0.012)) * framing).tolist()
    feet_cut_off = (walk.random() < 0.06) * walk.uniform(0, 0.15) * framing
    scene_x, scene_y = walk.random(2).tolist()
    return Shot(
        yaw=direction + rng.normal(0, 0.22) * pose,
        phase=phase + rng.uniform(-1.6, 1.6) * pose,
        stride=(1.0 if walking else 0.15) * (1 + rng.normal(0, 0.12) * pose),
        arms=arms,
        elbows=elbows,
        size=min(max(camera.size + size + rng.normal(0, 0.018) * framing, 0.5), 1.5),
        x=0.5 + x + rng.normal(0, 0.03) * framing,
        y=0.5 + 0.51 * camera.size + y + feet_cut_off + rng.normal(0, 0.011) * framing,
        exposure=math.exp(exposure + rng.normal(0, 0.06) * light),
        contrast=math.exp(rng.normal(0, 0.08) * light),
        blur=math.exp(rng.normal(0, 0.3) * light),
        warmth=warmth + rng.normal(0, 0.015) * light,
        scene_x=(scene_x + rng.normal(0, 0.06) * min(framing, 1.0)) % 1.0,
        scene_y=scene_y,
    )
