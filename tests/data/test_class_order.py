import subprocess
import sys
from pathlib import Path

import pytest
from timm.data import ImageNetInfo

from selfdistill.data.class_order import check_imagenet_order

SOURCE = Path(__file__).parents[2] / "src"
IMAGENET = ImageNetInfo("imagenet-1k")
WORDNET_IDS = list(IMAGENET.label_names())
DESCRIPTIONS = [IMAGENET.index_to_description(label) for label in range(1000)]
HUGGING_FACE = [*DESCRIPTIONS[:517], "crane2", *DESCRIPTIONS[518:]]


def swapped(names: list[str], one: int, other: int) -> list[str]:
    names = list(names)
    names[one], names[other] = names[other], names[one]
    return names


@pytest.mark.parametrize(
    "names",
    [
        WORDNET_IDS,
        DESCRIPTIONS,
        HUGGING_FACE,
        [name.upper().replace("'", "").replace("-", " ") for name in HUGGING_FACE],
        [name if k == 639 else name.partition(",")[0] for k, name in enumerate(HUGGING_FACE)],
    ],
    ids=["wordnet ids", "descriptions", "Hugging Face", "other spelling", "first terms"],
)
def test_standard_order_passes(names):
    check_imagenet_order(names)


def test_ends_are_tench_and_toilet_tissue():
    assert (WORDNET_IDS[0], WORDNET_IDS[999]) == ("n01440764", "n15075141")
    assert DESCRIPTIONS[0].startswith("tench")
    assert DESCRIPTIONS[999].startswith("toilet tissue")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (WORDNET_IDS[:7] + WORDNET_IDS[8:], "the 999 classes .*: missing: 'n01514668'; name"),
        ([*WORDNET_IDS, "test"], "the 1001 classes .*: unknown or twice: 'test'; name"),
        (
            [*WORDNET_IDS[:7], "cock", *WORDNET_IDS[8:]],
            "missing: 'n01514668'; unknown or twice: 'cock'; name",
        ),
        (
            [WORDNET_IDS[1], *WORDNET_IDS[1:]],
            "missing: 'n01440764'; unknown or twice: 'n01443537'; name",
        ),
        (swapped(WORDNET_IDS, 7, 9), "class 7 is 'n01518878', but 'n01514668' in ImageNet's order"),
        (HUGGING_FACE[:99] + HUGGING_FACE[100:], "the 999 classes .*: missing: 'goose'; name"),
        (swapped(HUGGING_FACE, 134, 517), "class 134 is 'crane2', but 'crane'"),
        (swapped(DESCRIPTIONS, 638, 639), "class 638 is 'maillot, tank suit', but 'maillot'"),
        (sorted(DESCRIPTIONS), "class 0 is 'Afghan hound, Afghan', but 'tench, Tinca tinca'"),
        ([str(label) for label in range(1000)], r"unknown or twice: '0', .*\(1000 in all\)"),
        ([], "the 0 classes .* missing: .*1000 in all"),
    ],
)
def test_first_class_that_differs_is_named_with_the_remedy(names, message):
    with pytest.raises(ValueError, match=message):
        check_imagenet_order(names)


def test_torch_is_not_imported():
    program = (
        "import sys\n"
        "from selfdistill.data.class_order import check_imagenet_order\n"
        "try: check_imagenet_order([])\n"
        "except ValueError: assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": str(SOURCE)})
