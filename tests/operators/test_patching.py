"""Our operators under PyTorch's names, and in the hands of other libraries."""

import contextlib
import doctest
import inspect
import io
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torch_softmax
from torch_softmax import patching

README = Path(__file__).parents[2] / "README.md"
LOGITS = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.3, 0.1]])
TARGET = torch.tensor([2, 0])
ORIGINALS = (F.cross_entropy, F.softmax, F.log_softmax, nn.CrossEntropyLoss)


def names():
    return (F.cross_entropy, F.softmax, F.log_softmax, nn.CrossEntropyLoss)


def test_patch_makes_torchs_names_ours_and_restores_them():
    with torch_softmax.patch():
        assert nn.CrossEntropyLoss is torch_softmax.CrossEntropyLoss
        assert not set(names()) & set(ORIGINALS)
    assert names() == ORIGINALS


def test_break_22_patch_restores_after_an_exception_and_when_nested():
    with pytest.raises(KeyError), torch_softmax.patch():
        with torch_softmax.patch():
            pass
        assert nn.CrossEntropyLoss is torch_softmax.CrossEntropyLoss
        raise KeyError
    assert names() == ORIGINALS


@pytest.mark.parametrize("name", ["cross_entropy", "softmax", "log_softmax"])
def test_patch_takes_torchs_arguments(name):
    ours = inspect.signature(getattr(patching, f"_{name}")).parameters
    theirs = inspect.signature(getattr(F, name)).parameters
    assert list(ours) == list(theirs)
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]


def test_patch_reaches_modules_that_exist_and_deprecated_arguments():
    criterion, layer = nn.CrossEntropyLoss(label_smoothing=0.1), nn.Softmax(1)
    calls = (
        lambda: criterion(LOGITS, TARGET),
        lambda: layer(LOGITS),
        lambda: F.cross_entropy(LOGITS, TARGET, None, None, 0, None, "sum", 0.2),
        lambda: F.log_softmax(LOGITS, dim=1, dtype=torch.float64),
    )
    expected = [call() for call in calls]
    with torch_softmax.patch():
        actual = [call() for call in calls]
        with pytest.warns(UserWarning, match="deprecated"):
            loss = F.cross_entropy(LOGITS, TARGET, size_average=False)
        with pytest.warns(UserWarning, match="Implicit dimension"):
            probabilities = F.softmax(LOGITS)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(loss, F.cross_entropy(LOGITS, TARGET, reduction="sum"))
    torch.testing.assert_close(probabilities, F.softmax(LOGITS, 1))


def test_modules_take_torchs_arguments_by_position_and_name():
    theirs = inspect.signature(nn.CrossEntropyLoss).parameters
    ours = inspect.signature(torch_softmax.CrossEntropyLoss).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert all(ours[name].default == theirs[name].default for name in theirs)
    assert isinstance(torch_softmax.CrossEntropyLoss(), nn.CrossEntropyLoss)
    assert isinstance(torch_softmax.Softmax(1), nn.Softmax)
    assert isinstance(torch_softmax.LogSoftmax(1), nn.LogSoftmax)


def test_export_keeps_the_operators():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x, target):
            logits = self.layer(x)
            return torch_softmax.softmax(logits, 1), torch_softmax.cross_entropy(logits, target)

    classifier, arguments = Classifier(), (torch.randn(2, 3), torch.tensor([1, 3]))
    for strict in (False, True):
        program = torch.export.export(classifier, arguments, strict=strict)
        # a Function's forward is a graph of its own, without gradients
        code = "".join(graph.code for graph in program.graph_module.modules())
        assert "torch_softmax.softmax_forward" in code
        assert "torch_softmax.cross_entropy_forward" in code
        torch.testing.assert_close(program.module()(*arguments), classifier(*arguments))


def test_forward_mode_under_compile_raises_instead_of_giving_0():
    def derivative(x, v):
        return torch.func.jvp(lambda x: torch_softmax.cross_entropy(x, TARGET), (x,), (v,))[1]

    tangent = torch.ones_like(LOGITS).triu()
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match="without forward mode"):
        torch.compile(derivative, fullgraph=True, backend="aot_eager")(LOGITS, tangent)
    expected = torch.func.jvp(lambda x: F.cross_entropy(x, TARGET), (LOGITS,), (tangent,))[1]
    torch.testing.assert_close(derivative(LOGITS, tangent), expected)


@pytest.fixture
def readme():
    """The names that the README's examples define."""
    names = {}
    for example in doctest.DocTestParser().get_examples(README.read_text()):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(example.source, README.name, "single"), names)
    return names


# other libraries' warnings are not ours to mend
@pytest.mark.filterwarnings("ignore")
def test_hugging_face_trainer_trains_with_the_loss_of_the_readme(readme, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    tokens = torch.randint(50, (8, 12))
    settings = transformers.TrainingArguments(
        tmp_path,
        per_device_train_batch_size=4,
        max_steps=3,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )

    def losses(loss_function):
        torch.manual_seed(0)
        trainer = transformers.Trainer(
            transformers.GPT2LMHeadModel(config),
            settings,
            train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
            compute_loss_func=loss_function,
        )
        trainer.train()
        return [step["loss"] for step in trainer.state.log_history if "loss" in step]

    ours, theirs = losses(readme["next_token_loss"]), losses(None)
    assert len(ours) == 3
    torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore")
def test_timm_soft_targets_need_no_other_loss():
    timm_loss = pytest.importorskip("timm.loss")
    timm_data = pytest.importorskip("timm.data")
    mixup = timm_data.Mixup(mixup_alpha=0.8, num_classes=5, label_smoothing=0.1)
    _, target = mixup(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))
    logits = torch.randn(4, 5)
    expected = timm_loss.SoftTargetCrossEntropy()(logits, target)
    torch.testing.assert_close(torch_softmax.cross_entropy(logits, target), expected)
