"""`python -m selfdistill`: the `kedro` command, from anywhere inside the project."""

from kedro.framework.cli.cli import main

if __name__ == "__main__":
    main()
