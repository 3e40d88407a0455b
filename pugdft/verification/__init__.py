"""Whether a record tells the truth: its weights evaluated again, its recipe run again."""
