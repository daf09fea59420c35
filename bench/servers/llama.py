"""A Llama of random weights on disk: the shape decides the speed, and no hub is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

VOCABULARY = 128_256
SHAPES: dict[str, dict[str, Any]] = {
    "llama3-8b": {
        "vocab_size": VOCABULARY, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "tiny": {
        "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make(folder: Path, shape: str, has_weights: bool = True) -> None:
    """Weights, config and a byte tokenizer in `folder`, unless they are there.

    In a process of its own: what makes them on a GPU would keep its memory.
    """
    if not (folder / "tokenizer.json").exists():
        subprocess.run([sys.executable, __file__, str(folder), shape, *["weights"] * has_weights], check=True)


def _write(folder: Path, shape: str, has_weights: bool) -> None:
    from transformers import LlamaConfig

    size = SHAPES[shape]["vocab_size"]
    config = LlamaConfig(
        **SHAPES[shape],
        max_position_embeddings=8192,
        rope_theta=500000.0,
        rms_norm_eps=1e-5,
        bos_token_id=size - 3,
        eos_token_id=size - 2,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    if has_weights:
        _weights(config, folder)
    else:
        config.save_pretrained(folder)
    _tokenizer(folder, size)


def _weights(config: Any, folder: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder, max_shard_size="5GB")


def _tokenizer(folder: Path, size: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)}
    vocabulary.update({f"tok{i}": i for i in range(len(alphabet), size - 3)})
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


if __name__ == "__main__":
    _write(Path(sys.argv[1]), sys.argv[2], "weights" in sys.argv[3:])
