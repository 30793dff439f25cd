"""The arithmetic of `bench.row_influence`."""

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from bench.row_influence import Example, RowGradients, compute_auc, compute_datainf
from slimdown.training.labels import IGNORED


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 32}
    config = transformers.LlamaConfig(
        **sizes, num_hidden_layers=2, num_attention_heads=2, attn_implementation="sdpa"
    )
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(transformers.LlamaForCausalLM(config), lora).eval()


def test_gradients_of_a_batch_are_those_of_its_rows(model: torch.nn.Module) -> None:
    numbers = np.random.default_rng(0)
    rows = []
    for n_tokens in (5, 9, 3):
        tokens = numbers.integers(0, 32, n_tokens).tolist()
        rows.append(Example("sums", True, "", tokens, [IGNORED, *tokens[1:]]))
    gradients = RowGradients(model)
    found, nats = gradients.measure(rows)
    found = found.clone()  # the hooks go on to write into it

    for row, row_gradient, row_nats in zip(rows, found, nats, strict=True):
        labels = torch.tensor([row.labels])
        loss = model(input_ids=torch.tensor([row.tokens]), labels=labels).loss
        (loss * (len(row.tokens) - 1)).backward()
        trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        assert loss.item() * (len(row.tokens) - 1) == pytest.approx(row_nats.item(), rel=1e-4)
        torch.testing.assert_close(row_gradient, gradients.flatten(trained), rtol=1e-3, atol=1e-5)
        model.zero_grad()


def test_datainf_is_the_mean_of_the_layers_inverses() -> None:
    numbers = np.random.default_rng(0)
    rows, wanted = numbers.normal(size=(6, 7)), numbers.normal(size=(2, 7))
    is_trained = np.array([True] * 5 + [False])
    norms = np.linalg.norm(rows, axis=1)
    spans = [slice(0, 3), slice(3, 7)]
    expected = np.zeros((6, 2))
    for span in spans:
        layer = rows[:, span]
        size = layer.shape[1]
        damping = 0.1 * np.square(layer[:5]).sum(1).mean() / size
        outer = [np.outer(gradient, gradient) + damping * np.eye(size) for gradient in layer[:5]]
        inverse = np.mean([np.linalg.inv(matrix) for matrix in outer], axis=0)
        expected += layer @ inverse @ wanted[:, span].T
    units = rows / norms[:, None]
    found = compute_datainf(units, torch.from_numpy(norms), wanted, is_trained, spans)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_auc_counts_ties_half() -> None:
    is_planted = np.array([True, True, False, False])
    assert compute_auc(np.array([3.0, 1.0, 2.0, 1.0]), is_planted) == (2 + 0.5) / 4
