"""Pixels of synthetic pedestrians: tubes around the bones of a body, scenes behind it, and what a camera makes of both.

A tube knows the angle around its bone and the way along it, so that stripes, logos and open jackets turn with the body.
Surfaces are painted in the camera's channels: three colours, or one near-infrared reflectance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
from PIL import Image

from .pedestrian_draws import Camera, Colour, Material, Pedestrian, Shot, draw_identity, pick

Where = tuple[slice, slice]  # rows and columns

SCENE_HEIGHT, SCENE_WIDTH = 1.25, 5.0  # heights and widths of an image
INDOORS = ("hall", "room")


def _clip(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """np.clip, which takes longer than the drawing of most parts."""
    return np.minimum(np.maximum(x, low), high)


def _step(x: np.ndarray) -> np.ndarray:
    """A soft step from 0 to 1 around 0, one wide."""
    return _clip(x + 0.5, 0.0, 1.0)


def _waves(x: np.ndarray) -> np.ndarray:
    return _step(2 * np.sin(x))


# (angle around the bone from the body's front, metres along it, period in metres) -> share of the accent, in [0, 1].
PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "hoops": lambda angle, along, period: _waves(2 * math.pi / period * along),
    "bars": lambda angle, along, period: _waves(0.9 / period * angle),
    "checks": lambda angle, along, period: _waves(2 * math.pi / period * along) / 2 + _waves(0.9 / period * angle) / 2,
    "dots": lambda angle, along, period: _step(
        4 * np.sin(2 * math.pi / period * along) * np.sin(0.9 / period * angle) - 1.2
    ),
    "yoke": lambda angle, along, period: _step(60 * (0.1 + period - along)),
    "band": lambda angle, along, period: _step(60 * (period / 2 - abs(along - 0.27))),
    "logo": lambda angle, along, period: _step(4 - (angle / (2 * period)) ** 2 - (2 * (along - 0.2) / period) ** 2),
    "side": lambda angle, along, period: _step(8 * (0.3 - abs(abs(angle) - math.pi / 2))),
}


class Canvas:
    """An image in the making: light float32 [height, width, channels], about 0 to 1.

    Args:
        pixels: the background; painted over.
        camera: whose channels and light they are.
        folds: relief [height, width] that cloth shows here, about -2 to 2.
    """

    def __init__(self, pixels: np.ndarray, camera: Camera, folds: np.ndarray):
        self.pixels, self.camera, self.folds = pixels, camera, folds
        self.height, self.width, _ = pixels.shape
        self.rows = np.arange(self.height, dtype=np.float32)[:, None] + 0.5
        self.columns = np.arange(self.width, dtype=np.float32)[None, :] + 0.5

    def box(self, left: float, top: float, right: float, bottom: float) -> Where | None:
        """The rectangle's part within the image, None if there is none."""
        y0, y1 = max(0, math.floor(top)), min(self.height, math.ceil(bottom))
        x0, x1 = max(0, math.floor(left)), min(self.width, math.ceil(right))
        return (slice(y0, y1), slice(x0, x1)) if y0 < y1 and x0 < x1 else None

    def albedo(self, material: Material, accent: bool = False) -> np.ndarray:
        if self.camera.infrared:
            return np.float32([material.accent_infrared if accent else material.infrared])
        return np.float32(material.accent_visible if accent else material.visible)

    def patterned(self, material: Material, angle: np.ndarray, along: np.ndarray) -> np.ndarray:
        base = self.albedo(material)
        if material.pattern == "plain":
            return base
        share = PATTERNS[material.pattern](angle, along, material.period)
        return base + share[..., None] * (self.albedo(material, accent=True) - base)

    def shading(self, v: np.ndarray) -> np.ndarray:
        """Light on the front of a cylinder, v from -1 left to 1 right."""
        side, ambient = self.camera.side, self.camera.ambient
        facing = side * v + math.sqrt(1 - side * side) * np.sqrt(1 - v * v)
        return ambient + (1 - ambient) * np.maximum(facing, 0)

    def blend(self, where: Where, coverage: np.ndarray, light: np.ndarray) -> None:
        region = self.pixels[where]
        region += coverage[..., None] * (light - region)

    def tube(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        radii: tuple[float, ...],
        material: Material,
        *,
        metre: float,
        yaw: float = 0.0,
        skip: float = 0.0,
        cap: float = 1.0,
        beyond: tuple[float, Material] | None = None,
        opening: tuple[float, Material] | None = None,
    ) -> None:
        """Paint a bone's surface.

        Args:
            start, end: x and y in pixels.
            radii: pixels, at equal steps from start to end.
            metre: in pixels.
            yaw: direction of the body; turns patterns around the bone.
            skip: metres of the pattern before the start.
            cap: how far the round ends reach, as a share of the radius.
            beyond: share of the length from which another material begins.
            opening: half the angle around the front within which another material shows.
        """
        (x0, y0), (x1, y1), most = start, end, max(radii) + 1.5
        where = self.box(min(x0, x1) - most, min(y0, y1) - most, max(x0, x1) + most, max(y0, y1) + most)
        if where is None:
            return
        length = np.float32(max(math.hypot(x1 - x0, y1 - y0), 1e-3))
        dx, dy = np.float32(x1 - x0) / length, np.float32(y1 - y0) / length
        x, y = self.columns[:, where[1]] - np.float32(x0), self.rows[where[0]] - np.float32(y0)
        along, across = x * dx + y * dy, x * dy - y * dx
        on_bone = _clip(along, 0, length)
        if len(radii) == 2:
            radius = np.float32(radii[0]) + np.float32(radii[1] - radii[0]) / length * on_bone
        else:
            radius = np.interp(on_bone, np.linspace(0, length, len(radii)), radii).astype(np.float32)
        past_end = (along - on_bone) * np.float32(1 / cap)
        coverage = _clip(radius - np.sqrt(across * across + past_end * past_end) + 0.5, 0, 1)
        v = _clip(across / radius, -0.999, 0.999)
        angle, metres = v, along / np.float32(metre)
        if material.pattern != "plain" or opening is not None:
            angle = (np.arcsin(v) - np.float32(yaw) + math.pi) % (2 * math.pi) - math.pi
        light = self.patterned(material, angle, metres + np.float32(skip))
        if opening is not None:
            half_angle, inner = opening
            shown = _step(8 * (half_angle - abs(angle)))[..., None]
            light = light + shown * (self.patterned(inner, angle, metres) - light)
        if beyond is not None:
            share, other = beyond
            light = np.where((along > share * length)[..., None], self.albedo(other), light)
        shade = self.shading(v) * (1 + np.float32(0.07 * material.relief) * self.folds[where])
        self.blend(where, coverage, light * shade[..., None])


def _at(right: float, up: float, forward: float) -> np.ndarray:
    return np.array([right, up, forward])


class _Body:
    """A person in a pose before a camera: lengths are shares of the body's height, points are (right, up, forward).

    Parts are collected with an order and painted from the lowest; what is further away has a lower order.
    """

    def __init__(self, canvas: Canvas, person: Pedestrian, shot: Shot):
        self.canvas, self.person, self.shot = canvas, person, shot
        self.unit = shot.size * (person.height / 1.7) ** 0.4 * canvas.height  # pixels in the body's height
        self.metre = self.unit / person.height
        self.cos, self.sin = math.cos(shot.yaw), math.sin(shot.yaw)
        self.parts: list[tuple[float, Callable[[], None]]] = []
        self._pose()

    def _pose(self) -> None:
        person, shot = self.person, self.shot
        self.hip_y, self.shoulder_y = 0.52 * person.legs, 0.815
        self.thigh, self.shin = 0.47 * self.hip_y, 0.46 * self.hip_y
        self.lean = person.lean * (self.shoulder_y - self.hip_y)
        self.neck = _at(0, 0.84, self.lean)
        self.head = _at(0, 0.925, 1.1 * self.lean + 0.012)
        swing = 0.48 * person.stride * shot.stride
        shoulder_x = 0.091 * person.shoulders * person.build**0.3
        self.legs, self.arms = [], []
        for side, beat, reach, bend in zip(
            (-1, 1), (shot.phase, shot.phase + math.pi), shot.arms, shot.elbows, strict=True
        ):
            swung = swing * math.sin(beat)
            lower = swung - 0.08 - 1.26 * swing * max(0.0, math.cos(beat + 0.5))
            hip = _at(0.05 * side * person.hips, self.hip_y, 0)
            knee = hip + self.thigh * _at(0.04 * side, -math.cos(swung), math.sin(swung))
            ankle = knee + self.shin * _at(0, -math.cos(lower), math.sin(lower))
            toe = ankle + 0.13 * _at(0.12 * side, -0.22 - 0.5 * max(0.0, -swung), 0.95)
            self.legs.append((hip, knee, ankle, toe))
            reach -= 0.75 * swung
            shoulder = _at(side * shoulder_x, self.shoulder_y - 0.03, self.lean)
            elbow = shoulder + 0.172 * _at((0.07 + 0.1 * person.build) * side, -math.cos(reach), math.sin(reach))
            forearm = _at(0.02 * side, -math.cos(reach + bend), math.sin(reach + bend))
            self.arms.append((shoulder, elbow, elbow + 0.15 * forearm, elbow + 0.2 * forearm))
        self.ground = min(toe[1] for *_, toe in self.legs)

    def depth(self, point: np.ndarray) -> float:
        """Towards the camera."""
        return float(point[2] * self.cos - point[0] * self.sin)

    def nearness(self, up: float) -> float:
        return 1 + self.canvas.camera.perspective * (float(up) - 0.5)

    def project(self, point: np.ndarray) -> tuple[float, float]:
        """x and y in pixels."""
        right = (point[0] * self.cos + point[2] * self.sin) * self.nearness(point[1])
        up = point[1] - self.ground - 0.6 * math.tan(self.canvas.camera.tilt) * self.depth(point)
        shot = self.shot
        x, y = shot.x * self.canvas.width + right * self.unit, shot.y * self.canvas.height - up * self.unit
        return float(x), float(y)

    def oval(self, wide: float, deep: float) -> float:
        """Half the width of an elliptic cross-section, seen from the camera."""
        return math.hypot(wide * self.cos, deep * self.sin)

    def tube(
        self, order: float, start: np.ndarray, end: np.ndarray, radii: tuple[float, ...], material: Material, **how
    ) -> None:
        """Add a part; `how` is for `Canvas.tube`, but `skip` is a share of the body's height here."""
        scale = self.unit * self.nearness((start[1] + end[1]) / 2)
        sizes = tuple(max(radius * scale, 0.6) for radius in radii)
        how = {"metre": self.metre, "yaw": self.shot.yaw, **how, "skip": how.get("skip", 0.0) * self.person.height}
        paint = partial(self.canvas.tube, self.project(start), self.project(end), sizes, material, **how)
        self.parts.append((order, paint))

    def paint(self) -> None:
        self.shadow()
        self.add_legs()
        self.add_torso()
        self.add_arms()
        self.add_bag()
        self.add_hair()
        self.parts.append((1.8, self.paint_head))
        for _, paint in sorted(self.parts, key=lambda part: part[0]):
            paint()

    def shadow(self) -> None:
        canvas, (x, y) = self.canvas, self.project(_at(0, self.ground, 0))
        wide, flat = 0.14 * self.unit, 0.03 * self.unit
        where = canvas.box(x - wide, y - flat, x + wide, y + flat)
        if where is not None:
            far = ((canvas.columns[:, where[1]] - x) / wide) ** 2 + ((canvas.rows[where[0]] - y) / flat) ** 2
            canvas.pixels[where] *= (1 - 0.45 * _clip(1 - far, 0, 1))[..., None]

    def add_legs(self) -> None:
        person = self.person
        bare = person.lower_cut == "skirt"
        cloth = person.skin if bare else person.lower
        skin = [0.047 * person.build**0.8, 0.033 * person.build**0.5, 0.022 * person.build**0.4]
        loose = 0.0 if bare else person.lower_looseness - 1
        radii = [radius * (1 + loose * share) for radius, share in zip(skin, (0.4, 0.9, 1.5), strict=True)]
        below_knee, thigh_end, shin_end = cloth, None, None
        if not bare and person.lower_length < 1:
            below_knee, thigh_end, radii[2] = person.skin, (person.lower_length, person.skin), skin[2]
        elif not bare and person.lower_length < 1.9:
            shin_end = (person.lower_length - 1, person.skin)
        if person.boots:
            shin_end = (0.55, person.shoes)
        for hip, knee, ankle, toe in self.legs:
            order = -3 + 0.5 * self.depth((knee + ankle) / 2)
            self.tube(order - 0.02, ankle + _at(0, 0.006, -0.012), toe, (0.022, 0.016), person.shoes)
            self.tube(order - 0.01, knee, ankle, (radii[1], radii[2]), below_knee, beyond=shin_end, skip=self.thigh)
            self.tube(order, hip, knee, (radii[0], radii[1]), cloth, beyond=thigh_end)

    def add_torso(self) -> None:
        person, neck, build = self.person, self.neck, self.person.build
        hips = self.oval(0.092 * person.hips * build**0.8, 0.068 * build)
        waist = self.oval(0.076 * build * (0.5 + 0.5 * person.hips), 0.058 * build**1.3)
        chest = self.oval(0.092 * person.shoulders * build**0.7, 0.066 * build)
        middle = _at(0, 0.62, 0.2 * self.lean)
        self.tube(-2.2, middle, _at(0, self.hip_y - 0.006, 0), (waist, 0.97 * hips, 0.9 * hips), person.lower)
        if person.lower_cut == "skirt":
            self._add_skirt(middle, waist, hips)
        covers_hips = person.cut != "shirt" or person.hem > 0.035
        belly = max(waist, 0.9 * hips) if covers_hips else waist
        fall = hips * (1.25 if person.cut == "coat" else 1.0)
        outline = (0.048, 0.98 * chest, chest, (chest + belly) / 2, belly, 0.98 * fall, fall)
        radii = (outline[0], *(person.looseness * radius for radius in outline[1:]))
        bottom = _at(0, min(self.hip_y + 0.018 - person.hem, 0.57), 0)
        opening = (person.opening, person.inner) if person.opening else None
        self.tube(-2.3, neck, _at(0, 0.9, 1.1 * self.lean), (0.034 * build**0.4, 0.03), person.skin)
        self.tube(0, neck - _at(0, 0.022, 0), bottom, radii, person.upper, opening=opening, cap=0.2)
        self.tube(0.1, neck - _at(0, 0.005, 0), neck + _at(0, 0.03, 0), (0.034, 0.03), person.skin)
        if person.cut in ("coat", "jacket"):
            self.tube(0.15, neck - _at(0, 0.01, 0), neck + _at(0, 0.005, 0), (0.045, 0.04), person.upper)
        elif person.cut == "hoodie":
            hood, half = neck + _at(0, 0.005, -0.035), _at(0.05, 0, 0)
            order = -2.4 if self.cos >= 0 else 0.2
            self.tube(order, hood - half, hood + half, (0.035, 0.035), person.upper)

    def _add_skirt(self, middle: np.ndarray, waist: float, hips: float) -> None:
        person, (left, right) = self.person, (self.legs[0][1], self.legs[1][1])
        drop = min(person.lower_length, 1) * self.thigh + max(person.lower_length - 1, 0) * self.shin
        stride = abs(self.project(left)[0] - self.project(right)[0]) / 2 / self.unit
        flare = hips * (1 + 0.35 * (person.lower_looseness - 0.95))
        flare = max(flare, 0.9 * stride * min(person.lower_length, 1.3) + 0.04)
        hem = _at(0, self.hip_y - drop + 0.03, (left + right)[2] / 4)
        self.tube(-2.1, middle, hem, (waist, hips, (hips + flare) / 2, flare), person.lower, skip=0.17, cap=0.15)

    def add_arms(self) -> None:
        person, reach = self.person, self.person.sleeves
        radius = 0.029 * person.build**0.7 * (person.looseness if reach else 1)
        upper, upper_end = (person.sleeve if reach else person.skin), ((reach, person.skin) if 0 < reach < 1 else None)
        lower = person.sleeve if reach > 1 else person.skin
        lower_end = (reach - 1, person.skin) if 1 < reach < 1.93 else None
        for shoulder, elbow, wrist, hand in self.arms:
            depth = self.depth(elbow)
            order = depth + (1 if depth > -0.06 else -4)
            self.tube(order - 0.02, wrist, hand, (0.017, 0.018), person.skin)
            self.tube(order - 0.01, elbow, wrist, (0.82 * radius, 0.62 * radius), lower, beyond=lower_end, skip=0.172)
            self.tube(order, shoulder, elbow, (1.05 * radius, 0.88 * radius), upper, beyond=upper_end)

    def add_bag(self) -> None:
        person, material, towards = self.person, self.person.bag_material, self.cos >= 0
        if person.bag == "backpack":
            wide = self.oval(0.075, 0.045)
            top, bottom = _at(0, self.shoulder_y - 0.03, self.lean - 0.1), _at(0, self.hip_y + 0.07, -0.1)
            order = 3 if self.cos < -0.3 else -0.5
            self.tube(order, top, bottom, (0.85 * wide, wide, wide), material, yaw=self.shot.yaw + math.pi)
            for side in (-1, 1) if self.cos > -0.2 else ():
                strap = _at(0.055 * side, self.shoulder_y, self.lean + 0.04)
                self.tube(0.3, strap, strap + _at(0.015 * side, -0.17, 0.03), (0.011, 0.009), material)
        elif person.bag == "shoulder":
            bag, front = _at(0.1, self.hip_y - 0.01, 0), 0.065 if towards else -0.065
            strap = _at(-0.06, self.shoulder_y + 0.015, self.lean + front)
            self.tube(0.4, strap, bag + _at(0, 0.02, front), (0.008, 0.008), material)
            wide = self.oval(0.03, 0.07) + 0.01
            self.tube(2.5 if self.depth(bag) > -0.03 else -5, bag, bag - _at(0, 0.08, 0), (wide, wide), material)
        elif person.bag == "hand":
            *_, hand = self.arms[1]
            wide = self.oval(0.02, 0.06) + 0.015
            top, bottom = hand - _at(0, 0.06, 0), hand - _at(0, 0.14, 0)
            self.tube(2.5 if self.depth(hand) > -0.06 else -5, top, bottom, (wide, wide), material)

    def add_hair(self) -> None:
        """What hangs or stands off; the rest is a part of the head."""
        style, head, hair, order = self.person.hair_style, self.head, self.person.hair, -0.3 if self.cos >= 0 else 2.0
        if style in ("long", "bob"):
            wide = self.oval(0.056, 0.05)
            end = _at(0, 0.70 if style == "long" else 0.84, self.lean - 0.045)
            self.tube(order, head - _at(0, 0, 0.025), end, (wide, 1.05 * wide, 0.75 * wide), hair)
        elif style == "ponytail":
            self.tube(order, head - _at(0, 0, 0.055), _at(0, 0.78, self.lean - 0.075), (0.022, 0.026, 0.012), hair)
        elif style == "bun":
            self.tube(order, head + _at(0, 0.05, -0.05), head + _at(0, 0.055, -0.05), (0.03, 0.03), hair)

    def paint_head(self) -> None:
        """A ball whose front is a face."""
        canvas, person, (x0, y0) = self.canvas, self.person, self.project(self.head)
        unit = self.unit * self.nearness(1)
        wide, tall = unit * self.oval(0.051, 0.057), 0.07 * unit
        where = canvas.box(x0 - 1.7 * wide, y0 - 1.2 * tall, x0 + 1.7 * wide, y0 + 1.2 * tall)
        if where is None:
            return
        up = (np.float32(y0) - canvas.rows[where[0]]) / np.float32(tall)
        x = (canvas.columns[:, where[1]] - np.float32(x0)) / np.float32(wide)
        x = x * (1 + 0.12 * _clip(-up, 0, 1))  # chins are narrower
        distance = np.sqrt(x * x + up * up)
        z = np.sqrt(_clip(1 - distance * distance, 0, 1))
        front, aside = z * self.cos + x * self.sin, x * self.cos - z * self.sin
        coverage = _clip((1 - distance) * wide + 0.5, 0, 1)

        line, behind = {"bald": (2.0, -2.0), "crop": (0.62, -0.05), "short": (0.48, 0.08)}.get(
            person.hair_style, (0.48, 0.3)
        )
        hairy = np.maximum(_step(5 * (up - line)), _step(5 * (behind - front)) * _step(5 * (up + 0.55)))
        if person.beard:
            hairy = np.maximum(hairy, 0.8 * _step(6 * (-0.38 - up)))
        eyes, mouth = (abs(aside) - 0.36, up - 0.08), (aside, up + 0.5)
        dark = 0.65 * np.exp(-((eyes[0] / 0.17) ** 2) - (eyes[1] / 0.1) ** 2)
        dark = np.maximum(dark, 0.35 * np.exp(-((mouth[0] / 0.25) ** 2) - (mouth[1] / 0.07) ** 2))
        if person.glasses:
            lenses = 0.85 * _step(8 * (0.25 - np.hypot(eyes[0], 1.2 * eyes[1])))
            dark = np.maximum(dark, np.maximum(lenses, 0.5 * np.exp(-((eyes[1] / 0.05) ** 2))))
        dark *= _step(6 * (front - 0.3)) * (1 - hairy)
        skin = canvas.albedo(person.skin)
        light = (skin + hairy[..., None] * (canvas.albedo(person.hair) - skin)) * (1 - dark)[..., None]
        if person.hat != "none":
            hat = _clip((1.08 - distance) * wide + 0.5, 0, 1) * _step((up - 0.32) * tall)
            if person.hat == "cap" and self.cos > -0.3:
                brim = _step((0.09 - abs(up - 0.34)) * tall) * _step((1.05 - abs(x - 0.55 * self.sin)) * wide)
                hat = np.maximum(hat, brim * _step(4 * (front + 0.6 * distance - 0.75)))
            coverage = np.maximum(coverage, hat)
            light = light + hat[..., None] * (canvas.patterned(person.hat_material, aside, 0.1 * up) - light)
        shade = canvas.shading(_clip(x, -0.999, 0.999)) * (0.9 + 0.1 * _clip(up, -1, 1))
        canvas.blend(where, coverage, light * shade[..., None])


def paint_body(canvas: Canvas, person: Pedestrian, shot: Shot) -> None:
    """A person with a shadow."""
    _Body(canvas, person, shot).paint()


def paint_occluder(canvas: Canvas, shot: Shot, rng: np.random.Generator) -> None:
    """Something that hides a part of a person: a box on the ground, a post, a railing or somebody in front."""
    height, width = canvas.height, canvas.width
    kind = pick(rng, {"box": 0.35, "post": 0.2, "railing": 0.15, "passer-by": 0.3})
    if kind == "passer-by":
        x = shot.x + rng.choice((-1, 1)) * rng.uniform(0.38, 0.6)
        yaw, nearer = rng.uniform(-math.pi, math.pi), rng.uniform(0, 0.06)
        paint_body(canvas, draw_identity(rng), replace(shot, x=x, yaw=yaw, y=shot.y + nearer))
        return
    colour = rng.uniform(0.1, 0.7) * rng.uniform(0.7, 1.3, 3)
    material = Material(tuple(colour), rng.uniform(0.1, 0.8))
    if kind == "box":
        middle, half = rng.uniform(0.1, 0.9) * width, rng.uniform(0.15, 0.4) * width
        boxes = [(middle - half, rng.uniform(0.65, 0.85) * height, middle + half, height)]
    elif kind == "post":
        middle, half = (shot.x + rng.choice((-1, 1)) * rng.uniform(0.12, 0.4)) * width, 0.06 * width
        boxes = [(middle - half, 0, middle + half, height)]
    else:
        tops = (rng.uniform(0.55, 0.7) + 0.08 * np.arange(5)) * height
        boxes = [(0, top, width, top + 0.02 * height) for top in tops]
    for box in boxes:
        where = canvas.box(*box)
        if where is not None:
            canvas.pixels[where] = canvas.albedo(material) * (1 + 0.06 * canvas.folds[where])[..., None]


def noise(rng: np.random.Generator, height: int, width: int, bumps: float) -> np.ndarray:
    """Smooth noise float32 [height, width] of deviation 1, with that many bumps over the height."""
    total = np.zeros((height, width), np.float32)
    for octave, weight in ((1, 1.0), (2, 0.6), (4, 0.35)):
        rows = max(2, round(bumps * octave))
        grid = Image.fromarray(rng.standard_normal((rows, max(2, round(rows * width / height))), dtype=np.float32))
        total += weight * np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
    return total / total.std()


@lru_cache(maxsize=4)
def folds(height: int, width: int) -> np.ndarray:
    """The relief of cloth for images of a size, float32 [3 height, 5 width]: each image shows a part of it."""
    rng = np.random.default_rng(0)
    return 0.6 * noise(rng, 3 * height, 5 * width, 30) + 0.8 * noise(rng, 3 * height, 5 * width, 90)


def paint_scene(rng: np.random.Generator, kind: str, infrared: bool, height: int, width: int) -> np.ndarray:
    """What stands behind, float32 [1.25 height, 5 width, channels].

    Generators in the same state give the same surfaces in both modalities.
    """
    rows, columns = round(SCENE_HEIGHT * height), round(SCENE_WIDTH * width)
    y, x = np.mgrid[:rows, :columns].astype(np.float32) / height
    pixels = np.empty((rows, columns, 1 if infrared else 3), np.float32)
    coarse, fine = noise(rng, rows, columns, 6), noise(rng, rows, columns, 60)

    def cover(mask: np.ndarray, colour: Colour, reflectance: float, texture: np.ndarray) -> None:
        albedo = np.float32([reflectance] if infrared else colour) * (1 + 0.12 * texture[..., None])
        pixels[mask] = albedo[mask]

    def tint(low: float, high: float) -> Colour:
        return tuple(rng.uniform(low, high) * rng.uniform(0.92, 1.08, 3))

    def rectangle(left: float, top: float, wide: float, tall: float) -> np.ndarray:
        return (x > left) & (x < left + wide) & (y > top) & (y < top + tall)

    cover(y < 9, tint(0.45, 0.75), rng.uniform(0.35, 0.7), 0.6 * coarse + 0.2 * fine)
    horizon = 0.72 if kind in INDOORS else 0.55
    if kind in INDOORS:  # doors, pictures, a skirting board
        for _ in range(4):
            door = rectangle(rng.uniform(0, 2.4), rng.uniform(-0.1, 0.4), rng.uniform(0.15, 0.45), 9)
            cover(door, tint(0.15, 0.7), rng.uniform(0.15, 0.75), 0.3 * fine)
        for _ in range(5):
            left, top, wide, tall = rng.uniform((0, 0, 0.1, 0.1), (2.4, 0.4, 0.3, 0.25))
            cover(rectangle(left, top, wide, tall), tint(0.2, 0.9), rng.uniform(0.2, 0.8), coarse)
        cover(abs(y - horizon) < 0.02, tint(0.15, 0.3), 0.2, fine)
    else:  # leaves are bright in infrared; a house with windows
        cover(coarse + 0.8 * fine > -0.2, (0.16, 0.27, 0.12), 0.8, 2.5 * fine + coarse)
        house = rectangle(rng.uniform(0.2, 1.0), -1, 1.0, 9)
        cover(house, tint(0.4, 0.75), rng.uniform(0.3, 0.6), 0.4 * fine)
        cover(house & (np.sin(22 * x) > 0.2) & (np.sin(17 * y) > 0.1), (0.22, 0.27, 0.33), 0.08, 0.8 * coarse)
    cover(y > horizon, tint(0.3, 0.6), rng.uniform(0.2, 0.5), 0.8 * fine + 0.5 * coarse)
    if kind == "park":
        cover(y > 1.02, (0.2, 0.34, 0.14), 0.75, 3 * fine)
    else:
        distance = np.maximum(y - horizon + 0.12, 0.05)
        joints = ((x - 1.2) / distance % 0.8 < 0.06) | (1 / distance % 0.8 < 0.07)
        cover((y > horizon) & joints, tint(0.2, 0.35), rng.uniform(0.15, 0.3), fine)
    if infrared:  # the lamp hardly reaches what is far away
        pixels *= (0.4 + 0.5 * _clip(1.3 * (y - 0.5), 0, 1))[..., None]
    return pixels


def expose(canvas: Canvas, shot: Shot, rng: np.random.Generator) -> np.ndarray:
    """From light to pixels uint8 [height, width, 3]: lamp, exposure, colour temperature, tone, blur and noise."""
    camera, pixels = canvas.camera, canvas.pixels
    gain = np.float32(camera.light) * np.float32(1.25 * shot.exposure)
    if camera.infrared:  # a lamp beside the camera, whose light falls off around a spot
        x = 1.1 * (canvas.columns / canvas.width - np.float32(0.5 + 2 * shot.warmth))
        y = canvas.rows / canvas.height - np.float32(0.4 + shot.warmth)
        pixels *= (1.15 / (1 + 1.3 * (x * x + y * y)) ** 1.5)[..., None]
    else:
        gain *= np.float32([1 + shot.warmth, 1.0, 1 - shot.warmth])
    pixels *= gain
    pixels /= 1 + 0.32 * pixels  # highlights bend before they clip
    slope = np.float32(camera.contrast * shot.contrast)
    pixels = 255 * (0.42 + slope * (_blur(pixels, camera.blur * shot.blur * canvas.height / 1000) - 0.42))
    pixels += np.float32(camera.noise) * rng.standard_normal(pixels.shape, dtype=np.float32)
    image = _clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return np.broadcast_to(image, (canvas.height, canvas.width, 3)).copy()


def _blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """A separable Gaussian of standard deviation `sigma` pixels; edges are repeated."""
    reach = max(1, math.ceil(2.5 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    height, width, _ = pixels.shape
    padded = np.pad(pixels, ((reach, reach), (0, 0), (0, 0)), mode="edge")
    pixels = sum(weight * padded[i : i + height] for i, weight in enumerate(kernel))
    padded = np.pad(pixels, ((0, 0), (reach, reach), (0, 0)), mode="edge")
    return sum(weight * padded[:, i : i + width] for i, weight in enumerate(kernel))
