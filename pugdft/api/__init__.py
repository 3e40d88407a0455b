"""What ``import pugdft`` offers in Python, for scripts and notebooks."""
