"""Say on one page what a run achieved, what it gets wrong, and how it was made."""
