"""Soft targets that timm mixes, without its loss."""

import pytest
import torch

import torch_softmax


# another library's warnings are not ours to mend
@pytest.mark.filterwarnings("ignore")
def test_timm_soft_targets_need_no_other_loss():
    timm_loss = pytest.importorskip("timm.loss")
    timm_data = pytest.importorskip("timm.data")
    mixup = timm_data.Mixup(mixup_alpha=0.8, num_classes=5, label_smoothing=0.1)
    _, target = mixup(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))
    logits = torch.randn(4, 5)
    expected = timm_loss.SoftTargetCrossEntropy()(logits, target)
    torch.testing.assert_close(torch_softmax.cross_entropy(logits, target), expected)
