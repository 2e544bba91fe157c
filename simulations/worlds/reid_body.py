"""A person as tapered limbs in space: a walking pose seen from one side."""

import math
from dataclasses import dataclass

from cloister.simulations.worlds.reid_people import Person

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Pose:
    """One moment of walking: ``phase`` of the gait and ``yaw`` of the body (0 faces the camera), both in radians."""

    phase: float
    yaw: float


@dataclass(frozen=True)
class Limb:
    """A tapered tube from ``start`` to ``end`` in statures; x to the person's left, y up, z forward.

    ``radii`` at evenly spaced stations; ``flat`` is depth over width of the cross section. ``surface`` names the paint;
    ``capped`` ends are round. ``lift`` moves it towards the eye in the drawing order.
    ``opens`` marks the part of a jacket that shows what is worn under it.
    """

    start: Point
    end: Point
    radii: tuple[float, ...]
    surface: str
    flat: float = 1.0
    capped: bool = True
    lift: float = 0.0
    opens: bool = False


def limbs(person: Person, pose: Pose) -> list[Limb]:
    """Return the person's limbs, clothes and accessories in this pose."""
    hip, lean = person.legs, person.stoop
    shoulder = (0.0, 0.815, lean * 0.34)
    tight = {"skirt": 0.75, "long skirt": 0.5}.get(person.lower, 1.0)
    swing = math.sin(pose.phase) * person.stride * tight
    parts: list[Limb] = []
    for side in (-1, 1):
        parts += _leg(person, side, side * swing, hip)
        parts += _arm(person, side, -side * swing * 1.1, shoulder)
    return parts + _trunk(person, hip, shoulder) + _head(person, shoulder) + _bag(person, hip, shoulder)


def _leg(person: Person, side: int, angle: float, hip: float) -> list[Limb]:
    start = (side * 0.05 * person.hips, hip, 0.0)
    knee = _along(start, angle, 0.52 * hip)
    ankle = _along(knee, angle - 0.55 * max(0.0, -angle) - 0.08, 0.44 * hip)
    toe = (ankle[0], ankle[1] - 0.012, ankle[2] + 0.085)
    wide = 0.5 + 0.5 * person.girth
    thigh, shin = (0.064 * wide, 0.047 * wide), (0.044 * wide, 0.029 * wide)
    # A leg under a skirt or a coat is drawn before it, however far forward it steps.
    lift = -0.4 if person.lower in ("skirt", "long skirt") or person.cut == "coat" else -0.12
    cloth = 1.18 if person.bottom.material in ("wool", "cotton") else 1.04
    parts = [Limb(ankle, toe, (0.029, 0.021), "shoes", lift=lift)]
    if person.lower == "trousers":
        parts += [
            Limb(start, knee, (thigh[0] * cloth, thigh[1] * cloth), "bottom", lift=lift),
            Limb(knee, ankle, (thigh[1] * cloth, shin[1] * cloth * 1.2), "bottom", lift=lift),
        ]
        return parts
    parts += [Limb(start, knee, thigh, "skin", lift=lift), Limb(knee, ankle, shin, "skin", lift=lift)]
    if person.lower == "shorts":
        parts.append(
            Limb(start, _mix(start, knee, 0.85), (thigh[0] * 1.15, thigh[1] * 1.5), "bottom", lift=lift + 0.02)
        )
    return parts


def _arm(person: Person, side: int, angle: float, shoulder: Point) -> list[Limb]:
    start = (side * 0.112 * person.shoulders, shoulder[1] - 0.025, shoulder[2])
    out = side * (0.012 + 0.024 * person.girth)
    elbow = _along(start, angle, 0.165 * person.arms, out)
    hand = _along(elbow, angle + 0.25, 0.155 * person.arms, out * 0.2)
    wide = 0.65 + 0.35 * person.girth
    bare = [
        Limb(start, elbow, (0.036 * wide, 0.028 * wide), "skin"),
        Limb(elbow, hand, (0.028 * wide, 0.02 * wide), "skin"),
        Limb(hand, _mix(elbow, hand, 1.15), (0.02, 0.019), "skin"),
    ]
    if person.cut == "sleeveless":
        return bare
    if person.cut == "short":
        return [*bare, Limb(start, _mix(start, elbow, 0.6), (0.043 * wide, 0.042 * wide), "top", lift=0.01)]
    puff = 1.25 if person.cut in ("jacket", "coat") else 1.12
    return [
        bare[2],
        Limb(start, elbow, (0.038 * wide * puff, 0.031 * wide * puff), "top"),
        Limb(elbow, hand, (0.031 * wide * puff, 0.025 * wide * puff), "top"),
    ]


def _trunk(person: Person, hip: float, shoulder: Point) -> list[Limb]:
    wide, waist, seat = 0.118 * person.shoulders, 0.088 * person.girth, 0.094 * person.hips * (0.6 + 0.4 * person.girth)
    belt = (0.0, hip - 0.01, 0.0)
    thick = 1.1 if person.cut in ("jacket", "coat") else 1.0
    radii = tuple(thick * r for r in (seat, waist, 0.5 * (waist + wide) + 0.008, wide, 0.62 * wide))
    collar = (0.0, shoulder[1] + 0.02, shoulder[2])
    flat = 0.5 + 0.18 * person.girth
    parts = [
        Limb(belt, collar, radii, "top", flat=flat, capped=False, lift=0.03, opens=True),
        Limb((0.0, hip + 0.015, 0.0), (0.0, hip - 0.055, 0.0), (seat, seat * 0.9), "bottom", flat=flat, lift=-0.5),
    ]
    if person.lower in ("skirt", "long skirt"):
        hem = hip * (0.55 if person.lower == "skirt" else 0.18)
        flare = seat * (1.35 if person.lower == "skirt" else 1.5)
        parts.append(Limb((0, hip + 0.02, 0), (0, hem, 0), (seat, seat * 1.12, flare), "bottom", 0.8, False, 0.06))
    if person.cut == "coat":
        parts.append(Limb(belt, (0, hip * 0.58, 0), (radii[0], seat * 1.3), "top", flat=0.75, capped=False, lift=0.07))
    return parts


def _head(person: Person, shoulder: Point) -> list[Limb]:
    radius = 0.056 * person.head
    centre = (0.0, 0.925, shoulder[2] + 0.02)
    low, high = (0.0, centre[1] - 0.018, centre[2]), (0.0, centre[1] + 0.018, centre[2])
    parts = [
        Limb((0.0, shoulder[1], shoulder[2]), low, (0.036, 0.033), "skin"),
        Limb(low, high, (radius * 0.94, radius), "head", lift=0.05),
    ]
    back = (0.0, centre[1], centre[2] - 0.035)
    if person.hair == "long":
        parts.append(
            Limb(back, (0.0, shoulder[1] - 0.05, centre[2] - 0.085), (radius, radius * 1.25), "hair", lift=0.01)
        )
    elif person.hair == "ponytail":
        parts.append(Limb(_mix(back, centre, -0.6), (0.0, shoulder[1], centre[2] - 0.14), (0.022, 0.03, 0.012), "hair"))
    elif person.hair == "bun":
        parts.append(Limb((0.0, high[1] + 0.045, back[2]), (0.0, high[1] + 0.05, back[2]), (0.03, 0.03), "hair"))
    if person.hat == "cap":
        peak = (0.0, high[1] + 0.012, centre[2] + 0.1)
        parts.append(Limb((0.0, high[1] + 0.016, centre[2] + 0.03), peak, (0.045, 0.036), "accessory", lift=0.09))
    return parts


def _bag(person: Person, hip: float, shoulder: Point) -> list[Limb]:
    side, chest, back = float(person.bag_side), 0.085 + 0.02 * person.girth, -0.09 - 0.03 * person.girth
    if person.bag == "backpack":
        top, low = (0.0, shoulder[1] - 0.03, shoulder[2] + back), (0.0, hip + 0.07, back)
        straps = [
            Limb((s * 0.07, shoulder[1] + 0.01, shoulder[2] + 0.03), (s * 0.085, hip + 0.17, chest), (0.012, 0.012),
                 "accessory", lift=0.05)
            for s in (-1, 1)
        ]  # fmt: skip
        return [Limb(top, low, (0.06, 0.082, 0.086, 0.084), "accessory", 0.75, False, 0.02), *straps]
    if person.bag == "shoulder bag":
        pouch = (side * (0.10 + 0.05 * person.girth), hip + 0.01, 0.02)
        across = (-side * 0.08, shoulder[1] + 0.01, shoulder[2])
        straps = [
            Limb((across[0], across[1], across[2] + z), (pouch[0] * 0.85, pouch[1], z), (0.011, 0.011),
                 "accessory", lift=0.05)
            for z in (chest, -chest)
        ]  # fmt: skip
        return [*straps, Limb(pouch, (pouch[0], pouch[1] - 0.09, 0.02), (0.046, 0.052), "accessory", 1.4, False, 0.08)]
    if person.bag == "handbag":
        hand = (side * (0.17 + 0.04 * person.girth), hip - 0.06, 0.03)
        low = (hand[0], hand[1] - 0.15, hand[2])
        return [
            Limb((hand[0], hand[1] + 0.07, hand[2]), hand, (0.012, 0.012), "accessory"),
            Limb(hand, low, (0.048, 0.06), "accessory", 1.4, False, 0.06),
        ]
    return []


def project(limb: Limb, yaw: float, tilt: float) -> tuple[tuple[float, float], tuple[float, float], float]:
    """Return (start, end) on the image plane in statures (x right, y up) and the depth towards the eye."""
    ends, depth = [], limb.lift
    for x, y, z in (limb.start, limb.end):
        near = z * math.cos(yaw) - x * math.sin(yaw)
        ends.append((x * math.cos(yaw) + z * math.sin(yaw), y * math.cos(tilt) - near * math.sin(tilt)))
        depth += near / 2
    return ends[0], ends[1], depth


def _along(start: Point, angle: float, length: float, out: float = 0.0) -> Point:
    return start[0] + out, start[1] - length * math.cos(angle), start[2] + length * math.sin(angle)


def _mix(start: Point, end: Point, share: float) -> Point:
    return tuple(a + share * (b - a) for a, b in zip(start, end, strict=True))  # type: ignore[return-value]
