"""What a row's run reads and writes beside MLflow."""

import io
import json
from pathlib import Path

from selfdistill.tracking.config import TrackingConfig
from selfdistill.tracking.process import Reporter
from selfdistill.tracking.row_run import Tail


class Replaced(type(Path())):
    """A file that becomes another one just after it was opened."""

    def open(self, *arguments):
        stream = super().open(*arguments)
        self.with_suffix(".new").replace(self)
        return stream


def test_curves_replaced_while_they_are_read_are_read_anew(tmp_path):
    file, tail = tmp_path / "curves.jsonl", Tail()
    file.write_text(json.dumps({"nimg": 8}) + "\n")
    file.with_suffix(".new").write_text("".join(f'{{"nimg": {n}}}\n' for n in (1, 2, 3)))
    assert tail.read(Replaced(file)) == [{"nimg": 8}]
    assert tail.read(file) == [{"nimg": 1}, {"nimg": 2}, {"nimg": 3}]


def test_a_page_that_cannot_be_written_is_tried_again_and_hinders_nothing(tmp_path, uri, found):
    page, out = tmp_path / "page/mlflow.html", io.StringIO()
    page.parent.touch()  # no folder can be made there
    ui = "http://127.0.0.1:1234"
    config = TrackingConfig(uri=uri, ui=ui, artifacts=str(tmp_path / "artifacts"))
    reporter = Reporter(config, tmp_path, out)
    reporter.take(
        "open", "row", env=None, key="key", params={"a": "1"}, tags={}, origin={}, jobs=None,
        scratch=str(tmp_path / "row/train"), page=str(page),
    )  # fmt: skip
    reporter.take("status", "row", status="FINISHED")
    reporter.take("artifact", "row", file=__file__, folder="plain")
    reporter.send()
    assert str(page.parent) in out.getvalue()
    (run,) = found().runs()
    assert (run.info.status, run.data.params) == ("FINISHED", {"a": "1"})
    assert found().client.list_artifacts(run.info.run_id, "plain")
    page.parent.unlink()
    reporter.send()
    assert f'href="{ui}/#/experiments/1/runs/{run.info.run_id}"' in page.read_text()
