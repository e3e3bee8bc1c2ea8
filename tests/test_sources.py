"""What code a stage runs, and what changes its fingerprint."""

import ast
from importlib.metadata import version

import pytest

from selfdistill import sources
from selfdistill.methods.known import METHODS, NETWORKS
from selfdistill.methods.registry import code_of
from selfdistill.sources import (
    JUNCTIONS,
    MACHINERY,
    Code,
    read_pins,
    without_remarks,
)

STAGES = ("preprocess", "features", "latents", "train", "sample", "evaluate", "report", "export")


def write_package(root, files):
    for name, text in files.items():
        file = root / "package" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    sources._imports.cache_clear()
    return root


def test_a_modules_code_is_what_it_imports_at_any_depth_and_in_functions_too(tmp_path):
    root = write_package(
        tmp_path,
        {
            "start.py": "import numpy as np\nfrom package.a import thing\n"
            "def late():\n    from package.deep import below\n",
            "a.py": "import package.b\n",
            "b.py": "import torch.nn as nn\nfrom package import start\n",
            "deep/__init__.py": "",
            "deep/below.py": "x = 1",
            "unrelated.py": "",
        },
    )
    code = Code(["package.start"], root)
    assert code.modules == ["package.a", "package.b", "package.deep.below", "package.start"]
    assert code.packages == {"numpy", "torch"}


def test_imports_for_type_checkers_alone_do_not_count(tmp_path):
    root = write_package(
        tmp_path,
        {
            "start.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
            "    import package.types\nelse:\n    import package.real\n",
            "types.py": "",
            "real.py": "",
        },
    )
    assert Code(["package.start"], root).modules == ["package.real", "package.start"]


SOURCE = '''"""Module."""

import os  # the system


def f(x):
    """What f does.

    At length.
    """
    # doubled
    text = "# no remark"
    return 2 * x, text, os
'''


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("At length", "Briefly", False),
        ("    At length.\n", "", False),
        ('At length.\n    """', 'At length."""; x = 2', True),
        ("# doubled", "# twice", False),
        ("    # doubled\n", "\n\n", False),
        ("  # the system", "", False),
        ("# no remark", "# a remark", True),
        ("2 * x", "3 * x", True),
        ("def f", "def g", True),
        ('"""Module."""', "ä = 1", True),
    ],
)
def test_a_fingerprint_changes_with_the_code_and_not_with_its_remarks(old, new, changes):
    edited = SOURCE.replace(old, new)
    assert edited != SOURCE
    assert (without_remarks(edited) != without_remarks(SOURCE)) == changes


def test_what_is_left_of_our_modules_is_the_same_program():
    num_compared = 0
    for file in sorted(sources._ROOT.rglob("selfdistill/**/*.py")):
        source = file.read_text()
        try:
            rest = ast.parse(without_remarks(source))
        except SyntaxError:  # a class of a docstring alone is none without it
            continue
        assert _without_docstrings(rest) == _without_docstrings(ast.parse(source)), file
        num_compared += 1
    assert num_compared > 80, num_compared


def _without_docstrings(tree):
    for node in ast.walk(tree):
        if sources._docstring(node):
            del node.body[0]
    return ast.dump(tree)


def test_a_rows_code_has_its_own_method_and_network_and_no_stage_names_them(monkeypatch):
    for stage in STAGES:
        if stage != "export":  # releases are of DSD
            modules = Code([f"selfdistill.pipelines.{stage}.nodes"]).modules
            named = {module for module, _ in [*METHODS.values(), *NETWORKS.values()]}
            assert not named & set(modules), stage
    row = Code(["selfdistill.pipelines.train.nodes", *code_of("dsd_vit", "dsd")])
    deciding = (
        "methods.dsd", "methods.registry", "networks.lpips", "distributed.world", "determinism",
        "pipelines.train.job",
    )  # fmt: skip
    assert {f"selfdistill.{module}" for module in deciding} <= set(row.modules)
    assert not (JUNCTIONS | MACHINERY) & set(row.modules)


def test_every_name_that_is_left_out_is_a_module():
    for module in JUNCTIONS | MACHINERY:
        assert sources._file(module, sources._ROOT).is_file(), module


def test_junctions_hold_nothing_but_names():
    """A class or function of one method in there would belong to no row."""
    for module in JUNCTIONS - {"selfdistill.methods.known"}:
        tree = ast.parse(sources._file(module, sources._ROOT).read_text())
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        assert [ast.unparse(node.bases[0])[:9] for node in classes] == ["RootModel"], module
        assert not [node for node in tree.body if isinstance(node, ast.FunctionDef)], module
    known = ast.parse(sources._file("selfdistill.methods.known", sources._ROOT).read_text())
    for node in known.body[1:]:
        assert isinstance(node, ast.Assign)
        ast.literal_eval(node.value)


def test_pins_are_those_for_this_python(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "numpy==2.4 ; python_full_version < '3.1'\nnumpy==2.5 ; python_full_version >= '3.1'\n"
        "Pillow==13.0.0\n# a remark\n"
    )
    assert read_pins(lock) == {"numpy": "2.5", "pillow": "13.0.0"}


def test_a_record_names_modules_and_pinned_packages_and_refuses_what_is_not_pinned_so(tmp_path):
    root = write_package(tmp_path, {"start.py": "import numpy, json, tqdm\nimport PIL\n"})
    code = Code(["package.start"], root)
    pins = {"numpy": version("numpy"), "pillow": version("pillow"), "torch": "0.1"}
    record = code.record(pins)
    assert record["packages"] == {name: pins[name] for name in ("numpy", "pillow")}
    assert record["modules"].keys() == {"package.start"}
    with pytest.raises(ValueError, match=r"pillow: imported by src, but not in requirements\.lock"):
        code.record({"numpy": pins["numpy"]})
    with pytest.raises(ValueError, match=r"numpy .* is installed, requirements\.lock pins 0\.1"):
        code.record(pins | {"numpy": "0.1"})
    missing = Code(["package.other"], write_package(tmp_path, {"other.py": "import nowhere\n"}))
    with pytest.raises(ValueError, match="nowhere: imported by src, but not installed"):
        missing.record({})


def test_a_fingerprint_changes_with_what_is_imported_and_its_name_and_nothing_else(tmp_path):
    def now() -> str:
        return Code(["package.start"], tmp_path).fingerprint()

    write_package(tmp_path, {"start.py": "import package.a", "a.py": "1", "other.py": "2"})
    before = now()
    write_package(tmp_path, {"other.py": "3", "notes.txt": "4", "a.py": "1  # a remark"})
    assert now() == before
    seen = {before}
    for text in ("10", "import package.other"):
        write_package(tmp_path, {"a.py": text})
        seen.add(now())
    write_package(tmp_path, {"other.py": "5"})
    seen.add(now())
    (tmp_path / "package" / "other.py").rename(tmp_path / "package" / "b.py")
    write_package(tmp_path, {"a.py": "import package.b"})
    seen.add(now())
    assert len(seen) == 5
