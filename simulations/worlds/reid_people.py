"""Who walks through the world: one person as a set of factors, drawn from a generator.

What links a person's pictures in two kinds of light is shape, cut, accessories, texture and material. Colour does not:
a garment's reflectance in the near infrared comes from its material and dye, drawn apart from its colour, as in
reality, where black cotton is often bright and black polyester with carbon is dark.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]

PATTERNS = ("plain", "rings", "stripes", "checks", "halves", "dots", "logo")
TOPS = ("short", "long", "sleeveless", "jacket", "coat")
BOTTOMS = ("trousers", "shorts", "skirt", "long skirt")
HAIR = ("short", "bald", "long", "ponytail", "bun")
HATS = ("none", "cap", "beanie")
BAGS = ("none", "backpack", "shoulder bag", "handbag")


@dataclass(frozen=True)
class Material:
    """A cloth: near-infrared reflectance range, share of texture that survives there, gloss, folds, insulation."""

    infrared: tuple[float, float]
    survival: float
    gloss: float
    folds: float
    insulation: float


MATERIALS = {
    "cotton": Material((0.62, 0.85), 0.75, 0.00, 0.10, 0.45),
    "denim": Material((0.42, 0.58), 0.70, 0.02, 0.16, 0.55),
    "wool": Material((0.72, 0.95), 0.85, 0.00, 0.05, 0.85),
    "leather": Material((0.08, 0.22), 0.60, 0.35, 0.07, 0.70),
    "synthetic": Material((0.20, 0.38), 0.80, 0.18, 0.20, 0.25),
}


@dataclass(frozen=True)
class Cloth:
    """One garment's surface. Colours and reflectances in [0, 1]; ``period`` of the pattern in statures."""

    material: str
    pattern: str
    period: float
    phase: float
    colour: Colour
    second: Colour
    infrared: float
    infrared_second: float


@dataclass(frozen=True)
class Person:
    """One identity. Lengths are in statures (1 = the person's own height) unless a factor of the average."""

    stature: float
    shoulders: float
    girth: float
    hips: float
    legs: float
    arms: float
    head: float
    stoop: float
    stride: float
    skin: Colour
    hair: str
    hair_colour: Colour
    hair_infrared: float
    hat: str
    bag: str
    cut: str
    lower: str
    top: Cloth
    inner: Cloth
    bottom: Cloth
    shoes: Cloth
    accessory: Cloth
    bag_side: int


def draw_person(generator: np.random.Generator) -> Person:
    """Return a new person."""

    def spread(centre: float, half: float) -> float:
        return round(float(generator.uniform(centre - half, centre + half)), 4)

    def one(options: Sequence[str], weights: Sequence[float]) -> str:
        return str(generator.choice(options, p=np.array(weights) / sum(weights)))

    tone = float(generator.uniform(0.35, 1.0))
    grey = float(generator.uniform(0.05, 0.75))
    return Person(
        stature=spread(0.98, 0.12),
        shoulders=spread(1.0, 0.18),
        girth=spread(1.08, 0.38),
        hips=spread(1.0, 0.16),
        legs=spread(0.475, 0.035),
        arms=spread(1.0, 0.10),
        head=spread(1.0, 0.10),
        stoop=spread(0.04, 0.07),
        stride=spread(0.36, 0.16),
        skin=_rounded(0.92 * tone, 0.72 * tone, 0.58 * tone),
        hair=one(HAIR, (4, 1, 3, 2, 1)),
        hair_colour=_rounded(grey, 0.8 * grey, 0.6 * grey),
        hair_infrared=spread(0.42, 0.14),
        hat=one(HATS, (5, 2, 2)),
        bag=one(BAGS, (2, 2, 2, 2)),
        cut=one(TOPS, (3, 3, 1, 2, 2)),
        lower=one(BOTTOMS, (4, 2, 2, 1)),
        top=draw_cloth(generator, PATTERNS, (1, 3, 3, 3, 3, 3, 3)),
        inner=draw_cloth(generator, ("plain", "rings"), (3, 1)),
        bottom=draw_cloth(generator, ("plain", "rings", "stripes", "checks", "halves"), (2, 1, 1, 1, 1)),
        shoes=draw_cloth(generator, ("plain",), (1,)),
        accessory=draw_cloth(generator, ("plain", "halves"), (2, 1)),
        bag_side=int(generator.choice((-1, 1))),
    )


def draw_cloth(generator: np.random.Generator, patterns: Sequence[str], weights: Sequence[float]) -> Cloth:
    """Return a surface whose infrared reflectance is independent of its colour."""
    material = str(generator.choice(tuple(MATERIALS)))
    low, high = MATERIALS[material].infrared
    first = float(generator.uniform(low, high))
    # The second dye moves towards the other end of the scale, by as much of the contrast as the cloth keeps.
    other = 1.0 - first if abs(1.0 - 2.0 * first) > 0.3 else (first + 0.5) % 1.0
    survival = MATERIALS[material].survival * float(generator.uniform(0.8, 1.0))
    colour = _colour(generator)
    second = _colour(generator)
    while abs(sum(colour) - sum(second)) < 0.9:  # a pattern shows in grey, too
        second = _colour(generator)
    return Cloth(
        material=material,
        pattern=str(generator.choice(patterns, p=np.array(weights) / sum(weights))),
        period=round(float(generator.uniform(0.07, 0.14)), 4),
        phase=round(float(generator.uniform(0.0, 1.0)), 4),
        colour=colour,
        second=second,
        infrared=round(first, 4),
        infrared_second=round(first + survival * (other - first), 4),
    )


def _colour(generator: np.random.Generator) -> Colour:
    """Return a dye: any hue, from near black to near white, every third one close to grey."""
    hue, value = float(generator.uniform(0, 6)), float(generator.uniform(0.08, 0.95))
    saturation = float(generator.uniform(0.0, 0.2) if generator.random() < 1 / 3 else generator.uniform(0.3, 0.75))
    channels = [value * (1 - saturation * (1 - _ramp(hue + shift))) for shift in (0.0, 4.0, 2.0)]
    return _rounded(*channels)


def _ramp(hue: float) -> float:
    """Return one channel of a fully saturated hue in [0, 6): 1 around hue 0, 0 around hue 3."""
    distance = abs((hue + 3) % 6 - 3)
    return min(1.0, max(0.0, 2.0 - distance))


def _rounded(red: float, green: float, blue: float) -> Colour:
    return round(red, 4), round(green, 4), round(blue, 4)
