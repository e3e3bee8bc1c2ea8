"""Architectures: one a file. A network knows no loss, device, checkpoint or rank."""
