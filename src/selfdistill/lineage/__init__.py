"""DVC's files, made from what Kedro knows."""
