"""Parts of the page: each function returns HTML with text from the caller escaped."""

import base64
import io
import math
from collections.abc import Mapping
from html import escape

import torch

from torch_softmax.report.findings import Findings, class_accuracies, percent

# least decades of temperature on each side of 1 that the slider covers
SLIDER_DECADES = 1


def data_url(png: bytes) -> str:
    """A PNG image as a data URL."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def figure(png: bytes, text: str) -> str:
    """A plot in a box that scrolls on narrow screens."""
    return (
        f'<figure class="wide" tabindex="0" role="group" aria-label="{escape(text)}">'
        f'<img src="{data_url(png)}" alt="{escape(text)}"></figure>'
    )


def summary(scores: Mapping[str, str]) -> str:
    """A list of named scores."""
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in scores.items()
    )
    return f'<dl class="summary">{items}</dl>'


def table(head: list[str], body: list[str], foot: str = "") -> str:
    """A table of rows given as HTML, in a box that scrolls on narrow screens."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    foot = f"<tfoot>{foot}</tfoot>" if foot else ""
    return (
        '<div class="wide" tabindex="0" role="group" aria-label="table"><table>'
        f"<thead><tr>{columns}</tr></thead><tbody>{''.join(body)}</tbody>{foot}</table></div>"
    )


def arithmetic_table(findings: Findings, row: int) -> str:
    """Softmax of one row, step by step."""
    logits = findings.logits[row].double()
    powers = (logits - logits.max()).exp()
    shares = powers / powers.sum()
    classes = findings.shown_classes(row)
    body = []
    for label in classes:
        kind = ' class="answer"' if label == findings.prediction.label[row] else ""
        body.append(
            f'<tr{kind}><th scope="row">{escape(findings.class_names[label])}</th>'
            f"<td>{logits[label]:.3f}</td><td>{powers[label]:.4f}</td>"
            f"<td>{shares[label]:.4f}</td></tr>"
        )
    if n_others := len(logits) - len(classes):
        others = torch.ones_like(logits, dtype=torch.bool)
        others[classes] = False
        body.append(
            f'<tr><th scope="row">{n_others:,} others</th><td></td>'
            f"<td>{powers[others].sum():.4f}</td><td>{shares[others].sum():.4f}</td></tr>"
        )
    foot = f'<tr><th scope="row">sum</th><td></td><td>{powers.sum():.4f}</td><td>1.0000</td></tr>'
    head = ["class", "logit", "e^(logit − largest)", "probability"]  # noqa: RUF001 - a minus sign
    return table(head, body, foot)


def class_table(findings: Findings) -> str:
    """A table of the recall and precision of each class."""

    def share(value: float) -> str:
        return "" if math.isnan(value) else f"{value:.1%}"

    body = [
        f'<tr><th scope="row">{escape(name)}</th><td>{n_rows:,}</td><td>{share(recall)}</td>'
        f'<td>{share(precision)}</td><td class="name">{escape(mistaken)}</td></tr>'
        for name, n_rows, recall, precision, mistaken in class_accuracies(findings)
    ]
    head = ["class", "rows", "of them found", "right when named", "mostly mistaken for"]
    return table(head, body)


def playground(findings: Findings) -> str:
    """The slider of the temperature and a card for each notable row."""
    buttons = '<button type="button" data-temperature="1">1, as the model says</button>'
    decades = float(SLIDER_DECADES)
    if (temperature := findings.temperature) is not None:
        decades = max(decades, math.ceil(abs(math.log10(temperature))))
        buttons += (
            f'<button type="button" data-temperature="{float(temperature)!r}">'
            f"{temperature:.3g}, calibrated</button>"
        )
    cards = "\n".join(
        _card(findings, row, caption) for row, caption in findings.notable_rows().items()
    )
    # without JavaScript there is no slider, and the cards show temperature 1
    return (
        # the slider is in this section so that it stays visible while the section is
        '<section><div class="slider" id="playground" hidden>'
        '<label for="temperature">Temperature</label> '
        '<output id="temperature-now" for="temperature">1</output>'
        f'<input type="range" id="temperature" min="{-decades}" max="{decades}" step="0.01" '
        f'value="0" aria-valuetext="temperature 1">{buttons}</div>\n'
        f'<div class="cards">\n{cards}\n</div></section>'
    )


def _card(findings: Findings, row: int, caption: str) -> str:
    prediction, is_right = findings.prediction, bool(findings.is_right[row])
    classes = findings.shown_classes(row)
    shares = prediction.probabilities[row].tolist()
    bars = "".join(_bar(findings, row, label, shares[label]) for label in classes)
    if n_others := len(shares) - len(classes):
        rest = max(0.0, 1 - sum(shares[label] for label in classes))
        bars += _list_item('class="others"', f"{n_others:,} others", rest)
    return (
        f'<section class="card {"right" if is_right else "wrong"}" id="row-{row}">'
        f'<h3>{escape(caption)}</h3><div class="row">{_image(findings, row)}'
        f"<p>Row {row}:<br><strong>{escape(findings.predicted_name(row))}</strong><br>"
        f"{findings.verdict(row, escape(findings.true_name(row)))}</p></div>"
        f'<dl><div><dt>confidence</dt><dd class="confidence">'
        f"{escape(percent(prediction.confidence[row].item()))}</dd></div>"
        f'<div><dt>entropy</dt><dd class="entropy">{prediction.entropy[row].item():.3f} nats</dd>'
        f'</div></dl><ul class="bars">{bars}</ul></section>'
    )


def _bar(findings: Findings, row: int, label: int, share: float) -> str:
    kinds = [
        *(["answer"] if label == findings.prediction.label[row] else []),
        *(["truth"] if label == findings.target[row] else []),
    ]
    attributes = f'data-class="{label}" class="{" ".join(kinds)}"'
    return _list_item(attributes, findings.class_names[label], share)


def _list_item(attributes: str, name: str, share: float) -> str:
    return (
        f'<li {attributes}><span class="name" title="{escape(name)}">{escape(name)}</span>'
        f'<span><span class="bar" style="display:block;width:{share:.4%}"></span></span>'
        f'<span class="share">{escape(percent(share))}</span></li>'
    )


def _image(findings: Findings, row: int) -> str:
    if findings.images is None:
        return ""
    # imported here: the plots were drawn before, so matplotlib is installed
    from matplotlib.image import imsave

    pixels = findings.images[row].expand(-1, -1, 3)
    buffer = io.BytesIO()
    imsave(buffer, pixels.numpy(), format="png")
    return f'<img src="{data_url(buffer.getvalue())}" alt="what the model saw">'
