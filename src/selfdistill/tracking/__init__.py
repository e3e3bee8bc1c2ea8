"""MLflow is told of each row's run, by a process of its own, and nothing waits for it."""
