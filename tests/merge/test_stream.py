"""The streaming merge against PEFT and bitsandbytes, tensor by tensor and byte by byte."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from merge import tiny
from merge.conftest import Trained
from puna.artifacts import Adapter, Model
from puna.errors import MachineError, MergeError
from puna.home import Home
from puna.merge.layout import read_shard, shards
from puna.merge.stream import merge

# PEFT asks transformers by a name that the latter has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def merged(made: Trained, home: Home, adapter: Adapter | None = None, base_dir: Path | None = None, **kw: str) -> Model:
    options = {"base": "original", "base_ref": "tiny"} | kw
    return merge(adapter or made.adapter, base_dir or made.base, home, recipe=tiny.recipe(), **options)  # type: ignore


def sealed(made: Trained, home: Home, peft: Path) -> Adapter:
    return tiny.seal_adapter(home, peft, made.tokenizer, made.dataset)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def peft_merge(base: Path, peft: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return dict(PeftModel.from_pretrained(model, peft).merge_and_unload().state_dict())


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"target_modules": ["q_proj", "down_proj"]}])
def test_an_fp32_merge_is_pefts_merge(made: Trained, tmp_path: Path, home: Home, options: dict[str, object]) -> None:
    base = tiny.write_base(tmp_path / "base", torch.float32)
    peft = tiny.write_peft(tmp_path / "peft", base, **options)
    ours = weights(merged(made, home, sealed(made, home, peft), base).path)
    theirs = peft_merge(base, peft)
    assert set(ours) == set(theirs)
    before = weights(base)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-7)
    assert sum(not torch.equal(ours[n], before[n]) for n in ours) == 2 * len(options.get("target_modules", range(7)))


def test_a_bf16_merge_is_the_fp32_sum_rounded_once(made: Trained, home: Home) -> None:
    ours, exact = weights(merged(made, home).path), peft_merge(made.base, made.peft)
    for name, tensor in ours.items():
        if "proj" in name:
            assert tensor.dtype == torch.bfloat16
            # The fp32 sums may differ in their last bit, so that a number on the edge falls to its other neighbour.
            differing = (tensor != exact[name].bfloat16()).float().mean()
            assert differing < 1e-3, name
            torch.testing.assert_close(tensor, exact[name].bfloat16(), rtol=2**-7, atol=0)


def test_untouched_bytes_and_the_layout_are_the_bases(made: Trained, tmp_path: Path, home: Home) -> None:
    peft = tiny.write_peft(tmp_path / "peft", made.base, target_modules=["v_proj"])
    model = merged(made, home, sealed(made, home, peft))
    old, new = (folder / "model.safetensors" for folder in (made.base, model.path))
    shard = read_shard(old)
    before, after = old.read_bytes(), new.read_bytes()
    assert before[: len(shard.header)] == after[: len(shard.header)] and len(before) == len(after)
    changed = {s.name for s in shard.slots if before[s.start : s.end] != after[s.start : s.end]}
    assert changed == {f"model.layers.{i}.self_attn.v_proj.weight" for i in range(2)}


def test_a_sharded_base_gives_the_same_tensors_in_the_same_files(made: Trained, tmp_path: Path, home: Home) -> None:
    base = tiny.write_base(tmp_path / "base", shard="60KB")
    assert len(list(base.glob("*.safetensors"))) > 2
    model = merged(made, home, base_dir=base)
    one = weights(merged(made, home).path)
    assert all(torch.equal(tensor, one[name]) for name, tensor in weights(model.path).items())
    old, new = (json.loads((d / "model.safetensors.index.json").read_text()) for d in (base, model.path))
    assert old["weight_map"] == new["weight_map"]
    AutoModelForCausalLM.from_pretrained(model.path)


def test_the_dequantised_base_is_bitsandbytes_round_trip_of_every_projection_and_of_nothing_else(
    made: Trained, tmp_path: Path, home: Home
) -> None:
    from bitsandbytes.nn import Params4bit

    peft = tiny.write_peft(tmp_path / "peft", made.base, target_modules=["q_proj"])
    ours = weights(merged(made, home, sealed(made, home, peft), base="dequantised").path)
    base, lora = weights(made.base), load_file(peft / "adapter_model.safetensors")
    for name, tensor in ours.items():
        if "proj" not in name:
            assert torch.equal(tensor, base[name]), name
            continue
        held = Params4bit(base[name], quant_type="nf4", compress_statistics=True).to("cpu")
        from bitsandbytes.functional import dequantize_4bit

        expected = dequantize_4bit(held.data, held.quant_state)
        assert not torch.equal(expected, base[name])
        if "q_proj" in name:
            stem = "base_model.model." + name.removesuffix(".weight")
            delta = lora[f"{stem}.lora_B.weight"] @ lora[f"{stem}.lora_A.weight"] * (8 / 4)
            torch.testing.assert_close(tensor, (expected.float() + delta).bfloat16(), rtol=2**-7, atol=0)
        else:
            assert torch.equal(tensor, expected), name


def test_the_chat_rows_are_written_into_embedding_and_head_and_no_other_row_moves(made: Trained, home: Home) -> None:
    ours, base = weights(merged(made, home).path), weights(made.base)
    rows = load_file(made.peft / "chat_rows.safetensors")
    for name, key in ((EMBED, "embed"), (HEAD, "head")):
        assert torch.equal(ours[name][[2, 3]], rows[key].bfloat16())
        assert torch.equal(ours[name][4:], base[name][4:]) and torch.equal(ours[name][:2], base[name][:2])


@pytest.mark.parametrize("shard", ["5GB", "60KB"])
def test_a_tied_base_gets_a_head_of_its_own_when_its_chat_rows_differ(
    made: Trained, tmp_path: Path, home: Home, shard: str
) -> None:
    base = tiny.write_base(tmp_path / "base", tied=True, shard=shard)
    model = merged(made, home, base_dir=base)
    assert json.loads((model.path / "config.json").read_text())["tie_word_embeddings"] is False
    loaded = AutoModelForCausalLM.from_pretrained(model.path).state_dict()
    rows, before = load_file(made.peft / "chat_rows.safetensors"), weights(base)
    assert torch.equal(loaded[HEAD][[2, 3]], rows["head"].bfloat16())
    assert torch.equal(loaded[EMBED][[2, 3]], rows["embed"].bfloat16())
    assert torch.equal(loaded[HEAD][4:], before[EMBED][4:])


def test_a_tied_base_stays_tied_when_both_rows_are_the_same(made: Trained, tmp_path: Path, home: Home) -> None:
    base = tiny.write_base(tmp_path / "base", tied=True)
    peft = shutil.copytree(made.peft, tmp_path / "peft")
    tiny.write_rows(peft, same=True)
    model = merged(made, home, sealed(made, home, peft), base)
    assert json.loads((model.path / "config.json").read_text())["tie_word_embeddings"] is True
    assert not (model.path / "model.safetensors.index.json").exists() and HEAD not in weights(model.path)


def spoil_layer_name(tensors: dict[str, torch.Tensor]) -> None:
    key = next(iter(tensors))
    tensors[key.replace("layers.0", "layers.7").replace("layers.1", "layers.7")] = tensors.pop(key)


def drop_pair(tensors: dict[str, torch.Tensor]) -> None:
    for half in "AB":
        del tensors[f"base_model.model.model.layers.1.mlp.up_proj.lora_{half}.weight"]


def drop_half(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"]


def add_stranger(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.lm_head.modules_to_save.weight"] = torch.zeros(2)


def make_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"][0, 0] = float("nan")


def reshape(tensors: dict[str, torch.Tensor]) -> None:
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    tensors[key] = tensors[key][:, :-1].contiguous()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_layer_name, "layers"),
        (drop_pair, "layers.1.mlp.up_proj"),
        (drop_half, "half a LoRA pair for model.layers.1.mlp.up_proj"),
        (add_stranger, "lm_head.modules_to_save"),
        (make_nan, "not finite"),
        (reshape, "layers.0.self_attn.q_proj"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_by_key_and_leaves_no_folder(
    made: Trained, tmp_path: Path, home: Home, spoil: object, says: str
) -> None:
    peft = shutil.copytree(made.peft, tmp_path / "peft")
    tensors = load_file(peft / "adapter_model.safetensors")
    spoil(tensors)  # type: ignore[operator]
    save_file(tensors, peft / "adapter_model.safetensors")
    with pytest.raises(MergeError, match=says):
        merged(made, home, sealed(made, home, peft))
    assert list(home.models.iterdir()) == []


def test_a_sum_beyond_the_dtype_is_refused(made: Trained, tmp_path: Path, home: Home) -> None:
    base = tiny.write_base(tmp_path / "base", torch.float16)
    peft = tiny.write_peft(tmp_path / "peft", base, strength=400.0)
    with pytest.raises(MergeError, match="not finite"):
        merged(made, home, sealed(made, home, peft), base)
    assert list(home.models.iterdir()) == []


def test_chat_rows_beyond_the_vocabulary_are_refused(made: Trained, tmp_path: Path, home: Home) -> None:
    peft = shutil.copytree(made.peft, tmp_path / "peft")
    rows = load_file(peft / "chat_rows.safetensors") | {"token_ids": torch.tensor([2, tiny.VOCAB])}
    save_file(rows, peft / "chat_rows.safetensors")
    with pytest.raises(MergeError, match="do not fit"):
        merged(made, home, sealed(made, home, peft))


def test_dora_is_refused_instead_of_merged_as_lora(made: Trained, tmp_path: Path, home: Home) -> None:
    peft = tiny.write_peft(tmp_path / "peft", made.base, use_dora=True)
    with pytest.raises(MergeError, match="use_dora"):
        merged(made, home, sealed(made, home, peft))


def test_a_pickled_base_is_refused(made: Trained, tmp_path: Path, home: Home) -> None:
    base = shutil.copytree(made.base, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    (base / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(MergeError, match="pickled"):
        merged(made, home, base_dir=base)


def test_a_base_cut_short_is_refused(made: Trained, tmp_path: Path, home: Home) -> None:
    base = shutil.copytree(made.base, tmp_path / "base")
    os.truncate(base / "model.safetensors", (base / "model.safetensors").stat().st_size - 100)
    with pytest.raises(MergeError, match="bytes, not"):
        merged(made, home, base_dir=base)


@pytest.mark.parametrize("header", ["{ ", "[]", '{"a": 1}', '{"a": {"dtype": "F32", "shape": [1]}}'])
def test_a_damaged_header_is_refused(header: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(MergeError, match=r"model\.safetensors has a damaged safetensors header"):
        read_shard(file)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": 1}'])
def test_a_damaged_index_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(MergeError, match=r"index\.json cannot be read"):
        shards(tmp_path)


def test_a_full_disk_is_told_before_a_byte_is_written(
    made: Trained, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(home.models)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(MachineError, match="are free"):
        merged(made, home)
    assert list(home.models.iterdir()) == []


def test_a_disk_that_fills_up_on_the_way_leaves_nothing(
    made: Trained, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    sendfile, calls = os.sendfile, []

    def full(*args: int) -> int:
        calls.append(args)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return sendfile(*args)

    monkeypatch.setattr(os, "sendfile", full)
    with pytest.raises(MachineError, match="no space left"):
        merged(made, home)
    assert len(calls) > 3 and list(home.models.iterdir()) == []


def test_the_same_merge_gives_the_same_digest_and_names_what_it_was_made_from(made: Trained, home: Home) -> None:
    first, second = merged(made, home), merged(made, home)
    assert first.digest == second.digest and first.path == second.path and len(list(home.models.iterdir())) == 1
    lineage = first.manifest.made_from
    assert lineage["adapter"] == made.adapter.digest and lineage["dataset"] == made.dataset.digest
    assert lineage["base"] == "tiny" and first.manifest.config["merged_pairs"] == 14


def test_room_for_the_model_and_64_mib_more_must_be_free(
    made: Trained, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, usage = sum(file.stat().st_size for file in made.base.glob("*.safetensors")), shutil.disk_usage(home.models)
    for free, is_enough in ((size, False), (size + 2**26 - 1, False), (size + 2**26, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        if is_enough:
            assert merged(made, home).path.is_dir()
        else:
            with pytest.raises(MachineError, match="are free"):
                merged(made, home)
