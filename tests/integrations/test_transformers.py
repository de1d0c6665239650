"""The README's loss in the hands of the Hugging Face Trainer."""

import contextlib
import doctest
import io
from functools import partial
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


MODELS = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    ),
    # whose head is not its embedding
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=0,
        )
    ),
}


def losses_of_training(folder, make_model, loss_function=None, forward=None):
    """The loss of each step, with a part of the labels ignored and two batches to a step."""
    torch.manual_seed(0)
    model = make_model()
    if forward:
        model.forward = partial(forward, model)
    tokens = torch.randint(50, (8, 12), generator=torch.Generator().manual_seed(1))
    data = [
        {"input_ids": row, "labels": row.masked_fill(torch.arange(12) < i, -100)}
        for i, row in enumerate(tokens)
    ]
    settings = transformers.TrainingArguments(
        folder,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=3,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = transformers.Trainer(
        model, settings, train_dataset=data, compute_loss_func=loss_function
    )
    trainer.train()
    return [step["loss"] for step in trainer.state.log_history if "loss" in step]


# other libraries' warnings are not ours to mend
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_hugging_face_trainer_trains_with_the_losses_of_the_readme(name, readme, tmp_path):
    train = partial(losses_of_training, tmp_path, MODELS[name])
    theirs = train()
    assert len(theirs) == 3
    torch.testing.assert_close(train(loss_function=readme["next_token_loss"]), theirs)
    torch.testing.assert_close(train(forward=readme["forward_without_logits"]), theirs)
