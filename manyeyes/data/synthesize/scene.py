"""One part on its cloth under its lamp, fixed, so that its picture can be taken with defects and without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt

from manyeyes.data.synthesize.camera import OVERSAMPLING, Camera, Pose, density_of, draw_cloth, expose, place
from manyeyes.data.synthesize.contract import Defect
from manyeyes.data.synthesize.geometry import Array, Grid, Plate, shape_surface
from manyeyes.data.synthesize.material import Finish, Light, shade

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    image: Image
    """(H, W, 3), blue first as OpenCV writes it."""
    masks: tuple[Image, ...]
    """One (H, W) per defect: 0, and the defect's pixel value on its region."""


@dataclass(frozen=True)
class Scene:
    """All that varies from picture to picture, apart from defects."""

    size: tuple[int, int]
    grid: Grid
    plate: Plate
    light: Light
    finish: Finish
    pose: Pose
    camera: Camera
    cloth: Array

    @classmethod
    def draw(cls, seed: tuple[int, ...], size: tuple[int, int]) -> Self:
        """A good scene of (H, W) pixels. Each property has a stream of its own: a change to one leaves the others."""
        streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(6)]
        grid = Grid.over_plate(density_of(size) * OVERSAMPLING * 1.2)
        oversampled = (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING)
        return cls(
            size=size,
            grid=grid,
            plate=Plate.draw(streams[0]),
            light=Light.draw(streams[1]),
            finish=Finish.draw(streams[2], grid),
            pose=Pose.draw(streams[3]),
            camera=Camera.draw(streams[4]),
            cloth=draw_cloth(streams[5], oversampled, density_of(size) * OVERSAMPLING),
        )

    def photograph(self, defects: tuple[Defect, ...] = ()) -> Picture:
        """The picture of this scene with these defects; without any, of their good twin."""
        plate, carved = self.plate, []
        for defect in defects:
            plate = defect.drill(plate)
            cut = defect.carve(self.plate, self.grid)
            if cut is not None:
                carved.append(cut)
        surface = shape_surface(plate, self.grid, carved)
        for defect in defects:
            surface = defect.mar(self.plate, self.grid, surface)
        shaded = shade(surface, self.finish, self.light, self.pose.angle, self.grid)
        linear = place(shaded, surface.metal, self.cloth, self.light, self.pose, self.grid, self.size)
        return Picture(expose(linear, self.camera, self.size), tuple(self.mask(defect) for defect in defects))

    def mask(self, defect: Defect) -> Image:
        """(H, W): the defect's pixel value where at least half of a pixel is its region, at the picture's own pose."""
        inside = self.grid.coverage(defect.footprint(self.plate, self.grid))
        matrix = self.pose.matrix(self.grid, self.size, OVERSAMPLING)
        full = (self.size[1] * OVERSAMPLING, self.size[0] * OVERSAMPLING)
        turned = cv2.resize(
            cv2.warpAffine(inside, matrix, full, flags=cv2.INTER_LINEAR),
            self.size[::-1],
            interpolation=cv2.INTER_AREA,
        )
        return np.asarray((np.asarray(turned) >= 0.5) * defect.pixel_value, np.uint8)
