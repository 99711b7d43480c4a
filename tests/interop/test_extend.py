"""``extend``: positions, what is trained, resuming, what is saved, and that it helps."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from figure_rules import broken_rules
from interop.test_all_models import built
from interop.tiny_models import build, tokens, transformers
from interop.trained import TRAINED, byte_model, python_files

from sparsity_lab.interop import ExtendedContext, attach, extend, from_transformers, interpolate_positions
from sparsity_lab.kernels import Softmax
from sparsity_lab.models import RoPE
from sparsity_lab.settings import SettingError

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*")

CONTEXT = 32
SMALL: dict[str, Any] = {"steps": 4, "batch_size": 2, "learning_rate": 1e-2, "warmup": 2, "checkpoint_every": 2}


def short(name: str = "Llama", seed: int = 0, **changes: Any) -> Any:
    return build(name, seed, max_position_embeddings=16, **changes)


def documents() -> list[Any]:
    return list(tokens(40, batch_size=3, seed=5))


def extended(model: Any, out: Path, **changes: Any) -> ExtendedContext:
    return extend(model, CONTEXT, tokens(400, 1, seed=6)[0], documents(), out, **{**SMALL, **changes})


def test_positions_are_interpolated_through_the_models_own_settings() -> None:
    model = short()
    interpolate_positions(model, 2.0)
    assert model.config.rope_parameters["factor"] == 2.0
    assert model.config.max_position_embeddings == 32
    assert from_transformers(model).config.position == RoPE(scale=2.0)
    interpolate_positions(model, 1.5)
    fresh = build("Llama", rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0})
    assert torch.equal(model(tokens(12)).logits, fresh(tokens(12)).logits)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen3"])
def test_what_is_trained_and_saved_loads_without_us(name: str, tmp_path: Path) -> None:
    model = short(name)
    untouched = copy.deepcopy(model.state_dict())
    found = extended(model, tmp_path / "out")
    moved = {name for name, p in found.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "norm" in name or "embed_tokens" in name for name in moved)
    assert len([name for name in moved if "lora_A" in name]) == 8  # four maps of two layers
    assert any("embed_tokens" in name for name in moved)
    assert found.trained == sum(p.numel() for p in found.model.parameters() if p.requires_grad)
    plain = getattr(transformers, f"{name}ForCausalLM")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    base = plain(config)
    base.load_state_dict(untouched)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    assert torch.equal(again(tokens(30)).logits, found.model(tokens(30)).logits)
    assert config.max_position_embeddings == CONTEXT
    frame = found.frame()
    assert frame.select("when", "length").rows() == [(w, n) for w in ("before", "after") for n in (8, 16, 32)]
    assert (frame["perplexity"] > 1).all()
    assert frame["passkey"].is_null().to_list() == [True, True, False] * 2


@pytest.mark.parametrize("model_type", ["gpt_neox", "deepseek_v3"])
def test_maps_of_attention_by_any_name(model_type: str, tmp_path: Path) -> None:
    model = built(model_type)
    linear = {
        name
        for name, one in model.named_modules()
        if isinstance(one, torch.nn.Linear) and ("self_attn." in name or ".attention." in name)
    }
    row = torch.arange(400) % 29
    found = extend(model, 144, row, [row[:200], row[100:300]], tmp_path, steps=1, batch_size=1, documents=2)
    inner: Any = found.model.get_base_model()
    adapted = {name for name, one in inner.named_modules() if hasattr(one, "lora_A")}
    assert adapted == linear
    assert len(linear) >= 4
    base = type(model)(transformers.AutoConfig.from_pretrained(tmp_path))
    base.load_state_dict(built(model_type).state_dict())
    again = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.equal(again(row[None, :30]).logits, found.model(row[None, :30]).logits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("afmoe", ""),
        ("mllama", ""),
        ("longcat_flash", "model: expected a class in which peft finds the linear maps of attention"),
        (
            "recurrent_gemma",
            "model.config.max_position_embeddings: expected a number, the context to extend, got None",
        ),
        ("emu3", "model.config.attention_dropout: expected 0 in training"),
    ],
)
def test_classes_with_other_parts_are_served_or_refused_in_one_line(
    model_type: str, words: str, tmp_path: Path
) -> None:
    model, row = built(model_type), torch.arange(400) % 29
    names, before, told = list(model.state_dict()), model.config.to_dict(), ""
    try:
        extend(model, 144, row, [row[:200], row[100:300]], tmp_path, steps=1, batch_size=1, documents=2)
    except SettingError as error:
        told = str(error)
    assert told.startswith(words)
    assert bool(told) == bool(words)
    assert "\n" not in told
    if words:
        assert (list(model.state_dict()), model.config.to_dict()) == (names, before)


def test_without_a_rank_all_weights_are_trained_and_saved(tmp_path: Path) -> None:
    model = short()
    before = copy.deepcopy(model.state_dict())
    found = extended(model, tmp_path / "out", rank=None)
    assert found.model is model
    assert found.trained == sum(p.numel() for p in model.parameters())
    assert not any(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config.max_position_embeddings == CONTEXT
    assert torch.equal(again(tokens(30)).logits, model(tokens(30)).logits)


def test_a_parameter_that_no_loss_reaches_has_no_moments(tmp_path: Path) -> None:
    losses = []
    for _ in range(2):  # the second goes on from the whole checkpoint of the first
        model = short()
        model.unused = torch.nn.Parameter(torch.ones(3))
        losses.append(extended(model, tmp_path / "out", rank=None).losses)
    assert losses[0] == losses[1]


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    found = extended(short(tie_word_embeddings=True), tmp_path)
    assert found.model(tokens(12)).logits.isfinite().all()
    inner = found.model.get_base_model()
    head = inner.get_output_embeddings()
    own = head.modules_to_save["default"] if hasattr(head, "modules_to_save") else head
    embedding = inner.get_input_embeddings().modules_to_save["default"]
    assert own.weight is embedding.weight


def test_an_interrupted_training_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(step: int, loss: float) -> None:
        if step == 2:
            raise Stop

    whole = extended(short(), tmp_path / "whole")
    with pytest.raises(Stop):
        extended(short(), tmp_path / "parts", progress=stop)
    seen: list[int] = []
    parts = extended(short(), tmp_path / "parts", progress=lambda step, _: seen.append(step))
    assert seen == [2, 3]
    assert parts.losses == whole.losses
    assert torch.equal(parts.model(tokens(30)).logits, whole.model(tokens(30)).logits)
    words = "out: expected a new folder, or one whose training has the same settings, got .*parts, with another "
    with pytest.raises(SettingError, match=f"{words}rank$"):
        extended(short(), tmp_path / "parts", rank=2)
    with pytest.raises(SettingError, match=f"{words}model$"):
        extended(short(seed=1), tmp_path / "parts")
    with pytest.raises(SettingError, match=f"{words}text$"):
        extend(short(), CONTEXT, tokens(400, 1, seed=7)[0], documents(), tmp_path / "parts", **SMALL)
    with pytest.raises(SettingError, match=f"{words}config$"):
        extended(short(rope_theta=500.0), tmp_path / "parts")
    with pytest.raises(SettingError, match="steps: expected at least 4, which are done in .*parts, got 3"):
        extended(short(), tmp_path / "parts", steps=3)


@pytest.mark.parametrize("rank", [2, None])
def test_what_ends_in_an_error_leaves_the_model_as_it_came(rank: int | None, tmp_path: Path) -> None:
    """Also in an interruption by hand; and the same model then goes on to the same bits."""

    def stop(step: int, loss: float) -> None:
        raise KeyboardInterrupt

    model, ids = short().train(), tokens(12)
    before, names = model(ids).logits, [name for name, _ in model.named_modules()]
    with pytest.raises(KeyboardInterrupt):
        extended(model, tmp_path / "out", rank=rank, checkpoint_every=1, progress=stop)
    assert model.training
    assert [name for name, _ in model.named_modules()] == names
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert model.config.to_dict() == short().config.to_dict()
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(ids).logits, before)
    again = extended(model, tmp_path / "out", rank=rank, checkpoint_every=1)
    whole = extended(short().train(), tmp_path / "whole", rank=rank)
    assert again.losses == whole.losses
    assert torch.equal(again.model(ids).logits, whole.model(ids).logits)


def test_kinds_of_layers_with_rope_settings_of_their_own() -> None:
    """As in Gemma 3: all are interpolated. A window that hides a key of the new context is refused."""
    sizes = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
    own = {"sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
           "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0}}  # fmt: skip
    model = gemma(rope_parameters=own, **sizes)
    interpolate_positions(model, 2.0)
    twice = {"sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0},
             "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0}}  # fmt: skip
    assert model.config.rope_parameters == twice
    fresh = gemma(rope_parameters=twice, **sizes)
    assert torch.equal(model(tokens(12)).logits, fresh(tokens(12)).logits)
    with pytest.raises(SettingError, match="model.config.sliding_window: expected None, or at least 128, the new co"):
        extend(model, 128, tokens(400, 1)[0], documents(), "unused")
    own["full_attention"]["rope_type"] = "dynamic"
    with pytest.raises(
        SettingError, match="model.config.rope_parameters.full_attention.rope_type: expected 'default'"
    ):
        interpolate_positions(gemma(rope_parameters=own, **sizes), 2.0)
    phi = built("phi3")
    before = phi.config.to_dict()
    with pytest.raises(SettingError, match="model.config.rope_parameters: expected those of a class that knows 'lin"):
        interpolate_positions(phi, 2.0)
    assert phi.config.to_dict() == before


def gemma(**changes: Any) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"head_dim": 8, "num_key_value_heads": 2, "max_position_embeddings": 32, "vocab_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.Gemma3TextConfig(**sizes, pad_token_id=0, **changes)
        return transformers.Gemma3ForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("steps", -1), ("batch_size", 0), ("checkpoint_every", 0), ("documents", 1), ("warmup", -1), ("rank", 0),
        ("alpha", 0.0), ("learning_rate", float("nan")), ("seed", 0.5), ("steps", 1.5), ("batch_size", "4"),
    ],
)  # fmt: skip
def test_numbers_are_checked_before_anything_is_done(name: str, wrong: object, tmp_path: Path) -> None:
    model = short()
    with pytest.raises(SettingError, match=f"^{name}: expected a .*, got {wrong!r}$"):
        extended(model, tmp_path / "no", **{name: wrong})
    assert not (tmp_path / "no").exists()
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below", 5):
        with pytest.raises(SettingError, match="^out: expected a folder that can be written, got"):
            extended(model, out)  # type: ignore[arg-type]
    for factor in (0, -1.0, float("inf"), "2"):
        with pytest.raises(SettingError, match="factor: expected a number above 0"):
            interpolate_positions(model, factor)  # type: ignore[arg-type]


def test_no_step_interpolates_positions_alone(tmp_path: Path) -> None:
    found, model = extended(short(), tmp_path, steps=0), short()
    interpolate_positions(model, 2.0)
    assert found.losses == ()
    assert torch.equal(found.model(tokens(30)).logits, model(tokens(30)).logits)


def test_low_rank_maps_alone(tmp_path: Path) -> None:
    found = extended(short(), tmp_path, whole=False, kernel=Softmax())
    assert all("lora_" in name for name, p in found.model.named_parameters() if p.requires_grad)


def test_what_is_refused(tmp_path: Path) -> None:
    for model, context, words in [
        (short(), 16, "context: expected more than 16, the model's own context, got 16"),
        (
            build("GPT2"),
            256,
            "model.config.rope_parameters: expected rotary positions, which can be inter.* in a gpt2",
        ),
        (
            short(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
            32,
            "model.config.rope_parameters.rope_type: expected 'default' or 'linear', got 'dynamic'",
        ),
        (short(), 64, r"text: expected at least two documents of 65 tokens"),
        (short(), 4096, r"text: expected at least 4097 tokens, got 400"),
    ]:
        with pytest.raises(SettingError, match=words):
            extend(model, context, tokens(400, 1, seed=6)[0], documents(), tmp_path / "no", **SMALL)
    assert not (tmp_path / "no").exists()
    with pytest.raises(SettingError, match=r"learning_rate: expected a rate that keeps the loss finite"):
        extended(short(), tmp_path / "far", learning_rate=1e30, warmup=0, steps=20)


def test_figure(tmp_path: Path) -> None:
    found = extended(short(), tmp_path, steps=1)
    assert [line.get_label() for line in found.plot().get_lines()] == ["before", "after"]
    assert broken_rules(found.figure()) == []


@pytest.mark.slow
def test_a_trained_model_reads_four_times_as_far(tmp_path: Path) -> None:
    """Before, loss rises beyond the trained length; after, it is lower there by an interval."""
    context = 4 * TRAINED
    model, text = byte_model(), torch.cat(python_files(40, 4000)[12:])
    held_out = python_files(12, context + 1)
    found = extend(
        model, context, text, held_out, tmp_path, steps=40, batch_size=4, learning_rate=3e-3, warmup=5, documents=12
    )
    loss = {(row["when"], row["length"]): row["loss"] for row in found.frame().iter_rows(named=True)}
    assert loss["before", context] > loss["before", TRAINED] + 0.1
    assert loss["after", context] < loss["before", context] - 0.1


def test_with_a_kernel_attached_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"model: a kernel is attached; call detach\(model\) first"):
        extended(attach(short(), Softmax()), tmp_path)
    with pytest.raises(SettingError, match="kernel: expected a kernel, such as"):
        extended(short(), tmp_path, kernel=[Softmax()] * 2)
    adapted = peft.get_peft_model(short(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(SettingError, match=r"model: a model without an adapter; call model.merge_and_unload\(\) fi"):
        extended(adapted, tmp_path)
