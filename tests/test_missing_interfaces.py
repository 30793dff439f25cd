"""Each private interface of another library, taken away: a slower path, or one message."""

from pathlib import Path
from typing import Any

import lm_eval.api.task
import pytest
import transformers
from bitsandbytes.nn import Linear4bit
from builders import Patch
from commands_and_runs import SMALL_IN_FLOAT, call_verb
from lm_eval.models.huggingface import HFLM
from record_builders import compose_config
from tiny_benchmarks import add_adapter, make_prompts, make_questions
from tiny_models import WINDOW, build_byte_tokenizer, build_tiny_model
from transformers import PreTrainedConfig, PreTrainedModel

from slimdown.evaluation.prefix_lm import GeneratingLM, PrefixLM, VirtualTokensLM
from slimdown.models.base_model import LoadedModel, load_base_model
from slimdown.training.padding_free import supports_padding_free
from slimdown.utils import tested_versions
from slimdown.utils.errors import ModelError
from slimdown.utils.tested_versions import PRIVATE_NAMES, LibraryError, explain_library_change

FEW = [*SMALL_IN_FLOAT, "train.max_steps=1", "benchmark=[pocket_commonsense]"]
FEW = [setting for setting in FEW if not setting.startswith("benchmark.pocket_")]
FEW += ["benchmark.pocket_commonsense.limit=4"]


def load_base(setting: str) -> LoadedModel:
    config = compose_config(setting)
    return load_base_model(config.model, config.quantization)


def assert_explained(message: str, package: str, name: str) -> None:
    """The message names the library, its version, what is missing, and the way back."""
    assert f"{package} {tested_versions.find_version(package)}" in message
    assert name in message
    assert f"pip install '{package}" in message
    assert "Traceback" not in message
    assert "choose another" not in message


@pytest.mark.parametrize(
    ("owner", "name", "package"),
    [
        (PreTrainedConfig, "_attn_implementation", "transformers"),
        (lm_eval.models.utils, "normalize_gen_kwargs", "lm-eval"),
        (HFLM, "_model_generate", "lm-eval"),
    ],
)
def test_a_run_without_it_ends_in_one_message(
    owner: Any, name: str, package: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    def lack(*_: Any, **__: Any) -> Any:
        raise AttributeError(f"{owner.__name__!r} has no attribute {name!r}")

    if owner is PreTrainedConfig:
        monkeypatch.setattr(owner, name, property(lack, lambda *_: None))
    elif owner is HFLM:
        monkeypatch.delattr(owner, name)
    else:  # our module has it already: its use fails as its import would
        monkeypatch.setattr("slimdown.evaluation.benchmark_run.normalize_gen_kwargs", lack)
        FEW_WRITTEN = [s.replace("commonsense", "math") for s in FEW]
        return assert_explained(call_verb(tmp_path, "run", *FEW_WRITTEN).stderr, package, name)
    done = call_verb(tmp_path, "run", *FEW)
    assert done.returncode == 1
    assert_explained(done.stderr, package, name)
    return None


def test_the_harness_hands_out_other_requests(tmp_path: Path, monkeypatch: Patch) -> None:
    own = lm_eval.api.task.Task.instances.fget
    monkeypatch.setattr(lm_eval.api.task.Task, "instances", property(lambda self: [*own(self)]))
    assert_explained(call_verb(tmp_path, "run", *FEW).stderr, "lm-eval", "_instances")


def test_layers_in_4_bits_have_no_flag_for_their_kernel(monkeypatch: Patch) -> None:
    build = Linear4bit.__init__

    def build_without(self: Any, *args: Any, **settings: Any) -> None:
        build(self, *args, **settings)
        del self.support_avx512bf16_for_cpu

    monkeypatch.setattr(Linear4bit, "__init__", build_without)
    with pytest.raises(LibraryError) as refused:
        load_base("quantization=nf4")
    assert_explained(str(refused.value), "bitsandbytes", "support_avx512bf16_for_cpu")


def test_the_harness_calls_the_scoring_by_another_name(monkeypatch: Patch) -> None:
    model, tokenizer = build_tiny_model("llama"), build_byte_tokenizer()
    requests = make_questions()[:12]
    expected = PrefixLM(pretrained=model, tokenizer=tokenizer).loglikelihood(requests)
    for owner in (PrefixLM, GeneratingLM):
        monkeypatch.delattr(owner, "_loglikelihood_tokens")
    plain = PrefixLM(pretrained=model, tokenizer=tokenizer).loglikelihood(requests)
    assert [ll for ll, _ in plain] == pytest.approx([ll for ll, _ in expected], abs=5e-4)


def test_attention_of_a_model_is_not_known_to_be_replaceable(monkeypatch: Patch) -> None:
    model = build_tiny_model("llama")
    assert supports_padding_free(model)
    monkeypatch.delattr(PreTrainedModel, "_supports_attention_backend")
    monkeypatch.delattr(type(model).__mro__[1], "_supports_attention_backend", raising=False)
    assert not supports_padding_free(model)


def test_learned_prompts_are_not_known_to_be_switched_off() -> None:
    model = add_adapter(build_tiny_model("llama"), "PromptTuningConfig", num_virtual_tokens=4)
    settings: dict[str, Any] = {"tokenizer": build_byte_tokenizer(), "max_length": WINDOW - 8}
    lm = VirtualTokensLM(pretrained=model, **settings)
    del model._adapters_disabled
    with pytest.raises(AttributeError) as raised:
        lm.generate_until(make_prompts(["abc"]))
    assert_explained(explain_library_change(raised.value), "peft", "_adapters_disabled")


@pytest.mark.parametrize("name", ["_n_gpu", "_hf_peft_config_loaded"])
def test_the_trainer_does_not_take_what_is_set(
    name: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    settings = [s for s in FEW if s != "quantization=none"]
    if name == "_n_gpu":
        build = transformers.TrainingArguments.__post_init__

        def build_without(self: Any) -> None:
            build(self)
            vars(self).pop("_n_gpu", None)

        monkeypatch.setattr(transformers.TrainingArguments, "__post_init__", build_without)
        monkeypatch.delattr(transformers.TrainingArguments, "_n_gpu", raising=False)
        settings.append("quantization=none")
    else:
        unset = property(lambda _: False, lambda *_: None)
        monkeypatch.setattr(transformers.LlamaForCausalLM, name, unset, raising=False)
        settings.append("method=bottleneck")
    assert_explained(call_verb(tmp_path, "run", *settings).stderr, "transformers", name)


def test_the_names_that_a_model_may_hold_beside_its_weights_are_unknown() -> None:
    error = AttributeError("type object 'X' has no attribute '_keys_to_ignore_on_load_unexpected'")
    assert_explained(explain_library_change(error), "transformers", "_keys_to_ignore")


def test_a_quantization_cannot_be_looked_up(monkeypatch: Patch) -> None:
    import transformers.quantizers.auto as auto

    monkeypatch.delattr(auto, "AutoQuantizationConfig")
    with pytest.raises(ModelError) as refused:
        load_base("quantization=none")
    assert_explained(str(refused.value), "transformers", "AutoQuantizationConfig")


@pytest.mark.parametrize("name", ["_forward_hooks", "_version"])
def test_nobody_can_tell_whether_a_base_was_changed(name: str, monkeypatch: Patch) -> None:
    """It is loaded again for each run, with the same numbers."""
    from slimdown.models import shared_base

    class Unreadable:
        _parameters: dict[str, Any] = {}  # noqa: RUF012
        _buffers: dict[str, Any] = {}  # noqa: RUF012

        def __getattr__(self, missing: str) -> Any:
            raise AttributeError(missing)

    model = build_tiny_model("llama")
    assert shared_base._describe_state(model) == shared_base._describe_state(model)
    method = "named_modules" if name == "_forward_hooks" else "named_buffers"
    monkeypatch.setattr(type(model), method, lambda *_, **__: [("x", Unreadable())])
    assert shared_base._describe_state(model) != shared_base._describe_state(model)


def test_an_untested_version_is_named_with_the_way_back(tmp_path: Path, monkeypatch: Patch) -> None:
    installed = tested_versions.find_version
    monkeypatch.setattr(
        tested_versions,
        "find_version",
        lambda package: "9.1" if package == "trl" else installed(package),
    )
    text = explain_library_change(TypeError("f() got an unexpected keyword argument 'x'"))
    assert "trl 9.1 is newer" in text
    assert "pip install 'trl" in text
    doctor = call_verb(tmp_path, "doctor").stdout
    assert "trl 9.1 is newer" in " ".join(doctor.split())
    assert not explain_library_change(ValueError("a value"))


def test_nothing_is_said_of_libraries_that_were_tested() -> None:
    assert explain_library_change(TypeError("f() got an unexpected keyword argument 'x'")) == ""


def test_each_name_of_the_page_is_known_at_run_time() -> None:
    page = (Path(__file__).parents[1] / "docs" / "private_interfaces.md").read_text()
    names = {name for names in PRIVATE_NAMES.values() for name in names}
    assert all(name in page for name in names)
