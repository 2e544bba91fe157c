"""Where people walk: a camera's place, light, colours and faults, and the pictures it takes.

A place is painted once, as it looks in each light, as a strip a few pictures wide; a picture is a window of the strip.
Cameras in one room share it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from cloister.simulations.worlds.reid_body import Pose
from cloister.simulations.worlds.reid_people import Person
from cloister.simulations.worlds.reid_picture import Plane, Sensor, View, paint

PLACES = ("room", "corridor", "gate", "garden", "passage")


@dataclass(frozen=True)
class Camera:
    """One camera's habits. ``yaw`` is the way most people face it; ``cast`` multiplies the three channels."""

    name: str
    place: str
    room: str
    sensors: tuple[Sensor, ...]
    yaw: float
    tilt: float
    zoom: float
    cast: tuple[float, float, float]
    exposure: float
    contrast: float
    light: tuple[float, float, float]
    ambient: float
    blur: float
    noise: float


def draw_camera(
    generator: np.random.Generator, name: str, place: str, room: str, sensors: tuple[Sensor, ...], yaw: float
) -> Camera:
    """Return a camera with habits of its own; cameras of one ``room`` share the background."""
    outdoors = place in ("gate", "garden", "passage")
    warm = float(generator.uniform(-0.16, 0.16))
    green = float(generator.uniform(-0.06, 0.06))
    angle = float(generator.uniform(-1.0, 1.0))
    light = np.array((math.sin(angle), 0.55, 0.75))
    light /= np.linalg.norm(light)
    return Camera(
        name=name,
        place=place,
        room=room,
        sensors=sensors,
        yaw=yaw,
        tilt=float(generator.uniform(0.02, 0.28)),
        zoom=float(generator.uniform(0.95, 1.05)),
        cast=(1 + warm, 1 + green, 1 - warm),
        exposure=float(generator.uniform(0.92, 1.12) if outdoors else generator.uniform(0.78, 1.0)),
        contrast=float(generator.uniform(0.8, 1.05)),
        light=(float(light[0]), float(light[1]), float(light[2])),
        ambient=float(generator.uniform(0.45, 0.6) if outdoors else generator.uniform(0.3, 0.5)),
        blur=float(generator.uniform(0.0, 0.45)),
        noise=float(generator.uniform(0.008, 0.025)),
    )


def take(
    camera: Camera,
    sensor: Sensor,
    strip: Plane,
    person: Person,
    generator: np.random.Generator,
    height: int,
    width: int,
    away: float,
) -> Image.Image:
    """Return one picture, RGB ``height`` x ``width``: the person in a walking pose before a window of ``strip``.

    With probability ``away`` the person walks the other way.
    """
    turn = camera.yaw + float(generator.normal(0.0, 0.3)) + (math.pi if generator.random() < away else 0.0)
    pose = Pose(float(generator.uniform(0, 2 * math.pi)), turn)
    view = View(
        scale=height * 0.83 * camera.zoom * float(generator.uniform(0.96, 1.04)),
        column=width * float(generator.uniform(0.44, 0.56)),
        floor=height * float(generator.uniform(0.93, 0.965)),
        tilt=camera.tilt,
        light=camera.light if sensor is Sensor.VISIBLE else (0.0, 0.25, 0.968),
        ambient=camera.ambient if sensor is Sensor.VISIBLE else 0.35,
    )
    left = int(generator.integers(0, strip.shape[1] - width + 1))
    canvas = strip[:, left : left + width].copy()
    paint(canvas, person, pose, view, sensor)
    return _expose(canvas, camera, sensor, generator)


def _expose(canvas: Plane, camera: Camera, sensor: Sensor, generator: np.random.Generator) -> Image.Image:
    height, width = canvas.shape[:2]
    gain = camera.exposure * float(generator.uniform(0.88, 1.12))
    if sensor is Sensor.VISIBLE:
        picture: Plane = canvas * np.array(camera.cast, np.float32) * np.float32(gain)
        blur, noise = camera.blur, camera.noise
    else:
        # The lamp sits beside the lens: bright in the middle, dark to the rims. A thermal camera needs no lamp.
        x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        lamp = 1.0 - (0.3 if sensor is Sensor.NEAR_INFRARED else 0.0) * (x**2 + y**2) / 2
        picture = canvas * (lamp * np.float32(gain))[..., None]
        blur, noise = camera.blur + (0.15 if sensor is Sensor.NEAR_INFRARED else 0.3), 1.4 * camera.noise
    picture = 0.5 + (picture - 0.5) * np.float32(camera.contrast)
    grain = generator.standard_normal(canvas.shape if sensor is Sensor.VISIBLE else (height, width, 1), np.float32)
    softened = _soften(picture, blur * height / 96)
    return Image.fromarray(_bytes(softened + np.float32(noise) * grain))


def _soften(picture: Plane, radius: float) -> Plane:
    if radius < 0.05:
        return picture
    blurred = Image.fromarray(_bytes(picture)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(blurred, np.float32) / np.float32(255)


def _bytes(picture: Plane) -> NDArray[np.uint8]:
    return np.asarray(np.clip(picture, 0.0, 1.0) * 255 + 0.5, np.uint8)


def backdrop(place: str, generator: np.random.Generator, sensor: Sensor, height: int, width: int) -> Plane:
    """Return a place as float32 ``[height, 4 * width, 3]`` in [0, 1]; the same generator state gives the same place.

    Indoors a wall with panels and a skirting over tiles; outdoors bars, bricks or leaves over asphalt. Leaves are
    bright in the near infrared; in the thermal band everything is cool and smooth.
    """
    wide = 4 * width
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(0, 4, wide, dtype=np.float32)[None, :]
    horizon = float(generator.uniform(0.62, 0.78))
    colours = generator.uniform(0.4, 0.65, 3)[:, None] + generator.uniform(-0.08, 0.08, (3, 3))
    reflect = generator.uniform(0.3, 0.5, 3)
    coarse, fine = _cloud(generator, height, wide, 9), _cloud(generator, height, wide, 2)
    period, shift = float(generator.uniform(0.35, 0.7)), float(generator.uniform(0, 1))
    wall = _wall(place, rows / horizon, columns, period, shift, coarse, fine)
    depth = np.maximum(rows - horizon, 1e-3) / (1 - horizon)
    tiles = np.maximum(_line((columns - 2) / (0.35 + depth), 0.5, 0.03), _line(np.sqrt(depth), 0.28, 0.05))
    floor = (0.55 * tiles if place in ("room", "corridor") else 0.5 * fine) + 0.25 * coarse
    ground = _smooth((rows - horizon) * height)
    if sensor is Sensor.VISIBLE:
        leaves = np.array((0.30, 0.44, 0.24))
        colours[0] = leaves if place == "garden" else colours[0]
        picture = _layers(wall, floor, ground, colours.astype(np.float32))
    else:
        bright = np.array((0.75 if place == "garden" else reflect[0], reflect[1], reflect[2]))
        if sensor is Sensor.THERMAL:
            bright = 0.12 + 0.1 * reflect
            wall, floor = 0.4 * wall, 0.4 * floor
        picture = _layers(wall, floor, ground, np.repeat(bright[:, None], 3, axis=1).astype(np.float32))
        picture *= np.float32(0.8)
    return np.asarray(np.clip(picture, 0, 1), np.float32)


def _wall(place: str, rise: Plane, columns: Plane, period: float, shift: float, coarse: Plane, fine: Plane) -> Plane:
    flat = np.zeros_like(rise + columns)
    match place:
        case "room":
            board = (
                _smooth(((columns + shift) % 1.3 - 0.55) * 60)
                * _smooth((rise - 0.25) * 60)
                * _smooth((0.8 - rise) * 60)
            )
            return 0.45 * board + _line(rise + 0 * columns, 1.0, 0.03) * 0.5 + 0.15 * coarse
        case "corridor":
            return 0.4 * _line(columns + shift, period, 0.08) + 0.3 * _smooth((rise - 0.55) * 40) + 0.15 * coarse
        case "gate":
            bars: Plane = _line(columns + shift, 0.22, 0.25) * _smooth((rise - 0.12) * 50)
            return np.asarray(0.55 * bars + 0.2 * coarse, np.float32)
        case "garden":
            return np.asarray(0.35 * fine + 0.45 * coarse + flat, np.float32)
        case _:
            bricks: Plane = _line(columns * 6 + 0.5 * np.floor(rise * 14), 1.0, 0.08)
            joints: Plane = np.maximum(_line(rise * 14 + flat, 1.0, 0.12), bricks)
            return np.asarray(0.35 * joints + 0.2 * fine, np.float32)


def _layers(wall: Plane, floor: Plane, ground: Plane, colours: Plane) -> Plane:
    upper = colours[0] * (1.05 - wall[..., None])
    lower = colours[1] * (1.0 - floor[..., None])
    return np.asarray(upper + ground[..., None] * (lower - upper), np.float32)


def _line(value: Plane, period: float, share: float) -> Plane:
    """Return 1 on regularly spaced lines that take ``share`` of each ``period``, else 0."""
    return np.asarray((value / period) % 1.0 < share, np.float32)


def _smooth(value: Plane) -> Plane:
    return np.asarray(np.clip(0.5 + value, 0.0, 1.0), np.float32)


def _cloud(generator: np.random.Generator, height: int, width: int, grain: int) -> Plane:
    """Return smooth noise in [0, 1] with blobs of about ``grain`` 96ths of the height."""
    step = max(1, grain * height // 96)
    small = generator.random((height // step + 2, width // step + 2), np.float32)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(image, np.float32), 0, 1)
