"""What runs, in order: preprocess, features, train, sample, evaluate, report."""
