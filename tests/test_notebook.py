"""The notebook of the examples, executed as Jupyter does, and what it shows of a result."""

import re
from pathlib import Path

import nbformat
import pytest
from conftest import command
from nbclient import NotebookClient
from test_display import metrics

from kdray.runs.directory import RunDirectory
from kdray.runs.result import read_result
from kdray.utils.console import in_notebook

PATH = Path(__file__).parents[1] / "examples" / "notebook.ipynb"


def outputs(cell):
    """Kinds of a cell's outputs -> what they hold."""
    found = {}
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            found[output.name] = found.get(output.name, "") + output.text
        else:
            found |= output.get("data", {})
    return found


@pytest.mark.storm
@pytest.mark.timeout(300)
def test_the_notebook_runs_with_a_live_display_and_shows_its_result(tmp_path):
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "it is kept without what it printed"
    NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    _, distil, student, _, commands = (outputs(cell) for cell in code)
    result = read_result(RunDirectory(tmp_path / "runs" / "notebook"))
    assert "application/vnd.jupyter.widget-view+json" in distil, "the live display is a widget"
    assert "stderr" not in distil
    cells = re.findall("<td>(.*?)</td>", distil["text/html"])
    assert cells[-7:-3] == ["2", "600", "600", f"{result.history[-1].student_accuracy:.2%}"]
    assert distil["text/plain"] == repr(result)
    assert "image/png" in outputs(code[3])
    answered = [[int(digit) for digit in re.findall(r"\d", part)] for part in student["text/plain"].split("]")[:2]]
    assert len(answered[0]) == 10 and sum(a == b for a, b in zip(*answered, strict=True)) >= 7
    assert "report.html" in commands["stdout"] and (tmp_path / "runs" / "notebook" / "report.html").exists()


def test_a_result_says_what_matters(config_file, tmp_path):
    done = command(
        "run", config_file(select__rounds=0, budget__price_per_query=0.5), "--local", "--out", tmp_path / "<r>"
    )
    assert done.returncode == 0, done.stderr
    result = read_result(RunDirectory(tmp_path / "<r>"))
    accuracy = f"{result.history[-1].student_accuracy:.2%}"
    assert repr(result) == f"<kdray.Result of mlp, accuracy {accuracy}, 40 of 160 queries, in {tmp_path}/<r>>"
    html = result._repr_html_()
    assert f"<caption>mlp: 40 of 160 queries for 20.00 USD, in {tmp_path}/&lt;r&gt;</caption>" in html
    assert f"<td>{accuracy}</td>" in html and html.count("<tr>") == 2
    result.history[0] = metrics(
        round=0, student_accuracy=None, teacher_accuracy=None, success_rate=None, agreement=None
    )
    assert "<td>–</td><td>–</td><td>–</td><td>–</td>" in result._repr_html_() and "accuracy" not in repr(result)


def test_a_plain_process_is_no_notebook():
    assert not in_notebook()
