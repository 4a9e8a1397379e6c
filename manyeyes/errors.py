"""Every error that manyeyes raises on purpose; the command line prints each in one line and exits with code 2.

A message says what was expected, what came, and what to do about it.
"""


class ManyeyesError(Exception):
    """Base of all errors that a user can mend."""


class ConfigError(ManyeyesError):
    """A config, preset or override is broken: names the file, the field and what is allowed."""


class DataError(ManyeyesError):
    """An image, mask, image set or array cannot be used: names the file and the reason."""


class WeightsError(ManyeyesError):
    """Trunk weights are missing, truncated or of another network: says what was tried."""


class ShapeError(ManyeyesError):
    """A tensor's shape is not the one declared."""


class NotFittedError(ManyeyesError):
    """Something was used before ``fit`` or ``load``."""


class RunError(ManyeyesError):
    """A run folder cannot be written, read or resumed."""
