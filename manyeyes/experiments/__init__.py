"""Experiments: measure an ensemble, compare many, judge new pictures, write the report."""
