"""Inputs that must be refused, by subject: each with what is to be said of it.

``case`` says what a case is and what holds for every one of them; ``files`` writes the good inputs that the
cases spoil. The other modules are tables. ``tests/test_bad_inputs.py`` runs all of it.
"""
