"""Who runs the cells of a comparison."""
