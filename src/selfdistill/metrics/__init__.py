"""The numbers: metrics, the extractors and moments behind them, training curves."""
