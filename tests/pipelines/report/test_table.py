import csv
import io
from html.parser import HTMLParser
from typing import Any

import pytest

from selfdistill.metrics.definitions import title_of
from selfdistill.pipelines.report.table import PAPERS, Table

PAPER = {
    "params": 205_000_000,
    "data": "imagenet_256",
    "num_samples": 50_000,
    "reference": "VIRTUAL.npz",
    "samplings": {
        "plain": {"fid": 4.25, "sfid": 8.96, "inception_score": 188.8},
        "guided": {"fid": 3.35, "sfid": 9.08, "inception_score": 254.7},
    },
}
TINY = {
    "metrics": {"fd_tiny": 12.3456, "class_accuracy": 0.8711},
    "baselines": {
        "fd_tiny": {"noise": 188.5376, "real_halves": 0.02745},
        "class_accuracy": {"real": 0.98889},
    },
    "protocol": {
        "extractors": {
            "tiny": {
                "weights_sha256": "9a98c8c2" + "0" * 56,
                "resize": "adaptive average to 32x32",
                "profile": "exact",
            }
        },
        "quantisation": "floor <127.5 x + 128>",
        "num_samples": 300,
        "reference": {"published": None, "num_images": 1797},
        "samples": {"nfe": 49},
    },
}
EXACT = {
    "metrics": {"fid": 4.3712, "inception_score": 187.26},
    "baselines": {},
    "protocol": {
        "extractors": {},
        "samples": {"nfe": 249},
        "num_samples": 50_000,
        "reference": {"published": {"file": "VIRTUAL.npz", "sha256": "ab"}, "num_images": 10},
    },
}


def table(
    plain: Any = None,
    guided: Any = None,
    paper: dict[str, Any] = PAPER,
    data: str = "imagenet_256",
) -> Table:
    return Table.collect(
        {
            "dsd_b.plain.metrics": plain,
            "dsd_b.guided.metrics": guided,
            "params:dsd_b": {"paper": paper, "data": data},
        }
    )


def rows_of_csv(made: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(made.csv())))


def rows_of_markdown(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|") and not line.startswith("| --")
    ]


def test_lines_stand_in_the_order_given_and_unmeasured_cells_are_empty():
    lines = rows_of_csv(table())
    assert [(line["row"], line["sampling"]) for line in lines] == [
        ("dsd_b", "plain"),
        ("dsd_b", "guided"),
    ]
    for line in lines:
        empty = [name for name, cell in line.items() if cell == ""]
        assert empty == [
            "nfe",
            *(
                f"{m}_{k}"
                for m in ("fid", "sfid", "inception_score")
                for k in ("ours", "difference")
            ),
        ]


def test_the_difference_is_ours_minus_the_papers():
    line = rows_of_csv(table(EXACT))[0]
    assert (line["fid_paper"], line["fid_ours"], line["fid_difference"]) == (
        "4.25",
        "4.3712",
        "0.1212",
    )
    assert (line["sfid_paper"], line["sfid_ours"], line["sfid_difference"]) == ("8.96", "", "")
    assert line["nfe"] == "249"


def test_numbers_have_the_digits_of_the_field_and_differences_a_sign():
    header, plain, guided = rows_of_markdown(table(EXACT).paper_table())
    assert header[:4] == ["row", "sampling", "params paper (M)", "NFE"]
    assert header[4:7] == ["FID ↓ paper", "FID ↓ ours", "FID ↓ difference"]
    assert header[10] == "IS ↑ paper"
    assert plain[2:7] == ["205", "249", "4.25", "4.37", "+0.12"]
    assert plain[10:] == ["188.8", "187.3", "-1.5"]
    assert guided[4:7] == ["3.35", "", ""]


@pytest.mark.parametrize(("metric", "data"), [("fd_tiny", "imagenet_256"), ("fid", "digits_32")])
def test_numbers_of_other_metrics_or_other_data_never_stand_in_the_papers_table(metric, data):
    made = table({**TINY, "metrics": {metric: 7.7777}, "baselines": {}}, data=data)
    line = rows_of_csv(made)[0]
    assert line["fid_ours"] == line["fid_difference"] == ""
    assert line[metric] == "7.7777"
    papers, other = made.markdown("dsd").split("Not comparable with the paper")
    assert "7.7" not in papers
    assert "7.7" in other


@pytest.mark.parametrize(
    "change",
    [
        {"num_samples": 1_000},
        {"reference": {"published": None, "num_images": 1_281_167}},
        {"reference": {"published": {"file": None, "sha256": "cd"}, "num_images": 10}},
    ],
)
def test_fewer_samples_or_another_reference_keep_a_fid_from_the_papers_table(change):
    made = table({**EXACT, "protocol": {**EXACT["protocol"], **change}})
    line = rows_of_csv(made)[0]
    assert (line["fid_ours"], line["fid"]) == ("", "4.3712")


def test_several_reference_files_are_those_of_the_paper_in_their_order():
    first = {"file": "a.npz", "sha256": "ab" * 32, "by_name": True}
    both = {**first, "further": [{"file": "b.npz", "sha256": "cd" * 32}]}
    made = {**EXACT, "protocol": {**EXACT["protocol"], "reference": {"published": both}}}
    for named, ours in {("a.npz", "b.npz"): "4.3712", ("b.npz", "a.npz"): "", "a.npz": ""}.items():
        paper = {**PAPER, "reference": named}
        assert rows_of_csv(table(made, paper=paper))[0]["fid_ours"] == ours
    assert title_of(both) == "a.npz (by its name, abababab) and b.npz"


def test_a_paper_without_a_reference_file_is_not_compared_with_an_unknown_one():
    paper = {**PAPER, "reference": None}
    unknown = {"reference": {"published": {"file": None, "sha256": "cd"}, "num_images": 10}}
    own = {"reference": {"published": None, "num_images": 10}}
    for change, ours in ((unknown, ""), (own, "4.3712")):
        made = table({**EXACT, "protocol": {**EXACT["protocol"], **change}}, paper=paper)
        assert rows_of_csv(made)[0]["fid_ours"] == ours


def test_where_the_paper_says_not_how_a_row_was_made_the_row_is_marked_wherever_it_stands():
    paper = {**PAPER, "recipe_published": False, "num_samples": None, "uncertain": ["plain"]}
    made = table(EXACT, paper=paper)
    page = made.markdown("dsd")
    papers, other = page.split("Not comparable with the paper")
    assert [line[:2] for line in rows_of_markdown(papers)[1:]] == [
        ["dsd_b †", "plain ‡"],
        ["dsd_b †", "guided"],
    ]
    assert "† Recipe not published" in papers
    assert "‡ It is not certain" in papers
    assert ["dsd_b †", "plain ‡"] in [line[:2] for line in rows_of_markdown(other)]
    assert "dsd_b †" in made.text()
    assert "not certain" not in table(EXACT).markdown("dsd")
    assert "Recipe not published" not in table(EXACT).markdown("dsd")
    line = rows_of_csv(made)[0]
    assert (line["row"], line["recipe_published"], line["certain"]) == ("dsd_b", "False", "False")
    # Of how many samples its numbers are is unknown, so none of ours stands beside them.
    assert (line["fid_paper"], line["fid_ours"], line["fid"]) == ("4.25", "", "4.3712")


def test_numbers_stand_beside_the_papers_if_they_are_of_the_data_that_it_measured_on():
    for datasets, data, ours in (
        ({}, None, "4.3712"),
        ({}, "coco", ""),
        ({"plain": "coco"}, None, ""),
        ({"plain": "coco"}, "coco", "4.3712"),
    ):
        parameters = {
            "paper": {**PAPER, "datasets": datasets},
            "data": "imagenet_256",
            "samplings": {"plain": {"data": data}},
        }
        made = Table.collect({"dsd_b.plain.metrics": EXACT, "params:dsd_b": parameters})
        assert rows_of_csv(made)[0]["fid_ours"] == ours


def test_repeats_of_other_metrics_show_their_standard_deviation_too():
    made = table({**TINY, "std": {"fd_tiny": 0.25}})
    assert "12.35 ± 0.25" in made.markdown("dsd")
    assert "12.35 ± 0.25" in made.text()
    line = rows_of_csv(made)[0]
    assert line["fd_tiny_other_std"] == "0.25"
    assert "fid_std" not in line


def test_repeats_show_their_standard_deviation():
    made = table({**EXACT, "std": {"fid": 0.0312}})
    _, plain, _ = rows_of_markdown(made.paper_table())
    assert plain[4:7] == ["4.25", "4.37 ± 0.03", "+0.12"]
    assert rows_of_csv(made)[0]["fid_std"] == "0.0312"
    assert "fid_std" not in rows_of_csv(table(EXACT))[0]


def test_the_papers_standard_deviation_stands_beside_its_number():
    made = table(EXACT, paper={**PAPER, "deviations": {"plain": {"fid": 0.017}}})
    (plain, guided) = rows_of_csv(made)
    assert (plain["fid_paper_std"], guided["fid_paper_std"]) == ("0.017", "")
    assert "4.25 ± 0.02" in rows_of_markdown(made.paper_table())[1]
    assert "fid_paper_std" not in rows_of_csv(table(EXACT))[0]


def test_tiny_numbers_stand_beside_their_baselines():
    papers, other, _ = table(TINY).markdown("dsd").split("\n## ")
    assert len(rows_of_markdown(papers)) == 3
    header, line = rows_of_markdown(other)
    assert header == [
        "row",
        "sampling",
        "NFE",
        "fd_tiny ↓ ours",
        "fd_tiny ↓ noise",
        "fd_tiny ↓ real halves",
        "class_accuracy ↑ ours",
        "class_accuracy ↑ real",
    ]
    assert line == ["dsd_b", "plain", "49", "12.35", "188.5", "0.02745", "0.871", "0.989"]


def test_the_nfe_of_a_tiny_row_does_not_stand_beside_the_papers_numbers():
    parts = table(EXACT, TINY).markdown("dsd").split("\n## ")
    papers, tiny, _ = (rows_of_markdown(part) for part in parts)
    assert [line[3] for line in papers] == ["NFE", "249", ""]
    assert [line[2] for line in tiny] == ["NFE", "49"]


def test_there_is_no_second_table_before_anything_tiny_was_measured():
    assert "tiny" not in table(EXACT).markdown("dsd")
    assert "tiny" not in table(EXACT).csv()


def test_a_paper_without_numbers_for_a_sampling_leaves_its_cells_empty():
    made = table(EXACT, paper={**PAPER, "samplings": {"guided": {"fid": 3.35}}})
    plain, guided = rows_of_csv(made)
    assert (plain["fid_paper"], plain["fid_ours"], plain["fid_difference"]) == ("", "4.3712", "")
    assert guided["fid_paper"] == "3.35"
    assert "sfid_paper" not in guided


@pytest.mark.parametrize(("title", "heading"), [("dsd", PAPERS["dsd"]), ("Table 1", "Table 1")])
def test_pages_bear_the_papers_title_and_a_paper_without_one_its_name(title, heading):
    made = table()
    assert made.markdown(title).startswith(f"# {heading}\n\nDifference is ours")
    assert f"<h1>{heading}</h1>\n<p>Difference is ours" in made.html(title, {}, {})


def test_the_markdown_page_holds_the_papers_table_whole_and_says_how_it_was_measured():
    made = table(EXACT, TINY)
    page = made.markdown("dsd")
    assert f"\n\n{made.paper_table()}\n## Not comparable" in page
    heading, _, *lines = page.split("\n## ")[2].splitlines()
    assert heading == "How it was measured"
    assert rows_of_markdown("\n".join(lines))[1][:4] == ["dsd_b", "guided", "tiny", "9a98c8c2"]
    assert "How it was measured" not in table().markdown("dsd")


def test_a_row_name_keeps_its_underscores_and_digits():
    name = "issd_dsd_b_10"
    parameters = {"paper": PAPER, "data": "imagenet_256"}
    made = Table.collect({f"{name}.steps_10.metrics": None, f"params:{name}": parameters})
    assert (made.entries[0].row, made.entries[0].sampling) == (name, "steps_10")


def test_the_terminal_shows_what_was_measured_in_80_columns():
    text = table(EXACT, TINY).text()
    assert "FID     4.25   4.37   +0.12" in text
    assert "noise 188.5, real halves 0.02745" in text
    assert max(map(len, text.splitlines())) <= 80
    assert table().text() == "nobody has run a row of this table yet"


class Checker(HTMLParser):
    """Collects text and links, and fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.seen = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.seen += data


def test_the_page_is_whole_needs_no_network_and_escapes_what_it_shows():
    pictures = {"Samples": "sheet.png", "Training curves": "curves.png"}
    page = table(EXACT, TINY).html("DSD <Table 1>", pictures, {})
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert [link for link in checker.links if link[0] != "#"] == ["sheet.png", "curves.png"]
    assert "script" not in checker.tags
    assert "http" not in page
    assert "DSD <Table 1>" in checker.seen
    assert "floor <127.5 x + 128>" in checker.seen


def test_a_number_leads_to_what_it_was_made_from():
    links = {"samples": "../<row>/<sampling>/grid.png", "lock": "locks/<row>/dvc.lock"}
    page = table(EXACT, None).html("DSD", {}, links)
    assert f'<a href="#dsd_b.plain">{EXACT["metrics"]["fid"]:.2f}</a>' in page
    plain = page.split('<p id="dsd_b.plain">')[1].split("</p>")[0]
    assert 'href="../dsd_b/plain/grid.png">samples' in plain
    assert 'href="locks/dsd_b/dvc.lock">lock' in plain
    guided = page.split('<p id="dsd_b.guided">')[1].split("</p>")[0]
    assert "href" not in guided  # nobody has run it
    assert "nobody has run it yet" in guided
    assert "data: imagenet_256" in page.split("<summary>Parameters</summary>")[1]


def test_every_line_of_the_page_has_as_many_cells_as_its_heading():
    page = table(EXACT, TINY).html("DSD", {}, {})
    for part in page.split("<table>")[1:]:
        heading, body = part.split("</thead>")
        columns = heading.split("<tr>")[-1].count("<th")
        lines = body.split("</tbody>")[0].strip().splitlines()[1:]
        assert lines
        assert all(line.count("<td") == columns for line in lines)


def test_the_heads_of_the_page_have_arrows_and_clean_classes():
    page = table(EXACT, TINY).html("dsd", {}, {})
    assert '<th colspan="3" class="first">FID ↓</th>' in page
    assert '<th class="first sub">paper</th>' in page
    assert '<th class="sub">ours</th>' in page
    assert 'class=" ' not in page


def test_the_same_inputs_give_the_same_bytes():
    first, second = table(EXACT, TINY), table(EXACT, TINY)
    assert first.markdown("a") == second.markdown("a")
    assert first.csv() == second.csv()
    assert first.html("a", {}, {}) == second.html("a", {}, {})


def test_a_number_that_a_state_was_selected_by_stands_apart_from_what_was_measured():
    curves = [
        {"nimg": 8, "loss": 1.0},
        *({"nimg": n, "selection": {"fid": v}} for n, v in ((16, 9.0), (32, 3.126), (48, 5.0))),
    ]
    inputs = {
        "dsd_b.plain.metrics": EXACT,
        "params:dsd_b": {"paper": PAPER, "data": "imagenet_256"},
    }
    apart = Table.collect({**inputs, "dsd_b.curves": curves})
    assert apart.entries == Table.collect(inputs).entries
    assert apart.paper_table() == Table.collect(inputs).paper_table()
    assert apart.csv() == Table.collect(inputs).csv()
    assert ["dsd_b", "FID", "3.13", "32", "3"] in rows_of_markdown(apart.markdown("dsd"))
    for text in (apart.markdown("dsd"), apart.text(), apart.html("dsd", {}, {})):
        assert "the best of several evaluations (optimistic)" in text
    assert Table.collect({**inputs, "dsd_b.curves": None}).selected == ()
