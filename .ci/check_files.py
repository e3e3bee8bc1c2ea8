"""Check the files named on the command line: YAML and TOML parse, nothing exceeds 500 kB."""

import sys
import tomllib
from pathlib import Path

import yaml

MAX_BYTES = 500_000


def complaint(path: Path) -> str | None:
    """Return what is wrong with a file, or None."""
    if path.stat().st_size > MAX_BYTES:
        return f"{path.stat().st_size} bytes; more than {MAX_BYTES} do not belong in git"
    try:
        if path.suffix in {".yml", ".yaml"}:
            yaml.safe_load(path.read_text(encoding="utf-8"))
        elif path.suffix == ".toml":
            tomllib.loads(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, tomllib.TOMLDecodeError) as error:
        return str(error)
    return None


if __name__ == "__main__":
    found = {name: complaint(Path(name)) for name in sys.argv[1:]}
    sys.exit("\n".join(f"{name}: {what}" for name, what in found.items() if what) or None)
