"""The HTML page: softmax explained with the rows of a report, in one self-contained file."""

import json
import math
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from string import Template

from torch_softmax.functional import cross_entropy_with_stats, softmax
from torch_softmax.report.findings import Findings, percent
from torch_softmax.report.fragments import (
    arithmetic_table,
    class_table,
    figure,
    playground,
    summary,
)
from torch_softmax.uncertainty import brier_score, calibration_error

ALTERNATIVE_TEXTS = {
    "examples.png": "Images with the class that the model names, its confidence, and whether it is "
    "right",
    "probabilities.png": "Probabilities of every class for a few rows, as bars",
    "uncertain.png": "The images of highest entropy, each with its two likeliest classes",
    "reliability.png": "Accuracy against confidence",
    "confusion.png": "How many rows of each true class are taken for which class",
    "learning_curve.png": "Loss and accuracy of each epoch of the training",
}


TRAINING = """<h2>The training</h2>
<p>Training lowers the cross-entropy, the mean of &minus;log(p) of the true classes: the loss. The
accuracy is measured after each epoch, on rows that take no part in the training. Where the loss
goes on falling and the accuracy no longer rises, the model has begun to learn by heart.</p>
"""


def render_page(findings: Findings, pictures: Mapping[str, bytes]) -> str:
    """The whole page; text from the caller is escaped."""
    shown = {
        name.removesuffix(".png"): figure(pictures[name], text) if name in pictures else ""
        for name, text in ALTERNATIVE_TEXTS.items()
    }
    learning_curve = shown.pop("learning_curve")
    scores = [_scores(findings, divisor) for divisor in (1.0, findings.temperature) if divisor]
    return Template(_part("page.html")).substitute(
        shown,
        title=escape(findings.title),
        note=f'<p class="note">{escape(findings.note)}</p>' if findings.note else "",
        css=_part("page.css"),
        script=_part("page.js"),
        data=_shown_logits(findings),
        summary=summary(_summary(findings, scores)),
        arithmetic=arithmetic_table(findings, findings.closest_call()),
        playground=playground(findings),
        mistake=_mistake(findings),
        classes=class_table(findings),
        training=TRAINING + learning_curve if learning_curve else "",
        calibration=escape(_calibration(scores, findings.temperature)),
        **{name: escape(text) for name, text in _numbers(findings).items()},
    )


def _numbers(findings: Findings) -> dict[str, str]:
    """Values for the sentences of the page."""
    prediction, n_classes = findings.prediction, len(findings.class_names)
    example = findings.closest_call()
    return {
        "example": str(example),
        "example_confidence": percent(prediction.confidence[example].item()),
        "example_margin": percent(prediction.margin[example].item()),
        "n_right": f"{int(findings.is_right.sum()):,}",
        "n_rows": f"{len(findings.target):,}",
        "accuracy": f"{findings.accuracy:.2%}",
        "confidence": percent(prediction.confidence.mean().item()),
        "n_classes": str(n_classes),
        "most_entropy": f"{math.log(n_classes):.3f}",
        "entropy": f"{prediction.entropy.mean().item():.3f}",
    }


def _part(name: str) -> str:
    return files("torch_softmax.report").joinpath(name).read_text(encoding="utf-8").strip()


def _scores(findings: Findings, divisor: float) -> dict[str, str]:
    """The scores that depend on the temperature, for logits divided by ``divisor``."""
    logits, target = findings.logits / divisor, findings.target
    stats, probabilities = cross_entropy_with_stats(logits, target), softmax(logits, 1)
    return {
        "cross-entropy": f"{stats.loss.item():.4f}",
        "calibration error": percent(calibration_error(probabilities, target).item()),
        "Brier score": f"{brier_score(probabilities, target).item():.4f}",
        "entropy (nats)": f"{stats.entropy.mean().item():.3f}",
    }


def _summary(findings: Findings, scores: list[dict[str, str]]) -> dict[str, str]:
    """The scores at temperature 1 and, after an arrow, at the fitted temperature."""
    return {
        "rows": f"{len(findings.target):,}",
        "accuracy": f"{findings.accuracy:.2%}",
        **{name: " → ".join(score[name] for score in scores) for name in scores[0]},
    }


def _shown_logits(findings: Findings) -> str:
    rows = [
        {
            "row": row,
            # JSON has no name for -inf
            "logits": [x if math.isfinite(x) else None for x in findings.logits[row].tolist()],
        }
        for row in findings.notable_rows()
    ]
    return json.dumps(rows, allow_nan=False, separators=(",", ":"))


def _calibration(scores: list[dict[str, str]], temperature: float | None) -> str:
    before, *after = (score["calibration error"] for score in scores)
    if not after:
        return before
    return f"{before}, and at the fitted temperature of {temperature:.3g} it is {after[0]}"


def _mistake(findings: Findings) -> str:
    warning = (
        "A model can be wrong while it is sure: a confidence is what it believes, and not what is "
        "true."
    )
    if not (mistakes := findings.surest_mistakes()):
        return f"<p>{warning} None of these rows is an example, because all are right.</p>"
    row = mistakes[0]
    confidence = findings.prediction.confidence[row].item()
    share = findings.prediction.probabilities[row, findings.target[row]].item()
    n_sure = int((~findings.is_right & (findings.prediction.confidence > 0.9)).sum())
    return (
        f'<p>{warning} The surest mistake here is <a href="#row-{row}">row {row}</a>: it is taken '
        f"for <strong>{escape(findings.predicted_name(row))}</strong> with a confidence of "
        f"<strong>{escape(percent(confidence))}</strong>, and is "
        f"<strong>{escape(findings.true_name(row))}</strong>, which the model gives "
        f"{escape(percent(share))}. Mistakes with a confidence above 90%: {n_sure:,} of "
        f"{len(mistakes):,}.</p>"
    )
