"""Self-distilled diffusion, rebuilt row by row: DSD, SSD / iSSD, SiD / SiDA."""

__version__ = "0.1.0"
