"""The embedded default data set: brushed-metal flat connectors on black cloth, written in the MVTec LOCO layout.

LOCO's layout (Bergmann et al. 2022): train/good, validation/good, test/{good, logical_anomalies, structural_anomalies},
and for each defective picture a folder of masks, one region each, whose pixel value names its entry in
defects_config.json. Where we differ: parts.json beside it says in plain words what is wrong with each test picture.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from manyeyes.data.synthesize.camera import density_of
from manyeyes.data.synthesize.contract import Defect, Spot
from manyeyes.data.synthesize.defects import DEFECTS, GROUPS
from manyeyes.data.synthesize.geometry import SINK_RADIUS
from manyeyes.data.synthesize.scene import Image, Scene
from manyeyes.errors import ConfigError, RunError
from manyeyes.files import make_folder, reason_of, require_space

SIZE = (256, 320)
SMALLEST = 32
SPLITS = ("train/good", "validation/good", "test/good", *(f"test/{group}" for group in GROUPS))
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Part:
    """One picture to be taken: ``folder``/``number``.png. It depends on the seed and on these two alone."""

    folder: str
    number: int

    @property
    def image(self) -> str:
        return f"{self.folder}/{self.number:03d}.png"

    def mask(self, index: int) -> str:
        return f"ground_truth/{self.folder.removeprefix('test/')}/{self.number:03d}/{index:03d}.png"

    def kinds(self) -> tuple[type[Defect], ...]:
        """None on good parts; on defective ones the group's kinds in turn, and every fifth round two at once."""
        kinds = [kind for kind in DEFECTS if f"test/{kind.group}" == self.folder]
        if not kinds:
            return ()
        round_, turn = divmod(self.number, len(kinds))
        return (kinds[turn], kinds[(turn + 1) % len(kinds)]) if round_ % 5 == 3 else (kinds[turn],)

    def scene(self, seed: int, size: tuple[int, int] = SIZE) -> Scene:
        return Scene.draw((seed, SPLITS.index(self.folder), self.number), size)

    def defects(self, seed: int, scene: Scene) -> tuple[Defect, ...]:
        """What is wrong with this part. Strengths step by the golden ratio: a few already range wide."""
        rng = np.random.default_rng((seed, SPLITS.index(self.folder), self.number, 1))
        drawn: list[Defect] = []
        taken: tuple[Spot, ...] = ()
        for kind in self.kinds():
            round_ = self.number // (len(DEFECTS) // len(GROUPS))
            strength = (0.5 + GOLDEN * (round_ + DEFECTS.index(kind))) % 1
            drawn.append(kind.draw(rng, scene.plate, strength, taken))
            taken = (*taken, (drawn[-1].x, drawn[-1].y))
        return tuple(drawn)


def synthesize_flat_connector(
    out: str | Path,
    *,
    seed: int = 0,
    train: int = 60,
    validation: int = 15,
    test_good: int = 20,
    per_defect: int = 11,
    size: tuple[int, int] = SIZE,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw the image set into the new folder ``out`` and return it.

    ``size`` is (height, width) in pixels. Counts are pictures; ``per_defect`` is the number for each of the six kinds.
    ``progress(done, total)`` is called from the calling thread after each picture. The same seed gives the same bytes
    on the same machine, and a picture does not change when more are asked for. ``out`` appears whole or not at all.
    Raises: ConfigError if a count, the size or the seed is out of range; RunError if ``out`` is not empty, cannot be
            written, or the disk is full.
    """
    counts = {
        "train/good": train,
        "validation/good": validation,
        "test/good": test_good,
        **{f"test/{group}": per_defect * sum(kind.group == group for kind in DEFECTS) for group in GROUPS},
    }
    _check(counts, seed, size)
    parts = [Part(folder, number) for folder, count in counts.items() for number in range(count)]
    with whole_folder(out) as folder:
        require_space(folder, len(parts) * size[0] * size[1] * 3)
        for split, count in counts.items():
            (folder / split).mkdir(parents=True)
            if split.removeprefix("test/") in GROUPS:
                (folder / "ground_truth" / split.removeprefix("test/")).mkdir(parents=True)
            for number in range(count if "anomalies" in split else 0):
                (folder / Part(split, number).mask(0)).parent.mkdir()
        pool = ThreadPoolExecutor(max_workers=workers)
        try:
            drawing = [pool.submit(_write_part, folder, part, seed, size) for part in parts]
            for done, finished in enumerate(as_completed(drawing), 1):
                finished.result()
                if progress is not None:
                    progress(done, len(parts))
            table = [row for item in drawing if (row := item.result())]
        finally:
            # Also after an error or Ctrl-C: nobody may still write while the folder is being removed.
            pool.shutdown(cancel_futures=True)
        _write_text(folder / "defects_config.json", json.dumps(defects_config(size), indent=4) + "\n")
        _write_text(folder / "parts.json", json.dumps(table, indent=2) + "\n")
        _write_text(folder / "README.txt", _readme(seed, counts, per_defect, size))
    return Path(out)


def defects_config(size: tuple[int, int]) -> list[dict[str, Any]]:
    """LOCO's table for pictures of (height, width); saturation in mask pixels, or a share of the region if relative."""
    hole = np.pi * (SINK_RADIUS * density_of(size)) ** 2
    return [
        {
            "defect_name": kind.name,
            "pixel_value": kind.pixel_value,
            "saturation_threshold": 1.0 if kind.saturation_holes is None else round(kind.saturation_holes * hole),
            "relative_saturation": kind.saturation_holes is None,
        }
        for kind in DEFECTS
    ]


@contextmanager
def whole_folder(out: str | Path) -> Iterator[Path]:
    """Give a hidden folder beside ``out`` to fill; rename it to ``out`` if the body succeeds, else remove it.

    Only a process killed outright leaves the hidden folder, named .NAME.PID.part, behind; ``out`` is then absent.

    Raises: RunError if ``out`` holds anything already or cannot be written, with the way out.
    """
    try:
        # Resolved, so that "." and links to empty folders have a name and a neighbour too.
        out = Path(out).resolve()
        if out.exists():
            if not out.is_dir():
                raise RunError(f"{out}: expected a new or empty folder, found a file; choose another name")
            if any(out.iterdir()):
                raise RunError(f"{out}: expected a new or empty folder, found one in use; delete it or choose another")
        make_folder(out.parent)
        temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            yield temporary
            if out.is_dir():
                out.rmdir()
            temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise RunError(f"{out}: cannot be written: {reason_of(error)}") from error


def _write_part(folder: Path, part: Part, seed: int, size: tuple[int, int]) -> dict[str, Any]:
    """Take and write one picture with its masks; its row of the table, empty outside the test split."""
    scene = part.scene(seed, size)
    defects = part.defects(seed, scene)
    picture = scene.photograph(defects)
    _write_image(folder / part.image, picture.image)
    for index, mask in enumerate(picture.masks):
        _write_image(folder / part.mask(index), mask)
    if not part.folder.startswith("test/"):
        return {}
    regions = [
        {"mask": part.mask(index), "defect": defect.name, "strength": round(defect.strength, 3)}
        for index, defect in enumerate(defects)
    ]
    return {"image": part.image, "defect": "+".join(defect.name for defect in defects) or "good", "regions": regions}


def _write_image(path: Path, image: Image) -> None:
    _, encoded = cv2.imencode(".png", image)
    with open(path, "wb") as file:
        file.write(encoded.tobytes())
        file.flush()
        os.fsync(file.fileno())


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _check(counts: dict[str, int], seed: int, size: tuple[int, int]) -> None:
    for split, count in counts.items():
        if not 0 <= count <= 100_000:
            raise ConfigError(f"{split}: expected 0 to 100000 pictures, got {count}")
    if seed < 0:
        raise ConfigError(f"seed: expected a whole number from 0 up, got {seed}")
    if min(size) < SMALLEST or max(size) > 4096:
        raise ConfigError(f"size: expected height and width from {SMALLEST} to 4096 pixels, got {size[0]} x {size[1]}")


def _readme(seed: int, counts: dict[str, int], per_defect: int, size: tuple[int, int]) -> str:
    call = (
        f"synthesize_flat_connector(out, seed={seed}, train={counts['train/good']}, "
        f"validation={counts['validation/good']}, test_good={counts['test/good']}, "
        f"per_defect={per_defect}, size={size})"
    )
    listing = "\n".join(f"  {split:<28}{count}" for split, count in counts.items())
    return f"""Flat connectors: brushed-metal joining plates on black cloth, drawn by manyeyes.

Every picture is computed; none was photographed. Light, shadow, pose, brushing, stains, cloth, lens and sensor noise
vary from picture to picture and are no defects. The plate has eleven countersunk holes in rows of 4, 3 and 4.

Command:  manyeyes synthesize flat-connector --out DIR --seed {seed}
Exactly:  {call}
Seed:     {seed}
Size:     {size[1]} x {size[0]} pixels (width x height)
Pictures:
{listing}
  ({per_defect} for each of the six defects; a part of them shows two defects at once)

Layout: that of MVTec LOCO. Each file in ground_truth/<group>/<number>/ is one region; its pixel value picks the entry
in defects_config.json. parts.json lists each test picture with its defects and their strength (0 subtle, 1 plain).

Logical defects:     missing_hole, extra_hole, wrong_sized_hole
Structural defects:  damaged_edge, cut_corner, deep_scratch
Saturation areas:    a missing or extra hole counts as found once the area of one nominal hole is marked; a hole of the
                     wrong size, whose fault shows at the rim, once half of that is; structural damage in full.

Licence: CC0 1.0 (public domain dedication). The authors of manyeyes drew this set and waive all rights in it;
no third-party material is in it. https://creativecommons.org/publicdomain/zero/1.0/
"""
