"""What is found in the rows, drawn and told."""

import math

import pytest
import torch

from report_pages import Page, page_of, some_findings, some_images, some_rows
from torch_softmax.report import canvas, charts, findings, page, pictures

HISTORY = [{"epoch": 1, "loss": 1.5, "accuracy": 0.25}]


# one row, one class, more classes than are shown in full, than have counts, than have names
@pytest.mark.parametrize(("n_rows", "n_classes"), [(1, 1), (1, 3), (9, 13), (30, 25), (50, 70)])
def test_report_takes_every_number_of_rows_and_classes(n_rows, n_classes):
    report = some_findings(*some_rows(n_rows, n_classes), history=HISTORY, temperature=300)
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
