"""Use a trained model: predict images, evaluate on data."""
