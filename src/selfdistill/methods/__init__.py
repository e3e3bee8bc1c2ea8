"""Training algorithms: one paper a file."""
