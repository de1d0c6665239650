"""Pictures and one page about what any classifier's logits say, and how rightly so.

Needs matplotlib: ``pip install matplotlib``, or this package with its extra ``plots``.
"""

from torch_softmax.report.writing import write_report

__all__ = ["write_report"]
