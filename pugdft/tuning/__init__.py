"""Options chosen on held-out images: a search, its trials, and the comparison that they end in."""
