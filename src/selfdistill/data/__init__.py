"""Images and tensors on disk: readers of raw sources, crops, shards, the training loader."""
