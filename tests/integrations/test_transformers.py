"""The README's loss in the hands of the Hugging Face Trainer."""

import contextlib
import doctest
import io
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[2] / "README.md"
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


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
