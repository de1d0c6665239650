"""Rows to report on, and the parts of the page that reports on them."""

import html.parser
import json
import math

import torch

from torch_softmax.report import findings, page


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
