"""A posed person to pixels, as one of three sensors sees it: visible, near infrared or thermal.

Every limb is painted from a signed distance to its tapered axis, so edges are smooth at any size, and shaded as a
tube. The texture of a garment is laid around the body, so that it turns with it.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from cloister.simulations.worlds.reid_body import Limb, Pose, limbs, project
from cloister.simulations.worlds.reid_people import MATERIALS, Cloth, Person

Plane = np.ndarray[Any, np.dtype[Any]]
"""float32, ``[height, width]`` or ``[height, width, 3]``."""
Spot = tuple[float, float]


class Sensor(StrEnum):
    """What a camera measures."""

    VISIBLE = "visible"
    NEAR_INFRARED = "near infrared"
    THERMAL = "thermal"


@dataclass(frozen=True)
class View:
    """Where the person stands in the picture and how light falls on it.

    ``scale`` is pixels per average stature, ``(column, floor)`` the pixel under the feet, ``tilt`` the camera's
    downward angle, ``light`` the (right, up, towards) direction, ``ambient`` the share of undirected light.
    """

    scale: float
    column: float
    floor: float
    tilt: float
    light: tuple[float, float, float]
    ambient: float


@dataclass
class _Patch:
    """The pixels of one limb: where, how much of each is covered, and where on the limb they lie."""

    rows: slice
    columns: slice
    cover: Plane
    across: Plane
    along: Plane
    normal: tuple[Plane, Plane, Plane]
    length: float
    radius: float


def paint(canvas: Plane, person: Person, pose: Pose, view: View, sensor: Sensor) -> None:
    """Draw a person into ``canvas``, float32 ``[height, width, 3]`` in [0, 1]; infrared has three equal channels."""
    scale = view.scale * person.stature
    _shadow(canvas, person, view, sensor)
    drawn = []
    for limb in limbs(person, pose):
        start, end, depth = project(limb, pose.yaw, view.tilt)
        drawn.append((depth, limb, start, end))
    for _, limb, start, end in sorted(drawn, key=lambda item: item[0]):
        first = (view.column + scale * start[0], view.floor - scale * start[1])
        last = (view.column + scale * end[0], view.floor - scale * end[1])
        patch = _patch(canvas, first, last, limb, pose.yaw, scale)
        if patch is not None:
            _blend(canvas, patch, _surface(patch, limb, person, pose, view, sensor))


def _patch(canvas: Plane, start: Spot, end: Spot, limb: Limb, yaw: float, scale: float) -> _Patch | None:
    """Return the pixels of a limb between two picture positions, or None if it lies outside the picture."""
    turn = math.hypot(math.cos(yaw), limb.flat * math.sin(yaw)) if limb.flat != 1.0 else 1.0
    radii = [radius * scale * turn for radius in limb.radii]
    reach = max(radii) + 1.5
    left, top = max(0, int(min(start[0], end[0]) - reach)), max(0, int(min(start[1], end[1]) - reach))
    right = min(canvas.shape[1], int(max(start[0], end[0]) + reach) + 2)
    bottom = min(canvas.shape[0], int(max(start[1], end[1]) + reach) + 2)
    if left >= right or top >= bottom:
        return None
    x = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5 - start[0])
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - start[1])
    length = max(math.hypot(end[0] - start[0], end[1] - start[1]), 1e-3)
    dx, dy = np.float32((end[0] - start[0]) / length), np.float32((end[1] - start[1]) / length)
    along = (x * dx + y * dy) / np.float32(length)
    side = x * dy - y * dx
    held = _within(along, 0.0, 1.0)
    if len(radii) == 2:
        radius = np.float32(radii[0]) + held * np.float32(radii[1] - radii[0])
    else:
        radius = np.interp(held, np.linspace(0.0, 1.0, len(radii)), radii).astype(np.float32)
    across = side / radius
    over = (along - held) * np.float32(length)
    if limb.capped:
        outside = np.sqrt(side * side + over * over) - radius
        tip = over / radius
    else:
        outside = np.maximum(np.abs(side) - radius, np.abs((along - 0.5) * np.float32(length)) - np.float32(length / 2))
        tip = np.zeros_like(over)
    cover = _within(0.5 - outside, 0.0, 1.0)
    across = _within(across, -1.0, 1.0)
    tip = _within(tip, -1.0, 1.0)
    facing = np.sqrt(np.maximum(1.0 - across * across - tip * tip, np.float32(0.02)))
    # (dx, dy) runs along the limb in pixels, (dy, -dx) across it; the picture's y points down.
    normal = (across * dy + tip * dx, across * dx - tip * dy, facing)
    rows, columns = slice(top, bottom), slice(left, right)
    return _Patch(rows, columns, cover, -across, along, normal, length / scale, max(radii) / scale)


def _within(value: Plane, low: float, high: float) -> Plane:
    """Return ``value`` limited to [low, high]; several times faster on small arrays than ``np.clip``."""
    return np.minimum(np.maximum(value, np.float32(low)), np.float32(high))


def _surface(patch: _Patch, limb: Limb, person: Person, pose: Pose, view: View, sensor: Sensor) -> Plane:
    """Return the colours of a limb's pixels: its material in this sensor's light."""
    right, up, near = (np.float32(part) for part in view.light)
    lambert = np.maximum(patch.normal[0] * right + patch.normal[1] * up + patch.normal[2] * near, np.float32(0))
    shade = np.float32(view.ambient) + np.float32(1.0 - view.ambient) * lambert
    if sensor is Sensor.THERMAL:
        shade = np.float32(0.8) + np.float32(0.2) * patch.normal[2]
    if limb.surface == "head":
        return np.asarray(_head(patch, person, pose, sensor) * shade[..., None], np.float32)
    if limb.surface in ("skin", "hair"):
        return np.asarray(_bare(limb.surface, person, sensor) * shade[..., None], np.float32)
    cloth: Cloth = getattr(person, limb.surface)
    material = MATERIALS[cloth.material]
    colour = _cloth(patch, cloth, pose, sensor)
    if limb.opens and person.cut in ("jacket", "coat"):
        angle = _around(patch, pose.yaw)
        front = (np.cos(angle) > 0.95) & (patch.along > 0.08)
        colour = np.where(front[..., None], _cloth(patch, person.inner, pose, sensor), colour)
    if limb.surface in ("top", "bottom"):
        height = patch.along * np.float32(patch.length)
        crease = np.sin(31 * height + 4 * patch.across + 9 * cloth.phase) * np.sin(17 * height - 2.5 * patch.across)
        shade = shade * (1 + np.float32(material.folds) * crease)
    if material.gloss and sensor is not Sensor.THERMAL:
        shine = np.float32(material.gloss) * lambert**6
        return np.asarray(colour * shade[..., None] + shine[..., None], np.float32)
    return np.asarray(colour * shade[..., None], np.float32)


def _around(patch: _Patch, yaw: float) -> Plane:
    """Return the angle around the body's axis, 0 at its front."""
    return np.arcsin(patch.across) - np.float32(yaw)


def _cloth(patch: _Patch, cloth: Cloth, pose: Pose, sensor: Sensor) -> Plane:
    """Return a garment's colours ``[rows, columns, 3]``, or ``[1, 1, 3]`` where it is plain."""
    if sensor is Sensor.VISIBLE:
        first, second = np.array(cloth.colour, np.float32), np.array(cloth.second, np.float32)
    elif sensor is Sensor.NEAR_INFRARED:
        first, second = np.full(3, cloth.infrared, np.float32), np.full(3, cloth.infrared_second, np.float32)
    else:
        warm = 0.85 - 0.6 * MATERIALS[cloth.material].insulation
        first = np.full(3, warm, np.float32)
        second = np.full(3, warm + 0.4 * (cloth.infrared_second - cloth.infrared), np.float32)
    if cloth.pattern == "plain":
        return first[None, None]
    mixed: Plane = first + _texture(patch, cloth, pose)[..., None] * (second - first)
    return mixed


def _texture(patch: _Patch, cloth: Cloth, pose: Pose) -> Plane:
    """Return the share of the second dye at every pixel, in [0, 1]."""
    turn = np.float32(2 * math.pi / cloth.period)
    height = patch.along * np.float32(patch.length)
    if cloth.pattern == "rings":
        return _steep(np.sin(height * turn + np.float32(6 * cloth.phase)))
    if cloth.pattern == "halves":
        return _steep((height - np.float32((0.35 + 0.3 * cloth.phase) * patch.length)) * np.float32(50))
    angle = _around(patch, pose.yaw)
    girth = angle * np.float32(patch.radius)
    if cloth.pattern == "stripes":
        return _steep(np.sin(girth * turn))
    if cloth.pattern == "checks":
        return (_steep(np.sin(girth * turn)) + _steep(np.sin(height * turn))) * np.float32(0.5)
    if cloth.pattern == "dots":
        return _steep(np.cos(height * turn) * np.cos(girth * turn) * 2 - np.float32(0.5))
    wide = np.float32(0.03 + 0.4 * cloth.period)
    apart = np.maximum(np.abs(np.sin(angle)) / np.float32(0.55), np.abs(patch.along - 0.62) * patch.length / wide)
    return _steep(np.where(np.cos(angle) > 0, 1 - apart, np.float32(-1)) * 4)


def _steep(wave: Plane) -> Plane:
    return _within(np.float32(0.5) + np.float32(1.4) * wave, 0.0, 1.0)


def _bare(surface: str, person: Person, sensor: Sensor) -> Plane:
    """Return the colour of skin or hair: skin is bright in both infrareds, hair in between."""
    hair = surface == "hair"
    if sensor is Sensor.VISIBLE:
        return np.array(person.hair_colour if hair else person.skin, np.float32)
    if sensor is Sensor.NEAR_INFRARED:
        return np.full(3, person.hair_infrared if hair else 0.86, np.float32)
    return np.full(3, 0.55 if hair else 0.98, np.float32)


def _head(patch: _Patch, person: Person, pose: Pose, sensor: Sensor) -> Plane:
    """Return the head's colours: a face towards the front, hair or a hat above and behind, eyes and mouth."""
    right, up, near = patch.normal
    forward = near * np.float32(math.cos(pose.yaw)) + right * np.float32(math.sin(pose.yaw))
    left = right * np.float32(math.cos(pose.yaw)) - near * np.float32(math.sin(pose.yaw))
    rise = up + (patch.along - 0.5) * np.float32(0.9)
    skin, hair = _bare("skin", person, sensor), _bare("hair", person, sensor)
    covered = _steep((rise - 0.55 - 0.35 * forward) * 3) if person.hair != "bald" else np.zeros_like(rise)
    covered = np.maximum(covered, _steep((-forward - 0.05) * 4)) if person.hair != "bald" else covered
    colour = skin + covered[..., None] * (hair - skin)
    if person.hat != "none":
        edge = 0.35 if person.hat == "cap" else 0.18
        worn = _steep((rise - edge) * 4)[..., None]
        colour = colour + worn * (_cloth(patch, person.accessory, pose, sensor) - colour)
    eyes = np.exp(-(((np.abs(left) - 0.38) / 0.13) ** 2) - ((rise - 0.08) / 0.12) ** 2)
    mouth = np.exp(-((left / 0.28) ** 2) - ((rise + 0.52) / 0.09) ** 2)
    marks = np.where(forward > 0.1, 0.7 * eyes + 0.45 * mouth, 0.0)
    return np.asarray(colour * (1.0 - (0.25 if sensor is Sensor.THERMAL else 1.0) * marks[..., None]), np.float32)


def _blend(canvas: Plane, patch: _Patch, colour: Plane) -> None:
    area = canvas[patch.rows, patch.columns]
    area += patch.cover[..., None] * (colour - area)


def _shadow(canvas: Plane, person: Person, view: View, sensor: Sensor) -> None:
    """Darken the floor under the feet; a thermal camera sees none."""
    if sensor is Sensor.THERMAL:
        return
    wide, high = 0.2 * view.scale, 0.035 * view.scale
    top, bottom = max(0, int(view.floor - 4 * high)), min(canvas.shape[0], int(view.floor + 4 * high) + 1)
    x = (np.arange(canvas.shape[1], dtype=np.float32)[None, :] - view.column) / np.float32(wide)
    y = (np.arange(top, bottom, dtype=np.float32)[:, None] - view.floor) / np.float32(high)
    canvas[top:bottom] *= (1.0 - 0.5 * np.exp(-(x**2) - y**2))[..., None].astype(np.float32)
