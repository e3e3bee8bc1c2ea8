"""The numbers: feature extractors, Fréchet distance, class accuracy."""
