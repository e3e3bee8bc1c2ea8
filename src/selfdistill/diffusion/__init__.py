"""The mathematics of diffusion: paths, guidance, solvers."""
