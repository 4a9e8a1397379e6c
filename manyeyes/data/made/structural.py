"""Structural made defects: the surface is wrong somewhere on the part.

Strength 0 is faint, 1 is plain; the size is drawn apart from it.
"""

from __future__ import annotations

import cv2
import numpy as np

from manyeyes.data.made.contract import Mask, Picture, Subject
from manyeyes.data.made.shapes import Array, blend, blob, place, soft, strip
from manyeyes.data.synthesize.material import smooth_noise

Spoilt = tuple[Picture, Mask]


def cut_paste(subject: Subject, strength: float, rng: np.random.Generator) -> Spoilt:
    """Another place of this picture, or of another good one, pasted in turned."""
    mask = blob(subject.part, rng, (0.001, 0.05))
    alpha = soft(mask, _edge(subject, rng)) * (0.4 + 0.6 * strength)
    return blend(subject.picture, _elsewhere(subject, mask, rng), alpha), mask


def scar(subject: Subject, strength: float, rng: np.random.Generator) -> Spoilt:
    """A thin stroke of another place's surface, or lighter or darker than the part."""
    mask = strip(subject.part, rng)
    foreign = rng.random() < 0.4
    over = _elsewhere(subject, mask, rng) if foreign else _tinted(subject, mask, 25 + 110 * strength, rng)
    return blend(subject.picture, over, soft(mask, rng.uniform(0, 0.8)) * (0.5 + 0.5 * strength)), mask


def texture(subject: Subject, strength: float, rng: np.random.Generator) -> Spoilt:
    """Foreign texture (grain, clouds or stripes) in a ragged spot."""
    h, w = subject.part.shape
    mask = blob(subject.part, rng)
    channels = 1 if subject.is_grey else 3
    kind = rng.integers(3)
    if kind == 0:
        pattern = [rng.standard_normal((h, w), dtype=np.float32)] * channels
    elif kind == 1:
        cells = int(rng.integers(8, 64))
        pattern = [smooth_noise(rng, (h, w), (min(cells, h), min(cells, w))) for _ in range(channels)]
    else:
        angle, period = rng.uniform(0, np.pi), max(h, w) * rng.uniform(0.008, 0.04)
        y, x = np.mgrid[:h, :w].astype(np.float32)
        stripes = np.sqrt(2) * np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
        pattern = [stripes.astype(np.float32) * factor for factor in rng.uniform(0.4, 1, channels)]
    values = np.stack(pattern * (3 // channels), axis=-1)
    colour = subject.picture[place(mask, rng)].astype(np.float32)
    over = colour + rng.uniform(20, 60) * values + (_tint(subject, rng) * rng.uniform(0, 40))
    return blend(subject.picture, over, soft(mask, _edge(subject, rng)) * (0.2 + 0.8 * strength)), mask


def blur(subject: Subject, strength: float, rng: np.random.Generator) -> Spoilt:
    """A spot out of focus, or smeared in one direction."""
    mask = blob(subject.part, rng, (0.003, 0.06))
    reach = max(subject.part.shape) * (0.006 + 0.03 * strength)
    if rng.random() < 0.5:
        over = cv2.GaussianBlur(subject.picture, (0, 0), reach)
    else:
        size = max(3, 2 * round(1.5 * reach) + 1)
        kernel = np.zeros((size, size), np.float32)
        angle = rng.uniform(0, np.pi)
        middle, reach_x, reach_y = size // 2, np.cos(angle) * size / 2, np.sin(angle) * size / 2
        ends = [(round(middle - reach_x), round(middle - reach_y)), (round(middle + reach_x), round(middle + reach_y))]
        cv2.line(kernel, ends[0], ends[1], 1.0)
        over = cv2.filter2D(subject.picture, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)
    return blend(subject.picture, over, soft(mask, _edge(subject, rng))), mask


def colour(subject: Subject, strength: float, rng: np.random.Generator) -> Spoilt:
    """A spot lighter, darker or of another hue, its surface still visible."""
    mask = blob(subject.part, rng)
    over = _tinted(subject, mask, 12 + 90 * strength, rng)
    return blend(subject.picture, over, soft(mask, _edge(subject, rng))), mask


def _edge(subject: Subject, rng: np.random.Generator) -> float:
    """Softness of a defect's edge in px: hard to one percent of the longer side."""
    return float(rng.uniform(0, 0.01) * max(subject.part.shape))


def _elsewhere(subject: Subject, mask: Mask, rng: np.random.Generator) -> Array:
    """A good picture, turned and shifted so that another place of the part lies under the mask."""
    source = subject.donor if rng.random() < 0.5 else subject.picture
    rows, columns = np.nonzero(mask)
    y, x = rows.mean(), columns.mean()
    from_y, from_x = place(subject.part, rng)
    turn = cv2.getRotationMatrix2D((float(from_x), float(from_y)), rng.uniform(0, 360), np.exp(rng.uniform(-0.3, 0.3)))
    turn[:, 2] += (x - from_x, y - from_y)
    size = (mask.shape[1], mask.shape[0])
    return cv2.warpAffine(source, turn, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def _tint(subject: Subject, rng: np.random.Generator) -> Array:
    """A direction in colour space, the largest channel 1 or -1; grey pictures get a grey one."""
    if subject.is_grey or rng.random() < 0.4:
        return np.full(3, rng.choice((-1.0, 1.0)), np.float32)
    direction = rng.uniform(-1, 1, 3)
    return np.asarray(direction / np.abs(direction).max(), np.float32)


def _tinted(subject: Subject, mask: Mask, amount: float, rng: np.random.Generator) -> Array:
    """The picture with a colour added, away from what is already black or white there."""
    tint = _tint(subject, rng)
    mean = subject.picture[mask].mean(axis=0)
    room = np.where(tint > 0, 255 - mean, mean)
    if (room * np.abs(tint)).max() < amount:
        tint = -tint
    return np.clip(subject.picture + amount * tint, 0, 255)
