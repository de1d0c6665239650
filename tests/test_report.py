import html.parser
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image

import torch_softmax
from torch_softmax.report import canvas, charts, findings, page, pictures, write_report

ROOT = Path(__file__).parents[1]
PAGE_SCRIPT = ROOT / "torch_softmax" / "report" / "page.js"
NOTE = "drawn by a <test> & not measured"
NAMES = ("cat", "dog", "</script><script>alert(1)</script>", "5 $ and \\frac$ {x} %s ${title}")
HISTORY = [{"epoch": 1, "loss": 1.5, "accuracy": 0.25}, {"epoch": 2, "loss": 0.5, "accuracy": 0.75}]


def some_rows(n_rows=40, n_classes=4):
    random = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(n_rows, n_classes, generator=random)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=random).squeeze(1)


def some_findings(logits, target, class_names=None, **options):
    defaults = {"images": None, "temperature": None, "history": None, "title": "", "note": ""}
    names = class_names or [f"class {i}" for i in range(logits.shape[1])]
    return findings.find(logits, target, names, **(defaults | options))


def some_images(n_rows, *shape):
    return torch.arange(n_rows * math.prod(shape)).view(n_rows, *shape).to(torch.uint8)


class Page(html.parser.HTMLParser):
    """What a page holds: its elements as a tree, and the text of each one with an id."""

    VOID = ("br", "img", "input", "meta")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts, self.text = [], [], {}, ""
        self.tree = {"attributes": {}, "children": []}
        self.feed(text)
        self.close()
        # a line may end anywhere
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        element = {"attributes": dict(attributes), "children": []}
        self.innermost["children"].append(element)
        if tag not in self.VOID:
            self.open.append((tag, element))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.text += data
        self.innermost["children"].append(data)
        for _, element in self.open:
            if name := element["attributes"].get("id"):
                self.texts[name] = self.texts.get(name, "") + data

    @property
    def innermost(self):
        return self.open[-1][1] if self.open else self.tree

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def shown_rows(self):
        return json.loads(self.texts["shown-rows"])


def page_of(logits, target, *arguments, **options):
    return Page(page.render_page(some_findings(logits, target, *arguments, **options), {}))


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


needs_node = pytest.mark.skipif(
    not shutil.which("node"), reason="needs node to run the page's script"
)


def run_in_node(*scripts):
    run = subprocess.run(["node", "-"], input="\n".join(scripts), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@needs_node
@pytest.mark.parametrize("temperature", [0.1, 1.0, 2.5, 10.0])
def test_report_computes_as_the_library_does(temperature):
    logits = [[1e300, 0.0, -1e300], [0.3, -0.1, 0.2], [-math.inf, 5.0, 4.0]]
    logits = torch.tensor(logits, dtype=torch.float64)
    rows = [[x if math.isfinite(x) else None for x in row] for row in logits.tolist()]
    script = PAGE_SCRIPT.read_text() + (
        f"const all = {json.dumps(rows)}.map((logits) => softmax(logits, {temperature}));"
        "console.log(JSON.stringify([all, all.map(entropy)]));"
    )
    probabilities, entropy = (
        torch.tensor(part, dtype=torch.float64) for part in run_in_node(script)
    )
    prediction = torch_softmax.uncertainty.predict(logits / temperature)
    torch.testing.assert_close(probabilities, prediction.probabilities)
    torch.testing.assert_close(entropy, prediction.entropy)


@needs_node
def test_report_writes_shares_as_its_script_does():
    shares = [0.0, 1e-9, 0.00099, 0.001, 0.0123, 0.5, 0.98765, 0.999, 0.9991, 1.0]
    script = PAGE_SCRIPT.read_text() + f"console.log(JSON.stringify({shares}.map(percent)));"
    assert run_in_node(script) == [findings.percent(share) for share in shares]


# as much of a browser's document as the page's script asks for
DOCUMENT = """
class Element {
  constructor({ attributes, children }) {
    this.attributes = attributes;
    this.children = children.map((child) => (child.attributes ? new Element(child) : child));
    this.hidden = "hidden" in attributes;
    this.value = attributes.value;
    this.style = {};
    this.dataset = {};
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("data-")) this.dataset[name.slice("data-".length)] = value;
    }
  }
  get textContent() {
    return this.children.map((child) => child.textContent ?? child).join("");
  }
  set textContent(text) {
    this.children = [text];
  }
  setAttribute(name, value) {
    this.attributes[name] = value;
  }
  addEventListener(name, listener) {
    this[name] = listener;
  }
  descendants() {
    const elements = this.children.filter((child) => child instanceof Element);
    return elements.flatMap((element) => [element, ...element.descendants()]);
  }
  querySelectorAll(selector) {
    const name = selector.replace(/[.[\\]]/g, "");
    return this.descendants().filter(({ attributes }) =>
      selector[0] === "." ? attributes.class?.split(" ").includes(name) : name in attributes);
  }
  querySelector(selector) {
    return this.querySelectorAll(selector)[0] ?? null;
  }
  getElementById(id) {
    return this.descendants().find(({ attributes }) => attributes.id === id);
  }
}
const document = new Element(TREE);
"""
# what the user sees of the playground
SHOWN = """
function shown() {
  const cards = document.querySelectorAll(".card").map((card) => ({
    row: Number(card.attributes.id.replace("row-", "")),
    confidence: card.querySelector(".confidence").textContent,
    entropy: card.querySelector(".entropy").textContent,
    shares: card.querySelectorAll(".share").map((share) => share.textContent),
    widths: card.querySelectorAll(".bar").map((bar) => parseFloat(bar.style.width)),
  }));
  return { cards, temperature: document.getElementById("temperature-now").textContent };
}
"""


@needs_node
@pytest.mark.parametrize(
    ("action", "temperature"),
    [
        ("", 1),
        ("slider.value = '-0.5'; slider.input()", 10**-0.5),
        ("slider.value = '0.7'; slider.input()", 10**0.7),
        ("slider.value = '0.7'; slider.input(); as_the_model_says.click()", 1),
        ("calibrated.click()", 1.25),
    ],
)
def test_report_follows_the_slider_of_the_temperature(written, action, temperature):
    logits, _ = some_rows()
    parsed = Page((written[0] / "report.html").read_text())

    after = run_in_node(
        DOCUMENT.replace("TREE", json.dumps(parsed.tree)) + PAGE_SCRIPT.read_text() + SHOWN,
        "const [as_the_model_says, calibrated] = document.querySelectorAll('[data-temperature]');"
        f"const slider = document.getElementById('temperature'); {action};"
        "const visible = !document.getElementById('playground').hidden;"
        "console.log(JSON.stringify({ ...shown(), visible, slider: Number(slider.value) }));",
    )

    assert after["visible"]
    assert float(after["temperature"]) == pytest.approx(temperature, rel=5e-3)
    assert after["slider"] == pytest.approx(math.log10(temperature))
    assert len(after["cards"]) == 6
    for card in after["cards"]:
        row = torch_softmax.uncertainty.predict(logits[card["row"]].double() / temperature)
        assert card["shares"] == [findings.percent(share) for share in row.probabilities.tolist()]
        assert card["widths"] == pytest.approx((100 * row.probabilities).tolist())
        assert card["confidence"] == findings.percent(row.confidence.item())
        assert card["entropy"] == f"{row.entropy.item():.3f} nats"


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


# one row, one class, more classes than are shown in full, than have counts, than have names
@pytest.mark.parametrize(("n_rows", "n_classes"), [(1, 1), (1, 3), (9, 13), (30, 25), (50, 70)])
def test_report_takes_every_number_of_rows_and_classes(n_rows, n_classes):
    report = some_findings(*some_rows(n_rows, n_classes), history=HISTORY[:1], temperature=300)
    with canvas.style():
        for draw in (
            charts.confusion,
            charts.reliability_diagram,
            charts.learning_curve,
            pictures.probabilities,
        ):
            assert canvas.as_png(draw(report)).startswith(b"\x89PNG")
    parsed = Page(page.render_page(report, {}))
    assert len(parsed.shown_rows) == min(n_rows, 6)
    assert {len(shown["logits"]) for shown in parsed.shown_rows} == {n_classes}


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (3, 8, 6)])
@pytest.mark.parametrize("convert", [torch.Tensor.byte, lambda pixels: pixels.float() / 255])
def test_report_takes_images_in_every_form(shape, convert):
    pixels = some_images(40, *shape)
    report = some_findings(*some_rows(), images=convert(pixels))
    channels_last = pixels.unsqueeze(1) if len(shape) == 2 else pixels
    assert torch.equal(report.images, channels_last.movedim(1, -1))
    # six cards, no pictures
    assert len(Page(page.render_page(report, {})).all("img")) == 6


def test_report_of_few_images_has_no_row_twice():
    report = some_findings(*some_rows(2), images=some_images(2, 4, 4))
    with canvas.style():
        for draw in (pictures.examples, pictures.uncertain, pictures.probabilities):
            assert canvas.as_png(draw(report)).startswith(b"\x89PNG")


def test_report_tells_of_the_surest_mistake():
    # the second is sure and wrong, the third unsure and wrong
    logits = torch.tensor([[5.0, 0.0], [0.0, 4.0], [0.1, 0.0]])
    parsed = page_of(logits, torch.tensor([0, 0, 1]), ["cat", "dog"])
    assert "The surest mistake here is row 1: it is taken for dog with a confidence of 98.2%" in (
        parsed.text
    )
    assert "Mistakes with a confidence above 90%: 1 of 2." in parsed.text


def test_report_of_a_model_that_is_always_right_has_no_mistake():
    parsed = page_of(torch.eye(3), torch.arange(3))
    assert "because all are right" in parsed.text
    assert "right in 3 of the 3 rows, an accuracy of 100.00%" in parsed.text


def test_report_takes_logits_of_minus_infinity_and_half_precision():
    logits = torch.tensor([[-math.inf, 1.0, 0.0]], dtype=torch.bfloat16)
    parsed = page_of(logits, torch.tensor([1], dtype=torch.uint8))
    assert parsed.shown_rows == [{"row": 0, "logits": [None, 1.0, 0.0]}]


def test_report_counts_confusions():
    logits = torch.eye(3)[[0, 1, 1, 2]]
    report = some_findings(logits, torch.tensor([0, 0, 1, 1]))
    assert findings.count_confusions(report).tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert list(findings.class_accuracies(report))[:2] == [
        ("class 0", 2, 0.5, 1.0, "class 1"),
        ("class 1", 2, 0.5, 0.5, "class 2"),
    ]


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
