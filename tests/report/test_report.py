import math
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image

import torch_softmax
from report_pages import Page, page_of, some_findings, some_images, some_rows
from torch_softmax.report import canvas, charts, findings, write_report

ROOT = Path(__file__).parents[2]
NOTE = "drawn by a <test> & not measured"
NAMES = ("cat", "dog", "</script><script>alert(1)</script>", "5 $ and \\frac$ {x} %s ${title}")
HISTORY = [{"epoch": 1, "loss": 1.5, "accuracy": 0.25}, {"epoch": 2, "loss": 0.5, "accuracy": 0.75}]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report with everything in it."""
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    logits, target = some_rows()
    paths = write_report(
        folder,
        logits,
        target,
        NAMES,
        images=some_images(40, 1, 8, 8),
        temperature=1.25,
        history=HISTORY,
        title="<b>Four classes</b>",
        note=NOTE,
    )
    return folder, paths


def test_report_writes_what_it_says(written):
    folder, paths = written
    assert {path.name for path in paths} == {
        "confusion.png",
        "examples.png",
        "learning_curve.png",
        "probabilities.png",
        "reliability.png",
        "report.html",
        "uncertain.png",
    }
    assert sorted(folder.iterdir()) == sorted(paths)


def test_report_writes_pictures_that_bear_the_note(written):
    pictures_written = [path for path in written[1] if path.suffix == ".png"]
    for path in pictures_written:
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 500
            # the text above the picture
            assert f"[{NOTE}]" in image.text["Title"]


def test_report_is_one_page_that_loads_nothing(written):
    text = (written[0] / "report.html").read_text()
    parsed = Page(text)
    assert "http:" not in text
    assert "https:" not in text
    assert not parsed.open
    assert not parsed.all("link")
    assert all("src" not in script for script in parsed.all("script"))
    assert all(image["src"].startswith("data:image/png;base64,") for image in parsed.all("img"))
    # six pictures, and what the model saw of six rows
    assert len(parsed.all("img")) == 12
    assert "default-src 'none'" in text


def test_report_can_be_read_without_seeing_and_used_without_a_mouse(written):
    parsed = Page((written[0] / "report.html").read_text())
    assert all(image["alt"] for image in parsed.all("img"))
    (slider,) = parsed.all("input")
    assert (slider["type"], slider["id"]) == ("range", "temperature")
    assert "temperature" in [label["for"] for label in parsed.all("label")]
    assert parsed.all("html")[0]["lang"] == "en"


def test_report_shows_names_as_they_are_and_runs_none(written):
    parsed = Page((written[0] / "report.html").read_text())
    assert len(parsed.all("script")) == 2
    assert not parsed.all("b")
    for text in (*NAMES, "<b>Four classes</b>", NOTE):
        assert text in parsed.text


def test_report_gives_its_scores_before_and_after_scaling(written):
    logits, target = some_rows()
    parsed = Page((written[0] / "report.html").read_text())
    for divisors in ((1.0, 1.25), (1.0,)):
        losses = [
            torch_softmax.cross_entropy(logits.double() / divisor, target) for divisor in divisors
        ]
        text = " → ".join(f"{loss.item():.4f}" for loss in losses)
        page = parsed if len(divisors) == 2 else page_of(logits, target)
        assert f"cross-entropy{text}calibration error" in page.text
        assert page.text.count("→") == (4 if len(divisors) == 2 else 0)


def test_report_embeds_the_logits_of_the_rows_it_shows(written):
    logits, _ = some_rows()
    parsed = Page((written[0] / "report.html").read_text())
    assert len(parsed.shown_rows) == 6
    for shown in parsed.shown_rows:
        assert shown["logits"] == logits[shown["row"]].tolist()
        probabilities = torch_softmax.softmax(logits[shown["row"]].double(), 0).tolist()
        text = parsed.texts[f"row-{shown['row']}"]
        assert all(findings.percent(share) in text for share in probabilities)


def test_report_without_images_or_history_leaves_their_pictures_out(tmp_path):
    paths = write_report(str(tmp_path), *some_rows(5, 2), ["no", "yes"])
    assert {path.name for path in paths} == {
        "confusion.png",
        "probabilities.png",
        "reliability.png",
        "report.html",
    }
    parsed = Page((tmp_path / "report.html").read_text())
    assert len(parsed.all("img")) == 3
    assert len(parsed.shown_rows) == 5


def test_report_leaves_the_style_of_the_caller_alone():
    with matplotlib.rc_context({"font.size": 31, "text.usetex": True}):
        before = dict(matplotlib.rcParams)
        with canvas.style():
            content = canvas.as_png(charts.confusion(some_findings(*some_rows())))
        assert dict(matplotlib.rcParams) == before
    assert content.startswith(b"\x89PNG")


def test_report_without_matplotlib_names_the_extra(tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import torch; from torch_softmax.report import write_report\n"
        "try: write_report(sys.argv[1], torch.zeros(2, 2), torch.tensor([0, 1]), 'ab')\n"
        "except ValueError: pass\n"
        "try: write_report(sys.argv[1], torch.zeros(2, 2), torch.tensor([0, 1]), ['a', 'b'])\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "report")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "write_report needs matplotlib (pip install matplotlib)" in run.stdout
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"class_names": ["one"]}, ValueError, "one name for each of the 4 classes, got 1"),
        ({"class_names": "abcd"}, ValueError, "needs class_names to hold one name"),
        ({"logits": torch.zeros(0, 4), "target": []}, ValueError, "at least one row, got none"),
        ({"target": [0, 4]}, IndexError, r"write_report needs target in \[0, 4\), got 4"),
        ({"logits": torch.full((2, 4), math.nan)}, ValueError, "logits that have a softmax, got"),
        ({"temperature": 0.0}, ValueError, "write_report needs temperature above 0, got 0.0"),
        ({"temperature": "hot"}, TypeError, "write_report needs temperature of type float"),
        ({"history": [{"epoch": 1, "loss": 2.0}]}, ValueError, "got one without accuracy"),
        ({"images": torch.zeros(3, 8, 8)}, ValueError, r"images of shape \(2, height, width\)"),
        ({"images": torch.zeros(2, 4, 8, 8)}, ValueError, r"got \(2, 4, 8, 8\)"),
        ({"images": torch.zeros(2, 8, 8).long()}, TypeError, "uint8 or floating point, got"),
        ({"images": torch.full((2, 8, 8), 255.0)}, ValueError, r"in \[0, 1\], got 255 to 255"),
        ({"images": [[0]]}, TypeError, "write_report needs images to be a Tensor, got list"),
    ],
)
def test_report_names_what_it_needs(changes, error, message, tmp_path):
    arguments = {"logits": torch.eye(4)[:2], "target": [0, 1], "class_names": list("abcd")}
    arguments |= changes
    arguments["target"] = torch.tensor(arguments["target"], dtype=torch.int64)
    with pytest.raises(error, match=message):
        write_report(tmp_path / "report", **arguments)
    assert not (tmp_path / "report").exists()
