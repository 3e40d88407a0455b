"""What is here, what works and what does not: for bug reports, and before a run of days."""
