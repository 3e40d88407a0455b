"""Comparisons: the cells of a plan, run one after another, each leaving its record."""
