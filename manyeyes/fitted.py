"""Modules that learn from normal images: their fitted tensors are buffers, so that they move, save and load as one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from manyeyes.errors import NotFittedError


class Fitted(nn.Module):
    """A module whose fitted tensors are buffers named with a trailing underscore, None until ``fit`` sets them.

    Loading a state accepts any shape for these buffers, because their sizes are only known after a fit.
    """

    def declare(self, *names: str) -> None:
        """Declare fitted tensors, in ``__init__``. All are set by ``fit`` together."""
        for name in names:
            if not name.endswith("_"):
                raise ValueError(f"fitted tensor {name!r} must end in an underscore")
            self.register_buffer(name, None)

    @property
    def is_fitted(self) -> bool:
        return all(value is not None for name, value in self._buffers.items() if name.endswith("_"))

    def require_fit(self) -> None:
        """Raises: NotFittedError before ``fit`` or a load."""
        if not self.is_fitted:
            raise NotFittedError(f"{type(self).__name__} was used before fit; call fit or load a fitted state first")

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name in self._buffers:
            saved = state_dict.get(prefix + name)
            if name.endswith("_") and saved is not None:
                self._buffers[name] = saved.detach().clone()
        super()._load_from_state_dict(state_dict, prefix, *args)
