"""Images: where they come from, the decoded store, and batches as functions of (seed, epoch, step)."""
