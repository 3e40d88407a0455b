"""What a trained model's loss looks like around its weights: computed, stored, drawn elsewhere."""
