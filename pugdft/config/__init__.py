"""The recipe: its schema, its files, and YAML."""
