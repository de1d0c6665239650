"""The script of the page, run in Node as far as a page is tested without a browser."""

import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import torch_softmax
from report_pages import page_of, some_rows
from torch_softmax.report import findings

PAGE_SCRIPT = Path(__file__).parents[2] / "torch_softmax" / "report" / "page.js"

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
def test_report_follows_the_slider_of_the_temperature(action, temperature):
    logits, target = some_rows()
    parsed = page_of(logits, target, temperature=1.25)

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
