"""Heterogeneous feature ensembles for visual anomaly detection: many frozen eyes, fused into one verdict."""

__version__ = "0.1.0"
__all__ = ["__version__"]
