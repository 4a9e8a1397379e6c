"""Gaussian: the Mahalanobis distance of an image's pooled features from those of the normal images.

Source: the unpicturable branch of PUAD (Sugawara and Imamura, ICIP 2024, arXiv 2402.15143); covariance by Ledoit and
Wolf, 2004, which stays invertible with fewer images than channels. The score is the square root of the quadratic form.
We differ: any pooled vector, not only a student's; optionally each channel is divided by its deviation first, because
the shrinkage target is a multiple of the identity and therefore depends on the channels' scales.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from manyeyes.config import Config
from manyeyes.errors import DataError, ShapeError
from manyeyes.heads.contract import VectorHead

Shrinkage = Literal["ledoit-wolf", "oas"] | Annotated[float, Field(ge=0, le=1)]
RESOLUTION = float(np.finfo(np.float32).eps)


class GaussianConfig(Config):
    reads: ClassVar[Literal["vector"]] = "vector"
    kind: Literal["gaussian"] = "gaussian"
    shrinkage: Shrinkage = Field(
        "ledoit-wolf", description="How far the covariance moves to a multiple of the identity: a rule, or 0 to 1."
    )
    standardise: bool = Field(False, description="Divide each channel by its standard deviation before shrinking.")

    def build(self, channels: int) -> Gaussian:
        return Gaussian(self, channels)


class Gaussian(VectorHead):
    """Mahalanobis distance to the mean of the normal images, under a shrunk covariance.

    Shapes: vectors (b, c) -> (b,) float32; ``mean_`` (c,) and ``whitening_`` (c, c) float64.
    Units:  standard deviations; a typical normal image scores about sqrt(c).
    Raises: DataError with fewer than two images or values that are not finite; ShapeError if c is not ``channels``;
            NotFittedError before ``fit``.
    Source: PUAD, section 3. Equals sklearn LedoitWolf.mahalanobis, square-rooted (tests/heads/test_gaussian.py).
    """

    mean_: Tensor
    whitening_: Tensor

    def __init__(self, config: GaussianConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.channels = channels
        self.declare("mean_", "whitening_")

    @torch.no_grad()
    def fit(self, vectors: Iterable[Tensor], seed: int) -> Self:
        """Holds all vectors, n x c. Nothing is random: ``seed`` is not used."""
        del seed
        batches = [self._checked(batch) for batch in vectors]
        images = sum(len(batch) for batch in batches)
        if images < 2:
            raise DataError(
                f"gaussian: expected at least 2 normal images to see how they vary, got {images}; add images"
            )
        stacked = torch.cat(batches)
        finite = stacked.isfinite().all(dim=1)
        if not bool(finite.all()):
            image = int(finite.logical_not().nonzero()[0])
            raise DataError(
                f"gaussian: pooled features of training image {image} (counted from 0): expected finite values, "
                "got NaN or infinity; look for a broken image or broken weights"
            )
        mean, whitening = fit_gaussian(stacked.cpu().numpy(), self.config.shrinkage, self.config.standardise)
        self.mean_ = torch.from_numpy(mean).to(stacked.device)
        self.whitening_ = torch.from_numpy(whitening).to(stacked.device)
        return self

    @torch.no_grad()
    def score(self, vectors: Tensor) -> Tensor:
        self.require_fit()
        white = (self._checked(vectors) - self.mean_) @ self.whitening_.T
        distances: Tensor = torch.linalg.vector_norm(white, dim=1)
        return distances.clamp(max=torch.finfo(torch.float32).max).float()

    def _checked(self, vectors: Tensor) -> Tensor:
        if vectors.ndim != 2 or vectors.shape[1] != self.channels:
            raise ShapeError(f"gaussian: expected vectors (b, {self.channels}), got {tuple(vectors.shape)}")
        return vectors.double()


def fit_gaussian(
    vectors: NDArray[np.float64], shrinkage: Shrinkage, standardise: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean, and the lower triangular matrix W for which |W (x - mean)| is the Mahalanobis distance.

    Shapes: (n, c) -> (c,), (c, c).
    """
    from scipy.linalg import solve_triangular

    mean = vectors.mean(axis=0)
    scale = vectors.std(axis=0) if standardise else np.ones_like(mean)
    scale = np.where(scale > RESOLUTION * np.abs(mean), scale, 1.0)
    covariance = shrunk_covariance((vectors - mean) / scale, shrinkage)
    # Features are float32: deviations below their resolution are noise, and the floor keeps any covariance invertible.
    magnitude = float(np.trace(covariance) + np.square(mean / scale).max())
    covariance[np.diag_indices_from(covariance)] += RESOLUTION**2 * (magnitude or 1.0)
    lower = np.linalg.cholesky(covariance)
    return mean, np.ascontiguousarray(solve_triangular(lower, np.diag(1 / scale), lower=True))


def shrunk_covariance(centred: NDArray[np.float64], shrinkage: Shrinkage) -> NDArray[np.float64]:
    """Maximum-likelihood covariance, moved towards its mean variance times the identity. Shapes: (n, c) -> (c, c)."""
    from sklearn import covariance as sk

    if shrinkage == "ledoit-wolf":
        value: Any = sk.ledoit_wolf(centred, assume_centered=True)[0]
    elif shrinkage == "oas":
        value = sk.oas(centred, assume_centered=True)[0]
    else:
        value = sk.shrunk_covariance(sk.empirical_covariance(centred, assume_centered=True), shrinkage)
    return np.array(value, dtype=np.float64)
